# SPDX-License-Identifier: Apache-2.0
"""Control groups (cgroup v2) of the lab's nodes, so that socket hooks serve one node and not the machine.

::

    <mount of cgroup2>/lbctl-lab/<lab>/<node>          the agent, and what ``lab exec`` runs on the node
    <mount of cgroup2>/lbctl-lab/<lab>/<node>/<netns>  a pod of the node; hooks attached above serve it, too

No controller is turned on, so a group may have both processes and groups below it (cgroup-v2 documentation of
the kernel, "No Internal Process Constraint").
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from pathlib import Path

from lb.datapath.attach.sockets import cgroup_root
from lb.errors import LabError
from lb.folders import make

MOUNTS = Path("/proc/self/mounts")
_TOP = "lbctl-lab"
_ENTER = 'echo 0 >"$0/cgroup.procs" && exec "$@"'


def mount_point(mounts: str) -> Path:
    """Return where cgroup v2 is mounted, by the text of /proc/self/mounts.

    Raises LabError: it is not mounted.
    """
    root = cgroup_root(mounts)
    if root is None:
        raise LabError("cgroup v2 is not mounted: mount -t cgroup2 none DIRECTORY")
    return root


def of_lab(lab: str) -> Path:
    """Return the group of all nodes of a lab, whether it is there or not.

    Raises LabError: see :func:`mount_point`.
    """
    return mount_point(MOUNTS.read_text()) / _TOP / lab


def of_node(lab: str, node: str) -> Path:
    """Return the group of a node of a lab.

    Raises LabError: see :func:`mount_point`.
    """
    return of_lab(lab) / node


def create(group: Path) -> None:
    """Make a group, with those above it.

    Raises LabError: the kernel refuses.
    """
    try:
        make(group)
    except OSError as error:
        raise LabError(f"control group {group}: {error.strerror}") from error


def remove(group: Path) -> None:
    """Remove a group of which every process has ended, with those below it, as far as they exist.

    Raises LabError: a process is left in one of the groups.
    """
    for directory, _, _ in os.walk(group, topdown=False):
        try:
            os.rmdir(directory)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise LabError(f"control group {directory}: {error.strerror}") from error


def remove_lab(lab: str) -> None:
    """Remove the groups of a lab, and the one of all labs when this was the last.

    Raises LabError: a process is left in one of the groups.
    """
    group = of_lab(lab)
    remove(group)
    with contextlib.suppress(OSError):
        group.parent.rmdir()


def pids(group: Path) -> set[int]:
    """Return the processes in a group and those below it; empty when it does not exist."""
    found: set[int] = set()
    for directory, _, _ in os.walk(group):
        with contextlib.suppress(OSError):
            found |= {int(pid) for pid in Path(directory, "cgroup.procs").read_text().split()}
    return found


def command(group: Path, argv: Sequence[str]) -> list[str]:
    """Return the command that runs argv in the group; the process id stays the same throughout."""
    return ["sh", "-c", _ENTER, str(group), *argv]
