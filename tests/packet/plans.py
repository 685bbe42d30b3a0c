# SPDX-License-Identifier: Apache-2.0
"""Services for packet rows, as plans: one port each, and VIPs of every kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from ipaddress import ip_address, ip_network

from msgspec import structs

from lb.model import ObjectKey, Protocol, TrafficPolicy
from lb.plan.types import Backend, BackendState, PortPlan, ServicePlan, Vip, VipKey, VipKind
from tests import packets as p

PORT = 80
TARGET_PORT = 8080
NODE_PORT = 30080

VIPS = {
    VipKind.CLUSTER_IP: (p.CLUSTER_VIP, PORT),
    VipKind.NODE_PORT: (p.NODE1, NODE_PORT),
    VipKind.LOAD_BALANCER: (p.LOAD_BALANCER_VIP, PORT),
    VipKind.EXTERNAL_IP: (p.EXTERNAL_VIP, PORT),
}
LOCAL_NET = "10.0.1."
BUILD: dict[Protocol, Callable[..., bytes]] = {
    Protocol.TCP: p.tcp,
    Protocol.UDP: p.udp,
    Protocol.SCTP: p.sctp,
}
"""What makes a frame of each protocol."""


def backend(address: str, *, local: bool | None = None, state: BackendState = BackendState.ACTIVE) -> Backend:
    """Return an endpoint; on this node when its address is of this node's pod network."""
    is_local = address.startswith(LOCAL_NET) if local is None else local
    node = "node1" if is_local else "node2"
    return Backend(ip_address(p.here(address)), TARGET_PORT, node, is_local, state)


def service(
    *addresses: str,
    name: str = "web",
    protocol: Protocol = Protocol.TCP,
    affinity_seconds: int = 0,
    vips: Sequence[VipKind] = tuple(VIPS),
    internal: TrafficPolicy = TrafficPolicy.CLUSTER,
    external: TrafficPolicy = TrafficPolicy.CLUSTER,
    local: Sequence[str] | None = None,
    terminating: Sequence[str] = (),
    source_ranges: Sequence[str] = (),
    whole: bool = True,
    direct: bool = False,
) -> ServicePlan:
    """Return a Service with these endpoints.

    internal, external: its traffic policies. terminating: endpoints that keep what they have. local: what
    policy Local offers (default: the endpoints on this node). whole: with entries for its addresses as a
    whole, which one port of a Service has; a node's address has none. direct: to other nodes by direct
    return.
    """
    offered = sorted((backend(address) for address in addresses), key=lambda one: one.identity)
    going = [backend(address, state=BackendState.TERMINATING) for address in terminating]
    backends = sorted((*offered, *going), key=lambda one: one.identity)
    here = local if local is not None else [p.role(str(one.address)) for one in offered if one.local]
    port = PortPlan(
        port_name="http",
        protocol=protocol,
        version=p.version(),
        affinity_seconds=affinity_seconds,
        vips=tuple(
            _vip(kind, of, internal, external)
            for kind in vips
            for of in ((protocol, None) if whole and kind is not VipKind.NODE_PORT else (protocol,))
        ),
        backends=tuple(backends),
        cluster=tuple(offered),
        local=tuple(one for one in backends if p.role(str(one.address)) in here),
        source_ranges=tuple(ip_network(p.here_net(text)) for text in source_ranges),
        direct=direct,
    )
    return ServicePlan(ObjectKey("default", name), "2024-01-01T00:00:00Z", (port,))


def retargeted(plan: ServicePlan, number: int) -> ServicePlan:
    """Return the plan with another target port."""
    (port,) = plan.ports
    backends, cluster, local = (
        tuple(structs.replace(each, port=number) for each in members)
        for members in (port.backends, port.cluster, port.local)
    )
    return replace(plan, ports=(replace(port, backends=backends, cluster=cluster, local=local),))


def _vip(kind: VipKind, protocol: Protocol | None, internal: TrafficPolicy, external: TrafficPolicy) -> Vip:
    address, port = VIPS[kind]
    own = kind is VipKind.CLUSTER_IP
    inside, outside = (internal, internal) if own else (TrafficPolicy.CLUSTER, external)
    port = port if protocol else 0
    return Vip(VipKey(ip_address(p.here(address)), port, protocol), kind, inside, outside)
