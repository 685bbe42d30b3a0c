# SPDX-License-Identifier: Apache-2.0
"""What the maps hold, in words: read from the maps alone, never from Python's memory of them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lb.datapath.maps.expiry import live_affinity, live_flows
from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import (
    FAMILIES,
    HOOKS,
    REASONS,
    REASONS_PER_HOOK,
    BackendFlag,
    BackendStateCode,
    Direction,
    FlowSign,
    FlowState,
    VipFlag,
    unpack_address,
)
from lb.datapath.sync.ledger import KIND_WORDS, VipRow, read_names, read_nodes, read_ranges, read_vips
from lb.datapath.sync.tables import shares, table_rows, unequal_shares
from lb.datapath.view.words import mac_text, node_name
from lb.model import IPNetwork, ObjectKey, Protocol, socket_text
from lb.plan.types import VipKey

_SIDES = ("inside", "outside")
_LOCAL_SIDES = {"inside": VipFlag.INSIDE_LOCAL, "outside": VipFlag.OUTSIDE_LOCAL}
_ANSWERED = ("syn_recv", "answered")
_FLOW_STATES = {
    FlowState.NEW: ("syn_sent", "new"),
    FlowState.ESTABLISHED: ("established", "established"),
    FlowState.CLOSING: ("closing", "closing"),
    FlowState.CLOSED: ("closed", "closed"),
}


@dataclass(frozen=True, slots=True)
class VipBackend:
    """A backend of a VIP. state: active or terminating. takes_new: some lookup table of the VIP lists it.

    share: which part of new connections it gets, where these parts are unequal; of a VIP with a set for each
    side, of those from outside. None (and absent in JSON): all get the same.
    """

    address: str
    port: int
    node: str
    state: str
    takes_new: bool
    share: float | None = None


@dataclass(frozen=True, slots=True)
class MapEntry:
    """What a dump shows of one entry of a map."""

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as JSON has it: without some fields when they are empty or false."""
        return {name: value for name, value in asdict(self).items() if value or name not in _IF_ANY}


_IF_ANY = {"local_only", "direct", "source_ranges", "lingering", "snat", "rival", "former"}


@dataclass(frozen=True, slots=True)
class VipEntry(MapEntry):
    """A VIP with the backends that its lookup tables list, and the terminating ones of its Service port.

    local_only: the sides, "inside" and "outside", that traffic policy Local keeps to this node's endpoints;
    source_ranges: the networks that may open connections, empty when all may. lingering: no Service has it
    any more, and it stays for the connections that are open. direct: packets from outside go encapsulated to
    backends on other nodes, which answer. These are absent in JSON when empty or false.
    """

    address: str
    port: int
    protocol: str
    service: str
    port_name: str
    kind: str
    affinity_seconds: int
    backends: tuple[VipBackend, ...]
    local_only: tuple[str, ...] = ()
    source_ranges: tuple[str, ...] = ()
    lingering: bool = False
    direct: bool = False

    def as_dict(self) -> dict[str, Any]:
        """See the base class; which backends take new connections is for tables alone."""
        fields = MapEntry.as_dict(self)
        for backend in fields["backends"]:
            del backend["takes_new"]
            if backend["share"] is None:
                del backend["share"]
        return fields


@dataclass(frozen=True, slots=True)
class AddressEntry(MapEntry):
    """A Service address as a whole: what packets for none of its ports meet.

    answers: the sides, "inside" and "outside", whose echo requests (ping) are answered: a backend is offered
    there. source_ranges: the networks that are answered, empty (and absent in JSON) when all are.
    """

    address: str
    kind: str
    service: str
    answers: tuple[str, ...]
    source_ranges: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class BackendEntry(MapEntry):
    """A slot in use. node is ``""`` when the endpoint names none."""

    id: int
    address: str
    port: int
    node: str
    local: bool
    state: str
    service: str
    port_name: str
    generation: int


