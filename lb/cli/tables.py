# SPDX-License-Identifier: Apache-2.0
"""Columns of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lb.cli.width import MOST, wrapped
from lb.words import in_line

_BELOW = "    "


def table(
    columns: Sequence[str],
    rows: Sequence[Sequence[Any]],
    right: Collection[str] = (),
    width: int | None = None,
) -> str:
    """Return a header and rows, each column as wide as its widest cell.

    Columns of numbers are set flush right, and so are those that right names. Where that is wider than
    width, a row takes several lines, the columns of each below those of the header's.
    """
    head = [column.upper().replace("_", " ") for column in columns]
    cells = [head, *([in_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    flush_right = [
        name in right or (bool(rows) and all(isinstance(row[at], int) for row in rows))
        for at, name in enumerate(columns)
    ]
    lines: list[str] = []
    for line in cells:
        parts = [
            text.rjust(wide) if flush else text.ljust(wide)
            for text, wide, flush in zip(line, widths, flush_right, strict=True)
        ]
        for number, (first, end) in enumerate(_groups(widths, width)):
            text = "  ".join(parts[first:end]).rstrip()
            if number and not text:
                continue
            indent = _BELOW if number else ""
            fits = width is None or len(indent + text) <= width
            lines += [indent + text] if fits else wrapped(text, width or MOST, indent, 2 * _BELOW)
    return "\n".join(lines) + "\n"


def _groups(widths: Sequence[int], most: int | None) -> list[tuple[int, int]]:
    """Return first and end of the columns that go into each line, as many as there is room for."""
    groups: list[tuple[int, int]] = []
    first, used = 0, 0
    for at, wide in enumerate(widths):
        gap = 2 if at > first else 0
        if most is not None and gap and used + gap + wide > most:
            groups.append((first, at))
            first, used, gap = at, len(_BELOW), 0
        used += gap + wide
    return [*groups, (first, len(widths))]
