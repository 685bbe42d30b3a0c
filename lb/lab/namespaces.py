# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces, as ``ip netns`` has them, and being inside one for a while.

The system calls go through ctypes: Python has os.setns only from 3.12 on. A thread that changes its
namespace changes it for itself alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lb.errors import LabError

DIRECTORY = Path("/run/netns")
_CLONE_NEWNET = 0x40000000
_MS_BIND = 0x1000
_MS_SHARED = 1 << 20
_MS_REC = 0x4000
_MNT_DETACH = 2
_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result:
        raise LabError(f"{what}: {os.strerror(ctypes.get_errno())}")


def _mount(source: str, target: str, flags: int) -> int:
    result: int = _libc.mount(source.encode(), target.encode(), b"none", ctypes.c_ulong(flags), None)
    return result


def check_machine() -> None:
    """Refuse what cannot work.

    Raises
    ------
    LabError: not root, or nsenter is missing.
    """
    if os.geteuid() != 0:
        raise LabError("a lab is made of network namespaces, which needs root: use sudo")
    if shutil.which("nsenter") is None:
        raise LabError("nsenter is missing: install the package util-linux")


def path(name: str) -> Path:
    """Return the file that stands for the namespace."""
    return DIRECTORY / name


def exists(name: str) -> bool:
    """Tell whether there is a namespace of this name."""
    return path(name).exists()


def create(name: str) -> None:
    """Make a network namespace that ``ip netns list`` shows, with its loopback still down.

    Raises
    ------
    LabError: the name is taken, or the kernel refuses (not root).
    """
    _prepare_directory()
    try:
        os.close(os.open(path(name), os.O_RDONLY | os.O_CREAT | os.O_EXCL, 0o444))
    except FileExistsError:
        raise LabError(f"a network namespace {name} exists already and is not this lab's") from None
    failed: list[LabError] = []

    def in_thread() -> None:
        try:
            _check(_libc.unshare(_CLONE_NEWNET), "unshare(CLONE_NEWNET)")
            _check(_mount(_own_namespace(), str(path(name)), _MS_BIND), f"mount on {path(name)}")
        except LabError as error:
            failed.append(error)

    thread = threading.Thread(target=in_thread)
    thread.start()
    thread.join()
    if failed:
        path(name).unlink()
        raise failed[0]


def _prepare_directory() -> None:
    """Make /run/netns a shared mount, as ``ip netns add`` does.

    A removal is then seen in the mount namespaces of pods too; otherwise those keep the namespace alive.
    """
    DIRECTORY.mkdir(mode=0o755, exist_ok=True)
    where = str(DIRECTORY)
    if _mount("", where, _MS_SHARED | _MS_REC):
        _check(_mount(where, where, _MS_BIND | _MS_REC), f"mount on {where}")
        _check(_mount("", where, _MS_SHARED | _MS_REC), f"mount --make-shared {where}")


def delete(name: str) -> None:
    """Remove the name; the kernel removes the namespace with its interfaces when no process is in it."""
    target = path(name)
    while _libc.umount2(str(target).encode(), _MNT_DETACH) == 0:
        pass
    target.unlink(missing_ok=True)


def pids(name: str) -> set[int]:
    """Return the processes whose network namespace this is; empty when it does not exist."""
    try:
        wanted = path(name).stat()
    except FileNotFoundError:
        return set()
    found = set()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                seen = os.stat(f"/proc/{entry}/ns/net")
                if (seen.st_dev, seen.st_ino) == (wanted.st_dev, wanted.st_ino):
                    found.add(int(entry))
    return found


@contextlib.contextmanager
def inside(name: str) -> Iterator[None]:
    """Put the calling thread into the namespace: sockets made meanwhile belong to it for good.

    Raises
    ------
    LabError: there is no such namespace, or the kernel refuses.
    """
    home = os.open(_own_namespace(), os.O_RDONLY | os.O_CLOEXEC)
    try:
        enter(name)
        try:
            yield
        finally:
            _check(_libc.setns(home, _CLONE_NEWNET), "return from a network namespace")
    finally:
        os.close(home)


def enter(name: str) -> None:
    """Move the calling thread into the namespace for good.

    Raises
    ------
    LabError: there is no such namespace, or the kernel refuses.
    """
    try:
        there = os.open(path(name), os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise LabError(f"there is no network namespace {name}") from None
    try:
        _check(_libc.setns(there, _CLONE_NEWNET), f"enter network namespace {name}")
    finally:
        os.close(there)


def _own_namespace() -> str:
    return f"/proc/self/task/{threading.get_native_id()}/ns/net"


@contextlib.contextmanager
def netlink(name: str) -> Iterator[Any]:
    """Give a pyroute2 IPRoute of the namespace, with the calling thread inside it meanwhile.

    Raises
    ------
    LabError: the kernel refused what was asked through it.
    """
    from pyroute2 import IPRoute  # noqa: PLC0415 - takes 0.1 s, and most commands need none
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415

    try:
        with inside(name), IPRoute() as route:
            yield route
    except (NetlinkError, OSError) as error:
        raise LabError(f"network namespace {name}: {error}") from error


def command(name: str, argv: Sequence[str], *, pid: int = 0) -> list[str]:
    """Return the command that runs argv in the namespace, and in the pid's mount and UTS namespaces if given.

    nsenter, unlike ``ip netns exec``, leaves /sys as it is, so that the bpf file system stays in sight.
    """
    own = ["--target", str(pid), "--mount", "--uts"] if pid else []
    return ["nsenter", f"--net={path(name)}", *own, "--", *argv]