@dataclass(frozen=True, slots=True)
class FlowEntry(MapEntry):
    """A connection. snat: what the client's address became, ``""`` (and absent in JSON) when it stayed."""

    protocol: str
    client: str
    vip: str
    backend: str
    snat: str
    state: str
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class AffinityEntry(MapEntry):
    """A client's backend. backend is ``""`` when the entry names one that is gone, and so has no effect."""

    client: str
    service: str
    port_name: str
    backend: str
    idle_seconds: float


@dataclass(frozen=True, slots=True)
class AnnouncedEntry(MapEntry):
    """An address that this node answers for on a segment: ARP, or neighbour discovery.

    mac: what is answered. left_seconds: for so long yet, unless the agent puts it off; 0: not any more.
    rival: the link address of whoever else has claimed it last. former: that of the node which has handed it
    over, and gets what is of its connections. These are ``""`` (and absent in JSON) when there is none.
    """

    address: str
    ifindex: int
    mac: str
    left_seconds: float
    rival: str = ""
    former: str = ""


@dataclass(frozen=True, slots=True)
class CounterEntry(MapEntry):
    """Packets and bytes that left the data plane by one exit, over all CPUs."""

    hook: str
    reason: str
    packets: int
    bytes: int
    meaning: str


Dump = dict[str, Sequence[MapEntry]]
"""Entries by section, in the order of :data:`SECTIONS`."""


CLOSED = _FLOW_STATES[FlowState.CLOSED][0]
"""The state of a connection that both sides have ended; its entry stays a while, for segments sent again."""


def live_and_closed(flows: Sequence[MapEntry]) -> tuple[int, int]:
    """Return how many connections are live, and how many entries are those of closed ones."""
    closed = sum(isinstance(one, FlowEntry) and one.state == CLOSED for one in flows)
    return len(flows) - closed, closed


def dump(
    maps: Maps, now_ns: int, sections: Collection[str] | None = None, service: ObjectKey | None = None
) -> Dump:
    """Read the maps.

    now_ns: CLOCK_MONOTONIC in nanoseconds, from which idle times count. sections: some of :data:`SECTIONS`;
    None: all. service: only what belongs to this Service, or to those of this namespace if it has no name;
    counters belong to none and are given in full.
    The order is that of addresses and ports as numbers, or of names; IPv4 comes before IPv6.

    Raises BpfError: a map could not be read.
    """
    reader = _Reader(maps, now_ns, service)
    return {name: read(reader) for name, read in _SECTIONS.items() if sections is None or name in sections}


