# SPDX-License-Identifier: Apache-2.0
"""What is too big for the way on, and what has no hop left: the sender is told, as by any router."""

from __future__ import annotations

import pytest

from lb.config import SnatPorts
from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation
from tests.packet.harness import DROP, OUTSIDE_INGRESS, SEND, TC_UPLINK_IN, TC_UPLINK_OUT, Datapath
from tests.packet.plans import TARGET_PORT, VIPS, service
from tests.packet.rows import ONE_SNAT_PORT, POD_IN, SNAT_PORT, UPLINK_IN, Row, check, play, sent, too_big

VIP = VIPS[VipKind.CLUSTER_IP]
CLIENT = (p.CLIENT, p.CLIENT_PORT)
NARROW = (p.BACKEND_NARROW, TARGET_PORT)
SNATED = (p.NODE1, SNAT_PORT)
TO_NARROW = {"link": p.TO_NODE2, "src": SNATED, "dst": NARROW, "ttl": 63}
BUILD = {Protocol.TCP: (p.tcp, 20), Protocol.UDP: (p.udp, 8)}

both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
each_protocol = pytest.mark.parametrize("protocol", BUILD)


def of_length(protocol: Protocol, length: int, port: int = p.CLIENT_PORT, **fields: object) -> bytes:
    """Return a client's packet of so many bytes from the IP header on."""
    build, header = BUILD[protocol]
    payload = bytes(length - header - (20 if p.version() == 4 else 40))
    return build(p.FROM_CLIENT, (p.CLIENT, port), VIP, payload=payload, **fields)  # type: ignore[operator, no-any-return]


@both_uplinks
@each_protocol
def test_icmp_errors_tell_the_mtu_of_the_route(
    datapath: Datapath, uplink_program: str, protocol: Protocol
) -> None:
    """A first packet that does not go on makes no flow; a later one changes none."""
    fits, large = of_length(protocol, p.NARROW_MTU), of_length(protocol, p.NARROW_MTU + 1)
    refused = too_big(large, p.TOLD_MTU, uplink_program)
    plan = service(p.BACKEND_NARROW, protocol=protocol)
    play(datapath, Row("first", (plan,), (refused,)), uplink_program)
    assert len(datapath.read("flows")[0]) == 0
    steps = (
        sent(UPLINK_IN, fits, p.rebuilt(fits, **TO_NARROW), "NEW_REMOTE"),
        refused,
        sent(UPLINK_IN, fits, p.rebuilt(fits, **TO_NARROW), "FLOW_HIT"),
    )
    play(datapath, Row("later", (plan,), steps), uplink_program)


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_icmp_errors_tell_a_backend_the_mtu_of_the_way_to_its_client(
    datapath: Datapath, program: str
) -> None:
    """The error is about what the backend sent, to the node; it comes from the node."""
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(p.BACKEND_REMOTE))
    far = "10.0.3.77"  # a client behind the narrow route
    request = p.tcp(p.FROM_NODE2, (far, p.CLIENT_PORT), VIP)
    assert datapath.run(program, request).reason == "NEW_REMOTE"
    headers = 40 if p.version() == 4 else 60
    reply = p.tcp(
        p.FROM_NODE2, (p.BACKEND_REMOTE, TARGET_PORT), SNATED, "A", bytes(p.NARROW_MTU + 1 - headers)
    )
    check(datapath, too_big(reply, p.TOLD_MTU, program), program, "reply")


@each_protocol
def test_what_awaits_segmentation_is_judged_by_its_segments(datapath: Datapath, protocol: Protocol) -> None:
    """tc sees them before they are cut: each of gso_size bytes of payload behind the headers."""
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_999))
    datapath.apply(service(p.BACKEND_NARROW, protocol=protocol))
    _, header = BUILD[protocol]
    most = p.NARROW_MTU - header - (20 if p.version() == 4 else 40)
    for port, gso_size, reason in (
        (1000, most, "NEW_REMOTE"),
        (1001, most + 1, "TOO_BIG"),
        (1002, 2500, "TOO_BIG"),
    ):
        frame = of_length(protocol, 3000, port)  # a test run takes no more than a page
        assert datapath.run(TC_UPLINK_IN, frame, gso_size=gso_size).reason == reason
    small = of_length(protocol, p.NARROW_MTU, 1003)
    assert datapath.run(TC_UPLINK_IN, small, gso_size=2500).reason == "NEW_REMOTE"


