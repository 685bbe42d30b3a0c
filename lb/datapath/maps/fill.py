# SPDX-License-Identifier: Apache-2.0
"""How full the maps are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lb.datapath.maps import layouts, map_table
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import LINE_ROWS, BackendStateCode
from lb.datapath.maps.map_table import MapType


@dataclass(frozen=True, slots=True)
class MapFill:
    """A map that can fill up.

    entries: those in use.
    when_full: what happens when the map is full, in words.
    evicted: entries that made room before their time was over, since the map was made; provisional ones do
    not count.
    provisional: entries in use that make room first, because their owner has not shown that he is there, as
    with half-open connections.
    evicted and provisional are None where the kernel does not tell.
    """

    name: str
    entries: int
    capacity: int
    when_full: str
    evicted: int | None = None
    provisional: int | None = None


def map_fill(maps: Maps) -> list[MapFill]:
    """Return the fill of each map that can fill up, in the order of :data:`lb.datapath.maps.map_table.MAPS`.

    Raises BpfError: the kernel refused to show a map.
    """
    rows = []
    for spec in map_table.MAPS:
        evicted = provisional = None
        if spec.name == "service_counters":
            continue  # as full as services
        if spec.type is MapType.CACHE:
            entries, provisional, evicted = maps.fill(spec.name)
        elif spec.type in (MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE):
            entries = maps.fill(spec.name).entries
        elif spec.name.startswith("backends"):
            entries = int(np.count_nonzero(maps.array(spec.name)["state"] != BackendStateCode.FREE))
        elif spec.name == "tables":
            entries = _table_lines(maps)
        else:
            continue
        rows.append(
            MapFill(spec.name, entries, maps.capacity(spec.name), spec.when_full, evicted, provisional)
        )
    return rows


def evictions(maps: Maps) -> dict[str, int]:
    """Return by map how many entries, not provisional, made room before their time since the map was made.

    Raises BpfError: the kernel refused to show a map.
    """
    caches = (spec.name for spec in map_table.MAPS if spec.type is MapType.CACHE)
    return {name: maps.fill(name).evicted for name in caches}


def _table_lines(maps: Maps) -> int:
    """Return how many lines of the pool the VIPs use; several VIPs may share a region."""
    vips = [maps.read(f"vips{version}")[1] for version in layouts.FAMILIES]
    sides = np.concatenate([rows[side] for rows in vips for side in ("inside", "outside")])
    regions = np.unique(sides["offset"].astype("u8") << np.uint64(32) | sides["size"])
    sizes = regions & np.uint64(0xFFFF_FFFF)
    return int((-(-sizes.astype("i8") // LINE_ROWS)).sum())
