# SPDX-License-Identifier: Apache-2.0
"""Hooks and pins that others take away: how often they were put back, and whether there is no end to it."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from lb.served.problems import Problem, time_text

WINDOW_SECONDS = 600.0
OFTEN = 3
"""So many repairs within that time are no accident: something takes away what is put back."""


class Repairs:
    """Counts; for the agent's thread, the attributes may be read from any.

    Parameters
    ----------
    clock, wall: seconds, monotonic and since the epoch.

    Attributes
    ----------
    count: how many hooks and pins were put back. what: which of them the last time.
    last: when that was, ISO 8601 in UTC; None: never.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self._clock, self._wall = clock, wall
        self._times: deque[float] = deque(maxlen=OFTEN)
        self.count = 0
        self.what = ""
        self.last: str | None = None

    def note(self, count: int, what: str) -> None:
        """Take it that so many were put back at once; none: nothing was."""
        if count > 0:
            self._times.append(self._clock())
            self.count, self.what, self.last = self.count + count, what, time_text(self._wall())

    def problems(self) -> list[Problem]:
        """Return what is wrong: it happens again and again."""
        if len(self._times) < OFTEN or self._clock() - self._times[0] > WINDOW_SECONDS:
            return []
        return [
            Problem(
                f"something on this node takes hooks or pins away again and again, the last time {self.what}:"
                " each time packets go past the programs for up to three seconds",
                "find and stop what does it: bpftool net; ps, for a second agent or another Service proxy",
                "repairs",
            )
        ]

    def as_dict(self) -> dict[str, object]:
        """Return it for the notes."""
        return {"count": self.count, "last": self.last, "what": self.what}
