# SPDX-License-Identifier: Apache-2.0
"""Direct return: whom a packet is sent to whose connection, or whose client, may be known on another node."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from typing import Any

import pytest

from lb.model import Protocol, TrafficPolicy
from lb.plan.types import ServicePlan
from tests import packets as p
from tests.packet.encapsulated import (
    CLIENT,
    GUE_PORT,
    LOCAL,
    REMOTE,
    VIP,
    client_of,
    encapsulated,
    handed,
    with_chance,
)
from tests.packet.harness import OUTSIDE_INGRESS, PASS, SEND, Datapath, Result
from tests.packet.model_types import ModelBackend, chosen, hash_address, hash_words
from tests.packet.plans import TARGET_PORT, service

NODE3 = p.CLIENT_2
"""A third node: another neighbour of the node, as CLIENT_2 is."""


pytestmark = pytest.mark.usefixtures("direct")
each_program = pytest.mark.parametrize("program", OUTSIDE_INGRESS)


FROM_2: dict[str, Any] = {"link": p.FROM_NODE2, "nodes": (p.NODE2, p.NODE1)}
TO_3: dict[str, Any] = {"link": p.TO_CLIENT, "nodes": (p.NODE1, NODE3)}
HERE = (p.NODE1, LOCAL)


@each_program
def test_direct_second_chance_is_named_where_the_packet_comes_in(datapath: Datapath, program: str) -> None:
    """In mid-connection, without a flow: today's choice gets the packet, and is told of the former one."""
    other = (p.BACKEND_REMOTE_2, TARGET_PORT)
    client = client_of(p.BACKEND_REMOTE_2, p.BACKEND_REMOTE)
    datapath.apply(service(p.BACKEND_REMOTE, direct=True))
    datapath.apply(service(p.BACKEND_REMOTE, p.BACKEND_REMOTE_2, direct=True))
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
def test_direct_return_affinity_is_asked_of_the_node_that_has_the_backend(
    datapath: Datapath, program: str
) -> None:
    """Who is new here may be known there: his first packet says so, as do those that follow."""
    datapath.apply(affine(p.BACKEND_REMOTE))
    for port, flags in ((40_000, "S"), (40_000, "A"), (40_001, "S")):
        frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIP, flags)
        p.assert_same(datapath.run(program, frame).packet, with_chance(p.rebuilt(frame, ttl=63), REMOTE))
    assert not len(datapath.read("affinity")[0])


@each_program
def test_direct_return_affinity_outlives_a_change_of_the_set(datapath: Datapath, program: str) -> None:
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
