# SPDX-License-Identifier: Apache-2.0
"""Waits after failures and under load, with a clock and chance of the test's own."""

from __future__ import annotations

import pytest

from lb.kube.timing import HEALTHY_SECONDS, Backoff, Pace, Timing


class Bench:
    def __init__(self, chance: float) -> None:
        self.now = 1000.0
        self.backoff = Backoff(Timing(clock=lambda: self.now, random=lambda: chance))

    def fail(self, at_least: float = 0.0) -> float:
        """Fail, wait, and try again at once; return the wait."""
        seconds = self.backoff.next(at_least)
        self.now += seconds
        return seconds


def test_waits_double_up_to_half_a_minute() -> None:
    bench = Bench(0.0)
    assert [bench.fail() for _ in range(9)] == [0.5, 1, 2, 4, 8, 16, 30, 30, 30]


def test_chance_stretches_a_wait_up_to_twice_its_length() -> None:
    bench = Bench(0.75)
    assert [bench.fail() for _ in range(7)] == [0.875, 1.75, 3.5, 7, 14, 28, 52.5]


def test_a_server_may_ask_for_more_but_not_for_less() -> None:
    bench = Bench(0.5)
    assert [bench.fail(7.0), bench.fail(1.0), bench.fail(1.0)] == [7.25, 1.5, 3.0]


def test_a_time_without_failure_starts_anew() -> None:
    bench = Bench(0.0)
    assert [bench.fail() for _ in range(4)] == [0.5, 1, 2, 4]
    bench.now += HEALTHY_SECONDS
    assert bench.fail() == 8, "not longer than that"
    bench.now += HEALTHY_SECONDS + 1
    assert bench.fail() == 0.5


class PaceBench:
    """A Pace whose process uses as much CPU as a test says."""

    def __init__(self) -> None:
        self.now = 100.0
        self.used = 0.0
        self.pace = Pace(lambda: self.now, lambda: self.used)

    def work(self, seconds: float) -> float:
        """Use so much CPU in no time; return how long to wait then."""
        self.used += seconds
        return self.pace.wait()


def test_events_gather_once_the_process_takes_more_than_its_share() -> None:
    bench = PaceBench()
    for _ in range(5):
        assert bench.work(Pace.SAVED_SECONDS / 5 * 0.999) == 0.0
    bench.now = 100.01
    assert bench.work(0.001) == pytest.approx(Pace.TICK_SECONDS - 0.01), "until the next multiple of a tick"
    bench.now = 100.09
    assert bench.work(0.0) == 0.0, "its share of the time since then is enough"


def test_long_work_is_not_held_against_what_follows() -> None:
    bench = PaceBench()
    assert bench.work(10.0) >= 0.0
    bench.now += Pace.TICK_SECONDS + 0.001
    assert bench.work(0.0) == 0.0


def test_a_quiet_time_saves_no_more_than_so_much() -> None:
    bench = PaceBench()
    bench.now += 1e6
    assert bench.work(0.0) == 0.0
    assert bench.work(Pace.SAVED_SECONDS * 0.999) == 0.0
    bench.now += 0.01
    assert bench.work(0.01) > 0.0
