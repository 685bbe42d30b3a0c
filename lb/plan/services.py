# SPDX-License-Identifier: Apache-2.0
"""From one Service and its EndpointSlices to what belongs in the maps: pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address
from operator import attrgetter

import msgspec

from lb.model import (
    NO_OVERLAPS,
    Endpoint,
    EndpointSlice,
    IPAddress,
    IPNetwork,
    Overlaps,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)
from lb.plan.rights import Fields, Rights
from lb.plan.types import (
    Backend,
    BackendState,
    PortPlan,
    Refusal,
    ServicePlan,
    Topology,
    Vip,
    VipKey,
    VipKind,
)

HAVE_NODE_PORTS = (ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER)
_HINT_NODES, _HINT_ZONES = attrgetter("hint_nodes"), attrgetter("hint_zones")
_KINDS: Mapping[int, type] = {4: IPv4Address, 6: IPv6Address}
_Socket = int
"""An address as a number, times 65536, plus a port."""


def plan_service(
    service: Service,
    slices: Iterable[EndpointSlice],
    topology: Topology,
    overlaps: Overlaps = NO_OVERLAPS,
) -> ServicePlan:
    """Return the desired state of a Service on the node that the topology describes.

    Nothing (a plan without ports) comes of a Service that another proxy has, of a headless one, and of
    an ExternalName: the last two live in DNS alone.

    Families. A Service is served in the families of its clusterIPs, as kube-proxy does it; addresses of
    another family, in whatever field, are left out. Each port gives one PortPlan for each family.

    VIPs. Every clusterIP, load-balancer address and external address with the port's number, and every
    node-port address of the node with the port's node port (types NodePort and LoadBalancer). What two
    fields or two ports of the Service both claim goes to the first, in that order of fields. Besides, each
    clusterIP, load-balancer address and external address as a whole, unless it is the node's own: the node's
    stack answers for those. What is not for a Service to claim is left out (:mod:`lb.plan.rights`).

    Backends. An endpoint belongs to a port when its slice has a port of the same name and protocol; the
    slice's number is where the connection goes, so that a named target port can differ between
    endpoints. An endpoint that two slices list (as happens while it moves) counts once: as the readier.

    New connections go to the ready endpoints. When there is none they go to those that are serving and
    terminating (KEP-1669, "Proxy Terminating Endpoints"). :func:`offered` says which of them each traffic
    policy offers, and :func:`policies` which policy holds for whom.

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
    ports = []
    for port, port_vips in zip(service.ports, vips, strict=True):
        for version in sorted({vip.key.address.version for vip in port_vips}):
            family_vips = [vip for vip in port_vips if vip.key.address.version == version]
            members = _members(_merge(port, version, slices), topology)
            ports.append(_plan_port(service, port, family_vips, members, topology))
    for vips_of_family in _addresses(service, fields, topology):
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


class Member(msgspec.Struct, frozen=True, gc=False):
    """One backend of a port and the endpoint that it comes from."""

    backend: Backend
    endpoint: Endpoint


def usable(members: Sequence[Member]) -> tuple[Member, ...]:
    """Return who takes new connections: the ready ones, else those that are serving and terminating."""
    ready = tuple([member for member in members if member.endpoint.ready])
    return ready or tuple([m for m in members if m.endpoint.serving and m.endpoint.terminating])


def close(ready: Sequence[Member], topology: Topology) -> tuple[Member, ...]:
    """Return those that topology hints mean for this node; if there are none, for its zone; else all.

    ``trafficDistribution`` of a Service, or its older relative, the annotation
    ``service.kubernetes.io/topology-mode``, makes the EndpointSlice controller write for which zones and
    nodes each endpoint is meant; a proxy goes by these hints alone (KEP-2433, KEP-4444, KEP-3015). Hints of
    a kind count only when every ready endpoint has some and one is meant for this node, or this zone:
    otherwise somebody would be left without endpoints, or an endpoint without clients.
    """
    for here, hints_of in ((topology.node_name, _HINT_NODES), (topology.zone, _HINT_ZONES)):
        hinted = [hints_of(member.endpoint) for member in ready] if here else []
        if hinted and all(hinted):
            meant = tuple([member for member, hints in zip(ready, hinted, strict=True) if here in hints])
            if meant:
                return meant
    return tuple(ready)


