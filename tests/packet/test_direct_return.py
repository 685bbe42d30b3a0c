# SPDX-License-Identifier: Apache-2.0
"""Direct return: what is encapsulated, byte for byte, and what is taken out again, or refused."""

from __future__ import annotations

import contextlib
import struct

import pytest
from scapy.layers.l2 import Ether

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet import wire
from tests.packet.encapsulated import (
    CLIENT,
    GUE_PORT,
    LOCAL,
    VIP,
    encapsulated,
    handed,
    source_port,
)
from tests.packet.harness import (
    DROP,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
)
from tests.packet.plans import BUILD, TARGET_PORT, VIPS, service
from tests.packet.test_unsegmented import generic_xdp, send, unfinished

OVERHEAD = {4: 40, 6: 72}
"""Bytes: IP header, UDP header, GUE with its private data."""

pytestmark = pytest.mark.usefixtures("direct")
each_program = pytest.mark.parametrize("program", OUTSIDE_INGRESS)


def remote_alone(datapath: Datapath, protocol: Protocol = Protocol.TCP) -> None:
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol, direct=True))


@each_program
@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("kind", list(VipKind))
def test_direct_out_as_the_client_sent_it(
    datapath: Datapath, program: str, protocol: Protocol, kind: VipKind
) -> None:
    """First and later packets; nothing but the TTL has changed inside."""
    remote_alone(datapath, protocol)
    frame = BUILD[protocol](p.FROM_CLIENT, CLIENT, VIPS[kind])
    for reason in ("NEW_DIRECT", "FLOW_HIT"):
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason) == (SEND, reason)
        p.assert_same(result.packet, encapsulated(p.rebuilt(frame, ttl=63)))


@each_program
@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("vip", [VIP, (p.NODE2, VIPS[VipKind.NODE_PORT][1])], ids=["balancer", "node port"])
def test_direct_in_and_the_answer_is_the_vip_s(
    datapath: Datapath, program: str, protocol: Protocol, vip: tuple[str, int]
) -> None:
    """It is translated like one that has come here by itself, also to the NodePort of the sending node."""
    datapath.apply(service(p.BACKEND_LOCAL, protocol=protocol, direct=True))
    frame = BUILD[protocol](p.FROM_NODE2, CLIENT, vip)
    for reason in ("NEW_LOCAL", "FLOW_HIT"):
        result = datapath.run(program, handed(frame))
        assert (result.verdict, result.reason) == (PASS, reason)
        p.assert_same(result.packet, p.rebuilt(frame, dst=LOCAL))
    answer = BUILD[protocol](p.TO_CLIENT, LOCAL, p.seen(CLIENT, protocol))
    result = datapath.run(TC_UPLINK_OUT, answer)
    assert (result.verdict, result.reason) == (PASS, "REPLY")
    p.assert_same(result.packet, p.rebuilt(answer, src=vip))


@each_program
def test_direct_in_goes_to_the_backend_that_the_sender_has_chosen(datapath: Datapath, program: str) -> None:
    """Not to the one that this node would choose, and also to one that it has not heard of."""
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_LOCAL_2, direct=True))
    for number, host in enumerate((p.BACKEND_LOCAL, p.BACKEND_LOCAL_2, "10.0.1.99")):
        frame = p.tcp(p.FROM_NODE2, (p.CLIENT, p.CLIENT_PORT + number), VIP)
        result = datapath.run(program, handed(frame, (host, TARGET_PORT)))
        assert (result.verdict, result.reason) == (PASS, "NEW_LOCAL")
        p.assert_same(result.packet, p.rebuilt(frame, dst=(host, TARGET_PORT)))


