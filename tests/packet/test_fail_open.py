# SPDX-License-Identifier: Apache-2.0
"""Contract row fail-open: whatever part of ours is missing, what is not for a VIP leaves as it came.

The parts are taken away while the programs stay at their hooks: single steps, the twins of IPv6, all programs
but the one at the hook (what the kernel does when the last pin goes), and the contents of maps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pytest
from scapy.layers.inet import ICMP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6ND_NS, ICMPv6ND_RA, ICMPv6ND_RS, ICMPv6NDOptSrcLLAddr
from scapy.layers.l2 import ARP, Dot1Q
from scapy.packet import Raw

from lb.datapath.maps import layouts
from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import (
    DROP,
    HOOK_OF,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TAKEN,
    TC_POD_IN,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
    own,
)
from tests.packet.plans import BUILD, PORT, TARGET_PORT, VIPS, service

LINK = p.FROM_CLIENT
CLIENT = (p.CLIENT, p.CLIENT_PORT)
CLUSTER_VIP = VIPS[VipKind.CLUSTER_IP]
HOOKS = len(layouts.HOOKS)
MISSING: dict[str, Callable[[int, int], bool]] = {
    "everything": lambda _number, _version: True,
    "all of IPv6": lambda _number, version: version == 6,
    "all of IPv4": lambda _number, version: version == 4,
    "the twins of hooks": lambda number, version: version == 6 and number < HOOKS,
}
"""By what is missing: whether a program's number and IP version are."""


def _one(step: int) -> Callable[[int, int], bool]:
    return lambda number, _version: number == step


MISSING |= {f"step {name}": _one(number) for number, (name, _) in enumerate(layouts.STEPS, HOOKS)}

each_program = pytest.mark.parametrize("program", HOOK_OF)
each_part = pytest.mark.parametrize("part", MISSING)


def strangers() -> Iterator[tuple[str, bytes]]:
    """Yield what a node lives on, none of it for a VIP."""
    four, six = p.version() == 4, p.version() == 6
    to_node, peer = (p.NODE1, 22), (p.CLIENT, 50022)
    yield "ARP", bytes(p.ether(p.CLIENT_MAC, "ff:ff:ff:ff:ff:ff") / ARP(pdst="192.0.2.1"))
    yield "ARP reply", bytes(LINK / ARP(op=2, pdst="192.0.2.1"))
    for flags in ("S", "SA", "A", "FA", "R"):
        yield f"ssh {flags}", p.tcp(LINK, peer, to_node, flags)
    yield "DNS", p.udp(LINK, (p.CLIENT, 53), (p.NODE1, 40053), b"answer")
    yield "SCTP", p.sctp(LINK, peer, (p.NODE1, 36412))
    yield "ping", p.echo(LINK, p.CLIENT, p.NODE1, b"data")
    yield "SNAT range", p.tcp(LINK, peer, (p.NODE1, 61_005), "A")
    ssh = p.tcp(p.TO_CLIENT, to_node, peer)
    yield "ICMP error", p.icmp_error_for(ssh, p.CLIENT, "port unreachable")
    yield "tagged", bytes(LINK / Dot1Q(vlan=5) / p.ip(p.CLIENT, p.NODE1) / TCP(sport=50022, dport=22))
    yield (
        "another protocol",
        bytes(LINK / p.ip(p.CLIENT, p.NODE1, **{"proto" if four else "nh": 89}) / Raw(b"ospf")),
    )
    yield "no IP", bytes(p.ether(p.CLIENT_MAC, p.NODE1_MAC)) + b"\x88\xcc" + bytes(60)
    yield "truncated", ssh[:40] if six else ssh[:34]
    for number, piece in enumerate(p.pieces(p.udp(LINK, peer, (p.NODE1, 5004), bytes(64)), 32)):
        yield f"piece {number}", piece
    if four:
        yield "options", bytes(LINK / p.ip(p.CLIENT, p.NODE1, options=[IPOption_NOP()] * 4) / UDP(dport=53))
        yield "redirect", bytes(LINK / p.ip(p.CLIENT, p.NODE1) / ICMP(type=5) / Raw(ssh[14:42]))
    else:
        for name, message in {
            "neighbour solicitation": ICMPv6ND_NS(tgt=p.here(p.NODE1))
            / ICMPv6NDOptSrcLLAddr(lladdr=p.CLIENT_MAC),
            "neighbour advertisement": ICMPv6ND_NA(tgt=p.here(p.NODE1)),
            "router solicitation": ICMPv6ND_RS(),
            "router advertisement": ICMPv6ND_RA(),
        }.items():
            yield name, bytes(LINK / p.ip(p.CLIENT, p.NODE1, ttl=255) / message)


def check_strangers(datapath: Datapath, program: str) -> None:
    least = 0 if program == XDP else 14 + (20 if p.version() == 4 else 40)
    for name, frame in strangers():
        if len(frame) < least:
            continue
        result = datapath.run(program, frame)
        assert result.verdict == PASS, f"{name}: {dict(result.reasons)}"
        assert not p.difference(result.packet, frame), name


@pytest.fixture
def served(datapath: Datapath) -> Datapath:
    """A Service of each protocol at one clusterIP, and one with addresses of every other kind."""
    plans = [
        service(
            p.BACKEND_LOCAL,
            name=protocol.name.lower(),
            protocol=protocol,
            vips=[VipKind.CLUSTER_IP],
            whole=protocol is Protocol.TCP,
        )
        for protocol in Protocol
    ]
    others = [kind for kind in VIPS if kind is not VipKind.CLUSTER_IP]
    datapath.apply(*plans, service(p.BACKEND_LOCAL, name="others", vips=others))
    return datapath


