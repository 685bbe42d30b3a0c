# SPDX-License-Identifier: Apache-2.0
"""What the maps say about one packet, in words: its VIP, its flow, its client's affinity, its backend.

Each is one lookup by key, as the programs do it; :mod:`lb.datapath.view.dump` is for whole maps.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lb.datapath.maps.expiry import idle_limits
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import (
    AFFINITY_KEY,
    FLOW_KEY,
    ID,
    LINE_ROWS,
    VIP_KEY,
    WEIGHTED_SET,
    BackendFlag,
    Direction,
    FlowPath,
    FlowState,
    VipFlag,
    pack_address,
    unpack_address,
)
from lb.datapath.sync.ledger import KIND_WORDS, read_ranges
from lb.datapath.sync.tables import listed, table_rows
from lb.datapath.view import words
from lb.datapath.view.words import ShownBackend
from lb.model import FiveTuple, IPAddress


@dataclass(frozen=True, slots=True)
class Vip:
    """A VIP as it offers backends to one side.

    offered: how many backends that are. rows: the set's size, see struct backend_set of bpf/types.h. local:
    the side's traffic policy is Local. usable: some node has an endpoint. ranges: the networks that may open
    connections, empty when all may.
    """

    id: int
    kind: str
    service: str
    port_name: str
    affinity_seconds: int
    offered: int
    rows: int
    local: bool
    usable: bool
    ranges: tuple[str, ...] = ()

    @property
    def table(self) -> bool:
        """True when the backend is drawn from a Maglev table, False when by rendezvous."""
        return self.rows > WEIGHTED_SET

    @property
    def weighted(self) -> bool:
        """True for a list of backends whose weights are unequal."""
        return LINE_ROWS < self.rows <= WEIGHTED_SET


@dataclass(frozen=True, slots=True)
class Flow:
    """One half of a flow. client, vip: of the client's packets; backend, seen: what the backend has instead.

    over: its time is. path: how its packets go on, of enum flow_path.
    """

    client: str
    vip: str
    backend: ShownBackend
    seen: str
    state: str
    path: str
    idle_seconds: float
    over: bool


@dataclass(frozen=True, slots=True)
class Affinity:
    """A client's backend. unfit: why it does not count, empty when it does."""

    backend: ShownBackend
    idle_seconds: float
    unfit: str


class Witness:
    """Reads maps for one packet after the other. now: CLOCK_MONOTONIC in nanoseconds."""

    def __init__(self, maps: KernelMaps) -> None:
        self._maps = maps

    def vip(self, packet: FiveTuple, *, outside: bool) -> Vip | None:
        """Return the VIP that a packet is for, as it is for clients outside of the node or on it."""
        return self._vip(packet.dst, packet.dport, packet.protocol, outside)

    def address(self, packet: FiveTuple, *, outside: bool) -> Vip | None:
        """Return the entry of a Service address as a whole."""
        return self._vip(packet.dst, 0, 0, outside)

    def _vip(self, address: IPAddress, port: int, protocol: int, outside: bool) -> Vip | None:
        key = np.array([(pack_address(address), port, protocol, 0)], VIP_KEY[address.version])
        row = self._maps.lookup(f"vips{address.version}", key)
        if row is None:
            return None
        service, affinity_seconds, inside, out, kind, flags, _ = row[0].item()
        offset, size = out if outside else inside
        offered = len(np.unique(listed(table_rows(self._maps), offset, size)))
        ranges: tuple[str, ...] = ()
        if flags & VipFlag.SOURCE_RANGES:
            found = (str(network) for owner, network in read_ranges(self._maps) if owner == service)
            ranges = tuple(sorted(each for each in found if (":" in each) == (address.version == 6)))
        return Vip(
            service,
            KIND_WORDS.get(kind, "unknown"),
            *self._service(service),
            affinity_seconds,
            offered,
            size,
            bool(flags & (VipFlag.OUTSIDE_LOCAL if outside else VipFlag.INSIDE_LOCAL)),
            bool(flags & VipFlag.USABLE),
            ranges,
        )

    def _service(self, ident: int) -> tuple[str, str]:
        row = self._maps.lookup("services", np.array([ident], ID))
        if row is None:
            return "unknown", ""
        namespace, name, port_name = row[0].item()
        return f"{namespace.decode()}/{name.decode()}", port_name.decode()

    def flow(self, packet: FiveTuple, direction: Direction, now: int) -> Flow | None:
        """Return the flow that has an entry for the packet, in this direction."""
        version = packet.version
        key = np.array(
            [
                (
                    pack_address(packet.src),
                    pack_address(packet.dst),
                    packet.sport,
                    packet.dport,
                    packet.protocol,
                    direction,
                    (0, 0),
                )
            ],
            FLOW_KEY[version],
        )
        row = self._maps.lookup(f"flows{version}", key)
        if row is None:
            return None
        src, dst, sport, dport, service, backend, generation, state, _, path, *_ = row[0].item()
        made = FiveTuple(unpack_address(src), sport, unpack_address(dst), dport, packet.protocol)
        idle = max(0, now - int(row["last_seen"][0]))
        limit = int(idle_limits(self._maps.array(f"settings{version}")[0], key, row)[0])
        request, seen = (packet, made) if direction is Direction.FORWARD else (made.reverse, packet.reverse)
        return Flow(
            request.client,
            request.target,
            self._backend(version, service, backend, generation),
            seen.client,
            FlowState(state).name.lower(),
            FlowPath(path).name.lower(),
            round(idle / 1e9, 1),
            idle > limit,
        )

    def _backend(self, version: int, service: int, ident: int, generation: int) -> ShownBackend:
        slot = self._maps.array(f"backends{version}")[ident].item()
        _, _, _, _, owner, current, _ = slot
        return words.backend(ident, slot, self._node, gone=(owner, current) != (service, generation))

    def _node(self, ident: int) -> str | None:
        row = self._maps.lookup("nodes", np.array([ident], ID))
        return None if row is None else str(row[0].item()[0].decode())

    def affinity(self, client: IPAddress, vip: Vip, now: int) -> Affinity | None:
        """Return the backend that a client keeps, or kept (``lookup_affinity()`` of bpf/affinity.h)."""
        version = client.version
        key = np.array([(pack_address(client), vip.id)], AFFINITY_KEY[version])
        row = self._maps.lookup(f"affinity{version}", key)
        if row is None:
            return None
        last_used, ident, generation = row[0].item()
        backend = self._backend(version, vip.id, ident, generation)
        idle = max(0, now - last_used) / 1e9
        member = BackendFlag.IN_LOCAL_SET if vip.local else BackendFlag.IN_CLUSTER_SET
        unfit = ""
        if idle >= vip.affinity_seconds:
            unfit = "its time is over"
        elif backend.state == "free":
            unfit = "that backend is gone"
        elif not int(self._maps.array(f"backends{version}")[ident]["flags"]) & member:
            unfit = "that backend takes no new connections"
        return Affinity(backend, round(idle, 1), unfit)
