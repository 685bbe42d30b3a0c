# SPDX-License-Identifier: Apache-2.0
"""What a process of the node sends to a VIP at an address of the node itself: it is seen at lo.

There is no socket hook in these tests: they are what a process sees that the hooks do not.
"""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address

import pytest
from msgspec import structs
from scapy.packet import Packet

from lb.config import SnatPorts
from lb.model import Protocol
from lb.plan.types import ServicePlan, Vip, VipKey, VipKind
from tests import packets as p
from tests.packet.conftest import Open
from tests.packet.harness import (
    DROP,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_LOOPBACK,
    TC_POD_IN,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
)
from tests.packet.plans import BUILD, NODE_PORT, TARGET_PORT, VIPS, service

ONE_SNAT_PORT = SnatPorts(61000, 61000)
VIP = VIPS[VipKind.NODE_PORT]
CLIENT, SEEN = (p.NODE1, 50_000), (p.NODE1, 61000)
LO = p.ether("00:00:00:00:00:00", "00:00:00:00:00:00")
each_protocol = pytest.mark.parametrize("protocol", BUILD)


@pytest.fixture
def node(datapath: Datapath) -> Datapath:
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    return datapath


def on_this_node(protocol: Protocol) -> ServicePlan:
    """A Service whose endpoint is a process of this node."""
    plan = service(p.NODE1, protocol=protocol)
    (port,) = plan.ports
    (one,) = port.backends
    here = (structs.replace(one, node="node1", local=True),)
    return replace(plan, ports=(replace(port, backends=here, cluster=here, local=here),))


@each_protocol
@pytest.mark.parametrize("backend", [p.BACKEND_LOCAL, p.BACKEND_REMOTE])
def test_loopback_node_port_to_a_pod(node: Datapath, backend: str, protocol: Protocol) -> None:
    """The reply's source is the node's address: it goes on by lo, where nobody calls that a martian."""
    build, to = BUILD[protocol], (backend, TARGET_PORT)
    node.apply(service(backend, protocol=protocol))
    request = build(LO, CLIENT, VIP)
    for reason in ("NEW_LOCAL" if backend == p.BACKEND_LOCAL else "NEW_REMOTE", "FLOW_HIT"):
        result = node.run(TC_LOOPBACK, request)
        assert (result.verdict, result.reason) == (SEND, reason)
        assert p.l3(result.packet) == p.l3(p.rebuilt(request, src=SEEN, dst=to))
    link = p.FROM_POD if backend == p.BACKEND_LOCAL else p.FROM_NODE2
    reply = build(link, to, SEEN, **({"flags": "SA"} if protocol is Protocol.TCP else {}))
    result = node.run(TC_POD_IN if backend == p.BACKEND_LOCAL else TC_UPLINK_IN, reply)
    assert (result.verdict, result.reason) == (SEND, "REPLY")
    p.assert_same(result.packet, p.rebuilt(reply, src=VIP, dst=CLIENT))


def test_loopback_replies_are_left_to_tc_by_xdp(node: Datapath) -> None:
    node.apply(service(p.BACKEND_REMOTE))
    assert node.run(TC_LOOPBACK, p.tcp(LO, CLIENT, VIP, "S")).reason == "NEW_REMOTE"
    reply = p.tcp(p.FROM_NODE2, (p.BACKEND_REMOTE, TARGET_PORT), SEEN, "SA")
    result = node.run(XDP, reply)
    assert (result.verdict, result.reason) == (PASS, "TO_TC")
    p.assert_same(result.packet, reply)


