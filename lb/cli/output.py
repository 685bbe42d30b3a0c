# SPDX-License-Identifier: Apache-2.0
"""The flag ``-o``: the same found things for people, or as JSON."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, TextIO


def add_flag(parser: argparse.ArgumentParser, plain: str) -> None:
    """Add ``-o``; plain names the form for people, which is the default: ``text`` or ``table``."""
    parser.add_argument("-o", "--output", choices=[plain, "json"], default=plain, help=f"default: {plain}")


def write(args: argparse.Namespace, out: TextIO, found: Any, render: Callable[[], str]) -> None:
    """Write found as JSON, or what render returns, as ``-o`` says."""
    if args.output == "json":
        json.dump(found, out, indent=2)
        out.write("\n")
    else:
        out.write(render())
