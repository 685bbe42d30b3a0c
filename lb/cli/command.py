# SPDX-License-Identifier: Apache-2.0
"""The top of the command line."""

from __future__ import annotations

import argparse
import importlib
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TextIO, cast

import lb
from lb.cli.colours import Shown
from lb.cli.kubectl import settle
from lb.errors import LbError, UsageError

_DESCRIPTION = """\
Load balancer for Kubernetes Services: eBPF programs translate packets; this command runs their agent and
shows what they do.
"""

EXIT_CODES = (
    (
        "0",
        "done; where a command looks for faults (announce status, audit, doctor, explain, lab status, plan,"
        " shadow, status, upgrade): there is none; of node drain --wait: no connection comes in any more",
    ),
    (
        "1",
        'it could not be done, and one line on stderr ("lbctl: ...") says why; or a command that looks for'
        " faults found one: then stderr is empty, and stdout says what is wrong; of node drain --wait:"
        " connections are left at its timeout, and stdout says which",
    ),
    ("2", "wrong usage: stderr says what is wrong"),
    ("130", "ended by Ctrl-C"),
    ("any", "of lab exec: that of the command that it ran"),
)
"""Of every command; the manual page and docs/commands.md have them in these words."""

_EPILOG = "exit codes:\n" + "".join(
    textwrap.fill(text, 100, initial_indent=f"  {code:<5}", subsequent_indent=" " * 7, break_on_hyphens=False)
    + "\n"
    for code, text in EXIT_CODES
)


COMMANDS = {
    "run": ("actions", "run the agent of this node"),
    "status": ("views", "is all well? problems, hooks, map fill and the agent"),
    "service": ("views", "show Services"),
    "maps": ("views", "show the kernel's maps"),
    "flows": ("views", "list connections"),
    "top": ("views", "Services and backends by what they carry, live"),
    "monitor": ("views", "connections and drops, live"),
    "history": ("views", "the last changes of a Service in the maps, when and why"),
    "trace": ("diagnosis", "what would become of a packet, and why, step by step"),
    "explain": ("diagnosis", "why a Service does not answer, step by step"),
    "audit": ("diagnosis", "compare source, plan and kernel; name and heal differences"),
    "plan": ("diagnosis", "what manifests would change in the maps; nothing is applied"),
    "doctor": ("diagnosis", "what will and will not work on this machine, and what to do"),
    "addresses": ("actions", "give Services of type LoadBalancer addresses out of pools"),
    "announce": ("announcing", "tell routers by BGP which addresses this node serves"),
    "upgrade": ("actions", "what this version would do with the maps of the one that runs"),
    "shadow": ("actions", "where the programs would decide otherwise than kube-proxy's rules"),
    "node": ("node", "drain this node: new connections come in elsewhere"),
    "cutover": ("actions", "take Services over from kube-proxy with open connections, or give them back"),
    "unload": ("actions", "remove every trace of the data plane"),
    "lab": ("lab", "a cluster of network namespaces on this machine"),
    "completion": ("actions", "print a completion script for bash, zsh or fish"),
    "version": ("actions", "print the version"),
}
"""By name: the module of lb.cli.grammar that has a function of that name, and what ``lbctl --help`` says."""

PLUGIN = "kubectl-lb"
"""What kubectl calls for ``kubectl lb``."""


def parser(command: str = "") -> argparse.ArgumentParser:
    """Return the parser of one command, or of all; each sets ``handler``."""
    top, commands = _top()
    for name in [command] if command else COMMANDS:
        getattr(importlib.import_module(f"lb.cli.grammar.{COMMANDS[name][0]}"), name)(commands)
    return top


def parser_for(word: str) -> argparse.ArgumentParser:
    """Return the parser of a command; of a word that is none, one that knows the names of commands alone."""
    if word in COMMANDS:
        return parser(word)
    top, commands = _top()
    for name, (_, summary) in COMMANDS.items():
        commands.add_parser(name, help=summary)
    return top


def _top() -> tuple[argparse.ArgumentParser, argparse._SubParsersAction[argparse.ArgumentParser]]:
    top = argparse.ArgumentParser(
        prog="kubectl lb" if Path(sys.argv[0]).name == PLUGIN else "lbctl",
        description=_DESCRIPTION,
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"lbctl {lb.__version__}")
    return top, top.add_subparsers(title="commands", metavar="COMMAND", required=True)


def version(_args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl version``."""
    print(f"lbctl {lb.__version__}", file=out)
    return 0


def main(argv: Sequence[str] | None = None, *, out: TextIO | None = None, err: TextIO | None = None) -> int:
    """Run one command and return its exit code; out and err default to the process's streams.

    argparse itself writes usage errors to the process's stderr and raises SystemExit(2).
    """
    out = cast("TextIO", Shown(out or sys.stdout))
    err = cast("TextIO", Shown(err or sys.stderr))
    words = sys.argv[1:] if argv is None else argv
    args = parser_for(words[0] if words else "").parse_args(words)
    try:
        settle(args)
        module, _, function = args.handler.partition(".")
        code: int = getattr(importlib.import_module(f"lb.cli.{module}"), function)(args, out, err)
        out.flush()
    except LbError as error:
        print(f"lbctl: {error}", file=err)
        return 2 if isinstance(error, UsageError) else 1
    except PermissionError as error:
        print(f"lbctl: {error.filename}: {error.strerror}; lbctl needs root", file=err)
        return 1
    return code
