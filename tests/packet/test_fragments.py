# SPDX-License-Identifier: Apache-2.0
"""Datagrams in pieces: the later ones have no ports, and go where the first went.

Each piece is compared with the same piece of the datagram as it must arrive, whose checksum is made from
scratch over all of it.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
from scapy.layers.inet import IP
from scapy.layers.l2 import Ether

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path, each_path
from tests.packet.harness import (
    DROP,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TAKEN,
    TC_POD_IN,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
    Result,
)
from tests.packet.plans import PORT, TARGET_PORT, VIPS, retargeted, service
from tests.packet.rows import ONE_SNAT_PORT, POD_IN, UPLINK_IN, Row, dropped, play, sent, too_big, untouched

KIND = VipKind.LOAD_BALANCER
VIP = VIPS[KIND]
LONG = bytes(range(256)) * 4
CUTS = (512, 1000)  # bytes behind the IP header
BUILD: dict[Protocol, Callable[..., bytes]] = {Protocol.TCP: p.tcp, Protocol.UDP: p.udp}

each_protocol = pytest.mark.parametrize("protocol", BUILD)
both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)


def plays(datapath: Datapath, program: str, frame: bytes, want: bytes, sends: bool, *cuts: int) -> list[str]:
    """Run the pieces of a frame, which must become those of want; return the reasons counted."""
    reasons = []
    for piece, wanted in zip(p.pieces(frame, *cuts), p.pieces(want, *cuts), strict=True):
        result = datapath.run(program, piece)
        assert result.verdict == (SEND if sends else PASS), result
        p.assert_same(result.packet, wanted)
        reasons.append(result.reason)
    return reasons


def assert_held(program: str, piece: bytes, result: Result) -> None:
    """A later piece for a VIP that has come before its first: tc holds it back, to which XDP leaves it."""
    if program == XDP:
        assert (result.verdict, result.reason) == (PASS, "TO_TC")
        p.assert_same(result.packet, piece)
    else:
        assert (result.verdict, result.reason) == (TAKEN, "FRAGMENT_HELD")


def ready(datapath: Datapath, path: Path, protocol: Protocol) -> Conversation:
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(*path.backends(5, 1), protocol=protocol))
    return Conversation(datapath, path, protocol=protocol, kind=KIND)


def requests(conversation: Conversation, path: Path) -> tuple[bytes, bytes]:
    """Return a long request, and what it must become; the backend and the port are known."""
    frame = conversation.request("A", payload=LONG)
    way = {"link": p.TO_NODE2, "ttl": 63} if path.forwarded else {}
    return frame, p.rebuilt(frame, src=conversation.seen, dst=(conversation.backend, TARGET_PORT), **way)


def replies(conversation: Conversation, path: Path) -> tuple[bytes, bytes]:
    """Return a long reply, and what it must become."""
    frame = conversation.reply("A", payload=LONG)
    way = {"link": p.TO_CLIENT, "ttl": 63} if path.forwarded else {}
    return frame, p.rebuilt(frame, src=VIP, dst=(path.client, p.CLIENT_PORT), **way)


@each_path
@each_protocol
def test_fragments_both_ways(datapath: Datapath, path: Path, protocol: Protocol) -> None:
    conversation = ready(datapath, path, protocol)
    conversation.send()
    request, wanted = requests(conversation, path)
    reasons = plays(datapath, path.ingress, request, wanted, path.forwarded, *CUTS)
    assert reasons == ["FLOW_HIT"] * 3
    reply, wanted = replies(conversation, path)
    assert plays(datapath, path.egress, reply, wanted, path.forwarded, *CUTS) == ["REPLY"] * 3


@each_path
@each_protocol
def test_fragments_begin_a_flow(datapath: Datapath, path: Path, protocol: Protocol) -> None:
    conversation = ready(datapath, path, protocol)
    conversation.send()
    request, wanted = requests(conversation, path)
    datapath.reset()
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    first, *later = plays(datapath, path.ingress, request, wanted, path.forwarded, *CUTS)
    assert first.startswith("NEW_")
    assert later == ["FLOW_HIT"] * 2


@each_path
def test_fragments_whose_first_is_unknown(datapath: Datapath, path: Path) -> None:
    """To a VIP they wait for it, whoever else they might belong to; others are left alone."""
    conversation = ready(datapath, path, Protocol.UDP)
    conversation.send()
    _, *later = p.pieces(requests(conversation, path)[0], *CUTS)
    for piece in later:
        assert_held(path.ingress, piece, datapath.run(path.ingress, piece))
    _, *later = p.pieces(replies(conversation, path)[0], *CUTS)
    for piece in later:
        result = datapath.run(path.egress, piece)
        if path.egress == TC_UPLINK_IN:  # at the node's own address it may be for a node port
            assert_held(path.egress, piece, result)
            continue
        assert (result.verdict, result.reason) == (PASS, "FRAGMENT")
        p.assert_same(result.packet, piece)


@each_path
def test_fragments_of_another_client_datagram_or_protocol_are_told_apart(
    datapath: Datapath, path: Path
) -> None:
    conversation = ready(datapath, path, Protocol.UDP)
    conversation.send()
    request, wanted = requests(conversation, path)
    plays(datapath, path.ingress, request, wanted, path.forwarded, *CUTS)
    other_client = p.rebuilt(request, src=(p.CLIENT_2, p.CLIENT_PORT))
    other_protocol = p.tcp(path.link, (path.client, p.CLIENT_PORT), VIP, "A", LONG)
    for strays in (
        p.pieces(request, *CUTS, identity=78)[1:],
        p.pieces(other_client, *CUTS)[1:],
        p.pieces(other_protocol, *CUTS)[1:],
    ):
        for piece in strays:
            assert_held(path.ingress, piece, datapath.run(path.ingress, piece))


@both_uplinks
def test_fragments_of_two_clients_with_one_identification(datapath: Datapath, uplink_program: str) -> None:
    """Each datagram keeps its own ports, though their pieces mix."""
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    frames = [
        p.udp(p.FROM_CLIENT, (client, port), VIP, LONG)
        for client, port in ((p.CLIENT, 1000), (p.CLIENT_2, 2000))
    ]
    wanted = [p.rebuilt(frame, dst=(p.BACKEND_LOCAL, TARGET_PORT)) for frame in frames]
    mixed = zip(*(p.pieces(frame, *CUTS) for frame in frames), strict=True)
    mixed_wanted = zip(*(p.pieces(frame, *CUTS) for frame in wanted), strict=True)
    for pair, pair_wanted in zip(mixed, mixed_wanted, strict=True):
        for piece, want in zip(pair, pair_wanted, strict=True):
            p.assert_same(datapath.run(uplink_program, piece).packet, want)


@both_uplinks
def test_fragments_not_for_a_vip_are_left_alone(datapath: Datapath, uplink_program: str) -> None:
    """The first and the later ones; also to a node's address, whatever node ports it has."""
    steps = []
    for address, reason in ((p.NODE1, "NOT_VIP"), (p.NOT_A_VIP, "NOT_VIP"), (p.BACKEND_LOCAL, "FRAGMENT")):
        first, *later = p.pieces(p.udp(p.FROM_CLIENT, (p.CLIENT, 1), (address, PORT), LONG), *CUTS)
        steps += [untouched(UPLINK_IN, first, "NOT_VIP")]
        seen = "FRAGMENT" if uplink_program == XDP else reason  # tc notes what the node's address is sent
        steps += [untouched(UPLINK_IN, piece, seen) for piece in later]
    plan = service(p.BACKEND_LOCAL, protocol=Protocol.UDP)
    play(datapath, Row("not ours", (plan,), tuple(steps)), uplink_program)


