# SPDX-License-Identifier: Apache-2.0
"""Consistent hashing for large sets: the lookup table that a new connection's hash picks its backend from.

The algorithm is Maglev's (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
NSDI 2016, section 3.4): every backend has its own permutation of the rows, made from two hashes of its
identity, and the backends take turns at claiming the next row of theirs that is still free. The backends'
shares then differ by one row at most, and when a backend goes hardly any rows but its own change hands.

Weights: each round, a backend gets as much of a turn as its weight is of the greatest one, and claims a row
when that makes a whole one. Everybody has a turn in the first round, so nobody is left out; the size of the
table depends on the number of backends alone, so that a change of weights moves few rows.

Nothing but identities and weights goes in, so every node computes the same table.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import xxhash
from numpy.typing import NDArray

Identity = tuple[int, int, int]
"""(IP version, address as a number, port); see :attr:`lb.plan.types.Backend.identity`."""

ROWS_PER_BACKEND = 100
"""At least this many rows for each backend: the paper's bound for shares that differ by 1 % at most."""

_SIZES = (
    251, 509, 1021, 2039, 4093, 8191, 16381, 32749, 65521, 131071, 262139, 524287, 1048573, 2097143,
)  # fmt: skip
"""Primes just below powers of two: a Service that grows changes its table's size once per doubling."""

_SEED = 0x6C62_6374_6C31  # part of the algorithm: another seed on one node, and nodes disagree


def table_size(backends: int) -> int:
    """Return the number of rows for so many backends: 0 for none, 1 for one, else a prime.

    Beyond 20971 backends the largest prime has fewer than :data:`ROWS_PER_BACKEND` rows for each.

    Raises ValueError: more backends than the largest table has rows.
    """
    if backends <= 1:
        return backends
    if backends > _SIZES[-1]:
        raise ValueError(f"{backends} backends, but no lookup table has more than {_SIZES[-1]} rows")
    return next((size for size in _SIZES if size >= backends * ROWS_PER_BACKEND), _SIZES[-1])


def lookup_table(identities: Iterable[Identity], weights: Sequence[int] = ()) -> NDArray[np.uint32]:
    """Return the table for a set of backends.

    Row i holds an index into the sorted identities. Its length is :func:`table_size` of their number.
    weights: one for each of the sorted identities, at least 1; none: all are equal, and the identities may
    come in any order and more than once.
    """
    ordered = sorted(set(identities))
    size = table_size(len(ordered))
    if size <= 1:
        return np.zeros(size, np.uint32)
    hashes = [_hashes(identity) for identity in ordered]
    rows = _weighted(size, hashes, weights) if weights else _populate(size, hashes)
    return np.array(rows, np.uint32)


@lru_cache(maxsize=1 << 17)
def _hashes(identity: Identity) -> tuple[int, int]:
    """Return the two independent 64-bit hashes of an identity."""
    version, address, port = identity
    digest = xxhash.xxh3_128_intdigest(
        version.to_bytes(1, "big") + address.to_bytes(16, "big") + port.to_bytes(2, "big"), _SEED
    )
    return digest >> 64, digest & 0xFFFF_FFFF_FFFF_FFFF


def _populate(size: int, hashes: list[tuple[int, int]]) -> list[int]:
    """Let the backends take turns; size is a prime, so that every skip visits every row."""
    table = [-1] * size
    # A backend that has walked to row r of its permutation goes on at r + skip, modulo the size.
    skips = [second % (size - 1) + 1 for _, second in hashes]
    rows = [first % size for first, _ in hashes]
    turns = range(len(hashes))
    free = size
    while True:
        for backend in turns:
            row = rows[backend]
            skip = skips[backend]
            while table[row] >= 0:
                row += skip
                if row >= size:
                    row -= size
            table[row] = backend
            rows[backend] = row
            free -= 1
            if not free:
                return table


def _weighted(size: int, hashes: list[tuple[int, int]], weights: Sequence[int]) -> list[int]:
    """Do the same with turns by weight."""
    table = [-1] * size
    skips = [second % (size - 1) + 1 for _, second in hashes]
    rows = [first % size for first, _ in hashes]
    whole = max(weights)
    earned = [whole - weight for weight in weights]
    free = size
    while True:
        for backend, weight in enumerate(weights):
            earned[backend] += weight
            if earned[backend] < whole:
                continue
            earned[backend] -= whole
            row = rows[backend]
            while table[row] >= 0:
                row = (row + skips[backend]) % size
            table[row] = backend
            rows[backend] = row
            free -= 1
            if not free:
                return table
