# SPDX-License-Identifier: Apache-2.0
"""``lbctl flows``: connections."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from types import MappingProxyType
from typing import TextIO

from lb.cli import instances, output, pods
from lb.cli.nodes import selected
from lb.cli.tables import table
from lb.cli.width import terminal_width
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view import dump
from lb.datapath.view.dump import FlowEntry
from lb.rundir import RunDir

_COLUMNS = ("protocol", "client", "vip", "backend", "snat", "state", "idle", "pod", "client_pod")
"""The last two, the pods of backend and client, are there where any is known."""


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl flows``."""
    key = selected(args)
    name = instances.choose(args)
    with KernelMaps(Pins(name).maps) as maps:
        read = dump.dump(maps, time.monotonic_ns(), ("flows",), key)["flows"]
    found = [one for one in read if isinstance(one, FlowEntry)]
    known = pods.known(RunDir(name)) if found else {}
    flows = [one.as_dict() | of_pods(one, known) for one in found]
    output.write(args, out, {"flows": flows}, lambda: render(found, known, terminal_width(out)))
    return 0


def of_pods(one: FlowEntry, known: Mapping[str, str]) -> dict[str, str]:
    """Return the pods of a connection that are known: ``pod``, the backend's, and ``client_pod``."""
    places = {"pod": one.backend, "client_pod": one.client}
    return {name: pod for name, place in places.items() if (pod := pods.pod_at(known, place))}


def render(
    flows: Sequence[FlowEntry],
    known: Mapping[str, str] = MappingProxyType({}),
    width: int | None = None,
) -> str:
    """Return the table form; known: pods by ``address:port`` and by address. width: the terminal's."""
    rows = []
    for one in flows:
        cells = asdict(one) | {"snat": one.snat or "-", "idle": f"{one.idle_seconds:.0f} s"}
        cells |= {"pod": "-", "client_pod": "-"} | of_pods(one, known)
        rows.append([cells[name] for name in _COLUMNS])
    live, closed = dump.live_and_closed(flows)
    shown = len(_COLUMNS) if known else len(_COLUMNS) - 2
    text = table(_COLUMNS[:shown], [row[:shown] for row in rows], width=width)
    return text + f"{live} live, {closed} closed\n"
