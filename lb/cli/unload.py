# SPDX-License-Identifier: Apache-2.0
"""``lbctl unload``: the data plane goes."""

from __future__ import annotations

import argparse
import contextlib
from typing import TextIO

from lb.cli import instances
from lb.datapath.attach import hooks, sockets
from lb.datapath.kernel import pins
from lb.datapath.kernel.pins import Pins
from lb.errors import LbError
from lb.rundir import RunDir


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl unload``."""
    existing = pins.instances()
    # All programs of this network namespace go: a mistyped name must not cost another instance its own.
    name = instances.choose(args, existing) if existing else args.instance or ""
    with contextlib.ExitStack() as stack:
        if name and not args.force:
            run_dir = RunDir(name)
            elsewhere = run_dir.elsewhere()
            if elsewhere:
                raise LbError(
                    f"instance {name} has its programs on interfaces of another network namespace: unload it"
                    f" there ({elsewhere}), or use --force when that is gone"
                )
            stack.enter_context(run_dir.lock())
        report = hooks.detach_all()
        if name:
            report.detached += sockets.detach(Pins(name))
            pins.unload(Pins(name))
            RunDir(name).remove()
    for what in report.detached:
        print(f"detached: {what}", file=out)
    print(f"unloaded: {name if existing else 'nothing was pinned'}", file=out)
    if report.errors:
        raise LbError("; ".join(str(error) for error in report.errors))
    return 0
