# SPDX-License-Identifier: Apache-2.0
"""Names in the lab, asked by pods through the Service kube-dns: in every family, and with an API server."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Sequence
from pathlib import Path

import pytest

from lb.cli import main
from lb.lab import dns
from lb.lab.addressing import Family, dns_service, outside_server
from lb.lab.lab import Lab
from tests.cluster_programs import make_assets
from tests.netns.conftest import EXAMPLES, MakeLab
from tests.netns.waiting import eventually

MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: pods}
spec:
  clusterIP: None
  ipFamilyPolicy: PreferDualStack
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: 8080}]
---
apiVersion: v1
kind: Service
metadata: {name: outside}
spec: {type: ExternalName, externalName: www.example.org}
---
apiVersion: v1
kind: Pod
metadata: {name: one, labels: {app: web}}
spec:
  hostname: first
  subdomain: pods
  containers:
    - name: web
      image: lab
      ports: [{containerPort: 8080}]
      readinessProbe: {httpGet: {path: /ready, port: 8080}, periodSeconds: 1, failureThreshold: 1}
---
apiVersion: v1
kind: Pod
metadata: {name: two, labels: {app: web}, namespace: default}
spec:
  dnsConfig: {searches: [pods.default.svc.cluster.local], options: [{name: ndots, value: "2"}]}
  containers: [{name: web, image: lab, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Pod
metadata: {name: far, namespace: elsewhere}
spec: {containers: [{name: web, image: lab}]}
"""
KINDS = ["ipv4", "ipv6", "dual", "API server"]


