# SPDX-License-Identifier: Apache-2.0
"""How long to wait after a failed request: while the API server is away, until it is back, no longer.

Waits that double (:class:`lb.kube.timing.Backoff`) protect a server that is there and overloaded. They are
wrong for a server that was away: after an outage of minutes an agent would sleep on for up to a minute beside
a server that answers. So a failure that may mean "away" is followed by probes, one or two a second for all
threads that wait:

- The probe (:meth:`lb.kube.client.Client.probe`) fails: the server is away. The wait ends with the first
  probe that succeeds, and the doubling waits begin anew. To ask a server that is away costs it nothing, and
  one that starts answers ``/readyz`` over a connection that stays open.
- The probe succeeds at once: the server is there and did not like the request. The doubled wait follows. It
  ends early when another thread sees the server go and come back. But where the request found nobody to
  connect to, the server came back just now: there is no wait.
- The server asks for a pause (``Retry-After``; 429 is always overload): the pause is kept, whatever happens.

A server that hangs breaks nothing: its machine keeps all connections up, and watches wait.
:class:`HangDetector` notices it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from lb.kube.client import ApiError, Reach
from lb.kube.timing import MOST_SECONDS, Backoff, Timing

PROBE_SECONDS = 1.0
"""From the begin of one probe to that of the next, at most, unless the probe itself takes longer; at random
down to half of it, so that nodes do not ask in step."""
QUIET_SECONDS = 30.0
"""After so long without a word on any watch the server is asked whether it is there. client-go sends it an
HTTP/2 ping after as long, and breaks the connection off after 15 s more. On a large cluster something
changes more often, so that nobody asks; on one where nothing changes, a node asks twice a minute."""
PATIENCE_SECONDS = 10.0
"""How long the answer may take then."""
_FRESH_SECONDS = 0.25
"""A probe's answer that is no older than this serves every thread that asks."""


class Availability:
    """Whether the API server is there; shared by all threads that send it requests.

    probe: asks the server, for about a second; never raises.
    """

    def __init__(self, probe: Callable[[], Reach], timing: Timing) -> None:
        self._probe = probe
        self._timing = timing
        self._lock = threading.Lock()
        self._asked: float | None = None
        self._reach = Reach.NONE
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
        away = _may_mean_away(error) and self._was_away(stop, error.unheard)
        if not away and not stop.is_set():
            self._timing.wait(woken, backoff.next())
            away = woken.is_set()
        if away:
            backoff.reset()
        return away

    def _was_away(self, stop: threading.Event, away: bool) -> bool:
        """Wait while the server is away; return whether it was. away: it was, before the first probe.

        After MOST_SECONDS of answers that it is not ready, the request is sent anyhow: what makes it so may
        not concern us. A request to a server that says nothing would only hang while the server comes back.
        """
        begun = self._timing.clock()
        while not stop.is_set():
            woken, asked = self._woken, self._timing.clock()
            reach = self._ask()
            if reach is Reach.READY:
                if away:
                    self.wake()
                return away
            away = True
            now = self._timing.clock()
            if reach is Reach.UNREADY and now - begun >= MOST_SECONDS:
                break
            next_probe = asked + PROBE_SECONDS * (1.0 + self._timing.random()) / 2
            self._timing.wait(woken, max(0.0, next_probe - now))
        return away

    def _ask(self) -> Reach:
        """Return how the server answers; threads that ask at one time share one probe."""
        with self._lock:
            now = self._timing.clock()
            if self._asked is None or now - self._asked > _FRESH_SECONDS:
                self._reach = self._probe()
                self._asked = self._timing.clock()
            return self._reach


def _may_mean_away(error: ApiError) -> bool:
    """Tell whether a failure may mean that the server is away or has not started completely.

    No answer at all; an answer of a proxy in front of it (502 to 504); 500 and 403 come from a server that
    has not read its roles yet.
    """
    return error.status in (0, 403) or error.status >= 500


class HangDetector:
    """Notices that the server hangs, in a thread of its own: nothing is heard, and nothing breaks.

    probe: asks the server for so many seconds. contact: when the last word came, in clock seconds; None
    before the first. hang_up: breaks off what waits for the server and says why; what follows is as after any
    failure.
    """

    resource = "availability"

    def __init__(
        self,
        probe: Callable[[float], Reach],
        timing: Timing,
        contact: Callable[[], float | None],
        hang_up: Callable[[str], None],
    ) -> None:
        self._probe = probe
        self._timing = timing
        self._contact = contact
        self._hang_up = hang_up
        self._asked = timing.clock()
        self._woken = threading.Event()

    def run(self, stop: threading.Event) -> None:
        """Keep watch until stop is set and :meth:`interrupt` was called."""
        while not stop.is_set():
            self.step()

    def interrupt(self) -> None:
        """Wake :meth:`run`; called after stop was set."""
        self._woken.set()

    def step(self) -> None:
        """Wait until the server has been quiet for long, or ask it if it has."""
        contact = self._contact()
        heard = self._asked if contact is None else max(contact, self._asked)
        if (wait := heard + QUIET_SECONDS - self._timing.clock()) > 0.0:
            self._woken.wait(wait)
            return
        silent = self._probe(PATIENCE_SECONDS) is Reach.NONE
        self._asked = self._timing.clock()
        if silent:
            self._hang_up(f"the API server has said nothing for {self._asked - heard:.0f} s")
