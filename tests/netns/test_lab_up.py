# SPDX-License-Identifier: Apache-2.0
"""What `lab up` and `lab status` say: what is waited for, what is wrong, what to try."""

import io
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.cli import main
from lb.lab import namespaces, topology
from lb.lab.addressing import UPLINK, LabSpec
from lb.lab.lab import Lab
from tests.netns.conftest import fresh_id, remove

NEVER_READY = """\
apiVersion: v1
kind: Pod
metadata: {name: slow}
spec:
  containers:
  - ports: [{containerPort: 8080}]
    readinessProbe: {exec: {command: ["false"]}, periodSeconds: 1}
"""

SERVICES = """\
apiVersion: v1
kind: Service
metadata: {name: good}
spec: {type: NodePort, clusterIP: 10.66.4.4, ports: [{port: 81, nodePort: 31000}]}
---
apiVersion: v1
kind: Service
metadata: {name: bad}
spec: {ports: [{port: 70000}]}
---
apiVersion: v1
kind: Service
metadata: {name: six}
spec: {ipFamilies: [IPv6], ports: [{port: 80}]}
"""


@pytest.fixture
def lab_id() -> Iterator[str]:
    lab = fresh_id()
    yield lab
    remove(lab)


def test_up_says_what_it_waits_for(lab_id: str, tmp_path: Path) -> None:
    (tmp_path / "pods.yaml").write_text(NEVER_READY)
    lines: list[str] = []
    Lab.up(LabSpec(lab_id, str(tmp_path), nodes=1, agents=False), lines.append, pods_within=3)
    assert "  waiting up to 3 s for slow" in lines
    assert "  0 of 1 ready" in lines
    assert lines[-1].startswith("  not ready: slow: readiness probe failed")


def test_up_shows_errors_of_services_and_hints_at_those_that_there_are(lab_id: str, tmp_path: Path) -> None:
    (tmp_path / "services.yaml").write_text(SERVICES)
    out, err = io.StringIO(), io.StringIO()
    argv = ["lab", "up", "--id", lab_id, "--nodes", "1", "--family", "ipv4", "--manifests", str(tmp_path)]
    assert main(argv, out=out, err=err) == 0, err.getvalue()
    text = out.getvalue()
    path = tmp_path / "services.yaml"
    assert f"  manifest error: {path}:9: Service default/bad: spec.ports[0].port: " in text
    assert (
        f"  manifest error: {path}:11: Service default/six: spec.ipFamilies: service_cidr has no IPv6" in text
    )
    assert f"  lbctl lab exec --id {lab_id} client -- curl -s http://192.168.77.11:31000/\n" in text
    assert "lab demo" not in text
    assert "10.66.13.240" not in text


def test_status_warns_of_xdp_on_a_wire_that_is_not_made_for_it(lab_id: str, tmp_path: Path) -> None:
    lab = Lab.up(LabSpec(lab_id, str(tmp_path), nodes=2, agents=False), lambda _line: None)
    assert lab.status()["errors"] == []
    with namespaces.netlink(lab.spec.namespace("node2")) as route:
        topology.take_back(route, UPLINK)  # any program in the driver will do
    [warning] = lab.status()["errors"]
    assert warning.startswith(
        "node2: XDP runs on eth0 (xdp-native), but its wire is made for uplink mode auto"
    )
