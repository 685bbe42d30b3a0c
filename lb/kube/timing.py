# SPDX-License-Identifier: Apache-2.0
"""Time and chance, so that tests can put their own in; how long to wait after failures, and under load."""

from __future__ import annotations

import datetime
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

FIRST_SECONDS = 0.5
MOST_SECONDS = 30.0
"""Waits grow from the one to the other by doubling; each is then stretched by up to its own length, so that
the nodes of a cluster do not come back in step."""
HEALTHY_SECONDS = 30.0
"""Without failure for so long after a wait, the waits begin anew."""


def utc_now() -> datetime.datetime:
    """Return the time of day, with its zone."""
    return datetime.datetime.now(datetime.UTC)


def micro_time(moment: datetime.datetime) -> str:
    """Return a time as the API's MicroTime, ``2020-01-15T10:20:58.000000Z``."""
    return moment.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def _wait(stop: threading.Event, seconds: float) -> None:
    stop.wait(seconds)


@dataclass(frozen=True, slots=True)
class Timing:
    """Where time and chance come from.

    clock: seconds, monotonic.
    random: a number from 0 up to but not 1.
    wait: return after so many seconds, or at once when the event is set.
    """

    clock: Callable[[], float] = time.monotonic
    random: Callable[[], float] = random.random
    wait: Callable[[threading.Event, float], None] = _wait


class Backoff:
    """How long to wait after one failure after another."""

    def __init__(self, timing: Timing) -> None:
        self._timing = timing
        self._failures = 0
        self._resumed = 0.0

    def next(self, at_least: float = 0.0) -> float:
        """Return the seconds to wait after a failure; at_least is what the server asks for."""
        now = self._timing.clock()
        if now - self._resumed > HEALTHY_SECONDS:
            self._failures = 0
        seconds = min(FIRST_SECONDS * 2.0 ** min(self._failures, 16), MOST_SECONDS)
        self._failures += 1
        seconds = max(seconds, at_least) + seconds * self._timing.random()
        self._resumed = now + seconds
        return seconds

    def reset(self) -> None:
        """Begin the waits anew: what failed was the way to the server, and it is there again."""
        self._failures = 0


class Pace:
    """Tells when to let events gather: once this process takes more than SHARE of a CPU.

    To be woken for an event costs more than the event, and all that follows costs less for several events
    than for one after the other. So under load they stay where they are, in the socket, until the next tick.
    Ticks are at multiples of TICK_SECONDS of the clock, so that all that is paced comes together. After a
    quiet time SAVED_SECONDS of CPU time may be used at once; one long piece of work delays what follows it by
    a tick at most. Usable from several threads.

    clock: seconds, monotonic. cpu: CPU seconds of this process.
    """

    SHARE = 0.03
    SAVED_SECONDS = 0.1
    TICK_SECONDS = 0.1

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, cpu: Callable[[], float] = time.process_time
    ) -> None:
        self._clock = clock
        self._cpu = cpu
        self._lock = threading.Lock()
        self._left = self.SAVED_SECONDS
        self._seen = (clock(), cpu())

    def wait(self) -> float:
        """Return the seconds until the next tick under load, else 0."""
        with self._lock:
            now, used = self._clock(), self._cpu()
            last, last_used = self._seen
            self._seen = (now, used)
            left = self._left + (now - last) * self.SHARE - (used - last_used)
            self._left = min(max(left, -self.TICK_SECONDS * self.SHARE), self.SAVED_SECONDS)
            return -now % self.TICK_SECONDS if self._left < 0 else 0.0
