# SPDX-License-Identifier: Apache-2.0
"""Mutants of the Python that decides and writes (FOLDERS), against the tests about it.

The changed text takes the module's place in a child.
"""

from __future__ import annotations

import ast
import sys
import tempfile
from collections.abc import Iterator, Sequence
from importlib.machinery import ModuleSpec, SourceFileLoader
from importlib.util import spec_from_file_location
from pathlib import Path
from types import ModuleType

from tests.mutants.children import tested
from tests.mutants.making import Mutant, replaced

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = ("lb/addresses", "lb/cutover", "lb/datapath/sync", "lb/plan")
SWAPS = (
    (" == ", " != "),
    (" != ", " == "),
    (" <= ", " < "),
    (" >= ", " > "),
    (" < ", " <= "),
    (" > ", " >= "),
    (" and ", " or "),
    (" or ", " and "),
    (" + ", " - "),
    (" - ", " + "),
    (" & ", " | "),
    (" | ", " & "),
    (" is not ", " is "),
    (" not in ", " in "),
    ("if not ", "if "),
    ("True", "False"),
    ("False", "True"),
    ("break", "pass"),
    ("continue", "pass"),
)


def sources() -> dict[str, str]:
    """Return the modules by path."""
    return {
        str(path.relative_to(ROOT)): path.read_text()
        for folder in FOLDERS
        for path in sorted((ROOT / folder).glob("*.py"))
        if path.name != "__init__.py"
    }


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """Yield all mutants of a module: what its functions do, not its imports, types and words."""
    lines = text.splitlines()
    for first, last, whole in sorted(set(_statements(ast.parse(text)))):
        for at in range(first, last + 1):
            line = lines[at]
            for new in replaced(line, _without_words(line).replace("strict=True", "           "), SWAPS):
                yield Mutant(file, at + 1, line, new)
        if whole and first == last:
            yield Mutant(file, first + 1, lines[first], f"{lines[first][: whole - 1]}pass")


def _statements(tree: ast.Module) -> Iterator[tuple[int, int, int]]:
    """Yield what functions do: first and last line, from 0; the column, from 1, of what may be left out."""
    for function in ast.walk(tree):
        if not isinstance(function, ast.FunctionDef):
            continue
        for each in ast.walk(function):
            if each is function or not isinstance(each, ast.stmt) or isinstance(each, ast.FunctionDef):
                continue
            assert each.end_lineno is not None
            if isinstance(each, ast.If | ast.While | ast.For | ast.With | ast.Try):
                head = getattr(each, "test", None) or getattr(each, "iter", None)
                if head is not None:
                    yield each.lineno - 1, head.end_lineno - 1, 0
            elif isinstance(each, ast.Expr) and isinstance(each.value, ast.Constant):
                continue  # its words
            else:
                leave = isinstance(each, ast.Expr | ast.AugAssign | ast.Delete) or (
                    isinstance(each, ast.Assign) and not isinstance(each.targets[0], ast.Name)
                )
                yield each.lineno - 1, each.end_lineno - 1, each.col_offset + 1 if leave else 0


def _without_words(line: str) -> str:
    """Return the line with blanks in place of comments and of what is in quotes."""
    out, quote = "", ""
    for char in line:
        if quote:
            out += " "
            quote = "" if char == quote else quote
        elif char in "\"'":
            out += " "
            quote = char
        elif char == "#":
            return out.ljust(len(line))
        else:
            out += char
    return out


def fate(mutant: Mutant, tests: Sequence[str], patience: float) -> tuple[str, str]:
    """Return what became of a mutant, one of FATES of __main__, and what pytest said."""
    changed = mutant.of((ROOT / mutant.file).read_text())
    try:
        compile(changed, mutant.file, "exec")
    except SyntaxError as error:
        return "refused", str(error)
    with tempfile.NamedTemporaryFile("w", suffix=".py", prefix="lbctl-mutant-") as file:
        file.write(changed)
        file.flush()
        module = mutant.file.removesuffix(".py").replace("/", ".")
        return tested(lambda: _put(module, file.name), tests, patience)


def _put(module: str, path: str) -> None:
    """Have a module's text come from a file, and everything of this tree be imported anew."""
    for name in list(sys.modules):
        if name.partition(".")[0] in ("lb", "tests"):
            del sys.modules[name]
    sys.meta_path.insert(0, _Instead(module, path))


class _Instead:
    """A finder of sys.meta_path that finds one module, under its own name, in a file."""

    def __init__(self, name: str, path: str) -> None:
        self._name, self._path = name, path

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != self._name:
            return None
        return spec_from_file_location(name, self._path, loader=SourceFileLoader(name, self._path))
