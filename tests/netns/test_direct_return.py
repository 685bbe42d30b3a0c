# SPDX-License-Identifier: Apache-2.0
"""Direct return between two nodes with real traffic: the remote pod sees the client and answers it itself.

The client sends everything to node1; the answers of node2's pod do not come by node1.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lb.config import Forward, UplinkMode
from lb.lab.addressing import Overlay, clients, node_address
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.held import Holder, Target
from tests.netns.pinned import (
    KINDS,
    Cluster,
    bring_up,
    check_answers,
    check_large_transfers,
    own,
)
from tests.netns.waiting import dumped, eventually

WAYS: dict[str, dict[str, Any]] = {
    "tc": {"uplink_mode": UplinkMode.TC},
    "xdp-vxlan": {"overlay": Overlay.VXLAN, "uplink_mode": UplinkMode.XDP_NATIVE},
}
VERSIONS = (4, 6)


@pytest.fixture(scope="module", params=list(WAYS))
def cluster(
    request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A lab for each way, one at a time."""
    found = bring_up(make_lab, tmp_path_factory.mktemp("direct"), forward=Forward.DSR, **WAYS[request.param])
    yield found
    remove(found.lab.spec.id)


@pytest.mark.parametrize("version", VERSIONS)
def test_direct_return_the_backend_answers_and_sees_the_client(cluster: Cluster, version: int) -> None:
    """On every kind of address, over TCP and UDP; on the node's own address (NodePort) as well."""
    client = str(clients(version)[0])
    for where in ("local", "remote"):
        check_answers(cluster, "outside", where, version)
        questions = [("tcp", *cluster.targets[where].address(kind, "tcp", version)) for kind in KINDS]
        seen = cluster.ask("client", questions, "/clientip")
        assert dict(zip(KINDS, seen, strict=True)) == dict.fromkeys(KINDS, client), where


@pytest.mark.parametrize("version", VERSIONS)
def test_direct_return_large_transfers_arrive_whole(cluster: Cluster, version: int) -> None:
    check_large_transfers(cluster, version)


def test_direct_return_answers_do_not_come_back_by_the_node(cluster: Cluster) -> None:
    """What node1 encapsulates node2 answers: node1 translates no reply, and makes no flow by SNAT."""
    counters = {node: dumped(cluster.lab, node)["counters"] for node in ("node1", "node2")}
    reasons = {node: {row["reason"] for row in rows if row["packets"]} for node, rows in counters.items()}
    assert "NEW_DIRECT" in reasons["node1"]
    assert "NEW_REMOTE" not in {
        row["reason"] for row in counters["node1"] if row["hook"] in ("XDP_UPLINK", "TC_UPLINK_IN")
    }
    assert "REPLY" in {row["reason"] for row in counters["node2"] if row["hook"] == "TC_UPLINK_OUT"}


@pytest.mark.parametrize("version", VERSIONS)
def test_direct_return_a_stranger_is_refused(cluster: Cluster, version: int) -> None:
    """The client itself is no node: what it sends to the nodes' port is dropped, and counted."""
    node = str(node_address("node2", version))
    sent = (
        "import socket;"
        f"s=socket.socket(socket.AF_INET{'6' if version == 6 else ''}, socket.SOCK_DGRAM);"
        f"s.sendto(bytes(120), ('{node}', 6080))"
    )
    before = _count(cluster, "node2", "DIRECT_STRANGER")
    done = cluster.lab.run("client", ["python3", "-c", sent])
    assert done.returncode == 0, done.stderr
    assert _count(cluster, "node2", "DIRECT_STRANGER") == before + 1


def _count(cluster: Cluster, node: str, reason: str) -> int:
    rows = dumped(cluster.lab, node)["counters"]
    return sum(row["packets"] for row in rows if row["reason"] == reason)


MANY = """\
apiVersion: v1
kind: Service
metadata: {name: many}
spec:
  type: LoadBalancer
  clusterIP: 10.66.1.9
  ports:
  - {name: http, port: 80}
status:
  loadBalancer: {ingress: [{ip: 203.0.113.9}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: many-4, labels: {kubernetes.io/service-name: many}}
addressType: IPv4
ports:
- {name: http, port: 8080}
endpoints:
"""
BALANCER = "203.0.113.9"
CONNECTIONS = 40


def test_any_node_also_when_the_set_changes_at_once(cluster: Cluster) -> None:
    """All connections come to another node in the moment that half of the pods are new: none is lost.

    Without it each of them is lost that today's set gives to a new pod: about half.
    """
    lab = cluster.lab
    pods = sorted(
        (pod for pod in lab.pods() if str(pod["name"]).startswith("web")), key=lambda pod: str(pod["node"])
    )
    some, manifest = [pods[0], pods[-1]], Path(lab.spec.manifests) / "many.yaml"
    assert {pod["node"] for pod in some} == {"node1", "node2"}
    lead(lab, "node1")
    offer(manifest, some)
    eventually(lambda: known_backends(cluster) == {len(some)}, "both nodes know the Service")
    with ExitStack() as stack:
        held = Holder(lab, "client", [Target("tcp", "held", BALANCER, 80, CONNECTIONS)], stack)
        eventually(lambda: held.told()["open"] == CONNECTIONS, "the connections are open")
        offer(manifest, pods)
        eventually(lambda: known_backends(cluster) == {len(pods)}, "both nodes know the new set")
        lead(lab, "node2")
        asked = held.told()["asked"]["held"]
        eventually(lambda: held.told()["asked"]["held"] > asked + 5 * CONNECTIONS, "the requests go on")
        assert held.told()["failures"] == []
    lab.run("client", ["ip", "route", "del", f"{BALANCER}/32"])
    assert sum(_count(cluster, node, "NEW_DIRECT") for node in ("node1", "node2"))


def offer(manifest: Path, pods: list[dict[str, Any]]) -> None:
    """Make these pods the Service's endpoints."""
    lines = [f'- {{addresses: ["{own(pod, 4)}"], nodeName: {pod["node"]}}}\n' for pod in pods]
    written = manifest.with_suffix(".new")
    written.write_text(MANY + "".join(lines))
    written.rename(manifest)


def lead(lab: Lab, node: str) -> None:
    """Have the client send what is for the Service to a node."""
    via = ["ip", "route", "replace", f"{BALANCER}/32", "via", str(node_address(node))]
    assert lab.run("client", via).returncode == 0


def known_backends(cluster: Cluster) -> set[int]:
    """Return how many backends the Service has on each node."""
    found = set()
    for node in ("node1", "node2"):
        rows = dumped(cluster.lab, node, "backends", "--service", "default/many")["backends"]
        found.add(len(rows))
    return found
