# SPDX-License-Identifier: Apache-2.0
"""Socket hooks: the programs of ``bpf/sock_lb.c`` at a control group (cgroup v2).

Each program is attached by a link that is pinned beside the maps, besides whatever else is attached to the
group. A link keeps its program attached when no process has it open, takes another program's place at once,
and leaves no trace when its pin is removed.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from lb.config import SocketMode
from lb.datapath.attach.hooks import HookReport, LostHook
from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import FD
from lb.datapath.kernel.pins import Pins
from lb.errors import AttachError, BpfError
from lb.folders import entries

MOUNTS = Path("/proc/self/mounts")
_SO_NETNS_COOKIE = 71  # asm-generic/socket.h; Linux 5.14
_HOOKS = {
    10: "connect4", 11: "connect6", 14: "sendmsg4", 15: "sendmsg6",
    19: "recvmsg4", 20: "recvmsg6", 29: "getpeername4", 30: "getpeername6",
}  # fmt: skip


def cgroup_root(mounts: str) -> Path | None:
    """Return where cgroup v2 is mounted, by the text of /proc/self/mounts; None: nowhere.

    It is /sys/fs/cgroup on most machines, /sys/fs/cgroup/unified where version 1 is there as well.
    """
    for line in mounts.splitlines():
        _, where, kind, *_ = line.split(" ")
        if kind == "cgroup2":
            return Path(re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), where))
    return None


def netns_cookie() -> int:
    """Return the cookie of this process's network namespace, as programs see it; 0: the kernel tells none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        try:
            cookie = any_socket.getsockopt(socket.SOL_SOCKET, _SO_NETNS_COOKIE, 8)
        except OSError:
            return 0
    return int.from_bytes(cookie, sys.byteorder)


@dataclass(frozen=True, slots=True)
class AttachedSocket:
    """One of our programs at a control group; hook is ``"connect4"``, ``"recvmsg6"``, …"""

    cgroup: Path | None
    hook: str
    program: str
    program_id: int


class SocketHooks:
    """Keeps the socket programs attached to a control group, or detached.

    Parameters
    ----------
    programs: path and enum bpf_attach_type of each program, by the name of its pin.
    refused: why there are none, in the kernel's words.
    cgroup: path of the group; empty: the root of the first cgroup2 mount.

    Attributes
    ----------
    failed: why the last :meth:`sync` could not attach them, ``""`` when it could.
    """

    def __init__(
        self,
        pins: Pins,
        programs: Mapping[str, tuple[Path, int]],
        refused: str,
        cgroup: str,
        mode: SocketMode,
    ) -> None:
        self.failed = ""
        self._pins, self._programs, self._refused = pins, programs, refused
        self._cgroup, self._mode = cgroup, mode
        self._group: Path | None = None  # where the programs were attached last

    def sync(self) -> HookReport:
        """Bring the kernel in step; a failure is in the report, and what is attached then stays so."""
        report = HookReport()
        self.failed = ""
        try:
            if self._mode is SocketMode.OFF:
                report.detached += detach(self._pins)
            else:
                self._attach(report)
        except (AttachError, BpfError, OSError) as error:
            self.failed = f"socket hooks: {error}; tc serves the node's processes instead"
            report.errors.append(AttachError(self.failed))
        return report

    def lost(self) -> list[LostHook]:
        """Return the hooks of the control group that lack our program; none where :attr:`failed` tells.

        Raises BpfError: the kernel refused the question.
        """
        if self._mode is SocketMode.OFF or self._refused or self.failed:
            return []
        group = _inode(self._group) if self._group else 0
        there = {name for name, info in _links(self._pins) if group and info.cgroup == group}
        return [
            LostHook(f"control group, {_HOOKS[attach_type]}: {name}", outward=False)
            for name, (_, attach_type) in self._programs.items()
            if name not in there
        ]

    def _attach(self, report: HookReport) -> None:
        if self._refused:
            raise AttachError(self._refused)
        if not netns_cookie():
            raise AttachError("the kernel, older than 5.14, does not tell network namespaces apart")
        group = Path(self._cgroup) if self._cgroup else cgroup_root(MOUNTS.read_text())
        if group is None:
            raise AttachError("cgroup v2 is not mounted: mount -t cgroup2 none DIRECTORY")
        self._group = group
        self._pins.links.mkdir(exist_ok=True)
        with _directory(group) as target:
            for name, (path, attach_type) in self._programs.items():
                with bpf.obj_get(path) as program:
                    if _put(self._pins.links / name, program, target, attach_type):
                        report.attached.append(f"{group} {_HOOKS[attach_type]}")
        for left in set(entries(self._pins.links)) - {self._pins.links / name for name in self._programs}:
            left.unlink()


@contextlib.contextmanager
def _directory(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)


def _put(pin: Path, program: FD, target: int, attach_type: int) -> bool:
    """Attach the program to the target by the link pinned at pin; return False if it was attached already."""
    wanted = (os.fstat(target).st_ino, attach_type)
    if pin.exists():
        with bpf.obj_get(pin) as link:
            info = bpf.link_info(link)
            if (info.cgroup, info.attach_type) == wanted:
                if info.program_id == bpf.prog_info(program).id:
                    return False
                bpf.link_update(link, program)
                return True
    with bpf.link_create(program, target, attach_type, f"{pin.name} at the control group") as link:
        aside = pin.with_name(f"{pin.name}~new")
        aside.unlink(missing_ok=True)
        bpf.obj_pin(link, aside)
        aside.rename(pin)
    return True


def detach(pins: Pins) -> list[str]:
    """Detach the socket programs of an instance; return what was attached, as reports name it.

    Raises BpfError: the kernel refused.
    """
    found = [f"{one.cgroup or 'control group'} {one.hook}" for one in attached(pins)]
    for path in entries(pins.links):
        with bpf.obj_get(path) as link:
            bpf.link_detach(link)
        path.unlink()
    return found


def attached(pins: Pins) -> list[AttachedSocket]:
    """Return an instance's programs at control groups, as the kernel tells it; cgroup: None once it is gone.

    Raises BpfError: the kernel refused.
    """
    found = []
    groups: dict[int, Path | None] = {0: None}
    for name, info in _links(pins):
        if info.cgroup not in groups:
            groups[info.cgroup] = _group(info.cgroup)
        found.append(AttachedSocket(groups[info.cgroup], _HOOKS[info.attach_type], name, info.program_id))
    return found


def _links(pins: Pins) -> Iterator[tuple[str, bpf.LinkInfo]]:
    """Yield an instance's links by name; the id of the control group is 0 once the group is gone.

    Raises BpfError: the kernel refused.
    """
    for path in entries(pins.links):
        with bpf.obj_get(path) as link:
            info = bpf.link_info(link)
        yield path.name, info


def _inode(directory: Path) -> int:
    """Return the id of a control group, the inode of its directory; 0 where there is none."""
    try:
        return os.stat(directory).st_ino
    except OSError:
        return 0


def _group(ident: int) -> Path | None:
    """Return the group whose id this is: the inode of its directory."""
    root = cgroup_root(MOUNTS.read_text())
    if root is None:
        return None
    for directory, _, _ in os.walk(root):
        if _inode(Path(directory)) == ident:
            return Path(directory)
    return None
