# SPDX-License-Identifier: Apache-2.0
"""Waiting for the packets that are on their way through the programs."""

from __future__ import annotations

import ctypes
import logging
import os
import platform
import threading
from collections.abc import Callable

from lb.stop_event import StopEvent

_LOG = logging.getLogger(__name__)
_MEMBARRIER = {"x86_64": 324, "aarch64": 283, "riscv64": 283, "ppc64le": 365, "s390x": 356}
_MEMBARRIER_CMD_GLOBAL = 1


def wait_for_running_programs() -> None:
    """Return once every program run that had begun before the call has ended: about 10 ms.

    A program runs inside one RCU read-side section, and membarrier(2) with MEMBARRIER_CMD_GLOBAL waits for
    an RCU grace period. A kernel with nohz_full CPUs refuses it; then there is no wait.
    """
    number = _MEMBARRIER.get(platform.machine())
    libc = ctypes.CDLL(None, use_errno=True)
    if number is None:
        _LOG.debug("no membarrier on %s: not waiting for running programs", platform.machine())
    elif libc.syscall(number, _MEMBARRIER_CMD_GLOBAL, 0, 0):
        _LOG.debug("membarrier: %s: not waiting for running programs", os.strerror(ctypes.get_errno()))


class GracePeriods:
    """Waits in a thread of its own, so that a change that comes meanwhile is not kept waiting.

    ended is called, in that thread, after each wait. wait: :func:`wait_for_running_programs`.
    """

    def __init__(
        self, ended: Callable[[], None], wait: Callable[[], None] = wait_for_running_programs
    ) -> None:
        self._ended = ended
        self._wait = wait
        self._asked = 0
        self._over = 0
        self._wake = threading.Event()

    def begin(self) -> Callable[[], bool]:
        """Return at once, with what tells whether all programs that run now have ended."""
        self._asked += 1
        number = self._asked
        self._wake.set()
        return lambda: self._over >= number

    def run(self, stop: StopEvent) -> None:
        """Wait, whenever that is asked for, until stop is set."""
        stop.then(self._wake.set)
        while not stop.is_set():
            self._wake.wait()
            self.step()

    def step(self) -> None:
        """Do one wait; it counts for all that was asked for before."""
        self._wake.clear()
        asked = self._asked
        self._wait()
        self._over = asked
        self._ended()
