# SPDX-License-Identifier: Apache-2.0
"""From one Service and its EndpointSlices to what belongs in the maps: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

from msgspec import structs

from lb.annotations import UDP_STAYS
from lb.config import Forward
from lb.model import (
    NO_OVERLAPS,
    EndpointSlice,
    IPAddress,
    IPNetwork,
    Overlaps,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)
from lb.plan.choice import WHOLE, Chooser, Offer, Percents
from lb.plan.rights import Fields, Rights
from lb.plan.types import (
    PortPlan,
    Refusal,
    ServicePlan,
    Topology,
    Vip,
    VipKey,
    VipKind,
)

HAVE_NODE_PORTS = (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER)


def plan_service(
    service: Service,
    slices: Iterable[EndpointSlice],
    topology: Topology,
    overlaps: Overlaps = NO_OVERLAPS,
    percents: Percents = WHOLE,
) -> ServicePlan:
    """Return the desired state of a Service on the node that the topology describes.

    The plan has no ports for a Service that is another proxy's, for a headless one, and for an ExternalName:
    the last two are served by DNS alone.

    Families. A Service is served in the families of its clusterIPs, as kube-proxy does it; addresses of
    another family, in whatever field, are left out. Each port gives one PortPlan for each family.

    VIPs. Every clusterIP, load-balancer address and external address with the port's number, and every
    node-port address of the node with the port's node port (types NodePort and LoadBalancer). What two
    fields or two ports of the Service both claim goes to the first, in that order of fields. Besides, each
    clusterIP, load-balancer address and external address as a whole, unless it is this node's own or that of
    another Node: the node's stack answers for those. What is not for a Service to claim is left out
    (:mod:`lb.plan.rights`).

    Backends. An endpoint belongs to a port when its slice has a port of the same name and protocol; the
    slice's number is where the connection goes, so that a named target port can differ between
    endpoints. An endpoint that two slices list (as happens while it moves) counts once: as the readier.

    New connections go to the ready endpoints. When there is none they go to those that are serving and
    terminating (KEP-1669, "Proxy Terminating Endpoints"); an endpoint of weight 0 gets none.
    :func:`lb.plan.choice.offered` says which of them each traffic policy offers, and :func:`policies` which
    policy holds for whom. percents: how much of their weights endpoints count with at present
    (:mod:`lb.plan.slow_start`).

    Source ranges. loadBalancerSourceRanges limit who may open connections to the load-balancer addresses,
    from wherever; those of one family say nothing about the other, as with kube-proxy.

    A terminating endpoint is in state TERMINATING and, unless the rule above chose it, gets no new
    connections. One that is neither ready nor terminating is no backend.
    """
    if not service.proxied or service.headless or service.type is ServiceType.EXTERNAL_NAME:
        return ServicePlan(service.key, service.created, ())
    rights = Rights(service, topology, overlaps, [])
    fields = rights.addresses()
    whole = tuple(slices)
    slices = rights.endpoints(whole)
    vips = _vips(service, fields, topology, lambda kind, key: rights.admits_port(kind, key, whole))
    chooser = Chooser(slices, topology, percents)
    direct = rights.direct()
    ports = []
    for port, port_vips in zip(service.ports, vips, strict=True):
        for version in sorted({vip.key.address.version for vip in port_vips}):
            family_vips = [vip for vip in port_vips if vip.key.address.version == version]
            plan = _plan_port(service, port, family_vips, chooser.offer(port, version))
            stays = direct and port.protocol is Protocol.UDP and service.forward == Forward.DSR + UDP_STAYS
            ports.append(replace(plan, direct=True, udp_stays=stays) if direct else plan)
    for vips_of_family in _addresses(service, fields, topology.node_addresses | overlaps.nodes):
        _give_addresses(ports, vips_of_family)
    if ports and not any(port.backends for port in ports):
        rights.refusals.extend(_of_other_ports(service, slices))
    return ServicePlan(service.key, service.created, tuple(ports), tuple(rights.refusals))


def _of_other_ports(service: Service, slices: Iterable[EndpointSlice]) -> Iterator[Refusal]:
    """Yield why a Service has no backend although it has ready endpoints: these are of other ports alone."""
    wanted = {(port.name, port.protocol) for port in service.ports}
    ready = [piece for piece in slices if any(endpoint.ready for endpoint in piece.endpoints)]
    offered = {(port.name, port.protocol) for piece in ready for port in piece.ports}
    if offered and wanted.isdisjoint(offered):
        has, needs = (
            ", ".join(sorted(f"{name or 'unnamed'}/{protocol.name}" for name, protocol in each))
            for each in (offered, wanted)
        )
        yield Refusal(f"endpoint port {has}", f"the Service has {needs}; name and protocol must be equal")


def concerned(service: Service, before: Topology | None, after: Topology) -> bool:
    """Tell whether a Service has to be planned anew when the agent stands elsewhere.

    The node's addresses come and go with pods, and its processes listen and end; that matters only to a
    Service that claims one of these addresses.
    """
    if before is None or not before.same_place(after):
        return True
    changed = before.node_addresses ^ after.node_addresses
    changed |= {socket.address for socket in before.sockets ^ after.sockets}
    claimed = (*service.cluster_ips, *service.load_balancer_ips, *service.external_ips)
    return not changed.isdisjoint(claimed)


def policies(service: Service, kind: VipKind) -> tuple[TrafficPolicy, TrafficPolicy]:
    """Return the traffic policies of a kind of VIP for this node's pods, and for everybody else.

    internalTrafficPolicy is about the clusterIP. externalTrafficPolicy is about clients outside that use one
    of the other addresses; to a pod those are a longer way to the clusterIP, and give it the whole set.
    """
    if kind is VipKind.CLUSTER_IP:
        return service.internal_policy, service.internal_policy
    return TrafficPolicy.CLUSTER, service.external_policy


def _addresses(service: Service, fields: Fields, of_nodes: frozenset[IPAddress]) -> Iterator[list[Vip]]:
    """Yield, for each family that the Service has, its addresses as a whole, without those of nodes."""
    kinds: dict[IPAddress, VipKind] = {}
    for kind, addresses in fields:
        for address in addresses:
            if address not in of_nodes:
                kinds.setdefault(address, kind)
    for version in {address.version for address in service.cluster_ips}:
        yield [
            Vip(VipKey(address), kind, *policies(service, kind))
            for address, kind in kinds.items()
            if address.version == version
        ]


def _give_addresses(ports: list[PortPlan], addresses: list[Vip]) -> None:
    """Put a family's addresses as a whole among the VIPs of one port of that family, if there is any.

    The port is the first of those with the most to offer. A port with local endpoints also has cluster
    endpoints, so no other port has a backend on a side where this one has none.
    """
    if not addresses:
        return
    version = addresses[0].key.address.version
    offers = [
        (bool(port.local), bool(port.cluster), -at)
        for at, port in enumerate(ports)
        if port.version == version
    ]
    if offers:
        at = -max(offers)[-1]
        ports[at] = replace(ports[at], vips=tuple(sorted((*ports[at].vips, *addresses), key=_vip_order)))


def _vip_order(vip: Vip) -> tuple[int, int]:
    return int(vip.key.address), vip.key.port


def _vips(
    service: Service, fields: Fields, topology: Topology, admits: Callable[[VipKind, VipKey], bool]
) -> list[list[Vip]]:
    """Return the VIPs of each port of a Service, in the order of its ports."""
    node_addresses = topology.node_port_addresses if service.type in HAVE_NODE_PORTS else ()
    fields = (*fields, (VipKind.NODE_PORT, node_addresses))
    families = {address.version for address in service.cluster_ips}
    claimed: set[VipKey] = set()
    vips: list[list[Vip]] = [[] for _ in service.ports]
    for kind, addresses in fields:
        for port, port_vips in zip(service.ports, vips, strict=True):
            number = port.node_port if kind is VipKind.NODE_PORT else port.port
            for address in addresses:
                key = VipKey(address, number, port.protocol)
                if not number or address.version not in families or key in claimed:
                    continue
                if admits(kind, key):
                    claimed.add(key)
                    port_vips.append(Vip(key, kind, *policies(service, kind)))
    return vips


def _plan_port(service: Service, port: ServicePort, vips: list[Vip], offer: Offer) -> PortPlan:
    """Put one port of a Service in one family together; there is at least one VIP."""
    version = vips[0].key.address.version
    if service.affinity_seconds and offer.local:
        vips = _at_home(vips, offer)
    ranges: set[IPNetwork] = set()
    if service.source_ranges and any(vip.kind is VipKind.LOAD_BALANCER for vip in vips):
        ranges = {net for net in service.source_ranges if net.version == version}
    return PortPlan(
        port_name=port.name,
        protocol=port.protocol,
        version=version,
        affinity_seconds=service.affinity_seconds,
        vips=tuple(sorted(vips, key=_vip_order)),
        backends=offer.backends,
        cluster=offer.cluster,
        local=offer.local,
        source_ranges=tuple(sorted(ranges, key=_network_order)),
    )


def _at_home(vips: list[Vip], offer: Offer) -> list[Vip]:
    """Return the VIPs of a port with affinity; those that are an endpoint of this node are policy Local's.

    Such is an externalIP that is the node's own, in front of a pod with the node's network. Another node that
    leads a client to this endpoint sends to the VIP, in its own name. Were it led on by its affinity, and by
    that of the next node, it would go round between them, as each keeps to its choice.
    """
    here = {(backend.address, backend.port) for backend in offer.local}
    return [
        structs.replace(vip, outside=TrafficPolicy.LOCAL) if (vip.key.address, vip.key.port) in here else vip
        for vip in vips
    ]


def _network_order(network: IPNetwork) -> tuple[int, int]:
    return int(network.network_address), network.prefixlen
