# SPDX-License-Identifier: Apache-2.0
"""What is too big for the way on, and may be cut, goes on in pieces: IPv4 without DF (RFC 791, section 3.2).

The pieces enter anew. They are read from the interface, where a raw socket sees them, and are given to the
program again; each is compared with a piece of the datagram as it must arrive, whose checksum is made from
scratch over all of it.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Callable

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import options
from tests import packets as p
from tests.options import Options
from tests.packet.harness import DROP, PASS, SEND, TC_UPLINK_IN, TC_UPLINK_OUT, XDP, Datapath
from tests.packet.plans import TARGET_PORT, VIPS, service
from tests.packet.rows import ONE_SNAT_PORT, SNAT_PORT

pytestmark = pytest.mark.parametrize("family", [4], ids=["ipv4"], indirect=True)

VIP = VIPS[VipKind.LOAD_BALANCER]
CLIENT = (p.CLIENT, p.CLIENT_PORT)
FAR = ("10.0.3.77", p.CLIENT_PORT)  # a client behind the narrow route
NARROW = (p.BACKEND_NARROW, TARGET_PORT)
REMOTE = (p.BACKEND_REMOTE, TARGET_PORT)
SNATED = (p.NODE1, SNAT_PORT)
ROOM = (p.TOLD_MTU - 20) // 8 * 8  # of a piece behind its IP header
LONG = bytes(range(256)) * 11 + b"odd"  # in three pieces; a test run takes no more than a page
ID = 4711
BUILD: dict[Protocol, Callable[..., bytes]] = {
    Protocol.TCP: p.tcp,
    Protocol.UDP: p.udp,
    Protocol.SCTP: p.sctp,
}

each_protocol = pytest.mark.parametrize("protocol", BUILD)


def without_df(frame: bytes) -> bytes:
    packet = Ether(frame)
    packet[IP].flags = 0
    del packet[IP].chksum
    return bytes(packet)


def whole(frame: bytes) -> bytes:
    """Return the frame as far as its IP header says, with that header's checksum made from scratch."""
    packet = Ether(frame[: 14 + Ether(frame)[IP].len])
    del packet[IP].chksum
    return bytes(packet)


def cut(
    datapath: Datapath,
    frame: bytes,
    program: str = TC_UPLINK_IN,
    *,
    from_host: bool = False,
    count: int = 0,
) -> list[bytes]:
    """Give a packet that is too big; return what enters anew, or leaves anew, in order; count: how many."""
    count = count or len(pieces(frame))
    with datapath.namespace.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    with wire:
        wire.bind(("up0", 3))
        wire.settimeout(5)
        result = datapath.run(program, frame, from_host=from_host)
        assert (result.verdict, result.reason) == (SEND, "FRAGMENTED")
        copies: list[bytes] = []
        while len(copies) < count - 1:
            copy, (_, _, kind, *_) = wire.recvfrom(8192)
            if (kind == socket.PACKET_OUTGOING) == from_host and copy[26:34] == frame[26:34]:  # addresses
                copies.append(copy)
        return [*copies, result.packet]


def goes_on(
    datapath: Datapath,
    entering: list[bytes],
    wanted: list[bytes],
    program: str = TC_UPLINK_IN,
    *,
    from_host: bool = False,
) -> None:
    """Give what enters anew to the program: it must become the wanted pieces."""
    assert len(entering) == len(wanted)
    for piece, want in zip(entering, wanted, strict=True):
        result = datapath.run(program, piece, from_host=from_host)
        assert result.verdict == SEND, result
        p.assert_same(result.packet, want)


def pieces(frame: bytes, *, at: int = 0, more: bool = False, room: int = ROOM) -> list[bytes]:
    """Return the pieces that a frame's packet must be in on the narrow way."""
    size = len(frame) - 34
    cuts = range(room, size, room)
    found = []
    for start, end in itertools.pairwise((0, *cuts, size)):
        packet = Ether(frame[:34] + frame[34 + start : 34 + end])
        packet[IP].flags = "MF" if more or end < size else 0
        packet[IP].frag = (at + start) // 8
        packet[IP].len = 20 + end - start
        del packet[IP].chksum
        found.append(bytes(packet))
    return found


