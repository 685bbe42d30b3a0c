# SPDX-License-Identifier: Apache-2.0
"""What a world is on one side: addresses and ports of its targets, and its manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lb.lab.addressing import clients, node_address, outside_server
from tests.twin.program import BACKENDS, FAR, ServiceState, Target, World

_NUMBERS = {"web": 1, "also": 2, "host": 3}
_PORTS = {"web": (80, 81), "also": (80, 81), "host": (8081, 8083)}
NODE_PORTS = {"web": (30080, 30090), "also": (30081, 30091), "host": (30082, 30092)}
POD_PORTS = {False: (8080, 9000), True: (8081, 9001)}
"""TCP and UDP port of a pod, by whether it has the node's network."""

PODS = ("asker", "web0", "web1", "host", "far")
FAR_NODE = "node3"
Place = tuple[str, int, int]
"""Address, TCP port, UDP port."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two; pods of side ``a`` are called ``a-…``. client is the number of its address outside."""

    name: str
    node: str
    client: int

    def pod(self, name: str) -> str:
        """Return the name of a pod of this side."""
        return f"{self.name}-{name}"

    def manifests_of_pods(self) -> str:
        """Return the pods' manifests."""
        made = []
        for name in PODS:
            host = name == "host"
            http, echo = POD_PORTS[host]
            ports = [
                {"name": "http", "containerPort": http},
                {"name": "echo", "containerPort": echo, "protocol": "UDP"},
            ]
            spec = {
                "nodeName": FAR_NODE if name == FAR else self.node,
                "hostNetwork": host,
                "containers": [{"ports": ports}],
            }
            made.append(
                {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": self.pod(name)}, "spec": spec}
            )
        return _documents(made)


def cluster_ip(service: str, which: int, version: int) -> str:
    """Return the first or the second clusterIP that a Service may have."""
    number = _NUMBERS[service]
    return f"10.66.{1 + which}.{number}" if version == 4 else f"fd00:66::{1 + which}:{number}"


def external_ip(side: Side, service: str, version: int) -> str:
    """Return a Service's external address: for that of the pod with the node's network, the node's."""
    if service == "host":
        return str(node_address(side.node, version))
    return f"198.51.100.{_NUMBERS[service]}" if version == 4 else f"2001:db8:51::{_NUMBERS[service]}"


def place(side: Side, target: Target, version: int, pods: Mapping[str, Sequence[str]]) -> Place:
    """Return where a target is; pods: the addresses of each pod, IPv4 and IPv6, by its name in the lab."""
    kind, *rest = target
    if kind == "outside":
        return str(outside_server(version)), 80, 9000
    if kind == "pod":
        http, echo = POD_PORTS[rest[0] == "host"]
        return pods[side.pod(rest[0])][version == 6], http, echo
    name = rest[0]
    if kind == "node":
        number = NODE_PORTS[name][rest[1]]
        return str(node_address(side.node, version)), number, number
    port = _PORTS[name][rest[-1]]
    address = cluster_ip(name, rest[1], version) if kind == "cluster" else external_ip(side, name, version)
    return address, port, port


def source(side: Side, who: str, version: int, pods: Mapping[str, Sequence[str]]) -> str:
    """Return the address of a client."""
    if who == "outside":
        return str(clients(version)[side.client])
    if who in ("node", "bare", "hostpod"):
        return str(node_address(side.node, version))
    return pods[side.pod("asker" if who == "pod" else who)][version == 6]


def manifests(side: Side, world: World, pods: Mapping[str, Sequence[str]]) -> str:
    """Return the Services of a world with their EndpointSlices, as documents."""
    made: list[Any] = []
    for name, state in world.items():
        if state.there:
            made.append(_service(side, name, state))
            made += [_slice(side, name, state, version, pods) for version in (4, 6)]
    return _documents(made)


def _service(side: Side, name: str, state: ServiceState) -> Any:
    addresses = [cluster_ip(name, state.ip, version) for version in (4, 6)]
    ports = []
    for kind, protocol in (("http", "TCP"), ("echo", "UDP")):
        port = {"name": kind, "port": _PORTS[name][state.port], "protocol": protocol}
        if state.type == "NodePort":
            port["nodePort"] = NODE_PORTS[name][state.node_port]
        ports.append(port)
    spec: dict[str, Any] = {
        "type": state.type,
        "ipFamilyPolicy": "RequireDualStack",
        "clusterIP": addresses[0],
        "clusterIPs": addresses,
        "ports": ports,
    }
    if state.internal_local:
        spec["internalTrafficPolicy"] = "Local"
    if state.external_local:
        spec["externalTrafficPolicy"] = "Local"
    if state.affinity:
        spec["sessionAffinity"] = "ClientIP"
        spec["sessionAffinityConfig"] = {"clientIP": {"timeoutSeconds": state.affinity}}
    if state.external:
        spec["externalIPs"] = [external_ip(side, name, version) for version in (4, 6)]
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}


def _slice(
    side: Side, name: str, state: ServiceState, version: int, pods: Mapping[str, Sequence[str]]
) -> Any:
    ready = [BACKENDS[name][at] for at in state.ready]
    http, echo = POD_PORTS[name == "host"]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": f"{name}-{version}",
            "labels": {"kubernetes.io/service-name": name},
        },
        "addressType": f"IPv{version}",
        "ports": [
            {"name": "http", "port": http, "protocol": "TCP"},
            {"name": "echo", "port": echo, "protocol": "UDP"},
        ],
        "endpoints": [
            {
                "addresses": [pods[side.pod(each)][version == 6]],
                "conditions": {"ready": True},
                "nodeName": FAR_NODE if each == FAR else side.node,
            }
            for each in ready
        ],
    }


def _documents(made: Sequence[Any]) -> str:
    return "".join(f"---\n{json.dumps(each)}\n" for each in made) or "# nothing\n"
