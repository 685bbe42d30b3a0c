# SPDX-License-Identifier: Apache-2.0
"""The bpf() system call itself, without numpy, whose import takes longer than many a command.

Command numbers are those of ``linux/bpf.h``, which the kernel keeps stable.
"""

from __future__ import annotations

import ctypes
import errno
import platform
from enum import IntEnum

from lb.errors import BpfError

_SYSCALL_NUMBERS = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_libc = ctypes.CDLL(None, use_errno=True)


class Command(IntEnum):
    """enum bpf_cmd, as far as it is used here."""

    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    MAP_GET_NEXT_KEY = 4
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_ATTACH = 8
    PROG_DETACH = 9
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    PROG_QUERY = 16
    BTF_LOAD = 18
    BTF_GET_FD_BY_ID = 19
    BTF_GET_NEXT_ID = 23
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27
    LINK_CREATE = 28
    LINK_UPDATE = 29
    LINK_DETACH = 34


def syscall(command: Command, attr: bytearray, subject: str) -> int:
    """Call bpf(); attr is updated in place.

    Raises BpfError: the kernel refused.
    """
    machine = platform.machine()
    if machine not in _SYSCALL_NUMBERS:
        raise BpfError(command.name, f"{subject} (unknown machine {machine})", errno.ENOSYS)
    number = ctypes.c_long(_SYSCALL_NUMBERS[machine])
    buffer = (ctypes.c_char * len(attr)).from_buffer(attr)
    while True:
        result = int(_libc.syscall(number, ctypes.c_long(command), buffer, ctypes.c_long(len(attr))))
        if result >= 0:
            return result
        code = ctypes.get_errno()
        if code == errno.EINTR and command is Command.PROG_TEST_RUN:
            continue  # a signal came between two repetitions
        raise BpfError(command.name, subject, code)
