# SPDX-License-Identifier: Apache-2.0
"""Colours for people who look at a terminal, and for nobody else."""

from __future__ import annotations

import os
import sys
from typing import TextIO


def wanted(out: TextIO) -> bool:
    """Tell whether to use colours: out is a terminal that has them, NO_COLOR (no-color.org) is not set."""
    return (
        out is sys.stdout
        and out.isatty()
        and not os.environ.get("NO_COLOR")
        and os.environ.get("TERM") != "dumb"
    )


def painted(text: str, code: str) -> str:
    """Return text in a colour; code: a terminal's SGR parameters, ``"1;31"`` is bold red."""
    return f"\033[{code}m{text}\033[0m"
