# SPDX-License-Identifier: Apache-2.0
"""What of the host another tool changes while the agent runs, so that packets go nowhere: it is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence

from lb.diagnose.findings import Check, Grade
from lb.served.problems import Problem
from lb.served.watch import Watch

LOOK_SECONDS = 15.0
_ALWAYS = frozenset({"forwarding"})
"""What is a problem also when it was so from the start; of the rest ``lbctl doctor`` tells then."""


class HostWatch(Watch):
    """Looks at what the host's settings have become.

    checks: the settings of the host as they are, see :func:`lb.diagnose.host.settings`. clock: seconds,
    monotonic.
    """

    def __init__(
        self, checks: Callable[[], Sequence[Check]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__("settings of the host", LOOK_SECONDS, level=logging.ERROR, clock=clock)
        self._checks = checks
        self._known: frozenset[str] | None = None

    def found(self, _now: float) -> list[Problem]:
        """Look, and leave out what was so from the start."""
        bad = [one for one in self._checks() if one.result is not Grade.OK]
        if self._known is None:
            self._known = frozenset(one.check for one in bad) - _ALWAYS
        return [
            Problem(f"{one.check}: {one.found}: {one.broken}", one.next)
            for one in bad
            if one.check not in self._known
        ]
