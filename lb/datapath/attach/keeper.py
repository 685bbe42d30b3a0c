# SPDX-License-Identifier: Apache-2.0
"""The pinned maps and programs of an instance, held open by its agent and pinned again when a pin is removed.

The kernel empties an array of programs when nobody in user space refers to it any more, by a pin or by a
descriptor: programs that are attached then find no step to go on in. While an agent holds the arrays, the
removal of the pins harms nothing.
"""

from __future__ import annotations

import os
from pathlib import Path

from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import FD
from lb.datapath.kernel.pins import Pins, ensure_bpffs
from lb.folders import entries, make


class Keeper:
    """Holds the maps and the programs of one build of an instance.

    Raises BpfError: one of them cannot be opened.
    """

    def __init__(self, pins: Pins, programs: Path) -> None:
        self._shapes = entries(pins.shapes)
        single = [path for path in (pins.handover, pins.layouts) if path.exists()]
        pinned = (*single, *entries(pins.maps), *entries(programs))
        self._held: dict[Path, dict[str, FD]] = {}
        for path in pinned:
            if "~" not in path.name:
                self._held.setdefault(path.parent, {})[path.name] = bpf.obj_get(path)

    def close(self) -> None:
        """Let go; what is pinned stays pinned."""
        for held in self._held.values():
            for fd in held.values():
                fd.close()
        self._held.clear()

    def mend(self) -> list[Path]:
        """Pin again what is not pinned any more, and return where; the file system is mounted if it is gone.

        Raises BpfError: the kernel refused a pin. DatapathError: the file system cannot be mounted.
        Raises OSError: a folder cannot be made.
        """
        missing = [
            (folder / name, held[name])
            for folder, held in self._held.items()
            for name in held.keys() - _names(folder)
        ]
        if missing:
            ensure_bpffs()
        for path, fd in missing:
            make(path.parent)
            bpf.obj_pin(fd, path)
        for shape in self._shapes if missing else ():
            make(shape)
        return [path for path, _ in missing]


def _names(folder: Path) -> list[str]:
    """Return what is in a folder; nothing where there is none."""
    try:
        return os.listdir(folder)
    except FileNotFoundError:
        return []
