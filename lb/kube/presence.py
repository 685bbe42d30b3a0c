# SPDX-License-Identifier: Apache-2.0
"""How to wait after a failed request: while the API server is away, until it is back, and not longer.

Waits that double (:class:`lb.kube.timing.Backoff`) protect a server that is there and overloaded. They are
wrong for a server that was away: after an outage of minutes an agent would sleep on for up to a minute beside
a server that answers. So a failure that may mean "away" is followed by probes, one or two a second for all
threads that wait:

- The probe (:meth:`lb.kube.client.Client.answers`) fails: the server is away. The wait ends with the first
  probe that succeeds, and the doubling waits begin anew. To ask a server that is away costs it nothing, and
  one that starts answers ``/readyz`` over a connection that stays open.
- The probe succeeds at once: the server is there and did not like the request. The doubled wait follows. It
  ends early when another thread sees the server go and come back.
- The server asks for a pause (``Retry-After``; 429 is always overload): the pause is kept, whatever happens.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from lb.kube.client import ApiError
from lb.kube.timing import MOST_SECONDS, Backoff, Timing

PROBE_SECONDS = 1.0
"""From one probe to the next, at most; at random down to half of it, so that nodes do not ask in step."""
_FRESH_SECONDS = 0.25
"""A probe's answer that is no older than this serves every thread that asks."""


class Presence:
    """Whether the API server is there; shared by all threads that send it requests.

    probe: asks the server; returns whether it answers, within about a second; never raises.
    """

    def __init__(self, probe: Callable[[], bool], timing: Timing) -> None:
        self._probe = probe
        self._timing = timing
        self._lock = threading.Lock()
        self._asked: float | None = None
        self._there = False
        self._woken = threading.Event()

    def wake(self) -> None:
        """End all present waits; called when the threads are to stop, after their stop was set."""
        woken, self._woken = self._woken, threading.Event()
        woken.set()

    def pause(self, stop: threading.Event, backoff: Backoff, error: ApiError) -> bool:
        """Wait after a failure until the request should be sent again; return whether the server was away.

        The wait ends when stop is set and :meth:`wake` is called.
        """
        if error.retry_after or error.status == 429:
            self._timing.wait(stop, backoff.next(error.retry_after))
            return False
        woken = self._woken
        away = _may_mean_away(error) and self._was_away(stop)
        if not away and not stop.is_set():
            self._timing.wait(woken, backoff.next())
            away = woken.is_set()
        if away:
            backoff.reset()
        return away

    def _was_away(self, stop: threading.Event) -> bool:
        """Wait while the server is away; return whether it was.

        After MOST_SECONDS the request is sent anyhow: something on the way may hide the probe's answer alone.
        """
        begun = self._timing.clock()
        away = False
        while not stop.is_set():
            woken = self._woken
            if self._answers():
                if away:
                    self.wake()
                return away
            away = True
            if self._timing.clock() - begun >= MOST_SECONDS:
                break
            self._timing.wait(woken, PROBE_SECONDS * (1.0 + self._timing.random()) / 2)
        return away

    def _answers(self) -> bool:
        """Return whether the server answers; threads that ask at one time share one probe."""
        with self._lock:
            now = self._timing.clock()
            if self._asked is None or now - self._asked > _FRESH_SECONDS:
                self._there = self._probe()
                self._asked = self._timing.clock()
            return self._there


def _may_mean_away(error: ApiError) -> bool:
    """Tell whether a failure may mean that the server is away or has not started completely.

    No answer at all; an answer of a proxy in front of it (502 to 504); 500 and 403 come from a server that
    has not read its roles yet.
    """
    return error.status in (0, 403) or error.status >= 500
