# SPDX-License-Identifier: Apache-2.0
"""The sets of backends that the outside of a Service port had before, kept for connections that they began.

A packet in mid-connection that meets no flow is led by today's set. If that names another backend than the
set which began the connection, its node asks here (``bpf/former.h``). The rows of a set stay as they were:
what is gone of its backends, programs see in their slots.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import FORMER, FORMER_SETS, ID, LINE_ROWS
from lb.datapath.sync.ledger import Port
from lb.datapath.sync.pools import NO_ROWS, Region
from lb.errors import LbError

_LOG = logging.getLogger(__name__)

SHARE = 8
"""Former sets may have one of so many of all rows."""


class FormerSets:
    """Keeps up to FORMER_SETS regions of a port in ``Port.former``, and writes the map ``former``."""

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._most = maps.capacity("tables") * LINE_ROWS // SHARE
        self._rows = 0
        self._changed: dict[int, Port] = {}

    def count(self, ports: Iterable[Port]) -> None:
        """Take over what ports have, as they were read from the maps."""
        self._rows = sum(region.size for port in ports for region in port.former)
        self._changed.clear()

    def keep(self, port: Port, region: Region) -> list[Region]:
        """Keep a region that no VIP leads to any more; return those that are of no use from now on."""
        if region.offset not in port.retired or self._rows + region.size > self._most:
            return [region]
        port.retired.discard(region.offset)
        port.former.insert(0, region)
        gone = port.former[FORMER_SETS:]
        del port.former[FORMER_SETS:]
        self._rows += region.size - sum(each.size for each in gone)
        self._changed[port.id] = port
        return gone

    def forget(self, port: Port) -> list[Region]:
        """Forget all regions of a port, and return them."""
        gone, port.former = port.former, []
        port.retired.clear()
        if gone:
            self._rows -= sum(each.size for each in gone)
            self._changed[port.id] = port
        return gone

    def write(self) -> None:
        """Write what has changed. A failure is a warning: there is no second chance then."""
        changed, self._changed = self._changed, {}
        kept = {ident: port for ident, port in changed.items() if port.former}
        gone = changed.keys() - kept.keys()
        try:
            if gone:
                self._maps.delete("former", np.array(sorted(gone), ID))
            if kept:
                values = [(_padded(port.former),) for port in kept.values()]
                self._maps.update("former", np.array(list(kept), ID), np.array(values, FORMER))
        except LbError as error:
            _LOG.warning("direct return: former sets not written: %s", error)


def _padded(regions: list[Region]) -> list[Region]:
    return [*regions, *[NO_ROWS] * (FORMER_SETS - len(regions))]


def read_former(maps: Maps) -> dict[int, list[Region]]:
    """Return the regions of the former sets by Service port id.

    Raises BpfError: the kernel refused.
    """
    keys, values = maps.read("former")
    return {ident: _regions(row) for ident, row in zip(keys.tolist(), values["sets"], strict=True)}


def _regions(row: Rows) -> list[Region]:
    return [Region(offset, size) for offset, size in row.tolist() if size]
