"""What is not ours leaves as it came, and is counted: foreign, odd, malformed and truncated packets."""

from __future__ import annotations

import struct

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPOption_NOP
from scapy.layers.inet6 import IPv6
from scapy.layers.l2 import ARP, Dot1AD, Dot1Q
from scapy.packet import Raw

from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import HOOK_OF, PASS, TC_UPLINK_IN, XDP, Datapath
from tests.packet.plans import VIPS, service

VIP, PORT = VIPS[VipKind.CLUSTER_IP]
LINK = p.FROM_CLIENT
TO_VIP = {"src": p.CLIENT, "dst": VIP, "id": 7}
SEGMENT = TCP(sport=p.CLIENT_PORT, dport=PORT, flags="S")
DATAGRAM = UDP(sport=p.CLIENT_PORT, dport=PORT)
GOOD = bytes(LINK / IP(**TO_VIP) / SEGMENT)
GOOD_UDP = bytes(LINK / IP(**TO_VIP) / DATAGRAM / Raw(b"four"))


def _patched(frame: bytes, offset: int, value: bytes) -> bytes:
    return frame[:offset] + value + frame[offset + len(value) :]


FOREIGN = {
    "ARP": (bytes(LINK / ARP(pdst=VIP)), "NOT_IPV4"),
    "IPv6": (bytes(LINK / IPv6(dst="2001:db8::1") / TCP(dport=PORT)), "NOT_IPV4"),
    "VLAN": (bytes(LINK / Dot1Q(vlan=5) / IP(**TO_VIP) / SEGMENT), "VLAN"),
    "VLAN in VLAN": (bytes(LINK / Dot1AD(vlan=5) / Dot1Q(vlan=6) / IP(**TO_VIP) / SEGMENT), "VLAN"),
    "ICMP": (bytes(LINK / IP(**TO_VIP) / ICMP()), "OTHER_PROTOCOL"),
    "SCTP": (bytes(LINK / IP(proto=132, **TO_VIP) / Raw(bytes(12))), "OTHER_PROTOCOL"),
    "IP options": (bytes(LINK / IP(options=[IPOption_NOP()] * 4, **TO_VIP) / SEGMENT), "IP_OPTIONS"),
    "first fragment": (bytes(LINK / IP(flags="MF", **TO_VIP) / SEGMENT), "FRAGMENT"),
    "later fragment": (bytes(LINK / IP(frag=185, **TO_VIP) / Raw(bytes(40))), "FRAGMENT"),
    **{
        f"from {source}": (bytes(LINK / IP(src=source, dst=VIP) / SEGMENT), "MARTIAN")
        for source in ("0.0.0.0", "127.0.0.1", "224.0.0.1", "239.1.2.3", "255.255.255.255")
    },
    "another address": (bytes(LINK / IP(src=p.CLIENT, dst=p.NOT_A_VIP) / SEGMENT), "NOT_VIP"),
    "another port": (bytes(LINK / IP(**TO_VIP) / TCP(sport=1, dport=PORT + 1)), "NOT_VIP"),
    "another protocol": (GOOD_UDP, "NOT_VIP"),
    "SNAT port without a flow": (
        bytes(LINK / IP(src=p.NODE2, dst=p.NODE1) / TCP(sport=PORT, dport=61_005, flags="A")),
        "NOT_VIP",
    ),
}

MALFORMED = {
    "IP version 6 in an IPv4 frame": _patched(GOOD, 14, b"\x65"),
    "IP version 0": _patched(GOOD, 14, b"\x05"),
    "IP header of 16 bytes": _patched(GOOD, 14, b"\x44"),
    "IP header longer than the packet": _patched(GOOD, 14, b"\x4f"),
    "total length longer than the frame": _patched(GOOD, 16, struct.pack("!H", 1400)),
    "total length within the IP header": _patched(GOOD, 16, struct.pack("!H", 19)),
    "total length within the TCP header": _patched(GOOD, 16, struct.pack("!H", 39)),
    "total length within the UDP header": _patched(GOOD_UDP, 16, struct.pack("!H", 27)),
    "TCP header of 16 bytes": _patched(GOOD, 46, b"\x40"),
    "TCP header longer than the packet": _patched(GOOD, 46, b"\x60"),
    "UDP length of 7": _patched(GOOD_UDP, 38, struct.pack("!H", 7)),
    "UDP length longer than the packet": _patched(GOOD_UDP, 38, struct.pack("!H", 13)),
}


def _check(datapath: Datapath, program: str, frame: bytes, reason: str) -> None:
    result = datapath.run(program, frame)
    assert (result.verdict, dict(result.reasons)) == (PASS, {(HOOK_OF[program], reason): 1})
    p.assert_same(result.packet, frame)
    assert len(datapath.maps.read("flows4")[0]) == 0


@pytest.mark.parametrize("program", HOOK_OF)
@pytest.mark.parametrize(("frame", "reason"), FOREIGN.values(), ids=FOREIGN)
def test_foreign_packet(datapath: Datapath, program: str, frame: bytes, reason: str) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    _check(datapath, program, frame, reason)


@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01", p.NODE2_MAC])
@pytest.mark.parametrize("backends", [(), (p.BACKEND_LOCAL,), (p.BACKEND_REMOTE,)], ids=str)
def test_frame_to_another_host_or_to_many(datapath: Datapath, mac: str, backends: tuple[str, ...]) -> None:
    """A switch floods what it cannot place: the node that it is for translates it, and no other."""
    datapath.apply(service(*backends))
    frame = p.tcp(p.ether(p.CLIENT_MAC, mac), (p.CLIENT, p.CLIENT_PORT), (VIP, PORT))
    _check(datapath, TC_UPLINK_IN, frame, "NOT_FOR_US")


@pytest.mark.parametrize("mac", ["ff:ff:ff:ff:ff:ff", p.NODE2_MAC])
def test_xdp_forwards_nothing_to_another_host_or_to_many(datapath: Datapath, mac: str) -> None:
    datapath.apply(service(p.BACKEND_REMOTE))
    frame = p.tcp(p.ether(p.CLIENT_MAC, mac), (p.CLIENT, p.CLIENT_PORT), (VIP, PORT))
    _check(datapath, XDP, frame, "TO_TC")


@pytest.mark.parametrize("program", HOOK_OF)
@pytest.mark.parametrize("frame", MALFORMED.values(), ids=MALFORMED)
def test_malformed_packet(datapath: Datapath, program: str, frame: bytes) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    _check(datapath, program, frame, "MALFORMED")


@pytest.mark.parametrize("program", HOOK_OF)
@pytest.mark.parametrize("frame", [GOOD, GOOD_UDP], ids=["TCP", "UDP"])
def test_truncated_packet(datapath: Datapath, program: str, frame: bytes) -> None:
    """Cut after each byte behind the Ethernet header: never touched, never taken for something else.

    A test run of a tc program takes no IPv4 frame without a whole IP header.
    """
    datapath.apply(service(p.BACKEND_LOCAL))
    for length in range(14 if program == XDP else 34, len(frame)):
        _check(datapath, program, frame[:length], "MALFORMED")


@pytest.mark.parametrize("program", HOOK_OF)
def test_bytes_are_counted(datapath: Datapath, program: str) -> None:
    datapath.run(program, GOOD)
    keys, values = datapath.maps.read("reasons")
    assert values["bytes"].sum() == len(GOOD)
    assert values["packets"].sum() == 1
    assert len(keys) == len(values)
