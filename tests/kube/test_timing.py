"""Waits after failures, with a clock and chance of the test's own."""

from __future__ import annotations

from lb.kube.timing import HEALTHY_SECONDS, Backoff, Timing


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
