# SPDX-License-Identifier: Apache-2.0
"""Direct return: what is encapsulated, byte for byte, and what is taken out again, or refused."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest
from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw

from lb.model import Protocol, TrafficPolicy
from lb.plan.types import ServicePlan, VipKind
from tests import packets as p
from tests.packet.harness import (
    DROP,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
    Result,
)
from tests.packet.model_types import ModelBackend, Tuple5, chosen, hash_address, hash_words
from tests.packet.plans import BUILD, TARGET_PORT, VIPS, service

GUE_PORT = 6080
CLIENT = (p.CLIENT, p.CLIENT_PORT)
VIP = VIPS[VipKind.LOAD_BALANCER]
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
REMOTE = (p.BACKEND_REMOTE, TARGET_PORT)
OVERHEAD = {4: 40, 6: 72}
"""Bytes: IP header, UDP header, GUE with its private data."""

each_program = pytest.mark.parametrize("program", OUTSIDE_INGRESS)


@pytest.fixture(autouse=True)
def direct(datapath: Datapath) -> Iterator[None]:
    """Both nodes take such packets of each other."""
    datapath.set_up_node(direct_port=GUE_PORT)
    yield
    datapath.set_up_node()


def source_port(client: tuple[str, int], vip: tuple[str, int], protocol: Protocol) -> int:
    """Return the UDP source port that tells a connection apart."""
    of = Tuple5(IPv4Address(client[0]), IPv4Address(vip[0]), client[1], vip[1], protocol)
    return 0xC000 | hash_words(of.hash(), 0, 0) >> 18


def encapsulated(
    frame: bytes,
    *,
    link: Packet = p.TO_NODE2,
    nodes: tuple[str, str] = (p.NODE1, p.NODE2),
    backend: tuple[str, int] = REMOTE,
    sport: int | None = None,
    head: bytes | None = None,
    **fields: Any,
) -> bytes:
    """Return the frame's packet as a node sends it to another; fields are of the outer IP header."""
    inner = bytes(p.l3(frame))
    if head is None:
        address = ip_address(p.here(backend[0])).packed
        words = len(address) // 4 + 1
        head = struct.pack("!BBHBBH", words, {4: 4, 6: 41}[p.version()], 0, 1, 0, backend[1]) + address
    if sport is None:
        of = p.l3(frame)
        protocol = {"TCP": Protocol.TCP, "UDP": Protocol.UDP}.get(of.payload.name, Protocol.SCTP)
        ports = struct.unpack_from("!HH", bytes(of.payload))
        client, vip = (p.role(of.src), ports[0]), (p.role(of.dst), ports[1])
        sport = source_port(client, vip, protocol)
    plain: dict[str, Any] = {"tc": 0x24, "fl": 0} if p.version() == 6 else {"id": 0}
    outer = p.ip(*nodes, **{**plain, **fields})
    return bytes(link / outer / UDP(sport=sport, dport=GUE_PORT, chksum=0) / Raw(head + inner))


def remote_alone(datapath: Datapath, protocol: Protocol = Protocol.TCP) -> None:
    datapath.apply(service(p.BACKEND_REMOTE, protocol=protocol, direct=True))


def handed(frame: bytes, backend: tuple[str, int] = LOCAL, **fields: Any) -> bytes:
    """Return a client's packet as NODE2 sends it here."""
    return encapsulated(frame, link=p.FROM_NODE2, nodes=(p.NODE2, p.NODE1), backend=backend, **fields)


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
    for reason in ("NEW_LOCAL", "FLOW_HIT"):
        assert datapath.run(program, handed(p.tcp(p.FROM_NODE2, CLIENT, VIP))).reason == reason
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


NODE3 = p.CLIENT_2
"""A third node: another neighbour of the node, as CLIENT_2 is."""


