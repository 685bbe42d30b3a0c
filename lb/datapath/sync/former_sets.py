# SPDX-License-Identifier: Apache-2.0
"""What the outside of a Service port was offered before, kept for connections that began then.

A packet in mid-connection that meets no flow is led by today's set. If that names another backend than the
set which began the connection, its node asks here (``bpf/former.h``). Lists are known by one line, of the
backends that have been in one in the order in which they came: each former choice is the first among those
that were there. Backends that have left the list but still have connections stay in the line. Of tables
those of before are kept whole: what is gone of their backends, programs see in their slots.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import (
    FORMER,
    FORMER_SETS,
    ID,
    LINE_ROWS,
    WEIGHTED_SET,
    BackendFlag,
    VipFlag,
)
from lb.datapath.sync.ledger import Port, VipRow
from lb.datapath.sync.pools import NO_ROWS, Region, RowPool
from lb.datapath.sync.tables import SetRows, set_rows, write_sets
from lb.errors import CapacityError, LbError
from lb.plan import SMALL_SET

_LOG = logging.getLogger(__name__)

SHARE = 8
"""Former sets may have one of so many of all rows."""


class FormerSets:
    """Keeps up to FORMER_SETS tables of each port and the ages of its backends; writes the map ``former``."""

    def __init__(self, maps: Maps, slots: Mapping[int, Rows]) -> None:
        self._maps, self._slots = maps, slots
        self._most = maps.capacity("tables") * LINE_ROWS // SHARE
        self._rows = 0
        self._changed: dict[int, Port] = {}
        self._lines: dict[int, tuple[Region, SetRows]] = {}

    def count(self, ports: Iterable[Port]) -> None:
        """Take over what ports have, as they were read from the maps."""
        self._rows = sum(region.size for port in ports for region in (*port.former, port.line))
        self._changed.clear()

    def retire(self, port: Port, before: VipRow | None, row: VipRow) -> None:
        """Note that a VIP's row is another: its set for the outside may have begun connections."""
        if not before or not row.flags & VipFlag.DIRECT or before.outside in (row.outside, NO_ROWS):
            return
        port.retired.add(before.outside.offset)
        if not port.ages and before.outside.size <= SMALL_SET:
            keys = (key for key, region in port.regions.items() if region == before.outside)
            port.ages = [ident for ident in next(keys, ()) if ident > 0]
            port.unordered = len(port.ages)

    def follow(self, port: Port, version: int, rows: RowPool) -> list[Region]:
        """Bring the ages of a port's backends in step with those that it has; return what is of no use now.

        Of those that come at the same time this node's own count as the newest.
        """
        if not port.ages:
            return []
        sockets = {ident: socket for socket, ident in port.backends.items()}
        flags = self._slots[version]["flags"]
        kept = [ident for ident in port.ages if ident in sockets]
        new = (port.listed() & sockets.keys()) - set(kept)
        came = sorted(new, key=lambda ident: (flags[ident] & BackendFlag.LOCAL, ident))
        ages = (kept + came)[:SMALL_SET]
        unordered = sum(ident in sockets for ident in port.ages[: port.unordered])
        if ages == port.ages and port.line.size:
            return []
        before, port.line = port.line, NO_ROWS
        port.ages, port.unordered = ages, unordered
        self._rows -= before.size
        if ages and self._rows + len(ages) <= self._most:
            try:
                port.line = rows.allocate(len(ages))
                self._lines[port.id] = port.line, set_rows(ages, version, [sockets[each] for each in ages])
                self._rows += len(ages)
            except CapacityError:
                _LOG.debug("direct return: no room for the ages of backends")
        self._changed[port.id] = port
        return [before] if before.size else []

    def keep(self, port: Port, region: Region) -> list[Region]:
        """Keep a region that no VIP leads to any more; return those that are of no use from now on."""
        if region.offset not in port.retired:
            return [region]
        port.retired.discard(region.offset)
        if region.size <= WEIGHTED_SET or self._rows + region.size > self._most:
            return [region]
        port.former.insert(0, region)
        gone = port.former[FORMER_SETS:]
        del port.former[FORMER_SETS:]
        self._rows += region.size - sum(each.size for each in gone)
        self._changed[port.id] = port
        return gone

    def forget(self, port: Port) -> list[Region]:
        """Forget all of a port, and return its regions."""
        gone = [region for region in (*port.former, port.line) if region.size]
        port.former, port.line, port.ages, port.unordered = [], NO_ROWS, [], 0
        port.retired.clear()
        if gone:
            self._rows -= sum(each.size for each in gone)
            self._changed[port.id] = port
        return gone

    def write(self) -> None:
        """Write what has changed. A failure is a warning: there is no second chance then."""
        changed, self._changed = self._changed, {}
        lines, self._lines = self._lines, {}
        kept = {ident: port for ident, port in changed.items() if port.former or port.line.size}
        gone = changed.keys() - kept.keys()
        try:
            if gone:
                self._maps.delete("former", np.array(sorted(gone), ID))
            if kept:
                write_sets(self._maps, [line for ident, line in lines.items() if ident in kept])
                values = [(port.line, port.unordered, 0, _padded(port.former)) for port in kept.values()]
                self._maps.update("former", np.array(list(kept), ID), np.array(values, FORMER))
        except LbError as error:
            _LOG.warning("direct return: former sets not written: %s", error)


def _padded(regions: list[Region]) -> list[Region]:
    return [*regions, *[NO_ROWS] * (FORMER_SETS - len(regions))]


def read_former(maps: Maps) -> dict[int, tuple[Region, int, list[Region]]]:
    """Return by Service port id the line of ages, how many of it are unordered, and the tables.

    Raises BpfError: the kernel refused.
    """
    keys, values = maps.read("former")
    return {
        ident: (Region(*row["ages"].item()), int(row["unordered"]), _regions(row["sets"]))
        for ident, row in zip(keys.tolist(), values, strict=True)
    }


def _regions(row: Rows) -> list[Region]:
    return [Region(offset, size) for offset, size in row.tolist() if size]
