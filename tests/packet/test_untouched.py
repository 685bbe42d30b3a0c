# SPDX-License-Identifier: Apache-2.0
"""What is not ours leaves as it came, and is counted: foreign, odd, malformed and truncated packets."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6MLReport,
    ICMPv6ND_NS,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q
from scapy.packet import Packet, Raw

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import HOOK_OF, OUTSIDE_INGRESS, PASS, TC_UPLINK_IN, XDP, Datapath
from tests.packet.plans import VIPS, service

VIP, PORT = VIPS[VipKind.CLUSTER_IP]
LINK = p.FROM_CLIENT
CLIENT = (p.CLIENT, p.CLIENT_PORT)
SEGMENT = TCP(sport=p.CLIENT_PORT, dport=PORT, flags="S")

each_program = pytest.mark.parametrize("program", HOOK_OF)
Rows = Iterator[tuple[str, bytes, str]]


def to_vip(**fields: Any) -> Packet:
    return p.ip(p.CLIENT, VIP, **fields)


def _patched(frame: bytes, offset: int, value: bytes) -> bytes:
    return frame[:offset] + value + frame[offset + len(value) :]


def _vlan_and_link_layer() -> Rows:
    yield "ARP", bytes(LINK / ARP(pdst="10.96.0.10")), "NOT_IP"
    yield "PPPoE", bytes(p.ether(p.CLIENT_MAC, p.NODE1_MAC)) + b"\x88\x64" + bytes(60), "NOT_IP"
    yield "VLAN", bytes(LINK / Dot1Q(vlan=5) / to_vip() / SEGMENT), "VLAN"
    yield "VLAN in VLAN", bytes(LINK / Dot1AD(vlan=5) / Dot1Q(vlan=6) / to_vip() / SEGMENT), "VLAN"
    yield (
        "GRE",
        bytes(LINK / to_vip(**{"proto" if p.version() == 4 else "nh": 47}) / Raw(bytes(40))),
        "OTHER_PROTOCOL",
    )


def _ipv4_only() -> Rows:
    yield "echo reply", bytes(LINK / to_vip() / ICMP(type=0)), "OTHER_PROTOCOL"
    yield "redirect", bytes(LINK / to_vip() / ICMP(type=5) / to_vip() / SEGMENT), "OTHER_PROTOCOL"
    yield "echo of an odd code", bytes(LINK / to_vip() / ICMP(type=8, code=1)), "OTHER_PROTOCOL"
    for source in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255"):
        yield f"from {source}", bytes(LINK / IP(src=source, dst=VIP) / SEGMENT), "MARTIAN"


def _ipv6_only() -> Rows:
    yield "no next header", bytes(LINK / to_vip(nh=59) / Raw(bytes(20))), "OTHER_PROTOCOL"
    yield "echo reply", bytes(LINK / to_vip() / ICMPv6EchoReply()), "OTHER_PROTOCOL"
    yield "neighbour solicitation", bytes(LINK / to_vip() / ICMPv6ND_NS(tgt=p.here(VIP))), "OTHER_PROTOCOL"
    yield "listener report", bytes(LINK / to_vip() / ICMPv6MLReport()), "OTHER_PROTOCOL"
    for source in ("::", "::1", "::ffff:192.0.2.50", "ff02::1", "fe80::1"):
        yield f"from {source}", bytes(LINK / IPv6(src=source, dst=p.here(VIP)) / SEGMENT), "MARTIAN"


def _not_vips() -> Rows:
    yield "another address", p.tcp(LINK, CLIENT, (p.NOT_A_VIP, PORT)), "NOT_VIP"
    yield "the node", p.tcp(LINK, CLIENT, (p.NODE1, PORT)), "NOT_VIP"
    yield "SNAT port without a flow", p.tcp(p.FROM_NODE2, (p.NODE2, PORT), (p.NODE1, 61_005), "A"), "NOT_VIP"


def _good() -> dict[str, bytes]:
    return {
        "TCP": p.tcp(LINK, CLIENT, (VIP, PORT)),
        "UDP": p.udp(LINK, CLIENT, (VIP, PORT), b"four"),
        "SCTP": p.sctp(LINK, CLIENT, (VIP, PORT)),
        "echo": p.echo(LINK, p.CLIENT, VIP, b"four"),
    }


def _malformed() -> Rows:
    l4 = 14 + (20 if p.version() == 4 else 40)
    good = _good()
    segment, datagram = good["TCP"], good["UDP"]
    patches: list[tuple[str, bytes, int, bytes]] = [
        ("TCP header of 16 bytes", segment, l4 + 12, b"\x40"),
        ("TCP header longer than the packet", segment, l4 + 12, b"\x60"),
        ("UDP length of 7", datagram, l4 + 4, struct.pack("!H", 7)),
        ("UDP length longer than the packet", datagram, l4 + 4, struct.pack("!H", 13)),
        ("IP version 0", segment, 14, b"\x05"),
        ("the other IP version", segment, 14, b"\x65" if p.version() == 4 else b"\x45"),
    ]
    if p.version() == 4:
        patches += [
            ("IP header of 16 bytes", segment, 14, b"\x44"),
            ("IP header longer than the packet", segment, 14, b"\x4f"),
        ]
    for name, headers in (("TCP", 20), ("UDP", 8), ("SCTP", 16), ("echo", 8)):
        frame = good[name]
        for what, payload in (("longer than the frame", 1400), (f"within the {name} header", headers - 1)):
            if p.version() == 4:
                patches.append((f"{name}: total length {what}", frame, 16, struct.pack("!H", 20 + payload)))
            else:
                patches.append((f"{name}: payload length {what}", frame, 18, struct.pack("!H", payload)))
    if p.version() == 4:
        patches.append(("total length within the IP header", segment, 16, struct.pack("!H", 19)))
    else:
        patches += [
            ("a jumbogram", segment, 18, bytes(2)),
            ("payload length above what IP can count", segment, 18, b"\xff\xff"),
        ]
    for name, frame, offset, value in patches:
        yield name, _patched(frame, offset, value), "MALFORMED"
    if p.version() == 6:
        short = bytes(LINK / to_vip(nh=44) / Raw(bytes(7)))
        yield "a fragment header that is cut", short, "MALFORMED"


def every_packet() -> Rows:
    """Yield packets that programs leave alone: what each is, the frame, and the reason that is counted."""
    own = _ipv4_only() if p.version() == 4 else _ipv6_only()
    yield from (*_vlan_and_link_layer(), *own, *_not_vips(), *_malformed())


def check(datapath: Datapath, program: str, name: str, frame: bytes, reason: str) -> None:
    result = datapath.run(program, frame)
    assert (result.verdict, dict(result.reasons)) == (PASS, {(HOOK_OF[program], reason): 1}), name
    text = p.difference(result.packet, frame)
    assert not text, f"{name}\n{text}"
    assert len(datapath.read("flows")[0]) == 0, name


@pytest.fixture(params=[(p.BACKEND_LOCAL,), (p.BACKEND_REMOTE,), ()], ids=["here", "away", "none"])
def served(datapath: Datapath, request: pytest.FixtureRequest) -> Datapath:
    """A Service of each protocol at one address."""
    datapath.apply(
        *(
            service(
                *request.param,
                name=protocol.name.lower(),
                protocol=protocol,
                vips=[VipKind.CLUSTER_IP],
                whole=protocol is Protocol.TCP,
            )
            for protocol in Protocol
        )
    )
    return datapath


@each_program
def test_odd_packets_are_left_alone(served: Datapath, program: str) -> None:
    own = _ipv4_only() if p.version() == 4 else _ipv6_only()
    for name, frame, reason in (*_vlan_and_link_layer(), *own, *_not_vips()):
        check(served, program, name, frame, reason)


@each_program
def test_odd_packets_malformed(served: Datapath, program: str) -> None:
    for name, frame, reason in _malformed():
        check(served, program, name, frame, reason)


@each_program
def test_odd_packets_truncated(served: Datapath, program: str) -> None:
    """Cut after each byte behind the Ethernet header: never touched, never taken for something else.

    A test run of a tc program takes no frame without a whole IP header.
    """
    least = 14 if program == XDP else 14 + (20 if p.version() == 4 else 40)
    for name, frame in _good().items():
        for length in range(least, len(frame)):
            check(served, program, f"{name}, {length} bytes", frame[:length], "MALFORMED")


@each_program
def test_odd_packets_another_protocols_port_is_the_nodes(datapath: Datapath, program: str) -> None:
    """At an address that is not a Service's alone, what no port is for goes on."""
    datapath.apply(service(p.BACKEND_LOCAL, vips=[VipKind.NODE_PORT]))
    for name, frame in (
        ("UDP", p.udp(LINK, CLIENT, VIPS[VipKind.NODE_PORT])),
        ("SCTP", p.sctp(LINK, CLIENT, VIPS[VipKind.NODE_PORT])),
        ("another port", p.tcp(LINK, CLIENT, (p.NODE1, PORT))),
    ):
        check(datapath, program, name, frame, "NOT_VIP")


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", "33:33:00:00:00:01", p.NODE2_MAC])
def test_odd_packets_to_another_host_or_to_many(served: Datapath, mac: str, program: str) -> None:
    """A switch floods what it cannot place: the node that it is for translates it, and no other."""
    for name, frame in _frames_to(mac):
        check(served, program, name, frame, "NOT_FOR_US")


