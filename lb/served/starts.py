# SPDX-License-Identifier: Apache-2.0
"""An agent that ends again and again, killed by the kernel perhaps, and is started anew: that is told."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from lb.served.problems import Problem
from lb.words import several

_log = logging.getLogger(__name__)

WINDOW_SECONDS = 600.0
OFTEN = 3
_MOST = 20
"""How many ends are remembered."""
_HOW = "ended without being told to: killed, out of memory, or by an error in its log"
_NEXT = (
    "journalctl -u lbctl, or kubectl logs --previous, may say why; killed for want of memory:"
    " dmesg | grep -i oom, and raise its limit"
)


class Starts:
    """Remembers, by the notes, how often the agents before ended without being told to.

    former: the notes that the agent before has left. wall: seconds since the epoch.
    """

    def __init__(self, former: Mapping[str, Any], wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        now = wall()
        self._times = _numbers(former.get("failures"))
        self.ended = False
        if former.get("pid") and former.get("ended") is False:
            self._times = [*self._times[1 - _MOST :], now]
            _log.warning("the agent before this one, process %s, %s", former["pid"], _HOW)

    def problems(self) -> list[Problem]:
        """Return what is wrong: there is no end to it."""
        lately = [one for one in self._times if 0 <= self._wall() - one < WINDOW_SECONDS]
        if len(lately) < OFTEN:
            return []
        times = f"{several(len(lately), 'time')} within {WINDOW_SECONDS / 60:.0f} min"
        return [Problem(f"{times} the agent {_HOW}", _NEXT, "starts")]

    def as_notes(self) -> dict[str, Any]:
        """Return what the next agent is to know."""
        return {"failures": self._times, "ended": self.ended}


def _numbers(found: object) -> list[float]:
    return [one for one in found if isinstance(one, int | float)] if isinstance(found, list) else []