@each_protocol
def test_loopback_a_backend_with_the_nodes_network(node: Datapath, protocol: Protocol) -> None:
    """It stays on lo in both directions."""
    build, to = BUILD[protocol], (p.NODE1, TARGET_PORT)
    node.apply(on_this_node(protocol))
    request = build(LO, CLIENT, VIP)
    for reason in ("NEW_LOCAL", "FLOW_HIT"):
        result = node.run(TC_LOOPBACK, request)
        assert (result.verdict, result.reason) == (PASS, reason)
        p.assert_same(result.packet, p.rebuilt(request, src=SEEN, dst=to))
    reply = build(LO, to, SEEN, **({"flags": "SA"} if protocol is Protocol.TCP else {}))
    result = node.run(TC_LOOPBACK, reply)
    assert (result.verdict, result.reason) == (PASS, "REPLY")
    p.assert_same(result.packet, p.rebuilt(reply, src=VIP, dst=CLIENT))


@each_protocol
def test_loopback_from_the_uplink_to_a_backend_with_the_nodes_network(
    node: Datapath, opened: Open, protocol: Protocol
) -> None:
    """A request to another VIP leaves by the uplink, and is turned back into the node there."""
    build, to, vip = BUILD[protocol], (p.NODE1, TARGET_PORT), VIPS[VipKind.CLUSTER_IP]
    opened(socket.SOCK_STREAM, TARGET_PORT, listens=True)
    node.apply(on_this_node(protocol))
    request = build(p.TO_NODE2, CLIENT, vip)
    for reason in ("NEW_LOCAL", "FLOW_HIT"):
        result = node.run(TC_UPLINK_OUT, request, from_host=True)
        assert (result.verdict, result.reason) == (SEND, reason)
        p.assert_same(result.packet, p.rebuilt(request, src=SEEN, dst=to))
    reply = build(LO, to, SEEN, **({"flags": "SA"} if protocol is Protocol.TCP else {}))
    result = node.run(TC_LOOPBACK, reply)
    assert (result.verdict, result.reason) == (PASS, "REPLY")
    p.assert_same(result.packet, p.rebuilt(reply, src=vip, dst=CLIENT))


@pytest.mark.parametrize("family", [4], indirect=True, ids=["ipv4"])
@pytest.mark.parametrize("flags", ["S", "PA", "FA", "R"])
def test_loopback_from_the_uplink_to_a_backend_that_is_gone(node: Datapath, flags: str) -> None:
    """The kernel's own reset does not come for what is sent to lo in this way."""
    node.apply(on_this_node(Protocol.TCP))
    request = p.tcp(p.TO_NODE2, CLIENT, VIPS[VipKind.CLUSTER_IP], flags)
    for _ in range(2):
        result = node.run(TC_UPLINK_OUT, request, from_host=True)
        if flags == "R":
            assert (result.verdict, result.reason) == (DROP, "REJECT_UNANSWERED")
        else:
            assert (result.verdict, result.reason) == (SEND, "REJECT_NO_LISTENER")
            p.assert_same(result.packet, p.reset_for(request))


@each_protocol
@pytest.mark.parametrize("ttl", [1, 64])
@pytest.mark.parametrize(
    ("program", "link", "kind"),
    [(TC_LOOPBACK, LO, VipKind.NODE_PORT), (TC_UPLINK_OUT, p.TO_NODE2, VipKind.CLUSTER_IP)],
)
def test_loopback_what_a_process_sends_has_not_come_any_way(
    node: Datapath, program: str, link: Packet, kind: VipKind, protocol: Protocol, ttl: int
) -> None:
    """It is no router's hop to its own pods: what is sent with a TTL of 1 reaches them."""
    node.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    request = BUILD[protocol](link, CLIENT, VIPS[kind], ttl=ttl)
    result = node.run(program, request, from_host=True)
    assert (result.verdict, result.reason) == (SEND, "NEW_LOCAL")
    assert p.l3(result.packet) == p.l3(p.rebuilt(request, src=SEEN, dst=(p.BACKEND_LOCAL, TARGET_PORT)))


