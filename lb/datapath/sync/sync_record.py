# SPDX-License-Identifier: Apache-2.0
"""What a sync has written: in all, and for one Service in one family, small enough to be remembered."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address
from itertools import islice
from typing import Any

import msgspec

from lb.datapath.maps.layouts import BackendStateCode
from lb.datapath.sync.changes import Change
from lb.datapath.sync.ledger import Ports, Socket
from lb.errors import LbError
from lb.model import IPNetwork, ObjectKey, socket_text
from lb.plan.types import VipKey

MOST_NAMED = 8
"""How many entries of a kind are named; of the others the number."""

Name = VipKey | Socket | IPNetwork


@dataclass(slots=True)
class SyncReport:
    """What one sync wrote, in map entries, and which Services it could not bring in step."""

    names: int = 0
    ranges: int = 0
    backends: int = 0
    table_rows: int = 0
    vips: int = 0
    vips_deleted: int = 0
    ranges_deleted: int = 0
    backends_freed: int = 0
    names_deleted: int = 0
    errors: dict[ObjectKey, LbError] = field(default_factory=dict)

    @property
    def writes(self) -> int:
        """Entries written or deleted, in all maps."""
        return (
            self.names + self.ranges + self.backends + self.table_rows + self.vips
            + self.vips_deleted + self.ranges_deleted + self.backends_freed + self.names_deleted
        )  # fmt: skip


class Part(msgspec.Struct, frozen=True, gc=False):
    """What became of some entries of one kind.

    what: ``vips``, ``backends``, ``source_ranges`` or ``table_rows``. verb: ``added``, ``changed``,
    ``removed``; of backends also ``terminating`` and ``active`` (again). first: the first MOST_NAMED of
    count; rows have no names.
    """

    what: str
    verb: str
    count: int
    first: tuple[Name, ...] = ()


class Written(msgspec.Struct, frozen=True, gc=False):
    """The writes of one Service in one family, by IP version."""

    key: ObjectKey
    version: int
    parts: tuple[Part, ...]

    def as_dicts(self) -> list[dict[str, Any]]:
        """Return the parts as JSON has them."""
        return [
            {
                "what": part.what,
                "verb": part.verb,
                "count": part.count,
                "names": [_text(self.version, name) for name in part.first],
            }
            for part in self.parts
        ]


def written(change: Change, ports: Ports) -> Written | None:
    """Return what a change has written; None for nothing. ports: what the Service has in the ledger."""
    parts = tuple(_parts(change, ports))
    return Written(change.key, change.version, parts) if parts else None


def _parts(change: Change, ports: Ports) -> Iterator[Part]:
    moved = change.puts.keys() & change.deletes.keys()  # from one port of the Service to another
    changed = change.replaced | moved
    yield from _part("vips", "added", [vip for vip in change.puts if vip not in changed])
    yield from _part("vips", "changed", changed)
    yield from _part("vips", "removed", [vip for vip in change.deletes if vip not in moved])
    wanted, before = change.wanted, change.before
    nothing: set[Socket] = set()
    added = [each for port, now in wanted.items() for each in now - before.get(port, nothing)]
    gone = [each for port, then in before.items() for each in then - wanted.get(port, nothing)]
    yield from _part("backends", "added", added)
    yield from _kept(change, ports)
    yield from _part("backends", "removed", gone)
    yield from _part("source_ranges", "added", [network for _, network in change.new_ranges])
    yield from _part("source_ranges", "removed", [network for _, network in change.old_ranges])
    if change.tables:
        yield Part("table_rows", "added", sum(region.size for region, _ in change.tables))


def _kept(change: Change, ports: Ports) -> Iterator[Part]:
    """Yield what became of backends that were there before and stay."""
    states = {slot: state for slot, state in change.states.items() if slot not in change.new}
    edits = [slot for slot, _, _ in change.edits]
    fresh_terminating = [
        slot
        for slot, state in change.states.items()
        if slot in change.new and state == BackendStateCode.TERMINATING
    ]
    if not (states or edits or fresh_terminating):
        return
    names = {slot: socket for port in ports.values() for socket, slot in port.backends.items()}
    ending = [slot for slot, state in states.items() if state == BackendStateCode.TERMINATING]
    yield from _part("backends", "terminating", _named(names, [*ending, *fresh_terminating]))
    yield from _part("backends", "active", _named(names, [slot for slot in states if slot not in ending]))
    yield from _part("backends", "changed", _named(names, edits))


def _named(names: Mapping[int, Socket], slots: Sequence[int]) -> list[Socket]:
    return [names[slot] for slot in slots if slot in names]


def _part(what: str, verb: str, names: Collection[Name]) -> Iterator[Part]:
    if names:
        yield Part(what, verb, len(names), tuple(islice(names, MOST_NAMED)))


def _text(version: int, name: Name) -> str:
    if not isinstance(name, Socket):
        return str(name)
    address = IPv4Address(name >> 16) if version == 4 else IPv6Address(name >> 16)
    return socket_text(address, name & 0xFFFF)
