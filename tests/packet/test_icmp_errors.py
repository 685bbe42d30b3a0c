# SPDX-License-Identifier: Apache-2.0
"""ICMP errors about translated packets: whoever sent the packet is told about the packet that it sent.

An error quotes the head of a packet as it was where the error was made. Each is rebuilt here with the head as
its receiver knows it, and compared whole: the checksum in the quote, that of the quoted IP header, and ICMP's
own, which covers all of it. SCTP's alone stays as it is: it says nothing without the whole packet.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scapy.packet import Raw

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path, each_path
from tests.packet.harness import (
    DROP,
    HOOK_OF,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_POD_IN,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
)
from tests.packet.plans import BUILD, TARGET_PORT, VIPS, service
from tests.packet.rows import ONE_SNAT_PORT, SNAT_PORT

KIND = VipKind.LOAD_BALANCER
VIP = VIPS[KIND]
LENGTHS = {
    Protocol.TCP: (8, 16, 18, 20, 40),
    Protocol.UDP: (8, 9, 13, 32),
    Protocol.SCTP: (8, 12, 20),
}
"""How much of the packet behind its IP header is quoted; TCP's checksum is in bytes 16 and 17."""
ERRORS = {"port unreachable": 0, "host unreachable": 0, "time exceeded": 0, "too big": 1400}

each_protocol = pytest.mark.parametrize("protocol", list(Protocol))
each_error = pytest.mark.parametrize("error", ERRORS)


def talk(datapath: Datapath, path: Path, protocol: Protocol = Protocol.TCP) -> Conversation:
    """Return a conversation that both sides have taken part in."""
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(*path.backends(5, 1), protocol=protocol))
    conversation = Conversation(datapath, path, protocol=protocol, kind=KIND)
    conversation.send()
    conversation.answer()
    return conversation


def known_as(frame: bytes, there: bytes, length: int | None = None) -> bytes:
    """Return the quote of a frame, with SCTP's checksum from what was there."""
    known, got = p.quote(frame, length), p.quote(there, length)
    at = 20 if p.version() == 4 else 40
    sctp = p.protocol(frame) == Protocol.SCTP
    return known[: at + 8] + got[at + 8 : at + 12] + known[at + 12 :] if sctp else known


def about_request(
    talk: Conversation, path: Path, source: str, error: str, length: int, **fields: Any
) -> tuple[bytes, bytes]:
    """Return an error about a packet of the client as it comes in, and as it must go on to the client."""
    request = talk.request(payload=p.PAYLOAD, **fields)
    there = p.rebuilt(request, src=talk.seen, dst=(talk.backend, TARGET_PORT))
    mtu = ERRORS[error]
    link, ttl = (p.TO_CLIENT, 63) if path.forwarded else (path.answer_link, 64)
    shown = VIP[0] if source == talk.backend else source
    return (
        p.icmp_error(path.answer_link, p.ip(source, talk.seen[0]), error, p.quote(there, length), mtu),
        p.icmp_error(link, p.ip(shown, path.client, ttl=ttl), error, known_as(request, there, length), mtu),
    )


def about_reply(
    talk: Conversation, path: Path, source: str, error: str, length: int, **fields: Any
) -> tuple[bytes, bytes]:
    """Return an error about a packet of the backend as it comes in, and as it must go on to the backend."""
    reply = talk.reply(payload=p.PAYLOAD, **fields)
    there = p.rebuilt(reply, src=VIP, dst=(path.client, p.CLIENT_PORT))
    mtu = ERRORS[error]
    link, ttl = (p.TO_NODE2, 63) if path.forwarded else (path.link, 64)
    shown = p.NODE1 if path.forwarded else source
    return (
        p.icmp_error(path.link, p.ip(source, VIP[0]), error, p.quote(there, length), mtu),
        p.icmp_error(link, p.ip(shown, talk.backend, ttl=ttl), error, known_as(reply, there, length), mtu),
    )