@pytest.fixture
def narrow(datapath: Datapath, protocol: Protocol) -> Datapath:
    """A backend behind a route of a small MTU, and one SNAT port."""
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(p.BACKEND_NARROW, protocol=protocol))
    return datapath


@each_protocol
def test_fragmented_on_the_way_to_another_node(narrow: Datapath, protocol: Protocol) -> None:
    """The first packet of a flow, and a later one; the number and the rest of the header stay."""
    frame = without_df(BUILD[protocol](p.FROM_CLIENT, CLIENT, VIP, payload=LONG))
    wanted = pieces(p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=NARROW, ttl=63))
    assert len(wanted) == 3
    for _ in range(2):
        entering = cut(narrow, frame)
        assert [whole(piece) for piece in entering] == pieces(frame)
        goes_on(narrow, entering, wanted)
        assert len(narrow.read("fragments")[0]) == 0
    assert len(narrow.read("flows")[0]) == 2


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
@pytest.mark.parametrize("length", [p.NARROW_MTU, p.NARROW_MTU + 1, p.NARROW_MTU + 8, 20 + 2 * ROOM])
def test_fragmented_at_the_edges(narrow: Datapath, protocol: Protocol, length: int) -> None:
    """What fits is whole; the last piece may be of a few bytes, or as long as the others."""
    header = 20 if protocol is Protocol.TCP else 8
    frame = without_df(BUILD[protocol](p.FROM_CLIENT, CLIENT, VIP, payload=bytes(length - 20 - header)))
    want = p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=NARROW, ttl=63)
    if length <= p.NARROW_MTU:
        p.assert_same(narrow.run(TC_UPLINK_IN, frame).packet, want)
    else:
        goes_on(narrow, cut(narrow, frame), pieces(want))


@each_protocol
def test_fragmented_on_the_way_back(datapath: Datapath, protocol: Protocol) -> None:
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    build = BUILD[protocol]
    assert datapath.run(TC_UPLINK_IN, build(p.FROM_NODE2, FAR, VIP)).reason == "NEW_REMOTE"
    reply = without_df(build(p.FROM_NODE2, REMOTE, SNATED, payload=LONG))
    wanted = pieces(p.rebuilt(reply, link=p.TO_NODE2, src=VIP, dst=FAR, ttl=63))
    goes_on(datapath, cut(datapath, reply), wanted)


@pytest.mark.parametrize("protocol", [Protocol.UDP])
def test_fragmented_what_comes_in_pieces(narrow: Datapath, protocol: Protocol) -> None:
    """Each piece is cut by itself. The last one often enters before the pieces of the first do."""
    frame = without_df(p.udp(p.FROM_CLIENT, CLIENT, VIP, payload=LONG))
    first, last = p.pieces(frame, 1416, identity=ID)
    want = p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=NARROW, ttl=63)
    entering = [*cut(narrow, first), *cut(narrow, last)]
    assert len(entering) == 4
    wanted = pieces(want[: 34 + 1416], more=True) + pieces(want[:34] + want[34 + 1416 :], at=1416)
    goes_on(narrow, entering, wanted)


@pytest.mark.parametrize("protocol", [Protocol.UDP])
def test_fragmented_without_a_checksum(narrow: Datapath, protocol: Protocol) -> None:
    frame = without_df(p.udp(p.FROM_CLIENT, CLIENT, VIP, payload=LONG, checksum=False))
    wanted = pieces(p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=NARROW, ttl=63))
    goes_on(narrow, cut(narrow, frame), wanted)


@each_protocol
def test_fragmented_of_a_host_process(narrow: Datapath, protocol: Protocol) -> None:
    """Where they leave, the pieces pass the hook again before it is done with the packet."""
    frame = without_df(BUILD[protocol](p.TO_NODE2, (p.NODE1, 50_000), VIP, payload=LONG[:1460]))
    wanted = pieces(p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=NARROW))
    entering = cut(narrow, frame, TC_UPLINK_OUT, from_host=True)
    goes_on(narrow, entering, wanted, TC_UPLINK_OUT, from_host=True)


