"""The top of the command line.

Exit codes: 0 done; 1 it could not be done, one line on stderr says why; 2 the command line was wrong.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence
from typing import TextIO

import lb
from lb.errors import LbError

_DESCRIPTION = """\
Load balancer for Kubernetes Services: eBPF programs translate packets, this command keeps them informed.

exit codes: 0 done; 1 could not be done, stderr says why; 2 wrong usage
"""


_COMMANDS = (
    "run", "status", "service", "maps", "flows", "trace", "explain", "audit", "plan", "doctor", "unload",
    "lab",
)  # fmt: skip
"""Each is a module of lb.cli; what a command needs is imported only for itself: an agent is small."""


def parser(command: str = "") -> argparse.ArgumentParser:
    """Return the parser of the command line, of one command alone or of all; each sets ``handler``."""
    top = argparse.ArgumentParser(
        prog="lbctl", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    top.add_argument("--version", action="version", version=f"lbctl {lb.__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for name in [command] if command in _COMMANDS else _COMMANDS:
        importlib.import_module(f"lb.cli.{name}").register(commands)
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
    words = sys.argv[1:] if argv is None else argv
    args = parser(words[0] if words else "").parse_args(words)
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
