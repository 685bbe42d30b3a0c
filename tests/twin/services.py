# SPDX-License-Identifier: Apache-2.0
"""What a world is on one side: addresses and ports of its targets, and its manifests."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lb.lab.addressing import POD_NETWORKS, clients, node_address, outside_server
from tests.twin.program import BACKENDS, FAR, ServiceState, Target, World

_NUMBERS = {"web": 1, "also": 2, "host": 3}
_PORTS = {"web": (80, 81), "also": (80, 81), "host": (8081, 8083)}
NODE_PORTS = {"web": (30080, 30090), "also": (30081, 30091), "host": (30082, 30092)}
POD_PORTS = {False: ((8080, 9000), (8090, 9010)), True: ((8081, 9001), (8091, 9011))}
"""TCP and UDP ports of a pod, by whether it has the network of its node: a Service has one pair as target."""

_KINDS = (("http", "TCP"), ("echo", "UDP"))
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
            ports = [
                {"name": f"{kind}{at or ''}", "containerPort": number, "protocol": protocol}
                for at, pair in enumerate(POD_PORTS[host])
                for (kind, protocol), number in zip(_KINDS, pair, strict=True)
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


def balancer_ip(service: str, version: int) -> str:
    """Return a Service's load-balancer address."""
    number = _NUMBERS[service]
    return f"203.0.113.{number}" if version == 4 else f"2001:db8:203::{number}"


def place(side: Side, target: Target, version: int, pods: Mapping[str, Sequence[str]]) -> Place:
    """Return where a target is; pods: the addresses of each pod, IPv4 and IPv6, by its name in the lab."""
    kind, *rest = target
    if kind == "outside":
        return str(outside_server(version)), 80, 9000
    if kind == "pod":
        http, echo = POD_PORTS[rest[0] == "host"][0]
        return pods[side.pod(rest[0])][version == 6], http, echo
    name = rest[0]
    if kind == "node":
        number = NODE_PORTS[name][rest[1]]
        return str(node_address(side.node, version)), number, number
    port = _PORTS[name][rest[-1]]
    if kind == "cluster":
        return cluster_ip(name, rest[1], version), port, port
    address = balancer_ip(name, version) if kind == "balancer" else external_ip(side, name, version)
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
    for kind, protocol in _KINDS:
        port = {"name": kind, "port": _PORTS[name][state.port], "protocol": protocol}
        if state.type != "ClusterIP":
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
    if state.ranges and state.type == "LoadBalancer":
        spec["loadBalancerSourceRanges"] = _ranges(state.ranges)
    made = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": spec}
    if state.type == "LoadBalancer":
        given = [{"ip": balancer_ip(name, version)} for version in (4, 6)]
        made["status"] = {"loadBalancer": {"ingress": given}}
    return made


def _ranges(which: int) -> list[str]:
    """Return whom a load-balancer address is for; nothing of it admits what the nodes' processes send."""
    if which == 1:
        return [f"{each}/{32 if version == 4 else 128}" for version in (4, 6) for each in clients(version)]
    return [str(network) for network in POD_NETWORKS.values()]


def _slice(
    side: Side, name: str, state: ServiceState, version: int, pods: Mapping[str, Sequence[str]]
) -> Any:
    backends = BACKENDS[name]
    listed = backends if state.ending else [backends[at] for at in state.ready]
    ready = {backends[at] for at in state.ready}
    http, echo = POD_PORTS[name == "host"][state.target]
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
                "conditions": {"ready": each in ready, "serving": True, "terminating": each not in ready},
                "nodeName": FAR_NODE if each == FAR else side.node,
            }
            for each in listed
        ],
    }


def _documents(made: Sequence[Any]) -> str:
    return "".join(f"---\n{json.dumps(each)}\n" for each in made) or "# nothing\n"
