# SPDX-License-Identifier: Apache-2.0
"""Packets that go nowhere are told unasked: dropped, unanswered, or kept from the programs by others."""

from __future__ import annotations

import logging
from ipaddress import ip_address

import numpy as np
import pytest

from lb.datapath.maps import layouts
from lb.datapath.maps.layouts import REASONS, REASONS_PER_HOOK, BackendStateCode, pack_address
from lb.served.losses import HOLD_SECONDS, LASTING, LEAST_STRAYS, LOOK_SECONDS, NEXT, WINDOW_SECONDS, Losses
from tests.fake_maps import FakeMaps

NAMES = [name for name, _ in REASONS]
SLOT = 3


class Bench:
    """Maps in memory, a clock, and what the uplinks have counted."""

    def __init__(self) -> None:
        self.now, self.arrived = 1000.0, 0
        self.maps = FakeMaps()
        self.losses = Losses(self.maps, lambda: self.arrived, lambda: self.now)
        self.losses.look()

    def count(self, reason: str, packets: int, hook: int = 0) -> None:
        keys = np.array([hook * REASONS_PER_HOOK + NAMES.index(reason)], "u4")
        value = self.maps.some("reasons", keys)
        value["packets"][0, 0] += packets
        self.maps.update("reasons", keys, value)

    def connections(self, opened: int, unanswered: int = 0, refused: int = 0) -> None:
        row = self.maps.array("connections4")[SLOT]
        row["opened"] += opened
        row["unanswered"] += unanswered
        row["refused"] += refused

    def look(self, times: int = 1) -> list[str]:
        for _ in range(times):
            self.now += LOOK_SECONDS
            self.losses.look()
        return [one.text for one in self.losses.problems()]


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_every_reason_is_one_of_the_programs() -> None:
    assert set(NEXT) <= set(NAMES)


def test_a_full_table_is_told_at_once_and_for_five_minutes(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.count("FLOWS_FULL", 7)
    assert bench.look() == ["7 packets lost, FLOWS_FULL: no room for a flow entry"]
    bench.count("FLOWS_FULL", 5)
    assert bench.look() == ["12 packets lost, FLOWS_FULL: no room for a flow entry"]
    assert "raise --limits-flows" in bench.losses.problems()[0].next
    bench.look(int(HOLD_SECONDS / LOOK_SECONDS) - 1)
    assert bench.losses.problems()
    assert bench.look() == []
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"], "once, and its end"


def test_what_was_dropped_before_the_start_is_no_news() -> None:
    bench = Bench()
    bench.count("FLOWS_FULL", 7)
    losses = Losses(bench.maps, lambda: 0, lambda: bench.now)
    losses.look()
    assert losses.problems() == ()


def test_a_route_that_is_missing_is_told_when_it_lasts(bench: Bench) -> None:
    """A pod that goes costs a few packets without a route."""
    for _ in range(LASTING - 1):
        bench.count("NO_ROUTE", 2)
        assert bench.look() == []
    assert bench.look() == []
    for _ in range(LASTING):
        bench.count("NO_ROUTE", 2)
        told = bench.look()
    assert len(told) == 1
    assert "lost, NO_ROUTE: the FIB has no route to the backend or client" in told[0]
    assert "ip route get" in bench.losses.problems()[0].next


def test_drops_that_a_service_asks_for_are_no_problem(bench: Bench) -> None:
    for _ in range(LASTING + 1):
        bench.count("SOURCE_NOT_ALLOWED", 100)
        bench.count("NO_LOCAL_ENDPOINT", 100)
        assert bench.look() == []


@pytest.mark.parametrize("failed", ["unanswered", "refused"])
def test_a_backend_that_answers_nobody_is_named_with_its_service(bench: Bench, failed: str) -> None:
    names = np.zeros(1, layouts.SERVICE_NAME)
    names["namespace"], names["name"] = b"shop", b"web"
    bench.maps.update("services", np.array([9], "u4"), names)
    slot = bench.maps.array("backends4")[SLOT]
    slot["address"] = pack_address(ip_address("10.0.0.7"))
    slot["port"], slot["state"], slot["service"] = 8080, BackendStateCode.ACTIVE, 9
    windows = int(WINDOW_SECONDS / LOOK_SECONDS)
    bench.connections(100, **{failed: 1})
    assert bench.look(windows) == []  # what it did before is not known
    bench.connections(10, **{failed: 10})
    assert bench.look(windows) == [
        "connections to Service shop/web are refused or unanswered: 10.0.0.7:8080 (10 of 10)"
    ]
    assert "lbctl explain shop/web" in bench.losses.problems()[0].next
    bench.connections(10, **{failed: 3})
    assert bench.look(windows) == [], "seven of ten were answered"


def test_packets_that_no_program_sees_are_told(bench: Bench) -> None:
    hook = [name for name, _ in layouts.HOOKS].index("TC_UPLINK_IN")
    for _ in range(3):
        bench.arrived += LEAST_STRAYS
        bench.count("NOT_VIP", 1, hook)
        assert bench.look() == []
    bench.arrived += LEAST_STRAYS
    bench.look()
    bench.arrived += LEAST_STRAYS
    (told,) = bench.look()
    assert "came in by the uplinks within 30 s, and the programs have seen none" in told
    bench.count("NOT_VIP", 1, hook)
    assert bench.look() == []
