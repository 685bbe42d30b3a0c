"""Real clients through a lab: who answers, from wherever one asks, on whatever address.

Each Service of :data:`PINNED` leads to one pod, on node1 or on node2; packets from outside and from pods of
node1 enter at node1, so the one is a local backend and the other a remote one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from lb.config import UplinkMode
from lb.lab.addressing import CLIENTS, Overlay, node_address
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import dumped, eventually

PODS = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - ports:
        - {name: http, containerPort: 8080}
        - {name: echo, containerPort: 9000, protocol: UDP}
"""

PINNED = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  clusterIP: {cluster_ip}
  ports:
  - {{name: http, port: 80, nodePort: {tcp_port}}}
  - {{name: echo, port: 80, protocol: UDP, nodePort: {udp_port}}}
status:
  loadBalancer: {{ingress: [{{ip: {balancer}}}]}}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-1, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv4
ports:
- {{name: http, port: 8080}}
- {{name: echo, port: 9000, protocol: UDP}}
endpoints:
- {{addresses: [{address}], nodeName: {node}}}
"""

UDP_CLIENT = """\
import socket, sys
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
    asking.settimeout(5)
    asking.connect((sys.argv[1], int(sys.argv[2])))
    asking.send(b"hello")
    print(asking.recv(2048).decode())
