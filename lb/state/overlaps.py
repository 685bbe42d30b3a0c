# SPDX-License-Identifier: Apache-2.0
"""Addresses that are both a Service's and an endpoint's, or a Node's.

An external address that is a pod's, too, would take the pod's connections; an endpoint that is some Service's
clusterIP would send a packet from one Service to the next. Both are rare, so what is kept of endpoints is
those that are at such an address, and no others.

An endpoint that names no node is written by hand, and may well be the external address of another Service,
by which it is reached; it is no pod.

An external address that is a Node's own, as controllers write it that have a load balancer of nodes' ports
(k3s' servicelb), stays the Node's in all but the Service's ports.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Set
from ipaddress import IPv4Address

from lb.model import NO_OVERLAPS, EndpointSlice, IPAddress, Node, ObjectKey, Overlaps, Service

_IPV6 = 1 << 128
_Number = int
"""An address as a number, plus _IPV6 for one of IPv6: it is hashed in a tenth of an address's time."""


class _Kind:
    """One kind of a Service's addresses, and the slices that have endpoints at some of them.

    on_nodes: endpoints that name no node do not count.
    """

    def __init__(self, *, on_nodes: bool) -> None:
        self._on_nodes = on_nodes
        self.claimants: dict[_Number, tuple[ObjectKey, ...]] = {}
        self.slices: dict[_Number, set[ObjectKey]] = {}
        self._new: set[_Number] = set()

    def claim(self, key: ObjectKey, old: Set[_Number], new: Set[_Number]) -> set[ObjectKey]:
        """Take in which addresses a Service had and has; return the slices at those that came or went."""
        touched: set[ObjectKey] = set()
        for number in old - new:
            touched |= self.slices.get(number, frozenset())
            left = tuple([other for other in self.claimants.pop(number) if other != key])
            if left:
                self.claimants[number] = left
            else:
                self.slices.pop(number, None)
                self._new.discard(number)
        for number in new - old:
            touched |= self.slices.get(number, frozenset())
            if number not in self.claimants:
                self._new.add(number)
            self.claimants[number] = (*self.claimants.get(number, ()), key)
        return touched

    def replace(self, before: EndpointSlice | None, after: EndpointSlice | None) -> set[ObjectKey]:
        """Take in a slice; return the Services that claim an address at which it had, or has, endpoints."""
        piece = after or before
        if piece is None or not self.claimants:
            return set()
        old, new = self._at(before), self._at(after)
        for number in old - new:
            at = self.slices.get(number, set())
            at.discard(piece.key)
            if not at:
                self.slices.pop(number, None)
        for number in new - old:
            self.slices.setdefault(number, set()).add(piece.key)
        return {key for number in old ^ new for key in self.claimants[number]}

    def look(self, slices: Iterable[EndpointSlice]) -> set[ObjectKey]:
        """Look for endpoints at addresses that have been claimed since; return the keys of their slices."""
        wanted, self._new = self._new, set()
        found: set[ObjectKey] = set()
        if not wanted:
            return found
        for piece in slices:
            for number in self._at(piece) & wanted:
                self.slices.setdefault(number, set()).add(piece.key)
                found.add(piece.key)
        return found

    def _at(self, piece: EndpointSlice | None) -> set[_Number]:
        claimants, everywhere = self.claimants, not self._on_nodes
        return {
            number
            for endpoint in (piece.endpoints if piece else ())
            if (number := _number(endpoint.address)) in claimants and (everywhere or endpoint.node)
        }


class AddressOverlaps:
    """Follows the addresses of Services and Nodes and, as far as they are the same, of endpoints."""

    def __init__(self) -> None:
        self._of_nodes = Counter[_Number]()
        self._cluster = _Kind(on_nodes=False)
        self._external = _Kind(on_nodes=True)

    def claims(self, address: IPAddress) -> bool:
        """Tell whether a Service has this address as an external or load-balancer address."""
        return _number(address) in self._external.claimants

    def replace_service(
        self, key: ObjectKey, before: Service | None, after: Service | None
    ) -> set[ObjectKey]:
        """Take in a Service; return the slices with an endpoint that has become, or was, its clusterIP."""
        self._external.claim(key, _external(before), _external(after))
        return self._cluster.claim(key, _cluster(before), _cluster(after))

    def replace_slice(self, before: EndpointSlice | None, after: EndpointSlice | None) -> set[ObjectKey]:
        """Take in a slice; return the Services that claim an address of endpoints that came or went."""
        self._cluster.replace(before, after)
        return self._external.replace(before, after)

    def replace_node(self, before: Node | None, after: Node | None) -> set[ObjectKey]:
        """Take in a Node; return the Services that claim an address that it has got or lost."""
        old, new = _internal(before), _internal(after)
        self._of_nodes.update(new - old)
        self._of_nodes.subtract(old - new)
        return {key for number in old ^ new for key in self._external.claimants.get(number, ())}

    def look(self, slices: Collection[EndpointSlice]) -> set[ObjectKey]:
        """Look which endpoints are at addresses that Services have claimed since; return their slices."""
        self._external.look(slices)  # whoever claims them has changed, and is planned anyhow
        return self._cluster.look(slices)

    def of(self, service: Service, slices: Iterable[EndpointSlice]) -> Overlaps:
        """Return where a Service's external addresses are endpoints' or Nodes', and endpoints clusterIPs."""
        pods, cluster_ips = self._external.slices, self._cluster.slices
        external = (*service.load_balancer_ips, *service.external_ips)
        nodes = frozenset([address for address in external if self._of_nodes[_number(address)]])
        if not pods and not cluster_ips and not nodes:
            return NO_OVERLAPS
        return Overlaps(
            frozenset([address for address in service.external_ips if _number(address) in pods]),
            frozenset(
                [
                    endpoint.address
                    for piece in slices
                    if cluster_ips
                    for endpoint in piece.endpoints
                    if _number(endpoint.address) in cluster_ips
                ]
            ),
            nodes,
        )


def _number(address: IPAddress) -> _Number:
    return int(address) if type(address) is IPv4Address else int(address) | _IPV6


def _cluster(service: Service | None) -> Set[_Number]:
    return {_number(address) for address in service.cluster_ips} if service else frozenset()


def _internal(node: Node | None) -> Set[_Number]:
    return {_number(address) for address in node.addresses} if node else frozenset()


def _external(service: Service | None) -> Set[_Number]:
    if service is None:
        return frozenset()
    return {_number(address) for address in (*service.external_ips, *service.load_balancer_ips)}
