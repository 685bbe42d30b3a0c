# SPDX-License-Identifier: Apache-2.0
"""docs/contract.md: every row of what a Service gets has a test that carries its name, where it says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SECTION = (ROOT / "docs" / "contract.md").read_text()
ROWS = re.findall(r"^\| ([a-z][a-z, -]*) \| [^|]+ \| `(tests/[^`]+)` \|$", SECTION, re.MULTILINE)


def test_the_table_is_whole() -> None:
    assert len(ROWS) == SECTION.count("\n| ") - 2  # without the head and the line below it
    assert len({row for row, _ in ROWS}) == len(ROWS) >= 37


@pytest.mark.parametrize(("row", "place"), ROWS)
def test_each_row_has_a_test_of_its_name(row: str, place: str) -> None:
    path = ROOT / place
    assert path.exists()
    if path.is_dir():
        assert path.name in row.split(", ")
    else:
        name = f"test_{row.replace('-', '_')}"
        assert re.search(rf"^def {name}\w*\(", path.read_text(), re.MULTILINE), name
