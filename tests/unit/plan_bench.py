# SPDX-License-Identifier: Apache-2.0
"""A Service with one port, its endpoints in every state, and what a plan says, as text."""

from __future__ import annotations

from ipaddress import ip_address

from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
)
from lb.plan.types import Backend, PortPlan, ServicePlan, Topology, VipKind

TCP, UDP = Protocol.TCP, Protocol.UDP

KEY = ObjectKey("default", "web")

CLUSTER_IP = ip_address("10.96.0.10")

CLUSTER_IP6 = ip_address("fd00::10")

NODE_ADDRESS = ip_address("192.0.2.1")

EXTERNAL = ip_address("203.0.113.7")

NODE_ADDRESS6 = ip_address("2001:db8::1")

TOPOLOGY = Topology(
    "node1",
    node_port_addresses=(NODE_ADDRESS, NODE_ADDRESS6),
    node_addresses=frozenset({NODE_ADDRESS, NODE_ADDRESS6}),
)

HTTP = ServicePort("http", TCP, 80, 8080, node_port=30080)

WEB = Service(KEY, ports=(HTTP,), cluster_ips=(CLUSTER_IP,))

READY_LOCAL = Endpoint(ip_address("10.0.1.1"), node="node1")

READY_REMOTE = Endpoint(ip_address("10.0.2.1"), node="node2")

UNREADY = Endpoint(ip_address("10.0.1.2"), ready=False, serving=False)

SERVING = Endpoint(ip_address("10.0.1.3"), ready=False, serving=True, terminating=True)

DYING = Endpoint(ip_address("10.0.1.4"), ready=False, serving=False, terminating=True)


def piece(
    *endpoints: Endpoint,
    ports: tuple[EndpointPort, ...] = (EndpointPort("http", TCP, 8080),),
    name: str = "a",
) -> EndpointSlice:
    return EndpointSlice(ObjectKey("default", f"web-{name}"), KEY, ports, endpoints)


def only(plan: ServicePlan) -> PortPlan:
    assert len(plan.ports) == 1
    return plan.ports[0]


def vips(port: PortPlan) -> list[tuple[str, VipKind]]:
    return [(f"{vip.key.address}:{vip.key.port}", vip.kind) for vip in port.vips if vip.key.port]


def addresses(plan: ServicePlan) -> list[tuple[int, str, VipKind]]:
    """Return the addresses as a whole, each with the index of the port that has it."""
    return [
        (index, str(vip.key), vip.kind)
        for index, port in enumerate(plan.ports)
        for vip in port.vips
        if not vip.key.port
    ]


def sockets(backends: tuple[Backend, ...]) -> list[str]:
    return [f"{b.address}:{b.port}" for b in backends]


def offers(port: PortPlan) -> tuple[list[str], list[str]]:
    """Return the addresses offered under Cluster and under Local."""
    return [str(b.address) for b in port.cluster], [str(b.address) for b in port.local]
