# SPDX-License-Identifier: Apache-2.0
"""The same found things for people, or as JSON or YAML: ``-o``."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from typing import Any, TextIO

import yaml

from lb.cli.width import folded, terminal_width


def write(args: argparse.Namespace, out: TextIO, found: Any, render: Callable[[], str]) -> None:
    """Write found as JSON or YAML, or what render returns, in the terminal's columns, as ``-o`` says."""
    if args.output in ("json", "yaml"):
        out.write(formatted(args.output, found))
    else:
        out.write(folded(render(), terminal_width(out)))


def formatted(form: str, found: Any) -> str:
    """Return what was found as ``json`` or ``yaml``, in ASCII."""
    text = json.dumps(found, indent=2)
    if form == "json":
        return text + "\n"
    # libyaml's writer: PyYAML's own takes twenty times as long.
    return str(yaml.dump(json.loads(text), Dumper=yaml.CSafeDumper, sort_keys=False))
