# SPDX-License-Identifier: Apache-2.0
"""Topology: requests stay close where the Service asks for that, in a lab of three nodes in two zones.

Slices of manifests get their hints from the source; with an API server the lab's controller writes them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.lab.lab import Lab
from tests.cluster_programs import make_assets
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import dumped, eventually

ZONES = {"node1": "east", "node2": "east", "node3": "west"}
CLUSTER_IPS = {
    "anywhere": "10.66.6.1",
    "close": "10.66.6.2",
    "same-zone": "10.66.6.3",
    "same-node": "10.66.6.4",
}
REQUESTS = 8
POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec: {{nodeName: {node}, containers: [{{name: web, image: any, ports: [{{containerPort: 8080}}]}}]}}
---
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{clusterIP: {address}, selector: {{app: web}}, ports: [{{port: 80, targetPort: 8080}}]{more}}}
---
"""
ASKED = {"close": "PreferClose", "same-zone": "PreferSameZone", "same-node": "PreferSameNode"}


@pytest.fixture(scope="module", params=["manifests", "kubernetes"])
def lab(
    request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Lab]:
    """A pod on each node, one more on node2."""
    folder: Path = tmp_path_factory.mktemp("topology")
    manifests = folder / "manifests"
    manifests.mkdir()
    pods = {"a1": "node1", "a2": "node2", "b2": "node2", "a3": "node3"}
    text = "".join(POD.format(name=name, node=node) for name, node in pods.items())
    for name, address in CLUSTER_IPS.items():
        more = f", trafficDistribution: {ASKED[name]}" if name in ASKED else ""
        text += SERVICE.format(name=name, address=address, more=more)
    (manifests / "all.yaml").write_text(text)
    kubernetes = str(make_assets(folder / "assets")) if request.param == "kubernetes" else ""
    lab = make_lab(manifests=manifests, nodes=3, zones=tuple(ZONES.values()), kubernetes=kubernetes)
    yield lab
    remove(lab.spec.id)


def backends(lab: Lab, node: str, service: str) -> set[str]:
    """Return the names of the pods that a node's kernel has behind a Service."""
    names = {str(pod["address"]): str(pod["name"]) for pod in lab.pods()}
    vips = dumped(lab, node, "vips")["vips"]
    return {
        names[backend["address"]]
        for vip in vips
        if vip["address"] == CLUSTER_IPS[service]
        for backend in vip["backends"]
    }


@pytest.mark.parametrize(
    ("service", "node", "expected"),
    [
        ("anywhere", "node1", "a1 a2 b2 a3"),
        ("close", "node1", "a1 a2 b2"),
        ("close", "node3", "a3"),
        ("same-zone", "node2", "a1 a2 b2"),
        ("same-zone", "node3", "a3"),
        ("same-node", "node1", "a1"),
        ("same-node", "node2", "a2 b2"),
    ],
)
def test_topology_keeps_requests_close(lab: Lab, service: str, node: str, expected: str) -> None:
    wanted = set(expected.split())
    eventually(lambda: backends(lab, node, service) == wanted, f"{node} has {wanted} behind {service}")
    client = f"a{node[-1]}"
    script = f"for i in $(seq {REQUESTS}); do curl -sS -m 5 http://{CLUSTER_IPS[service]}/hostname; done"
    done = lab.run(client, ["sh", "-c", script])
    answers = done.stdout.split()
    assert len(answers) == REQUESTS, done.stderr
    assert set(answers) <= wanted


def test_topology_gives_way_when_the_zone_or_the_node_has_nobody_ready(lab: Lab) -> None:
    """Zone west has one pod, and so has node1; the hints of the others do not speak of a client there."""
    lab.ask_kubelet("unready", pod="a3")
    for service in ("close", "same-zone", "same-node"):
        eventually(
            lambda service=service: backends(lab, "node3", service) == {"a1", "a2", "b2"},  # type: ignore[misc]
            f"{service} leaves zone west",
        )
    done = lab.run("a3", ["curl", "-sS", "-m", "5", f"http://{CLUSTER_IPS['close']}/hostname"])
    assert done.stdout.strip() in {"a1", "a2", "b2"}, done.stderr
    lab.ask_kubelet("ready", pod="a3")
    lab.ask_kubelet("unready", pod="a1")
    eventually(lambda: backends(lab, "node1", "same-node") == {"a2", "b2"}, "the node's zone is next")
    lab.ask_kubelet("ready", pod="a1")
    eventually(lambda: backends(lab, "node1", "same-node") == {"a1"}, "the node comes first again")