"""


@dataclass(frozen=True)
class Target:
    """A Service with one backend, and the pod that this is."""

    pod: dict[str, Any]
    cluster_ip: str
    balancer: str
    tcp_port: int
    udp_port: int

    def address(self, kind: str, protocol: str) -> tuple[str, int]:
        if kind == "NodePort":
            return str(node_address("node1")), self.tcp_port if protocol == "tcp" else self.udp_port
        return (self.cluster_ip if kind == "clusterIP" else self.balancer), 80


@dataclass(frozen=True)
class Cluster:
    """A lab with a local and a remote target, seen from node1."""

    lab: Lab
    targets: dict[str, Target]
    bystander: dict[str, Any]  # a pod of node1 that is nobody's backend

    def place(self, client: str, target: Target) -> str:
        pods = {"pod": self.bystander, "same pod": target.pod}
        return str(pods[client]["name"]) if client in pods else "client"

    def http(self, place: str, address: tuple[str, int], path: str = "/hostname") -> str:
        host, port = address
        argv = ["curl", "-sS", "-m", "5", f"http://{host}:{port}{path}"]
        done = self.lab.run(place, argv)
        assert done.returncode == 0, f"{place}: {' '.join(argv)}: {done.stderr}"
        return str(done.stdout).strip()

    def udp(self, place: str, address: tuple[str, int]) -> str:
        argv = [sys.executable, "-I", "-S", "-c", UDP_CLIENT, address[0], str(address[1])]
        done = self.lab.run(place, argv)
        assert done.returncode == 0, f"{place}: UDP to {address}: {done.stderr}"
        return str(done.stdout).split()[0]


WAYS: dict[str, dict[str, Any]] = {
    "tc": {"uplink_mode": UplinkMode.TC},
    "xdp-native": {"uplink_mode": UplinkMode.XDP_NATIVE},
    "xdp-generic": {"uplink_mode": UplinkMode.XDP_GENERIC},
    "vxlan": {"overlay": Overlay.VXLAN},
    "vxlan-xdp": {"overlay": Overlay.VXLAN, "uplink_mode": UplinkMode.XDP_NATIVE},
}


@pytest.fixture(scope="module", params=list(WAYS))
def cluster(
    request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    """A lab for each uplink mode and overlay, one at a time."""
    manifests: Path = tmp_path_factory.mktemp("traffic")
    (manifests / "pods.yaml").write_text(PODS)
    lab = make_lab(manifests=manifests, **WAYS[request.param])
    by_node = {
        node: sorted((pod for pod in lab.pods() if pod["node"] == node), key=lambda pod: str(pod["name"]))
        for node in ("node1", "node2")
    }
    targets = {
        "local": Target(by_node["node1"][0], "10.66.1.1", "203.0.113.1", 30101, 30201),
        "remote": Target(by_node["node2"][0], "10.66.1.2", "203.0.113.2", 30102, 30202),
    }
    for name, target in targets.items():
        text = PINNED.format(
            name=name,
            cluster_ip=target.cluster_ip,
            balancer=target.balancer,
            tcp_port=target.tcp_port,
            udp_port=target.udp_port,
            address=target.pod["address"],
            node=target.pod["node"],
        )
        (manifests / f"{name}.yaml").write_text(text)
    found = Cluster(lab, targets, by_node["node1"][1])
    for target in targets.values():
        eventually(
            lambda target=target: all(  # type: ignore[misc]
                lab.run(place, ["curl", "-s", "-m", "2", f"http://{target.cluster_ip}/"]).returncode == 0
                for place in ("client", by_node["node2"][0]["name"])
            ),
            f"{target.cluster_ip} answers through both nodes",
        )
    yield found
    remove(lab.spec.id)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("kind", ["clusterIP", "NodePort", "load-balancer"])
@pytest.mark.parametrize("client", ["outside", "pod", "same pod"])
def test_the_backend_answers(cluster: Cluster, client: str, kind: str, where: str, protocol: str) -> None:
    target = cluster.targets[where]
    place, address = cluster.place(client, target), target.address(kind, protocol)
    answer = cluster.http(place, address) if protocol == "tcp" else cluster.udp(place, address)
    assert answer == target.pod["name"]


@pytest.mark.parametrize("kind", ["clusterIP", "NodePort", "load-balancer"])
def test_source_address_is_kept_for_a_local_backend_and_for_pods(cluster: Cluster, kind: str) -> None:
    """A remote backend sees the node instead: its address on the interface that leads there."""
    local, remote = cluster.targets["local"], cluster.targets["remote"]
    assert cluster.http("client", local.address(kind, "tcp"), "/clientip") == str(CLIENTS[0])
    seen = cluster.http("client", remote.address(kind, "tcp"), "/clientip")
    overlay = cluster.lab.spec.overlay is Overlay.VXLAN
    assert seen == ("10.244.1.0" if overlay else str(node_address("node1")))
    for target in (local, remote):
        seen = cluster.http(cluster.bystander["name"], target.address(kind, "tcp"), "/clientip")
        assert seen == cluster.bystander["address"]


def test_large_transfers_arrive_whole(cluster: Cluster) -> None:
    """Segmentation offload, several windows, both directions, by way of another node."""
    for target in cluster.targets.values():
        for place in ("client", cluster.bystander["name"], target.pod["name"]):
            size = 3_000_000
            url = f"http://{target.cluster_ip}/large?bytes={size}"
            done = cluster.lab.run(
                place, ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{size_download}", url]
            )
            assert (done.returncode, done.stdout) == (0, str(size)), done.stderr
            argv = ["sh", "-c", f"head -c {size} /dev/zero | curl -sS -m 20 --data-binary @- {url}"]
            done = cluster.lab.run(place, argv)
            assert f"received {size} bytes" in done.stdout, done.stderr


def test_programs_that_carried_it_are_those_of_the_mode(cluster: Cluster) -> None:
    """XDP did the work in an XDP mode; what it could not send, tc did."""
    counters = dumped(cluster.lab, "node1")["counters"]
    translated = {row["hook"] for row in counters if row["reason"] in ("NEW_LOCAL", "FLOW_HIT")}
    mode = cluster.lab.spec.uplink_mode
    assert ("XDP_UPLINK" in translated) == (mode in (UplinkMode.XDP_NATIVE, UplinkMode.XDP_GENERIC))
    trouble = {"REWRITE_FAILED", "NO_ROUTE", "NO_BACKEND", "SNAT_EXHAUSTED", "TTL_EXPIRED"}
    assert not trouble & {row["reason"] for row in counters}
