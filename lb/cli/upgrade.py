# SPDX-License-Identifier: Apache-2.0
"""``lbctl upgrade``: what this version, or an earlier one, would make of the maps that are there."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, TextIO

from lb.cli import instances, nodes, output
from lb.config import Config, Switch
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import map_table
from lb.datapath.maps.map_pins import Prospect, prospects, prospects_in
from lb.datapath.maps.releases import RELEASES
from lb.errors import UsageError
from lb.rundir import RunDir
from lb.words import several

_CONNECTIONS = ("flows4", "flows6")


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl upgrade``.

    Raises UsageError: the version to go back to is none that is known.
    """
    if args.to and args.to not in RELEASES:
        raise UsageError(
            f"--to {args.to}: known are {', '.join(RELEASES)}; later versions convert maps themselves"
        )
    name = instances.choose(args)
    run_dir = RunDir(name)
    notes = run_dir.notes()
    noted = notes.get("settings")
    config = nodes.noted_config(name, notes, str(run_dir.notes_path)) if noted else Config()
    sizes = map_table.sizes(config.limits, traffic_counters=config.traffic_counters is Switch.ON)
    told = prospects_in(Pins(name), args.to) if args.to else prospects(Pins(name), sizes)
    maps = [
        {"map": one.name, "becomes": becomes(one), "entries": one.entries, "why": one.lost} for one in told
    ]
    found = {"instance": name, "maps": maps, "connections_lost": lost_connections(maps)}
    output.write(args, out, found, lambda: render(found))
    return 1 if any(one["becomes"] != "converted" for one in maps) else 0


def becomes(one: Prospect) -> str:
    """Return in a word what becomes of a map."""
    if one.partly:
        return "useless"
    return "converted" if one.converted else "empty"


def lost_connections(maps: list[dict[str, Any]]) -> int | None:
    """Return how many connections lose their flow; None where a table cannot be read."""
    lost = [one["entries"] for one in maps if one["map"] in _CONNECTIONS and one["becomes"] != "converted"]
    return None if None in lost else sum(lost) // 2  # an entry for each direction


def render(found: Mapping[str, Any]) -> str:
    """Return the form for people."""
    if not found["maps"]:
        return "every map stays as it is\n"
    count = found["connections_lost"]
    lines = [
        "connections lose their flows, it cannot be told how many"
        if count is None
        else f"{several(count, 'connection')} would be lost"
    ]
    for one in found["maps"]:
        entries = "" if one["entries"] is None else f", {several(one['entries'], 'entry', 'entries')}"
        why = f": {one['why']}" if one["why"] else ""
        lines.append(f"{one['map']}{entries}: {one['becomes']}{why}")
    return "\n".join(lines) + "\n"