def client_of(
    want: str, *others: str, than: tuple[str, ...] = (), protocol: Protocol = Protocol.TCP
) -> tuple[str, int]:
    """Return a client whose connection to VIP a set of these backends gives to the first of them.

    than: of these alone it is given to the first, too.
    """
    for port in range(40_000, 41_000):
        of = Tuple5(IPv4Address(p.CLIENT), IPv4Address(VIP[0]), port, VIP[1], protocol)
        if all(_choice(of, hosts) == hosts[0] for hosts in ((want, *others), than) if hosts):
            return p.CLIENT, port
    raise AssertionError(want)


def _choice(of: Tuple5, hosts: tuple[str, ...]) -> str:
    rows = tuple(
        ModelBackend(IPv4Address(host), TARGET_PORT, local=False)
        for host in sorted(set(hosts), key=lambda host: int(ip_address(p.here(host))))
    )
    return str(chosen(rows, of.hash()).address)


def with_chance(
    frame: bytes,
    chosen_one: tuple[str, int],
    second: tuple[str, tuple[str, int]] | None = None,
    hops: int = 0,
    **fields: Any,
) -> bytes:
    """Return the frame's packet as a node sends it that has not seen its connection begin.

    second: the node and the backend that are named beside the chosen one.
    """
    size = {4: 4, 6: 16}[p.version()]
    words = (8 + size + 2 * size + 4) // 4 - 1
    head = struct.pack("!BBHBBH", words, {4: 4, 6: 41}[p.version()], 0, 1, hops, chosen_one[1])
    head += ip_address(p.here(chosen_one[0])).packed
    node, (backend, port) = second or ("", ("", 0))
    head += b"".join(ip_address(p.here(each)).packed if each else bytes(size) for each in (node, backend))
    return encapsulated(frame, head=head + struct.pack("!HH", port, 0), **fields)


FROM_2: dict[str, Any] = {"link": p.FROM_NODE2, "nodes": (p.NODE2, p.NODE1)}
TO_3: dict[str, Any] = {"link": p.TO_CLIENT, "nodes": (p.NODE1, NODE3)}
HERE = (p.NODE1, LOCAL)


@each_program
def test_direct_second_chance_is_named_where_the_packet_comes_in(datapath: Datapath, program: str) -> None:
    """In mid-connection, without a flow: today's choice gets the packet, and is told of the former one.

    That is the last other one: the set between them names today's, too.
    """
    other = (p.BACKEND_REMOTE_2, TARGET_PORT)
    hosts = (p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, "10.0.2.20")
    client = client_of(p.BACKEND_REMOTE_2, p.BACKEND_REMOTE, hosts[2])
    for count in range(1, len(hosts) + 1):
        datapath.apply(service(*hosts[:count], direct=True))
    frame = p.tcp(p.FROM_CLIENT, client, VIP, "A", p.PAYLOAD)
    for reason in ("NEW_DIRECT", "FLOW_HIT"):
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason) == (SEND, reason)
        want = with_chance(p.rebuilt(frame, ttl=63), other, (p.NODE2, REMOTE))
        p.assert_same(result.packet, want)
    datapath.apply(service(p.BACKEND_REMOTE, direct=True))
    result = datapath.run(program, frame)  # it was only supposed to be the other one's, which has gone
    p.assert_same(result.packet, with_chance(p.rebuilt(frame, ttl=63), REMOTE))
    datapath.apply(service(p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, direct=True))
    first = p.tcp(p.FROM_CLIENT, client, VIP)
    datapath.reset()
    datapath.set_up_node(direct_port=GUE_PORT)
    p.assert_same(datapath.run(program, first).packet, encapsulated(p.rebuilt(first, ttl=63), backend=other))


