# SPDX-License-Identifier: Apache-2.0
"""Maps in Python's memory, for tests of what writes to maps and reads them."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np

from lb.config import Limits
from lb.datapath.maps.interface import Fill, Rows
from lb.datapath.maps.map_table import MAP_SPECS, MAPS, MapSpec, MapType, sizes
from lb.errors import BpfError, CapacityError


class FakeMaps:
    """Maps in Python's memory: no kernel, the same manners, and failures on demand.

    writes: one ``(operation, map, entries)`` for each write, in order. The operation is ``"update"``,
        ``"delete"`` or ``"store"`` (an assignment to an array). Clear it as you like.
    before_write: called before each write, to look at the maps at that instant or to raise.
    """

    CPUS = 2

    def __init__(self, limits: Limits | None = None) -> None:
        self.writes: list[tuple[str, str, int]] = []
        self.before_write: Callable[[], None] = lambda: None
        self._sizes = sizes(limits or Limits())
        self._hashes: dict[str, dict[bytes, bytes]] = {}
        self._arrays: dict[str, Rows] = {}
        self._failures: dict[tuple[str, str], int] = {}
        for spec in MAPS:
            if spec.type is MapType.ARRAY:
                rows = np.zeros(self.capacity(spec.name), spec.value).view(_RecordedArray)
                rows.record = partial(self._note, "store", spec.name)
                self._arrays[spec.name] = rows
            elif spec.type is MapType.PERCPU_ARRAY:
                self._arrays[spec.name] = np.zeros((self.capacity(spec.name), self.CPUS), spec.value)
            else:
                self._hashes[spec.name] = {}

    def fail(self, name: str, times: int = 1, operation: str = "update") -> None:
        """Let the next calls of an operation (read, update, delete) on a map raise BpfError, idle."""
        self._failures[operation, name] = times

    def read(self, name: str) -> tuple[Rows, Rows]:
        """See :meth:`Maps.read`."""
        self._fail_if_told("read", name)
        spec = MAP_SPECS[name]
        if name in self._arrays:
            return np.arange(self.capacity(name), dtype=spec.key), np.array(self._arrays[name], subok=False)
        entries = self._hashes[name]
        keys, values = bytearray().join(entries), bytearray().join(entries.values())
        return np.frombuffer(keys, spec.key), np.frombuffer(values, spec.value)

    def fill(self, name: str) -> Fill:
        """See :meth:`Maps.fill`; nothing had to go."""
        self._fail_if_told("read", name)
        return Fill(len(self._hashes[name]))

    def some(self, name: str, keys: Rows) -> Rows:
        """See :meth:`Maps.some`."""
        self._fail_if_told("read", name)
        return np.array(self._arrays[name][keys], subok=False)

    def parts(self, name: str) -> Iterator[tuple[Rows, Rows]]:
        """See :meth:`Maps.parts`: entry by entry."""
        for keys, values in zip(*self.read(name), strict=True):
            yield np.atleast_1d(keys), values[np.newaxis]

    def update(self, name: str, keys: Rows, values: Rows) -> None:
        """See :meth:`Maps.update`; a per-CPU array takes values of the shape (entries, CPUs)."""
        spec = MAP_SPECS[name]
        keys, values = _checked(spec, keys, values)
        self._fail_if_told("update", name)
        self._note("update", name, len(keys))
        if spec.type is MapType.PERCPU_ARRAY:
            self._arrays[name][keys] = values
            return
        if spec.type is MapType.ARRAY:
            np.asarray(self._arrays[name])[keys] = values
            return
        entries = self._hashes[name]
        for key, value in zip(_raw(keys), _raw(values), strict=True):
            if key not in entries and len(entries) == self.capacity(name):
                if spec.type not in (MapType.LRU_HASH, MapType.CACHE):
                    wanted = len(entries.keys() | set(_raw(keys)))
                    raise CapacityError(name, self.capacity(name), wanted, f"limits.{spec.limit}")
                del entries[next(iter(entries))]
            entries[key] = value

    def delete(self, name: str, keys: Rows) -> None:
        """See :meth:`Maps.delete`."""
        keys, _ = _checked(MAP_SPECS[name], keys, keys)
        self._fail_if_told("delete", name)
        self._note("delete", name, len(keys))
        for key in _raw(keys):
            self._hashes[name].pop(key, None)

    def array(self, name: str) -> Rows:
        """See :meth:`Maps.array`."""
        return self._arrays[name]

    def capacity(self, name: str) -> int:
        """See :meth:`Maps.capacity`."""
        spec = MAP_SPECS[name]
        return spec.max_entries(self._sizes) * spec.entries_each

    def _note(self, operation: str, name: str, entries: int) -> None:
        self.before_write()
        self.writes.append((operation, name, entries))

    def _fail_if_told(self, operation: str, name: str) -> None:
        left = self._failures.get((operation, name), 0)
        if left:
            self._failures[operation, name] = left - 1
            raise BpfError(f"MAP_{operation.upper()}_BATCH", name, errno.EIO)


class _RecordedArray(np.ndarray[Any, Any]):
    """An array that tells of each assignment to it, or to a view of it; not of those to a copy."""

    record: Callable[[int], None] | None = None

    def __array_finalize__(self, base: object) -> None:
        self.record = getattr(base, "record", None)

    def __setitem__(self, key: Any, value: Any) -> None:
        if self.record is not None and self.base is not None:
            self.record(int(np.size(self[key])))
        super().__setitem__(key, value)


def _raw(rows: Rows) -> list[bytes]:
    """Return each row's bytes; a number alone would be one of this machine's byte order."""
    return [rows[at : at + 1].tobytes() for at in range(len(rows))]


def _checked(spec: MapSpec, keys: Rows, values: Rows) -> tuple[Rows, Rows]:
    """Refuse what the kernel could not tell from good rows: another dtype, another number of values."""
    assert keys.dtype == spec.key, (spec.name, keys.dtype)
    assert len(keys) == len(values), spec.name
    assert values is keys or values.dtype == spec.value, (spec.name, values.dtype)
    return keys, values
