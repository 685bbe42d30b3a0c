# SPDX-License-Identifier: Apache-2.0
"""A lab of two nodes with two Services of one backend each, and clients that ask them.

Packets from outside and from pods of node1 enter at node1, so the backend of ``local``, on node1, is a local
one, and that of ``remote``, on node2, a remote one.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lb.lab.addressing import Overlay, clients, node_address, tunnel_address
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab
from tests.netns.waiting import eventually

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
  ipFamilyPolicy: RequireDualStack
  clusterIP: {cluster_ips[4]}
  clusterIPs: ["{cluster_ips[4]}", "{cluster_ips[6]}"]
  ports:
  - {{name: http, port: 80, nodePort: {tcp_port}}}
  - {{name: echo, port: 80, protocol: UDP, nodePort: {udp_port}}}
status:
  loadBalancer: {{ingress: [{{ip: {balancers[4]}}}, {{ip: "{balancers[6]}"}}]}}
"""

SLICE = """\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: {name}-{version}, labels: {{kubernetes.io/service-name: {name}}}}}
addressType: IPv{version}
ports:
- {{name: http, port: 8080}}
- {{name: echo, port: 9000, protocol: UDP}}
endpoints:
- {{addresses: ["{address}"], nodeName: {node}}}
"""

ASK = """\
import http.client, json, socket, sys

def ask(protocol, host, port, path):
    if protocol == "tcp":
        server = http.client.HTTPConnection(host, port, timeout=5)
        server.request("GET", path)
        return server.getresponse().read().decode().strip()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.settimeout(5)
        asking.connect((host, port))
        asking.send(b"hello")
        return asking.recv(2048).decode().split()[0]

for question in json.loads(sys.argv[1]):
    try:
        print(ask(*question))
    except OSError as error:
        print(error)
"""
"""Asks each question of a list over a connection of its own and prints the answer or the error."""

KINDS = ("clusterIP", "NodePort", "load-balancer")
PROTOCOLS = ("tcp", "udp")


@dataclass(frozen=True)
class Target:
    """A Service with one backend, and the pod that this is."""

    pod: dict[str, Any]
    number: int

    @property
    def cluster_ips(self) -> dict[int, str]:
        """By IP version, as everything that comes in two."""
        return {4: f"10.66.1.{self.number}", 6: f"fd00:66::{self.number}"}

    @property
    def balancers(self) -> dict[int, str]:
        return {4: f"203.0.113.{self.number}", 6: f"2001:db8:203::{self.number}"}

    def address(self, kind: str, protocol: str, version: int) -> tuple[str, int]:
        if kind == "NodePort":
            port = (30100 if protocol == "tcp" else 30200) + self.number
            return str(node_address("node1", version)), port
        return (self.cluster_ips if kind == "clusterIP" else self.balancers)[version], 80

    def manifest(self, name: str) -> str:
        service = PINNED.format(
            name=name,
            cluster_ips=self.cluster_ips,
            balancers=self.balancers,
            tcp_port=30100 + self.number,
            udp_port=30200 + self.number,
        )
        node = self.pod["node"]
        slices = (
            SLICE.format(name=name, version=version, address=own(self.pod, version), node=node)
            for version in (4, 6)
        )
        return service + "".join(slices)


def own(pod: dict[str, Any], version: int) -> str:
    """Return the pod's address of an IP version."""
    return next(str(each) for each in pod["addresses"] if ip_address(each).version == version)


@dataclass(frozen=True)
class Cluster:
    """A lab with a local and a remote target, seen from node1."""

    lab: Lab
    targets: dict[str, Target]
    bystander: dict[str, Any]  # a pod of node1 that is nobody's backend

    def place(self, client: str, target: Target) -> str:
        pods = {"pod": self.bystander, "same pod": target.pod}
        return str(pods[client]["name"]) if client in pods else "client"

    def ask(
        self, place: str, questions: Sequence[tuple[str, str, int]], path: str = "/hostname"
    ) -> list[str]:
        """Return the answers to (protocol, host, port); UDP is answered by the pod's name in any case."""
        given = [[*question, path] for question in questions]
        done = self.lab.run(place, [sys.executable, "-I", "-S", "-c", ASK, json.dumps(given)])
        assert done.returncode == 0, done.stderr
        return str(done.stdout).splitlines()


