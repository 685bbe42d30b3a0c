# SPDX-License-Identifier: Apache-2.0
"""Where an instance's maps and programs stay when no process holds them.

::

    /sys/fs/bpf/lbctl/<instance>/maps/<map>
                                /handover                    see strand() in bpf/stranded.h
                                /links/<program>             what attaches a program to the cgroup
                                /layouts                     the layouts of the maps, field by field
                                /shapes/<map>-<hash>         empty directories: the layout a map was made with
                                /progs-<fingerprint>/<program>

A bpf file system keeps dots in names for itself, so ``lab.node1`` is the directory ``lab~node1``.
"""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lb.errors import ConfigError, DatapathError
from lb.folders import entries, locked

_LOG = logging.getLogger(__name__)
BPFFS = Path("/sys/fs/bpf")
ROOT = BPFFS / "lbctl"
_INSTANCE = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_.-]{0,252})")
_PROGS = "progs-"
_STAGING = "staging-"


@dataclass(frozen=True, slots=True)
class Pins:
    """The pin directory of one instance.

    Raises ConfigError: the instance's name holds something else than letters, digits, ``_``, ``.`` and ``-``.
    """

    instance: str

    def __post_init__(self) -> None:
        if not _INSTANCE.fullmatch(self.instance):
            raise ConfigError(
                f"instance {self.instance!r}: give up to 253 letters, digits, '_', '.', '-'; a letter first"
            )

    @property
    def base(self) -> Path:
        """The instance's directory."""
        return ROOT / self.instance.replace(".", "~")

    @property
    def maps(self) -> Path:
        """The directory of pinned maps."""
        return self.base / "maps"

    @property
    def links(self) -> Path:
        """The directory of the links that attach socket hooks."""
        return self.base / "links"

    @property
    def handover(self) -> Path:
        """The array that tells programs without steps that another version serves behind them."""
        return self.base / "handover"

    @property
    def layouts(self) -> Path:
        """The map that describes the layouts of the pinned maps, field by field."""
        return self.base / "layouts"

    @property
    def shapes(self) -> Path:
        """The directory whose subdirectories' names tell the layouts of the pinned maps."""
        return self.base / "shapes"

    def programs(self, fingerprint: str) -> Path:
        """Return the directory of the programs of one build."""
        return self.base / f"{_PROGS}{fingerprint}"

    def staging(self, fingerprint: str) -> Path:
        """Return the directory that is renamed to :meth:`programs` once it is complete."""
        return self.base / f"{_STAGING}{fingerprint}"

    def builds(self) -> list[Path]:
        """Return all program directories, half-made ones included."""
        return [path for path in entries(self.base) if path.name.startswith((_PROGS, _STAGING))]

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other processes from loading or unloading this instance meanwhile."""
        fd = locked(self.base, self.base, os.O_RDONLY | os.O_DIRECTORY, fcntl.LOCK_EX)
        try:
            yield
        finally:
            os.close(fd)


def instances() -> list[str]:
    """Return the names of all instances with pins on this machine."""
    return [path.name.replace("~", ".") for path in entries(ROOT)]


def is_bpffs(path: Path, mountinfo: str | None = None) -> bool:
    """Tell whether a bpf file system is mounted right at path. mountinfo: text of /proc/self/mountinfo."""
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    kinds = [
        line.split(" - ", 1)[1].split()[0]
        for line in text.splitlines()
        if line.split(" ", 5)[4] == str(path) and " - " in line
    ]
    return bool(kinds) and kinds[-1] == "bpf"


def ensure_bpffs() -> None:
    """Mount a bpf file system at /sys/fs/bpf unless one is there.

    Raises DatapathError: it could not be mounted, or the kernel offers no place for it.
    """
    if is_bpffs(BPFFS):
        return
    if not BPFFS.is_dir():
        raise DatapathError(
            f"{BPFFS} does not exist: the kernel has no BPF file system, or /sys is not mounted"
        )
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(b"bpf", os.fsencode(BPFFS), b"bpf", ctypes.c_ulong(0), b"mode=0700"):
        reason = os.strerror(ctypes.get_errno())
        raise DatapathError(
            f"no bpf file system is mounted at {BPFFS}, and mounting one, which takes CAP_SYS_ADMIN, failed:"
            f" {reason}; systemd mounts it at boot, or: mount -t bpf bpf {BPFFS}"
        )
    _LOG.info("mounted a bpf file system at %s", BPFFS)


def remove_tree(path: Path) -> None:
    """Remove a directory of pins and what is below; nothing happens when it is not there.

    Unpinning a program or map leaves it alive for as long as a hook or a process uses it.
    """
    if not path.is_dir():
        return
    for child in path.iterdir():
        if child.is_dir():
            remove_tree(child)
        else:
            child.unlink(missing_ok=True)
    path.rmdir()


def unload(pins: Pins) -> None:
    """Remove every pin of the instance, and the common parent when no other instance is left."""
    if not pins.base.is_dir():
        return
    with pins.lock():
        remove_tree(pins.base)
    with contextlib.suppress(OSError):  # another instance is below
        ROOT.rmdir()
