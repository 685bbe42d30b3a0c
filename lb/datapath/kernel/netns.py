# SPDX-License-Identifier: Apache-2.0
"""The network namespaces of this machine: finding one, and moving the calling thread into it.

Only the network namespace is entered: ``ip netns exec`` would also remount /sys and hide the BPF file system.
The system call goes through ctypes, because Python has os.setns only from 3.12 on.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Iterator
from pathlib import Path

from lb.errors import DatapathError

NAMED = Path("/run/netns")
"""Where ``ip netns`` keeps a file for each namespace that has a name."""
_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


def find(inode: int, pid: int | None) -> Path | None:
    """Return a file that stands for the network namespace of this number (an inode), None when it is gone.

    pid: a process that was seen in it. Else it may have a name (``ip netns``).
    """
    candidates = [Path(f"/proc/{pid}/ns/net")] if pid else []
    with contextlib.suppress(OSError):
        candidates += sorted(NAMED.iterdir())
    for path in candidates:
        with contextlib.suppress(OSError):
            if path.stat().st_ino == inode:
                return path
    return None


@contextlib.contextmanager
def entered(path: Path) -> Iterator[None]:
    """Let the calling thread, and the processes that it starts, be in a network namespace meanwhile.

    Raises DatapathError: it is gone, or the kernel refused.
    """
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(path)
        try:
            yield
        finally:
            _set(home, "back")
    finally:
        os.close(home)


@contextlib.contextmanager
def present() -> Iterator[Path]:
    """Give a file that stands for the calling thread's network namespace of now, whatever it enters later."""
    fd = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
    try:
        yield Path(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def enter(path: Path) -> None:
    """Move the calling thread into a network namespace for good.

    Raises DatapathError: it is gone, or the kernel refused.
    """
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise DatapathError(f"network namespace {path}: {error.strerror}") from error
    try:
        _set(there, str(path))
    finally:
        os.close(there)


def _set(fd: int, name: str) -> None:
    if _libc.setns(fd, _CLONE_NEWNET):
        raise DatapathError(f"entering network namespace {name}: {os.strerror(ctypes.get_errno())}")
