# SPDX-License-Identifier: Apache-2.0
"""docs/conformance.md names only tests that exist, and every case has one, or a reason why not."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "conformance.md"
NAMED = re.compile(r"`(tests/[\w/]+\.py)::(test_\w+)(?:\[([\w-]+)\])?`")


class Case(NamedTuple):
    """A row of one of the tables: the case, what happens here, and the cell that names tests."""

    line: int
    case: str
    here: str
    tests: str

    @property
    def inapplicable(self) -> bool:
        return self.here.startswith("does not apply: ")


def cases(text: str) -> list[Case]:
    """Return the rows of all tables of three columns.

    Raises
    ------
    ValueError: a row has not three cells.
    """
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line.startswith("| ") or line.startswith(("| case |", "| --- |")):
            continue
        cells = [cell.strip() for cell in line.strip().strip("|").split(" | ")]
        if len(cells) != 3:
            raise ValueError(f"line {number}: {len(cells)} cells: {line}")
        found.append(Case(number, *cells))
    return found


@cache
def functions(path: Path) -> frozenset[str]:
    """Return the names of a module's test functions; none when there is no such file."""
    if not path.is_file():
        return frozenset()
    body = ast.parse(path.read_text()).body
    return frozenset(node.name for node in body if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef))


def missing(cell: str) -> list[str]:
    """Return the tests named in a cell that are not there; a golden case is a folder."""
    return [
        f"{path}::{name}" + (f"[{parameter}]" if parameter else "")
        for path, name, parameter in NAMED.findall(cell)
        if name not in functions(ROOT / path)
        or (name == "test_golden" and not (ROOT / path).parent.joinpath(parameter, "manifests").is_dir())
    ]


CASES = cases(DOCUMENT.read_text())


def test_every_test_named_is_there() -> None:
    assert [f"line {case.line}: {name}" for case in CASES for name in missing(case.tests)] == []


def test_every_case_has_a_test_or_says_why_not() -> None:
    bare = [case for case in CASES if not NAMED.search(case.tests)]
    assert [case for case in bare if not case.inapplicable] == []
    assert [case for case in CASES if case.inapplicable and NAMED.search(case.tests)] == []
    assert [case for case in CASES if not case.case or not case.here] == []
    assert len(CASES) > 100


@pytest.mark.parametrize(
    ("cell", "gone"),
    [
        ("`tests/unit/test_conformance.py::test_every_test_named_is_there`", 0),
        ("`tests/unit/test_conformance.py::test_no_such`", 1),
        ("`tests/unit/test_no_such.py::test_every_test_named_is_there`", 1),
        ("`tests/golden/test_golden.py::test_golden[cluster-ip]`", 0),
        ("`tests/golden/test_golden.py::test_golden[no-such]`, `tests/unit/test_conformance.py::test_x`", 2),
    ],
)
def test_a_test_that_is_not_there_is_found(cell: str, gone: int) -> None:
    assert len(missing(cell)) == gone


def test_a_broken_row_is_found() -> None:
    with pytest.raises(ValueError, match="line 2: 2 cells"):
        cases("text\n| a case | what |")