@each_program
def test_direct_in_refuses_strangers_and_what_is_no_vip(datapath: Datapath, program: str) -> None:
    """Only a node of the cluster may send, only for a VIP, and only as nodes do it."""
    frame = p.tcp(p.FROM_NODE2, CLIENT, VIP)
    foreign = p.tcp(p.FROM_NODE2, CLIENT, (p.NOT_A_VIP, 80))
    good = handed(frame)
    at = 14 + {4: 28, 6: 48}[p.version()]
    rows = {
        "a client": (encapsulated(frame, link=p.FROM_CLIENT, nodes=(p.CLIENT, p.NODE1)), "DIRECT_STRANGER"),
        "no VIP": (handed(foreign), "DIRECT_REFUSED"),
        "a ping": (handed(p.echo(p.FROM_NODE2, p.CLIENT, VIP[0]), sport=50_000), "DIRECT_REFUSED"),
        "the kind": (good[: at + 4] + b"\2" + good[at + 5 :], "DIRECT_REFUSED"),
        "the version": (good[:at] + bytes([0x40 | good[at]]) + good[at + 1 :], "DIRECT_REFUSED"),
        "inside": (good[: at + 1] + b"\x11" + good[at + 2 :], "DIRECT_REFUSED"),
        "flags": (good[: at + 2] + b"\0\1" + good[at + 4 :], "DIRECT_REFUSED"),
    }
    for what, (bad, reason) in rows.items():
        result = datapath.run(program, bad)
        assert (result.verdict, result.reason) == (DROP, reason), what


@each_program
def test_direct_in_without_the_option_is_nobody_s_business(datapath: Datapath, program: str) -> None:
    """A datagram to the port goes on to the node's stack as it came; nothing is dropped."""
    frame = handed(p.tcp(p.FROM_NODE2, CLIENT, VIP))
    datapath.set_up_node()
    result = datapath.run(program, frame)
    assert (result.verdict, result.reason, result.packet) == (PASS, "NOT_VIP", frame)


@each_program
def test_direct_out_falls_back_to_snat(datapath: Datapath, program: str) -> None:
    """Where nobody knows the node's address, without a port, and for Services that do not go direct."""
    remote_alone(datapath)
    hosts = datapath.read("hosts")
    datapath.delete("hosts", hosts[0])
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, CLIENT, VIP)).reason == "NEW_REMOTE"
    datapath.update("hosts", *hosts)
    datapath.set_up_node()
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, (p.CLIENT, 41_000), VIP)).reason == "NEW_REMOTE"
    datapath.set_up_node(direct_port=GUE_PORT)
    datapath.apply(service(p.BACKEND_REMOTE))
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, (p.CLIENT, 42_000), VIP)).reason == "NEW_REMOTE"


@each_program
def test_direct_out_too_big_is_told_what_fits(datapath: Datapath, program: str) -> None:
    """XDP leaves it to tc, which tells the MTU of the uplink less the encapsulation."""
    remote_alone(datapath)
    room = 1500 - OVERHEAD[p.version()]
    headers = {4: 40, 6: 60}[p.version()]
    datapath.run(program, p.tcp(p.FROM_CLIENT, CLIENT, VIP))
    fits = p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A", bytes(room - headers))
    result = datapath.run(program, fits)
    p.assert_same(result.packet, encapsulated(p.rebuilt(fits, ttl=63)))
    result = datapath.run(program, big := p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A", bytes(room - headers + 1)))
    if program == XDP:
        assert (result.verdict, result.reason, result.packet) == (PASS, "TO_TC", big)
    else:
        assert (result.verdict, result.reason) == (SEND, "TOO_BIG")
        p.assert_same(result.packet, p.icmp_error_for(big, p.NODE1, "too big", room))


def a_hop_on(frame: bytes) -> bytes:
    """Return the frame's packet, of which only one piece may be there, with a TTL that is lower by one."""
    link, head = Ether(frame), p.l3(frame)
    setattr(head, "hlim" if p.version() == 6 else "ttl", 63)
    if p.version() == 4:
        del head.chksum
    return bytes(p.ether(link.src, link.dst) / head)


@each_program
def test_direct_fragments_go_the_way_of_the_first(datapath: Datapath, program: str) -> None:
    """Out, each piece in an encapsulation of its own, and in at the backend's node."""
    remote_alone(datapath, Protocol.UDP)
    sport = source_port(CLIENT, VIP, Protocol.UDP)
    whole = p.udp(p.FROM_CLIENT, CLIENT, VIP, bytes(range(256)) * 4)
    for piece, reason in zip(p.pieces(whole, 512), ("NEW_DIRECT", "FLOW_HIT"), strict=True):
        result = datapath.run(program, piece)
        assert (result.verdict, result.reason) == (SEND, reason)
        p.assert_same(result.packet, encapsulated(a_hop_on(piece), sport=sport))
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP, direct=True))
    whole = p.udp(p.FROM_NODE2, (p.CLIENT, 41_000), VIP, bytes(range(256)) * 4)
    wanted = p.pieces(p.rebuilt(whole, dst=LOCAL), 512)
    for piece, want, reason in zip(p.pieces(whole, 512), wanted, ("NEW_LOCAL", "FLOW_HIT"), strict=True):
        result = datapath.run(program, handed(piece, sport=50_000))
        assert (result.verdict, result.reason) == (PASS, reason)
        p.assert_same(result.packet, want)


