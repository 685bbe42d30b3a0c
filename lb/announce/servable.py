# SPDX-License-Identifier: Apache-2.0
"""Whether this node can serve an address of a Service now, or why not: pure, of what an agent knows.

An address is a load-balancer address of a Service's status (ipMode VIP), or one of its ``externalIPs``. For
the network it is one thing, whichever ports and however many Services it has: what is sent to it comes to
this node, or it does not.

A Service of traffic policy Cluster is served wherever it has an endpoint anywhere; one of policy Local where
an endpoint is on the node itself. Endpoints are those that take new connections: the ready ones, or, when
the Service has no ready one on any node, those that are serving and terminating (KEP-1669); none of
weight 0. So a node whose last endpoint of a Local Service terminates is left at once, while its data plane
serves what still comes; and the last endpoint of all is not cut off.

Several Services may share an address. Those without any endpoint do not count, for no node could serve them.
Of the others that are Local, a node must have an endpoint of each, as far as there is such a node at all;
otherwise what is sent to the others would be dropped here. (MetalLB avoids the question: it lets Services
share an address if all are Cluster, or all have the same pods.)

The node as a whole counts, too. One that is being deleted (deletionTimestamp, or the autoscaler's taint), is
drained (``lbctl node drain``) or has the label :data:`EXCLUDED` is to be left; one that is cordoned, or whose
agent lags behind, serves as well as before, but others are better. Whoever announces makes of it what the
protocol can say.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lb.model import Endpoint, EndpointSlice, IPAddress, Node, ObjectKey, Service, ServiceType, TrafficPolicy
from lb.plan.rights import special_address
from lb.words import some

EXCLUDED = "node.kubernetes.io/exclude-from-external-load-balancers"
"""A Node with this label, whatever its value, is not to get traffic of load balancers (Kubernetes' list of
well-known labels)."""


class Standing(enum.StrEnum):
    """What a node is for an address; the worse comes later."""

    SERVES = "serves"
    LAST = "last"
    """It serves the address as well as ever; where another node does, that is to be preferred."""
    LEAVING = "leaving"
    """It serves the address for the moment, and is to be left soon."""
    CANNOT = "cannot"

    @property
    def rank(self) -> int:
        """0 for the best."""
        return _RANKS[self]


_RANKS = {standing: rank for rank, standing in enumerate(Standing)}


_A_NODES_OWN = "it is an address of node "


def is_nodes_own(why: str) -> bool:
    """Tell whether this is why an address is not served: it is a node's own, whose stack answers for it."""
    return why.startswith(_A_NODES_OWN)


class AddressKind(enum.StrEnum):
    """Which field of a Service an address is from; of two, the first."""

    LOAD_BALANCER = "loadBalancer"
    EXTERNAL_IP = "externalIP"


@dataclass(frozen=True, slots=True)
class NodeNow:
    """What is known of this node.

    node: the Node object, None while there is none. eligible: it is to stay, see :class:`lb.agent.Agent`.
    in_service: programs are attached, and the maps were written once. fresh: the agent is not stale, see
        :mod:`lb.served.health`.
    own: addresses that are the node's own: nobody is to be told that they are a Service's. others: those of
        other Nodes, with their names; neither are they. drained: an operator has it drained.
    """

    name: str
    node: Node | None = None
    eligible: bool = True
    in_service: bool = True
    fresh: bool = True
    own: frozenset[IPAddress] = frozenset()
    others: Mapping[IPAddress, str] = field(default_factory=dict)
    drained: bool = False


@dataclass(frozen=True, slots=True)
class Verdict:
    """What this node is for an address; why is ``""`` if it serves without reserve.

    services, labels: whose address it is, and the labels of each.
    """

    address: IPAddress
    standing: Standing
    why: str = ""
    kind: AddressKind = AddressKind.LOAD_BALANCER
    services: tuple[ObjectKey, ...] = ()
    labels: tuple[Mapping[str, str], ...] = ()

    def labelled(self) -> Iterator[tuple[ObjectKey, Mapping[str, str]]]:
        """Yield its Services with their labels, as far as these are known."""
        for at, key in enumerate(self.services):
            yield key, self.labels[at] if at < len(self.labels) else {}


@dataclass(frozen=True, slots=True)
class _Offer:
    """Where a Service of an address has endpoints of its family: nodes that are named, and anywhere."""

    service: Service
    nodes: frozenset[str]
    anywhere: bool

    @property
    def local(self) -> bool:
        return self.service.external_policy is TrafficPolicy.LOCAL


