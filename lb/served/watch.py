# SPDX-License-Identifier: Apache-2.0
"""What the agent's thread looks at again and again: what is wrong is logged once, and so is its end."""

from __future__ import annotations

import logging
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

from lb.errors import BpfError
from lb.served.problems import Problem


class Watch(ABC):
    """Looks from the agent's thread, every so many seconds.

    what: what is looked at, for the log when the kernel refuses a look. level: of a new problem in the log.
    clock: seconds, monotonic.
    """

    def __init__(
        self,
        what: str,
        seconds: float,
        *,
        level: int = logging.WARNING,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._what, self._seconds, self._level, self._clock = what, seconds, level, clock
        self._log = logging.getLogger(type(self).__module__)
        self._due = -math.inf
        self._problems: tuple[Problem, ...] = ()

    @abstractmethod
    def found(self, now: float) -> Sequence[Problem]:
        """Look, and return what is wrong. Raises BpfError: the kernel refused."""

    def problems(self) -> tuple[Problem, ...]:
        """Return what is wrong; may be called from any thread."""
        return self._problems

    def look(self) -> None:
        """Look, if it is time, and log what has changed."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + self._seconds
        try:
            problems = tuple(self.found(now))
        except BpfError as error:
            self._log.warning("%s could not be looked at: %s", self._what, error)
            return
        before, after = ({one.key or one.text for one in each} for each in (self._problems, problems))
        for one in problems:
            if (one.key or one.text) not in before:
                self._log.log(self._level, "%s; %s", one.text, one.next)
        for one in self._problems:
            if (one.key or one.text) not in after:
                self._log.info("no longer so: %s", one.text)
        self._problems = problems
