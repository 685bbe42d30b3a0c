# SPDX-License-Identifier: Apache-2.0
"""Netfilter's conntrack by netlink, in the caller's network namespace: linux/netfilter/nfnetlink_conntrack.h.

Connections of Services' protocols, IPv4 and IPv6, of conntrack's zone 0 are read and written.
"""

from __future__ import annotations

import errno
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address

from lb.datapath.kernel import rtnl
from lb.datapath.kernel.closing import Closing
from lb.errors import LbError
from lb.model import FiveTuple, IPAddress, Protocol

_NETLINK_NETFILTER = 12
_NEW, _GET, _DELETE = 0x0100, 0x0101, 0x0102  # nfnetlink's subsystem conntrack, and its messages
_REQUEST, _ACK, _EXCLUSIVE, _CREATE = 0x1, 0x4, 0x200, 0x400
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_ERROR = 2
_NESTED = 0x8000
_ORIGINAL, _REPLY, _STATUS, _PROTOINFO, _NAT_SRC, _TIMEOUT, _MARK, _ID, _NAT_DST, _ZONE = (
    1, 2, 3, 4, 6, 7, 8, 12, 13, 18,
)  # fmt: skip
_IP, _PROTO = 1, 2
_IP_SRC, _IP_DST = {4: 1, 6: 3}, {4: 2, 6: 4}
_PROTO_NUMBER, _PORT_SRC, _PORT_DST = 1, 2, 3
_INFO_TCP, _INFO_SCTP = 1, 3
_TCP_STATE, _TCP_FLAGS_ORIGINAL, _TCP_FLAGS_REPLY = 1, 4, 5
_SCTP_STATE, _SCTP_TAG_ORIGINAL, _SCTP_TAG_REPLY = 1, 2, 3
_NAT_MIN, _NAT_MAX, _NAT_PROTO = {4: 1, 6: 4}, {4: 2, 6: 5}, 3
_NAT_PORT_MIN, _NAT_PORT_MAX = 1, 2
_AF = {4: socket.AF_INET, 6: socket.AF_INET6}
_PROTOCOLS = frozenset(map(int, Protocol))
_CLOSE_INIT, _LIBERAL = 0x04, 0x08  # IP_CT_TCP_FLAG_…: has sent the first FIN; no window is checked


class Status(IntFlag):
    """IPS_… of linux/netfilter/nf_conntrack_common.h, as far as it is asked or set here."""

    SEEN_REPLY = 1 << 1
    ASSURED = 1 << 2
    CONFIRMED = 1 << 3
    DST_NAT = 1 << 5


class TcpState(IntEnum):
    """enum tcp_conntrack."""

    NONE = 0
    SYN_SENT = 1
    SYN_RECV = 2
    ESTABLISHED = 3
    FIN_WAIT = 4
    CLOSE_WAIT = 5
    LAST_ACK = 6
    TIME_WAIT = 7
    CLOSE = 8
    SYN_SENT2 = 9


class SctpState(IntEnum):
    """enum sctp_conntrack."""

    NONE = 0
    CLOSED = 1
    COOKIE_WAIT = 2
    COOKIE_ECHOED = 3
    ESTABLISHED = 4
    SHUTDOWN_SENT = 5
    SHUTDOWN_RECEIVED = 6
    SHUTDOWN_ACK_SENT = 7
    HEARTBEAT_SENT = 8
    HEARTBEAT_ACKED = 9


_DEAD = frozenset({TcpState.TIME_WAIT, TcpState.CLOSE})


@dataclass(frozen=True, slots=True)
class Tuple(FiveTuple):
    """The packets of one direction of a Service's connection."""

    protocol: Protocol

    def __str__(self) -> str:
        return f"{self.protocol.name} {self.client} > {self.target}"


@dataclass(frozen=True, slots=True)
class Entry:
    """A connection that conntrack knows.

    original: of what the client sends; reply: of what answers it, both as they are before netfilter
    translates them. closed_first: who has sent the first FIN: ``"client"``, ``"server"`` or ``""``.
    seconds: until it is forgotten, unless a packet comes. sctp, tags: of SCTP, its state and the verification
    tags that packets of either direction show, 0 for one that was not seen.
    """

    original: Tuple
    reply: Tuple
    status: Status
    state: TcpState
    seconds: int
    closed_first: str = ""
    ident: int = 0
    sctp: SctpState = SctpState.NONE
    tags: tuple[int, int] = (0, 0)

    @property
    def translated(self) -> bool:
        """Whether the client asked for another address or port than that which answers."""
        return bool(self.status & Status.DST_NAT)

    @property
    def dead(self) -> bool:
        """Whether both ends, or a reset, have ended it."""
        if self.original.protocol is Protocol.TCP:
            return self.state in _DEAD
        return self.original.protocol is Protocol.SCTP and self.sctp is SctpState.CLOSED