def _frames_to(mac: str) -> Iterator[tuple[str, bytes]]:
    """Yield frames that would be translated, answered or looked at if they were for this host."""
    link = p.ether(p.CLIENT_MAC, mac)
    yield "TCP", p.tcp(link, CLIENT, (VIP, PORT))
    yield "UDP", p.udp(link, CLIENT, (VIP, PORT))
    yield "unknown port", p.udp(link, CLIENT, (VIP, PORT + 1))
    yield "echo", p.echo(link, p.CLIENT, VIP)
    yield "VLAN", bytes(link / Dot1Q(vlan=5) / to_vip() / SEGMENT)


def test_odd_packets_xdp_knows_the_interface_that_a_frame_came_in_by(served: Datapath) -> None:
    """Another uplink has another link address; and what Python has not told of is tc's."""
    frame = p.tcp(p.ether(p.CLIENT_MAC, p.UPLINK_2_MAC), CLIENT, (VIP, PORT))
    check(served, XDP, "to the other uplink", frame, "NOT_FOR_US")
    result = served.run(XDP, frame, ifindex=served.uplink_2)
    assert result.reason != "NOT_FOR_US"
    served.reset()
    served.maps.array("links")[0]["links"]["ifindex"] = 0
    check(served, XDP, "to an unknown interface", p.tcp(LINK, CLIENT, (VIP, PORT)), "NOT_FOR_US")


@each_program
def test_bytes_are_counted(datapath: Datapath, program: str) -> None:
    frame = p.tcp(LINK, CLIENT, (p.NODE1, PORT))
    datapath.run(program, frame)
    keys, values = datapath.maps.read("reasons")
    assert values["bytes"].sum() == len(frame)
    assert values["packets"].sum() == 1
    assert len(keys) == len(values)


def test_the_rows_of_odd_packets_can_fail(datapath: Datapath) -> None:
    """A packet that is translated, or counted otherwise, is told."""
    datapath.apply(service(p.BACKEND_LOCAL))
    frame = p.tcp(LINK, CLIENT, (VIP, PORT))
    for reason in ("NEW_LOCAL", "NOT_VIP"):
        with pytest.raises(AssertionError):
            check(datapath, TC_UPLINK_IN, "good", frame, reason)
        datapath.reset()
