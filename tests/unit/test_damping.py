# SPDX-License-Identifier: Apache-2.0
"""What the network is told, over time: the clock is the test's."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lb.announce.damping import FORGET_SECONDS, MOST_SECONDS, Damping, Hold
from lb.announce.report import Report
from lb.announce.servable import Standing, Verdict

VIP = ip_address("203.0.113.5")
HOLD = Hold(withdraw_seconds=1, announce_seconds=3, drain_seconds=10, silent_seconds=60)
SERVES, LAST, LEAVING, CANNOT = Standing


class Bench:
    """An agent and the network, with a clock that is moved by hand, in steps of a quarter of a second."""

    def __init__(self, told: Standing | None = None) -> None:
        self.now = 1000.0
        before = [] if told is None else [Verdict(VIP, told)]
        self.damping = Damping(HOLD, before, self.now)
        self.says: Standing | None = SERVES
        self.speaks = True
        self.ready = True

    def run(self, seconds: float) -> list[Standing]:
        """Let time pass; return what was told meanwhile, each change once."""
        found: list[Standing] = []
        until = self.now + seconds
        while self.now < until:
            standing = self.step()
            if not found or found[-1] is not standing:
                found.append(standing)
            self.now += 0.25
        return found

    def step(self) -> Standing:
        verdicts = (
            {} if self.says is None else {VIP: Verdict(VIP, self.says, "" if self.says is SERVES else "so")}
        )
        report = Report("1", self.ready, "node1", verdicts=verdicts) if self.speaks else None
        self.damping.hear(report, self.now)
        told = self.damping.told(self.now)
        return told[VIP].standing if VIP in told else CANNOT


def test_an_address_that_is_new_is_told_at_once() -> None:
    assert Bench().run(1) == [SERVES]


def test_one_that_could_not_be_served_from_the_start_is_told_as_soon_as_it_can() -> None:
    bench = Bench()
    bench.says = CANNOT
    assert bench.run(5) == [CANNOT]
    bench.says = SERVES
    assert bench.step() is SERVES


def test_a_blip_is_no_reason() -> None:
    bench = Bench()
    bench.run(5)
    for _ in range(20):
        bench.says = CANNOT
        assert bench.run(0.75) == [SERVES]
        bench.says = SERVES
        assert bench.run(0.5) == [SERVES]


def test_what_lasts_is() -> None:
    bench = Bench()
    bench.run(5)
    bench.says = CANNOT
    assert bench.run(0.75) == [SERVES]
    assert bench.run(2) == [SERVES, CANNOT]


def test_it_comes_back_later_each_time() -> None:
    bench = Bench()
    bench.run(5)
    waits = []
    for _ in range(7):
        bench.says = CANNOT
        bench.run(3)
        bench.says = SERVES
        since = bench.now
        while bench.step() is not SERVES:
            bench.now += 0.25
        waits.append(bench.now - since)
    assert waits == [3, 6, 12, 24, 48, MOST_SECONDS, MOST_SECONDS]
    bench.run(FORGET_SECONDS)
    bench.says = CANNOT
    bench.run(3)
    bench.says = SERVES
    assert bench.run(2.75) == [CANNOT]
    assert bench.run(2) == [CANNOT, SERVES]


def test_what_is_not_steady_is_not_told_again() -> None:
    bench = Bench()
    bench.run(5)
    bench.says = CANNOT
    bench.run(3)
    for _ in range(10):
        bench.says = SERVES
        assert bench.run(2) == [CANNOT]
        bench.says = CANNOT
        assert bench.run(0.25) == [CANNOT]


def test_a_node_that_is_to_be_left_is_drained_then_withdrawn() -> None:
    bench = Bench()
    bench.run(5)
    bench.says = LEAVING
    assert bench.run(9.75) == [LEAVING]
    assert bench.run(2) == [LEAVING, CANNOT]
    bench.says = SERVES
    assert bench.run(2.75) == [CANNOT]
    assert bench.run(1) == [CANNOT, SERVES]


@pytest.mark.parametrize("standing", [LAST, LEAVING])
def test_a_better_or_worse_place_is_told_at_once(standing: Standing) -> None:
    bench = Bench()
    bench.run(5)
    bench.says = standing
    assert bench.step() is standing
    bench.says = SERVES
    assert bench.step() is SERVES


def test_a_silent_agent_changes_nothing_for_a_minute_then_others_are_better() -> None:
    bench = Bench()
    bench.run(5)
    bench.speaks = False
    assert bench.run(59) == [SERVES]
    assert bench.run(3600) == [SERVES, LAST]
    bench.speaks = True
    assert bench.step() is SERVES


def test_an_agent_that_starts_takes_nothing_away() -> None:
    bench = Bench(told=SERVES)
    bench.says, bench.ready = None, False
    assert bench.run(30) == [SERVES]
    bench.ready = True
    assert bench.run(3) == [SERVES, CANNOT]


def test_an_address_that_nobody_has_goes_and_is_forgotten() -> None:
    bench = Bench()
    bench.run(5)
    bench.says = None
    assert bench.run(3) == [SERVES, CANNOT]
    bench.run(FORGET_SECONDS)
    bench.says = SERVES
    assert bench.step() is SERVES
