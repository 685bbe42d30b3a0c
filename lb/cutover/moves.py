# SPDX-License-Identifier: Apache-2.0
"""What one connection is on either side: to netfilter's conntrack, and as a flow of ours. Pure.

netfilter translates in the middle of the node, our programs at its edge. So while ours serve, conntrack
knows a connection by other addresses, or not at all:

=================  ================  ==========================================
the flow's path    while they serve  conntrack sees of the client's packets
=================  ================  ==========================================
STACK, REDIRECT    our programs      what goes to the backend, translated
HOST, LOOPBACK     our programs      what the node's process sends, to the VIP
FORWARD, HAIRPIN   our programs      nothing: they go past the stack
any                netfilter         what the client sends, to the VIP
=================  ================  ==========================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from lb.cutover.conntrack import Entry, SctpState, Status, TcpState, Tuple
from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import (
    ADDRESS,
    FAMILIES,
    FLOW,
    FLOW_KEY,
    BackendStateCode,
    Direction,
    FlowPath,
    FlowSign,
    FlowState,
    pack_address,
    unpack_address,
)
from lb.model import IPAddress, Protocol

SEEN_BY_STACK = frozenset({FlowPath.STACK, FlowPath.REDIRECT})
OF_HOST = frozenset({FlowPath.HOST, FlowPath.LOOPBACK})
_NO_BACKEND = (0, 0xFFFF_FFFF)
"""Id and generation of a backend that no Service has any more; no slot is used so often."""

NO_SERVICE = "no Service has the address and port that the client asks"
BACKEND_GONE = "UDP, to a backend that the Service no longer has: the next datagram gets another"


@dataclass(frozen=True, slots=True)
class Move:
    """A connection that changes hands.

    client: what the client sends; backend: what the backend gets of that. service: id of the Service port.
    slot: id and generation of the backend. state, signs, path: those of the flow. tags: of SCTP, the
    verification tags that client and backend show, 0 for one that was not seen.
    """

    client: Tuple
    backend: Tuple
    path: FlowPath
    service: int
    slot: tuple[int, int]
    state: FlowState
    signs: FlowSign
    tags: tuple[int, int] = (0, 0)

    @property
    def passing(self) -> Tuple | None:
        """What conntrack sees of the client's packets while our programs serve; None: nothing."""
        if self.path in SEEN_BY_STACK:
            return self.backend
        return self.client if self.path in OF_HOST else None

    @property
    def reserving(self) -> Tuple | None:
        """What no client ever sends, for an entry of conntrack that reserves its port; None: not needed.

        The kernel picks ports for the sockets of the node without asking us. To the backend a socket with the
        address and port that stand for this connection would be the same connection. With an entry that is
        translated to them, netfilter gives such a socket's packets another port.
        """
        return replace(self.client, dport=0) if self.path in OF_HOST else None


@dataclass(slots=True)
class Plan:
    """What a dump of conntrack comes to.

    moves: the connections that become flows, each with its entry. moved: entries of those that have become
    flows already. dead: entries of connections to Services that have ended. left: why others stay
    netfilter's, and how many.
    """

    moves: list[tuple[Entry, Move]] = field(default_factory=list)
    moved: list[Entry] = field(default_factory=list)
    dead: list[Entry] = field(default_factory=list)
    left: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class Known:
    """What the maps hold of Services.

    services: id of the Service port by address, port and protocol of each VIP. slots: id and generation of a
    backend by Service port, address and port.
    """

    services: Mapping[tuple[IPAddress, int, int], int]
    slots: Mapping[tuple[int, IPAddress, int], tuple[int, int]]


def known(maps: Maps) -> Known:
    """Read what the maps hold of Services.

    Raises BpfError: the kernel refused.
    """
    services, slots = {}, {}
    for version in FAMILIES:
        keys, vips = maps.read(f"vips{version}")
        for key, service in zip(keys.tolist(), vips["service"].tolist(), strict=True):
            address, port, protocol, _ = key
            services[unpack_address(address), port, protocol] = service
        rows = maps.array(f"backends{version}")
        used = np.flatnonzero(rows["state"] != BackendStateCode.FREE)
        for ident, row in zip(used.tolist(), rows[used], strict=True):
            place = int(row["service"]), unpack_address(row["address"].tolist()), int(row["port"])
            slots[place] = ident, int(row["generation"])
    return Known(services, slots)


def plan(
    entries: Iterable[Entry],
    services: Known,
    own: frozenset[IPAddress],
    flows: Container[tuple[Tuple, Tuple]] = (),
) -> Plan:
    """Say what becomes of each translated connection.

    own: the node's addresses. flows: those that there are, as what the client sends and the backend gets.
    """
    found = Plan()
    for entry in entries:
        if not entry.translated:
            continue
        asked = entry.original
        if not asked.dport:  # see Move.reserving
            found.moved.append(entry)
            continue
        service = services.services.get((asked.dst, asked.dport, asked.protocol))
        if service is None:
            found.left[NO_SERVICE] += 1
        elif entry.dead:
            found.dead.append(entry)
        elif (asked, entry.reply.reverse) in flows:
            found.moved.append(entry)
        else:
            move = _move(entry, service, services, own)
            if asked.protocol is Protocol.UDP and move.slot == _NO_BACKEND:
                found.left[BACKEND_GONE] += 1
            else:
                found.moves.append((entry, move))
    return found


