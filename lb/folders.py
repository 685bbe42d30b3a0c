# SPDX-License-Identifier: Apache-2.0
"""Folders that other processes make, fill and remove meanwhile."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

_TRIES = 100


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name; nothing when there is none, or none any more.

    ``Path.glob`` is not for such folders: it fails when one goes between being seen and being read.

    Raises
    ------
    OSError: the folder is there and cannot be read.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def make(folder: Path, *, exist_ok: bool = True) -> None:
    """Make a folder and those above it, unless they are there; another may remove empty ones meanwhile.

    Raises
    ------
    FileExistsError: it is there, and must not be.
    OSError: it cannot be made.
    """
    for left in reversed(range(_TRIES)):
        try:
            if not exist_ok:
                make(folder.parent)
            folder.mkdir(parents=exist_ok, exist_ok=exist_ok)
        except FileNotFoundError:
            if not left:
                raise
        except FileExistsError:
            # Path.mkdir() looks once more what it is, and by then it may be gone.
            if not exist_ok or not left or _is_something_else(folder):
                raise
        else:
            return


def _is_something_else(folder: Path) -> bool:
    """Tell whether there is what is no folder; it is asked once, for between two looks it may go."""
    try:
        return not stat.S_ISDIR(folder.stat().st_mode)
    except FileNotFoundError:
        return folder.is_symlink()


def locked(path: Path, folder: Path, flags: int, operation: int) -> int:
    """Open what others may remove meanwhile, lock it, and return its descriptor: of what is there then.

    folder: what is made first, the path itself or the folder that it is in. flags: of open(2). operation: of
    flock(2).

    Raises
    ------
    BlockingIOError: it may not wait, and another process holds the lock.
    OSError: it cannot be made or opened.
    """
    while True:
        make(folder)
        try:
            fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:
            continue
        try:
            fcntl.flock(fd, operation)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
