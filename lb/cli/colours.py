# SPDX-License-Identifier: Apache-2.0
"""Colours for people who look at a terminal, and for nobody else."""

from __future__ import annotations

import os
import re
import sys
from typing import Any, TextIO

from lb.words import shown

_PAINT = re.compile(r"(\033\[[0-9;]*m)")
"""What :func:`painted` writes. In a stranger's words it does no harm: no more than colours follow from it."""


class Shown:
    """A stream of a command that shows what strangers have written, and does not let a terminal obey it."""

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write a text as :func:`lb.words.shown` has it; what paints it goes through."""
        parts = _PAINT.split(text) if "\033" in text else [text]
        shown_parts = [part if at % 2 else shown(part) for at, part in enumerate(parts)]
        self.stream.write("".join(shown_parts))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def wanted(out: TextIO) -> bool:
    """Tell whether to use colours: out is a terminal that has them, NO_COLOR (no-color.org) is not set."""
    return (
        getattr(out, "stream", out) is sys.stdout
        and out.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def painted(text: str, code: str) -> str:
    """Return text in a colour; code: a terminal's SGR parameters, ``"1;31"`` is bold red."""
    return f"\033[{code}m{text}\033[0m"