def check(datapath: Datapath, path: Path, program: str, error: bytes, want: bytes) -> None:
    """Run one error; it must change no flow."""
    before = datapath.read("flows")
    result = datapath.run(program, error)
    assert (result.verdict, result.reason) == (SEND if path.forwarded else PASS, "ICMP_ERROR")
    p.assert_same(result.packet, want)
    assert flows_of(datapath.read("flows")) == flows_of(before)


def flows_of(entries: tuple[Any, Any]) -> set[bytes]:
    keys, values = entries
    return {key.tobytes() + value.tobytes() for key, value in zip(keys, values, strict=True)}


def check_untouched(datapath: Datapath, program: str, frame: bytes, reason: str) -> None:
    result = datapath.run(program, frame)
    assert (result.verdict, dict(result.reasons)) == (PASS, {(HOOK_OF[program], reason): 1})
    p.assert_same(result.packet, frame)


@each_path
@each_protocol
@each_error
def test_icmp_errors_about_the_clients_packets(
    datapath: Datapath, path: Path, protocol: Protocol, error: str
) -> None:
    """From a router on the way to the backend, or from the backend: that one the client knows as the VIP."""
    conversation = talk(datapath, path, protocol)
    for source in (p.ROUTER, conversation.backend):
        for length in LENGTHS[protocol]:
            arrives, want = about_request(conversation, path, source, error, length)
            check(datapath, path, path.egress, arrives, want)


@each_path
@each_protocol
@each_error
def test_icmp_errors_about_the_backends_packets(
    datapath: Datapath, path: Path, protocol: Protocol, error: str
) -> None:
    """From a router on the way to the client, or from the client. A backend whose client is the node gets
    them from the node, through which the way to such a router leads."""
    conversation = talk(datapath, path, protocol)
    for source in (p.ROUTER, path.client):
        for length in LENGTHS[protocol]:
            arrives, want = about_reply(conversation, path, source, error, length)
            check(datapath, path, path.ingress, arrives, want)


@each_path
def test_icmp_errors_about_udp_without_checksum(datapath: Datapath, path: Path) -> None:
    conversation = talk(datapath, path, Protocol.UDP)
    for length in (8, 20):
        arrives, want = about_request(conversation, path, p.ROUTER, "too big", length, checksum=False)
        check(datapath, path, path.egress, arrives, want)
        arrives, want = about_reply(conversation, path, p.ROUTER, "too big", length, checksum=False)
        check(datapath, path, path.ingress, arrives, want)


