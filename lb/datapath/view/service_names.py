# SPDX-License-Identifier: Apache-2.0
"""The names of all Services in one call of the kernel and without numpy: a shell's Tab waits for them."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

from lb.datapath.kernel.syscall import Command, syscall
from lb.errors import BpfError

NAME = struct.Struct("64s64s64s")
"""A value of the map ``services``: namespace, name, name of the port; keys are u32."""
_INFO = struct.Struct("=6I")
"""How struct bpf_map_info begins: type, id, bytes of a key and of a value, entries at most, flags."""


def read(path: Path) -> list[str]:
    """Return ``NAMESPACE/NAME`` of every Service, sorted. path: the pinned map ``services``.

    Raises BpfError: it is not there or cannot be read, or its values are of another layout.
    """
    file = ctypes.create_string_buffer(os.fsencode(path))
    pin = bytearray(struct.pack("=QII", ctypes.addressof(file), 0, 0))
    descriptor = syscall(Command.OBJ_GET, pin, str(path))
    try:
        info = ctypes.create_string_buffer(_INFO.size)
        about = struct.pack("=IIQ", descriptor, _INFO.size, ctypes.addressof(info))
        syscall(Command.OBJ_GET_INFO_BY_FD, bytearray(about), str(path))
        _, _, key_size, value_size, most, _ = _INFO.unpack(info)
        if (key_size, value_size) != (4, NAME.size):
            raise BpfError(Command.OBJ_GET_INFO_BY_FD.name, str(path), errno.EINVAL)
        return _read(descriptor, most, str(path))
    finally:
        os.close(descriptor)


def _read(descriptor: int, most: int, subject: str) -> list[str]:
    """Return the names in a map of at most so many entries."""
    cursor = ctypes.create_string_buffer(4)
    keys, values = ctypes.create_string_buffer(4 * most), ctypes.create_string_buffer(NAME.size * most)
    places = (0, *(ctypes.addressof(each) for each in (cursor, keys, values)))
    attr = bytearray(struct.pack("=QQQQIIQQ", *places, most, descriptor, 0, 0))
    try:
        syscall(Command.MAP_LOOKUP_BATCH, attr, subject)
    except BpfError as error:
        if error.errno != errno.ENOENT:  # which says that there are no more
            raise
    count = struct.unpack_from("=I", attr, 32)[0]
    rows = NAME.iter_unpack(memoryview(values)[: count * NAME.size])
    return sorted({b"/".join(part.rstrip(b"\0") for part in row[:2]).decode() for row in rows})
