# SPDX-License-Identifier: Apache-2.0
"""``lbctl completion SHELL``: words completed by Tab, instances and Services of this machine among them."""

from __future__ import annotations

import argparse
import io
import os
import shlex
from collections.abc import Callable, Sequence
from typing import Any, TextIO

import argcomplete

from lb.errors import LbError

_FILES = frozenset({"file", "config", "read", "pcap", "kubeconfig", "manifests"})


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl completion``."""
    out.write(argcomplete.shellcode(["lbctl"], shell=args.shell) + "\n")
    return 0


def complete(
    parser: Callable[[str], argparse.ArgumentParser],
    values: Callable[..., list[str]] | None = None,
    **where: Any,
) -> None:
    """Answer the shell that asks, and end the process; parser gives that of a command, ``""``: of none yet.

    values: what may stand for a value. where: as argcomplete.autocomplete() has it, to answer and to end
    otherwise.
    """
    words = os.environ.get("COMP_LINE", "").split()
    # A word that Tab still is at may become another command.
    command = words[1] if len(words) > 2 or (os.environ["COMP_LINE"].endswith(" ") and len(words) > 1) else ""
    argcomplete.autocomplete(parser(command), default_completer=values or _values, **where)


def for_kubectl(words: Sequence[str], parser: Callable[[str], argparse.ArgumentParser], out: TextIO) -> int:
    """Answer kubectl, which completes the words of a plugin by running its ``kubectl_complete-`` program.

    words: those behind ``kubectl lb``, the last one is being typed. Written are the words that it could
    become, a line each, and what the shell shall do then, as a ShellCompDirective of cobra: complete files
    where there is none (0), else leave files out (4). (kubectl's help on plugins.)
    """
    line = " ".join(["lbctl", *map(shlex.quote, words[:-1]), *words[-1:]])
    found = io.StringIO()
    os.environ |= {
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1",
        "_ARGCOMPLETE_SHELL": "fish",  # as that shell, kubectl wants words as they are
        "COMP_LINE": line,
        "COMP_POINT": str(len(line.encode())),
    }
    complete(parser, _known_values, output_stream=found, exit_method=lambda _code: None)
    offered = [word.strip() for word in found.getvalue().splitlines() if word.strip()]
    out.writelines(f"{word}\n" for word in [*offered, ":4" if offered else ":0"])
    return 0


def _values(prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_more: Any) -> list[str]:
    """Return what may stand for a value, files among them."""
    if action.dest in _FILES:
        found: list[str] = list(argcomplete.FilesCompleter()(prefix))
        return found
    return _known_values(prefix, action, parsed_args)


def _known_values(
    _prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_more: Any
) -> list[str]:
    """Return what this machine knows that may stand for a value; nothing where it cannot tell."""
    if action.dest not in ("instance", "node", "service", "namespace"):
        return []
    from lb.cli import instances  # noqa: PLC0415  (a third of what the rest of a Tab costs)
    from lb.datapath.kernel import pins  # noqa: PLC0415
    from lb.datapath.view import service_names  # noqa: PLC0415

    try:
        if action.dest == "instance":
            return pins.instances()
        if action.dest == "node":
            return [name.rpartition(".")[2] for name in pins.instances()]
        if action.dest in ("service", "namespace"):
            names = service_names.read(pins.Pins(instances.choose(parsed_args)).maps / "services")
            return names if action.dest == "service" else sorted({name.partition("/")[0] for name in names})
    except (LbError, OSError):
        return []
    return []
