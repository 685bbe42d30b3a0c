# SPDX-License-Identifier: Apache-2.0
"""A copy of the maps to write to: what is written stays here, the maps below are only read."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from lb.datapath.maps.interface import Fill, Maps, Rows
from lb.datapath.maps.map_table import MAP_SPECS, MapType
from lb.errors import CapacityError

_HASHES = (MapType.HASH, MapType.LPM_TRIE)


class Overlay:
    """Maps above others: a map is copied when it is first written to, or mapped into memory.

    It answers as the kernel would, a full map included, so a reconciler does not know the difference.
    """

    def __init__(self, base: Maps) -> None:
        self._base = base
        self._hashes: dict[str, dict[bytes, bytes]] = {}
        self._arrays: dict[str, Rows] = {}

    def read(self, name: str) -> tuple[Rows, Rows]:
        """See :meth:`lb.datapath.maps.interface.Maps.read`."""
        spec = MAP_SPECS[name]
        if name in self._arrays:
            rows = self._arrays[name]
            return np.arange(len(rows), dtype=spec.key), rows.copy()
        if name not in self._hashes:
            return self._base.read(name)
        entries = self._hashes[name]
        return np.frombuffer(b"".join(entries), spec.key), np.frombuffer(
            b"".join(entries.values()), spec.value
        )

    def fill(self, name: str) -> Fill:
        """See :meth:`lb.datapath.maps.interface.Maps.fill`."""
        below = self._base.fill(name)
        return below._replace(entries=len(self._hashes[name])) if name in self._hashes else below

    def some(self, name: str, keys: Rows) -> Rows:
        """See :meth:`lb.datapath.maps.interface.Maps.some`."""
        return self._arrays[name][keys] if name in self._arrays else self._base.some(name, keys)

    def parts(self, name: str) -> Iterator[tuple[Rows, Rows]]:
        """See :meth:`lb.datapath.maps.interface.Maps.parts`."""
        return iter([self.read(name)]) if name in self._arrays else self._base.parts(name)

    def update(self, name: str, keys: Rows, values: Rows) -> None:
        """See :meth:`lb.datapath.maps.interface.Maps.update`."""
        spec = MAP_SPECS[name]
        if spec.type not in _HASHES:
            self.array(name)[keys] = values
            return
        entries = self._copied(name)
        new = {key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)}
        wanted = len(entries.keys() | new.keys())
        if wanted > self.capacity(name):
            raise CapacityError(name, self.capacity(name), wanted, f"limits.{spec.limit}")
        entries |= new

    def delete(self, name: str, keys: Rows) -> None:
        """See :meth:`lb.datapath.maps.interface.Maps.delete`."""
        entries = self._copied(name)
        for key in keys:
            entries.pop(key.tobytes(), None)

    def array(self, name: str) -> Rows:
        """See :meth:`lb.datapath.maps.interface.Maps.array`."""
        if name not in self._arrays:
            self._arrays[name] = np.array(self._base.array(name), subok=False)
        return self._arrays[name]

    def capacity(self, name: str) -> int:
        """See :meth:`lb.datapath.maps.interface.Maps.capacity`."""
        return self._base.capacity(name)

    def _copied(self, name: str) -> dict[bytes, bytes]:
        if name not in self._hashes:
            assert MAP_SPECS[name].type in _HASHES, name
            keys, values = self._base.read(name)
            self._hashes[name] = {
                key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)
            }
        return self._hashes[name]
