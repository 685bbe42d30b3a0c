# SPDX-License-Identifier: Apache-2.0
"""What was counted, by Service port and backend: read from the maps alone, with the names that they carry.

A Service port is one row, IPv4 and IPv6 together. :mod:`lb.datapath.sync.accounts` says what is whose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import (
    FAMILIES,
    HANDSHAKE_BUCKETS,
    HANDSHAKE_FIRST,
    REASONS,
    TRAFFIC_IN_LINE,
    BackendStateCode,
)
from lb.datapath.sync import accounts
from lb.datapath.sync.accounts import FIGURES, OF_CONNECTIONS, OF_TRAFFIC, numbers
from lb.datapath.sync.ledger import read_nodes
from lb.datapath.view.words import ShownBackend, backend
from lb.model import Protocol

HANDSHAKE_BOUNDS = tuple(2.0 ** (HANDSHAKE_FIRST + n) / 1e6 for n in range(HANDSHAKE_BUCKETS - 1))
"""Upper ends, in seconds, of the buckets of handshake times; the last bucket, one more, has none."""
_TRIES = 3


class PortName(NamedTuple):
    """A Service port. protocol: TCP, UDP or SCTP; ``""`` while it has no VIP."""

    namespace: str
    service: str
    port_name: str
    protocol: str

    def __str__(self) -> str:
        port = f":{self.port_name}" if self.port_name else ""
        return f"{self.namespace}/{self.service}{port}"


class Figures(NamedTuple):
    """What was counted since the backend, or the Service port, is there.

    packets, bytes: translated towards the backends. A packet is what a hook sees; with segmentation offload
    that is several packets on the wire. Bytes are those of frames.
    reply_packets, reply_bytes: translated on the way back.
    opened: connections. refused: those that the backend answered with a reset. unanswered: those whose first
    packet was sent again before any answer.
    """

    packets: int
    bytes: int
    reply_packets: int
    reply_bytes: int
    opened: int
    refused: int
    unanswered: int


@dataclass(frozen=True, slots=True)
class Backends:
    """The slots in use of one IP version, row by row.

    ids, slots: as in the map. ports: rows of the Service ports in :attr:`Sample.ports`. figures: of each.
    """

    version: int
    ids: Rows
    slots: Rows
    ports: Rows
    figures: Rows


@dataclass(frozen=True, slots=True)
class Sample:
    """All figures at one time.

    ports: every Service port, and its row in what follows.
    figures: rows of :data:`lb.datapath.sync.accounts.FIGURES`.
    handshakes: how many handshakes took so long, one column for each bucket; handshake_ns: the sum.
    dropped: packets that went nowhere, one column for each of ``layouts.REASONS``.
    backends: by IP version.
    nodes: names by id.
    counts_traffic: whether packets and bytes are counted; else they are 0.
    """

    ports: Mapping[PortName, int]
    figures: Rows
    handshakes: Rows
    handshake_ns: Rows
    dropped: Rows
    backends: Mapping[int, Backends]
    nodes: Mapping[int, str]
    counts_traffic: bool

    def of_port(self, row: int) -> Figures:
        """Return the figures of one Service port."""
        return Figures(*self.figures[row].item())

    def dropped_of(self, row: int) -> dict[str, int]:
        """Return the packets of one Service port that went nowhere, by reason, where there are any."""
        counts = self.dropped[row, : len(REASONS)].tolist()
        return {name: count for (name, _), count in zip(REASONS, counts, strict=True) if count}

    def backend(self, version: int, row: int) -> ShownBackend:
        """Return the backend of one row of :attr:`backends`."""
        of_version = self.backends[version]
        return backend(int(of_version.ids[row]), of_version.slots[row].item(), self.nodes.get, gone=False)


def sample(maps: Maps) -> Sample:
    """Read all figures.

    While slots change hands it is read again, a few times at most.

    Raises BpfError: a map could not be read.
    """
    for _ in range(_TRIES):
        before = maps.some("ended", accounts.CHANGES)
        slots = {version: _used(maps, version) for version in FAMILIES}
        ended = maps.array("ended").copy()
        figures = {version: _figures(maps, version, slots[version]) for version in FAMILIES}
        if before["packets"] % 2 == 0 and before == maps.some("ended", accounts.CHANGES):
            break
    ids, ports, row_of = _ports(maps)
    sums = np.zeros(len(ports), FIGURES)
    np.add.at(numbers(sums), row_of[ids], numbers(ended[ids]))
    backends = {}
    for version, (rows, counted) in ((version, (slots[version], figures[version])) for version in FAMILIES):
        owners = row_of[np.minimum(rows["service"], len(row_of) - 1)]
        known = owners >= 0
        np.add.at(numbers(sums), owners[known], numbers(counted[known]))
        live = np.flatnonzero(known & (rows["state"] != BackendStateCode.FREE))
        backends[version] = Backends(version, live, rows[live], owners[live], counted[live])
    return Sample(
        ports,
        sums,
        *_service_counters(maps, len(ports), row_of),
        backends,
        read_nodes(maps),
        accounts.counts_traffic(maps),
    )


def _used(maps: Maps, version: int) -> Rows:
    """Return the slots of one IP version, up to the last that was ever used."""
    slots = maps.array(f"backends{version}")
    used = np.flatnonzero(slots["generation"])
    return np.array(slots[: used[-1] + 1 if len(used) else 0], subok=False)


def _figures(maps: Maps, version: int, slots: Rows) -> Rows:
    """Return what each slot has counted in its present, or last, use."""
    found = np.zeros(len(slots), FIGURES)
    if not len(slots):
        return found
    connections = maps.array(f"connections{version}")[: len(slots)]
    for name in OF_CONNECTIONS:
        found[name] = connections[name]
    if not accounts.counts_traffic(maps):
        return found
    lines = int(accounts.line_of(np.array([len(slots) - 1], "u4"))[0][0]) + 1
    generations = _by_line(slots["generation"], lines)
    sums = {name: np.zeros((lines, TRAFFIC_IN_LINE), "u8") for name in OF_TRAFFIC}
    for keys, values in maps.parts(f"traffic{version}"):
        wanted = keys[keys < lines]
        if not len(wanted):
            break
        cells = values[: len(wanted)]["cells"]
        same = cells["generation"] == generations[wanted][:, np.newaxis, :]
        for name, total in sums.items():
            total[wanted] = np.where(same, cells[name], 0).sum(axis=1)
    for name, total in sums.items():
        found[name] = total.reshape(-1)[TRAFFIC_IN_LINE - 1 :][: len(slots)]
    return found


def _by_line(column: Rows, lines: int) -> Rows:
    """Return a column of the slots as it lies in the lines of ``traffic4`` and ``traffic6``."""
    laid = np.zeros(lines * TRAFFIC_IN_LINE, column.dtype)
    laid[TRAFFIC_IN_LINE - 1 :][: len(column)] = column
    return laid.reshape(lines, TRAFFIC_IN_LINE)


def _ports(maps: Maps) -> tuple[Rows, dict[PortName, int], Rows]:
    """Return the ids in use, the Service ports with their rows, and the row of each id: -1 without one."""
    ids, names = maps.read("services")
    protocols = np.zeros(maps.capacity("ended"), "u1")
    for version in FAMILIES:
        keys, values = maps.read(f"vips{version}")
        of_port = keys["protocol"] != 0
        protocols[values["service"][of_port]] = keys["protocol"][of_port]
    texts = {0: ""} | {int(each): each.name for each in Protocol}
    order = np.argsort(names, kind="stable")  # rows are in the order of names
    row_of = np.full(len(protocols), -1, "i8")
    ports: dict[PortName, int] = {}
    for service, protocol, (namespace, name, port_name) in zip(
        ids[order].tolist(), protocols[ids[order]].tolist(), names[order].tolist(), strict=True
    ):
        port = PortName(namespace.decode(), name.decode(), port_name.decode(), texts[protocol])
        row_of[service] = ports.setdefault(port, len(ports))
    return ids, ports, row_of


def _service_counters(maps: Maps, ports: int, row_of: Rows) -> tuple[Rows, Rows, Rows]:
    """Return handshakes, the sum of their times, and dropped packets, row by row."""
    ids, values = maps.read("service_counters")
    rows = row_of[ids]
    rows, values = rows[rows >= 0], values[rows >= 0]
    found = []
    for name in ("handshakes", "handshake_ns", "dropped"):
        total = np.zeros((ports, *values[name].shape[1:]), "u8")
        np.add.at(total, rows, values[name])
        found.append(total)
    return found[0], found[1], found[2]


def quantile(counts: Sequence[int], fraction: float) -> float | None:
    """Return the time, in seconds, that this fraction of handshakes did not exceed; None without any.

    Within a bucket they are taken to lie evenly, as Prometheus' histogram_quantile() does; in the last one,
    which has no upper end, at its lower one.
    """
    total = sum(counts)
    if not total:
        return None
    wanted, below, low = fraction * total, 0, 0.0
    for count, high in zip(counts, (*HANDSHAKE_BOUNDS, HANDSHAKE_BOUNDS[-1]), strict=True):
        if count and below + count >= wanted:
            return low + (high - low) * (wanted - below) / count
        below, low = below + count, high
    return HANDSHAKE_BOUNDS[-1]
