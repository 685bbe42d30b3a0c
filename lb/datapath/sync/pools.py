# SPDX-License-Identifier: Apache-2.0
"""Who has which id, and which rows of the ``tables`` pool."""

from __future__ import annotations

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable
from typing import NamedTuple

from lb.errors import CapacityError


class Region(NamedTuple):
    """Consecutive rows of the ``tables`` map; size 0 when there is no backend to offer."""

    offset: int
    size: int


NO_ROWS = Region(0, 0)


class IdPool:
    """Hands out the ids of one map, from first to last.

    Never-used ids go first to last, then the released ones, longest released first: an id that a packet or
    a flow may still hold rests for as long as the room allows.
    """

    def __init__(self, resource: str, first: int, last: int, setting: str, used: Iterable[int] = ()) -> None:
        taken = set(used)
        self._resource = resource
        self._first = first
        self._last = last
        self._setting = setting
        self._next = max(taken, default=first - 1) + 1
        self._released = deque(i for i in range(first, self._next) if i not in taken)

    def allocate(self) -> int:
        """Return an id that nobody has.

        Raises CapacityError: every id is in use.
        """
        if self._next <= self._last:
            self._next += 1
            return self._next - 1
        if self._released:
            return self._released.popleft()
        capacity = self._last - self._first + 1
        raise CapacityError(self._resource, capacity, capacity + 1, self._setting)

    def release(self, ids: Iterable[int]) -> None:
        """Take ids back."""
        self._released.extend(ids)


class RowPool:
    """Hands out regions of a range of rows: first fit, and neighbouring free rows become one.

    A region takes whole lines of so many rows.
    """

    def __init__(
        self, resource: str, rows: int, setting: str, used: Iterable[Region] = (), *, line: int = 1
    ) -> None:
        self._resource = resource
        self._rows = rows
        self._setting = setting
        self._line = line
        self._offsets: list[int] = []  # of the free stretches, ascending
        self._sizes: dict[int, int] = {}  # of the free stretches, by offset
        end = 0
        for region in sorted(used):
            if region.offset > end:
                self._add(end, region.offset - end)
            end = max(end, region.offset + self._taken(region.size))
        if end < rows:
            self._add(end, rows - end)

    @property
    def free(self) -> int:
        """Rows that nobody has, in one piece or in many."""
        return sum(self._sizes.values())

    def _taken(self, size: int) -> int:
        return -(-size // self._line) * self._line

    def _add(self, offset: int, size: int) -> None:
        self._offsets.insert(bisect_left(self._offsets, offset), offset)
        self._sizes[offset] = size

    def allocate(self, size: int) -> Region:
        """Return a region of so many rows.

        Raises CapacityError: no free stretch is that long.
        """
        taken = self._taken(size)
        for index, offset in enumerate(self._offsets):
            room = self._sizes[offset]
            if room >= taken:
                if room > taken:
                    self._offsets[index] = offset + taken
                    self._sizes[offset + taken] = room - taken
                else:
                    del self._offsets[index]
                del self._sizes[offset]
                return Region(offset, size)
        raise CapacityError(self._resource, self._rows, self._rows - self.free + taken, self._setting)

    def release(self, region: Region) -> None:
        """Take a region back."""
        offset, size = region.offset, self._taken(region.size)
        index = bisect_left(self._offsets, offset)
        if index < len(self._offsets) and self._offsets[index] == offset + size:
            size += self._sizes.pop(self._offsets.pop(index))
        if index and self._offsets[index - 1] + self._sizes[self._offsets[index - 1]] == offset:
            self._sizes[self._offsets[index - 1]] += size
        else:
            self._add(offset, size)