@pytest.mark.parametrize("about", ["request", "reply"])
@each_protocol
def test_icmp_errors_of_a_pod_that_reaches_itself(datapath: Datapath, protocol: Protocol, about: str) -> None:
    """As the client it sees the VIP, as the backend it sees the node: in either role its errors come back."""
    pod = p.BACKEND_LOCAL
    client, seen, own = (pod, p.CLIENT_PORT), (p.NODE1, SNAT_PORT), (pod, TARGET_PORT)
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(pod, protocol=protocol))
    request = BUILD[protocol](p.FROM_POD, client, VIP)
    assert datapath.run(TC_POD_IN, request).reason == "NEW_HAIRPIN"
    reply = BUILD[protocol](p.FROM_POD, own, seen)
    if about == "request":
        got, known = p.rebuilt(request, src=seen, dst=own), request
        sent_to, comes_from = p.NODE1, VIP[0]
    else:
        got, known = p.rebuilt(reply, src=VIP, dst=client), reply
        sent_to, comes_from = VIP[0], p.NODE1
    for length in LENGTHS[protocol]:
        arrives = p.icmp_error(p.FROM_POD, p.ip(pod, sent_to), "port unreachable", p.quote(got, length))
        header = p.ip(comes_from, pod, ttl=63)
        want = p.icmp_error(p.TO_POD, header, "port unreachable", known_as(known, got, length))
        result = datapath.run(TC_POD_IN, arrives)
        assert (result.verdict, result.reason) == (SEND, "ICMP_ERROR")
        p.assert_same(result.packet, want)


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
@each_protocol
def test_icmp_errors_of_and_to_a_host_process(datapath: Datapath, program: str, protocol: Protocol) -> None:
    """It keeps its address; its port becomes one of the range, on the way out alone."""
    build = BUILD[protocol]
    client, seen, backend = (p.NODE1, 50_000), (p.NODE1, SNAT_PORT), (p.BACKEND_REMOTE, TARGET_PORT)
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(backend[0], protocol=protocol))
    request = build(p.TO_NODE2, client, VIP)
    result = datapath.run(TC_UPLINK_OUT, request, from_host=True)
    assert (result.verdict, result.reason) == (SEND, "NEW_REMOTE")
    there = p.rebuilt(request, src=seen, dst=backend)
    p.assert_same(result.packet, there)
    for source, shown in ((p.ROUTER, p.ROUTER), (backend[0], VIP[0])):
        arrives = p.icmp_error(p.FROM_NODE2, p.ip(source, p.NODE1), "too big", p.quote(there), 1300)
        want = p.icmp_error(p.FROM_NODE2, p.ip(shown, p.NODE1), "too big", known_as(request, there), 1300)
        with datapath.default_route():
            result = datapath.run(program, arrives)
        assert (result.verdict, result.reason) == (PASS, "ICMP_ERROR")
        p.assert_same(result.packet, want)
        if program != XDP:  # by lo: nothing else may come from there here
            result = datapath.run(program, arrives)
            assert (result.verdict, result.reason) == (SEND, "ICMP_ERROR")
            p.assert_same(result.packet, want)
    reply = build(p.FROM_NODE2, backend, seen)
    known = p.rebuilt(reply, src=VIP, dst=client)
    leaves = p.icmp_error(p.TO_NODE2, p.ip(p.NODE1, VIP[0]), "port unreachable", p.quote(known))
    header = p.ip(p.NODE1, backend[0])
    want = p.icmp_error(p.TO_NODE2, header, "port unreachable", known_as(reply, known))
    result = datapath.run(TC_UPLINK_OUT, leaves, from_host=True)
    assert (result.verdict, result.reason) == (SEND, "ICMP_ERROR")
    p.assert_same(result.packet, want)
    check_untouched(datapath, TC_UPLINK_OUT, leaves, "NOT_VIP")  # forwarded: not this node's flow


@each_path
def test_icmp_errors_about_unknown_flows_are_left_alone(datapath: Datapath, path: Path) -> None:
    conversation = talk(datapath, path)
    others = [
        about_request(conversation, path, p.ROUTER, "too big", 20)[0],
        about_reply(conversation, path, p.ROUTER, "too big", 20)[0],
    ]
    datapath.reset()
    datapath.apply(service(*path.backends(5, 1)))
    for program in HOOK_OF:
        if program != TC_UPLINK_IN or path.link is p.FROM_CLIENT:
            for error in others:
                if p.NODE1_MAC.replace(":", "") == error[:6].hex() or program not in OUTSIDE_INGRESS:
                    check_untouched(datapath, program, error, "NOT_VIP")
    assert len(datapath.read("flows")[0]) == 0


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
@each_protocol
def test_icmp_errors_whose_quote_tells_too_little_are_left_alone(
    datapath: Datapath, program: str, protocol: Protocol
) -> None:
    (path,) = (path for path in PATHS if path.forwarded and path.ingress == program)
    conversation = talk(datapath, path, protocol)
    there = p.rebuilt(conversation.request(), src=conversation.seen, dst=(conversation.backend, TARGET_PORT))
    header = p.ip(p.ROUTER, p.NODE1)
    whole = p.quote(there, 8)
    for length in range(len(whole)):
        error = p.icmp_error(p.FROM_NODE2, header, "too big", whole[:length], 1400)
        check_untouched(datapath, program, error, "MALFORMED")
    for at, reason, byte in (
        (0, "MALFORMED", 0x05),  # the version
        (9 if p.version() == 4 else 6, "OTHER_PROTOCOL", 47),
    ):
        changed = whole[:at] + bytes([byte]) + whole[at + 1 :]
        check_untouched(
            datapath, program, p.icmp_error(p.FROM_NODE2, header, "too big", changed, 1400), reason
        )


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
@pytest.mark.parametrize("family", [4], indirect=True, ids=["ipv4"])
def test_icmp_errors_about_a_later_fragment_are_left_alone(datapath: Datapath, program: str) -> None:
    """What is quoted of it has no ports."""
    (path,) = (path for path in PATHS if path.forwarded and path.ingress == program)
    conversation = talk(datapath, path)
    segment = bytes(p.l3(conversation.request()).payload)
    piece = p.ip(p.NODE1, conversation.backend, flags=0, frag=100, proto=6) / Raw(segment)
    error = p.icmp_error(p.FROM_NODE2, p.ip(p.ROUTER, p.NODE1), "time exceeded", bytes(piece))
    check_untouched(datapath, program, error, "OTHER_PROTOCOL")


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_icmp_errors_end_when_their_ttl_is_over(datapath: Datapath, program: str) -> None:
    """And no error is made about an error (RFC 1122, section 3.2.2)."""
    (path,) = (path for path in PATHS if path.forwarded and path.ingress == program)
    conversation = talk(datapath, path)
    there = p.rebuilt(conversation.request(), src=conversation.seen, dst=(conversation.backend, TARGET_PORT))
    error = p.icmp_error(p.FROM_NODE2, p.ip(p.ROUTER, p.NODE1, ttl=1), "too big", p.quote(there), 1400)
    result = datapath.run(program, error)
    assert (result.verdict, result.reason) == (DROP, "REJECT_UNANSWERED")


