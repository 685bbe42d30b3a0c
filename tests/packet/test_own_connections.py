# SPDX-License-Identifier: Apache-2.0
"""A packet for a VIP on the node's own address that belongs to a connection of the node itself.

The sockets are real: they are bound to the NodePort in the namespace that the programs run in.
"""

from __future__ import annotations

import socket
from dataclasses import replace
from ipaddress import ip_address

import numpy as np
import pytest
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTAttrTuple, NFCTSocket

from lb.datapath.maps.layouts import FlowSign, FlowState
from lb.datapath.programs import features
from lb.model import Protocol
from lb.plan.types import Vip, VipKey, VipKind
from tests import packets as p
from tests.packet.conftest import Open
from tests.packet.harness import DROP, OUTSIDE_INGRESS, PASS, SEND, TC_POD_IN, TC_UPLINK_OUT, Datapath
from tests.packet.plans import BUILD, NODE_PORT, TARGET_PORT, VIPS, service

NODE_VIP = VIPS[VipKind.NODE_PORT]
SERVER = (p.CLIENT, 443)
SEEN_REPLY_AND_ASSURED = 2 | 4 | 8  # enum ip_conntrack_status; 8: confirmed
both_uplinks = pytest.mark.parametrize("program", OUTSIDE_INGRESS)


def untouched(datapath: Datapath, program: str, frame: bytes, *, from_host: bool = False) -> None:
    result = datapath.run(program, frame, from_host=from_host)
    assert (result.verdict, result.reason) == (PASS, "OWN_CONNECTION")
    p.assert_same(result.packet, frame)


@both_uplinks
def test_own_connections_tcp_from_a_node_port(datapath: Datapath, opened: Open, program: str) -> None:
    """The node has connected to a server from a port that is a NodePort; others still reach the Service."""
    datapath.apply(service(p.BACKEND_LOCAL))
    opened(socket.SOCK_STREAM, NODE_PORT, SERVER)
    for flags in ("SA", "A", "PA", "FA", "R"):
        untouched(datapath, program, p.tcp(p.FROM_CLIENT, SERVER, NODE_VIP, flags))
    other = p.tcp(p.FROM_CLIENT, (p.CLIENT_2, 443), NODE_VIP, "A")
    assert datapath.run(program, other).reason == "NEW_LOCAL"
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, SERVER, NODE_VIP, "S")).reason == "NEW_LOCAL"


@both_uplinks
def test_own_connections_udp_from_a_node_port(datapath: Datapath, opened: Open, program: str) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    opened(socket.SOCK_DGRAM, NODE_PORT, SERVER)
    untouched(datapath, program, p.udp(p.FROM_CLIENT, SERVER, NODE_VIP))
    assert datapath.run(program, p.udp(p.FROM_CLIENT, (p.CLIENT, 444), NODE_VIP)).reason == "NEW_LOCAL"


def test_own_connections_to_a_pod(datapath: Datapath, opened: Open) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    server = (p.POD_CLIENT, 443)
    opened(socket.SOCK_STREAM, NODE_PORT, server)
    untouched(datapath, TC_POD_IN, p.tcp(p.FROM_POD, server, NODE_VIP, "SA"))
    untouched(datapath, TC_POD_IN, p.tcp(p.FROM_POD, server, NODE_VIP, "A"))


@both_uplinks
def test_own_connections_come_after_flows(datapath: Datapath, opened: Open, program: str) -> None:
    """A client's flow is older than the socket that the node has opened to the client's very port."""
    datapath.apply(service(p.BACKEND_LOCAL))
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, SERVER, NODE_VIP, "S")).reason == "NEW_LOCAL"
    opened(socket.SOCK_STREAM, NODE_PORT, SERVER)
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, SERVER, NODE_VIP, "A")).reason == "FLOW_HIT"


@both_uplinks
@pytest.mark.parametrize("over", ["closed", "forgotten"])
def test_own_connections_come_before_flows_that_are_over(
    datapath: Datapath, opened: Open, program: str, over: str
) -> None:
    """The twin's seed 2000360: from its NodePort the node connects to the port that a client came from."""
    datapath.apply(service(p.BACKEND_LOCAL))
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, SERVER, NODE_VIP, "S")).reason == "NEW_LOCAL"
    keys, values = datapath.read("flows")
    if over == "closed":
        values["state"] = FlowState.CLOSED
        values["fins"] = FlowSign.FIN_CLIENT | FlowSign.FIN_BACKEND
    else:
        values["last_seen"] -= np.uint64(3600 * 10**9)
        values["touched"] = 0
    datapath.update("flows", keys, values)
    one = opened(socket.SOCK_STREAM, NODE_PORT, SERVER)
    for flags in ("SA", "RA", "A"):
        untouched(datapath, program, p.tcp(p.FROM_CLIENT, SERVER, NODE_VIP, flags))
    one.close()
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, SERVER, NODE_VIP, "A")).reason == "FLOW_HIT"


@both_uplinks
def test_own_connections_a_listener_takes_no_flow_that_was_lost(
    datapath: Datapath, opened: Open, program: str
) -> None:
    """Whoever listens on a NodePort has not opened the connection: it is led to where the hash says."""
    datapath.apply(service(p.BACKEND_LOCAL))
    opened(socket.SOCK_STREAM, NODE_PORT, listens=True)
    assert datapath.run(program, p.tcp(p.FROM_CLIENT, SERVER, NODE_VIP, "A")).reason == "NEW_LOCAL"