@each_program
def test_direct_second_chance_before_a_backend_of_this_node(datapath: Datapath, program: str) -> None:
    """Today's choice is here and knows nothing of the connection: it goes to the former one at once.

    If nobody knows it it comes back, and the backend of this node has it from then on.
    """
    client = client_of(p.BACKEND_LOCAL, p.BACKEND_REMOTE)
    datapath.apply(service(p.BACKEND_REMOTE, direct=True))
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_REMOTE, direct=True))
    frame = p.tcp(p.FROM_CLIENT, client, VIP, "A", p.PAYLOAD)
    for reason in ("NEW_DIRECT", "FLOW_HIT"):
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason) == (SEND, reason)
        p.assert_same(result.packet, with_chance(p.rebuilt(frame, ttl=63), REMOTE, HERE, hops=1))
    back = p.tcp(p.FROM_NODE2, client, VIP, "A", p.PAYLOAD)
    for packet, reason in (
        (with_chance(back, LOCAL, HERE, hops=2, **FROM_2), "NEW_LOCAL"),
        (frame, "FLOW_HIT"),
    ):
        result = datapath.run(program, packet)
        assert (result.verdict, result.reason) == (PASS, reason)
        p.assert_same(result.packet, p.rebuilt(back if packet != frame else frame, dst=LOCAL))
    first = p.tcp(p.FROM_CLIENT, (client[0], client[1]), VIP)
    datapath.reset()
    datapath.set_up_node(direct_port=GUE_PORT)
    assert datapath.run(program, first).reason == "NEW_LOCAL"


@each_program
def test_direct_second_chance_goes_from_node_to_node_and_comes_back(datapath: Datapath, program: str) -> None:
    """A node that does not know the connection sends the packet on; one that does, or is the last, serves."""
    datapath.apply(service(p.BACKEND_LOCAL, direct=True))
    frame = p.tcp(p.FROM_NODE2, CLIENT, VIP, "A", p.PAYLOAD)
    there = (NODE3, REMOTE)
    for hops, came, goes in ((0, there, HERE), (1, there, there), (7, there, there)):
        result = datapath.run(program, with_chance(frame, LOCAL, came, hops, **FROM_2))
        assert (result.verdict, result.reason) == (SEND, "SECOND_CHANCE")
        p.assert_same(result.packet, with_chance(frame, REMOTE, goes, hops + 1, **TO_3))
    for packet, reason in (
        (with_chance(frame, LOCAL, HERE, hops=2, **FROM_2), "NEW_LOCAL"),
        (with_chance(frame, LOCAL, there, **FROM_2), "FLOW_HIT"),
    ):
        result = datapath.run(program, packet)
        assert (result.verdict, result.reason) == (PASS, reason)
        p.assert_same(result.packet, p.rebuilt(frame, dst=LOCAL))


@each_program
def test_direct_second_chance_by_the_receiver_s_own_past(datapath: Datapath, program: str) -> None:
    """The sender has no past, as a node that has just come: the node of today's choice looks in its own.

    Not where the sender has seen the connection begin, nor when enough nodes were asked.
    """
    client = client_of(p.BACKEND_LOCAL, p.BACKEND_REMOTE)
    datapath.apply(service(p.BACKEND_REMOTE, direct=True))
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_REMOTE, direct=True))
    frame = p.tcp(p.FROM_NODE2, client, VIP, "A", p.PAYLOAD)
    result = datapath.run(program, with_chance(frame, LOCAL, **FROM_2))
    assert (result.verdict, result.reason) == (SEND, "SECOND_CHANCE")
    p.assert_same(result.packet, with_chance(frame, REMOTE, HERE, hops=1))
    result = datapath.run(program, with_chance(frame, LOCAL, (NODE3, REMOTE), hops=7, **FROM_2))
    p.assert_same(result.packet, with_chance(frame, REMOTE, (NODE3, REMOTE), hops=8, **TO_3))
    assert datapath.run(program, handed(frame)).reason == "NEW_LOCAL"