@each_program
def test_direct_in_goes_past_the_stack_with_the_option(datapath: Datapath, program: str) -> None:
    """By tc, as all else with `redirect`: XDP leaves the packet to it as it came."""
    datapath.set_up_node(direct_port=GUE_PORT, redirect=True)
    datapath.apply(service(p.BACKEND_LOCAL, direct=True))
    frame = p.tcp(p.FROM_NODE2, CLIENT, VIP)
    came = handed(frame)
    for reason in ("NEW_LOCAL", "FLOW_HIT"):
        result = datapath.run(program, came)
        if program == XDP:
            assert (result.verdict, result.reason, result.packet) == (PASS, "TO_TC", came)
        else:
            assert (result.verdict, result.reason) == (SEND, reason)
            p.assert_same(result.packet, p.rebuilt(frame, dst=LOCAL, link=p.TO_POD, ttl=63))


def test_direct_out_awaiting_segmentation_goes_whole(datapath: Datapath) -> None:
    """A packet that its device has yet to cut into segments is encapsulated once, for all of them."""
    remote_alone(datapath)
    assert datapath.run(TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, VIP)).reason == "NEW_DIRECT"
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A", bytes(range(250)) * 40)
    with datapath.namespace.entered():
        end = wire.peer("up0")
    with generic_xdp(datapath), contextlib.closing(end):
        send(datapath, unfinished(frame), 1200)
        end.expect(encapsulated(a_hop_on(unfinished(frame))))


@each_program
def test_direct_icmp_errors_about_answers_reach_the_backend_s_node(datapath: Datapath, program: str) -> None:
    """A client's error about what NODE2 has sent it as the VIP: it goes there as it came."""
    remote_alone(datapath)
    datapath.run(program, p.tcp(p.FROM_CLIENT, CLIENT, VIP))
    answer = p.tcp(p.TO_CLIENT, VIP, CLIENT, "A")
    error = p.icmp_error(p.FROM_CLIENT, p.ip(p.CLIENT, VIP[0]), "too big", p.quote(answer), 1300)
    result = datapath.run(program, error)
    assert (result.verdict, result.reason) == (SEND, "ICMP_ERROR")
    at = 14 + {4: 20, 6: 40}[p.version()]
    (sport,) = struct.unpack_from("!H", result.packet, at)
    assert sport >= 0xC000
    inner = p.l3(error)
    setattr(inner, "hlim" if p.version() == 6 else "ttl", 63)
    if p.version() == 4:
        del inner.chksum
    p.assert_same(result.packet, encapsulated(bytes(p.FROM_CLIENT / inner), sport=sport))


@each_program
def test_direct_icmp_errors_are_translated_where_the_backend_is(datapath: Datapath, program: str) -> None:
    """And one about a connection that this node does not have is refused."""
    datapath.apply(service(p.BACKEND_LOCAL, direct=True))
    datapath.run(program, handed(p.tcp(p.FROM_NODE2, CLIENT, VIP)))
    answer = p.tcp(p.TO_CLIENT, VIP, CLIENT, "A")
    other = p.tcp(p.TO_CLIENT, VIP, (p.CLIENT, 41_000), "A")
    for quoted, verdict, reason in ((answer, PASS, "ICMP_ERROR"), (other, DROP, "DIRECT_REFUSED")):
        error = p.icmp_error(p.FROM_NODE2, p.ip(p.CLIENT, VIP[0]), "too big", p.quote(quoted), 1300)
        result = datapath.run(program, handed(error, sport=50_000))
        assert (result.verdict, result.reason) == (verdict, reason)
    at_pod = p.tcp(p.TO_CLIENT, LOCAL, p.seen(CLIENT), "A")
    error = p.icmp_error(p.FROM_NODE2, p.ip(p.CLIENT, VIP[0]), "too big", p.quote(answer), 1300)
    want = p.icmp_error(p.FROM_NODE2, p.ip(p.CLIENT, LOCAL[0]), "too big", p.quote(at_pod), 1300)
    p.assert_same(datapath.run(program, handed(error, sport=50_000)).packet, want)