def url(address: tuple[str, int]) -> str:
    host, port = address
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def bring_up(make_lab: MakeLab, manifests: Path, **spec: Any) -> Cluster:
    """Bring such a lab up, with manifests in an empty directory; spec is fields of LabSpec."""
    (manifests / "pods.yaml").write_text(PODS)
    lab = make_lab(manifests=manifests, **spec)
    by_node = {
        node: sorted((pod for pod in lab.pods() if pod["node"] == node), key=lambda pod: str(pod["name"]))
        for node in ("node1", "node2")
    }
    targets = {
        "local": Target(by_node["node1"][0], 1),
        "remote": Target(by_node["node2"][0], 2),
    }
    serve(lab, targets, str(by_node["node2"][0]["name"]))
    return Cluster(lab, targets, by_node["node1"][1])


def serve(lab: Lab, targets: Mapping[str, Target], elsewhere: str) -> None:
    """Make the Services, and wait until they answer the client and elsewhere, a pod of node2."""
    for name, target in targets.items():
        (Path(lab.spec.manifests) / f"{name}.yaml").write_text(target.manifest(name))
    for target in targets.values():
        eventually(
            lambda target=target: all(  # type: ignore[misc]
                lab.run(place, ["curl", "-s", "-m", "2", url((address, 80))]).returncode == 0
                for place in ("client", elsewhere)
                for address in target.cluster_ips.values()
            ),
            f"{target.cluster_ips} answer through both nodes",
        )


def check_answers(cluster: Cluster, client: str, where: str, version: int) -> None:
    """Ask a Service from a place on every kind of address, over TCP and UDP."""
    target = cluster.targets[where]
    rows = [(kind, protocol) for kind in KINDS for protocol in PROTOCOLS]
    questions = [(protocol, *target.address(kind, protocol, version)) for kind, protocol in rows]
    answers = cluster.ask(cluster.place(client, target), questions)
    assert dict(zip(rows, answers, strict=True)) == dict.fromkeys(rows, str(target.pod["name"]))


def check_sources(cluster: Cluster, version: int) -> None:
    """Ask who the backend sees.

    A remote backend sees the node in place of an outside client: its address on the way there.
    """
    leads_there = node_address if cluster.lab.spec.overlay is Overlay.NONE else tunnel_address
    client, pod = str(clients(version)[0]), own(cluster.bystander, version)
    rows = {
        ("client", "local"): client,
        ("client", "remote"): str(leads_there("node1", version)),
        (str(cluster.bystander["name"]), "local"): pod,
        (str(cluster.bystander["name"]), "remote"): pod,
    }
    for (place, where), source in rows.items():
        questions = [("tcp", *cluster.targets[where].address(kind, "tcp", version)) for kind in KINDS]
        seen = cluster.ask(place, questions, "/clientip")
        assert dict(zip(KINDS, seen, strict=True)) == dict.fromkeys(KINDS, source), (place, where)


def check_large_transfers(cluster: Cluster, version: int) -> None:
    """Send much in both directions, by way of another node: segmentation offload, several windows."""
    for target in cluster.targets.values():
        for place in ("client", cluster.bystander["name"], target.pod["name"]):
            size = 3_000_000
            whole = f"{url((target.cluster_ips[version], 80))}/large?bytes={size}"
            done = cluster.lab.run(
                place, ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{size_download}", whole]
            )
            assert (done.returncode, done.stdout) == (0, str(size)), done.stderr
            argv = ["sh", "-c", f"head -c {size} /dev/zero | curl -sS -m 20 --data-binary @- '{whole}'"]
            done = cluster.lab.run(place, argv)
            assert f"received {size} bytes" in done.stdout, done.stderr
