"""Services for packet rows, as plans: one port each, and VIPs of every kind."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

from lb.model import ObjectKey, Protocol
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


def backend(address: str, *, local: bool | None = None, state: BackendState = BackendState.ACTIVE) -> Backend:
    """Return an endpoint; on this node when its address is of this node's pod network."""
    is_local = address.startswith(LOCAL_NET) if local is None else local
    node = "node1" if is_local else "node2"
    return Backend(ip_address(address), TARGET_PORT, node, is_local, state)


def service(
    *addresses: str,
    name: str = "web",
    protocol: Protocol = Protocol.TCP,
    affinity_seconds: int = 0,
    vips: Sequence[VipKind] = tuple(VIPS),
    outside: Sequence[str] | None = None,
    terminating: Sequence[str] = (),
) -> ServicePlan:
    """Return a Service with these endpoints.

    outside: those offered to clients outside (default: all). terminating: those that keep what they have.
    """
    offered = sorted((backend(address) for address in addresses), key=lambda one: one.identity)
    going = [backend(address, state=BackendState.TERMINATING) for address in terminating]
    port = PortPlan(
        port_name="http",
        protocol=protocol,
        version=4,
        affinity_seconds=affinity_seconds,
        vips=tuple(Vip(VipKey(ip_address(VIPS[kind][0]), VIPS[kind][1], protocol), kind) for kind in vips),
        backends=tuple(sorted((*offered, *going), key=lambda one: one.identity)),
        inside=tuple(offered),
        outside=tuple(one for one in offered if outside is None or str(one.address) in outside),
    )
    return ServicePlan(ObjectKey("default", name), "2024-01-01T00:00:00Z", (port,))
