# SPDX-License-Identifier: Apache-2.0
"""Columns of text."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from lb.words import in_line


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]], right: Collection[str] = ()) -> str:
    """Return a header and rows, each column as wide as its widest cell.

    Columns of numbers are set flush right, and so are those that right names.
    """
    head = [column.upper().replace("_", " ") for column in columns]
    cells = [head, *([in_line(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(columns))]
    flush_right = [
        name in right or (bool(rows) and all(isinstance(row[at], int) for row in rows))
        for at, name in enumerate(columns)
    ]
    lines = []
    for line in cells:
        parts = (
            text.rjust(width) if flush else text.ljust(width)
            for text, width, flush in zip(line, widths, flush_right, strict=True)
        )
        lines.append("  ".join(parts).rstrip())
    return "\n".join(lines) + "\n"
