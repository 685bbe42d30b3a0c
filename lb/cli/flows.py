# SPDX-License-Identifier: Apache-2.0
"""``lbctl flows``: live connections."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from dataclasses import asdict
from typing import TextIO

from lb.cli import instances, output
from lb.cli.nodes import selected
from lb.cli.tables import table
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view import dump
from lb.datapath.view.dump import FlowEntry

_COLUMNS = ("protocol", "client", "vip", "backend", "snat", "state", "idle")


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl flows``."""
    key = selected(args)
    with KernelMaps(Pins(instances.choose(args)).maps) as maps:
        read = dump.dump(maps, time.monotonic_ns(), ("flows",), key)["flows"]
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
