"""Access to the maps: one interface, the kernel's pinned maps behind it, and a fake with the same manners.

Keys and values are numpy arrays of the dtypes in :mod:`lb.datapath.layouts`, one row for each entry.
"""

from __future__ import annotations

from typing import Any, Protocol

from numpy.typing import NDArray

Rows = NDArray[Any]


class Maps(Protocol):
    """The maps of one node, by the names in :data:`lb.datapath.layouts.MAPS`."""

    def read(self, name: str) -> tuple[Rows, Rows]:
        """Return all entries of a hash map as (keys, values), in no order.

        A per-CPU map's values have the shape (entries, CPUs).

        Raises
        ------
        BpfError: the kernel refused.
        """
        ...

    def update(self, name: str, keys: Rows, values: Rows) -> None:
        """Write entries of a hash map; keys and values have the same length. Existing keys are replaced.

        Raises
        ------
        CapacityError: the map is full; entries before the one that did not fit have been written.
        BpfError: the kernel refused.
        """
        ...

    def delete(self, name: str, keys: Rows) -> None:
        """Delete entries of a hash map; a key that is not there is no error."""
        ...

    def array(self, name: str) -> Rows:
        """Return a mmapable array map as a live, writable array: a store is seen by the kernel at once."""
        ...

    def capacity(self, name: str) -> int:
        """Return the map's max_entries."""
        ...


__all__ = ["Maps", "Rows"]
