# SPDX-License-Identifier: Apache-2.0
"""VIPs that a Service has no more: their entries linger for the connections that are open.

An entry that lingers takes no new connection; the packets of known flows pass through it as before. It goes
when no flow uses it any more, and with the last entry of a Service port go its backends and its names. That
an entry lingers is in the maps (``VipFlag.GONE``), so it is known after a restart as well.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np

from lb.datapath.maps.expiry import idle_limits
from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import FAMILIES, VIP_KEY, Direction, VipFlag
from lb.datapath.sync.ledger import Port, VipRow, vip_keys
from lb.datapath.sync.pools import NO_ROWS
from lb.plan.types import VipKey

PART_SECONDS = 0.5
"""How long to wait between two parts of a sweep: each reads a few MB of the flows."""
REST_SECONDS = 5.0
"""How long to wait between two sweeps."""


def gone_row(row: VipRow) -> VipRow:
    """Return the row of a VIP that lingers: it offers nobody and asks nobody's sources."""
    return row._replace(affinity_seconds=0, inside=NO_ROWS, outside=NO_ROWS, flags=int(VipFlag.GONE))


def used(maps: Maps, version: int, ports: Collection[Port]) -> set[int]:
    """Return the ids of those Service ports that have opened a connection, ever.

    Raises BpfError: the kernel refused to read.
    """
    ids = np.array(sorted({port.id for port in ports}), "u4")
    found = set(ids[maps.some("ended", ids)["opened"] > 0].tolist())
    slots, connections = maps.array(f"backends{version}"), maps.array(f"connections{version}")
    opened = np.flatnonzero(connections["opened"])
    return found | (set(slots["service"][opened].tolist()) & set(ids.tolist()))


class Sweep:
    """One look at all flows, a part at a time, for the VIPs that have none.

    vips: those that linger, as the maps have them since before this began. now: nanoseconds of
    CLOCK_MONOTONIC, when each part is read.
    """

    def __init__(self, maps: Maps, vips: Sequence[VipKey]) -> None:
        self._maps = maps
        self._unused = {
            version: dict(zip(_bytes(vip_keys(version, of_version)), of_version, strict=True))
            for version in FAMILIES
            if (of_version := [vip for vip in vips if vip.address.version == version])
        }
        self._parts = self._read()

    def _read(self) -> Iterator[tuple[int, Rows, Rows]]:
        for version in self._unused:
            for keys, values in self._maps.parts(f"flows{version}"):
                yield version, keys, values

    def leave(self, vips: Iterable[VipKey]) -> None:
        """Let these not be unused: they have begun to linger meanwhile, again perhaps."""
        for version, of_version in self._unused.items():
            some = [vip for vip in vips if vip.address.version == version]
            for each in _bytes(vip_keys(version, some)):
                of_version.pop(each, None)

    def step(self, now: int) -> list[VipKey] | None:
        """Look at one part; return the VIPs that no flow uses once all flows have been looked at, else None.

        Raises BpfError: the kernel refused to read.
        """
        part = next(self._parts, None)
        if part is None:
            return [vip for of_version in self._unused.values() for vip in of_version.values()]
        version, keys, values = part
        for each in _vips_of(self._maps, version, keys, values, now):
            self._unused[version].pop(each, None)
        return None


def _vips_of(maps: Maps, version: int, keys: Rows, values: Rows, now: int) -> set[bytes]:
    """Return the VIPs, as keys of the ``vips`` map, that live flows among these go through."""
    limits = idle_limits(maps.array(f"settings{version}")[0], keys, values)
    idle = np.maximum(np.int64(now) - values["last_seen"].astype(np.int64), 0).astype(np.uint64)
    forward = keys[(keys["direction"] == Direction.FORWARD) & (idle <= limits)]
    rows = np.zeros(len(forward), VIP_KEY[version])
    for name, of_flow in (("address", "dst"), ("port", "dport"), ("protocol", "protocol")):
        rows[name] = forward[of_flow]
    return set(_bytes(rows))


def _bytes(rows: Rows) -> list[bytes]:
    return [row.tobytes() for row in rows]