@pytest.fixture(scope="module", params=KINDS)
def lab(request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab with DNS."""
    folder = tmp_path_factory.mktemp("names")
    (folder / "web.yaml").write_text(MANIFEST)
    if request.param == "API server":
        assets = make_assets(tmp_path_factory.mktemp("assets"), controllers=False)
        return make_lab(folder, nodes=1, dns=True, kubernetes=str(assets))
    return make_lab(folder, nodes=1, dns=True, family=Family(request.param))


def said(lab: Lab, pod: str, *argv: str) -> str:
    """Return what a command in a pod prints; it succeeds."""
    done = lab.run(pod, argv, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    return str(done.stdout)


def dig(lab: Lab, pod: str, *words: str) -> list[str]:
    return sorted(said(lab, pod, "dig", "+short", "+search", *words).splitlines())


def status(lab: Lab, name: str, kind: str = "A") -> str:
    """Return the status of an answer, with how many records it has."""
    text = said(lab, "one", "dig", name, kind)
    head = text.split("status: ", 1)[1].split(",", 1)[0]
    return f"{head} {text.split('ANSWER: ', 1)[1].split(',', 1)[0]}"


def record(version: int) -> str:
    return "A" if version == 4 else "AAAA"


def addresses(lab: Lab, pod: str) -> dict[int, str]:
    """Return a pod's addresses by IP version."""
    return {6 if ":" in each else 4: each for each in lab.find_pod(pod).addresses}


def test_pods_ask_the_service_of_the_cluster(lab: Lab) -> None:
    lines = said(lab, "one", "cat", "/etc/resolv.conf").splitlines()
    assert lines == [
        *(f"nameserver {dns_service(version)}" for version in lab.spec.versions),
        "search default.svc.cluster.local svc.cluster.local cluster.local",
        "options ndots:5",
    ]
    assert said(lab, "two", "cat", "/etc/resolv.conf").splitlines()[-2:] == [
        "search default.svc.cluster.local svc.cluster.local cluster.local pods.default.svc.cluster.local",
        "options ndots:2",
    ]


ASKED = [("one", "web"), ("one", "web.default"), ("far", "web.default.svc")]


@pytest.mark.parametrize(("pod", "name"), ASKED)
def test_names_a_service_is_reached(lab: Lab, pod: str, name: str) -> None:
    assert said(lab, pod, "curl", "-sS", "-m", "30", f"http://{name}/").startswith("You've hit ")
    assert said(lab, pod, "getent", "hosts", name).split()[-1] == "web.default.svc.cluster.local"


def test_names_of_another_namespace_need_it(lab: Lab) -> None:
    assert lab.run("far", ["getent", "hosts", "web"], timeout=60).returncode == 2


def test_headless_follows_readiness(lab: Lab) -> None:
    def present(name: str) -> dict[int, list[str]]:
        return {version: dig(lab, "far", f"{name}.default", record(version)) for version in lab.spec.versions}

    one, two = addresses(lab, "one"), addresses(lab, "two")
    both = {version: sorted((one[version], two[version])) for version in lab.spec.versions}
    eventually(lambda: present("pods") == both, "both pods are there")
    assert present("first.pods") == {version: [one[version]] for version in lab.spec.versions}
    lab.ask_kubelet("unready", pod="one")
    try:
        alone = {version: [two[version]] for version in lab.spec.versions}
        eventually(lambda: present("pods") == alone, "the one that is not ready is gone")
        eventually(lambda: not any(present("first.pods").values()), "and its own name")
    finally:
        lab.ask_kubelet("ready", pod="one")
    eventually(lambda: present("pods") == both, "it is back")


def test_a_pod_knows_its_host_name(lab: Lab) -> None:
    assert said(lab, "one", "hostname").strip() == "first"
    assert said(lab, "one", "hostname", "--fqdn").strip() == "first.pods.default.svc.cluster.local"


def test_what_there_is_and_what_there_is_not(lab: Lab) -> None:
    version = lab.spec.versions[0]
    other = record(10 - version)
    assert status(lab, "web.default.svc.cluster.local", record(version)) == "NOERROR 1"
    assert status(lab, "web.default.svc.cluster.local", other) == "NOERROR 0"
    assert status(lab, "default.svc.cluster.local") == "NOERROR 0"
    assert status(lab, "nothing.default.svc.cluster.local") == "NXDOMAIN 0"
    assert dig(lab, "one", "dns-version.cluster.local", "TXT") == ['"1.1.0"']
    assert dig(lab, "one", "+tcp", "_http._tcp.web", "SRV") == ["0 100 80 web.default.svc.cluster.local."]
    assert dig(lab, "one", "-x", dig(lab, "one", "web", record(version))[0]) == [
        "web.default.svc.cluster.local."
    ]


def test_an_external_name_leads_outside(lab: Lab) -> None:
    assert said(lab, "one", "curl", "-sS", "-m", "30", "http://outside/") == "You've hit outside on http\n"


def test_each_family_carries_the_question(lab: Lab) -> None:
    version = lab.spec.versions[0]
    for carrier in lab.spec.versions:
        words: Sequence[str] = (f"@{dns_service(carrier)}", "web", record(version))
        assert len(dig(lab, "one", *words)) == 1
        assert len(dig(lab, "one", "+tcp", *words)) == 1


@pytest.mark.parametrize("service", ["web", "pods", "outside"])
def test_explain_follows_the_name(lab: Lab, service: str) -> None:
    out, err = io.StringIO(), io.StringIO()
    main(["explain", service, "--instance", lab.spec.instance("node1"), "-o", "json"], out=out, err=err)
    assert out.getvalue(), err.getvalue()
    report = json.loads(out.getvalue())
    assert report["causes"] == []
    [found] = [one for one in report["findings"] if one["step"] == "name"]
    assert found["result"] == "ok", found
    assert found["found"].startswith(f"{service}.default.svc.cluster.local is ")


def test_a_killed_server_comes_back_with_everything(lab: Lab) -> None:
    [before] = [pod["name"] for pod in lab.pods() if pod["namespace"] == "kube-system"]
    lab.ask_kubelet("kill", pod=before)

    def answers() -> bool:
        [pod] = [each for each in lab.pods() if each["namespace"] == "kube-system"] or [{"ready": False}]
        return pod["ready"] and bool(lab.run("one", ["getent", "hosts", "web"], timeout=60).stdout)

    eventually(answers, "its successor answers", seconds=60)


def test_what_ends_beside_the_pods_is_started_anew(lab: Lab) -> None:
    parts = [each for each in (dns.RECORDS, dns.OUTSIDE, dns.RELAY) if lab.store.process(each)]
    before = {each: lab.store.process(each) for each in parts}
    for process in before.values():
        assert process is not None
        os.kill(process.pid, signal.SIGKILL)

    def all_anew() -> bool:
        found = {each: lab.store.running(each) for each in parts}
        return all(found.values()) and not set(found.values()) & set(before.values())

    eventually(all_anew, "they run again", seconds=60)
    eventually(lambda: not lab.status()["errors"], "and status is content")
    assert set(parts) >= {dns.RECORDS, dns.OUTSIDE}
    eventually(
        lambda: bool(lab.run("one", ["getent", "hosts", "outside"]).stdout), "names outside", seconds=60
    )


@pytest.mark.parametrize("place", ["client", "node1"])
def test_places_outside_of_pods_ask_the_server_outside(lab: Lab, place: str) -> None:
    asked = [f"nameserver {outside_server(version)}" for version in lab.spec.versions]
    assert said(lab, place, "cat", "/etc/resolv.conf").splitlines() == asked
    found = said(lab, place, "getent", "ahosts", "www.example.org").split()
    assert found[0] in {str(outside_server(version)) for version in lab.spec.versions}
    assert lab.run(place, ["getent", "hosts", "web.default.svc.cluster.local"], timeout=60).returncode == 2


def test_a_service_of_the_manifests_takes_the_place_of_the_labs(make_lab: MakeLab, tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "kubia-replicaset.yaml", tmp_path)
    (tmp_path / "dns.yaml").write_text(OWN)
    lab = make_lab(tmp_path, nodes=1, dns=True, agents=False, family=Family.IPV4)
    pod = next(each["name"] for each in lab.pods() if each["namespace"] == "default")
    assert said(lab, pod, "head", "-n", "1", "/etc/resolv.conf") == "nameserver 10.66.0.53\n"
    assert lab.ask_kubelet("list")["errors"] == []


OWN = """\
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: 10.66.0.53
  selector: {k8s-app: kube-dns}
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53}]
"""


def test_without_dns_a_name_fails_at_once(make_lab: MakeLab, tmp_path: Path) -> None:
    (tmp_path / "web.yaml").write_text(MANIFEST)
    lab = make_lab(tmp_path, nodes=1, agents=False)
    assert said(lab, "one", "cat", "/etc/resolv.conf").splitlines()[0].startswith("search ")
    done = lab.run("one", ["getent", "hosts", "web"], timeout=60)
    assert done.returncode == 2
