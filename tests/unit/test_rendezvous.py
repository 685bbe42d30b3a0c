# SPDX-License-Identifier: Apache-2.0
"""Balance, disruption and agreement of small sets of backends."""

from __future__ import annotations

from random import Random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.model import MAX_WEIGHT
from lb.plan.rendezvous import FULL_WEIGHT, SMALL_SET, divisors, seeds, weights_of

HASHES = np.random.default_rng(1).integers(0, 2**32, 100_000, dtype=np.uint64)


Choices = np.ndarray[tuple[int], np.dtype[np.intp]]


def choices(backends: list[int], weights: list[int] | None = None) -> Choices:
    """Return which of the backends (IPv4) each of the hashes leads to, as bpf/backend.h has it."""
    mixed = (np.array(seeds(4, backends), np.uint64)[:, np.newaxis] ^ HASHES) * np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ mixed >> np.uint64(32)) * np.uint64(0xD6E8FEB86659FD93)
    rows = np.arange(len(backends), dtype=np.uint64)[:, np.newaxis]
    if weights is not None:
        far = minus_log2(mixed >> np.uint64(32) | np.uint64(1))
        far = far * np.array(divisors(weights), np.uint64)[:, np.newaxis]
        nearest: Choices = np.argmax((~far & ~np.uint64(SMALL_SET - 1)) | rows, axis=0)
        return nearest
    found: Choices = np.argmax((mixed & ~np.uint64(SMALL_SET - 1)) | rows, axis=0)
    return found


def minus_log2(words: np.ndarray[tuple[int, int], np.dtype[np.uint64]]) -> Any:
    """minus_log2() of bpf/backend.h, which tests/packet/test_selection.py holds against the programs."""
    zeros = np.uint64(32) - np.frexp(words.astype(np.float64))[1].astype(np.uint64)
    x = np.uint64(2**32) - (words << zeros)
    cubic = np.uint64(220704563) + (np.uint64(1115207865) * x >> np.uint64(32))
    cubic = np.uint64(808837336) + (cubic * x >> np.uint64(32))
    cubic = np.uint64(1548487856) + (cubic * x >> np.uint64(32))
    return (zeros << np.uint64(32)) + (cubic * x >> np.uint64(30))


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


def test_the_same_seeds_for_ever() -> None:
    """Nodes of different versions must agree; if this fails, the hash has changed."""
    assert seeds(4, [0x0A000001 << 16 | 8080]) == [2835918821]
    assert seeds(6, [1 << 116 | 443]) == [801181003]


def test_families_and_ports_are_different_backends() -> None:
    found = seeds(4, [1 << 16 | 80, 2 << 16 | 80, 1 << 16 | 81]) + seeds(6, [1 << 16 | 80])
    assert len(set(found)) == 4


def test_the_logarithm_is_one() -> None:
    words = np.random.default_rng(2).integers(1, 2**32, (1, 100_000), dtype=np.uint64)
    words = np.concatenate([words, np.array([[1, 2**31 - 1, 2**31, 2**32 - 2**12]], np.uint64)], axis=1)
    true = -np.log2(words.astype(np.float64) / 2**32)
    found = minus_log2(words).astype(np.float64) / 2**32
    assert np.abs(found / true - 1).max() < 1 / 2000
    ordered = minus_log2(np.sort(words))[0].astype(np.int64)
    assert (np.diff(ordered) <= 0).all()


weights_of_a_set = st.lists(st.integers(1, MAX_WEIGHT), min_size=2, max_size=SMALL_SET)


@given(weights_of_a_set, st.randoms())
@settings(max_examples=40, deadline=None)
def test_shares_are_as_the_weights(weights: list[int], random: Random) -> None:
    """Within five standard deviations of chance, and a part in a thousand for the logarithm."""
    parts = np.array(weights) / sum(weights)
    found = np.bincount(choices(some_set(random, len(weights)), weights), minlength=len(weights))
    expected = parts * len(HASHES)
    allowed = 5 * np.sqrt(expected * (1 - parts)) + expected / 1000 + 5
    assert (np.abs(found - expected) < allowed).all()


@given(weights_of_a_set, st.data())
@settings(max_examples=40, deadline=None)
def test_only_what_a_weight_asks_for_changes_hands(weights: list[int], data: st.DataObject) -> None:
    """A heavier backend takes from each of the others, a lighter one gives; between others nothing moves."""
    backends = some_set(Random(3), len(weights))
    at = data.draw(st.integers(0, len(weights) - 1))
    heavier = list(weights)
    heavier[at] = data.draw(st.integers(weights[at], MAX_WEIGHT))
    before, after = choices(backends, weights), choices(backends, heavier)
    moved = before != after
    assert (after[moved] == at).all()
    expected = heavier[at] / sum(heavier) - weights[at] / sum(weights)
    assert abs(moved.mean() - expected) < 0.012


def test_equal_weights_choose_as_no_weights() -> None:
    for count in (2, 7, SMALL_SET):
        backends = some_set(Random(count), count)
        assert np.array_equal(choices(backends, [1] * count), choices(backends))


def test_a_backend_that_goes_leaves_the_others_theirs_whatever_their_weights() -> None:
    backends, weights = some_set(Random(4), 6), [100, 50, 200, 100, 10, 1000]
    before = choices(backends, weights)
    for gone in range(6):
        after = choices(backends[:gone] + backends[gone + 1 :], weights[:gone] + weights[gone + 1 :])
        stayed = before != gone
        assert np.array_equal(after[stayed], (before - (before > gone))[stayed])


def test_weights_are_read_back_as_they_were() -> None:
    every = list(range(1, 5001))
    assert weights_of(divisors(every)) == every
    assert divisors([1]) == [FULL_WEIGHT]
