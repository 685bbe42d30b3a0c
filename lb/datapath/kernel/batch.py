# SPDX-License-Identifier: Apache-2.0
"""Whole maps at once: batch commands where the kernel has them, one call for each entry elsewhere."""

from __future__ import annotations

import errno
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np

from lb.datapath.kernel.bpf import (
    FD,
    MapInfo,
    Rows,
    address,
    map_delete,
    map_lookup,
    map_next_key,
    map_update,
)
from lb.datapath.kernel.syscall import Command, syscall
from lb.errors import BpfError

_ENOTSUPP = 524  # the kernel's own "not supported", which some map types give for batch commands
_MAX_BATCH = 4096
_MAX_BYTES = 1 << 22


def _no_batch(error: BpfError) -> bool:
    """Tell whether the kernel or this type of map has no batch commands (Linux before 5.6, some types)."""
    return error.errno in (errno.EINVAL, _ENOTSUPP, errno.EOPNOTSUPP)


def _batch(command: Command, fd: FD, attr: bytearray) -> tuple[int, int]:
    """Run one batch command; return (elements done, errno or 0).

    The kernel reports how far it came also when it fails, but for the errors it finds before it starts.
    """
    try:
        syscall(command, attr, fd.subject)
    except BpfError as error:
        done = int(struct.unpack_from("=I", attr, 32)[0])
        if _no_batch(error) or error.errno == errno.ENOMEM:
            done = 0
        return done, error.errno
    return int(struct.unpack_from("=I", attr, 32)[0]), 0


def read_all(fd: FD, info: MapInfo, keys_type: np.dtype[Any], row_bytes: int) -> tuple[Rows, Rows]:
    """Read every entry.

    Returns
    -------
    Keys of shape (n,) and dtype keys_type, values of shape (n, row_bytes) and dtype u1. Entries that come
    or go meanwhile may or may not be among them; none is twice among them.
    """
    keys, values = zip(*chunks(fd, info, row_bytes), strict=True)
    return np.concatenate(keys).reshape(-1).view(keys_type), np.concatenate(values)


def count_all(fd: FD, info: MapInfo, row_bytes: int) -> int:
    """Count the entries of a hash map as :func:`read_all` finds them, in memory for one chunk of them."""
    return sum(len(keys) for keys, _ in chunks(fd, info, row_bytes))


def chunks(fd: FD, info: MapInfo, row_bytes: int) -> Iterator[tuple[Rows, Rows]]:
    """Yield all entries in one or more chunks, keys and values as bytes of shape (n, size)."""
    chunk = max(1, min(info.max_entries, _MAX_BATCH, _MAX_BYTES // max(row_bytes, 1)))
    cursors = np.zeros((2, max(info.key_size, 4)), dtype="u1")
    first = True
    while True:
        keys = np.zeros((chunk, info.key_size), dtype="u1")  # bytes: joining typed rows would swap theirs
        values = np.zeros((chunk, row_bytes), dtype="u1")
        attr = bytearray(
            struct.pack(
                "=QQQQIIQQ",
                0 if first else address(cursors[0]),
                address(cursors[1]),
                address(keys),
                address(values),
                chunk,
                fd.fileno(),
                0,
                0,
            )
        )
        done, code = _batch(Command.MAP_LOOKUP_BATCH, fd, attr)
        if code == errno.ENOSPC:  # one hash bucket holds more than the chunk
            chunk *= 2
            continue
        if code not in (0, errno.ENOENT):
            error = BpfError(Command.MAP_LOOKUP_BATCH.name, fd.subject, code)
            if first and _no_batch(error):
                yield _read_each(fd, info, row_bytes)
                return
            raise error
        yield keys[:done], values[:done]
        if code == errno.ENOENT:
            return
        cursors[0] = cursors[1]
        first = False


def _read_each(fd: FD, info: MapInfo, row_bytes: int) -> tuple[Rows, Rows]:
    """Read every entry with one call each.

    The kernel starts again at the first key when the current one has gone, so entries are kept by key and
    the walk is bounded.
    """
    entries: dict[bytes, bytes] = {}
    key: Rows | None = None
    for _ in range(4 * info.max_entries):
        next_key = np.zeros(info.key_size, dtype="u1")
        if not map_next_key(fd, key, next_key):
            break
        value = np.zeros(row_bytes, dtype="u1")
        if map_lookup(fd, next_key, value):
            entries[next_key.tobytes()] = value.tobytes()
        key = next_key
    keys = np.frombuffer(b"".join(entries), dtype="u1").reshape(len(entries), info.key_size)
    values = np.frombuffer(b"".join(entries.values()), dtype="u1").reshape(len(entries), row_bytes)
    return keys, values


def _write_attr(fd: FD, keys: Rows, values: Rows | None) -> bytearray:
    return bytearray(
        struct.pack("=QQQQIIQQ", 0, 0, address(keys), address(values), len(keys), fd.fileno(), 0, 0)
    )


def update_all(fd: FD, keys: Rows, values: Rows) -> None:
    """Write len(keys) entries in their order.

    Raises BpfError: the kernel refused an entry; those before it have been written.
    """
    start = 0
    while start < len(keys):
        part = slice(start, start + _MAX_BATCH)
        done, code = _batch(Command.MAP_UPDATE_BATCH, fd, _write_attr(fd, keys[part], values[part]))
        start += done
        if code:
            error = BpfError(Command.MAP_UPDATE_BATCH.name, fd.subject, code)
            if not (_no_batch(error) or code == errno.ENOMEM):
                raise error
            for key, value in zip(keys[start:], values[start:], strict=True):
                map_update(fd, np.atleast_1d(key), np.atleast_1d(value))
            return


def delete_all(fd: FD, keys: Rows) -> None:
    """Delete entries; a key that is not there is skipped (the kernel's batch stops at it)."""
    start = 0
    while start < len(keys):
        done, code = _batch(
            Command.MAP_DELETE_BATCH, fd, _write_attr(fd, keys[start : start + _MAX_BATCH], None)
        )
        start += done
        if code == errno.ENOENT:
            start += 1
        elif code:
            error = BpfError(Command.MAP_DELETE_BATCH.name, fd.subject, code)
            if not (_no_batch(error) or code == errno.ENOMEM):
                raise error
            for key in keys[start:]:
                map_delete(fd, np.atleast_1d(key))
            return
