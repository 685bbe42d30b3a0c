# SPDX-License-Identifier: Apache-2.0
"""Folders and files that other processes make, fill and remove meanwhile, or have made in our way."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import select
import stat
from pathlib import Path
from typing import IO

from lb.errors import LbError

_TRIES = 100
_MOST_LINKS = 40
SILENCE_SECONDS = 30.0
"""How long a pipe that somebody named as a file may say nothing."""

PRIVATE = 0o700
"""Mode of a folder that is for this process's user alone, who is root."""


def read_file(path: Path, most: int) -> bytes:
    """Return what is in a file of at most so many bytes.

    Unlike ``Path.read_bytes`` it never waits: what is no regular file (a FIFO, a device) is an error.

    Raises OSError: it cannot be read, is larger, or is no file.
    """
    with _opened(path) as raw, io.BufferedReader(raw) as file:
        if not stat.S_ISREG(os.fstat(raw.fileno()).st_mode):
            raise OSError(errno.EINVAL, "is no regular file", str(path))
        data = file.read(most + 1)
    if len(data) > most:
        raise _too_large(path, most)
    return data


def read_stream(path: Path, most: int) -> bytes:
    """Return what is in a file of at most so many bytes, or what a pipe or a terminal says until its end.

    It is for what a person named: ``/dev/stdin`` and a shell's ``<(command)`` are pipes. It does not wait for
    a pipe into which nobody writes.

    Raises OSError: it cannot be read, is larger, or is a pipe that says nothing for SILENCE_SECONDS.
    """
    with _opened(path) as file:
        poll = select.poll()
        poll.register(file, select.POLLIN)
        data = bytearray()
        while len(data) <= most:
            if not poll.poll(SILENCE_SECONDS * 1000):
                words = f"nothing came from it for {SILENCE_SECONDS:g} seconds"
                raise OSError(errno.ETIMEDOUT, words, str(path))
            piece = file.read(most + 1 - len(data))
            if piece == b"":
                return bytes(data)
            data += piece or b""  # None: another reader of the same pipe was faster
    raise _too_large(path, most)


def _opened(path: Path) -> io.FileIO:
    """Open a file for reading, whatever it is, without waiting.

    Raises OSError: it cannot be opened, or is a folder.
    """
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    try:
        return io.FileIO(fd)
    except OSError as error:  # its words would name a descriptor
        os.close(fd)
        raise OSError(error.errno, error.strerror, str(path)) from error


def _too_large(path: Path, most: int) -> OSError:
    return OSError(errno.EFBIG, f"is larger than {most} bytes", str(path))


def create_file(path: Path) -> IO[bytes]:
    """Open a file that a person named for writing, empty; a new one is for this process's user alone.

    In a folder in which everybody may put something, as /tmp, links and files of others are not followed and
    not written to (as with the sysctls fs.protected_symlinks and fs.protected_regular, which may be off).
    It does not wait for a pipe from which nobody reads.

    Raises OSError: it cannot be opened, or somebody else put it there.
    """
    target = _destination(path)
    flags = os.O_WRONLY | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
    fd = os.open(target, flags if _of_proc(target) else flags | os.O_NOFOLLOW, 0o600)
    try:
        status = os.fstat(fd)
        if stat.S_ISREG(status.st_mode):
            _refuse_planted(target, status)
            os.ftruncate(fd, 0)
        os.set_blocking(fd, True)
    except OSError:
        os.close(fd)
        raise
    return open(fd, "wb")


def _destination(path: Path) -> Path:
    """Return where links lead, of which somebody else may have put none in our way.

    Raises OSError: somebody else has put a link there, or there are too many links.
    """
    target = path.absolute()
    for _ in range(_MOST_LINKS):
        for one in _way(target):
            if one.is_symlink() and not _of_proc(one):
                _refuse_planted(one, one.lstat())
        if _of_proc(target) or not target.is_symlink():
            return target
        target = target.parent / target.readlink()
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


def _of_proc(path: Path) -> bool:
    """Tell whether it is /proc's, whose links to pipes lead nowhere unless the kernel follows them."""
    return path.is_relative_to("/proc") and ".." not in path.parts