@each_program
@each_part
def test_fail_open_without_programs(served: Datapath, part: str, program: str) -> None:
    with served.without_programs(MISSING[part]):
        check_strangers(served, program)


@each_program
@pytest.mark.parametrize("name", ["settings", "ifaces", "backends", "vips", "hashing", "tables", "traffic"])
def test_fail_open_without_what_maps_hold(served: Datapath, name: str, program: str) -> None:
    """As if the map had just been made anew, and nobody had come to fill it."""
    name = name if name == "tables" else own(name)
    keys, values = served.maps.read(name)
    if name.startswith(("ifaces", "vips")):
        served.maps.delete(name, keys)
    else:
        served.maps.update(name, keys, np.zeros_like(values))
    try:
        check_strangers(served, program)
    finally:
        served.maps.update(name, keys, values)


def to_vips() -> Iterator[tuple[str, bytes]]:
    for kind, vip in VIPS.items():
        yield f"SYN to a {kind.name}", p.tcp(LINK, CLIENT, vip)
        yield f"segment to a {kind.name}", p.tcp(LINK, CLIENT, vip, "A")
    for protocol, build in BUILD.items():
        yield f"{protocol.name} to a clusterIP", build(LINK, CLIENT, CLUSTER_VIP)
    yield "ping", p.echo(LINK, p.CLIENT, CLUSTER_VIP[0], b"data")
    yield "unknown port", p.udp(LINK, CLIENT, (CLUSTER_VIP[0], 9))
    for number, piece in enumerate(p.pieces(p.udp(LINK, CLIENT, CLUSTER_VIP, bytes(64)), 32)):
        yield f"piece {number}", piece
    about = p.tcp(p.TO_CLIENT, CLUSTER_VIP, CLIENT)
    yield "ICMP error", p.icmp_error_for(about, p.CLIENT, "port unreachable")


@pytest.mark.parametrize("program", [TC_UPLINK_IN, TC_POD_IN])
def test_fail_open_what_is_for_a_vip_goes_nowhere(served: Datapath, program: str) -> None:
    """Untranslated it must not reach the stack, which would answer it, or lead it back to the router."""
    with served.without_programs(MISSING["everything"]):
        for name, frame in to_vips():
            result = served.run(program, frame)
            assert (result.verdict, result.reason) == (DROP, "STEP_MISSING_VIP"), name


@pytest.mark.parametrize("program", [TC_UPLINK_IN, TC_POD_IN])
def test_fail_open_another_version_gets_what_is_for_a_vip(served: Datapath, program: str) -> None:
    """It has removed our programs and nothing else; its own are behind ours at the hook."""
    with served.without_programs(MISSING["everything"], another_serves=True):
        for name, frame in to_vips():
            result = served.run(program, frame)
            assert result.verdict == PASS, name
            assert not p.difference(result.packet, frame), name
        check_strangers(served, program)


def test_fail_open_xdp_leaves_it_to_tc(served: Datapath) -> None:
    with served.without_programs(MISSING["everything"]):
        for name, frame in to_vips():
            result = served.run(XDP, frame)
            assert (result.verdict, result.reason) == (PASS, "STEP_MISSING"), name
            assert not p.difference(result.packet, frame), name


@pytest.mark.parametrize("program", [TC_UPLINK_IN, TC_POD_IN])
@each_part
def test_fail_open_never_lets_a_packet_to_a_vip_go_untranslated(
    served: Datapath, part: str, program: str
) -> None:
    """Whichever part is missing: a packet to a VIP is translated, answered, held or dropped.

    Not so an ICMP error: one about no connection goes on, as ever.
    """
    with served.without_programs(MISSING[part]):
        for name, frame in to_vips():
            if name == "ICMP error":
                continue
            result = served.run(program, frame)
            assert result.verdict in (DROP, SEND, TAKEN) or result.packet != frame, f"{name}: {result.reason}"


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_fail_open_ipv6_goes_the_long_way_where_its_twins_are_missing(served: Datapath, program: str) -> None:
    with served.without_programs(MISSING["the twins of hooks"]):
        result = served.run(program, p.tcp(LINK, CLIENT, CLUSTER_VIP))
    assert (result.verdict, result.reason) == (PASS, "NEW_LOCAL")


def test_fail_open_known_flows_go_on_while_there_is_nothing_new_of_them(served: Datapath) -> None:
    """The short way needs no step; a reply that would need one does not leave with the backend's address.

    Steps are taken away one by one, and a flow is looked at anew after 0.25 s: so no more than needed.
    """
    needed = {"INGRESS", "EGRESS"}
    numbers = {HOOKS + at for at, (name, _) in enumerate(layouts.STEPS) if name in needed}
    served.run(TC_UPLINK_IN, p.tcp(LINK, CLIENT, CLUSTER_VIP))
    back = (p.TO_CLIENT, (p.BACKEND_LOCAL, TARGET_PORT), (CLIENT[0], p.moved(CLIENT[1])))
    served.run(TC_UPLINK_OUT, p.tcp(*back, "SA"))
    served.run(TC_UPLINK_IN, p.tcp(LINK, CLIENT, CLUSTER_VIP, "A"))
    with served.without_programs(lambda number, version: number in numbers and version == p.version()):
        result = served.run(TC_UPLINK_IN, p.tcp(LINK, CLIENT, CLUSTER_VIP, "A"))
        assert (result.verdict, result.reason) == (PASS, "FLOW_HIT")
        result = served.run(TC_UPLINK_OUT, p.tcp(*back, "A"))
        assert (result.verdict, result.reason) == (PASS, "REPLY")
        result = served.run(TC_UPLINK_OUT, p.tcp(*back, "FA"))
        assert (result.verdict, result.reason) == (DROP, "STEP_MISSING_VIP")
    assert PORT != TARGET_PORT
