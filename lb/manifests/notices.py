# SPDX-License-Identifier: Apache-2.0
"""Being told when files in folders may have changed."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import watchfiles

log = logging.getLogger(__name__)
logging.getLogger("watchfiles").setLevel(logging.WARNING)  # it logs every notice

QUIET_MS = 20
"""A change is read once its folder has been quiet for so long: few half-written files are seen."""
BUSY_MS = 400
"""A folder that is never quiet is read all the same, this often."""
TICK_MS = 100
"""How often it is checked that the watched folders are still those of that name."""
RESCAN_SECONDS = 2.0
"""How often the folders are looked at without a notice, for file systems that give none."""


def notices(directories: Sequence[Path], stop: threading.Event) -> Iterator[bool]:
    """Yield True whenever files may have changed, and False as time goes by, until stop is set.

    The first True comes when the watch is set up, so no change falls between the two. A folder that is
    removed, or replaced by another of its name, takes its watch with it: then the watch is set up anew.
    """
    complaint = ""
    while not stop.is_set():
        watched = _identities(directories)
        try:
            yield from _watch(watched, directories, stop)
        except FileNotFoundError:
            stop.wait(TICK_MS / 1000)
        except (OSError, RuntimeError) as error:
            if str(error) != complaint:
                complaint = str(error)
                log.warning(
                    "folders cannot be watched, looking every %g s instead: %s", RESCAN_SECONDS, error
                )
            stop.wait(RESCAN_SECONDS)
            yield True


_Identity = tuple[int, int]


def _identities(directories: Iterable[Path]) -> dict[Path, _Identity]:
    """Return device and inode of those directories that exist."""
    result = {}
    for directory in directories:
        try:
            status = os.stat(directory)
        except OSError:
            continue
        result[directory] = (status.st_dev, status.st_ino)
    return result


def _watch(
    watched: dict[Path, _Identity], directories: Sequence[Path], stop: threading.Event
) -> Iterator[bool]:
    """Yield True for changes and False at ticks, until the watch is no longer that of the directories.

    Notices are not filtered by name: a ConfigMap volume changes by moving a hidden link.

    Raises OSError, RuntimeError: the watch cannot be set up; FileNotFoundError when a directory went away.
    """
    roots = {str(directory.absolute()) for directory in watched}
    fresh = True
    for changes in watchfiles.watch(
        *watched,
        watch_filter=None,
        debounce=BUSY_MS,
        step=QUIET_MS,
        rust_timeout=TICK_MS,
        yield_on_timeout=True,
        stop_event=stop,
        raise_interrupt=False,
    ):
        yield fresh or bool(changes)
        fresh = False
        replaced = any(change is watchfiles.Change.deleted and path in roots for change, path in changes)
        if replaced or _identities(directories) != watched:
            return
