# SPDX-License-Identifier: Apache-2.0
"""Ids and rows of the tables pool."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.datapath.sync.pools import IdPool, Region, RowPool
from lb.errors import CapacityError


def test_ids_come_back_longest_released_first() -> None:
    pool = IdPool("backends4", 1, 3, "limits.backends", used=[2])
    assert [pool.allocate(), pool.allocate()] == [3, 1]
    pool.release([2, 1])
    assert [pool.allocate(), pool.allocate()] == [2, 1]
    with pytest.raises(CapacityError, match="backends4 is full: 4 entries wanted, 3 possible"):
        pool.allocate()


def test_rows_are_first_fit_and_grow_together_again() -> None:
    pool = RowPool("tables", 100, "limits.table_rows", used=[Region(10, 20), Region(50, 10)])
    assert pool.free == 70
    assert [pool.allocate(15), pool.allocate(10), pool.allocate(40)] == [(30, 15), (0, 10), (60, 40)]
    with pytest.raises(CapacityError, match="tables is full: 101 entries wanted, 100 possible"):
        pool.allocate(6)
    for region in [(0, 10), (60, 40), (50, 10), (10, 20), (30, 15)]:
        pool.release(Region(*region))
    assert pool.allocate(100) == (0, 100)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 30)), max_size=60))
def test_rows_are_never_handed_out_twice(steps: list[tuple[bool, int]]) -> None:
    pool = RowPool("tables", 100, "limits.table_rows")
    held: list[Region] = []
    for take, number in steps:
        rows = [row for region in held for row in range(region.offset, region.offset + region.size)]
        if take or not held:
            try:
                held.append(pool.allocate(number))
            except CapacityError:
                room = [at for at in range(101 - number) if set(rows).isdisjoint(range(at, at + number))]
                assert not room
        else:
            pool.release(held.pop(number % len(held)))
        rows = [row for region in held for row in range(region.offset, region.offset + region.size)]
        assert len(rows) == len(set(rows))
        assert pool.free == 100 - len(rows)
