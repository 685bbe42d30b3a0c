# SPDX-License-Identifier: Apache-2.0
"""Mutants of a header: each is one line with one operator, constant or condition changed, or left out.

The list is our own: universalmutator knows C, but its rules change declarations, comments and macros of bcc's
dialect as well, most of which does not compile, and each mutant costs a compiler run.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

SWAPS = (
    (" == ", " != "),
    (" != ", " == "),
    (" <= ", " < "),
    (" >= ", " > "),
    (" < ", " <= "),
    (" > ", " >= "),
    (" && ", " || "),
    (" || ", " && "),
    (" + ", " - "),
    (" - ", " + "),
    (" & ", " | "),
    ("return true;", "return false;"),
    ("return false;", "return true;"),
)
_NOT = re.compile(r"(?<![\w!)])!(?=[\w(])")
_NUMBER = re.compile(r"(?<![\w.])(\d+)(?=U?L*\b)")
_STATEMENT = re.compile(r"^\t+(?!\t|break|continue|goto|case|default|struct|const|u\d+ |bool |int |void )")
_NOT_CODE = re.compile(r"/\*.*?\*/|\"[^\"]*\"")
_DIRECTIVE = ("#pragma", "#include", "#undef", "#if", "#else", "#endif", "#error", "_Static_assert")


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed line of one file. line counts from 1."""

    file: str
    line: int
    old: str
    new: str

    def of(self, text: str) -> str:
        """Return the file's text with the change."""
        lines = text.splitlines(keepends=True)
        assert lines[self.line - 1].rstrip("\n") == self.old
        lines[self.line - 1] = self.new + "\n"
        return "".join(lines)

    def __str__(self) -> str:
        new = self.new.strip() if self.new.strip() != ";" else "(left out)"
        return f"{self.file}:{self.line}: {self.old.strip()}  ->  {new}"


def mutants(file: str, text: str) -> Iterator[Mutant]:
    """Yield all mutants of a file."""
    before, comment = "", False
    for number, line in enumerate(text.splitlines(), 1):
        code = _NOT_CODE.sub(lambda found: " " * len(found[0]), line)
        if comment or code.lstrip().startswith("/*"):
            comment = "*/" not in line
            continue
        if "/*" in code:
            comment = "*/" not in code
            code = code[: code.index("/*")].ljust(len(line))
        if code.strip() and not code.lstrip().startswith(_DIRECTIVE) and "asm" not in code:
            for new in _changed(line, code, before):
                yield Mutant(file, number, line, new)
        before = code.rstrip() or before


def replaced(line: str, code: str, swaps: Sequence[tuple[str, str]]) -> Iterator[str]:
    """Yield a line with one operator or number changed; code: the line without words and comments."""
    for old, new in swaps:
        for found in re.finditer(re.escape(old), code):
            yield line[: found.start()] + new + line[found.end() :]
    for found in _NUMBER.finditer(code):
        yield line[: found.start()] + str(int(found[1]) + 1) + line[found.end() :]


def _changed(line: str, code: str, before: str) -> Iterator[str]:
    yield from replaced(line, code, SWAPS)
    for found in _NOT.finditer(code):
        yield line[: found.start()] + line[found.end() :]
    whole = code.rstrip().endswith(";") and code.count("(") == code.count(")")
    begins = before.endswith((";", "{", "}", ":", "*/")) or (before.endswith(")") and "if" in before)
    if whole and begins and _STATEMENT.match(line) and ("=" in code or "(" in code):
        yield re.match(r"\t*", line)[0] + ";"  # type: ignore[index]
