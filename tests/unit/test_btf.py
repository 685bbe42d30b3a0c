# SPDX-License-Identifier: Apache-2.0
"""The numbers of the kernel's functions, from a BTF made by hand."""

from __future__ import annotations

import struct
from pathlib import Path

from lb.datapath.kernel.btf import function_ids

TEXT = b"\0int\0wanted\0other\0"


def kind(number: int, name: int, members: int = 0, more: bytes = b"") -> bytes:
    return struct.pack("=III", name, number << 24 | members, 0) + more


def btf(types: bytes, magic: int = 0xEB9F, text: bytes = TEXT) -> bytes:
    head = struct.pack("=HBBIIIII", magic, 1, 0, 24, 0, len(types), len(types), len(text))
    return head + types + text


TYPES = b"".join(
    (
        kind(1, 1, more=bytes(4)),  # an integer
        kind(4, 1, 2, bytes(24)),  # a struct of two members, whose name is no function's
        kind(13, 0, 1, bytes(8)),  # a prototype
        kind(12, 12),  # the function "other"
        kind(12, 5),  # the function "wanted"
    )
)


def test_functions_by_their_names(tmp_path: Path) -> None:
    (tmp_path / "vmlinux").write_bytes(btf(TYPES))
    found = function_ids(["wanted", "other", "int", "none"], tmp_path / "vmlinux")
    assert found == {"wanted": 5, "other": 4}


def test_functions_of_a_module_are_counted_on_from_the_kernels_types(tmp_path: Path) -> None:
    """Its names are its own, or the kernel's where that has the same: it is told by where they are."""
    text = b"mine\0also\0"
    types = b"".join(
        (
            kind(12, 5),  # "wanted", a name that the kernel has as well
            kind(1, len(TEXT) + 5, more=bytes(4)),  # an integer "also"
            kind(12, len(TEXT)),  # "mine", the first of its own names
            kind(12, len(TEXT) + 5),  # "also"
        )
    )
    (tmp_path / "vmlinux").write_bytes(btf(TYPES))
    (tmp_path / "module").write_bytes(btf(types, text=text))
    found = function_ids(["wanted", "mine", "also"], tmp_path / "module", tmp_path / "vmlinux")
    assert found == {"wanted": 6, "mine": 8, "also": 9}


def test_a_kernel_without_type_information_has_none(tmp_path: Path) -> None:
    assert function_ids(["wanted"], tmp_path / "none") == {}
    for broken in (b"", b"short", btf(TYPES, 0x9FEB)):
        (tmp_path / "vmlinux").write_bytes(broken)
        assert function_ids(["wanted"], tmp_path / "vmlinux") == {}