@both_uplinks
@each_protocol
def test_icmp_errors_tell_where_the_ttl_ended(
    datapath: Datapath, uplink_program: str, protocol: Protocol
) -> None:
    """traceroute through a VIP: the node, then what is behind it."""
    last, enough = (of_length(protocol, 100, ttl=ttl) for ttl in (1, 2))
    none = of_length(protocol, 100, ttl=0)
    steps = (
        sent(UPLINK_IN, none, p.time_exceeded_for(none, p.NODE1), "TTL_EXPIRED"),
        sent(UPLINK_IN, last, p.time_exceeded_for(last, p.NODE1), "TTL_EXPIRED"),
        sent(
            UPLINK_IN,
            enough,
            p.rebuilt(enough, link=p.TO_NODE2, src=SNATED, dst=(p.BACKEND_REMOTE, TARGET_PORT), ttl=1),
            "FLOW_HIT",
        ),
    )
    play(datapath, Row("TTL", (service(p.BACKEND_REMOTE, protocol=protocol),), steps), uplink_program)


@both_uplinks
def test_icmp_errors_of_a_router_come_from_its_address_on_that_side(
    datapath: Datapath, uplink_program: str
) -> None:
    """Of the interface that the packet came in by; at a pod's interface, the node's primary address."""
    outside = p.tcp(p.FROM_CLIENT, CLIENT, VIP, ttl=1)
    itself = p.tcp(p.FROM_POD, (p.BACKEND_LOCAL, 1), VIP, ttl=1)
    step = sent(UPLINK_IN, outside, p.time_exceeded_for(outside, p.NODE1), "TTL_EXPIRED")
    play(datapath, Row("uplink", (service(p.BACKEND_REMOTE),), (step,)), uplink_program)
    step = sent(POD_IN, itself, p.time_exceeded_for(itself, p.NODE1), "TTL_EXPIRED")
    play(datapath, Row("hairpin", (service(p.BACKEND_LOCAL),), (step,)), uplink_program)
    datapath.apply(service(p.BACKEND_REMOTE))
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_999))
    link = p.ether(p.UPLINK_2_PEER_MAC, p.UPLINK_2_MAC)
    other = p.tcp(link, (p.BEHIND_UPLINK_2, 1), VIP, ttl=1)
    result = datapath.run(TC_UPLINK_IN, other, ifindex=datapath.uplink_2)
    assert (result.verdict, result.reason) == (SEND, "TTL_EXPIRED")
    p.assert_same(result.packet, p.time_exceeded_for(other, p.UPLINK_2_ADDRESS))


def test_icmp_errors_need_an_address_to_come_from(datapath: Datapath) -> None:
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(p.BACKEND_REMOTE))
    (path,) = (path for path in PATHS if path.forwarded and path.ingress == TC_UPLINK_IN)
    conversation = Conversation(datapath, path, kind=VipKind.CLUSTER_IP)
    conversation.send()
    datapath.delete("ifaces", datapath.read("ifaces")[0])
    result = conversation.try_to_send("A", ttl=1)
    assert (result.verdict, result.reason) == (DROP, "TTL_EXPIRED")


def test_icmp_errors_to_a_host_process_whose_packet_is_too_big(datapath: Datapath) -> None:
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(p.BACKEND_NARROW))
    headers = 40 if p.version() == 4 else 60
    frame = p.tcp(p.TO_NODE2, (p.NODE1, 50_000), VIP, "S", bytes(p.NARROW_MTU + 1 - headers))
    result = datapath.run(TC_UPLINK_OUT, frame, from_host=True)
    assert (result.verdict, result.reason) == (SEND, "TOO_BIG")
    p.assert_same(result.packet, p.icmp_error_for(frame, p.NODE1, "too big", p.TOLD_MTU))
