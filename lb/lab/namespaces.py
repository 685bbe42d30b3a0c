# SPDX-License-Identifier: Apache-2.0
"""Named network namespaces, as ``ip netns`` has them, and being inside one for a while."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lb.datapath.kernel import netns
from lb.errors import LabError

_PACKAGES = {"ip": "iproute2", "nsenter": "util-linux"}


def check_machine() -> None:
    """Refuse what cannot work.

    Raises LabError: not root, or a program is missing.
    """
    if os.geteuid() != 0:
        raise LabError("a lab is made of network namespaces, which needs root: use sudo")
    for program, package in _PACKAGES.items():
        if shutil.which(program) is None:
            raise LabError(f"{program} is missing: install the package {package}")


def path(name: str) -> Path:
    """Return the file that stands for the namespace."""
    return netns.NAMED / name


def exists(name: str) -> bool:
    """Tell whether there is a namespace of this name."""
    return path(name).exists()


def create(name: str) -> None:
    """Make a network namespace that ``ip netns list`` shows, with its loopback still down.

    Raises LabError: the name is taken, or the kernel refuses (not root).
    """
    if exists(name):
        raise LabError(f"a network namespace {name} exists already and is not this lab's")
    _ip_netns("add", name)


def delete(name: str) -> None:
    """Remove the name; the kernel removes the namespace with its interfaces when no process is in it."""
    if exists(name):
        _ip_netns("delete", name)


def _ip_netns(action: str, name: str) -> None:
    done = subprocess.run(["ip", "netns", action, name], check=False, capture_output=True, text=True)
    if done.returncode:
        raise LabError(f"ip netns {action} {name}: {done.stderr.strip()}")


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


def inside(name: str) -> contextlib.AbstractContextManager[None]:
    """Put the calling thread into the namespace: sockets made meanwhile belong to it for good.

    Raises LabError: there is no such namespace.
    """
    return netns.entered(_existing(name))


def enter(name: str) -> None:
    """Move the calling thread into the namespace for good.

    Raises LabError: there is no such namespace.
    """
    netns.enter(_existing(name))


def _existing(name: str) -> Path:
    if not exists(name):
        raise LabError(f"there is no network namespace {name}")
    return path(name)


@contextlib.contextmanager
def netlink(name: str) -> Iterator[Any]:
    """Give a pyroute2 IPRoute of the namespace, with the calling thread inside it meanwhile.

    Raises LabError: the kernel refused what was asked through it.
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
