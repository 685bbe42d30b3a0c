# SPDX-License-Identifier: Apache-2.0
"""What of the host another tool changes while the agent runs, so that packets go nowhere: it is told."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from lb.diagnose.findings import Check, Grade
from lb.served.problems import Problem

_log = logging.getLogger(__name__)

LOOK_SECONDS = 15.0
_ALWAYS = frozenset({"forwarding"})
"""What is a problem also when it was so from the start; of the rest ``lbctl doctor`` tells then."""


class HostWatch:
    """Looks from the agent's thread.

    checks: the settings of the host as they are, see :func:`lb.diagnose.host.settings`. clock: seconds,
    monotonic.
    """

    def __init__(
        self, checks: Callable[[], Sequence[Check]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._checks = checks
        self._clock = clock
        self._due = -math.inf
        self._known: frozenset[str] | None = None
        self._problems: tuple[Problem, ...] = ()

    def look(self) -> None:
        """Look, if it is time."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + LOOK_SECONDS
        bad = [one for one in self._checks() if one.result is not Grade.OK]
        if self._known is None:
            self._known = frozenset(one.check for one in bad) - _ALWAYS
        problems = tuple(_problem(one) for one in bad if one.check not in self._known)
        for one in problems:
            if one not in self._problems:
                _log.error("%s; %s", one.text, one.next)
        for one in self._problems:
            if one not in problems:
                _log.info("no longer so: %s", one.text)
        self._problems = problems

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong; may be called from any thread."""
        return self._problems


def _problem(one: Check) -> Problem:
    return Problem(f"{one.check}: {one.found}: {one.broken}", one.next, one.check)