@each_protocol
@pytest.mark.parametrize(
    ("backend", "program", "verdict"),
    [(p.BACKEND_REMOTE, TC_UPLINK_IN, PASS), (p.BACKEND_LOCAL, TC_POD_IN, SEND)],
)
def test_loopback_for_replies_from_where_the_vip_is_not(
    node: Datapath, backend: str, program: str, verdict: str, protocol: Protocol
) -> None:
    """A kernel with a strict rp_filter takes in what comes from the VIP by the uplink alone, or by lo."""
    build, to, vip = BUILD[protocol], (backend, TARGET_PORT), VIPS[VipKind.LOAD_BALANCER]
    node.apply(service(backend, protocol=protocol))
    with node.default_route():
        assert node.run(TC_UPLINK_OUT, build(p.TO_NODE2, CLIENT, vip), from_host=True).verdict == SEND
        reply = build(p.FROM_POD if program == TC_POD_IN else p.FROM_NODE2, to, SEEN)
        result = node.run(program, reply)
    assert (result.verdict, result.reason) == (verdict, "REPLY")
    p.assert_same(result.packet, p.rebuilt(reply, src=vip, dst=CLIENT))


@each_protocol
def test_loopback_is_not_met_twice_behind_xdp(node: Datapath, protocol: Protocol) -> None:
    """The backend's address and port are a VIP as well: what XDP would have translated, tc would again."""
    build, client, vip = BUILD[protocol], (p.CLIENT, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP]
    plan = on_this_node(protocol)
    (port,) = plan.ports
    own = Vip(VipKey(ip_address(p.here(p.NODE1)), TARGET_PORT, protocol), VipKind.EXTERNAL_IP)
    node.apply(replace(plan, ports=(replace(port, vips=tuple(sorted((*port.vips, own), key=str))),)))
    request = build(p.FROM_CLIENT, client, vip)
    for reason in ("NEW_LOCAL", "FLOW_HIT"):
        result = node.run(XDP, request)
        assert (result.verdict, result.reason) == (PASS, "TO_TC")
        p.assert_same(result.packet, request)
        result = node.run(TC_UPLINK_IN, request)
        assert (result.verdict, result.reason) == (PASS, reason if reason == "FLOW_HIT" else result.reason)
        p.assert_same(result.packet, p.rebuilt(request, dst=(p.NODE1, TARGET_PORT)))


def test_loopback_without_endpoints_is_refused(node: Datapath) -> None:
    node.apply(service())
    request = p.tcp(LO, CLIENT, VIP, "S")
    result = node.run(TC_LOOPBACK, request)
    assert (result.verdict, result.reason) == (SEND, "REJECT_NO_ENDPOINT")
    p.assert_same(result.packet, p.reset_for(request))


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_loopback_icmp_errors_about_a_request(node: Datapath, program: str) -> None:
    """A router's keeps its source and passes; the backend's becomes the VIP's, and goes on by lo."""
    node.apply(service(p.BACKEND_REMOTE, protocol=Protocol.UDP))
    request = p.udp(LO, CLIENT, VIP)
    there = p.rebuilt(request, src=SEEN, dst=(p.BACKEND_REMOTE, TARGET_PORT))
    assert node.run(TC_LOOPBACK, request).reason == "NEW_REMOTE"
    error = p.icmp_error(p.FROM_NODE2, p.ip(p.BACKEND_REMOTE, p.NODE1), "port unreachable", p.quote(there))
    result = node.run(program, error)
    if program == XDP:
        assert (result.verdict, result.reason) == (PASS, "TO_TC")
        p.assert_same(result.packet, error)
        return
    assert (result.verdict, result.reason) == (SEND, "ICMP_ERROR")
    known = p.quote(p.rebuilt(there, src=CLIENT, dst=VIP))
    want = p.icmp_error(p.FROM_NODE2, p.ip(p.NODE1, p.NODE1), "port unreachable", known)
    p.assert_same(result.packet, want)


