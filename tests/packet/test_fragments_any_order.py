# SPDX-License-Identifier: Apache-2.0
"""Pieces of a datagram in any order: what comes before the first piece waits for it, and then enters anew.

What enters anew is read from the interface, where a raw socket sees it, and is given to the program again.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Callable, Iterator, Sequence

import pytest

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import source
from tests.packet.harness import PASS, SEND, TAKEN, TC_POD_IN, TC_UPLINK_IN, XDP, Datapath
from tests.packet.plans import PORT, TARGET_PORT, VIPS, service

LONG = bytes(range(256)) * 4
CUTS = (512, 1000)  # bytes behind the IP header
VIP = VIPS[VipKind.LOAD_BALANCER]
NODE_PORT = VIPS[VipKind.NODE_PORT]
ORDERS = [order for order in itertools.permutations(range(3)) if order[0] != 0]
BUILD: dict[Protocol, Callable[..., bytes]] = {Protocol.TCP: p.tcp, Protocol.UDP: p.udp}
CLIENTS = {
    TC_UPLINK_IN: (p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT)),
    TC_POD_IN: (p.FROM_POD, (p.POD_CLIENT, p.CLIENT_PORT)),
}

each_order = pytest.mark.parametrize("order", ORDERS, ids=lambda order: "".join(map(str, order)))
each_side = pytest.mark.parametrize("program", CLIENTS)


@contextlib.contextmanager
def entering(datapath: Datapath, program: str) -> Iterator[socket.socket]:
    """Give a socket that sees what enters by the program's interface."""
    name = "pod0" if program == TC_POD_IN else "up0"
    with datapath.namespace.entered():
        wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))  # ETH_P_ALL
    with wire:
        wire.bind((name, 3))
        wire.settimeout(2)
        yield wire


def seen(wire: socket.socket, count: int) -> list[bytes]:
    """Return the next frames that entered, in order; the kernel's own that leave are passed over."""
    frames: list[bytes] = []
    while len(frames) < count:
        frame, (_, _, kind, *_) = wire.recvfrom(4096)
        if kind != socket.PACKET_OUTGOING:
            frames.append(frame)
    return frames


def goes_through(
    datapath: Datapath, program: str, pieces: Sequence[bytes], wanted: Sequence[bytes], order: Sequence[int]
) -> None:
    """Give the pieces in that order: those before the first wait, and all of them then become the wanted."""
    early = list(itertools.takewhile(lambda number: number != 0, order))
    with entering(datapath, program) as wire:
        for number in early:
            result = datapath.run(program, pieces[number])
            assert (result.verdict, result.reason) == (TAKEN, "FRAGMENT_HELD")
        result = datapath.run(program, pieces[0])
        assert (result.verdict, result.reason) == (TAKEN, "FRAGMENT_RELEASED")
        again = seen(wire, 1 + len(early))
    for frame, number in zip(again, (0, *early), strict=True):
        p.assert_same(frame, pieces[number])
    assert len(datapath.read("pieces")[0]) == 0
    for number in (0, *early, *order[len(early) + 1 :]):
        p.assert_same(datapath.run(program, pieces[number]).packet, wanted[number])


@each_order
@each_side
@pytest.mark.parametrize("protocol", BUILD)
@pytest.mark.parametrize("vip", [VIP, NODE_PORT], ids=["vip", "node-port"])
def test_fragments_any_order_reach_the_backend(
    datapath: Datapath, program: str, protocol: Protocol, vip: tuple[str, int], order: tuple[int, ...]
) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    link, client = CLIENTS[program]
    frame = BUILD[protocol](link, client, vip, payload=LONG)
    wanted = p.rebuilt(frame, dst=(p.BACKEND_LOCAL, TARGET_PORT))
    goes_through(datapath, program, p.pieces(frame, *CUTS), p.pieces(wanted, *CUTS), order)


@each_order
def test_fragments_any_order_to_another_node_and_back(datapath: Datapath, order: tuple[int, ...]) -> None:
    """The reply comes to the node's own address, which is no VIP."""
    datapath.apply(service(p.BACKEND_REMOTE, protocol=Protocol.UDP))
    client = (p.CLIENT, p.CLIENT_PORT)
    frame = p.udp(p.FROM_CLIENT, client, VIP, LONG)
    seen_as = source(datapath.run(TC_UPLINK_IN, frame))
    backend = (p.BACKEND_REMOTE, TARGET_PORT)
    wanted = p.rebuilt(frame, link=p.TO_NODE2, src=seen_as, dst=backend, ttl=63)
    goes_through(datapath, TC_UPLINK_IN, p.pieces(frame, *CUTS), p.pieces(wanted, *CUTS), order)
    reply = p.udp(p.FROM_NODE2, backend, seen_as, LONG)
    wanted = p.rebuilt(reply, link=p.TO_CLIENT, src=VIP, dst=client, ttl=63)
    goes_through(datapath, TC_UPLINK_IN, p.pieces(reply, *CUTS), p.pieces(wanted, *CUTS), order)


