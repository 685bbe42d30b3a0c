# SPDX-License-Identifier: Apache-2.0
"""Which endpoints are the backends of a Service port, and which of these take new connections.

An endpoint belongs to a port when its slice has a port of the same name and protocol; the slice's number is
where the connection goes. Nothing else about a port matters here. So the ports of a Service that the same
slices have share one choice, and a Service of thousands of ports costs one choice and its backends.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from ipaddress import IPv4Address, IPv6Address
from itertools import repeat
from operator import attrgetter
from types import MappingProxyType

import msgspec

from lb.model import Endpoint, EndpointPort, EndpointSlice, IPAddress, ServicePort
from lb.plan.types import Backend, BackendState, Topology

_HINT_NODES, _HINT_ZONES = attrgetter("hint_nodes"), attrgetter("hint_zones")
_KINDS: Mapping[int, type] = {4: IPv4Address, 6: IPv6Address}
_ACTIVE, _TERMINATING = BackendState.ACTIVE, BackendState.TERMINATING
Percents = Mapping[IPAddress, int]
"""How much of its weight each endpoint counts with, from 1 to 99, while its start is slow; others: all."""

WHOLE: Percents = MappingProxyType({})
_Socket = int
"""An address as a number, times 65536, plus a port."""


class Offer(msgspec.Struct, frozen=True, gc=False):
    """The backends of a port, and those that take new connections under traffic policy Cluster, and Local.

    All are sorted by identity. cluster is the very tuple backends when it has them all.
    """

    backends: tuple[Backend, ...]
    cluster: tuple[Backend, ...]
    local: tuple[Backend, ...]


class _Choice(msgspec.Struct, frozen=True, gc=False):
    """What ports share: the endpoints that are backends, in the order of identities.

    numbers: the port of each. cluster, local: the places of those offered under each traffic policy; cluster
    is None for all of them.
    """

    endpoints: tuple[Endpoint, ...]
    numbers: tuple[int, ...]
    cluster: tuple[int, ...] | None
    local: tuple[int, ...]


class Chooser:
    """Chooses the backends of one Service's ports on the node that the topology describes."""

    def __init__(
        self, slices: Sequence[EndpointSlice], topology: Topology, percents: Percents = WHOLE
    ) -> None:
        self._slices = slices
        self._percents = percents
        self._ports = [_by_name(piece.ports) for piece in slices]
        self._topology = topology
        self._choices: dict[tuple[int, tuple[object, ...]], _Choice] = {}

    def offer(self, port: ServicePort, version: int) -> Offer:
        """Return the backends of a port in one family.

        An endpoint that two slices list (as happens while it moves) counts once: as the readier.
        """
        places = [
            (at, one.port)
            for at, ports in enumerate(self._ports)
            for one in ports.get(port.name, ())
            if one.protocol is port.protocol
        ]
        numbers = {number for _, number in places}
        same = numbers.pop() if len(numbers) == 1 else None  # then the order is that of addresses alone
        key = (version, tuple(places if same is None else [at for at, _ in places]))
        choice = self._choices.get(key)
        if choice is None:
            choice = self._choices[key] = self._choose(places, version)
        here = self._topology.node_name
        backends = tuple(
            [
                Backend(
                    one.address,
                    number,
                    one.node,
                    one.node == here != "",
                    _ACTIVE if one.ready else _TERMINATING,
                    one.weight if not self._percents else self._slow(one),
                )
                for one, number in zip(
                    choice.endpoints, choice.numbers if same is None else repeat(same), strict=False
                )
            ]
        )
        return Offer(
            backends,
            backends if choice.cluster is None else tuple([backends[at] for at in choice.cluster]),
            tuple([backends[at] for at in choice.local]),
        )

    def _slow(self, endpoint: Endpoint) -> int:
        percent = self._percents.get(endpoint.address, 100)
        return min(endpoint.weight, max(1, endpoint.weight * percent // 100))

    def _choose(self, places: Iterable[tuple[int, int]], version: int) -> _Choice:
        """Return the choice of endpoints in these slices, given by place, with these ports."""
        merged: dict[_Socket, Endpoint] = {}
        kind = _KINDS[version]
        for at, number in places:
            for endpoint in self._slices[at].endpoints:
                if type(endpoint.address) is kind:
                    socket = int(endpoint.address) << 16 | number
                    known = merged.get(socket)
                    if known is None or _readiness(endpoint) > _readiness(known):
                        merged[socket] = endpoint
        sockets = [at for at in sorted(merged) if merged[at].ready or merged[at].terminating]
        endpoints = tuple([merged[at] for at in sockets])
        cluster, local = offered(endpoints, self._topology)
        return _Choice(
            endpoints,
            tuple([socket & 0xFFFF for socket in sockets]),
            None if len(cluster) == len(endpoints) else tuple(cluster),
            tuple(local),
        )


def offered(endpoints: Sequence[Endpoint], topology: Topology) -> tuple[Sequence[int], Sequence[int]]:
    """Return who takes new connections under traffic policy Cluster, and who under Local, by place.

    Cluster is what is usable and close; what terminates is a last resort, wherever it is. Local is what is
    usable among this node's endpoints alone: a terminating one here comes before a ready one elsewhere,
    which the policy rules out.
    """
    everywhere = usable(endpoints, range(len(endpoints)))
    if everywhere and endpoints[everywhere[0]].ready:
        everywhere = close(endpoints, everywhere, topology)
    here = topology.node_name
    return everywhere, usable(endpoints, [at for at, one in enumerate(endpoints) if one.node == here != ""])


def usable(endpoints: Sequence[Endpoint], among: Sequence[int]) -> Sequence[int]:
    """Return who takes new connections: the ready ones, else those that are serving and terminating.

    One of weight 0 takes none.
    """
    ready = [at for at in among if endpoints[at].ready and endpoints[at].weight]
    return ready or [
        at for at in among if endpoints[at].serving and endpoints[at].terminating and endpoints[at].weight
    ]


def close(endpoints: Sequence[Endpoint], ready: Sequence[int], topology: Topology) -> Sequence[int]:
    """Return those that topology hints mean for this node; if there are none, for its zone; else all.

    ``trafficDistribution`` of a Service, or its older relative, the annotation
    ``service.kubernetes.io/topology-mode``, makes the EndpointSlice controller write for which zones and
    nodes each endpoint is meant; a proxy goes by these hints alone (KEP-2433, KEP-4444, KEP-3015). Hints of
    a kind count only when every ready endpoint has some and one is meant for this node, or this zone:
    otherwise somebody would be left without endpoints, or an endpoint without clients.
    """
    for here, hints_of in ((topology.node_name, _HINT_NODES), (topology.zone, _HINT_ZONES)):
        hinted = [hints_of(endpoints[at]) for at in ready] if here else []
        if hinted and all(hinted):
            meant = [at for at, hints in zip(ready, hinted, strict=True) if here in hints]
            if meant:
                return meant
    return ready


def _by_name(ports: Iterable[EndpointPort]) -> Mapping[str, Sequence[EndpointPort]]:
    found: dict[str, list[EndpointPort]] = {}
    for port in ports:
        found.setdefault(port.name, []).append(port)
    return found


def _readiness(endpoint: Endpoint) -> tuple[bool, bool, bool]:
    """Return what orders two reports about one endpoint."""
    return (endpoint.ready, endpoint.serving, endpoint.terminating)
