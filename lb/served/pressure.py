# SPDX-License-Identifier: Apache-2.0
"""Warns of tables that are too small: established entries in them make room for new ones."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping

from lb.errors import BpfError
from lb.served.problems import Problem

_log = logging.getLogger(__name__)

LOOK_SECONDS = 300.0
"""How often it is looked: reading the tables takes 0.1 s of CPU."""
_NOUNS = {"flows": "established connections", "affinity": "clients with affinity"}


def too_small(name: str, grown: int, when: str) -> Problem:
    """Return the problem of a map of which so many entries made room; when: the time of it, in words."""
    limit = name.rstrip("46")
    return Problem(
        f"{name} is too small: {grown} {_NOUNS.get(limit, 'entries in use')} made room for new ones {when}",
        f"raise --limits-{limit}: docs/operations.md, How large the maps must be; lbctl top: who fills it",
    )


class Pressure:
    """Looks, from the agent's thread, whether entries make room before their time, and tells.

    Parameters
    ----------
    read: returns by map how many entries have made room since the map was made.
    clock: seconds, monotonic.

    Attributes
    ----------
    seen: what read returned last; replaced as a whole, so that any thread may read it.
    """

    def __init__(
        self, read: Callable[[], Mapping[str, int]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._due = -math.inf
        self._problems: tuple[Problem, ...] = ()
        self.seen: Mapping[str, int] = {}

    def look(self) -> None:
        """Look, if it is time."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        try:
            found = self._read()
        except BpfError as error:
            _log.warning("the tables that forget could not be looked at: %s", error)
            return
        when = f"within {LOOK_SECONDS / 60:.0f} min"
        grown = {name: count - self.seen.get(name, count) for name, count in found.items()}
        problems = tuple(too_small(name, count, when) for name, count in grown.items() if count > 0)
        if problems and not self._problems:
            for one in problems:
                _log.warning("%s; %s", one.text, one.next)
        if self._problems and not problems:
            _log.info("no entry has made room before its time for %s", when.removeprefix("within "))
        self.seen, self._problems = found, problems

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong; may be called from any thread."""
        return self._problems
