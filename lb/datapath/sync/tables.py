# SPDX-License-Identifier: Apache-2.0
"""Sets of backends as rows of the map ``tables``: struct table_line of bpf/types.h."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import ID, LINE_ROWS, TABLE_LINE, WEIGHTED_SET
from lb.datapath.sync.pools import Region
from lb.plan import SMALL_SET, divisors, lookup_table, seeds, table_size, weights_of

_ONE_ROW = 1.5  # by less than this shares differ in a table of equal weights
_PADS = [[0] * (SMALL_SET - length) for length in range(SMALL_SET + 1)]


def table_rows(maps: Maps) -> Rows:
    """Return all rows of ``tables``, flat and live; :func:`listed` says which ids a region has."""
    rows: Rows = maps.array("tables")["rows"].reshape(-1)
    return rows


def set_size(backends: int, *, weighted: bool = False) -> int:
    """Return the size of a set of so many backends, of equal or unequal weights, as a VIP has it.

    Raises ValueError: see :func:`lb.plan.table_size`.
    """
    if backends > SMALL_SET:
        return table_size(backends)
    return LINE_ROWS + backends if weighted else backends


SetRows = Sequence[int] | Rows
"""The rows of a set, whole lines: a list of those of a small set, an array of a Maglev table's."""


def set_rows(
    ids: Sequence[int], version: int, sockets: Sequence[int], weights: Sequence[int] = ()
) -> SetRows:
    """Return the rows of a set of backends of one family; ids, sockets, weights in the order of the sockets.

    A socket is an address as a number, times 65536, plus a port. Without weights all are equal.
    """
    if len(ids) <= SMALL_SET:
        pad = _PADS[len(ids)]
        line = [*ids, *pad, *seeds(version, sockets), *pad]
        return [*line, *divisors(weights), *pad, *_PADS[0]] if weights else line
    identities = ((version, socket >> 16, socket & 0xFFFF) for socket in sockets)
    table = np.array(ids, ID)[lookup_table(identities, weights)]
    return np.pad(table, (0, -len(table) % LINE_ROWS))


def listed(tables: Rows, offset: int, size: int) -> Rows:
    """Return the ids in a set: those of a list, or what each row of a Maglev table has.

    tables: see :func:`table_rows`.
    """
    rows: Rows = tables[offset : offset + (size - LINE_ROWS if LINE_ROWS < size <= WEIGHTED_SET else size)]
    return rows


def list_weights(tables: Rows, offset: int, size: int) -> list[int]:
    """Return the weights of a list, in the order of its ids; none when they are equal, or in a table."""
    if not LINE_ROWS < size <= WEIGHTED_SET:
        return []
    return weights_of(tables[offset + LINE_ROWS : offset + size].tolist())


def shares(tables: Rows, offset: int, size: int) -> dict[int, float]:
    """Return which part of new connections each id of a set gets."""
    ids = listed(tables, offset, size)
    weights = list_weights(tables, offset, size)
    if weights:
        whole = sum(weights) or 1
        return {ident: weight / whole for ident, weight in zip(ids.tolist(), weights, strict=True)}
    found, counts = np.unique(ids, return_counts=True)
    return dict(zip(found.tolist(), (counts / max(1, len(ids))).tolist(), strict=True))


def unequal_shares(tables: Rows, offset: int, size: int) -> dict[int, float]:
    """Return what :func:`shares` does where weights are unequal; empty where they are equal."""
    if size <= SMALL_SET:
        return {}
    found = shares(tables, offset, size)
    rows = [share * size for share in found.values()]
    return found if size <= WEIGHTED_SET or max(rows) - min(rows) > _ONE_ROW else {}


def write_sets(maps: Maps, sets: Iterable[tuple[Region, SetRows]]) -> None:
    """Write rows where their regions are.

    Raises BpfError: the kernel refused.
    """
    small_at: list[int] = []
    small: list[int] = []
    for region, rows in sets:
        if isinstance(rows, list):
            first = region.offset // LINE_ROWS
            small_at += range(first, first + len(rows) // LINE_ROWS)
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
