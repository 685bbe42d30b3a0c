# SPDX-License-Identifier: Apache-2.0
"""Warns of tables that are too small: established entries in them make room for new ones."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from lb.served.problems import Problem
from lb.served.watch import Watch

LOOK_SECONDS = 300.0
"""How often it is looked: reading the tables takes 0.1 s of CPU."""
_NOUNS = {"flows": "established connections", "affinity": "clients with affinity"}


def too_small(name: str, grown: int, when: str) -> Problem:
    """Return the problem of a map of which so many entries made room; when: the time of it, in words."""
    limit = name.rstrip("46")
    return Problem(
        f"{name} is too small: {grown} {_NOUNS.get(limit, 'entries in use')} made room for new ones {when}",
        f"raise --limits-{limit}: docs/operations.md, How large the maps must be; lbctl top: who fills it",
        name,
    )


class Pressure(Watch):
    """Looks whether entries make room before their time.

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
        super().__init__("the tables that forget", LOOK_SECONDS, clock=clock)
        self._read = read
        self.seen: Mapping[str, int] = {}

    def found(self, _now: float) -> list[Problem]:
        """Look how many have made room since the last look."""
        before, self.seen = self.seen, self._read()
        grown = {name: count - before.get(name, count) for name, count in self.seen.items()}
        when = f"within {LOOK_SECONDS / 60:.0f} min"
        return [too_small(name, count, when) for name, count in grown.items() if count > 0]
