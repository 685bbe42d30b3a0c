# SPDX-License-Identifier: Apache-2.0
"""Packets that await segmentation, as a veth or virtio hands them on, at an uplink with generic XDP."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Iterator

import pytest
from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether

from lb.config import UplinkMode
from lb.datapath.attach.netlink import Netlink
from lb.datapath.kernel.rtnl import Direction
from tests import packets as p
from tests.packet import wire
from tests.packet.harness import TC_UPLINK_IN, XDP, Datapath
from tests.packet.plans import TARGET_PORT, VIPS, service
from tests.packet.rows import ONE_SNAT_PORT, SNAT_PORT

VIP = next(iter(VIPS.values()))
CLIENT = (p.CLIENT, p.CLIENT_PORT)
PAYLOAD = bytes(range(250)) * 40  # 10,000 bytes, in segments that fit the way on
_SOL_PACKET, _PACKET_VNET_HDR = 263, 15
_NEEDS_CSUM = 1
_GSO_TCP = {4: 1, 6: 4}


@contextlib.contextmanager
def generic_xdp(datapath: Datapath) -> Iterator[None]:
    """Attach the programs of an uplink's ingress meanwhile: XDP in generic mode, and tc behind it."""
    with datapath.namespace.entered(), Netlink() as net:
        (uplink,) = (each for each in net.interfaces() if each.name == "up0")
        net.attach_tc(uplink, Direction.INGRESS, TC_UPLINK_IN, datapath.program(TC_UPLINK_IN))
        net.attach_xdp(uplink, UplinkMode.XDP_GENERIC, datapath.program(XDP))
    try:
        yield
    finally:
        with datapath.namespace.entered(), Netlink() as net:
            (uplink,) = (each for each in net.interfaces() if each.name == "up0")
            net.detach_xdp(uplink)
            net.detach_tc(uplink)


def unfinished(frame: bytes) -> bytes:
    """Return a TCP frame whose checksum is still the pseudo header's sum: the device does the rest."""
    packet, head = Ether(frame), p.l3(frame)
    addresses = socket.inet_pton(socket.AF_INET6 if p.version() == 6 else socket.AF_INET, head.src)
    addresses += socket.inet_pton(socket.AF_INET6 if p.version() == 6 else socket.AF_INET, head.dst)
    words = addresses + struct.pack("!HH", 6, len(head.payload))
    total = sum(struct.unpack(f"!{len(words) // 2}H", words))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    packet[TCP].chksum = total
    return bytes(packet)


def send(datapath: Datapath, frame: bytes, gso_size: int) -> None:
    """Have a frame that awaits segmentation come in by the uplink."""
    l4 = len(frame) - len(p.l3(frame).payload)
    header = struct.pack("=BBHHHH", _NEEDS_CSUM, _GSO_TCP[p.version()], l4 + 20, gso_size, l4, 16)
    with datapath.namespace.entered():
        link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
    with link:
        link.setsockopt(_SOL_PACKET, _PACKET_VNET_HDR, 1)
        link.bind(("up0-peer", 0))
        link.send(header + frame)


@pytest.mark.parametrize("backend", [p.BACKEND_REMOTE, p.BACKEND_NARROW])
def test_unsegmented_is_not_too_big_for_generic_xdp(datapath: Datapath, backend: str) -> None:
    """XDP is not told of the segments' size, and leaves it to tc, which sends the packet on whole."""
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(backend))
    assert datapath.run(TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, VIP)).reason == "NEW_REMOTE"
    before = datapath.counters()
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A", PAYLOAD)
    out = p.rebuilt(frame, link=p.TO_NODE2, src=(p.NODE1, SNAT_PORT), dst=(backend, TARGET_PORT), ttl=63)
    with datapath.namespace.entered():
        end = wire.peer("up0")
    with generic_xdp(datapath), contextlib.closing(end):
        send(datapath, unfinished(frame), 1200)
        end.expect(unfinished(out))
    after = datapath.counters()
    for hook, reason in (("XDP_UPLINK", "TO_TC"), ("TC_UPLINK_IN", "FLOW_HIT")):
        assert after[hook, reason] == before.get((hook, reason), 0) + 1
    assert not [key for key in after if key[1] == "TOO_BIG"]
