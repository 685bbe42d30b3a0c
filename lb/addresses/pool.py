# SPDX-License-Identifier: Apache-2.0
"""Pools of addresses, and the file that they stand in.

::

    pools:
      - name: edge
        addresses: [203.0.113.0/24, 198.51.100.10-198.51.100.20, 2001:db8:203::/112]
        avoid: [first, last, 203.0.113.7]
        automatic: true           # default; false: only Services that ask for the pool or the address
        namespaces: [shop, blog]  # default: all
        namespace_labels: {tier: front}  # besides these, namespaces with all of these labels; default: none
        labels: {exposed: "yes"}  # labels that a Service must have; default: none
    load_balancer_class: lbctl    # default; of Services with a loadBalancerClass, these are ours
    without_class: true           # default; Services without loadBalancerClass are ours as well
    rest_seconds: 600             # default; how long an address rests after its Service has gone

An entry of ``addresses`` is a network, an address, or a range, both ends included. In ``avoid``, ``first``
and ``last`` are those of each entry that has more than two addresses.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

from lb.errors import ConfigError
from lb.folders import signature
from lb.manifests import syntax
from lb.manifests.fields import Field, Fields, Problems
from lb.manifests.own_file import one_document, read_text
from lb.model import IPAddress, Namespace
from lb.words import some

_log = logging.getLogger(__name__)

CLASS = "lbctl"
REST_SECONDS = 600
_MOST_REST = 30 * 86_400
_FIRST, _LAST = "first", "last"
_TOP = frozenset(("pools", "load_balancer_class", "without_class", "rest_seconds"))
_POOL = frozenset(("name", "addresses", "avoid", "automatic", "namespaces", "namespace_labels", "labels"))

Span = tuple[int, range]
"""IP version, and addresses as numbers."""


@dataclass(frozen=True, slots=True)
class Pool:
    """Addresses, and who may have them.

    Attributes
    ----------
    ranges: by IP version (4, 6), disjoint ranges of addresses as numbers, in ascending order.
    automatic: Services that do not ask for it are given its addresses, too.
    namespaces, namespace_labels: of which Services, by the name of their namespace or by all of these labels
        of it; both empty: of all. labels: that a Service must have.
    """

    name: str
    ranges: Mapping[int, tuple[range, ...]]
    automatic: bool = True
    namespaces: frozenset[str] = frozenset()
    namespace_labels: Mapping[str, str] = field(default_factory=dict)
    labels: Mapping[str, str] = field(default_factory=dict)

    def holds(self, address: IPAddress) -> bool:
        """Tell whether the address is one to give."""
        return any(int(address) in each for each in self.ranges.get(address.version, ()))

    def serves(self, namespace: Namespace, labels: Mapping[str, str]) -> bool:
        """Tell whether a Service of that namespace, with those labels, may have its addresses."""
        return self._chooses(namespace) and self.labels.items() <= labels.items()

    def _chooses(self, namespace: Namespace) -> bool:
        if not self.namespaces and not self.namespace_labels:
            return True
        labelled = self.namespace_labels.items() <= namespace.labels.items()
        return namespace.name in self.namespaces or (bool(self.namespace_labels) and labelled)

    def addresses(self, version: int) -> Iterator[IPAddress]:
        """Yield its addresses of a family in ascending order; there may be 2**128."""
        make = IPv4Address if version == 4 else IPv6Address
        for each in self.ranges.get(version, ()):
            number = each.start
            while number < each.stop:
                yield make(number)
                number += 1

    def size(self, version: int) -> int:
        """Return how many addresses of a family it has."""
        return sum(each.stop - each.start for each in self.ranges.get(version, ()))


@dataclass(frozen=True, slots=True)
class Pools:
    """All of the file: the pools in the order in which they are used, and which Services are ours.

    load_balancer_class, without_class: see the module. rest_seconds: how long an address is not given to
    another Service after its own has gone, unless no other is left.
    """

    pools: tuple[Pool, ...] = ()
    load_balancer_class: str = CLASS
    without_class: bool = True
    rest_seconds: int = REST_SECONDS

    def of(self, address: IPAddress) -> Pool | None:
        """Return the first pool that has the address."""
        return next((each for each in self.pools if each.holds(address)), None)

    @property
    def need_namespaces(self) -> bool:
        """Whether labels of namespaces count."""
        return any(each.namespace_labels for each in self.pools)

    def ours(self, load_balancer_class: str) -> bool:
        """Tell whether a Service of this loadBalancerClass, ``""`` for none, is for us to serve."""
        return load_balancer_class == self.load_balancer_class if load_balancer_class else self.without_class


def parse_entry(text: str) -> Span:
    """Return the addresses of a network, an address, or a range ``FIRST-LAST``.

    Raises ValueError: the text is none of these; says what is wrong.
    """
    first, dash, last = (part.strip() for part in text.partition("-"))
    if dash:
        low, high = ip_address(first), ip_address(last)
        if low.version != high.version or int(low) > int(high):
            raise ValueError(f"{text!r} is no range: the first address must not be above the last")
        return low.version, range(int(low), int(high) + 1)
    network = ip_network(first)
    start = int(network.network_address)
    return network.version, range(start, start + network.num_addresses)


def without(ranges: Iterable[range], avoided: Iterable[range]) -> tuple[range, ...]:
    """Return the numbers of some ranges that are not in others, as disjoint ranges in ascending order."""
    found: list[range] = []
    for each in sorted(ranges, key=lambda one: one.start):
        if found and each.start <= found[-1].stop:
            found[-1] = range(found[-1].start, max(found[-1].stop, each.stop))
        else:
            found.append(each)
    for hole in avoided:
        found = [
            part
            for each in found
            for part in (
                range(each.start, min(each.stop, hole.start)),
                range(max(each.start, hole.stop), each.stop),
            )
            if part.start < part.stop
        ]
    return tuple(dict.fromkeys(found))


class PoolsFile:
    """The file, read again when it changes. What is wrong later is logged, and what was good stays.

    Raises ConfigError: it cannot be read to begin with.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen = signature(path)
        self.pools = read(path)
        self.error = ""
        """What is wrong with it now, ``""`` when nothing is."""

    def refresh(self) -> bool:
        """Look at the file again; return whether it says something else."""
        seen = signature(self._path)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            found = read(self._path)
        except ConfigError as error:
            self.error = str(error)
            _log.error("%s; what was good stays", error)
            return False
        self.error = ""
        changed, self.pools = found != self.pools, found
        if changed:
            _log.info("%s: %s", self._path, some(pool.name for pool in found.pools))
        return changed


