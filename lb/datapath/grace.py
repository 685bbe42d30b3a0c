"""Waiting for the packets that are on their way through the programs."""

from __future__ import annotations

import ctypes
import logging
import os
import platform

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
