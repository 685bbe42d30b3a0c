"""Folders that other processes make, fill and remove meanwhile."""

from __future__ import annotations

import contextlib
import os
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
            if not exist_ok or not left or (os.path.lexists(folder) and not folder.is_dir()):
                raise
        else:
            return