@each_program
def test_direct_second_chance_in_the_order_in_which_backends_came(datapath: Datapath, program: str) -> None:
    """The choice before one is the greatest among the older; a node that remembers nothing trusts others."""
    third = "10.0.2.77"
    hosts = (p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, third)
    for count in range(1, 4):
        datapath.apply(service(*hosts[:count], direct=True))
    client = client_of(third, p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, than=hosts[:2])
    frame = p.tcp(p.FROM_CLIENT, client, VIP, "A", p.PAYLOAD)
    want = with_chance(p.rebuilt(frame, ttl=63), (third, TARGET_PORT), (p.NODE2, REMOTE))
    p.assert_same(datapath.run(program, frame).packet, want)
    datapath.reset()
    datapath.set_up_node(direct_port=GUE_PORT)
    datapath.apply()
    datapath.apply(service(p.BACKEND_LOCAL, *hosts, direct=True))
    here = client_of(p.BACKEND_LOCAL, *hosts, than=(third, *hosts))
    for client, chosen_one, chance, hops in (
        (here, (third, TARGET_PORT), HERE, 1),
        (client_of(third, p.BACKEND_LOCAL, *hosts), (third, TARGET_PORT), None, 0),
    ):
        frame = p.tcp(p.FROM_CLIENT, client, VIP, "A", p.PAYLOAD)
        want = with_chance(p.rebuilt(frame, ttl=63), chosen_one, chance, hops)
        p.assert_same(datapath.run(program, frame).packet, want)


@each_program
def test_direct_second_chance_of_policy_local_asks_every_node(datapath: Datapath, program: str) -> None:
    """Each node has a set of its own: the connection is at one of the others, or at nobody's."""
    local = TrafficPolicy.LOCAL
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_REMOTE, external=local, direct=True))
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A", p.PAYLOAD)
    want = with_chance(p.rebuilt(frame, ttl=63), REMOTE, HERE, hops=1)
    p.assert_same(datapath.run(program, frame).packet, want)
    there, came = (p.NODE2, REMOTE), p.tcp(p.FROM_NODE2, (p.CLIENT, 41_000), VIP, "A", p.PAYLOAD)
    for hops, chance, goes in ((0, None, HERE), (1, there, there), (1, (NODE3, REMOTE), (NODE3, REMOTE))):
        result = datapath.run(program, with_chance(came, LOCAL, chance, hops, **FROM_2))
        assert (result.verdict, result.reason) == (SEND, "SECOND_CHANCE")
        p.assert_same(result.packet, with_chance(came, REMOTE, goes, hops + 1))
    datapath.apply(service(p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, external=local, direct=True))
    first = p.tcp(p.FROM_CLIENT, (p.CLIENT, 42_000), VIP)
    late = p.tcp(p.FROM_CLIENT, (p.CLIENT, 42_000), VIP, "A", p.PAYLOAD)
    datapath.run(program, late)
    result = datapath.run(program, late)
    one, other = sorted(
        (REMOTE, (p.BACKEND_REMOTE_2, TARGET_PORT)), key=lambda to: to[0] != result_of(result)
    )
    p.assert_same(result.packet, with_chance(p.rebuilt(late, ttl=63), one, (p.NODE2, other)))
    datapath.reset()
    datapath.set_up_node(direct_port=GUE_PORT)
    assert datapath.run(program, first).reason == "NO_LOCAL_ENDPOINT"


def result_of(result: Result) -> str:
    """Return the role of the backend that an encapsulated packet is for."""
    at, size = 14 + {4: 28, 6: 48}[p.version()] + 8, {4: 4, 6: 16}[p.version()]
    return p.role(str(ip_address(result.packet[at : at + size])))


@each_program
def test_direct_second_chance_of_udp_where_the_service_says_so(datapath: Datapath, program: str) -> None:
    """A datagram without a flow goes to the former choice first, and comes back if nobody knows it."""
    client = client_of(p.BACKEND_LOCAL, p.BACKEND_REMOTE, protocol=Protocol.UDP)
    frame = p.udp(p.FROM_CLIENT, client, VIP)
    for stays, verdict, reason in ((False, PASS, "NEW_LOCAL"), (True, SEND, "NEW_DIRECT")):
        for hosts in ((p.BACKEND_REMOTE,), (p.BACKEND_LOCAL, p.BACKEND_REMOTE)):
            plan = service(*hosts, protocol=Protocol.UDP, direct=True)
            datapath.apply(replace(plan, ports=tuple(replace(port, udp_stays=stays) for port in plan.ports)))
        datapath.reset()
        datapath.set_up_node(direct_port=GUE_PORT)
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason) == (verdict, reason)
    p.assert_same(result.packet, with_chance(p.rebuilt(frame, ttl=63), REMOTE, HERE, hops=1))
    back = p.udp(p.FROM_NODE2, client, VIP)
    result = datapath.run(program, with_chance(back, LOCAL, HERE, hops=3, **FROM_2))
    p.assert_same(result.packet, p.rebuilt(back, dst=LOCAL))
    assert datapath.run(program, frame).reason == "FLOW_HIT"


