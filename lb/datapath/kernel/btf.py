# SPDX-License-Identifier: Apache-2.0
"""The kernel's own type information (BTF): the numbers by which programs call functions of the kernel."""

from __future__ import annotations

import struct
from collections.abc import Collection
from pathlib import Path

VMLINUX = Path("/sys/kernel/btf/vmlinux")
_HEADER = struct.Struct("=HBBIIIII")  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
_MAGIC = 0xEB9F
_TYPE = struct.Struct("=III")  # name_off, info, size or type
_FUNCTION = 12
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes behind a type's head by BTF_KIND_…: of integers, arrays, variables and tags."""
_EACH = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""The same for each member: of structs, unions, enums, prototypes, sections and 64-bit enums."""


def function_ids(names: Collection[str], path: Path = VMLINUX) -> dict[str, int]:
    """Return the type ids of functions of the kernel; those that it lacks, or only a module has, are absent.

    The format is that of Documentation/bpf/btf.rst of the kernel.
    """
    try:
        data = path.read_bytes()
    except OSError:
        return {}
    if len(data) < _HEADER.size:
        return {}
    magic, _, _, header, types, types_len, strings, strings_len = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return {}
    text = data[header + strings : header + strings + strings_len]
    places = {text.find(b"\0" + name.encode() + b"\0") + 1: name for name in names}
    places.pop(0, None)
    found: dict[str, int] = {}
    at, end, ident = header + types, header + types + types_len, 0
    while at < end and len(found) < len(places):
        name, info, _ = _TYPE.unpack_from(data, at)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        ident += 1
        if kind == _FUNCTION and name in places:
            found[places[name]] = ident
        at += _TYPE.size + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * members
    return found
