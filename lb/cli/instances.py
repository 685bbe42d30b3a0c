# SPDX-License-Identifier: Apache-2.0
"""Which instance of the data plane a command means."""

from __future__ import annotations

import argparse

from lb.datapath.kernel import pins
from lb.errors import ConfigError


def choose(args: argparse.Namespace, existing: list[str] | None = None) -> str:
    """Return the name of the instance that the flags mean. existing: all there are; default: as pinned.

    Raises ConfigError: no instance fits, or more than one does; the message lists those that there are.
    """
    names = pins.instances() if existing is None else existing
    if names:
        listed = f"there are: {', '.join(names)}"
    elif existing is None and not pins.is_bpffs(pins.BPFFS):
        listed = (
            f"no BPF file system is mounted at {pins.BPFFS}: mount -t bpf bpf {pins.BPFFS};"
            " an agent that runs then pins again what it holds"
        )
    else:
        listed = "nothing of lbctl is pinned on this machine"
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
