# SPDX-License-Identifier: Apache-2.0
"""Past the stack, with the option on: to a pod of this node and back; all else goes as without it.

A packet that is redirected to a pod has the pod's link header; one that leaves by another interface has the
one that it came with, which the kernel then replaces.
"""

from __future__ import annotations

from typing import Any

import pytest

from lb.datapath.maps.layouts import FlowPath
from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import (
    PASS,
    SEND,
    TC_POD_IN,
    TC_POD_OUT,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
)
from tests.packet.plans import BUILD, TARGET_PORT, VIPS, service
from tests.packet.rows import (
    ONE_SNAT_PORT,
    POD_IN,
    POD_OUT,
    SNAT_PORT,
    UPLINK_IN,
    UPLINK_OUT,
    Row,
    passed,
    play,
    sent,
    untouched,
)

CLIENT = (p.CLIENT, p.CLIENT_PORT)
POD = (p.POD_CLIENT, p.CLIENT_PORT)
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
REMOTE = (p.BACKEND_REMOTE, TARGET_PORT)
SNATED = (p.NODE1, SNAT_PORT)
VIP = VIPS[VipKind.LOAD_BALANCER]
TO_POD = {"link": p.TO_POD, "ttl": 63}
"""What else a redirected packet becomes, for a pod."""
AWAY = {"ttl": 63}
"""The same for somebody outside."""

FIRST: dict[Protocol, dict[str, Any]] = {Protocol.TCP: {}, Protocol.UDP: {}, Protocol.SCTP: {}}
ANSWER: dict[Protocol, dict[str, Any]] = {
    Protocol.TCP: {"flags": "SA", "seq": 500, "ack": 1001},
    Protocol.UDP: {"payload": b"pong"},
    Protocol.SCTP: {"chunk": "INIT ACK", "payload": b"cookie"},
}
LATER: dict[Protocol, dict[str, Any]] = {
    Protocol.TCP: {"flags": "PA", "seq": 1001, "ack": 501, "payload": p.PAYLOAD},
    Protocol.UDP: {"payload": p.PAYLOAD},
    Protocol.SCTP: {"chunk": "DATA", "payload": p.PAYLOAD},
}

each_protocol = pytest.mark.parametrize("protocol", list(Protocol))


@each_protocol
@pytest.mark.parametrize("kind", list(VipKind))
def test_redirect_both_ways_for_clients_outside_and_in_pods(
    datapath: Datapath, protocol: Protocol, kind: VipKind
) -> None:
    vip, build = VIPS[kind], BUILD[protocol]
    first, later = (build(p.FROM_CLIENT, CLIENT, vip, **each[protocol]) for each in (FIRST, LATER))
    answer, more = (
        build(p.FROM_POD, LOCAL, p.seen(CLIENT, protocol), **each[protocol]) for each in (ANSWER, LATER)
    )
    to_pod: dict[str, Any] = {"dst": LOCAL, **TO_POD}
    away: dict[str, Any] = {"src": vip, **AWAY}
    outside = Row(
        "outside",
        (service(p.BACKEND_LOCAL, protocol=protocol),),
        (
            sent(UPLINK_IN, first, p.rebuilt(first, **to_pod), "NEW_LOCAL"),
            sent(POD_IN, answer, p.rebuilt(answer, **away), "REPLY"),
            # It leaves by the uplink, whose hook has nothing to do any more.
            untouched(UPLINK_OUT, p.rebuilt(answer, **away), "NOT_VIP"),
            sent(UPLINK_IN, later, p.rebuilt(later, **to_pod), "FLOW_HIT"),
            sent(POD_IN, more, p.rebuilt(more, **away), "REPLY"),
        ),
    )
    play(datapath, outside, TC_UPLINK_IN, redirect=True)
    datapath.reset()
    first, later = (build(p.FROM_POD, POD, vip, **each[protocol]) for each in (FIRST, LATER))
    answer, more = (
        build(p.FROM_POD, LOCAL, p.seen(POD, protocol), **each[protocol]) for each in (ANSWER, LATER)
    )
    back: dict[str, Any] = {"src": vip, **TO_POD}
    pods = Row(
        "pod to pod",
        (service(p.BACKEND_LOCAL, protocol=protocol),),
        (
            sent(POD_IN, first, p.rebuilt(first, **to_pod), "NEW_LOCAL"),
            sent(POD_IN, answer, p.rebuilt(answer, **back), "REPLY"),
            sent(POD_IN, later, p.rebuilt(later, **to_pod), "FLOW_HIT"),
            sent(POD_IN, more, p.rebuilt(more, **back), "REPLY"),
        ),
    )
    play(datapath, pods, TC_UPLINK_IN, redirect=True)


