# SPDX-License-Identifier: Apache-2.0
"""Network namespaces for tests: nameless, so that nothing is left when a test process dies."""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


class NetworkNamespace:
    """A network namespace without a name: gone when it is closed."""

    def __init__(self) -> None:
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        try:
            if _libc.unshare(_CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "unshare")
            self._fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        finally:
            _enter(outside)
            os.close(outside)

    def close(self) -> None:
        os.close(self._fd)

    def fileno(self) -> int:
        return self._fd

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Let the calling thread be in the namespace meanwhile."""
        outside = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
        _enter(self._fd)
        try:
            yield
        finally:
            _enter(outside)
            os.close(outside)


def _enter(fd: int) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise OSError(ctypes.get_errno(), "setns")
