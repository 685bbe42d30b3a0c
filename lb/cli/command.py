"""The top of the command line.

Exit codes: 0 done; 1 it could not be done, one line on stderr says why; 2 the command line was wrong.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import TextIO

import lb
from lb.cli import lab, maps, run, service, status, unload
from lb.errors import LbError

_DESCRIPTION = """\
Load balancer for Kubernetes Services: eBPF programs translate packets, this command keeps them informed.

exit codes: 0 done; 1 could not be done, stderr says why; 2 wrong usage
"""


def parser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line; each command sets ``handler``."""
    top = argparse.ArgumentParser(
        prog="lbctl", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"lbctl {lb.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for group in (run, status, service, maps, unload, lab):
        group.register(commands)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(handler=_version)
    return top


def _version(_args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    print(f"lbctl {lb.__version__}", file=out)
    return 0


def main(argv: Sequence[str] | None = None, *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Run one command and return its exit code; out and err default to the process's streams.

    argparse itself writes usage errors to the process's stderr and raises SystemExit(2).
    """
    out = out or sys.stdout
    err = err or sys.stderr
    args = parser().parse_args(argv)
    try:
        code: int = args.handler(args, out, err)
        out.flush()
    except LbError as error:
        print(f"lbctl: {error}", file=err)
        return 1
    except PermissionError as error:
        print(f"lbctl: {error.filename}: {error.strerror}; lbctl needs root", file=err)
        return 1
    return code
