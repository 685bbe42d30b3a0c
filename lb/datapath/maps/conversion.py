# SPDX-License-Identifier: Apache-2.0
"""Entries of a map of another layout, field by field: an upgrade, or the way back, that changes a struct.

Each instance has a map ``layouts`` that says of what fields its maps are, as numpy describes a dtype. A
version that finds maps of another layout converts what it can: a field of the same name keeps its value, in
whatever width the new one has; a field that the other version did not have is 0, which therefore has to mean
"not known" in what is added to flows. What cannot be converted starts empty, and is said beforehand
(``lbctl upgrade --check``) and when it happens.
"""

from __future__ import annotations

import contextlib
import json
from typing import Any

import numpy as np

from lb.datapath.kernel import batch, bpf
from lb.datapath.kernel.bpf import FD, Rows
from lb.datapath.maps import cache, layouts
from lb.datapath.maps.map_table import MapSpec, MapType

DType = np.dtype[Any]
_ROOM = 1 << 17
"""Bytes of the map that describes the others."""

NEVER = frozenset({"hashing4", "hashing6"})
"""Maps whose contents mean something with the code that wrote them alone: they begin anew."""


def describe(dtype: DType) -> Any:
    """Return a dtype as JSON has it."""
    return dtype.descr if dtype.names else dtype.str


def described(text: Any) -> DType:
    """Return the dtype that :func:`describe` has described."""
    return np.dtype(text if isinstance(text, str) else [_field(*one) for one in text])


def _field(name: str, kind: Any, shape: Any = ()) -> tuple[Any, ...]:
    return name, described(kind), tuple(shape)


def obstacle(old: DType, new: DType) -> str:
    """Return why values cannot be converted, ``""`` if they can."""
    if old.names is None or new.names is None:
        return _scalar_obstacle(old, new)
    for name in set(old.names) & set(new.names):
        before, after = old[name], new[name]
        if before.shape != after.shape:
            return f"{name}: {before.shape} has become {after.shape}"
        if why := obstacle(before.base, after.base):
            return f"{name}: {why}" if before.base.names is None else f"{name}.{why}"
    return ""


def _scalar_obstacle(old: DType, new: DType) -> str:
    if old == new or {old.kind, new.kind} <= set("iu") or {old.kind, new.kind} == {"S"}:
        return ""
    return f"{old.str} has become {new.str}"


def convert(rows: Rows, new: DType) -> tuple[Rows, Rows]:
    """Return rows in another layout, and which of them kept all that they held.

    A number that is too large for its new field, or text that is too long, is not kept.
    """
    into = np.zeros(rows.shape, new)
    whole = np.ones(rows.shape, bool)
    _convert(rows, into, whole)
    return into, whole


def _convert(rows: Rows, into: Rows, whole: Rows) -> None:
    for name in set(rows.dtype.names or ()) & set(into.dtype.names or ()):
        before, after = rows[name], into[name]
        if before.dtype.names:
            inside = np.ones(before.shape, bool)
            _convert(before, after, inside)
            whole &= _all_in(inside, whole)
            continue
        after[...] = before.astype(after.dtype)
        same = after.astype(before.dtype) == before
        whole &= _all_in(same, whole)


def _all_in(same: Rows, whole: Rows) -> Rows:
    """Return for each place of whole, of which there may be none, whether all that same has there is true."""
    found: Rows = np.logical_and.reduce(same, axis=tuple(range(whole.ndim, same.ndim)))
    return found


def _fields(rows: Rows, new: DType) -> tuple[Rows, Rows]:
    """Convert rows that may be of plain numbers."""
    if rows.dtype == new:
        return rows, np.ones(len(rows), bool)
    if new.names is None:
        into = rows.astype(new)
        return into, into.astype(rows.dtype) == rows
    return convert(rows, new)


def copy(source: FD, old: tuple[DType, DType], target: FD, spec: MapSpec) -> tuple[int, int]:
    """Convert a map that is no table of buckets into an empty one; return how many were and were not kept.

    old: key and value of the source. Raises BpfError: the kernel refused to read or write.
    """
    info = bpf.map_info(source)
    keys, raw = batch.read_all(source, info, old[0], info.value_size)
    keys, whole = _fields(keys, spec.kernel_key)
    values, also = _fields(raw.reshape(-1).view(old[1]), spec.kernel_value)
    whole &= also
    batch.update_all(target, keys[whole], np.ascontiguousarray(values[whole]))
    return int(whole.sum()), int((~whole).sum())


def read_cache(source: FD, bucket: DType) -> cache.Entries:
    """Return what a table of buckets of another layout holds.

    Raises BpfError: the kernel refused to read.
    """
    info = bpf.map_info(source)
    found = [
        cache.entries(values.reshape(-1).view(bucket))
        for _, values in batch.chunks(source, info, info.value_size)
    ]
    return cache.join(found)


def copy_cache(
    source: FD, old: tuple[DType, DType], target: FD, spec: MapSpec, hashing: Rows
) -> tuple[int, int]:
    """Convert a table of buckets into an empty one; return how many entries were and were not kept.

    old: what the source's map has as key and value. hashing: where the target's entries are.

    Raises BpfError: the kernel refused to read or write.
    """
    found = read_cache(source, old[1])
    keys, whole = _fields(found.keys, spec.key)
    values, also = _fields(found.values, spec.value)
    whole &= also
    kept = cache.Entries(keys[whole], values[whole], found.until[whole])
    buckets = np.zeros(bpf.map_info(target).max_entries, spec.kernel_value)
    cache.put(buckets, *cache.places(hashing, kept.keys, len(buckets)), kept)
    batch.update_all(target, np.arange(len(buckets), dtype=layouts.ID), buckets)
    there = int((cache.tags(buckets) != 0).sum())
    return there, len(found.keys) - there


def bucket_obstacle(old: DType, spec: MapSpec) -> str:
    """Return why what buckets hold cannot be converted, ``""`` if it can: their heads have to be alike."""
    new = spec.kernel_value
    try:
        if old["head"] != new["head"] or old["slots"].shape != new["slots"].shape:
            return "the heads of its buckets are others"
        slot = old["slots"].base
        return obstacle(slot["key"], spec.key) or obstacle(slot["value"], spec.value)
    except KeyError:
        return "its buckets are others"


def read_layouts(fd: FD) -> dict[str, Any]:
    """Return what the map ``layouts`` holds: by map, its marker and the description of key and value."""
    raw = np.zeros(_ROOM, "u1")
    bpf.map_lookup(fd, np.zeros(1, "u4"), raw)
    text = raw.tobytes().rstrip(b"\0")
    with contextlib.suppress(ValueError):
        found: dict[str, Any] = json.loads(text)
        return found
    return {}


def make_layouts() -> FD:
    """Create the map ``layouts``."""
    return bpf.map_create(MapType.ARRAY, 4, _ROOM, 1, name="lb_layouts")


def write_layouts(fd: FD, found: dict[str, Any]) -> None:
    """Write what :func:`read_layouts` returns; too much for the map is written as nothing."""
    text = json.dumps(found).encode()
    raw = np.zeros(_ROOM, "u1")
    if len(text) < _ROOM:
        raw[: len(text)] = np.frombuffer(text, "u1")
    bpf.map_update(fd, np.zeros(1, "u4"), raw)
