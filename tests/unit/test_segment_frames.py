# SPDX-License-Identifier: Apache-2.0
"""Frames on the segment: beats between nodes, and announcements to everybody, read by Scapy."""

from __future__ import annotations

from ipaddress import ip_address

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from lb.announce.servable import Standing
from lb.segment.announcements import announcements
from lb.segment.election import Claim, Hold, Member
from lb.segment.heartbeats import Heartbeats, frames

MAC = "02:00:00:00:00:01"
ME = Member("node1", MAC)
CLAIMS = {
    ip_address("192.0.2.10"): Claim(Standing.SERVES, Hold.HELD),
    ip_address("192.0.2.11"): Claim(Standing.LAST),
    ip_address("2001:db8::10"): Claim(Standing.LEAVING, Hold.OFFERED),
}


def test_beats_are_read_as_they_were_sent() -> None:
    [frame] = frames(ME, 7, CLAIMS)
    assert frame[:14].hex(":") == "ff:ff:ff:ff:ff:ff:" + MAC + ":88:b5"
    assert Heartbeats().read(frame + bytes(20)) == (ME, CLAIMS)  # a short frame is padded on its way
    [empty] = frames(ME, 8, {})
    assert Heartbeats().read(empty) == (ME, {})


def test_beats_of_many_addresses_come_in_parts() -> None:
    claims = {ip_address(f"2001:db8::{number:x}"): Claim(Standing.SERVES) for number in range(1, 301)}
    parts = frames(ME, 1, claims)
    assert len(parts) > 5
    assert max(map(len, parts)) <= 1514
    beats = Heartbeats()
    lost = [beats.read(part) for part in parts[:-1]]  # the last one of the first beat is lost
    assert not any(lost)
    again = [beats.read(part) for part in reversed(frames(ME, 2, claims))]
    assert [one for one in again if one] == [(ME, claims)]


def test_beats_of_strangers_are_refused() -> None:
    [good] = frames(ME, 1, CLAIMS)
    beats = Heartbeats()
    bad = [
        b"",
        good[:20],
        good[:-4],
        good[:12] + b"\x08\x06" + good[14:],
        good.replace(b"LBA1", b"LBA2"),
        good.replace(b"[", b"{", 1),
        good.replace(b"192.0.2.10", b"192.0.2.x0"),
        good.replace(b'"sh"', b'"zz"'),
        good.replace(b",1,0,1,", b",1,3,1,"),
        good.replace(b'"node1"', b'""     '),
    ]
    assert not any(beats.read(frame) for frame in bad)
    assert beats.refused == len(bad)


def test_announcements_of_ipv4_are_a_request_and_a_reply() -> None:
    request, reply = (
        Ether(one) for one in announcements(ip_address("192.0.2.10"), bytes.fromhex("020000000001"))
    )
    for frame, operation in ((request, 1), (reply, 2)):
        arp = frame[ARP]
        assert (frame.dst, frame.src, arp.op) == ("ff:ff:ff:ff:ff:ff", MAC, operation)
        assert (arp.hwsrc, arp.psrc, arp.pdst) == (MAC, "192.0.2.10", "192.0.2.10")


def test_announcement_of_ipv6_overrides() -> None:
    [data] = announcements(ip_address("2001:db8::10"), bytes.fromhex("020000000001"))
    frame = Ether(data)
    told = frame[ICMPv6ND_NA]
    assert (frame.dst, frame[IPv6].dst, frame[IPv6].src) == ("33:33:00:00:00:01", "ff02::1", "2001:db8::10")
    assert (frame[IPv6].hlim, told.tgt, told.R, told.S, told.O) == (255, "2001:db8::10", 0, 0, 1)
    assert frame[ICMPv6NDOptDstLLAddr].lladdr == MAC
    sent = told.cksum
    del told.cksum
    assert Ether(bytes(frame))[ICMPv6ND_NA].cksum == sent
