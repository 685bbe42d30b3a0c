# SPDX-License-Identifier: Apache-2.0
"""``lbctl upgrade``: what a start of this version would make of the maps that another one has left."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, TextIO

from lb.cli import instances, nodes, output
from lb.config import Config, Switch
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import map_table
from lb.datapath.maps.map_pins import prospects
from lb.rundir import RunDir
from lb.words import several

_CONNECTIONS = ("flows4", "flows6")


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl upgrade``."""
    name = instances.choose(args)
    run_dir = RunDir(name)
    notes = run_dir.notes()
    noted = notes.get("settings")
    config = nodes.noted_config(name, notes, str(run_dir.notes_path)) if noted else Config()
    sizes = map_table.sizes(config.limits, traffic_counters=config.traffic_counters is Switch.ON)
    maps = [
        {
            "map": one.name,
            "becomes": "converted" if one.converted else "empty",
            "entries": one.entries,
            "why": one.lost,
        }
        for one in prospects(Pins(name), sizes)
    ]
    found = {"instance": name, "maps": maps, "connections_lost": lost_connections(maps)}
    output.write(args, out, found, lambda: render(found))
    return 1 if any(one["becomes"] == "empty" for one in maps) else 0


def lost_connections(maps: list[dict[str, Any]]) -> int | None:
    """Return how many connections lose their flow; None where a table cannot be read."""
    lost = [one["entries"] for one in maps if one["map"] in _CONNECTIONS and one["becomes"] == "empty"]
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