class _Reader:
    """Reads each map at most once."""

    def __init__(self, maps: Maps, now_ns: int, service: ObjectKey | None) -> None:
        self._maps = maps
        self._now_ns = now_ns
        self._service = service

    @cached_property
    def _names(self) -> dict[int, tuple[str, str]]:
        return read_names(self._maps)

    @cached_property
    def _nodes(self) -> dict[int, str]:
        return read_nodes(self._maps)

    @cached_property
    def _slots(self) -> dict[int, Rows]:
        """Return the backends by IP version."""
        return {
            version: np.array(self._maps.array(f"backends{version}"), subok=False) for version in FAMILIES
        }

    @cached_property
    def _slots_by_service(self) -> dict[tuple[int, int], list[int]]:
        """Return the ids of the backends of each IP version and Service port."""
        by_service: dict[tuple[int, int], list[int]] = {}
        for version, slots in self._slots.items():
            used = np.flatnonzero(slots["state"] != BackendStateCode.FREE)
            for slot, service in zip(used.tolist(), slots["service"][used].tolist(), strict=True):
                by_service.setdefault((version, service), []).append(slot)
        return by_service

    @cached_property
    def _tables(self) -> Rows:
        """Hold the pool for as long as this lives: the maps map it anew for each who asks and lets go."""
        return table_rows(self._maps)

    @cached_property
    def _vips(self) -> list[tuple[VipKey, VipRow]]:
        """Return the VIPs of the Service in order."""
        rows = read_vips(self._maps).items()
        return sorted(((vip, row) for vip, row in rows if self._selected(row.service)), key=_vip_order)

    @cached_property
    def _ranges(self) -> dict[int, tuple[str, ...]]:
        """Return each Service port's source ranges, in the order of their addresses."""
        by_service: dict[int, tuple[str, ...]] = {}
        for service, network in sorted(read_ranges(self._maps), key=_range_order):
            by_service[service] = (*by_service.get(service, ()), str(network))
        return by_service

    def _name(self, service: int) -> tuple[str, str]:
        return self._names.get(service, ("unknown", ""))

    def _selected(self, service: int) -> bool:
        return self._service is None or self._service.covers(self._name(service)[0])

    def _node(self, node: int) -> str:
        return node_name(node, self._nodes.get)

    def _idle(self, then_ns: int) -> float:
        return round(max(0, self._now_ns - then_ns) / 1e9, 3)

    def vips(self) -> list[VipEntry]:
        return [
            VipEntry(
                str(vip.address),
                vip.port,
                vip.protocol.name,
                *self._name(row.service),
                KIND_WORDS[row.kind],
                row.affinity_seconds,
                self._vip_backends(vip.address.version, row),
                tuple(side for side, flag in _LOCAL_SIDES.items() if row.flags & flag),
                self._allowed(row),
                bool(row.flags & VipFlag.GONE),
                bool(row.flags & VipFlag.DIRECT),
            )
            for vip, row in self._vips
            if vip.protocol is not None
        ]

    def addresses(self) -> list[AddressEntry]:
        return [
            AddressEntry(
                str(vip.address),
                KIND_WORDS[row.kind],
                self._name(row.service)[0],
                tuple(
                    side
                    for side, region in zip(_SIDES, (row.inside, row.outside), strict=True)
                    if region.size
                ),
                self._allowed(row),
            )
            for vip, row in self._vips
            if vip.protocol is None
        ]

    def _allowed(self, row: VipRow) -> tuple[str, ...]:
        return self._ranges.get(row.service, ()) if row.flags & VipFlag.SOURCE_RANGES else ()

    def _vip_backends(self, version: int, row: VipRow) -> tuple[VipBackend, ...]:
        listed: set[int] = set()
        for region in {row.inside, row.outside}:
            listed.update(shares(self._tables, *region))
        parts = unequal_shares(self._tables, *(row.outside if row.outside.size else row.inside))
        found = []
        for slot in self._slots_by_service.get((version, row.service), ()):
            address, port, state, _, _, _, node = self._slots[version][slot].item()
            if slot in listed or state == BackendStateCode.TERMINATING:
                part = round(parts.get(slot, 0.0), 4) if parts else None
                found.append(((address, port), node, state, slot in listed, part))
        return tuple(
            VipBackend(_ip(at[0]), at[1], self._node(node), BackendStateCode(state).name.lower(), new, part)
            for at, node, state, new, part in sorted(found, key=lambda each: each[0])
        )

    def backends(self) -> list[BackendEntry]:
        entries = []
        for (version, service), slots in self._slots_by_service.items():
            if not self._selected(service):
                continue
            for slot in slots:
                address, port, state, flags, _, generation, node = self._slots[version][slot].item()
                entry = BackendEntry(
                    slot,
                    _ip(address),
                    port,
                    self._node(node),
                    bool(flags & BackendFlag.LOCAL),
                    BackendStateCode(state).name.lower(),
                    *self._name(service),
                    generation,
                )
                entries.append(((entry.service, entry.port_name, version, address, port, slot), entry))
        return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]

    def flows(self) -> list[FlowEntry]:
        return [entry for version in FAMILIES for entry in self._flows(version)]

    def _flows(self, version: int) -> list[FlowEntry]:
        keys, values = live_flows(self._maps, version, self._now_ns)
        forward = keys["direction"] == Direction.FORWARD
        entries = []
        values = values[["src", "dst", "sport", "dport", "service", "state", "fins", "last_seen"]][forward]
        for key, value in zip(keys[forward].tolist(), values.tolist(), strict=True):
            src, dst, sport, dport, protocol, *_ = key
            new_src, new_dst, new_sport, new_dport, service, state, fins, last_seen = value
            if not self._selected(service):
                continue
            answered = state == FlowState.NEW and fins & FlowSign.ANSWERED
            words = _ANSWERED if answered else _FLOW_STATES[FlowState(state)]
            entry = FlowEntry(
                Protocol(protocol).name,
                _socket(src, sport),
                _socket(dst, dport),
                _socket(new_dst, new_dport),
                _socket(new_src, new_sport) if (new_src, new_sport) != (src, sport) else "",
                words[protocol != Protocol.TCP],
                self._idle(last_seen),
            )
            entries.append(((protocol, src, sport, dst, dport), entry))
        return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]

    def affinity(self) -> list[AffinityEntry]:
        entries = []
        for version in FAMILIES:
            keys, values = live_affinity(self._maps, version, self._now_ns)
            for (client, service), (last_used, slot, generation) in zip(
                keys.tolist(), values.tolist(), strict=True
            ):
                if not self._selected(service):
                    continue
                entry = AffinityEntry(
                    _ip(client),
                    *self._name(service),
                    self._affine(version, service, slot, generation),
                    self._idle(last_used),
                )
                entries.append(((entry.service, entry.port_name, version, client, service), entry))
        return [entry for _, entry in sorted(entries, key=lambda pair: pair[0])]

    def _affine(self, version: int, service: int, slot: int, generation: int) -> str:
        address, port, state, _, owner, live_generation, _ = self._slots[version][slot].item()
        if state == BackendStateCode.FREE or (owner, live_generation) != (service, generation):
            return ""
        return _socket(address, port)

    def announced(self) -> list[AnnouncedEntry]:
        found = []
        for version in FAMILIES:
            keys, values = self._maps.read(f"rivals{version}")
            rivals = dict(zip(keys.tolist(), map(mac_text, values["mac"]), strict=True))
            keys, values = self._maps.read(f"announced{version}")
            for key, value in sorted(zip(keys.tolist(), values, strict=True), key=lambda pair: pair[0]):
                left = round(max(0, int(value["until_ns"]) - self._now_ns) / 1e9, 3)
                mac = mac_text(value["mac"])
                former = mac_text(value["former"]) if int(value["former_ns"]) > self._now_ns else ""
                found.append(AnnouncedEntry(_ip(key[0]), key[1], mac, left, rivals.get(key, ""), former))
        return found

    def counters(self) -> list[CounterEntry]:
        return [entry for entry in counters(self._maps) if entry.packets]


