# SPDX-License-Identifier: Apache-2.0
"""``lbctl doctor``: will it work here?"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from lb.cli import output
from lb.cli.tables import table
from lb.diagnose import doctor
from lb.diagnose.findings import Finding, Result

_DESCRIPTION = """\
Look at this machine and say what lbctl needs and has, what will not work, and what to do about it. Nothing is
changed: what the kernel can do is found out by making small maps and programs, and letting them go.

exit codes: 0 nothing fails; 1 something will not work
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "doctor",
        help="what will and will not work on this machine, and what to do",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    output.add_flag(parser, "table")
    parser.set_defaults(handler=_doctor)


def _doctor(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    findings = doctor.examine()
    output.write(args, out, [asdict(one) for one in findings], lambda: render(findings))
    return 0 if doctor.healthy(findings) else 1


def render(findings: Sequence[Finding]) -> str:
    """Return the table form: a line for each finding, then what is to be done."""
    text = table(("check", "result", "found"), [[one.check, one.result.value, one.found] for one in findings])
    for one in findings:
        if one.result is not Result.OK:
            text += f"\n{one.check}: {one.found}\n  {one.broken}\n  to do: {one.next}\n"
    return text