def dump() -> Iterator[Entry]:
    """Yield the connections that conntrack knows.

    Raises LbError: the kernel has no conntrack with netlink, or refused to tell.
    """
    for version, family in _AF.items():
        try:
            for payload in rtnl.dump(_NETLINK_NETFILTER, _GET, bytes((family, 0, 0, 0))):
                if payload[0] == family and (entry := _entry(payload[4:], version)):
                    yield entry
        except OSError as error:
            raise LbError(f"listing netfilter's connections: {error.strerror}") from error


def _entry(payload: bytes, version: int) -> Entry | None:
    attrs = rtnl.attributes(payload)
    original, reply = (_tuple(attrs.get(kind, b""), version) for kind in (_ORIGINAL, _REPLY))
    if original is None or reply is None or _ZONE in attrs:
        return None
    about = rtnl.attributes(attrs.get(_PROTOINFO, b""))
    info, sctp = (rtnl.attributes(about.get(kind, b"")) for kind in (_INFO_TCP, _INFO_SCTP))
    first = ""
    for kind, who in ((_TCP_FLAGS_ORIGINAL, "client"), (_TCP_FLAGS_REPLY, "server")):
        if info.get(kind, b"\0")[0] & _CLOSE_INIT:
            first = who
    return Entry(
        original,
        reply,
        Status(_number(attrs.get(_STATUS, b"")) & sum(Status)),
        TcpState(info.get(_TCP_STATE, b"\0")[0]),
        _number(attrs.get(_TIMEOUT, b"")),
        first,
        _number(attrs.get(_ID, b"")),
        SctpState(sctp.get(_SCTP_STATE, b"\0")[0]),
        (_number(sctp.get(_SCTP_TAG_ORIGINAL, b"")), _number(sctp.get(_SCTP_TAG_REPLY, b""))),
    )


def _tuple(raw: bytes, version: int) -> Tuple | None:
    """Decode CTA_TUPLE_…; None for a protocol without ports, or one that is not translated here."""
    attrs = rtnl.attributes(raw)
    addresses, proto = (rtnl.attributes(attrs.get(kind, b"")) for kind in (_IP, _PROTO))
    number = _number(proto.get(_PROTO_NUMBER, b""))
    if number not in _PROTOCOLS:
        return None
    make = IPv4Address if version == 4 else IPv6Address
    return Tuple(
        make(addresses[_IP_SRC[version]]),
        _number(proto[_PORT_SRC]),
        make(addresses[_IP_DST[version]]),
        _number(proto[_PORT_DST]),
        Protocol(number),
    )


def _number(raw: bytes) -> int:
    return int.from_bytes(raw, "big")


