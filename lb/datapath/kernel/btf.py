# SPDX-License-Identifier: Apache-2.0
"""Type information (BTF) of the kernel and its modules: the numbers by which programs call functions."""

from __future__ import annotations

import struct
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path("/sys/kernel/btf")
"""A file for each module that is loaded and has type information, and one for the kernel."""
VMLINUX = FOLDER / "vmlinux"
_HEADER = struct.Struct("=HBBIIIII")  # magic, version, flags, hdr_len, type_off, type_len, str_off, str_len
_MAGIC = 0xEB9F
_TYPE = struct.Struct("=III")  # name_off, info, size or type
_MEMBER = struct.Struct("=III")  # name_off, type, offset in bits
_STRUCT, _UNION, _FUNCTION = 4, 5, 12
_FIXED = {1: 4, 3: 12, 14: 4, 17: 4}
"""Bytes behind a type's head by BTF_KIND_…: of integers, arrays, variables and tags."""
_EACH = {4: 12, 5: 12, 6: 8, 13: 8, 15: 12, 19: 12}
"""The same for each member: of structs, unions, enums, prototypes, sections and 64-bit enums."""


@dataclass(frozen=True, slots=True)
class _Sections:
    """The types of a BTF, one behind the other, and its names, each with a NUL at its end."""

    types: bytes = b""
    names: bytes = b""


def function_ids(names: Collection[str], path: Path = VMLINUX, base: Path | None = None) -> dict[str, int]:
    """Return the type ids of functions of the kernel; those that are not in the file are absent.

    base: what a module's types go on from: their ids and the places of their names count from the end of the
    base's, and a name may be one of the base. The format is that of Documentation/bpf/btf.rst of the kernel.
    """
    before, own = _read(base) if base else _Sections(), _read(path)
    places = {}
    for first, text in ((0, before.names), (len(before.names), own.names)):
        for name in names:
            at = (b"\0" + text).find(b"\0" + name.encode() + b"\0")
            if at >= 0:
                places[first + at] = name
    count = sum(1 for _ in _types(before.types))
    return {
        places[name]: count + number
        for number, (kind, name, _) in enumerate(_types(own.types), 1)
        if kind == _FUNCTION and name in places
    }


def bit_of(struct_name: str, member: str) -> int | None:
    """Return at which bit of a struct of the kernel a member begins; None: there is no such member.

    What is in a struct or union without a name is a member, too.
    """
    data = _read(VMLINUX)
    of, wanted = (data.names.find(f"\0{name}\0".encode()) + 1 for name in (struct_name, member))
    kinds = list(_types(data.types))

    def find(at: int) -> int | None:
        _, info, _ = _TYPE.unpack_from(data.types, at)
        for row in range(at + _TYPE.size, at + _TYPE.size + (info & 0xFFFF) * _MEMBER.size, _MEMBER.size):
            name, type_, offset = _MEMBER.unpack_from(data.types, row)
            bit: int = offset & 0xFFFFFF if info >> 31 else offset  # above are the bits of a bit field
            if name == wanted:
                return bit
            kind, _, inner = kinds[type_ - 1]
            if not name and kind in (_STRUCT, _UNION) and (further := find(inner)) is not None:
                return bit + further
        return None

    found = (find(at) for kind, name, at in kinds if kind == _STRUCT and name == of)
    return next((bit for bit in found if bit is not None), None) if of and wanted else None


def _read(path: Path) -> _Sections:
    """Return what a file has; nothing where there is no file, or not of this kind."""
    try:
        data = path.read_bytes()
    except OSError:
        return _Sections()
    if len(data) < _HEADER.size:
        return _Sections()
    magic, _, _, header, types, types_len, names, names_len = _HEADER.unpack_from(data)
    if magic != _MAGIC:
        return _Sections()
    types, names = header + types, header + names
    return _Sections(data[types : types + types_len], data[names : names + names_len])


def _types(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield of each type its kind, where its name is, and where it is itself."""
    at = 0
    while at < len(data):
        name, info, _ = _TYPE.unpack_from(data, at)
        kind, members = info >> 24 & 0x1F, info & 0xFFFF
        yield kind, name, at
        at += _TYPE.size + _FIXED.get(kind, 0) + _EACH.get(kind, 0) * members
