# SPDX-License-Identifier: Apache-2.0
"""Short ways to write plans in tests. Addresses are given as text, backends as ``"10.0.1.1:8080"``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from ipaddress import IPv6Address, IPv6Network, ip_address, ip_network
from types import MappingProxyType

from msgspec import structs

from lb.model import IPAddress, IPNetwork, ObjectKey, Protocol, TrafficPolicy
from lb.plan.claims import Claims, Decision
from lb.plan.types import Backend, BackendState, PortPlan, ServicePlan, Vip, VipKey, VipKind

NODE = "node1"


def vip_key(text: str, protocol: Protocol = Protocol.TCP) -> VipKey:
    """Return a VIP; of an address without port, the address as a whole."""
    if text.count(":") != 1 and not text.startswith("["):
        return VipKey(ip_address(text))
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
    keys = [vip_key(text, protocol) for text in sorted(vips)]
    return PortPlan(
        port_name=name,
        protocol=protocol,
        version=6 if any(key.address.version == 6 for key in keys) else 4,
        affinity_seconds=affinity_seconds,
        vips=tuple(Vip(key, kind, inside, outside) for key in keys),
        backends=tuple(sorted(offered | rest, key=lambda b: b.identity)),
        cluster=ordered,
        local=tuple(b for b in ordered if b.local),
        source_ranges=tuple(map(ip_network, source_ranges)),
    )


def service_plan(name: str, *ports: PortPlan, created: str = "") -> ServicePlan:
    return ServicePlan(ObjectKey("default", name), created, ports)


_PREFIX = int(ip_address("fd00:10::"))


def address_in(version: int, address: IPAddress) -> IPAddress:
    """Return an IPv4 address, or its namesake in IPv6; their order is the same."""
    return address if version == 4 else IPv6Address(_PREFIX + int(address))


def network_in(version: int, network: IPNetwork) -> IPNetwork:
    if version == 4:
        return network
    return IPv6Network((address_in(6, network.network_address), 96 + network.prefixlen))


def plan_in(version: int, plan: ServicePlan) -> ServicePlan:
    """Return a plan of IPv4 as it is in a family."""
    return plan if version == 4 else replace(plan, ports=tuple(map(_port_in_ipv6, plan.ports)))


def _port_in_ipv6(port: PortPlan) -> PortPlan:
    if port.version == 6:
        return port

    def moved(backends: tuple[Backend, ...]) -> tuple[Backend, ...]:
        return tuple(structs.replace(each, address=address_in(6, each.address)) for each in backends)

    vips = (
        structs.replace(vip, key=structs.replace(vip.key, address=address_in(6, vip.key.address)))
        for vip in port.vips
    )
    return replace(
        port,
        version=6,
        vips=tuple(vips),
        backends=moved(port.backends),
        cluster=moved(port.cluster),
        local=moved(port.local),
        source_ranges=tuple(network_in(6, network) for network in port.source_ranges),
    )


class RememberedClaims(Claims):
    """Claims that get again what they were given last, as from an agent."""

    def __init__(self, holders: Mapping[VipKey, ObjectKey] = MappingProxyType({})) -> None:
        self.plans: dict[ObjectKey, ServicePlan | None] = {}
        super().__init__(lambda key: self.plans[key], holders)

    def update(self, plans: Mapping[ObjectKey, ServicePlan | None]) -> Decision:
        """See Claims."""
        self.plans.update(plans)
        return super().update(plans)
