# SPDX-License-Identifier: Apache-2.0
"""Tables that forget, as Python fills and reads their buckets."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.datapath.kernel.bpf import Rows
from lb.datapath.maps import cache
from lb.datapath.maps.cache import Entries
from lb.datapath.maps.layouts import FAMILIES, FLOW, FLOW_BUCKET, FLOW_KEY, SLOTS


def flows(version: int, count: int, until: list[int] | None = None) -> Entries:
    keys, values = np.zeros(count, FLOW_KEY[version]), np.zeros(count, FLOW[version])
    keys["sport"] = values["dport"] = 1 + np.arange(count)
    return Entries(keys, values, np.array(until or [0] * count, "u4"))


def ports(found: Entries) -> list[int]:
    assert (found.keys["sport"] == found.values["dport"]).all()
    return sorted(found.keys["sport"].tolist())


def put(version: int, count: int, new: Entries) -> Rows:
    buckets = np.zeros(count, FLOW_BUCKET[version])
    cache.put(buckets, *cache.places(cache.new_hashing(), new.keys, count), new)
    return buckets


@pytest.mark.parametrize("version", FAMILIES)
@given(st.integers(0, 3 * SLOTS), st.integers(1, 5))
def test_what_is_put_is_found_and_no_bucket_has_more_than_its_slots(
    version: int, count: int, buckets: int
) -> None:
    found = cache.entries(put(version, buckets, flows(version, count)))
    assert set(ports(found)) <= set(range(1, count + 1))
    assert len(set(ports(found))) == len(found.keys)
    if buckets == 1:
        assert len(found.keys) == min(count, SLOTS)


def test_in_a_full_bucket_those_stay_that_last_longest() -> None:
    """Times wrap around."""
    late = 0xFFFF_FFFE
    until = [late, 3, late + 1, 7, 5, late - 9, 1, 2, 9]
    found = cache.entries(put(4, 1, flows(4, len(until), until)))
    assert sorted(found.until.tolist()) == sorted([late + 1, 3, 7, 5, 1, 2, 9])


def test_keys_spread_over_the_buckets() -> None:
    at, tag = cache.places(cache.new_hashing(), flows(6, 10_000).keys, 100)
    assert np.bincount(at.astype("i8"), minlength=100).min() > 50  # 100 expected
    assert len(np.unique(tag)) > 8_000  # of 32,768
    assert (tag % 2 == 1).all()