@each_protocol
def test_redirect_concerns_no_backend_elsewhere_and_no_hairpin(
    datapath: Datapath, protocol: Protocol
) -> None:
    build = BUILD[protocol]
    request = build(p.FROM_POD, POD, VIP, **FIRST[protocol])
    answer = build(p.TO_POD, REMOTE, p.seen(POD, protocol), **ANSWER[protocol])
    outside = build(p.FROM_CLIENT, CLIENT, VIP, **FIRST[protocol])
    itself = build(p.FROM_POD, (p.BACKEND_LOCAL, p.CLIENT_PORT), VIP, **FIRST[protocol])
    own_answer = build(p.FROM_POD, LOCAL, SNATED, **ANSWER[protocol])
    to_node2: dict[str, Any] = {"link": p.TO_NODE2, "src": SNATED, "dst": REMOTE, "ttl": 63}
    remote = Row(
        "elsewhere",
        (service(p.BACKEND_REMOTE, protocol=protocol),),
        (
            passed(POD_IN, request, p.rebuilt(request, dst=REMOTE), "NEW_REMOTE"),
            passed(POD_OUT, answer, p.rebuilt(answer, src=VIP), "REPLY"),
            sent(UPLINK_IN, outside, p.rebuilt(outside, **to_node2), "NEW_REMOTE"),
        ),
    )
    play(datapath, remote, TC_UPLINK_IN, redirect=True)
    datapath.reset()
    own: dict[str, Any] = {"src": VIP, "dst": (p.BACKEND_LOCAL, p.CLIENT_PORT), **TO_POD}
    hairpin = Row(
        "hairpin",
        (service(p.BACKEND_LOCAL, protocol=protocol),),
        (
            sent(POD_IN, itself, p.rebuilt(itself, src=SNATED, dst=LOCAL, **TO_POD), "NEW_HAIRPIN"),
            sent(POD_IN, own_answer, p.rebuilt(own_answer, **own), "REPLY"),
        ),
    )
    play(datapath, hairpin, TC_UPLINK_IN, redirect=True)


def test_redirect_needs_a_veth_to_the_pod(datapath: Datapath) -> None:
    """A backend behind anything else: both directions go through the stack."""
    request, answer = p.tcp(p.FROM_CLIENT, CLIENT, VIP), p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), "SA")
    datapath.set_up_node(redirect=True)
    datapath.apply(service(p.BACKEND_LOCAL))
    keys, values = datapath.read("ifaces")
    values["flags"][keys == datapath.pod] = 0
    datapath.update("ifaces", keys, values)
    steps = (
        (TC_UPLINK_IN, request, p.rebuilt(request, dst=LOCAL), "NEW_LOCAL"),
        (TC_POD_IN, answer, answer, "NOT_VIP"),
        (TC_UPLINK_OUT, answer, p.rebuilt(answer, src=VIP), "REPLY"),
    )
    for program, frame, out, reason in steps:
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason) == (PASS, reason)
        p.assert_same(result.packet, out)


def established(datapath: Datapath, backend: str = p.BACKEND_LOCAL) -> None:
    """Have a connection of an outside client with the backend that is past its handshake."""
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT, redirect=True)
    datapath.apply(service(backend))
    at = (backend, TARGET_PORT)
    for program, frame in (
        (TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, VIP)),
        (TC_POD_IN, p.tcp(p.FROM_POD, at, p.seen(CLIENT), "SA")),
        (TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A")),
    ):
        assert datapath.run(program, frame).verdict == SEND
    _, flows = datapath.read("flows")
    assert set(flows["path"]) == {FlowPath.REDIRECT}