class Conntrack(Closing):
    """A socket to ask and to write by, one connection after the other."""

    def __init__(self) -> None:
        self._link = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        self._sequence = 0

    def close(self) -> None:
        """Close the socket."""
        self._link.close()

    def find(self, one: Tuple) -> Entry | None:
        """Return the connection of which packets of these addresses and ports are, in either direction.

        Raises LbError: the kernel has no conntrack with netlink, or refused to tell.
        """
        self._send(_GET, one, _pack_tuple(_ORIGINAL, one), _REQUEST)
        for kind, payload in rtnl.messages(self._link.recv(1 << 16)):
            if kind != _ERROR:
                return _entry(payload[4:], one.version)
            code = -struct.unpack_from("=i", payload)[0]
            if code == errno.ENOENT:
                return None
            raise LbError(f"netfilter did not tell about {one}: {os.strerror(code)}")
        raise LbError(f"netfilter did not answer about {one}")

    def delete(self, original: Tuple, ident: int = 0) -> bool:
        """Forget a connection; ident: only if it is the very entry of that number. False: it is not there.

        Raises LbError: the kernel refused.
        """
        body = _pack_tuple(_ORIGINAL, original) + (_attr(_ID, struct.pack(">I", ident)) if ident else b"")
        return self._do(_DELETE, original, body, errno.ENOENT)

    def create(
        self,
        original: Tuple,
        seconds: int,
        *,
        source: tuple[IPAddress, int] | None = None,
        destination: tuple[IPAddress, int] | None = None,
        state: TcpState = TcpState.ESTABLISHED,
        closed_first: str = "",
        tags: tuple[int, int] = (0, 0),
    ) -> bool:
        """Make a connection known, as one in whose middle we are. False: its addresses and ports are taken.

        source, destination: what netfilter is to put in place of those of original. seconds, tags: see
        :class:`Entry`; without its tags netfilter takes no packet of SCTP for one of the connection. What
        netfilter has not seen of it, it does not ask for: the window of TCP is not checked.

        Raises LbError: the kernel refused.
        """
        status = Status.CONFIRMED | Status.SEEN_REPLY | Status.ASSURED
        body = _pack_tuple(_ORIGINAL, original) + _pack_tuple(_REPLY, original.reverse)
        body += _attr(_STATUS, struct.pack(">I", status)) + _attr(_TIMEOUT, struct.pack(">I", seconds))
        if original.protocol is Protocol.TCP:
            body += _attr(_PROTOINFO | _NESTED, _pack_tcp(state, closed_first))
        elif original.protocol is Protocol.SCTP:
            body += _attr(_PROTOINFO | _NESTED, _pack_sctp(tags))
        for kind, place in ((_NAT_SRC, source), (_NAT_DST, destination)):
            if place:
                body += _pack_nat(kind, *place)
        return self._do(_NEW, original, body, errno.EEXIST)

    def _do(self, message: int, original: Tuple, body: bytes, but: int) -> bool:
        """Send a request and await its answer; False: the kernel refused it with the errno `but`."""
        flags, verb = (_CREATE | _EXCLUSIVE, "add") if message == _NEW else (0, "forget")
        self._send(message, original, body, _REQUEST | _ACK | flags)
        for kind, payload in rtnl.messages(self._link.recv(1 << 16)):
            if kind != _ERROR:
                continue
            code = -struct.unpack_from("=i", payload)[0]
            if code and code != but:
                raise LbError(f"netfilter did not {verb} {original}: {os.strerror(code)}")
            return not code
        raise LbError(f"netfilter did not answer about {original}")

    def _send(self, message: int, about: Tuple, body: bytes, flags: int) -> None:
        self._sequence += 1
        body = bytes((_AF[about.version], 0, 0, 0)) + body
        head = _HEADER.pack(_HEADER.size + len(body), message, flags, self._sequence & 0xFFFFFFFF, 0)
        self._link.send(head + body)


def _attr(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def _pack_tuple(kind: int, one: Tuple) -> bytes:
    ip = _attr(_IP_SRC[one.version], one.src.packed) + _attr(_IP_DST[one.version], one.dst.packed)
    proto = _attr(_PROTO_NUMBER, bytes([one.protocol]))
    proto += _attr(_PORT_SRC, struct.pack(">H", one.sport)) + _attr(_PORT_DST, struct.pack(">H", one.dport))
    return _attr(kind | _NESTED, _attr(_IP | _NESTED, ip) + _attr(_PROTO | _NESTED, proto))


def _pack_tcp(state: TcpState, closed_first: str) -> bytes:
    info = _attr(_TCP_STATE, bytes([state]))
    for kind, who in ((_TCP_FLAGS_ORIGINAL, "client"), (_TCP_FLAGS_REPLY, "server")):
        flags = _LIBERAL | (_CLOSE_INIT if who == closed_first else 0)
        info += _attr(kind, bytes((flags, flags)))
    return _attr(_INFO_TCP | _NESTED, info)


def _pack_sctp(tags: tuple[int, int]) -> bytes:
    info = _attr(_SCTP_STATE, bytes([SctpState.ESTABLISHED]))
    for kind, tag in zip((_SCTP_TAG_ORIGINAL, _SCTP_TAG_REPLY), tags, strict=True):
        info += _attr(kind, struct.pack(">I", tag))
    return _attr(_INFO_SCTP | _NESTED, info)


def _pack_nat(kind: int, address: IPAddress, port: int) -> bytes:
    version, number = address.version, struct.pack(">H", port)
    ports = _attr(_NAT_PORT_MIN, number) + _attr(_NAT_PORT_MAX, number)
    ends = _attr(_NAT_MIN[version], address.packed) + _attr(_NAT_MAX[version], address.packed)
    return _attr(kind | _NESTED, ends + _attr(_NAT_PROTO | _NESTED, ports))