@pytest.mark.parametrize("protocol", [Protocol.UDP])
def test_fragmented_not_by_xdp(narrow: Datapath, protocol: Protocol) -> None:
    frame = without_df(p.udp(p.FROM_CLIENT, CLIENT, VIP, payload=LONG))
    result = narrow.run(XDP, frame)
    assert (result.verdict, result.reason) == (PASS, "TO_TC")
    p.assert_same(result.packet, frame)
    wanted = pieces(p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=NARROW, ttl=63))
    for piece, want in zip(cut(narrow, frame), wanted, strict=True):
        result = narrow.run(XDP, piece)
        assert result.verdict == SEND
        p.assert_same(result.packet, want)


def of_later_pieces(inside: bytes) -> bytes:
    """Return the options of later pieces: those with RFC 791's copied flag, in their places."""
    left, at = bytearray(inside), 0
    while at < len(left) and left[at]:
        length = 1 if left[at] == 1 else left[at + 1]
        if not left[at] & 0x80:
            left[at : at + length] = b"\x01" * length
        at += length
    return bytes(left)


@pytest.mark.parametrize("extra", options.TRANSLATED[4].values(), ids=options.TRANSLATED[4])
@pytest.mark.parametrize("protocol", [Protocol.UDP])
def test_fragmented_with_options(narrow: Datapath, protocol: Protocol, extra: Options) -> None:
    """All headers are of one length, as Linux makes them. What follows the first piece is cut on entering."""
    plain = without_df(p.udp(p.FROM_CLIENT, CLIENT, VIP, payload=LONG))
    room = (p.TOLD_MTU - 20 - extra.size) // 8 * 8
    first, *later = pieces(p.rebuilt(plain, link=p.TO_NODE2, src=SNATED, dst=NARROW, ttl=63), room=room)
    rest = Options(of_later_pieces(extra.inside))
    begin, behind = cut(narrow, options.into(plain, extra), count=2)
    goes_on(narrow, [begin], [options.into(first, extra)])
    entering = cut(narrow, behind, count=len(later))
    goes_on(narrow, entering, [options.into(piece, rest) for piece in later])


@pytest.mark.parametrize("protocol", [Protocol.UDP])
def test_fragmented_not_what_the_kernel_cannot_take_apart(narrow: Datapath, protocol: Protocol) -> None:
    """A packet that stands for several, but of which nobody says which (a test run cannot)."""
    frame = without_df(p.udp(p.FROM_CLIENT, CLIENT, VIP, payload=LONG))
    result = narrow.run(TC_UPLINK_IN, frame, gso_size=1450)
    assert (result.verdict, result.reason) == (SEND, "TOO_BIG")


@pytest.mark.parametrize("protocol", [Protocol.UDP])
def test_fragmented_pieces_whose_way_ends_here(narrow: Datapath, protocol: Protocol) -> None:
    """An error tells of the first piece alone."""
    frame = without_df(p.udp(p.FROM_CLIENT, CLIENT, VIP, payload=LONG, ttl=1))
    first, later, _ = cut(narrow, frame)
    result = narrow.run(TC_UPLINK_IN, first)
    assert (result.verdict, result.reason) == (SEND, "TTL_EXPIRED")
    p.assert_same(result.packet, p.time_exceeded_for(pieces(frame)[0], p.NODE1))
    assert narrow.run(TC_UPLINK_IN, later).verdict == DROP


@pytest.mark.parametrize("protocol", [Protocol.UDP])
def test_fragmented_an_error_about_a_piece_reaches_the_client(narrow: Datapath, protocol: Protocol) -> None:
    """A router behind the node quotes the first piece."""
    frame = without_df(p.udp(p.FROM_CLIENT, CLIENT, VIP, payload=LONG))
    first, *_ = cut(narrow, frame)
    sent = narrow.run(TC_UPLINK_IN, first).packet
    error = p.time_exceeded_for(sent, p.NODE2)
    result = narrow.run(TC_UPLINK_IN, error)
    assert (result.verdict, result.reason) == (SEND, "ICMP_ERROR")
    quoted = Ether(result.packet)[IP].payload.payload
    assert (quoted.src, quoted.dst, quoted.sport, quoted.dport) == (*CLIENT[:1], VIP[0], CLIENT[1], VIP[1])
