# SPDX-License-Identifier: Apache-2.0
"""``lbctl flows``: live connections."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from lb.cli import instances, output
from lb.cli.nodes import service_key
from lb.cli.tables import table
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view import dump
from lb.datapath.view.dump import FlowEntry

_DESCRIPTION = """\
List live connections as the kernel has them: the client, the VIP that it uses, the backend that it
was led to, the node's address that stands for the client where there is one (SNAT), the state, and
how long nothing was sent. Connections of the node's own processes are led to their backend at the
socket and have no flow.
"""
_COLUMNS = ("protocol", "client", "vip", "backend", "snat", "state", "idle")


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "flows",
        help="list live connections",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    instances.add_flags(parser)
    parser.add_argument("--service", metavar="NS/NAME", help="only those of this Service")
    output.add_flag(parser, "table")
    parser.set_defaults(handler=_flows)


def _flows(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    key = service_key(args.service) if args.service else None
    maps = KernelMaps(Pins(instances.choose(args)).maps)
    try:
        read = dump.dump(maps, time.monotonic_ns(), ("flows",), key)["flows"]
    finally:
        maps.close()
    found = [one for one in read if isinstance(one, FlowEntry)]
    output.write(args, out, {"flows": [one.as_dict() for one in found]}, lambda: render(found))
    return 0


def render(flows: Sequence[FlowEntry]) -> str:
    """Return the table form."""
    rows = []
    for one in flows:
        cells = asdict(one) | {"snat": one.snat or "-", "idle": f"{one.idle_seconds:.0f} s"}
        rows.append([cells[name] for name in _COLUMNS])
    return table(_COLUMNS, rows) + f"{len(rows)} live\n"
