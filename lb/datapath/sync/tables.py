# SPDX-License-Identifier: Apache-2.0
"""Sets of backends as rows of the map ``tables``: struct table_line of bpf/types.h."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import ID, LINE_ROWS, TABLE_LINE
from lb.datapath.sync.pools import Region
from lb.plan import SMALL_SET, lookup_table, table_size, weights
from lb.plan.maglev import Identity

_AT_ONCE = 8192
"""Lines written with one call, 1 MB."""


def table_rows(maps: Maps) -> Rows:
    """Return all rows of ``tables``, flat and live: a region's ids are those at its offset, size of them."""
    rows: Rows = maps.array("tables")["rows"].reshape(-1)
    return rows


def set_size(backends: int) -> int:
    """Return the size of a set of so many backends, as a VIP has it.

    Raises
    ------
    ValueError: see :func:`lb.plan.table_size`.
    """
    return backends if backends <= SMALL_SET else table_size(backends)


def set_rows(ids: Sequence[int], identities: Sequence[Identity]) -> Rows:
    """Return the rows of a set: whole lines, flat. ids and identities are in the order of the identities."""
    if len(ids) <= SMALL_SET:
        pad = [0] * (SMALL_SET - len(ids))
        return np.array([*ids, *pad, *weights(identities), *pad], ID)
    table = np.array(ids, ID)[lookup_table(identities)]
    return np.pad(table, (0, -len(table) % LINE_ROWS))


def write_sets(maps: Maps, sets: Iterable[tuple[Region, Rows]]) -> None:
    """Write rows where their regions are.

    Raises
    ------
    BpfError: the kernel refused.
    """
    numbers: list[Rows] = []
    rows: list[Rows] = []
    lines = 0
    for region, of_region in sets:
        first, count = region.offset // LINE_ROWS, len(of_region) // LINE_ROWS
        numbers.append(np.arange(first, first + count, dtype=ID))
        rows.append(of_region)
        lines += count
        if lines >= _AT_ONCE:
            _write(maps, numbers, rows)
            numbers, rows, lines = [], [], 0
    if rows:
        _write(maps, numbers, rows)


def _write(maps: Maps, numbers: list[Rows], rows: list[Rows]) -> None:
    maps.update("tables", np.concatenate(numbers), np.concatenate(rows).view(TABLE_LINE))
