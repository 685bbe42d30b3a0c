# SPDX-License-Identifier: Apache-2.0
"""How wide what people read may be, and lines that keep to it."""

from __future__ import annotations

import os
import sys
import textwrap
from typing import Any

MOST = 100
"""Columns of text that is written to a file or a pipe, or to a wide terminal."""
_LEAST = 40
_BELOW = "    "


def terminal_width(out: Any) -> int | None:
    """Return the columns of the terminal that a stream leads to, None where it leads to none."""
    if getattr(out, "stream", out) is not sys.stdout or not out.isatty():
        return None
    try:
        return max(os.get_terminal_size(sys.stdout.fileno()).columns, _LEAST)
    except (OSError, ValueError):
        return None


def text_width(out: Any) -> int:
    """Return the columns that a text may take."""
    return min(terminal_width(out) or MOST, MOST)


def folded(text: str, width: int | None) -> str:
    """Return a text whose lines fit: what is too long goes on below, indented by more than its beginning.

    width: the terminal's columns; None: the text stays as it is.
    """
    if width is None:
        return text
    lines: list[str] = []
    for line in text.split("\n"):
        indent = " " * (len(line) - len(line.lstrip(" ")))
        fits = len(line) <= width
        lines += [line] if fits else wrapped(line[len(indent) :], width, indent, indent + _BELOW)
    return "\n".join(lines)


def wrapped(text: str, width: int, first: str = "", below: str = "") -> list[str]:
    """Return a text in lines; names and addresses stay whole. first, below: how the lines begin."""
    return textwrap.wrap(
        text,
        width,
        initial_indent=first,
        subsequent_indent=below,
        break_long_words=False,
        break_on_hyphens=False,
    )
