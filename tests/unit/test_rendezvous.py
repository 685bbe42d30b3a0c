# SPDX-License-Identifier: Apache-2.0
"""Balance, disruption and agreement of small sets of backends."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest

from lb.plan.rendezvous import SMALL_SET, weights

HASHES = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint64)


def choices(backends: list[int]) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Return which of the backends (IPv4) each of the hashes leads to, as bpf/backend.h has it."""
    mixed = (np.array(weights(4, backends), np.uint64)[:, np.newaxis] ^ HASHES) * np.uint64(
        0x9E3779B97F4A7C15
    )
    mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    rows = np.arange(len(backends), dtype=np.uint64)[:, np.newaxis]
    found: np.ndarray[tuple[int], np.dtype[np.intp]] = np.argmax(
        (mixed & ~np.uint64(SMALL_SET - 1)) | rows, axis=0
    )
    return found


def some_set(random: Random, count: int) -> list[int]:
    """Neighbours, as the pods of a node are, and one port."""
    first = random.getrandbits(31)
    return [first + i << 16 | 8080 for i in range(count)]


@pytest.mark.parametrize("count", [2, 3, 10, SMALL_SET])
def test_shares_are_even(count: int) -> None:
    """Within five standard deviations of what even chance gives, in each of many sets."""
    random = Random(count)
    expected = len(HASHES) / count
    for _ in range(50):
        shares = np.bincount(choices(some_set(random, count)), minlength=count)
        assert np.abs(shares - expected).max() < 5 * (expected * (1 - 1 / count)) ** 0.5


def test_only_the_connections_of_a_backend_that_goes_change_hands() -> None:
    random = Random(1)
    for count in range(2, SMALL_SET + 1):
        backends = some_set(random, count)
        gone = random.randrange(count)
        before = choices(backends)
        after = choices(backends[:gone] + backends[gone + 1 :])
        stayed = before != gone
        assert np.array_equal(after[stayed], (before - (before > gone))[stayed])
        assert len(set(after[~stayed].tolist())) == count - 1


def test_what_a_backend_that_goes_leaves_is_spread_evenly() -> None:
    backends = some_set(Random(2), 11)
    before, after = choices(backends), choices(backends[:10])
    shares = np.bincount(after[before == 10], minlength=10)
    assert np.abs(shares - shares.mean()).max() < 5 * shares.mean() ** 0.5


def test_the_same_weights_for_ever() -> None:
    """Nodes of different versions must agree; if this fails, the hash has changed."""
    assert weights(4, [0x0A000001 << 16 | 8080]) == [2835918821]
    assert weights(6, [1 << 116 | 443]) == [801181003]


def test_families_and_ports_are_different_backends() -> None:
    found = weights(4, [1 << 16 | 80, 2 << 16 | 80, 1 << 16 | 81]) + weights(6, [1 << 16 | 80])
    assert len(set(found)) == 4
