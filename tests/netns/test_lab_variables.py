# SPDX-License-Identifier: Apache-2.0
"""What a pod of the lab finds in its environment."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import eventually

PODS = """\
apiVersion: v1
kind: Pod
metadata: {name: linked, namespace: shop}
spec:
  nodeName: node2
  containers:
  - ports: [{containerPort: 8080}]
    env:
    - {name: BACKEND, value: "http://$(WEB_SERVICE_HOST):$(WEB_SERVICE_PORT_HTTP)/$(UNKNOWN)"}
    - {name: DNS_SERVICE_PORT, value: "5353"}
    - {name: WHERE, valueFrom: {fieldRef: {fieldPath: spec.nodeName}}}
    - {name: MINE, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
    - {name: SECRET, valueFrom: {secretKeyRef: {name: a, key: b}}}
    args: [--backend=$(BACKEND), "$(WEB_SERVICE_PORT)", $$(WHERE), $(UNKNOWN), "--", two words]
---
apiVersion: v1
kind: Pod
metadata: {name: bare, namespace: shop}
spec:
  enableServiceLinks: false
  containers: [{ports: [{containerPort: 8080}]}]
"""

SERVICES = """\
apiVersion: v1
kind: Service
metadata: {name: kubernetes}
spec: {clusterIP: 10.66.0.1, ports: [{name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.66.8.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: dns, namespace: shop}
spec: {ipFamilies: [IPv6], clusterIP: "fd00:66::53", ports: [{port: 53, protocol: UDP}]}
---
apiVersion: v1
kind: Service
metadata: {name: given, namespace: shop}
spec: {ports: [{port: 1}]}
---
apiVersion: v1
kind: Service
metadata: {name: headless, namespace: shop}
spec: {clusterIP: None, ports: [{port: 1}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere}
spec: {clusterIP: 10.66.8.2, ports: [{port: 1}]}
"""

KUBERNETES = {
    "KUBERNETES_SERVICE_HOST": "10.66.0.1",
    "KUBERNETES_SERVICE_PORT": "443",
    "KUBERNETES_SERVICE_PORT_HTTPS": "443",
    "KUBERNETES_PORT": "tcp://10.66.0.1:443",
    "KUBERNETES_PORT_443_TCP": "tcp://10.66.0.1:443",
    "KUBERNETES_PORT_443_TCP_PROTO": "tcp",
    "KUBERNETES_PORT_443_TCP_PORT": "443",
    "KUBERNETES_PORT_443_TCP_ADDR": "10.66.0.1",
}
ALWAYS = {"PATH", "HOME", "HOSTNAME"}


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifests: Path = tmp_path_factory.mktemp("environment")
    (manifests / "pods.yaml").write_text(PODS)
    (manifests / "services.yaml").write_text(SERVICES)
    lab = make_lab(manifests=manifests, agents=False)
    yield lab
    remove(lab.spec.id)


def environment(lab: Lab, pod: str) -> dict[str, str]:
    """Return the environment of the pod's process."""
    process = lab.find_pod(pod).process
    assert process is not None
    lines = Path(f"/proc/{process.pid}/environ").read_text().split("\0")
    return dict(line.split("=", 1) for line in lines if line)


def test_env_discovery_in_a_pod(lab: Lab) -> None:
    [pod] = [each for each in lab.pods() if each["name"] == "linked"]
    found = environment(lab, "linked")
    given = found.pop("GIVEN_SERVICE_HOST")
    assert given.startswith("10.66.")
    assert {name for name in found if name.startswith("GIVEN_")} == {
        "GIVEN_SERVICE_PORT",
        "GIVEN_PORT",
        *(f"GIVEN_PORT_1_TCP{part}" for part in ("", "_PROTO", "_PORT", "_ADDR")),
    }
    rest = {name: text for name, text in found.items() if not name.startswith("GIVEN_")}
    assert {name: text for name, text in rest.items() if name not in ALWAYS} == {
        **KUBERNETES,
        "WEB_SERVICE_HOST": "10.66.8.1",
        "WEB_SERVICE_PORT": "80",
        "WEB_SERVICE_PORT_HTTP": "80",
        "WEB_PORT": "tcp://10.66.8.1:80",
        "WEB_PORT_80_TCP": "tcp://10.66.8.1:80",
        "WEB_PORT_80_TCP_PROTO": "tcp",
        "WEB_PORT_80_TCP_PORT": "80",
        "WEB_PORT_80_TCP_ADDR": "10.66.8.1",
        "DNS_SERVICE_HOST": "fd00:66::53",
        "DNS_SERVICE_PORT": "5353",
        "DNS_PORT": "udp://[fd00:66::53]:53",
        "DNS_PORT_53_UDP": "udp://[fd00:66::53]:53",
        "DNS_PORT_53_UDP_PROTO": "udp",
        "DNS_PORT_53_UDP_PORT": "53",
        "DNS_PORT_53_UDP_ADDR": "fd00:66::53",
        "BACKEND": "http://10.66.8.1:80/$(UNKNOWN)",
        "WHERE": "node2",
        "MINE": ",".join(pod["addresses"]),
    }
    assert found["HOSTNAME"] == "linked"


def test_env_discovery_without_service_links_tells_of_kubernetes_alone(lab: Lab) -> None:
    found = environment(lab, "bare")
    assert {name: text for name, text in found.items() if name not in ALWAYS} == KUBERNETES


def test_env_discovery_is_seen_by_what_runs_in_the_pod(lab: Lab) -> None:
    done = lab.run("linked", ["sh", "-c", "echo $WEB_SERVICE_HOST $WHERE"])
    assert done.stdout == "10.66.8.1 node2\n", done.stderr


def test_what_runs_in_the_pod_sees_nothing_of_whoever_asks(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_THE_OPERATOR", "secret")
    monkeypatch.setenv("PATH", f"/somewhere:{os.environ['PATH']}")
    done = lab.run("linked", ["env"])
    found = dict(line.split("=", 1) for line in done.stdout.splitlines())
    assert found == environment(lab, "linked"), done.stderr
    assert found["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_env_discovery_in_the_arguments_of_a_pod(lab: Lab) -> None:
    address = lab.find_pod("linked").address
    done = lab.run("client", ["curl", "-sS", "-m", "5", f"http://{address}:8080/args"])
    assert done.stdout.splitlines() == [
        "--backend=http://10.66.8.1:80/$(UNKNOWN)",
        "80",
        "$(WHERE)",
        "$(UNKNOWN)",
        "--",
        "two words",
    ], done.stderr


def test_env_discovery_is_of_the_services_that_exist_when_the_pod_starts(lab: Lab) -> None:
    with open(Path(lab.spec.manifests) / "services.yaml", "a") as file:
        file.write(
            "---\napiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: shop}\n"
            "spec: {ports: [{port: 7}]}\n"
        )
    (Path(lab.spec.manifests) / "young.yaml").write_text(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: young, namespace: shop}\n"
        "spec: {containers: [{ports: [{containerPort: 8080}]}]}\n"
    )
    eventually(lambda: any(each["name"] == "young" and each["ready"] for each in lab.pods()), "it runs")
    assert environment(lab, "young")["LATE_SERVICE_PORT"] == "7"
    assert "LATE_SERVICE_PORT" not in environment(lab, "linked")