@both_uplinks
def test_own_connections_are_no_matter_at_other_addresses(datapath: Datapath, program: str) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    for kind in (VipKind.CLUSTER_IP, VipKind.LOAD_BALANCER):
        assert datapath.run(program, p.tcp(p.FROM_CLIENT, SERVER, VIPS[kind], "A")).reason == "NEW_LOCAL"


def test_own_connections_the_nodes_answer_to_a_port_that_is_a_vips(datapath: Datapath, opened: Open) -> None:
    """Another machine has connected to the node from an address and port that are a Service's."""
    datapath.apply(service(p.BACKEND_REMOTE))
    peer = VIPS[VipKind.EXTERNAL_IP]
    untouched(datapath, TC_UPLINK_OUT, p.tcp(p.TO_CLIENT, (p.NODE1, 22), peer, "SA"), from_host=True)
    opened(socket.SOCK_STREAM, 22, listens=True)
    untouched(datapath, TC_UPLINK_OUT, p.tcp(p.TO_CLIENT, (p.NODE1, 22), peer, "PA"), from_host=True)
    request = p.tcp(p.TO_CLIENT, (p.NODE1, 40_000), peer, "S")
    result = datapath.run(TC_UPLINK_OUT, request, from_host=True)
    assert (result.verdict, result.reason) == (SEND, "NEW_REMOTE")


@pytest.mark.parametrize("protocol", BUILD)
def test_a_vip_that_is_a_backend_is_left_to_the_next_node(datapath: Datapath, protocol: Protocol) -> None:
    """What the node has sent to such a backend passes the hook again, here without end: it is its own."""
    plan = service(p.BACKEND_REMOTE, protocol=protocol, vips=[VipKind.EXTERNAL_IP])
    (port,) = plan.ports
    vip = Vip(VipKey(ip_address(p.here(p.BACKEND_REMOTE)), TARGET_PORT, protocol), VipKind.EXTERNAL_IP)
    datapath.apply(replace(plan, ports=(replace(port, vips=(*port.vips, vip)),)))
    request = BUILD[protocol](p.TO_CLIENT, (p.NODE1, 40_000), VIPS[VipKind.EXTERNAL_IP])
    for reason in ("NEW_REMOTE", "FLOW_HIT"):
        first = datapath.run(TC_UPLINK_OUT, request, from_host=True)
        assert (first.verdict, first.reason) == (SEND, reason)
        untouched(datapath, TC_UPLINK_OUT, first.packet, from_host=True)


@both_uplinks
@pytest.mark.parametrize("protocol", BUILD)
def test_services_that_are_each_others_endpoint_end_after_four_turns(
    datapath: Datapath, program: str, protocol: Protocol
) -> None:
    """A router leads each one's address back to the node; shorter ways from Service to Service go on."""
    addresses = (p.BACKEND_REMOTE, p.BACKEND_REMOTE_2)
    plans = []
    for name, here, there in zip("ab", addresses, addresses[::-1], strict=True):
        plan = service(there, name=name, protocol=protocol, vips=[VipKind.EXTERNAL_IP], whole=False)
        (port,) = plan.ports
        vip = Vip(VipKey(ip_address(p.here(here)), TARGET_PORT, protocol), VipKind.EXTERNAL_IP)
        plans.append(replace(plan, ports=(replace(port, vips=(vip,)),)))
    datapath.apply(*plans)
    first = BUILD[protocol](p.FROM_CLIENT, (p.CLIENT, 40_000), (addresses[0], TARGET_PORT))
    for reason in ("NEW_REMOTE", "FLOW_HIT"):
        frame = first
        for _ in range(4):
            result = datapath.run(program, frame)
            assert (result.verdict, result.reason) == (SEND, reason)
            frame = p.rebuilt(result.packet, link=p.FROM_CLIENT)
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason) == (DROP, "SERVICE_LOOP")


@both_uplinks
@pytest.mark.parametrize("family", [4], indirect=True, ids=["ipv4"])  # pyroute2 writes no other tuples
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_own_connections_of_a_pod_that_the_node_masquerades(
    datapath: Datapath, program: str, protocol: Protocol
) -> None:
    """Netfilter has given a pod's connection the node's address, and a port that is a NodePort."""
    if not features.optional()["CONNTRACK"]:
        pytest.skip("programs cannot ask this kernel's conntrack: see docs/kernels.md")
    server = (p.CLIENT, 443 + OUTSIDE_INGRESS.index(program))  # what was added stays
    datapath.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    with datapath.namespace.entered(), NFCTSocket() as conntrack:
        asked = NFCTAttrTuple(
            saddr=p.here(p.POD_CLIENT), daddr=p.here(p.CLIENT), proto=protocol, sport=40_000, dport=server[1]
        )
        answered = NFCTAttrTuple(
            saddr=p.here(p.CLIENT), daddr=p.here(p.NODE1), proto=protocol, sport=server[1], dport=NODE_PORT
        )
        more = {"tcp_state": 3} if protocol is Protocol.TCP else {}
        conntrack.entry(
            "add", tuple_orig=asked, tuple_reply=answered, timeout=60, status=SEEN_REPLY_AND_ASSURED, **more
        )
    for flags in ("SA", "A", "PA"):
        frame = (
            p.tcp(p.FROM_CLIENT, server, NODE_VIP, flags)
            if protocol is Protocol.TCP
            else p.udp(p.FROM_CLIENT, server, NODE_VIP)
        )
        untouched(datapath, program, frame)
    other = BUILD[protocol](p.FROM_CLIENT, (p.CLIENT_2, 443), NODE_VIP)
    assert datapath.run(program, other).reason == "NEW_LOCAL"