@pytest.mark.parametrize("flags", ["A", "FA"], ids=["short way", "long way"])
@pytest.mark.parametrize("reason", ["marked", "its TTL is over", "too big"])
def test_redirect_leaves_the_unusual_to_the_stack(datapath: Datapath, reason: str, flags: str) -> None:
    """The request translated, the reply as it is: the hook that faces the client translates it."""
    established(datapath)
    fields: dict[str, Any] = {"ttl": 1 if reason == "its TTL is over" else 64}
    run: dict[str, Any] = {"mark": 7 if reason == "marked" else 0}
    if reason == "too big":
        fields["payload"] = bytes(1600)
    request = p.tcp(p.FROM_CLIENT, CLIENT, VIP, flags, **fields)
    reply = p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), flags, **fields)
    result = datapath.run(TC_UPLINK_IN, request, **run)
    assert (result.verdict, result.reason) == (PASS, "FLOW_HIT")
    p.assert_same(result.packet, p.rebuilt(request, dst=LOCAL))
    result = datapath.run(TC_POD_IN, reply, **run)
    assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
    p.assert_same(result.packet, reply)
    result = datapath.run(TC_UPLINK_OUT, reply, **run)
    assert (result.verdict, result.reason) == (PASS, "REPLY")
    p.assert_same(result.packet, p.rebuilt(reply, src=VIP))


def test_redirect_of_what_awaits_segmentation_goes_by_its_segments(datapath: Datapath) -> None:
    established(datapath)
    headers = 40 if p.version() == 4 else 60
    large = p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A", bytes(3000))
    reply = p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), "A", bytes(3000))
    for size, verdict in ((1500 - headers, SEND), (1501 - headers, PASS)):
        assert datapath.run(TC_UPLINK_IN, large, gso_size=size).verdict == verdict
        assert datapath.run(TC_POD_IN, reply, gso_size=size).verdict == verdict


def test_redirect_switched_off_and_on_again(datapath: Datapath) -> None:
    """A connection goes on by the way that the option says."""
    established(datapath)
    request = p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A")
    reply = p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), "A")
    for redirect in (False, True):
        datapath.set_up_node(redirect=redirect)
        for program, frame in ((TC_UPLINK_IN, request), (TC_POD_IN, reply)):
            assert datapath.run(program, frame).verdict == (SEND if redirect else PASS)
        if not redirect:
            result = datapath.run(TC_UPLINK_OUT, reply)
            p.assert_same(result.packet, p.rebuilt(reply, src=VIP))


def test_redirect_switched_on_leaves_connections_where_they_are(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    assert datapath.run(TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, VIP)).verdict == PASS
    datapath.set_up_node(redirect=True)
    for program, frame, reason in (
        (TC_POD_IN, p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), "SA"), "NOT_VIP"),
        (TC_UPLINK_OUT, p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), "SA"), "REPLY"),
        (TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A"), "FLOW_HIT"),
    ):
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason) == (PASS, reason)


def test_redirect_xdp_leaves_it_to_tc(datapath: Datapath) -> None:
    datapath.set_up_node(redirect=True)
    datapath.apply(service(p.BACKEND_LOCAL))
    for flags, reason in (("S", "NEW_LOCAL"), ("A", "FLOW_HIT"), ("A", "FLOW_HIT"), ("FA", "FLOW_HIT")):
        frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP, flags)
        result = datapath.run(XDP, frame)
        assert (result.verdict, result.reason) == (PASS, "TO_TC")
        p.assert_same(result.packet, frame)
        result = datapath.run(TC_UPLINK_IN, frame)
        assert (result.verdict, result.reason) == (SEND, reason)


