# SPDX-License-Identifier: Apache-2.0
"""An entry of ``advertise`` in the file of peers: which addresses are told, to whom, and how."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_network
from typing import TypeVar

from lb.manifests import syntax
from lb.manifests.fields import Field, Fields
from lb.model import IPAddress, IPNetwork

T = TypeVar("T")

MOST_ASN = 2**32 - 1
_BITS = {4: 32, 6: 128}
_AGGREGATES = {4: "aggregate", 6: "aggregate_ipv6"}
_FIELDS = frozenset(
    (
        "addresses",
        "external_ips",
        "namespaces",
        "peers",
        "communities",
        "large_communities",
        "local_pref",
        "labels",
        "nodes",
        *_AGGREGATES.values(),
    )
)
_WELL_KNOWN = {  # IANA, "BGP Well-known Communities"
    "no-export": (65535, 65281),
    "no-advertise": (65535, 65282),
    "no-export-subconfed": (65535, 65283),
}


@dataclass(frozen=True, slots=True)
class Advertisement:
    """Addresses, to whom they are told, and with which attributes; empty namespaces and peers mean all.

    labels: that a Service must have. nodes: labels that the node must have. lengths: of the routes, by IP
    version: one stands for all addresses of its network.
    """

    networks: tuple[IPNetwork, ...]
    external_ips: bool = False
    namespaces: frozenset[str] = frozenset()
    peers: frozenset[str] = frozenset()
    communities: tuple[tuple[int, int], ...] = ()
    large_communities: tuple[tuple[int, int, int], ...] = ()
    local_pref: int | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    nodes: Mapping[str, str] = field(default_factory=dict)
    lengths: Mapping[int, int] = field(default_factory=lambda: dict(_BITS))

    def route(self, address: IPAddress) -> IPNetwork:
        """Return the network that is told for an address."""
        return ip_network((address, self.lengths[address.version]), strict=False)


def advertisement(place: Field, peers: Iterable[str]) -> Advertisement:
    """Return what an entry says; peers: the names of all of the file."""
    fields, known = place.fields(_FIELDS), set(peers)
    networks = list(_parsed(fields["addresses"], ip_network, "a network or an address, without host bits"))
    if not fields["addresses"].items():
        fields["addresses"].error("must name a network or an address")
    chosen = set()
    for item in fields["peers"].items():
        chosen.add(item.text())
        if item.text() not in known:
            item.error(f"{item.text()!r} is no peer of this file")
    namespaces = set()
    for item in fields["namespaces"].items():
        namespaces.add(item.text())
        item.check(syntax.dns_label(item.text()))
    local_pref = fields["local_pref"]
    return Advertisement(
        tuple(networks),
        external_ips=fields["external_ips"].flag(),
        namespaces=frozenset(namespaces),
        peers=frozenset(chosen),
        communities=tuple(
            _parsed(fields["communities"], _community, 'of the form "64512:100", or no-export')
        ),
        large_communities=tuple(
            _parsed(fields["large_communities"], _large_community, 'of the form "64512:1:2"')
        ),
        local_pref=local_pref.number(0, MOST_ASN) if local_pref.present else None,
        labels=fields["labels"].string_map(syntax.label_key, syntax.label_value),
        nodes=fields["nodes"].string_map(syntax.label_key, syntax.label_value),
        lengths={version: _length(fields, version, networks) for version in _BITS},
    )


def _length(fields: Fields, version: int, networks: Iterable[IPNetwork]) -> int:
    """Return the length of routes; none is told that has addresses which are not in the entry."""
    place, bits = fields[_AGGREGATES[version]], _BITS[version]
    found = place.number(0, bits, bits)
    for each in networks:
        if each.version == version and each.prefixlen > found:
            place.error(f"must be {each.prefixlen} at least: a network of {found} has more than {each}")
    return found


def _parsed(place: Field, parse: Callable[[str], T], right: str) -> Iterator[T]:
    for item in place.items():
        text = item.text()
        try:
            yield parse(text)
        except ValueError:
            item.error(f"must be {right}, is {text!r}")


def _community(text: str) -> tuple[int, int]:
    if text in _WELL_KNOWN:
        return _WELL_KNOWN[text]
    first, second = _numbers(text, 2, 0xFFFF)
    return first, second


def _large_community(text: str) -> tuple[int, int, int]:
    first, second, third = _numbers(text, 3, 2**32 - 1)
    return first, second, third


def _numbers(text: str, count: int, most: int) -> list[int]:
    parts = text.split(":")
    if len(parts) != count or not all(part.isdecimal() and part.isascii() for part in parts):
        raise ValueError(text)
    found = [int(part) for part in parts]
    if max(found) > most:
        raise ValueError(text)
    return found