def _refuse_planted(path: Path, status: os.stat_result) -> None:
    """See that what is in a sticky folder is ours or that of the folder's owner, under no second name.

    Raises OSError: somebody else put it there.
    """
    folder = path.parent.stat()
    if not folder.st_mode & stat.S_ISVTX:
        return
    if status.st_uid not in {os.geteuid(), folder.st_uid}:
        raise OSError(errno.EPERM, f"{path} belongs to user {status.st_uid}, who may read or move it")
    if stat.S_ISREG(status.st_mode) and status.st_nlink > 1:
        raise OSError(errno.EPERM, f"{path} has a second name somewhere")


def replace_file(path: Path, data: bytes) -> None:
    """Put a file in the place of whatever is there: whoever reads sees the old one or the new, whole.

    It is for this process's user alone. When it fails, what was there stays.

    Raises OSError: it cannot be written.
    """
    aside = path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            aside.unlink()
        fd = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with open(fd, "wb") as file:
            file.write(data)
        aside.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise


def signature(path: Path) -> tuple[int, int, int] | None:
    """Return what is another when a file has changed: time, size and inode; None where it cannot be seen."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def foreign_hand(path: Path) -> str:
    """Return how somebody other than root or this process's user could change what is at path, else ``""``.

    Everything on the way to it counts: who may write to a folder may put another in the place of what is in
    it. In a folder with the sticky bit, as /tmp, only the owner of an entry may.

    Raises OSError: something on the way is not there, or cannot be looked at.
    """
    ours = {0, os.geteuid()}
    for one in dict.fromkeys((*_way(path.absolute()), *_way(path.resolve()))):
        status = one.lstat()
        if status.st_uid not in ours:
            return f"{one} belongs to user {status.st_uid}"
        if stat.S_ISLNK(status.st_mode):
            continue
        loose = status.st_mode & (stat.S_IWOTH | (stat.S_IWGRP if status.st_gid else 0))
        shared = one != path and status.st_mode & stat.S_ISVTX
        if loose and not shared:
            return f"others may write to {one}, mode {stat.S_IMODE(status.st_mode):04o}"
    return ""


def _way(path: Path) -> tuple[Path, ...]:
    """Return the folders that lead to a path, from the root on, and the path itself."""
    return (*reversed(path.parents), path)


def entries(folder: Path) -> list[Path]:
    """Return what lies in a folder, by name; nothing when there is none, or none any more.

    ``Path.glob`` is not for such folders: it fails when one goes between being seen and being read.

    Raises OSError: the folder is there and cannot be read.
    """
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        return sorted(folder.iterdir())
    return []


def _keep_private(folder: Path) -> None:
    """See that a folder is for root alone; one that others can enter is closed to them.

    Raises OSError: the folder is not there, or cannot be looked at.
    Raises LbError: somebody else could change the folder.
    """
    if hand := foreign_hand(folder):
        raise LbError(f"{folder} is not safe to use: {hand}; remove it, or mend its owner and mode")
    if stat.S_IMODE(folder.stat().st_mode) != PRIVATE:
        folder.chmod(PRIVATE)


def make(folder: Path, *, exist_ok: bool = True, mode: int = 0o777) -> None:
    """Make a folder and those above it, unless they are there; another may remove empty ones meanwhile.

    mode is that of a new folder, less the umask; those above it have the usual one.

    Raises FileExistsError: the folder is there, and must not be.
    Raises OSError: it cannot be made.
    """
    for left in reversed(range(_TRIES)):
        try:
            if not exist_ok:
                make(folder.parent)
            folder.mkdir(mode, parents=exist_ok, exist_ok=exist_ok)
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

    folder: what is made first, the path itself or the folder that it is in; private, for whoever may open a
    file for reading may lock it. flags: of open(2). operation: of flock(2).

    Raises BlockingIOError: it may not wait, and another process holds the lock.
    Raises OSError: it cannot be made or opened.
    Raises LbError: somebody else could change the folder.
    """
    while True:
        make(folder, mode=PRIVATE)
        try:
            _keep_private(folder)
            fd = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
        except FileNotFoundError:
            continue
        try:
            if stat.S_ISREG(os.fstat(fd).st_mode):
                os.fchmod(fd, 0o600)  # an earlier version let others read it
            fcntl.flock(fd, operation)
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        except FileNotFoundError:
            pass
        except OSError:
            os.close(fd)
            raise
        os.close(fd)