@both_uplinks
@pytest.mark.parametrize("side", [UPLINK_IN, POD_IN])
@pytest.mark.parametrize("port", [PORT, PORT + 1])
def test_fragments_of_what_is_refused(datapath: Datapath, uplink_program: str, side: str, port: int) -> None:
    """About a later one there is no error (RFC 1122, section 3.2.2)."""
    link, client = (p.FROM_POD, p.POD_CLIENT) if side == POD_IN else (p.FROM_CLIENT, p.CLIENT)
    first, *later = p.pieces(p.udp(link, (client, 1), (p.CLUSTER_VIP, port), LONG), *CUTS)
    reason = "REJECT_NO_ENDPOINT" if port == PORT else "REJECT_UNKNOWN_PORT"
    steps = (
        sent(side, first, p.port_unreachable_for(first), reason),
        *(dropped(side, piece, "STRAY_FRAGMENT") for piece in later),
    )
    play(datapath, Row("refused", (service(protocol=Protocol.UDP),), steps), uplink_program)


@each_path
@each_protocol
@pytest.mark.parametrize("family", [6], indirect=True, ids=["ipv6"])
def test_fragments_atomic(datapath: Datapath, path: Path, protocol: Protocol) -> None:
    """A fragment header on a packet that is whole: handled as the whole packet that it is."""
    conversation = ready(datapath, path, protocol)
    conversation.send()
    for make, program, reason in (
        (requests, path.ingress, "FLOW_HIT"),
        (replies, path.egress, "REPLY"),
    ):
        frame, wanted = make(conversation, path)
        assert plays(datapath, program, frame, wanted, path.forwarded) == [reason]
    assert len(datapath.read("fragments")[0]) == 0


@both_uplinks
@each_protocol
@pytest.mark.parametrize("family", [6], indirect=True, ids=["ipv6"])
def test_fragments_atomic_are_refused_like_others(
    datapath: Datapath, uplink_program: str, protocol: Protocol
) -> None:
    (frame,) = p.pieces(BUILD[protocol](p.FROM_CLIENT, (p.CLIENT, 1), VIP, payload=LONG))
    if protocol is Protocol.UDP:
        answer = p.port_unreachable_for(frame)
    else:
        answer = p.reset_for(p.tcp(p.FROM_CLIENT, (p.CLIENT, 1), VIP, payload=LONG))
    step = sent(UPLINK_IN, frame, answer, "REJECT_NO_ENDPOINT")
    play(datapath, Row("none", (service(protocol=protocol),), (step,)), uplink_program)


