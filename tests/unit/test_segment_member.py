# SPDX-License-Identifier: Apache-2.0
"""One interface on its segment: what is sent, what is written to the map, and what becomes of failures."""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from ipaddress import IPv4Interface, ip_address
from types import SimpleNamespace

import pytest

from lb.announce.servable import Standing
from lb.datapath.attach.netlink import Interface
from lb.segment import ownership
from lb.segment.announcements import announcements
from lb.segment.election import TIMING, Claim, Hold, Member
from lb.segment.heartbeats import ETHERTYPE, Heartbeats, Teller
from lb.segment.member import (
    AGAIN_SECONDS,
    FORMER_SECONDS,
    KNOWN_SECONDS,
    ORPHAN_SECONDS,
    Counts,
    SegmentMember,
)
from lb.segment.ownership import SECOND_NS, Entry
from lb.segment.speaker import lag
from tests.fake_maps import FakeMaps

VIP, VIP6 = ip_address("192.0.2.10"), ip_address("2001:db8::10")
SERVES = {VIP: Standing.SERVES, VIP6: Standing.SERVES}
MAC = "02:00:00:00:00:01"
MAC_BYTES = bytes.fromhex("020000000001")
PEER = Member("peer", "02:00:00:00:00:02")
ETH0 = Interface(7, "eth0", "physical", addresses=(IPv4Interface("192.0.2.1/24"),), mac=MAC)
ALL = TIMING.dead + TIMING.settle + 0.5