def _move(entry: Entry, service: int, services: Known, own: frozenset[IPAddress]) -> Move:
    client, backend = entry.original, entry.reply.reverse
    if client.src in own:
        path = FlowPath.LOOPBACK if client.dst in own else FlowPath.HOST
    elif backend.src == client.src:
        path = FlowPath.STACK
    else:
        path = FlowPath.HAIRPIN if backend.dst == client.src else FlowPath.FORWARD
    slot = services.slots.get((service, backend.dst, backend.dport), _NO_BACKEND)
    return Move(client, backend, path, service, slot, *_life(entry), entry.tags)


def _life(entry: Entry) -> tuple[FlowState, FlowSign]:
    """Return how far a connection is, as its flow has it."""
    if entry.original.protocol is Protocol.UDP:
        if entry.status & Status.ASSURED:
            return FlowState.ESTABLISHED, FlowSign(0)
        answered = FlowSign.ANSWERED if entry.status & Status.SEEN_REPLY else FlowSign(0)
        return FlowState.NEW, FlowSign.HALF_OPEN | answered
    if entry.original.protocol is Protocol.SCTP:
        return _BEGUN if entry.sctp in _HANDSHAKE else (FlowState.ESTABLISHED, FlowSign(0))
    if entry.state in (TcpState.FIN_WAIT, TcpState.CLOSE_WAIT):
        one = FlowSign.FIN_BACKEND if entry.closed_first == "server" else FlowSign.FIN_CLIENT
        return FlowState.CLOSING, one
    return _TCP.get(entry.state, _BEGUN)


_HANDSHAKE = frozenset({SctpState.NONE, SctpState.COOKIE_WAIT, SctpState.COOKIE_ECHOED})
_BEGUN = FlowState.NEW, FlowSign.HALF_OPEN | FlowSign.MET_LATE
_ENDED = FlowState.CLOSED, FlowSign.FIN_CLIENT | FlowSign.FIN_BACKEND
_TCP = {
    TcpState.ESTABLISHED: (FlowState.ESTABLISHED, FlowSign(0)),
    TcpState.LAST_ACK: _ENDED,
    TcpState.TIME_WAIT: _ENDED,
    TcpState.CLOSE: (FlowState.CLOSED, FlowSign.RST_BACKEND),
}


def as_it_is(move: Move, entry: Entry) -> Move:
    """Return the move with the state that conntrack has of the connection by now."""
    state, signs = _life(entry)
    return replace(move, state=state, signs=signs)


def flow_rows(move: Move) -> tuple[Rows, Rows]:
    """Return the forward half of a flow: key and value, a row each; times are for the programs to fill in."""
    version = move.client.version
    key, value = np.zeros(1, FLOW_KEY[version]), np.zeros(1, FLOW[version])
    for rows, tuple_ in ((key, move.client), (value, move.backend)):
        for name, address in (("src", tuple_.src), ("dst", tuple_.dst)):
            rows[name] = np.array([pack_address(address)], ADDRESS[version])
        rows["sport"], rows["dport"] = tuple_.sport, tuple_.dport
    key["protocol"], key["direction"] = move.client.protocol, Direction.FORWARD
    value["service"] = move.service
    value["backend"], value["generation"] = move.slot
    value["state"], value["fins"], value["path"] = move.state, move.signs, move.path
    return key, value


def tag_keys(move: Move) -> Rows:
    """Return the keys of the verification tags that client and backend show: those of the flow's halves."""
    keys = np.zeros(2, FLOW_KEY[move.client.version])  # numpy joins arrays in its own byte order
    keys[:1], keys[1:] = flow_rows(move)[0], flow_rows(replace(move, client=move.backend.reverse))[0]
    keys["direction"] = Direction.FORWARD, Direction.REPLY
    return keys


def moves_back(keys: Rows, values: Rows) -> Iterable[Move]:
    """Yield what flows are; of each the forward half counts. Those that have ended are left out."""
    for key, value in zip(keys, values, strict=True):
        if key["direction"] != Direction.FORWARD or value["state"] == FlowState.CLOSED:
            continue
        if value["path"] == FlowPath.DIRECT:  # its answers come from another node
            continue
        protocol = Protocol(int(key["protocol"]))
        client, backend = (
            Tuple(
                unpack_address(row["src"].tolist()),
                int(row["sport"]),
                unpack_address(row["dst"].tolist()),
                int(row["dport"]),
                protocol,
            )
            for row in (key, value)
        )
        yield Move(
            client,
            backend,
            FlowPath(int(value["path"])),
            int(value["service"]),
            (int(value["backend"]), int(value["generation"])),
            FlowState(int(value["state"])),
            FlowSign(int(value["fins"])),
        )