def servable(
    here: NodeNow, services: Iterable[Service], slices: Iterable[EndpointSlice]
) -> dict[IPAddress, Verdict]:
    """Return what the node is for each address, in ascending order, IPv4 first.

    slices: of any Services; those of others are passed over. The cost is that of the Services and slices.
    """
    users: dict[IPAddress, list[tuple[AddressKind, Service]]] = {}
    for service in services:
        if not (service.load_balancer_ips or service.external_ips):
            continue  # of most
        for kind, address in _addresses(service):
            users.setdefault(address, []).append((kind, service))
    pieces: dict[ObjectKey, list[EndpointSlice]] = {
        service.key: [] for each in users.values() for _, service in each
    }
    for piece in slices:
        if piece.service in pieces:
            pieces[piece.service].append(piece)
    standing, why = _of_node(here)
    found = {}
    for address in sorted(users, key=lambda one: (one.version, int(one))):
        of_address = sorted(users[address], key=lambda one: one[1].key)
        offers = [_offer(service, pieces[service.key], address.version) for _, service in of_address]
        reason = _reason(here, address, offers)
        found[address] = Verdict(
            address,
            Standing.CANNOT if reason else standing,
            reason or why,
            min((kind for kind, _ in of_address), key=list(AddressKind).index),
            tuple(service.key for _, service in of_address),
            tuple(service.labels for _, service in of_address),
        )
    return found


def _addresses(service: Service) -> Iterator[tuple[AddressKind, IPAddress]]:
    """Yield the addresses of a Service that is served here; one that two fields have comes once."""
    if not service.proxied or service.headless or service.type is ServiceType.EXTERNAL_NAME:
        return
    kinds = dict.fromkeys(service.external_ips, AddressKind.EXTERNAL_IP)
    kinds |= dict.fromkeys(service.load_balancer_ips, AddressKind.LOAD_BALANCER)
    for address, kind in kinds.items():
        yield kind, address


def _of_node(here: NodeNow) -> tuple[Standing, str]:
    """Return what the node is for any address that it could serve."""
    node = here.node
    labels = node.labels if node is not None else {}
    reasons = (
        (not here.in_service, Standing.CANNOT, "the programs are not attached, or the maps not written yet"),
        (not here.eligible, Standing.LEAVING, f"node {here.name} is being deleted"),
        (here.drained, Standing.LEAVING, f"node {here.name} is drained: lbctl node drain"),
        (EXCLUDED in labels, Standing.LEAVING, f"node {here.name} has the label {EXCLUDED}"),
        (node is not None and node.cordoned, Standing.LAST, f"node {here.name} is cordoned"),
        (
            not here.fresh,
            Standing.LAST,
            "what the agent was told has not been in the kernel for a minute",
        ),
    )
    return next(((standing, why) for holds, standing, why in reasons if holds), (Standing.SERVES, ""))


def _offer(service: Service, pieces: Iterable[EndpointSlice], version: int) -> _Offer:
    if all(address.version != version for address in service.cluster_ips):
        return _Offer(service, frozenset(), anywhere=False)
    wanted = {(port.name, port.protocol) for port in service.ports}
    endpoints = [
        endpoint
        for piece in pieces
        if any((port.name, port.protocol) in wanted for port in piece.ports)
        for endpoint in piece.endpoints
        if endpoint.address.version == version
    ]
    endpoints = [one for one in endpoints if one.weight]
    usable = [one for one in endpoints if one.ready] or [one for one in endpoints if _lingers(one)]
    return _Offer(service, frozenset(one.node for one in usable if one.node), anywhere=bool(usable))


def _lingers(endpoint: Endpoint) -> bool:
    return endpoint.serving and endpoint.terminating


def _reason(here: NodeNow, address: IPAddress, offers: Iterable[_Offer]) -> str:
    """Return why the address cannot be served here, ``""`` if it can."""
    if special := special_address(address):
        return f"it is {special}"
    if address in here.own or address in here.others:
        return f"{_A_NODES_OWN}{here.others.get(address, here.name)}"
    alive = [one for one in offers if one.anywhere]
    if not alive:
        return f"no ready endpoint on any node: {some(str(one.service.key) for one in offers)}"
    local = [one for one in alive if one.local]
    if not local:
        return ""
    everything = frozenset.intersection(*(one.nodes for one in local))
    lacking = [one for one in local if here.name not in one.nodes]
    if not lacking or (not everything and len(lacking) < len(alive)):
        return ""
    names = some(str(one.service.key) for one in lacking)
    return f"externalTrafficPolicy Local, and no ready endpoint on node {here.name}: {names}"