class FakePort:
    """An interface in memory: sent are the frames that went out, coming those that will be heard."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.coming: list[bytes] = []
        self.broken = False

    def running(self) -> bool:
        return not self.broken

    def send(self, frame: bytes) -> None:
        if self.broken:
            raise OSError(errno.ENETDOWN, "Network is down")
        self.sent.append(frame)

    def received(self) -> Iterator[bytes]:
        coming, self.coming = self.coming, []
        yield from coming


class Bench:
    def __init__(self) -> None:
        self.now = 1000.0
        self.maps, self.port, self.counts = FakeMaps(), FakePort(), Counts()
        self.standings = dict(SERVES)
        self.member = self.begin()

    def begin(self) -> SegmentMember:
        return SegmentMember(
            "node1", ETH0, self.port, self.maps, self.counts, clock=lambda: self.now, clock_ns=self.now_ns
        )

    def now_ns(self) -> int:
        return int(self.now * SECOND_NS)

    def run(self, seconds: float) -> None:
        end = self.now + seconds
        while self.now < end:
            self.now += 0.1
            self.member.turn(self.standings)

    def answered(self) -> set[object]:
        """Return the addresses that the programs answer for now."""
        now = self.now_ns()
        return {address for (_, address), one in ownership.read(self.maps).items() if one.until_ns > now}

    def hear(self, hold: Hold = Hold.FREE, standing: Standing = Standing.SERVES) -> None:
        self.port.coming += Teller(PEER).beat({VIP: Claim(standing, hold)})

    def announced(self) -> list[bytes]:
        return [frame for frame in self.port.sent if frame[12:14] != ETHERTYPE.to_bytes(2, "big")]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_member_that_is_alone_owns_everything_and_tells_the_segment(bench: Bench) -> None:
    bench.run(TIMING.dead)
    assert (bench.answered(), bench.announced()) == (set(), [])
    bench.run(ALL - TIMING.dead + 4.0)
    assert bench.answered() == {VIP, VIP6}
    expected = announcements(VIP, MAC_BYTES) + announcements(VIP6, MAC_BYTES)
    assert {frame: bench.announced().count(frame) for frame in expected} == dict.fromkeys(expected, 4)
    assert (bench.counts.taken, bench.counts.ended) == (2, 0)


def test_a_member_that_has_ended_is_no_stranger_for_a_while(bench: Bench) -> None:
    """What it claimed a moment ago was its own."""
    mac = bytes.fromhex(PEER.mac.replace(":", ""))
    assert not bench.member.knows(mac)
    bench.hear()
    bench.run(TIMING.dead + 1)
    assert not bench.member.election.peers()
    assert bench.member.knows(mac)
    bench.run(KNOWN_SECONDS)
    assert not bench.member.knows(mac)


def test_a_member_whose_thread_stops_is_silent_in_time(bench: Bench) -> None:
    bench.run(ALL)
    bench.now += TIMING.keep
    assert bench.answered() == set()


def test_a_member_that_cannot_send_ends_by_its_own_clock(bench: Bench) -> None:
    bench.run(ALL)
    bench.port.broken = True
    bench.run(TIMING.keep + 0.3)
    assert bench.answered() == set()
    assert not bench.member.election.owned()
    assert bench.member.failure == "eth0: other nodes cannot be told: Network is down"
    bench.port.broken = False
    bench.run(ALL)
    assert bench.answered() == {VIP, VIP6}
    assert bench.member.failure == ""


def test_a_member_whose_map_is_refused_leaves_its_addresses_to_others(bench: Bench) -> None:
    bench.run(ALL)
    bench.maps.fail("announced4")
    bench.run(0.6)
    assert not bench.member.election.owned()
    assert "cannot be announced" in bench.member.failure
    bench.run(AGAIN_SECONDS + ALL)
    assert bench.answered() == {VIP, VIP6}


def test_a_member_goes_on_with_what_was_its_own_a_moment_ago(bench: Bench) -> None:
    bench.run(ALL)
    bench.now += 1.0
    bench.member = bench.begin()
    assert bench.member.adopted == {VIP, VIP6}
    for _ in range(60):
        bench.run(0.1)
        assert bench.answered() == {VIP, VIP6}


def test_a_member_sends_on_to_whom_it_has_an_address_from(bench: Bench) -> None:
    bench.run(ALL)
    bench.standings[VIP] = Standing.LEAVING
    bench.hear()
    bench.run(0.2)
    bench.hear(Hold.HELD)
    bench.run(0.2)
    assert bench.answered() == {VIP6}
    bench.standings[VIP] = Standing.SERVES
    bench.hear(Hold.OFFERED, Standing.LEAVING)
    bench.run(0.2)
    _, [row] = bench.maps.read("announced4")
    assert bytes(row["former"]).hex(":") == PEER.mac
    assert int(row["former_ns"]) > bench.now_ns()
    bench.member = bench.begin()  # so does the next agent
    bench.run(0.5)
    _, [row] = bench.maps.read("announced4")
    assert bytes(row["former"]).hex(":") == PEER.mac
    assert int(row["former_ns"]) > bench.now_ns()


def test_a_source_that_does_not_answer_lags() -> None:
    now = time.monotonic()
    well, failed, never = (
        SimpleNamespace(error=e, contact=c) for e, c in (("", now - 99), ("x", now - 40), ("x", None))
    )
    assert lag([well, never]) == 0
    assert 40 <= lag([well, failed, never]) < 60


def test_a_member_sends_on_to_a_dead_owner_for_a_moment(bench: Bench) -> None:
    """Perhaps its agent alone is dead. Heard again, it counts as any former owner."""
    bench.standings[VIP] = Standing.LAST
    for _ in range(9):
        bench.hear(Hold.HELD)
        bench.run(0.4)
    bench.run(TIMING.dead + 0.2)
    assert VIP in bench.answered()
    row = ownership.read(bench.maps)[7, VIP]
    assert row.former.hex(":") == PEER.mac
    assert row.former_ns - bench.now_ns() <= ORPHAN_SECONDS * SECOND_NS
    bench.hear()
    bench.run(0.5)
    assert ownership.read(bench.maps)[7, VIP].former_ns - bench.now_ns() > ORPHAN_SECONDS * SECOND_NS
    bench.run(2 * FORMER_SECONDS)
    assert ownership.read(bench.maps)[7, VIP].former_ns == 0


def test_entries_of_a_map_are_those_that_were_written(bench: Bench) -> None:
    entries = {VIP: Entry(5), VIP6: Entry(0, MAC_BYTES, 9)}
    ownership.write(bench.maps, 7, MAC_BYTES, entries)
    assert ownership.read(bench.maps) == {(7, VIP): entries[VIP], (7, VIP6): entries[VIP6]}
    ownership.end(bench.maps, 7, [VIP, VIP6])
    assert ownership.read(bench.maps) == {}


def test_a_member_tells_everything_again_when_somebody_has_missed_it(bench: Bench) -> None:
    bench.run(ALL)
    heard = Heartbeats(PEER)
    sent, bench.port.sent = bench.port.sent, []
    bench.run(2 * TIMING.beat)
    assert not any(heard.read(frame) for frame in bench.port.sent), "nothing has changed"
    assert heard.missing == {bench.member.election.me}
    bench.port.coming += Teller(PEER).beat({}, heard.missing)
    bench.port.sent = []
    bench.run(0.1)
    told = [heard.read(frame) for frame in bench.port.sent]
    claims = {address: Claim(Standing.SERVES, Hold.HELD) for address in (VIP, VIP6)}
    assert told[-1] == (bench.member.election.me, claims)
    bench.port.sent = []
    bench.run(4 * TIMING.beat)
    assert max(map(len, bench.port.sent)) < 100, "once is enough"
    assert sent


def test_a_member_that_lacks_what_another_says_asks_for_it(bench: Bench) -> None:
    bench.run(ALL)
    peer = Teller(PEER)
    *_, short = peer.beat({VIP: Claim(Standing.SERVES)})
    bench.port.coming.append(short)
    heard = Heartbeats(PEER)
    bench.port.sent = []
    bench.run(2 * TIMING.beat)
    for frame in bench.port.sent:
        heard.read(frame)
    assert heard.asked
    assert not bench.member.election.peers(), "it is not heard before"
    bench.port.coming += peer.beat({VIP: Claim(Standing.SERVES)}, whole=True)
    bench.run(0.1)
    assert PEER in bench.member.election.peers()


def test_of_more_addresses_than_can_be_told_the_lowest_are_announced(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lb.segment.member.MOST_ADDRESSES", 3)
    bench.standings = {**{VIP + at: Standing.SERVES for at in (4, 1, 3, 0, 2)}, VIP6: Standing.SERVES}
    bench.run(ALL)
    assert bench.answered() == {VIP, VIP + 1, VIP + 2, VIP6}
    assert bench.member.left_out == 2
    del bench.standings[VIP + 4]
    del bench.standings[VIP]
    bench.run(1.0)
    assert bench.answered() == {VIP + 1, VIP + 2, VIP + 3, VIP6}
    assert bench.member.left_out == 0