@pytest.mark.parametrize(
    "frame",
    [
        lambda: p.tcp(LO, CLIENT, (p.NODE1, 22), "S"),
        lambda: p.udp(LO, (p.NODE1, 53), CLIENT),
        lambda: p.tcp(LO, (p.NODE1, 22), SEEN, "SA"),
    ],
    ids=["to a server", "to a client", "to a port of the SNAT range"],
)
def test_loopback_leaves_alone_what_is_for_no_vip(node: Datapath, frame: object) -> None:
    node.apply(service(p.BACKEND_LOCAL))
    sent = frame()  # type: ignore[operator]
    result = node.run(TC_LOOPBACK, sent)
    assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
    p.assert_same(result.packet, sent)


def test_loopback_what_another_hook_has_sent_by_lo_is_left_alone(node: Datapath) -> None:
    """To a client whose port is a NodePort."""
    node.apply(service(p.BACKEND_LOCAL))
    reply = p.tcp(LO, VIP, (p.NODE1, NODE_PORT), "SA")
    result = node.run(TC_LOOPBACK, reply, from_host=False)
    assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
    p.assert_same(result.packet, reply)


@pytest.fixture
def asker(node: Datapath) -> Iterator[None]:
    """A socket of the node at a port that is a NodePort, connected to a server of the node."""
    family = socket.AF_INET if p.version() == 4 else socket.AF_INET6
    with contextlib.ExitStack() as stack:
        with node.namespace.entered():
            one = stack.enter_context(socket.socket(family, socket.SOCK_DGRAM))
            one.bind((p.here(p.NODE1), NODE_PORT))
            one.connect((p.here(p.NODE1), 9000))
        yield


@pytest.mark.usefixtures("asker")
def test_loopback_an_answer_to_a_socket_at_the_number_of_a_node_port(node: Datapath) -> None:
    """The server's answer is the socket's; what others send there is the Service's."""
    node.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    answer = p.udp(LO, (p.NODE1, 9000), (p.NODE1, NODE_PORT))
    result = node.run(TC_LOOPBACK, answer)
    assert (result.verdict, result.reason) == (PASS, "OWN_CONNECTION")
    p.assert_same(result.packet, answer)
    other = p.udp(LO, (p.NODE1, 9001), (p.NODE1, NODE_PORT))
    assert node.run(TC_LOOPBACK, other).reason == "NEW_LOCAL"


@each_protocol
def test_loopback_a_socket_at_the_number_of_a_node_port_asks_that_very_node_port(
    node: Datapath, protocol: Protocol
) -> None:
    """Source and destination are the same: what would answer it is the socket itself, but it asks the VIP."""
    node.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    family = socket.AF_INET if p.version() == 4 else socket.AF_INET6
    with node.namespace.entered(), socket.socket(family, socket.SOCK_DGRAM) as one:
        one.bind((p.here(p.NODE1), NODE_PORT))
        one.connect((p.here(p.NODE1), NODE_PORT))
        result = node.run(TC_LOOPBACK, BUILD[protocol](LO, VIP, VIP))
    assert (result.verdict, result.reason) == (SEND, "NEW_LOCAL")


@each_protocol
def test_loopback_what_a_process_sends_from_another_address_of_the_node(
    node: Datapath, protocol: Protocol
) -> None:
    """Answers to that address are not looked at: the one that SNAT uses stands for it meanwhile."""
    build, to, vip = BUILD[protocol], (p.BACKEND_REMOTE, TARGET_PORT), VIPS[VipKind.CLUSTER_IP]
    client = ("192.0.2.99", 50_000)
    node.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    request = build(p.TO_NODE2, client, vip)
    for reason in ("NEW_REMOTE", "FLOW_HIT"):
        result = node.run(TC_UPLINK_OUT, request, from_host=True)
        assert (result.verdict, result.reason) == (SEND, reason)
        assert p.l3(result.packet) == p.l3(p.rebuilt(request, src=SEEN, dst=to))
    reply = build(p.FROM_NODE2, to, SEEN, **({"flags": "SA"} if protocol is Protocol.TCP else {}))
    result = node.run(TC_UPLINK_IN, reply)
    assert result.reason == "REPLY"
    assert p.l3(result.packet) == p.l3(p.rebuilt(reply, src=vip, dst=client))
