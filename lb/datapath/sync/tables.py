# SPDX-License-Identifier: Apache-2.0
"""Sets of backends as rows of the map ``tables``: struct table_line of bpf/types.h."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import ID, LINE_ROWS, TABLE_LINE
from lb.datapath.sync.pools import Region
from lb.plan import SMALL_SET, lookup_table, table_size, weights

_PADS = [[0] * (SMALL_SET - length) for length in range(SMALL_SET + 1)]


def table_rows(maps: Maps) -> Rows:
    """Return all rows of ``tables``, flat and live: a region's ids are those at its offset, size of them."""
    rows: Rows = maps.array("tables")["rows"].reshape(-1)
    return rows


def set_size(backends: int) -> int:
    """Return the size of a set of so many backends, as a VIP has it.

    Raises ValueError: see :func:`lb.plan.table_size`.
    """
    return backends if backends <= SMALL_SET else table_size(backends)


SetRows = Sequence[int] | Rows
"""The rows of a set, whole lines: a list of those of a small set, an array of a Maglev table's."""


def set_rows(ids: Sequence[int], version: int, sockets: Sequence[int]) -> SetRows:
    """Return the rows of a set of backends of one family; ids and sockets in the order of the sockets.

    A socket is an address as a number, times 65536, plus a port.
    """
    if len(ids) <= SMALL_SET:
        pad = _PADS[len(ids)]
        return [*ids, *pad, *weights(version, sockets), *pad]
    identities = ((version, socket >> 16, socket & 0xFFFF) for socket in sockets)
    table = np.array(ids, ID)[lookup_table(identities)]
    return np.pad(table, (0, -len(table) % LINE_ROWS))


def write_sets(maps: Maps, sets: Iterable[tuple[Region, SetRows]]) -> None:
    """Write rows where their regions are.

    Raises BpfError: the kernel refused.
    """
    small_at: list[int] = []
    small: list[int] = []
    for region, rows in sets:
        if isinstance(rows, list):
            small_at.append(region.offset // LINE_ROWS)
            small += rows
        else:
            first, of_region = region.offset // LINE_ROWS, np.asarray(rows, ID)
            maps.update(
                "tables",
                np.arange(first, first + len(rows) // LINE_ROWS, dtype=ID),
                of_region.view(TABLE_LINE),
            )
    if small_at:
        maps.update("tables", np.array(small_at, ID), np.array(small, ID).view(TABLE_LINE))
