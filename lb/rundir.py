# SPDX-License-Identifier: Apache-2.0
"""What an agent leaves in /run/lbctl: a lock that tells whether it lives, and notes about what it did.

::

    /run/lbctl/<instance>.lock   held by flock for as long as the agent lives; holds its pid
    /run/lbctl/<instance>.json   the agent's notes: why a hook has its mode, when it last synced
    /run/lbctl/<instance>.watch  held by flock for as long as somebody watches; holds their pid
    /run/lbctl/<instance>.sock   where the agent is asked for what is in its memory alone
    /run/lbctl/<instance>.bgp.*  the same of the process that tells routers about the instance
    /run/lbctl/<instance>.bgp/   what that process and BIRD have: configuration, control socket, what was told

The maps and hooks themselves are the truth; the notes only explain them. All are safe against SIGKILL:
the kernel drops a lock with the process, notes are replaced by rename, and nobody answers at the socket.

The folder is root's alone, mode 0700: a lock can be taken by whoever may open its file for reading. It is
memory that others fill, too, so what cannot be written there stops nobody.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.errors import LbError
from lb.folders import locked, read_file, replace_file

_log = logging.getLogger(__name__)

ROOT = Path("/run/lbctl")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
_MOST_NOTES = 4 << 20
"""Bytes of notes that are read; the agent writes some ten thousand."""
_LOCK_SECONDS = 0.5
"""How long a lock is tried for: whoever asks whether it is held, takes it for a moment."""
_SOCKET_PATH_MOST = 107
"""Bytes of a Unix socket's path, unix(7)."""


def network_namespace() -> int:
    """Return the number of this process's network namespace: the inode of /proc/self/ns/net."""
    return Path("/proc/self/ns/net").stat().st_ino


@dataclass(frozen=True, slots=True)
class RunDir:
    """The run files of one instance."""

    instance: str
    root: Path = ROOT

    @property
    def lock_path(self) -> Path:
        """The lock's file."""
        return self.root / f"{self.instance}.lock"

    @property
    def notes_path(self) -> Path:
        """The notes' file."""
        return self.root / f"{self.instance}.json"

    @property
    def socket_path(self) -> Path:
        """The socket's file; a name that has no room in a socket's address is shortened to its hash."""
        path = self.root / f"{self.instance}.sock"
        if len(bytes(path)) <= _SOCKET_PATH_MOST:
            return path
        return self.root / f"{hashlib.blake2b(self.instance.encode(), digest_size=16).hexdigest()}.sock"

    @property
    def watch_path(self) -> Path:
        """The file of the lock of whoever watches."""
        return self.root / f"{self.instance}.watch"

    @property
    def drain_path(self) -> Path:
        """The file that marks the node as drained (:mod:`lb.served.drain`)."""
        return self.root / f"{self.instance}.drain"

    @property
    def speaker(self) -> RunDir:
        """The run files of the process that tells routers about this instance (``lbctl announce bgp``)."""
        return RunDir(f"{self.instance}.bgp", self.root)

    @property
    def folder(self) -> Path:
        """The folder of what a speaker has in more files; whoever needs it makes and removes it."""
        return self.root / self.instance

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Be the only one that works on this instance.

        Raises LbError: another process holds the lock.
        Raises PermissionError: not root.
        """
        with self._held(self.lock_path, "in use by", "stop it first, or choose another --instance"):
            yield

    @contextlib.contextmanager
    def lock_if_room(self) -> Iterator[None]:
        """Do as :meth:`lock`; where the file system has no room for the lock, say so and go on without it.

        Raises LbError, PermissionError: see :meth:`lock`.
        """
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(self.lock())
            except _NoRoomError as error:
                _log.error("%s; going on without: see that no second agent is started", error)
            yield

    @contextlib.contextmanager
    def watching(self) -> Iterator[None]:
        """Be the only one that watches this instance.

        Raises LbError: another process watches it.
        Raises PermissionError: not root.
        """
        with self._held(self.watch_path, "already watched by", "its packets are told to one at a time"):
            yield

    @contextlib.contextmanager
    def _held(self, path: Path, taken: str, advice: str) -> Iterator[None]:
        """Hold the lock of a file; taken and advice are for the error message when another process does."""
        fd = self._locked(path, taken, advice)
        try:
            with contextlib.suppress(OSError):  # the lock counts, not who it says has it
                os.ftruncate(fd, 0)
                os.pwrite(fd, str(os.getpid()).encode(), 0)
            yield
        finally:
            os.close(fd)

    def _locked(self, path: Path, taken: str, advice: str) -> int:
        """Return the lock file's descriptor, locked."""
        until = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                return locked(path, self.root, os.O_RDWR | os.O_CREAT, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() < until:
                    time.sleep(_LOCK_SECONDS / 50)
                    continue
                who = f"{taken} process {_pid_in(path) or 'unknown'}"
                raise LbError(f"instance {self.instance}: {who}, which holds {path}; {advice}") from None
            except PermissionError:
                raise
            except OSError as error:
                kind = _NoRoomError if error.errno in _NO_ROOM else LbError
                raise kind(f"instance {self.instance}: no lock at {path}: {error.strerror}") from error

    def holder(self) -> int | None:
        """Return the pid of the process that holds the lock, 0 if it is unknown, None if nobody holds it."""
        try:
            fd = os.open(self.lock_path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        except PermissionError:
            raise
        except OSError:
            return None
        try:
            fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _pid_in(self.lock_path)
        finally:
            os.close(fd)
        return None

    def write_notes(self, notes: Mapping[str, Any]) -> None:
        """Replace the notes.

        Raises OSError: there is no room for them, or the folder is gone; those of before stay.
        """
        from msgspec import json as fast  # noqa: PLC0415 - commands read notes, and do without

        replace_file(self.notes_path, fast.format(fast.encode(notes), indent=1) + b"\n")

    def notes(self) -> dict[str, Any]:
        """Return the notes; empty when there are none that can be read.

        Raises PermissionError: not root.
        """
        try:
            found = json.loads(read_file(self.notes_path, _MOST_NOTES))
        except PermissionError:
            raise
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def neighbour(self) -> str:
        """Return the instance of another agent that runs in this network namespace, ``""`` for none.

        Raises PermissionError: not root.
        """
        for path in self.root.glob("*.json"):
            other = RunDir(path.stem, self.root)
            if other.instance == self.instance or not other.holder():
                continue
            if other.notes().get("network_namespace") == network_namespace():
                return other.instance
        return ""

    def elsewhere(self) -> str:
        """Return how to get to the agent's network namespace; ``""`` when this is it, or nothing is known."""
        notes = self.notes()
        if notes.get("network_namespace", network_namespace()) == network_namespace():
            return ""
        return f"nsenter --net=/proc/{notes.get('pid')}/ns/net lbctl … --instance {self.instance}"

    def remove(self) -> None:
        """Remove the instance's files, and the directory when it was the last one's."""
        for path in (
            self.notes_path,
            self.socket_path,
            self.lock_path,
            self.watch_path,
            self.drain_path,
        ):
            path.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # another instance has files there
            self.root.rmdir()


class _NoRoomError(LbError):
    """The file system has no room for a lock's file."""


def _pid_in(path: Path) -> int:
    """Return the pid that a lock's file holds, 0 when it holds none."""
    try:
        return int(read_file(path, 32))
    except (OSError, ValueError):
        return 0
