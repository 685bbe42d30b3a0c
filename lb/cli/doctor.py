# SPDX-License-Identifier: Apache-2.0
"""``lbctl doctor``: will it work here?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from lb.cli import output
from lb.cli.tables import table
from lb.cli.width import terminal_width
from lb.diagnose import doctor
from lb.diagnose.findings import Check, Grade


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl doctor``."""
    findings = doctor.examine()
    output.write(args, out, [asdict(one) for one in findings], lambda: render(findings, terminal_width(out)))
    return 0 if doctor.healthy(findings) else 1


def render(findings: Sequence[Check], width: int | None = None) -> str:
    """Return the table form: a line for each finding, then what is to be done; width: the terminal's."""
    rows = [[one.check, one.result.value, one.found] for one in findings]
    text = table(("check", "result", "found"), rows, width=width)
    for one in findings:
        if one.result is not Grade.OK:
            text += f"\n{one.check}: {one.found}\n  {one.broken}\n  to do: {one.next}\n"
    return text
