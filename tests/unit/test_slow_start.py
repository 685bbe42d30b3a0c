# SPDX-License-Identifier: Apache-2.0
"""Weights that rise: which endpoints are new, and with how much of their weight they count when."""

from __future__ import annotations

import math
from dataclasses import replace
from ipaddress import ip_address

from lb.model import Endpoint, EndpointSlice, ObjectKey, Service
from lb.plan.slow_start import SlowStart

WEB = ObjectKey("default", "web")
SERVICE = Service(WEB, slow_start=30)
A, B, C = (ip_address(f"10.0.0.{n}") for n in (1, 2, 3))


def slices(*ready: object, unready: tuple[object, ...] = ()) -> list[EndpointSlice]:
    endpoints = [Endpoint(one) for one in ready] + [Endpoint(one, ready=False) for one in unready]  # type: ignore[arg-type]
    return [EndpointSlice(ObjectKey("default", "web-1"), WEB, endpoints=tuple(endpoints))]


def test_a_new_endpoint_comes_to_its_share_in_ten_steps() -> None:
    slow = SlowStart()
    assert slow.percents(SERVICE, slices(A), 0.0, begun=False) == {}
    found = []
    now = 100.0
    while now < math.inf:
        found.append((now, dict(slow.percents(SERVICE, slices(A, B), now, begun=True))))
        now = slow.next_due()
        assert slow.due(now) in ({WEB}, set())
    assert found == [(100.0 + 3 * n, {B: 10 * (n + 1)} if n < 9 else {}) for n in range(10)]


def test_what_was_there_before_the_agent_is_not_new() -> None:
    slow = SlowStart()
    assert slow.percents(SERVICE, slices(A, B), 5.0, begun=False) == {}
    assert slow.percents(SERVICE, slices(A, B), 6.0, begun=True) == {}
    assert slow.next_due() == math.inf


def test_endpoints_that_are_equally_new_take_nothing_off_each_other() -> None:
    slow = SlowStart()
    assert slow.percents(SERVICE, slices(A, B), 0.0, begun=True) == {}
    assert slow.percents(SERVICE, slices(A, B, C), 4.0, begun=True) == {A: 20, B: 20, C: 10}


def test_one_that_comes_back_is_new_again() -> None:
    slow = SlowStart()
    slow.percents(SERVICE, slices(A, B), 0.0, begun=False)
    assert slow.percents(SERVICE, slices(A, unready=(B,)), 1.0, begun=True) == {}
    assert slow.percents(SERVICE, slices(A, B), 2.0, begun=True) == {B: 10}


def test_a_service_without_slow_start_costs_nothing_and_is_forgotten() -> None:
    slow = SlowStart()
    slow.percents(SERVICE, slices(A), 0.0, begun=False)
    slow.percents(SERVICE, slices(A, B), 0.0, begun=True)
    assert slow.percents(replace(SERVICE, slow_start=0), slices(A, B), 1.0, begun=True) == {}
    assert slow.next_due() == math.inf
    assert slow.percents(SERVICE, slices(A, B), 2.0, begun=True) == {}