def with_df(frame: bytes) -> bytes:
    """Return the frame such that no router may cut it: in IPv6, as it is."""
    packet = Ether(frame)
    if IP in packet:
        packet[IP].flags |= 2
        del packet[IP].chksum
    return bytes(packet)


@both_uplinks
def test_fragments_too_big_for_the_way_on(datapath: Datapath, uplink_program: str) -> None:
    """With DF, or in IPv6: the first tells its sender; the later ones, which find no flow, end."""
    frame = p.udp(p.FROM_CLIENT, (p.CLIENT, 1), VIP, LONG * 2)
    first, *later = map(with_df, p.pieces(frame, 1440))
    steps = (
        too_big(first, p.NARROW_MTU, uplink_program),
        *(
            untouched(UPLINK_IN, piece, "TO_TC")
            if uplink_program == XDP
            else dropped(UPLINK_IN, piece, "STRAY_FRAGMENT")
            for piece in later
        ),
    )
    play(datapath, Row("too big", (service(p.BACKEND_NARROW, protocol=Protocol.UDP),), steps), uplink_program)


@pytest.mark.parametrize("program", [*OUTSIDE_INGRESS, TC_POD_IN])
def test_fragments_of_sctp_go_on_where_their_ports_stay(datapath: Datapath, program: str) -> None:
    """With other ports the checksum would be another, and what it covers is not at hand: dropped, counted."""
    (path,) = (path for path in PATHS if path.ingress == program and "here" in path.name)
    frame = p.sctp(path.link, (path.client, p.CLIENT_PORT), VIP, "DATA", LONG)
    plan = service(p.BACKEND_LOCAL, protocol=Protocol.SCTP)
    datapath.apply(plan)
    first, *later = p.pieces(frame, *CUTS)
    result = datapath.run(program, first)
    assert (result.verdict, result.reason) == (DROP, "SCTP_FRAGMENT")
    for piece in later:
        assert_held(program, piece, datapath.run(program, piece))
    datapath.reset()
    datapath.apply(retargeted(plan, PORT))
    wanted = p.rebuilt(frame, dst=(p.BACKEND_LOCAL, PORT))
    assert plays(datapath, program, frame, wanted, False, *CUTS)[1:] == ["FLOW_HIT"] * 2


def test_fragments_of_a_host_process(datapath: Datapath) -> None:
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(p.BACKEND_REMOTE, protocol=Protocol.UDP))
    frame = p.udp(p.TO_NODE2, (p.NODE1, 50_000), VIP, LONG)
    seen = (p.NODE1, ONE_SNAT_PORT.first)
    wanted = p.rebuilt(frame, src=seen, dst=(p.BACKEND_REMOTE, TARGET_PORT))
    for piece, want in zip(p.pieces(frame, *CUTS), p.pieces(wanted, *CUTS), strict=True):
        result = datapath.run(TC_UPLINK_OUT, piece, from_host=True)
        assert result.verdict == SEND
        p.assert_same(result.packet, want)


@both_uplinks
def test_fragments_of_an_unknown_port_are_never_forwarded(datapath: Datapath, uplink_program: str) -> None:
    """The port went between the first piece and the others; the clusterIP is still the Service's."""
    tcp, udp = (service(p.BACKEND_LOCAL, protocol=protocol) for protocol in (Protocol.TCP, Protocol.UDP))
    first, *later = p.pieces(p.udp(p.FROM_CLIENT, (p.CLIENT, 1), (p.CLUSTER_VIP, PORT), LONG), *CUTS)
    datapath.apply(udp)
    assert datapath.run(uplink_program, first).reason == "NEW_LOCAL"
    datapath.apply(tcp)
    datapath.delete("flows", datapath.read("flows")[0])  # till then the VIP lingers, and all pieces go on
    for piece in later:
        result = datapath.run(uplink_program, piece)
        assert (result.verdict, result.reason) == (DROP, "STRAY_FRAGMENT")


@both_uplinks
def test_fragments_for_a_vip_that_lingers_go_where_the_first_goes(
    datapath: Datapath, uplink_program: str
) -> None:
    """A load balancer's address whose Service is gone: so all pieces pass as they came."""
    vip = VIPS[VipKind.LOAD_BALANCER]
    others = p.udp(p.FROM_CLIENT, (p.CLIENT, 2), vip, LONG)
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    assert datapath.run(uplink_program, p.udp(p.FROM_CLIENT, (p.CLIENT, 1), vip)).reason == "NEW_LOCAL"
    datapath.apply()
    for piece in p.pieces(others, *CUTS):
        result = datapath.run(uplink_program, piece)
        assert (result.verdict, result.packet) == (PASS, piece)
        assert result.reason in {"NOT_VIP", "FRAGMENT", "TO_TC"}, "no reason to drop it"
