# SPDX-License-Identifier: Apache-2.0
"""Which instance of the data plane a command means."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Iterator

from lb.datapath.attach import netns
from lb.datapath.kernel import pins
from lb.errors import ConfigError
from lb.rundir import RunDir


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Add ``--instance`` and ``--node``."""
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--instance", metavar="NAME", help="the instance, as lbctl run named it")
    which.add_argument(
        "--node",
        metavar="NAME",
        help="the instance of this name, or the only one whose name ends in .NAME (as in a lab);"
        " neither is needed when the machine has only one instance",
    )


def choose(args: argparse.Namespace, existing: list[str] | None = None) -> str:
    """Return the name of the instance that the flags mean. existing: all there are; default: as pinned.

    Raises
    ------
    ConfigError: there is none, or more than one; the message lists what there is.
    """
    names = pins.instances() if existing is None else existing
    listed = f"there are: {', '.join(names)}" if names else "nothing of lbctl is pinned on this machine"
    if args.instance:
        found, wanted = [name for name in names if name == args.instance], f"--instance {args.instance}"
    elif args.node:
        found = [name for name in names if name == args.node] or [
            name for name in names if name.endswith(f".{args.node}")
        ]
        wanted = f"--node {args.node}"
    else:
        found, wanted = names, "no --node or --instance"
    if len(found) == 1:
        return found[0]
    problem = "no such instance" if not found else "more than one instance fits; say --instance NAME"
    raise ConfigError(f"{wanted}: {problem}; {listed}")


@contextlib.contextmanager
def entered(instance: str) -> Iterator[None]:
    """Be in the network namespace of an instance's hooks.

    Raises
    ------
    ConfigError: it is gone; DatapathError: it cannot be entered.
    """
    run_dir = RunDir(instance)
    if not run_dir.elsewhere():
        yield
        return
    notes = run_dir.notes()
    place = netns.find(notes["network_namespace"], notes.get("pid"))
    if place is None:
        raise ConfigError(
            f"instance {instance}: its agent's network namespace is gone, or not to be seen from here"
        )
    with netns.entered(place):
        yield
