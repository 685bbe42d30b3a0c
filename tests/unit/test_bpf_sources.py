# SPDX-License-Identifier: Apache-2.0
"""The C tree keeps what its README promises: C and Python cannot drift, every map is in the table."""

from __future__ import annotations

import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lb.datapath.maps import layouts, map_table
from lb.datapath.programs.build import c_flags

C_ALONE = {"answer", "side"}
"""Enums that no map holds for Python to read."""

_COMPILE = """
import os, sys
os.environ["BCC_KERNEL_SOURCE"] = sys.argv[1]
from bcc import BPF
BPF(text=sys.stdin.read(), cflags=sys.argv[2:])
"""


def compiles(text: str, bpf_dir: Path = layouts.BPF_DIR) -> subprocess.CompletedProcess[str]:
    """Run bcc's clang over a text, in another process: it writes its errors to the descriptor 2."""
    flags = c_flags(bpf_dir, platform.machine(), 4)
    return subprocess.run(
        [sys.executable, "-c", _COMPILE, str(bpf_dir), *flags],
        input=text,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_struct_that_differs_from_its_dtype_does_not_compile() -> None:
    right = layouts.static_assertions(4)
    wrong = right.replace("sizeof(struct vip) == 28", "sizeof(struct vip) == 32")
    assert wrong != right
    result = compiles(wrong)
    assert result.returncode != 0
    assert "vip: size" in result.stderr


@pytest.mark.parametrize(
    ("header", "right", "wrong"),
    [
        ("types.h", "VIP_USABLE = 4", "VIP_USABLE = 64"),
        ("types.h", "BACKEND_IN_LOCAL_SET = 4", "BACKEND_IN_LOCAL_SET = 8"),
        ("reasons.h", "#define PROGRAMS_PER_FAMILY 32", "#define PROGRAMS_PER_FAMILY 33"),
        ("cache.h", "#define CACHE_TIME_SHIFT 24", "#define CACHE_TIME_SHIFT 23"),
    ],
)
def test_a_value_that_differs_from_python_does_not_compile(
    header: str, right: str, wrong: str, tmp_path: Path
) -> None:
    sources = shutil.copytree(layouts.BPF_DIR, tmp_path / "bpf")
    changed = (sources / header).read_text().replace(right, wrong)
    assert wrong in changed
    (sources / header).write_text(changed)
    result = compiles(layouts.static_assertions(4), bpf_dir=sources)
    assert result.returncode != 0
    # clang 19 shows the line a second time, below its values.
    (assertion,) = set(re.findall(r'_Static_assert\(.*"(\w+)"\);', result.stderr))
    assert assertion in right


def test_every_enum_of_the_maps_is_known_to_python_whole() -> None:
    """A member that C has and Python has not would be shown as a number, or not at all."""
    text = "".join((layouts.BPF_DIR / name).read_text() for name in layouts.HEADERS)
    for name, body in re.findall(r"^enum (\w+) \{\n(.*?)^\};", text, re.MULTILINE | re.DOTALL):
        if name in C_ALONE:
            continue
        prefix, members = layouts.ENUMS[name]
        assert re.findall(r"^\t(\w+)", body, re.MULTILINE) == [
            prefix + member for member in members.__members__
        ]


def test_readme_lists_every_map() -> None:
    rows = {
        name: [cell.strip() for cell in cells.split("|")]
        for name, cells in re.findall(
            r"^\| `(\w+)`(?:, `\w+`)? \|(.*)\|$", (layouts.BPF_DIR / "README.md").read_text(), re.MULTILINE
        )
    }
    kinds = {
        map_table.MapType.HASH: "hash",
        map_table.MapType.ARRAY: "array, mmap",
        map_table.MapType.PERCPU_ARRAY: "per-CPU array",
        map_table.MapType.LRU_HASH: "LRU hash",
        map_table.MapType.LPM_TRIE: "LPM trie",
        map_table.MapType.CACHE: "cache (`cache.h`)",
        map_table.MapType.RINGBUF: "ring buffer",
    }
    specs = [spec for spec in map_table.MAPS if spec.version != 6]  # a row has both families
    assert list(rows) == [spec.name for spec in specs]
    for spec in specs:
        _, kind, writer, _, when_full, purpose = rows[spec.name]
        assert (kind, writer, when_full, purpose) == (
            kinds[spec.type],
            spec.writer,
            spec.when_full,
            spec.purpose,
        )


def test_readme_lists_every_file() -> None:
    text = (layouts.BPF_DIR / "README.md").read_text()
    for path in Path(layouts.BPF_DIR).glob("*.[ch]"):
        assert f"`{path.name}`" in text


def test_reasons_fit_their_row() -> None:
    assert len(layouts.REASONS) <= layouts.REASONS_PER_HOOK
    assert len({name for name, _ in layouts.REASONS}) == len(layouts.REASONS)