def test_redirect_of_fragments(datapath: Datapath) -> None:
    datapath.set_up_node(redirect=True)
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    long = bytes(range(256)) * 4
    request, reply = p.udp(p.FROM_CLIENT, CLIENT, VIP, long), p.udp(p.FROM_POD, LOCAL, p.seen(CLIENT), long)
    for program, frame, want in (
        (TC_UPLINK_IN, request, p.rebuilt(request, dst=LOCAL, **TO_POD)),
        (TC_POD_IN, reply, p.rebuilt(reply, src=VIP, ttl=63)),
    ):
        for piece, wanted in zip(p.pieces(frame, 512), p.pieces(want, 512), strict=True):
            result = datapath.run(program, piece)
            assert result.verdict == SEND
            p.assert_same(result.packet, wanted)


def test_redirect_to_a_pod_that_has_not_been_asked_for_its_address(datapath: Datapath) -> None:
    """The kernel asks: the link header is left to it."""
    unknown = p.BACKEND_LOCAL_2  # nobody's neighbour yet
    datapath.set_up_node(redirect=True)
    datapath.apply(service(unknown))
    request = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    result = datapath.run(TC_UPLINK_IN, request)
    assert (result.verdict, result.reason) == (SEND, "NEW_LOCAL")
    p.assert_same(result.packet, p.rebuilt(request, dst=(unknown, TARGET_PORT), ttl=63))
    _, flows = datapath.read("flows")
    assert set(flows["path"]) == {FlowPath.REDIRECT}


def test_redirect_of_icmp_errors_is_the_stacks_business(datapath: Datapath) -> None:
    established(datapath)
    reply = p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), "A", bytes(100))
    request = p.rebuilt(p.tcp(p.FROM_POD, CLIENT, VIP, "A"), dst=LOCAL)
    # A router behind the client cannot pass on what it got from the VIP; the backend has to hear it.
    seen = p.rebuilt(reply, src=VIP)
    error = p.icmp_error(p.FROM_CLIENT, p.ip(p.ROUTER, VIP[0]), "too big", p.quote(seen), 1300)
    result = datapath.run(TC_UPLINK_IN, error)
    assert (result.verdict, result.reason) == (PASS, "ICMP_ERROR")
    # The backend refuses: translated where it leaves.
    error = p.icmp_error(p.FROM_POD, p.ip(LOCAL[0], CLIENT[0]), "port unreachable", p.quote(request))
    result = datapath.run(TC_POD_IN, error)
    assert (result.verdict, result.packet) == (PASS, error)
    result = datapath.run(TC_UPLINK_OUT, error)
    assert (result.verdict, result.reason) == (PASS, "ICMP_ERROR")
    assert p.l3(result.packet).src == p.here(VIP[0])


def test_redirect_ends_with_a_direct_connection_from_the_same_port(datapath: Datapath) -> None:
    """After the flow has closed, a backend accepts a connection that was opened to itself."""
    established(datapath)
    for program, frame in (
        (TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, VIP, "FA")),
        (TC_POD_IN, p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), "FA")),
    ):
        assert datapath.run(program, frame).verdict == SEND
    direct = p.tcp(p.FROM_POD, LOCAL, p.seen(CLIENT), "SA")
    result = datapath.run(TC_POD_IN, direct)
    assert (result.verdict, result.reason, result.packet) == (PASS, "NOT_VIP", direct)
    assert len(datapath.read("flows")[0]) == 0


def test_redirect_costs_nobody_else_anything(datapath: Datapath) -> None:
    """What is for no VIP, from anywhere, and the replies of nobody's flow stay as they are."""
    established(datapath)
    for program, frame in (
        (TC_POD_IN, p.tcp(p.FROM_POD, POD, (p.NOT_A_VIP, 443))),
        (TC_POD_IN, p.tcp(p.FROM_POD, LOCAL, (p.CLIENT, p.CLIENT_PORT + 1), "SA")),
        (TC_POD_OUT, p.tcp(p.TO_POD, CLIENT, LOCAL, "A")),
        (TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, LOCAL)),
        (XDP, p.tcp(p.FROM_CLIENT, CLIENT, LOCAL)),
    ):
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason, result.packet) == (PASS, "NOT_VIP", frame)
