# SPDX-License-Identifier: Apache-2.0
"""How soon a server that was away is noticed, and what it costs; with a clock of the test's own."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest

from lb.kube.availability import PATIENCE_SECONDS, PROBE_SECONDS, QUIET_SECONDS, Availability, HangDetector
from lb.kube.client import ApiError, Reach
from lb.kube.timing import HEALTHY_SECONDS, MOST_SECONDS, Backoff, Timing


class Bench:
    """One thread that sends requests; the server is away within [gone, back) of the clock.

    away: how a probe ends meanwhile, and after how many seconds.
    """

    def __init__(
        self,
        gone: float = 0.0,
        back: float = 0.0,
        chance: float = 0.5,
        away: tuple[Reach, float] = (Reach.NONE, 0.0),
    ) -> None:
        self.gone, self.back = gone, back
        self.away = away
        self.now = gone
        self.probes: list[float] = []
        self.waits: list[float] = []
        self.stop = threading.Event()
        timing = Timing(clock=lambda: self.now, random=lambda: chance, wait=self._wait)
        self.availability = Availability(self._probe, timing)
        self.backoff = Backoff(timing)
        self.during: Callable[[], None] = lambda: None

    def _wait(self, event: threading.Event, seconds: float) -> None:
        self.waits.append(seconds)
        self.during()
        if not event.is_set():
            self.now += seconds

    def _probe(self) -> Reach:
        self.probes.append(self.now)
        if not self.gone <= self.now < self.back:
            return Reach.READY
        reach, seconds = self.away
        self.now += seconds
        return reach

    def fail(self, error: ApiError) -> bool:
        return self.availability.pause(self.stop, self.backoff, error)


NO_ANSWER = ApiError("connection refused")
AWAY = {
    "refuses": (Reach.NONE, 0.0),
    "is cut off or hangs": (Reach.NONE, PROBE_SECONDS),
    "starts": (Reach.UNREADY, 0.01),
}


@pytest.mark.parametrize("away", AWAY)
@pytest.mark.parametrize("chance", [0.0, 0.5, 0.999])
@pytest.mark.parametrize("outage", [0.3, 1, 8, 29.9, 30, 31, 100, 600, 7200])
def test_the_return_is_noticed_in_two_seconds_whatever_the_outage(
    outage: float, chance: float, away: str
) -> None:
    bench = Bench(100.0, 100.0 + outage, chance, AWAY[away])
    requests = 0
    while bench.now < bench.back:
        requests += 1
        bench.fail(NO_ANSWER)
    assert bench.now - bench.back <= 2.0
    assert len(bench.probes) <= 2 + outage / (PROBE_SECONDS / 2), "one or two a second"
    most = outage / MOST_SECONDS if away == "starts" else 0
    assert requests <= 1 + most, "requests proper are rare meanwhile, and none hangs with the server"
    assert bench.backoff.next() < 2 * PROBE_SECONDS, "what fails next waits as after a first failure"


def test_a_request_that_found_nobody_is_sent_again_at_once_when_the_server_is_there() -> None:
    """It waited for a connection for seconds while the server came back."""
    bench = Bench()
    assert bench.fail(ApiError("connection timed out", unheard=True))
    assert bench.waits == []
    assert bench.now == 0.0


def test_a_server_that_fails_and_is_there_is_left_in_peace() -> None:
    bench = Bench()
    for _ in range(7):
        bench.fail(ApiError("500", status=500))
    assert bench.waits == [0.75, 1.5, 3.0, 6.0, 12.0, 24.0, 45.0]
    assert len(bench.probes) == 7


@pytest.mark.parametrize("status", [429, 503])
def test_a_pause_that_the_server_asks_for_is_kept_without_a_probe(status: int) -> None:
    bench = Bench(100.0, 200.0)
    assert not bench.fail(ApiError("overloaded", status=status, retry_after=20.0))
    assert bench.waits == [20.25]
    assert bench.probes == []


def test_overload_without_a_time_is_no_absence() -> None:
    bench = Bench(100.0, 200.0)
    bench.fail(ApiError("overloaded", status=429))
    assert bench.probes == []


@pytest.mark.parametrize("status", [500, 502, 503, 504, 403])
def test_a_server_that_starts_or_a_proxy_before_it_is_waited_for(status: int) -> None:
    bench = Bench(100.0, 112.0)
    assert bench.fail(ApiError("not ready", status=status))
    assert 112.0 <= bench.now <= 113.0


def test_other_refusals_are_no_absence() -> None:
    bench = Bench(100.0, 200.0)
    bench.fail(ApiError("unauthorized", status=401))
    assert bench.probes == []


def test_who_sleeps_beside_a_server_that_returns_is_woken() -> None:
    """One thread waits long after errors of a server that is there; another sees it go and come back."""
    bench = Bench()
    for _ in range(6):
        bench.backoff.next()
    bench.during = bench.availability.wake
    assert bench.fail(ApiError("500", status=500))
    assert bench.waits == [45.0]
    assert bench.now == 0.0
    assert bench.backoff.next() == 0.75


def test_threads_that_wait_share_the_probes() -> None:
    there, probes = threading.Event(), []

    def probe() -> Reach:
        probes.append(1)
        return Reach.READY if there.is_set() else Reach.NONE

    def wait(event: threading.Event, seconds: float) -> None:
        event.wait(seconds / 10)

    timing = Timing(wait=wait)
    availability, stop = Availability(probe, timing), threading.Event()
    threads = [
        threading.Thread(target=availability.pause, args=(stop, Backoff(timing), NO_ANSWER))
        for _ in range(20)
    ]
    for thread in threads:
        thread.start()
    there.set()
    for thread in threads:
        thread.join(20.0)
        assert not thread.is_alive()
    assert len(probes) <= 10


def test_a_stop_ends_the_wait() -> None:
    bench = Bench(100.0, 1000.0)

    def halt() -> None:
        bench.stop.set()
        bench.availability.wake()

    bench.during = halt
    bench.fail(NO_ANSWER)
    assert len(bench.waits) == 1
    assert bench.now == 100.0


def test_healthy_seconds_still_count() -> None:
    bench = Bench()
    bench.fail(ApiError("500", status=500))
    bench.now += HEALTHY_SECONDS + 1
    bench.fail(ApiError("500", status=500))
    assert bench.waits == [0.75, 0.75]


class Quiet:
    """A detector over a server that hangs or not."""

    def __init__(self, reach: Reach) -> None:
        self.now = 100.0
        self.contact: float | None = None
        self.reach = reach
        self.probes: list[float] = []
        self.hung_up: list[str] = []
        timing = Timing(clock=lambda: self.now)
        self.hang_detector = HangDetector(self._probe, timing, lambda: self.contact, self.hung_up.append)
        self.hang_detector.interrupt()  # it does not sleep

    def _probe(self, patience: float) -> Reach:
        self.probes.append(self.now)
        self.now += patience if self.reach is Reach.NONE else 0.01
        return self.reach

    def pass_time(self, seconds: float, word_every: float = 0.0) -> None:
        """Let time pass; the server says something now and then."""
        end = self.now + seconds
        while self.now < end:
            if word_every and self.now - (self.contact or 0.0) >= word_every:
                self.contact = self.now
            self.hang_detector.step()
            self.now += 0.5


def test_a_server_that_hangs_is_noticed_in_forty_seconds() -> None:
    quiet = Quiet(Reach.NONE)
    quiet.contact = 100.0
    quiet.pass_time(QUIET_SECONDS + PATIENCE_SECONDS)
    assert quiet.hung_up == ["the API server has said nothing for 40 s"]


@pytest.mark.parametrize("reach", [Reach.READY, Reach.UNREADY])
def test_a_quiet_cluster_costs_two_questions_a_minute(reach: Reach) -> None:
    quiet = Quiet(reach)
    quiet.pass_time(600.0)
    assert 18 <= len(quiet.probes) <= 20
    assert quiet.hung_up == []


def test_a_server_that_speaks_is_not_asked() -> None:
    quiet = Quiet(Reach.NONE)
    quiet.pass_time(600.0, word_every=QUIET_SECONDS - 1.0)
    assert quiet.probes == []
