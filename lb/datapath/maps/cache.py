# SPDX-License-Identifier: Apache-2.0
"""Tables that forget: the entries of flows and affinity, in and out of their buckets.

``bpf/cache.h`` says what a bucket is. Buckets here are arrays of a map's bucket dtype
(:attr:`lb.datapath.maps.map_table.MapSpec.bucket`), hashing is one row of ``layouts.HASHING``. The programs
write while this reads: an entry that moves meanwhile may be there twice, or not at all.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from lb.datapath.kernel import batch, bpf
from lb.datapath.kernel.bpf import FD, Rows
from lb.datapath.maps import layouts
from lb.datapath.maps.layouts import HASHING, SLOTS
from lb.datapath.maps.map_table import MapSpec

TIME_SHIFT = layouts.CACHE_TIME_SHIFT
"""``until`` counts CLOCK_MONOTONIC's nanoseconds in units of 2 to the power of this.
Of a provisional entry it is half of the clock, :data:`LASTING`, away from when its time is over."""

LASTING, ALIVE = 1 << 31, 1 << 30
"""What the top bits of :func:`standing` say: the entry is not provisional; its time is not over."""

_LANES = np.arange(0, 64, 16, dtype="u8")


def new_hashing() -> Rows:
    """Return a row of hashing, its seeds by chance, without any buckets yet."""
    row = np.zeros(1, HASHING)
    row["seeds"] = np.frombuffer(secrets.token_bytes(row["seeds"].nbytes), "u8")
    return row


def places(hashing: Rows, keys: Rows, buckets: int) -> tuple[Rows, Rows]:
    """Return in which of so many buckets each key belongs, and its tag: ``hash_key()`` of bpf/cache.h."""
    count = keys.dtype.itemsize // 4
    words = np.ascontiguousarray(keys).view("u4").reshape(-1, count).astype("u8")
    seeds = hashing["seeds"].reshape(-1)[:count]
    sums = (words * seeds).sum(axis=1, dtype="u8")
    hashes = (sums ^ sums >> np.uint64(32)) * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(32)
    return hashes * np.uint64(buckets) >> np.uint64(32), (hashes & np.uint64(0xFFFF)) | np.uint64(1)


def tags(buckets: Rows) -> Rows:
    """Return the tag of each slot, of shape (buckets, SLOTS): 0 where it is free."""
    lanes = buckets["head"]["tags"][:, :, np.newaxis] >> _LANES & np.uint64(0xFFFF)
    return lanes.reshape(-1, 2 * len(_LANES))[:, :SLOTS]


class Entries(NamedTuple):
    """Entries of a table, row by row; until says when the time of each is over (:data:`TIME_SHIFT`)."""

    keys: Rows
    values: Rows
    until: Rows


def entries(buckets: Rows) -> Entries:
    """Return what is in the buckets."""
    used = tags(buckets) != 0
    slots = buckets["slots"][used]
    return Entries(slots["key"], slots["value"], buckets["head"]["until"][used])


def put(buckets: Rows, at: Rows, tag: Rows, new: Entries) -> None:
    """Put entries in empty buckets, each in the one that at names; in a full one, those that last longest."""
    lasts = (new.until - new.until[:1]).astype("i4")
    order = np.lexsort((-lasts, at))
    slot = np.arange(len(order)) - np.searchsorted(at[order], at[order], side="left")
    kept = slot < SLOTS
    order, slot = order[kept], slot[kept]
    at = at[order]
    buckets["slots"]["key"][at, slot] = new.keys[order]
    buckets["slots"]["value"][at, slot] = new.values[order]
    buckets["head"]["until"][at, slot] = new.until[order]
    lanes = tag[order] << (16 * (slot % 4)).astype("u8")
    np.bitwise_or.at(buckets["head"]["tags"], (at, slot // 4), lanes)


def parts(fd: FD, spec: MapSpec) -> Iterator[Entries]:
    """Yield what is in a table, a few MB of buckets at a time.

    Raises BpfError: the kernel refused to read.
    """
    return (entries(buckets) for buckets in _chunks(fd, spec))


def read(fd: FD, spec: MapSpec) -> Entries:
    """Return what is in a table.

    Raises BpfError: the kernel refused to read.
    """
    return join(list(parts(fd, spec)))


def find(fd: FD, spec: MapSpec, hashing: Rows, key: Rows) -> Rows | None:
    """Return the value of one key, as one row; None when the table has it not.

    Raises BpfError: the kernel refused to read.
    """
    (bucket,), _ = places(hashing, key, bpf.map_info(fd).max_entries)
    rows = np.zeros(1, spec.kernel_value)
    bpf.map_lookup(fd, np.array([bucket], layouts.ID), rows)
    found = entries(rows)
    at = [row for row, one in enumerate(found.keys) if one.tobytes() == key.tobytes()]
    return found.values[at[0] : at[0] + 1].copy() if at else None


def clone(source: FD, target: FD, spec: MapSpec) -> None:
    """Copy the buckets that hold something into an empty table of the same number of them, as they are.

    Raises BpfError: the kernel refused to read or write.
    """
    info = bpf.map_info(source)
    for numbers, values in batch.chunks(source, info, info.value_size):
        used = tags(values.reshape(-1).view(spec.kernel_value)).any(axis=1)
        batch.update_all(target, numbers[used], values[used])


def fill(fd: FD, spec: MapSpec, now: int) -> tuple[int, int, int]:
    """Return how many entries' time is not over, how many of them are provisional, and how many had to go.

    The last are those, not provisional, that made room before their time was over, since the map was made.
    now is CLOCK_MONOTONIC in nanoseconds.
    """
    live = provisional = evicted = 0
    for buckets in _chunks(fd, spec):
        stands = standing(buckets["head"]["until"], now)
        alive = (tags(buckets) != 0) & (stands & ALIVE != 0)
        live += int(alive.sum())
        provisional += int((alive & (stands & LASTING == 0)).sum())
        evicted += int(buckets["head"]["evicted"].sum())
    return live, provisional, evicted


def standing(until: Rows, now: int) -> Rows:
    """Return ``standing()`` of bpf/cache.h: the higher, the later an entry makes room for others."""
    return until - np.uint32(((now >> TIME_SHIFT) + 1 + ALIVE) & 0xFFFF_FFFF)


def change(fd: FD, spec: MapSpec, hashing: Rows, keys: Rows, values: Rows | None) -> None:
    """Write these entries, or delete them when there are no values. The time of a new one is over.

    What a program writes meanwhile into the same buckets is lost: for tables that nobody uses.
    """
    whole = _rows(list(_chunks(fd, spec)))
    touched = np.unique(places(hashing, keys, len(whole))[0])
    old = entries(whole[touched])
    number = {key.tobytes(): at for at, key in enumerate(keys)}
    until = np.zeros(len(keys), "u4")
    stay = np.ones(len(old.keys), bool)
    for row, key in enumerate(old.keys):
        if (again := number.get(key.tobytes())) is not None:
            stay[row], until[again] = False, old.until[row]
    rest = Entries(*(column[stay] for column in old))
    new = rest if values is None else join([rest, Entries(keys, values, until)])
    at, tag = places(hashing, new.keys, len(whole))
    buckets = np.zeros(len(touched), spec.kernel_value)
    buckets["head"]["evicted"] = whole[touched]["head"]["evicted"]
    put(buckets, np.searchsorted(touched, at), tag, new)
    batch.update_all(fd, touched.astype(layouts.ID), buckets)


def copy(source: FD, target: FD, spec: MapSpec, hashing: Rows) -> None:
    """Copy a table into an empty one, which may have another number of buckets.

    Raises BpfError: the kernel refused to read or write.
    """
    found = read(source, spec)
    buckets = np.zeros(bpf.map_info(target).max_entries, spec.kernel_value)
    put(buckets, *places(hashing, found.keys, len(buckets)), found)
    batch.update_all(target, np.arange(len(buckets), dtype=layouts.ID), buckets)


def join(parts: Sequence[Entries]) -> Entries:
    """Return the entries of several parts as one."""
    return Entries(*(_rows(column) for column in zip(*parts, strict=True)))


def _rows(parts: Sequence[Rows]) -> Rows:
    """Join rows. (numpy's own concatenate() would turn addresses into numbers of the CPU's byte order.)"""
    return np.frombuffer(bytearray().join(part.tobytes() for part in parts), parts[0].dtype)


def _chunks(fd: FD, spec: MapSpec) -> Iterator[Rows]:
    info = bpf.map_info(fd)
    for _, values in batch.chunks(fd, info, info.value_size):
        yield values.reshape(-1).view(spec.kernel_value)
