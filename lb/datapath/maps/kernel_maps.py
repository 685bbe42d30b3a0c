# SPDX-License-Identifier: Apache-2.0
"""The kernel's pinned maps behind the :class:`lb.datapath.maps.interface.Maps` interface."""

from __future__ import annotations

import errno
import mmap
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from weakref import WeakValueDictionary

import numpy as np

from lb.datapath.kernel import batch, bpf
from lb.datapath.kernel.bpf import FD, MapInfo
from lb.datapath.kernel.closing import Closing
from lb.datapath.maps import cache
from lb.datapath.maps.interface import Fill, Rows
from lb.datapath.maps.map_pins import read_rows, row_bytes
from lb.datapath.maps.map_table import MAP_SPECS, MapSpec, MapType
from lb.errors import BpfError, CapacityError

_FULL = (errno.E2BIG, errno.ENOSPC)


class KernelMaps(Closing):
    """The maps pinned below one directory, opened at first use.

    Several processes may have the same maps open; each call is atomic for one entry, not for all of them.
    private: maps that stand in the place of those pinned, by name. They are closed with the others.
    """

    def __init__(self, pin_dir: Path, private: Mapping[str, FD] = MappingProxyType({})) -> None:
        self.pin_dir = pin_dir
        self._private = private
        self._open: dict[str, tuple[FD, MapInfo, MapSpec]] = {}
        self._arrays: WeakValueDictionary[str, Rows] = WeakValueDictionary()

    def close(self) -> None:
        """Close the maps. Arrays that were handed out stay valid for as long as they are held."""
        self._arrays.clear()
        for fd, _, _ in self._open.values():
            fd.close()
        self._open.clear()

    def _map(self, name: str) -> tuple[FD, MapInfo, MapSpec]:
        if name not in self._open:
            spec = MAP_SPECS[name]
            fd = self._private.get(name) or bpf.obj_get(self.pin_dir / name)
            fd.subject = f"map {name}"
            self._open[name] = (fd, bpf.map_info(fd), spec)
        return self._open[name]

    def read(self, name: str) -> tuple[Rows, Rows]:
        """See :meth:`lb.datapath.maps.interface.Maps.read`. An array map's keys are all its indexes."""
        fd, _, spec = self._map(name)
        if spec.type is MapType.CACHE:
            return cache.read(fd, spec)[:2]
        keys, raw = read_rows(fd, spec)
        return keys, _values(spec, raw)

    def fd(self, name: str) -> FD:
        """Return a map's descriptor; it closes with this object."""
        return self._map(name)[0]

    def lookup(self, name: str, key: Rows) -> Rows | None:
        """Return the value of one key, as one row; of a trie, that of the longest prefix; None without one.

        Raises BpfError: the kernel refused.
        """
        fd, _, spec = self._map(name)
        key = np.ascontiguousarray(key, dtype=spec.key)
        if spec.type is MapType.CACHE:
            return cache.find(fd, spec, self._hashing(spec), key)
        value = np.zeros(1, spec.value)
        return value if bpf.map_lookup(fd, key, value) else None

    def fill(self, name: str) -> Fill:
        """See :meth:`lb.datapath.maps.interface.Maps.fill`."""
        fd, info, spec = self._map(name)
        if spec.type is MapType.CACHE:
            return Fill(*cache.fill(fd, spec, time.monotonic_ns()))
        return Fill(batch.count_all(fd, info, row_bytes(info)))

    def some(self, name: str, keys: Rows) -> Rows:
        """See :meth:`lb.datapath.maps.interface.Maps.some`."""
        fd, info, spec = self._map(name)
        keys = np.ascontiguousarray(keys, dtype=spec.key)
        raw = np.zeros((len(keys), row_bytes(info)), "u1")
        for at in range(len(keys)):
            bpf.map_lookup(fd, keys[at : at + 1], raw[at])
        return _values(spec, raw)

    def parts(self, name: str) -> Iterator[tuple[Rows, Rows]]:
        """See :meth:`lb.datapath.maps.interface.Maps.parts`."""
        fd, info, spec = self._map(name)
        if spec.type is MapType.CACHE:
            yield from ((part.keys, part.values) for part in cache.parts(fd, spec))
            return
        for keys, raw in batch.chunks(fd, info, row_bytes(info)):
            yield keys.reshape(-1).view(spec.key), _values(spec, raw)

    def update(self, name: str, keys: Rows, values: Rows) -> None:
        """See :meth:`Maps.update`; a per-CPU array takes values of shape (entries, CPUs)."""
        fd, info, spec = self._map(name)
        if len(keys) != len(values):
            raise ValueError(f"{name}: {len(keys)} keys, {len(values)} values")
        keys = np.ascontiguousarray(keys, dtype=spec.key)
        values = np.ascontiguousarray(values, dtype=spec.value)
        if spec.type is MapType.CACHE:
            cache.change(fd, spec, self._hashing(spec), keys, values)
            return
        if info.type == MapType.PERCPU_ARRAY:
            raw = np.zeros((len(keys), row_bytes(info)), dtype="u1")
            by_cpu = raw.reshape(len(keys), bpf.possible_cpus(), -1)
            by_cpu[:, :, : spec.value.itemsize] = values[:, :, np.newaxis].view("u1")
            values = raw
        try:
            batch.update_all(fd, keys, values)
        except BpfError as error:
            if error.errno not in _FULL:
                raise
            present = self.read(name)[0]
            wanted = len({key.tobytes() for key in np.concatenate((present, keys))})
            raise CapacityError(name, info.max_entries, wanted, _setting(spec)) from error

    def delete(self, name: str, keys: Rows) -> None:
        """See :meth:`lb.datapath.maps.interface.Maps.delete`."""
        fd, _, spec = self._map(name)
        keys = np.ascontiguousarray(keys, dtype=spec.key)
        if spec.type is MapType.CACHE:
            cache.change(fd, spec, self._hashing(spec), keys, None)
        else:
            batch.delete_all(fd, keys)

    def _hashing(self, spec: MapSpec) -> Rows:
        return self.array(f"hashing{spec.version}")

    def array(self, name: str) -> Rows:
        """See :meth:`lb.datapath.maps.interface.Maps.array`.

        The kernel pads array elements to 8 bytes, so the rows are strided when the dtype is not.
        """
        array = self._arrays.get(name)
        if array is None:
            fd, info, spec = self._map(name)
            stride = -(-info.value_size // 8) * 8
            length = -(-info.max_entries * stride // mmap.PAGESIZE) * mmap.PAGESIZE
            try:
                memory = mmap.mmap(fd.fileno(), length)
            except OSError as error:
                raise BpfError("mmap", fd.subject, error.errno or errno.EINVAL) from error
            array = np.ndarray(info.max_entries, spec.value, buffer=memory, strides=(stride,))
            self._arrays[name] = array
        return array

    def capacity(self, name: str) -> int:
        """See :meth:`lb.datapath.maps.interface.Maps.capacity`."""
        _, info, spec = self._map(name)
        return info.max_entries * spec.entries_each


def _values(spec: MapSpec, raw: Rows) -> Rows:
    """Return values of an array or a hash as the kernel gives them, each one row of bytes, as their dtype."""
    if spec.type is not MapType.PERCPU_ARRAY:
        return raw.reshape(-1).view(spec.value)
    by_cpu = raw.reshape(len(raw), bpf.possible_cpus(), raw.shape[1] // bpf.possible_cpus())
    by_cpu = by_cpu[:, :, : spec.value.itemsize]
    values: Rows = np.ascontiguousarray(by_cpu).view(spec.value)[:, :, 0]
    return values


def _setting(spec: MapSpec) -> str:
    return f"limits.{spec.limit}" if spec.limit else f"none: {spec.name} is of fixed size"