def affine(*hosts: str) -> ServicePlan:
    return service(*hosts, affinity_seconds=600, direct=True)


def affine_client(want: str, *others: str) -> str:
    """Return a client to whom such a Service gives the first of these backends."""
    rows = tuple(
        ModelBackend(IPv4Address(host), TARGET_PORT, local=False) for host in sorted((want, *others))
    )
    for host in range(1, 255):
        of = hash_words(hash_address(IPv4Address(f"198.51.100.{host}")), 0, 0)
        if str(chosen(rows, of).address) == want:
            return f"198.51.100.{host}"
    raise AssertionError(want)


@each_program
def test_direct_affinity_is_asked_of_the_node_that_has_the_backend(datapath: Datapath, program: str) -> None:
    """Who is new here may be known there: his first packet says so, as do those that follow."""
    datapath.apply(affine(p.BACKEND_REMOTE))
    for port, flags in ((40_000, "S"), (40_000, "A"), (40_001, "S")):
        frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIP, flags)
        p.assert_same(datapath.run(program, frame).packet, with_chance(p.rebuilt(frame, ttl=63), REMOTE))
    assert not len(datapath.read("affinity")[0])


@each_program
def test_direct_affinity_outlives_a_change_of_the_set(datapath: Datapath, program: str) -> None:
    """The choice before today's is asked about the client; does it not know him he is today's, and stays."""
    datapath.apply(affine(p.BACKEND_REMOTE))
    datapath.apply(affine(p.BACKEND_LOCAL, p.BACKEND_REMOTE))
    client = affine_client(p.BACKEND_LOCAL, p.BACKEND_REMOTE)
    first = p.tcp(p.FROM_NODE2, (client, 40_000), VIP)
    result = datapath.run(program, with_chance(first, LOCAL, **FROM_2))
    assert (result.verdict, result.reason) == (SEND, "SECOND_CHANCE")
    p.assert_same(result.packet, with_chance(first, REMOTE, HERE, hops=1))
    other = p.tcp(p.FROM_CLIENT, (client, 41_000), VIP)
    p.assert_same(
        datapath.run(program, other).packet, with_chance(p.rebuilt(other, ttl=63), REMOTE, HERE, hops=1)
    )
    again = p.tcp(p.FROM_NODE2, (client, 42_000), VIP)
    for frame, chance, hops in ((first, HERE, 2), (again, None, 0)):
        result = datapath.run(program, with_chance(frame, LOCAL, chance, hops, **FROM_2))
        assert (result.verdict, result.reason) == (PASS, "NEW_LOCAL")
        p.assert_same(result.packet, p.rebuilt(frame, dst=LOCAL))
    datapath.apply(affine(p.BACKEND_LOCAL, p.BACKEND_LOCAL_2, p.BACKEND_REMOTE))
    frame = p.tcp(p.FROM_NODE2, (client, 43_000), VIP)
    result = datapath.run(program, with_chance(frame, (p.BACKEND_LOCAL_2, TARGET_PORT), **FROM_2))
    p.assert_same(result.packet, p.rebuilt(frame, dst=LOCAL))


def test_direct_ages_go_with_their_service(datapath: Datapath) -> None:
    hosts = [p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, *(f"10.0.2.{n}" for n in range(20, 26))]
    for count in range(1, len(hosts) + 1):
        datapath.apply(service(*hosts[:count], direct=True))
    (row,) = datapath.maps.read("former")[1]
    assert (row["ages"]["size"], row["unordered"], row["sets"]["size"].tolist()) == (8, 1, [0] * 4)
    datapath.apply()
    assert not len(datapath.maps.read("former")[0])
