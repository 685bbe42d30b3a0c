"""``lbctl completion SHELL``: words completed by Tab, instances and Services of this machine among them."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from typing import Any, TextIO

import argcomplete

from lb.cli import instances
from lb.datapath import catalogue, pins
from lb.datapath.kernel_maps import KernelMaps
from lb.datapath.pins import Pins
from lb.errors import LbError

_DESCRIPTION = """\
Print what makes a shell complete the words of lbctl when Tab is pressed: commands, flags, and, as
root, instances and Services.

  bash  lbctl completion bash > /etc/bash_completion.d/lbctl
  zsh   lbctl completion zsh > "${fpath[1]}/_lbctl"
  fish  lbctl completion fish > ~/.config/fish/completions/lbctl.fish
"""
_FILES = frozenset({"file", "config", "read", "pcap", "kubeconfig", "manifests"})


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "completion",
        help="print what makes a shell complete words",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("shell", metavar="SHELL", choices=["bash", "zsh", "fish"], help="bash, zsh or fish")
    parser.set_defaults(handler=_completion)


def _completion(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    out.write(argcomplete.shellcode(["lbctl"], shell=args.shell) + "\n")
    return 0


def complete(parser: Callable[[str], argparse.ArgumentParser]) -> None:
    """Answer the shell that asks, and end the process; parser gives the one of a command, ``""``: of all."""
    words = os.environ.get("COMP_LINE", "").split()
    # A word that Tab still is at may become another command.
    command = words[1] if len(words) > 2 or (os.environ["COMP_LINE"].endswith(" ") and len(words) > 1) else ""
    argcomplete.autocomplete(parser(command), default_completer=_values)


def _values(prefix: str, action: argparse.Action, parsed_args: argparse.Namespace, **_more: Any) -> list[str]:
    """Return what may stand for a value; nothing where this machine cannot tell."""
    try:
        if action.dest == "instance":
            return pins.instances()
        if action.dest == "node":
            return [name.rpartition(".")[2] for name in pins.instances()]
        if action.dest == "service":
            maps = KernelMaps(Pins(instances.choose(parsed_args)).maps)
            try:
                return sorted({name for name, _ in catalogue.names(maps).values()})
            finally:
                maps.close()
    except (LbError, OSError):
        return []
    if action.dest in _FILES:
        found: list[str] = list(argcomplete.FilesCompleter()(prefix))
        return found
    return []