def offered(members: Sequence[Member], topology: Topology) -> tuple[tuple[Member, ...], tuple[Member, ...]]:
    """Return who takes new connections under traffic policy Cluster, and who under Local.

    Cluster is what is usable and close; what terminates is a last resort, wherever it is. Local is what is
    usable among this node's endpoints alone: a terminating one here comes before a ready one elsewhere,
    which the policy rules out.
    """
    everywhere = usable(members)
    if everywhere and everywhere[0].endpoint.ready:
        everywhere = close(everywhere, topology)
    return everywhere, usable([member for member in members if member.backend.local])


def policies(service: Service, kind: VipKind) -> tuple[TrafficPolicy, TrafficPolicy]:
    """Return the traffic policies of a kind of VIP for this node's pods, and for everybody else.

    internalTrafficPolicy is about the clusterIP. externalTrafficPolicy is about clients outside that use one
    of the other addresses; to a pod those are a longer way to the clusterIP, and give it the whole set.
    """
    if kind is VipKind.CLUSTER_IP:
        return service.internal_policy, service.internal_policy
    return TrafficPolicy.CLUSTER, service.external_policy


def _addresses(service: Service, fields: Fields, topology: Topology) -> Iterator[list[Vip]]:
    """Yield a Service's addresses as a whole for each family; all of them are of one family or the other."""
    kinds: dict[IPAddress, VipKind] = {}
    for kind, addresses in fields:
        for address in addresses:
            if address not in topology.node_addresses:
                kinds.setdefault(address, kind)
    for version in {address.version for address in service.cluster_ips}:
        yield [
            Vip(VipKey(address), kind, *policies(service, kind))
            for address, kind in kinds.items()
            if address.version == version
        ]


def _give_addresses(ports: list[PortPlan], addresses: list[Vip]) -> None:
    """Put a family's addresses as a whole among the VIPs of one port of that family, if there is any.

    It is the first of those that offer most: whoever has local endpoints has endpoints, so no other port has
    a backend on a side where this one has none.
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


def _merge(port: ServicePort, version: int, slices: Iterable[EndpointSlice]) -> dict[_Socket, Endpoint]:
    """Return a port's endpoints of one family by address and number; of two reports the readier one."""
    merged: dict[_Socket, Endpoint] = {}
    kind = _KINDS[version]
    for piece in slices:
        for number in [p.port for p in piece.ports if p.name == port.name and p.protocol is port.protocol]:
            for endpoint in piece.endpoints:
                if type(endpoint.address) is kind:
                    socket = int(endpoint.address) << 16 | number
                    known = merged.get(socket)
                    if known is None or _readiness(endpoint) > _readiness(known):
                        merged[socket] = endpoint
    return merged


def _readiness(endpoint: Endpoint) -> tuple[bool, bool, bool]:
    """Return what orders two reports about one endpoint."""
    return (endpoint.ready, endpoint.serving, endpoint.terminating)


def _members(endpoints: Mapping[_Socket, Endpoint], topology: Topology) -> list[Member]:
    """Return a port's backends with their endpoints, sorted by identity."""
    here = topology.node_name
    members = []
    for socket in sorted(endpoints):
        endpoint, node = endpoints[socket], endpoints[socket].node
        state = BackendState.ACTIVE if endpoint.ready else BackendState.TERMINATING
        local = node == here and node != ""
        backend = Backend(endpoint.address, socket & 0xFFFF, node, local, state)
        members.append(Member(backend, endpoint))
    return members


def _plan_port(
    service: Service, port: ServicePort, vips: list[Vip], members: list[Member], topology: Topology
) -> PortPlan:
    """Put one port of a Service in one family together; there is at least one VIP."""
    cluster, local = offered(members, topology)
    backends = tuple([m.backend for m in members if m.endpoint.ready or m.endpoint.terminating])
    version = vips[0].key.address.version
    ranges = {net for net in service.source_ranges if net.version == version}
    balanced = any(vip.kind is VipKind.LOAD_BALANCER for vip in vips)
    return PortPlan(
        port_name=port.name,
        protocol=port.protocol,
        version=version,
        affinity_seconds=service.affinity_seconds,
        vips=tuple(sorted(vips, key=_vip_order)),
        backends=backends,
        cluster=backends if len(cluster) == len(backends) else tuple([each.backend for each in cluster]),
        local=tuple([each.backend for each in local]),
        source_ranges=tuple(sorted(ranges, key=_network_order)) if balanced else (),
    )


def _network_order(network: IPNetwork) -> tuple[int, int]:
    return int(network.network_address), network.prefixlen
