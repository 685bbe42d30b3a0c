# SPDX-License-Identifier: Apache-2.0
"""Frames on the segment: beats between nodes, and announcements to everybody, read by Scapy."""

from __future__ import annotations

from ipaddress import ip_address

from scapy.layers.inet6 import ICMPv6ND_NA, ICMPv6NDOptDstLLAddr, IPv6
from scapy.layers.l2 import ARP, Ether

from lb.announce.servable import Standing
from lb.model import IPAddress
from lb.segment.announcements import announcements
from lb.segment.election import Claim, Hold, Member
from lb.segment.heartbeats import MOST_ADDRESSES, Heartbeats, Teller

MAC = "02:00:00:00:00:01"
ME = Member("node1", MAC)
CLAIMS = {
    ip_address("192.0.2.10"): Claim(Standing.SERVES, Hold.HELD),
    ip_address("192.0.2.11"): Claim(Standing.LAST),
    ip_address("2001:db8::10"): Claim(Standing.LEAVING, Hold.OFFERED),
}


OTHER = Member("node2", "02:00:00:00:00:02")


def all_of(family: str, many: int = MOST_ADDRESSES) -> dict[IPAddress, Claim]:
    """Return so many addresses, every second of which is owned."""
    first = int(ip_address(family))
    make = type(ip_address(family))
    holds = (Hold.FREE, Hold.HELD)
    return {make(first + at): Claim(Standing.SERVES, holds[at % 2]) for at in range(many)}


def test_beats_are_read_as_they_were_sent() -> None:
    teller, beats = Teller(ME), Heartbeats(OTHER)
    for claims in (CLAIMS, {}, CLAIMS):
        whole, short = teller.beat(claims)
        assert whole[:14].hex(":") == "ff:ff:ff:ff:ff:ff:" + MAC + ":88:b5"
        assert beats.read(whole + bytes(20)) == (ME, claims)  # a short frame is padded on its way
        assert beats.read(short + bytes(20)) == (ME, claims)
    assert not beats.missing


def test_while_nothing_changes_a_beat_is_one_short_frame_whatever_there_is_to_tell() -> None:
    teller, beats = Teller(ME), Heartbeats(OTHER)
    claims = {**all_of("192.0.2.0"), **all_of("2001:db8::")}
    whole = teller.beat(claims)
    assert max(map(len, whole)) <= 1514
    assert [beats.read(frame) for frame in whole][-2:] == [(ME, claims)] * 2
    [short] = teller.beat(claims)
    assert len(short) < 100
    assert beats.read(short) == (ME, claims)
    changed = {**claims, ip_address("192.0.2.0"): Claim(Standing.LAST)}
    assert [beats.read(frame) for frame in teller.beat(changed)][-1] == (ME, changed)


def test_2000_addresses_take_nine_frames_in_ipv4_and_thirty_in_ipv6() -> None:
    assert [len(Teller(ME).beat(all_of(each, 2000))) for each in ("192.0.2.0", "2001:db8::")] == [9, 30]


def test_the_longest_name_leaves_room_for_a_part_and_for_what_is_missing() -> None:
    missing = [Member("x", f"02:00:00:00:{at >> 8:02x}:{at & 255:02x}") for at in range(1000)]
    sent = Teller(Member("n" * 253, MAC)).beat(all_of("2001:db8::", 200), missing)
    assert max(map(len, sent)) <= 1514


def test_who_has_lost_a_frame_asks_and_is_told_again() -> None:
    """Until then it does not hear the other: what that says may be another thing than before."""
    teller, beats = Teller(ME), Heartbeats(OTHER)
    claims = all_of("2001:db8::", 300)
    *whole, short = teller.beat(claims)
    assert not any(map(beats.read, [*whole[1:], short]))  # the first part is lost
    assert beats.missing == {ME}
    mine = Heartbeats(ME)
    [*_, asking] = Teller(OTHER).beat({}, beats.missing)
    mine.read(asking)
    assert mine.asked
    assert not Heartbeats(Member("node3", "02:00:00:00:00:03")).asked
    again = [beats.read(frame) for frame in teller.beat(claims, whole=mine.asked)]
    assert again[-1] == (ME, claims)
    assert not beats.missing


def test_parts_of_two_beats_are_not_put_together() -> None:
    teller, beats = Teller(ME), Heartbeats(OTHER)
    *first, _ = teller.beat(all_of("2001:db8::", 100))
    *second, _ = teller.beat(all_of("2001:db8::1:0", 100))
    assert len(first) == len(second) == 2
    assert not any(map(beats.read, (first[0], second[1])))


def test_beats_of_strangers_are_refused() -> None:
    good, _ = Teller(ME).beat(CLAIMS)
    beats = Heartbeats(OTHER)
    bad = [
        b"",
        good[:20],
        good[:-4],
        good[:12] + b"\x08\x06" + good[14:],
        good.replace(b"LBA1", b"LBA2"),
        good[:20] + b"\x81" + good[21:],  # a map in the place of an array
        good.replace(b"\xc4\x04", b"\xc4\x03").replace(b"\xa2sh", b"\xa2sh", 1),
        good.replace(b"\xa2sh", b"\xa2zz"),
        good.replace(b"\x01\x00\x01\xc4\x00", b"\x01\x03\x01\xc4\x00"),  # the fourth part of one
        good.replace(b"\xa5node1", b"\xa0"),
    ]
    assert good not in bad
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