def test_icmp_errors_that_xdp_cannot_send_are_left_to_tc(datapath: Datapath) -> None:
    """The client is behind the other uplink."""
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(p.BACKEND_REMOTE))
    link = p.ether(p.UPLINK_2_PEER_MAC, p.UPLINK_2_MAC)
    request = p.tcp(link, (p.BEHIND_UPLINK_2, p.CLIENT_PORT), VIP)
    assert datapath.run(TC_UPLINK_IN, request, ifindex=datapath.uplink_2).reason == "NEW_REMOTE"
    there = p.rebuilt(request, src=(p.NODE1, SNAT_PORT), dst=(p.BACKEND_REMOTE, TARGET_PORT))
    error = p.icmp_error(p.FROM_NODE2, p.ip(p.ROUTER, p.NODE1), "too big", p.quote(there), 1400)
    check_untouched(datapath, XDP, error, "TO_TC")
    back = p.ether(p.UPLINK_2_MAC, p.UPLINK_2_PEER_MAC)
    header = p.ip(p.ROUTER, p.BEHIND_UPLINK_2, ttl=63)
    result = datapath.run(TC_UPLINK_IN, error)
    assert (result.verdict, result.reason) == (SEND, "ICMP_ERROR")
    p.assert_same(result.packet, p.icmp_error(back, header, "too big", p.quote(request), 1400))


@each_path
def test_icmp_errors_leave_idle_flows_idle(datapath: Datapath, path: Path) -> None:
    """Else one who guesses could keep a flow alive, or a router a dead one."""
    conversation = talk(datapath, path)
    keys, values = datapath.read("flows")
    values["last_seen"] -= np.uint64(5 * 10**9)
    datapath.update("flows", keys, values)
    arrives, want = about_request(conversation, path, p.ROUTER, "too big", 20)
    check(datapath, path, path.egress, arrives, want)
    arrives, want = about_reply(conversation, path, p.ROUTER, "too big", 20)
    check(datapath, path, path.ingress, arrives, want)


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_icmp_errors_to_a_client_that_kept_its_address_are_left_to_the_hook_that_faces_it(
    datapath: Datapath, program: str
) -> None:
    """Between the hooks the stack sees one flow, client and backend: its errors too."""
    (path,) = (path for path in PATHS if path.name == "pod-away")
    conversation = talk(datapath, path)
    arrives, _ = about_request(conversation, path, p.ROUTER, "too big", 20)
    check_untouched(datapath, program, bytes(p.FROM_NODE2 / p.l3(arrives)), "NOT_VIP")
