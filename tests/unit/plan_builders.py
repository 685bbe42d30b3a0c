"""Short ways to write plans in tests. Addresses are given as text, backends as ``"10.0.1.1:8080"``."""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import ip_address, ip_network

from lb.model import ObjectKey, Protocol, TrafficPolicy
from lb.plan.types import Backend, BackendState, PortPlan, ServicePlan, Vip, VipKey, VipKind

NODE = "node1"


def vip_key(text: str, protocol: Protocol = Protocol.TCP) -> VipKey:
    host, _, port = text.rpartition(":")
    return VipKey(ip_address(host.strip("[]")), int(port), protocol)


def backend(text: str, node: str = "", state: BackendState = BackendState.ACTIVE) -> Backend:
    host, _, port = text.rpartition(":")
    return Backend(ip_address(host.strip("[]")), int(port), node, node == NODE, state)


def port_plan(
    vips: Iterable[str],
    backends: Iterable[str | Backend],
    *,
    draining: Iterable[str | Backend] = (),
    name: str = "http",
    protocol: Protocol = Protocol.TCP,
    affinity_seconds: int = 0,
    kind: VipKind = VipKind.CLUSTER_IP,
    inside: TrafficPolicy = TrafficPolicy.CLUSTER,
    outside: TrafficPolicy = TrafficPolicy.CLUSTER,
    source_ranges: Iterable[str] = (),
) -> PortPlan:
    offered = {b if isinstance(b, Backend) else backend(b) for b in backends}
    rest = {b if isinstance(b, Backend) else backend(b, state=BackendState.TERMINATING) for b in draining}
    ordered = tuple(sorted(offered, key=lambda b: b.identity))
    return PortPlan(
        port_name=name,
        protocol=protocol,
        version=4,
        affinity_seconds=affinity_seconds,
        vips=tuple(Vip(vip_key(text, protocol), kind, inside, outside) for text in sorted(vips)),
        backends=tuple(sorted(offered | rest, key=lambda b: b.identity)),
        cluster=ordered,
        local=tuple(b for b in ordered if b.local),
        source_ranges=tuple(map(ip_network, source_ranges)),
    )


def service_plan(name: str, *ports: PortPlan, created: str = "") -> ServicePlan:
    return ServicePlan(ObjectKey("default", name), created, ports)