def counters(maps: Maps) -> list[CounterEntry]:
    """Return every hook's counter of every reason, also those that no packet has left by.

    Raises BpfError: the map could not be read.
    """
    _, values = maps.read("reasons")
    packets: NDArray[np.uint64] = values["packets"].sum(axis=1)
    octets: NDArray[np.uint64] = values["bytes"].sum(axis=1)
    return [
        CounterEntry(hook, reason, int(packets[row + at]), int(octets[row + at]), meaning)
        for row, (hook, _) in zip(range(0, len(packets), REASONS_PER_HOOK), HOOKS, strict=True)
        for at, (reason, meaning) in enumerate(REASONS)
    ]


def _ip(address: int | bytes) -> str:
    return str(unpack_address(address))


def _socket(address: int | bytes, port: int) -> str:
    return socket_text(unpack_address(address), port)


def _vip_order(item: tuple[VipKey, VipRow]) -> tuple[int, int, int, int]:
    vip = item[0]
    return (vip.address.version, int(vip.address), vip.port, vip.protocol or 0)


def _range_order(item: tuple[int, IPNetwork]) -> tuple[int, int, int]:
    service, network = item
    return (service, int(network.network_address), network.prefixlen)


_SECTIONS: dict[str, Callable[[_Reader], Sequence[MapEntry]]] = {
    "vips": _Reader.vips,
    "addresses": _Reader.addresses,
    "backends": _Reader.backends,
    "flows": _Reader.flows,
    "affinity": _Reader.affinity,
    "counters": _Reader.counters,
    "announced": _Reader.announced,
}
SECTIONS: tuple[str, ...] = tuple(_SECTIONS)