def read(path: Path) -> Pools:
    """Return what a file says.

    Raises ConfigError: it cannot be read, or something in it is wrong: names file, line, pool and field.
    """
    return parse(read_text(path), str(path))


def parse(text: str, path: str) -> Pools:
    """Return what the text of a file says; path: for errors.

    Raises ConfigError: something in it is wrong; the first thing is named.
    """
    problems = Problems(path)
    top = one_document(text, problems)
    found = Pools() if top is None else _pools(top.fields(_TOP))
    for error in problems.errors():
        raise ConfigError(str(error))
    return found


def _pools(top: Fields) -> Pools:
    pools: dict[str, Pool] = {}
    for place in top["pools"].items():
        pool = _pool(place.fields(_POOL))
        if pool.name in pools:
            place.error(f"{pool.name!r} is the name of an earlier pool, too")
        pools[pool.name] = pool
    if not pools:
        top["pools"].error("must hold one pool at least")
    without_class = top["without_class"]
    own_class = top["load_balancer_class"]
    if text := own_class.text():
        own_class.check(syntax.label_key(text))
    return Pools(
        tuple(pools.values()),
        load_balancer_class=text or CLASS,
        without_class=without_class.flag() or not without_class.present,
        rest_seconds=top["rest_seconds"].number(0, _MOST_REST, REST_SECONDS),
    )


def _pool(fields: Fields) -> Pool:
    name = fields["name"].text()
    if name:
        fields["name"].check(syntax.dns_subdomain(name))
    else:
        fields["name"].error("is missing")
    entries = [span for place in fields["addresses"].items() if (span := _entry(place)) is not None]
    if not fields["addresses"].items():
        fields["addresses"].error("must name a network, an address or a range")
    avoided = list(_avoided(fields["avoid"], entries))
    ranges = {
        version: left
        for version in (4, 6)
        if (left := without(*(_of(version, each) for each in (entries, avoided))))
    }
    if entries and not ranges:
        fields["avoid"].error("leaves no address of the pool")
    automatic = fields["automatic"]
    namespaces = []
    for place in fields["namespaces"].items():
        namespaces.append(place.text())
        place.check(syntax.dns_label(namespaces[-1]))
    return Pool(
        name,
        ranges,
        automatic=automatic.flag() or not automatic.present,
        namespaces=frozenset(namespaces),
        namespace_labels=fields["namespace_labels"].string_map(syntax.label_key, syntax.label_value),
        labels=fields["labels"].string_map(syntax.label_key, syntax.label_value),
    )


def _of(version: int, spans: Iterable[Span]) -> list[range]:
    return [numbers for each, numbers in spans if each == version]


def _entry(place: Field) -> Span | None:
    try:
        version, numbers = parse_entry(place.text())
    except ValueError as error:
        place.error(f"must be a network, an address or a range such as 10.0.0.5-10.0.0.9: {error}")
        return None
    make = IPv4Address if version == 4 else IPv6Address
    ends = (make(numbers.start), make(numbers.stop - 1))
    return (version, numbers) if all(place.check(syntax.endpoint_address(end)) for end in ends) else None


def _avoided(place: Field, entries: Iterable[Span]) -> Iterator[Span]:
    for item in place.items():
        word = item.text()
        if word in (_FIRST, _LAST):
            for version, numbers in entries:
                if numbers.stop - numbers.start > 2:
                    at = numbers.start if word == _FIRST else numbers.stop - 1
                    yield version, range(at, at + 1)
        elif (span := _entry(item)) is not None:
            yield span