@each_order
@each_side
def test_fragments_any_order_not_for_a_vip(datapath: Datapath, program: str, order: tuple[int, ...]) -> None:
    """To the node itself, where a node port might have been meant: they wait, and pass as they came."""
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    link, client = CLIENTS[program]
    pieces = p.pieces(p.udp(link, client, (p.NODE1, PORT), LONG), *CUTS)
    goes_through(datapath, program, pieces, pieces, order)


@each_side
@pytest.mark.parametrize("elsewhere", ["NODE2", "BACKEND_REMOTE", "BACKEND_UNROUTED"])
def test_fragments_any_order_to_others_never_wait(datapath: Datapath, program: str, elsewhere: str) -> None:
    """What the kernel sends on, or has no route for, can be for no node port."""
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    link, client = CLIENTS[program]
    for piece in reversed(p.pieces(p.udp(link, client, (getattr(p, elsewhere), PORT), LONG), *CUTS)):
        result = datapath.run(program, piece)
        assert result.verdict == PASS
        assert result.reason in ("FRAGMENT", "NOT_VIP")
        p.assert_same(result.packet, piece)


def test_fragments_any_order_of_a_ping_are_answered_one_by_one(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    for program, (link, client) in CLIENTS.items():
        frame = p.echo(link, client[0], VIP[0], LONG)
        answers = p.pieces(p.echo_reply_for(frame), *CUTS)
        for piece, answer in reversed(list(zip(p.pieces(frame, *CUTS), answers, strict=True))):
            for each in (program, XDP) if program == TC_UPLINK_IN else (program,):
                result = datapath.run(each, piece)
                assert (result.verdict, result.reason) == (SEND, "PING")
                p.assert_same(result.packet, answer)


def test_fragments_any_order_behind_xdp(datapath: Datapath) -> None:
    """XDP leaves to tc the first piece as well, if others wait for it there."""
    datapath.apply(service(p.BACKEND_REMOTE, protocol=Protocol.UDP))
    first, later = p.pieces(p.udp(*(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), VIP), LONG), 512)
    assert datapath.run(XDP, later).reason == "TO_TC"
    assert datapath.run(TC_UPLINK_IN, later).reason == "FRAGMENT_HELD"
    result = datapath.run(XDP, first)
    assert (result.verdict, result.reason) == (PASS, "TO_TC")
    p.assert_same(result.packet, first)
    assert datapath.run(TC_UPLINK_IN, first).reason == "FRAGMENT_RELEASED"
    assert [datapath.run(XDP, piece).reason for piece in (first, later)] == ["FLOW_HIT"] * 2


def test_fragments_any_order_wait_five_seconds(datapath: Datapath) -> None:
    """What waited longer is another datagram's, of the same number; so are the ports noted before."""
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    first, later, _ = p.pieces(p.udp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), VIP, LONG), *CUTS)
    datapath.run(TC_UPLINK_IN, later)
    _age(datapath, "pieces", "since_ns")
    with entering(datapath, TC_UPLINK_IN) as wire:
        datapath.run(TC_UPLINK_IN, first)
        p.assert_same(seen(wire, 1)[0], first)
        assert len(datapath.read("pieces")[0]) == 0
        assert datapath.run(TC_UPLINK_IN, later).reason == "FLOW_HIT"
        _age(datapath, "fragments", "seen_ns")
        assert datapath.run(TC_UPLINK_IN, later).reason == "FRAGMENT_HELD"
        wire.settimeout(0.1)
        with pytest.raises(TimeoutError):
            seen(wire, 1)


@each_side
def test_fragments_any_order_free_their_number_with_the_last_byte(datapath: Datapath, program: str) -> None:
    """A fast sender soon uses a number again, for a datagram with other ports."""
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    link, (address, port) = CLIENTS[program]
    for at, order in enumerate(ORDERS):
        frame = p.udp(link, (address, port + at), VIP, LONG)
        wanted = p.rebuilt(frame, dst=(p.BACKEND_LOCAL, TARGET_PORT))
        goes_through(datapath, program, p.pieces(frame, *CUTS), p.pieces(wanted, *CUTS), order)
        assert len(datapath.read("fragments")[0]) == 0


def _age(datapath: Datapath, name: str, field: str) -> None:
    keys, values = datapath.read(name)
    values[field] -= 5_000_000_000
    datapath.update(name, keys, values)


def test_fragments_any_order_are_bounded(datapath: Datapath) -> None:
    """48 of one datagram wait; more, or one that is too long, are dropped."""
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    frame = p.udp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), VIP, bytes(8 * 60))
    _, *later = p.pieces(frame, *range(8, 8 * 61, 8))
    reasons = [datapath.run(TC_UPLINK_IN, piece).reason for piece in later]
    assert reasons == ["FRAGMENT_HELD"] * 48 + ["STRAY_FRAGMENT"] * (len(later) - 48)
    _, long = p.pieces(p.udp(p.FROM_CLIENT, (p.CLIENT_2, 1), VIP, bytes(3000)), 512)
    assert datapath.run(TC_UPLINK_IN, long).reason == "STRAY_FRAGMENT"
