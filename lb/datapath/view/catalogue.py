# SPDX-License-Identifier: Apache-2.0
"""Some Services of the maps, without reading the others into Python: what a page of a cluster shows."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import (
    FAMILIES,
    BackendFlag,
    BackendStateCode,
    VipFlag,
    unpack_address,
)
from lb.datapath.sync.ledger import KIND_WORDS, read_names, read_nodes, read_ranges
from lb.datapath.sync.tables import shares, table_rows
from lb.datapath.view import words
from lb.datapath.view.words import ShownBackend
from lb.model import IPAddress, Protocol, socket_text

Names = Mapping[int, tuple[str, str]]
"""By Service port id: NAMESPACE/NAME, and the port's name."""
Shares = Mapping[int, float]
"""By backend id: the share of new connections, 0 to 1, if clients are many and different."""


@dataclass(frozen=True, slots=True)
class PortVip:
    """A VIP of a port. address: with its port. inside, outside: who gets what from either side.

    local_only: the sides that traffic policy Local keeps to this node's endpoints. usable: there is an
    endpoint somewhere. direct: packets from outside go encapsulated to other nodes, which answer.
    """

    address: str
    kind: str
    inside: Shares
    outside: Shares
    local_only: tuple[str, ...]
    source_ranges: tuple[str, ...]
    usable: bool
    direct: bool = False


@dataclass(frozen=True, slots=True)
class PortRow:
    """A Service port in one family, in the order of addresses. id: as in ``services``."""

    id: int
    service: str
    port_name: str
    version: int
    protocol: str
    affinity_seconds: int
    vips: tuple[PortVip, ...]
    backends: tuple[ShownBackend, ...]


@dataclass(slots=True)
class PortSummary:
    """A Service port in one family, counted. vips: (kind, address, port) of each, in the order of addresses.

    backends counts all, local those on this node, terminating those on their way out.
    """

    service: str
    port_name: str
    version: int
    protocol: str
    affinity_seconds: int
    vips: list[tuple[str, IPAddress, int]] = field(default_factory=list)
    backends: int = 0
    local: int = 0
    terminating: int = 0


def summary(maps: Maps) -> list[PortSummary]:
    """Return all Service ports that have a VIP, sorted by names and family.

    Neither a backend nor a set of backends becomes an object of Python: 10,000 Services are summed up in a
    fraction of a second.

    Raises BpfError: a map could not be read.
    """
    named = read_names(maps)
    found: dict[tuple[str, str, int], PortSummary] = {}
    for version in FAMILIES:
        counts = _counts(maps, version)
        counted: set[int] = set()
        keys, values = maps.read(f"vips{version}")
        with_port = keys["protocol"] != 0
        rows = zip(keys[with_port].tolist(), values[with_port].tolist(), strict=True)
        for (address, port, protocol, _), (service, affinity, _, _, kind, *_) in sorted(rows):
            service_name, port_name = named.get(service, ("unknown", ""))
            one = found.setdefault(
                (service_name, port_name, version),
                PortSummary(service_name, port_name, version, Protocol(protocol).name, affinity),
            )
            one.vips.append((KIND_WORDS.get(kind, "unknown"), unpack_address(address), port))
            if service not in counted:
                counted.add(service)
                one.backends, one.local, one.terminating = (
                    had + int(each[service]) if service < len(each) else had
                    for had, each in zip((one.backends, one.local, one.terminating), counts, strict=True)
                )
    return [one for _, one in sorted(found.items(), key=lambda item: item[0])]


def _counts(maps: Maps, version: int) -> tuple[Rows, Rows, Rows]:
    """Return by Service port id how many backends there are, on this node, on their way out."""
    slots = maps.array(f"backends{version}")
    used = slots[slots["state"] != BackendStateCode.FREE]
    chosen = (
        used["service"],
        used["service"][(used["flags"] & BackendFlag.LOCAL) != 0],
        used["service"][used["state"] == BackendStateCode.TERMINATING],
    )
    of_all, here, going = (np.bincount(each) for each in chosen)
    return of_all, here, going


def ports(maps: Maps, wanted: Names) -> list[PortRow]:
    """Return the ports of these ids with what they have, sorted by names and family.

    Raises BpfError: a map could not be read.
    """
    ids = np.array(list(wanted), np.uint32)
    ranges: dict[int, list[str]] = {}
    for service, network in sorted(read_ranges(maps), key=lambda each: (each[1].version, each[1])):
        ranges.setdefault(service, []).append(str(network))
    nodes = read_nodes(maps)
    tables = table_rows(maps)
    found = []
    for version in FAMILIES:
        backends = _backends(maps, version, ids, nodes)
        vips: dict[int, list[tuple[tuple[int, int], PortVip]]] = {}
        protocols: dict[int, tuple[str, int]] = {}
        for key, row in _vips(maps, version, ids):
            address, port, protocol, _ = key
            service, affinity, inside, outside, kind, flags, _ = row
            ip = unpack_address(address)
            protocols[service] = Protocol(protocol).name, affinity
            local_only = ((VipFlag.INSIDE_LOCAL, "inside"), (VipFlag.OUTSIDE_LOCAL, "outside"))
            one = PortVip(
                socket_text(ip, port),
                KIND_WORDS[kind],
                shares(tables, *inside),
                shares(tables, *outside),
                tuple(side for flag, side in local_only if flags & flag),
                tuple(ranges.get(service, ())) if flags & VipFlag.SOURCE_RANGES else (),
                bool(flags & VipFlag.USABLE),
                bool(flags & VipFlag.DIRECT),
            )
            vips.setdefault(service, []).append(((int(ip), port), one))
        for service, of_port in vips.items():
            rows = tuple(one for _, one in sorted(of_port, key=lambda pair: pair[0]))
            found.append(
                PortRow(
                    service, *wanted[service], version, *protocols[service], rows, backends.get(service, ())
                )
            )
    return sorted(found, key=lambda one: (one.service, one.port_name, one.version))


def _vips(maps: Maps, version: int, ids: Rows) -> Iterator[tuple[tuple[Any, ...], tuple[Any, ...]]]:
    """Yield the keys and rows of VIPs with a port, without those that linger."""
    keys, values = maps.read(f"vips{version}")
    lingers = (values["flags"] & VipFlag.GONE) != 0
    chosen = np.isin(values["service"], ids) & (keys["protocol"] != 0) & ~lingers
    yield from zip(keys[chosen].tolist(), values[chosen].tolist(), strict=True)


def _backends(
    maps: Maps, version: int, ids: Rows, nodes: Mapping[int, str]
) -> dict[int, tuple[ShownBackend, ...]]:
    slots = maps.array(f"backends{version}")
    chosen = np.flatnonzero((slots["state"] != BackendStateCode.FREE) & np.isin(slots["service"], ids))
    found: dict[int, list[tuple[int, int, ShownBackend]]] = {}
    for slot, row in zip(chosen.tolist(), slots[chosen].tolist(), strict=True):
        address, port, _, _, service, _, _ = row
        one = words.backend(slot, row, nodes.get, gone=False)
        found.setdefault(service, []).append((int(unpack_address(address)), port, one))
    return {service: tuple(one for *_, one in sorted(rows, key=_place)) for service, rows in found.items()}


def _place(row: tuple[int, int, ShownBackend]) -> tuple[int, int]:
    return row[0], row[1]
