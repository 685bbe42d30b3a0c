# SPDX-License-Identifier: Apache-2.0
"""Access to the maps: one interface, the kernel's pinned maps behind it, and a fake with the same manners.

Keys and values are numpy arrays of the dtypes in :mod:`lb.datapath.maps.layouts`, one row for each entry.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol

from numpy.typing import NDArray

Rows = NDArray[Any]


class Fill(NamedTuple):
    """How full a map is: :meth:`Maps.fill`.

    entries: those in use.
    provisional: how many of them make room first (``bpf/cache.h``).
    evicted: entries that were not provisional and made room before their time was over, since the map was
    made.
    """

    entries: int
    provisional: int = 0
    evicted: int = 0


class Maps(Protocol):
    """The maps of one node, by the names in :data:`lb.datapath.maps.map_table.MAPS`."""

    def read(self, name: str) -> tuple[Rows, Rows]:
        """Return all entries of a hash map or trie as (keys, values), in no order.

        A per-CPU map's values have the shape (entries, CPUs).

        Raises BpfError: the kernel refused.
        """
        ...

    def fill(self, name: str) -> Fill:
        """Return how full a hash map or trie is; what comes or goes meanwhile may or may not count.

        Of a table that forgets (``map_table.MapType.CACHE``) those entries count whose time is not over.

        Raises BpfError: the kernel refused.
        """
        ...

    def some(self, name: str, keys: Rows) -> Rows:
        """Return a copy of these entries of an array map; a per-CPU map's have the shape (keys, CPUs).

        Raises BpfError: the kernel refused.
        """
        ...

    def parts(self, name: str) -> Iterator[tuple[Rows, Rows]]:
        """Yield what :meth:`read` returns of an array map, from the first entry on, a few MB at a time.

        So it does for a table that forgets (``map_table.MapType.CACHE``), whose entries are in no order.

        Raises BpfError: the kernel refused.
        """
        ...

    def update(self, name: str, keys: Rows, values: Rows) -> None:
        """Write entries of a hash map or trie; there is a value for each key. Existing keys are replaced.

        Raises CapacityError: the map is full; entries before the one that did not fit have been written.
        Raises BpfError: the kernel refused.
        """
        ...

    def delete(self, name: str, keys: Rows) -> None:
        """Delete entries of a hash map or trie; a key that is not there is no error."""
        ...

    def array(self, name: str) -> Rows:
        """Return a mmapable array map as a live, writable array: a store is seen by the kernel at once.

        It is mapped into memory for as long as the array, or a view of it, is held; so is the same array
        returned. Where the rest of a large map is not wanted, :meth:`update` writes entries of it as well.
        """
        ...

    def capacity(self, name: str) -> int:
        """Return how many entries there is room for."""
        ...
