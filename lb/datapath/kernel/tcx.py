# SPDX-License-Identifier: Apache-2.0
"""Programs at an interface's tc hooks without qdisc and filter (tcx, Linux 6.6).

The kernel runs them straight away, where a filter of the clsact qdisc costs as much again as a short program.
They are attached as filters are: they stay when nobody has them open, and go with the interface. The kernel
runs them before all filters. Numbers are those of ``linux/bpf.h``.
"""

from __future__ import annotations

import errno
import struct

import numpy as np

from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import FD
from lb.datapath.kernel.rtnl import Direction
from lb.datapath.kernel.syscall import Command, syscall
from lb.errors import BpfError

_ATTACH_TYPES = {Direction.INGRESS: 46, Direction.EGRESS: 47}
_REPLACE, _BEFORE = 1 << 2, 1 << 3
_MOST = 64  # programs that the kernel takes at one hook


def programs(ifindex: int, direction: Direction) -> list[int] | None:
    """Return the ids of all programs at a hook in the order in which they run; None: the kernel has no tcx.

    Raises BpfError: the kernel refused the question.
    """
    ids = np.zeros(_MOST, dtype="u4")
    head = (ifindex, _ATTACH_TYPES[direction], 0, 0, bpf.address(ids), _MOST, 0)
    attr = bytearray(struct.pack("=IIIIQII32x", *head))
    try:
        syscall(Command.PROG_QUERY, attr, f"tc {direction.name.lower()} of interface {ifindex}")
    except BpfError as error:
        if error.errno == errno.EINVAL:
            return None
        if error.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise
    (count,) = struct.unpack_from("=I", attr, 24)
    return [int(each) for each in ids[:count]]


def attach(ifindex: int, direction: Direction, program: FD, instead: FD | None) -> None:
    """Run a program before all others at a hook, or, atomically, in the place of another one.

    Raises BpfError: the kernel refused.
    """
    flags, other = (_BEFORE, 0) if instead is None else (_REPLACE, instead.fileno())
    attr = (ifindex, program.fileno(), _ATTACH_TYPES[direction], flags, other, 0, 0)
    syscall(Command.PROG_ATTACH, bytearray(struct.pack("=IIIIIIQ", *attr)), program.subject)


def detach(ifindex: int, direction: Direction, program: FD) -> None:
    """Take a program from a hook.

    Raises BpfError: the kernel refused; ENOENT: the program is not there.
    """
    attr = (ifindex, program.fileno(), _ATTACH_TYPES[direction], 0, 0, 0, 0)
    syscall(Command.PROG_DETACH, bytearray(struct.pack("=IIIIIIQ", *attr)), program.subject)
