# SPDX-License-Identifier: Apache-2.0
"""Endpoints that move between slices, step by step with a clock of the test's own."""

from __future__ import annotations

import math
from dataclasses import replace
from ipaddress import ip_address

import pytest

from lb.kube.handover import TOGETHER_SECONDS, Handover
from lb.model import (
    Delete,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Event,
    ObjectKey,
    Protocol,
    Service,
    Upsert,
)

WEB = ObjectKey("shop", "web")
HTTP = (EndpointPort("http", Protocol.TCP, 8080),)
HOLD = 4 * TOGETHER_SECONDS


def piece(name: str, *hosts: int | Endpoint, ports: tuple[EndpointPort, ...] = HTTP) -> EndpointSlice:
    """Return a slice of web; endpoints are ready ones by the last byte of their address."""
    endpoints = tuple(
        host if isinstance(host, Endpoint) else Endpoint(ip_address(f"10.0.0.{host}")) for host in hosts
    )
    return EndpointSlice(ObjectKey("shop", name), WEB, ports, endpoints)


def gone(name: str) -> Delete:
    return Delete(EndpointSlice, ObjectKey("shop", name))


class Bench:
    """A Handover, its clock, and what the plan would see."""

    def __init__(self, *pieces: EndpointSlice) -> None:
        self.now = 0.0
        self.handover = Handover(lambda: self.now, HOLD)
        self.slices: dict[ObjectKey, EndpointSlice] = {}
        self.apply(*map(Upsert, pieces))

    def apply(self, *events: Event) -> list[set[int]]:
        """Apply events; return the hosts that are to be seen after each that is told."""
        return self._take(self.handover.apply(events))

    def at(self, now: float) -> list[set[int]]:
        """Let the clock be at now; return as apply does."""
        self.now = now
        return self._take(self.handover.due())

    def _take(self, events: list[Event]) -> list[set[int]]:
        seen = []
        for event in events:
            if isinstance(event, Upsert):
                assert isinstance(event.resource, EndpointSlice)
                self.slices[event.resource.key] = event.resource
            elif isinstance(event, Delete):
                del self.slices[event.key]
            seen.append(self.hosts())
        return seen

    def hosts(self) -> set[int]:
        return {int(e.address) & 255 for each in self.slices.values() for e in each.endpoints}


def test_loses_then_gains() -> None:
    bench = Bench(piece("a", 1, 2), piece("b", 3))
    assert bench.apply(Upsert(piece("a", 1))) == [{1, 2, 3}]
    assert bench.apply(Upsert(piece("b", 2, 3))) == [{1, 2, 3}, {1, 2, 3}]
    assert bench.slices == {each.key: each for each in (piece("a", 1), piece("b", 2, 3))}
    assert bench.handover.next_due() == math.inf


def test_gains_then_loses() -> None:
    bench = Bench(piece("a", 1, 2), piece("b", 3))
    assert bench.apply(Upsert(piece("b", 2, 3))) == [{1, 2, 3}]
    assert bench.apply(Upsert(piece("a", 1))) == [{1, 2, 3}]
    assert bench.handover.next_due() == math.inf


def test_a_slice_is_deleted_then_another_made() -> None:
    bench = Bench(piece("a", 1, 2))
    assert bench.apply(gone("a")) == [{1, 2}]
    assert bench.apply(Upsert(piece("b", 1, 2))) == [{1, 2}, {1, 2}]
    assert set(bench.slices) == {ObjectKey("shop", "b")}


def test_both_in_one_batch_are_told_gains_first() -> None:
    bench = Bench(piece("a", 1, 2), piece("b", 3))
    assert bench.apply(gone("a"), Upsert(piece("b", 1, 2, 3))) == [{1, 2, 3}, {1, 2, 3}]


def test_what_nobody_takes_up_goes_after_the_hold() -> None:
    bench = Bench(piece("a", 1, 2), piece("b", 3))
    bench.apply(Upsert(piece("a", 1)))
    assert bench.handover.next_due() == HOLD
    assert bench.at(HOLD / 2) == []
    assert bench.at(HOLD) == [{1, 3}]
    assert bench.slices[ObjectKey("shop", "a")] == piece("a", 1)


def test_what_the_only_slice_loses_goes_at_once() -> None:
    """The controller makes a slice before it takes endpoints from another."""
    bench = Bench(piece("a", 1, 2))
    assert bench.apply(Upsert(piece("a", 1))) == [{1}]
    assert bench.handover.next_due() == math.inf


@pytest.mark.parametrize(
    ("other", "held"),
    [
        (piece("b"), True),
        (piece("b", ports=(*HTTP, EndpointPort("metrics", Protocol.TCP, 9090))), False),
        (piece("b", Endpoint(ip_address("fd00::1"))), False),
        (replace(piece("b"), service=ObjectKey("shop", "other")), False),
    ],
    ids=["an empty one", "other ports", "the other family", "another Service"],
)
def test_which_slice_could_take_an_endpoint(other: EndpointSlice, *, held: bool) -> None:
    bench = Bench(piece("a", 1, 2), other)
    bench.apply(Upsert(piece("a", 1)))
    assert (2 in bench.hosts()) == held


def test_the_time_of_a_change_is_told_once_it_is_told_in_full() -> None:
    bench = Bench(replace(piece("a", 1, 2), triggered=5.0), piece("b", 3))
    key = ObjectKey("shop", "a")
    assert bench.slices[key].triggered == 5.0
    bench.apply(Upsert(replace(piece("a", 1), triggered=9.0)))
    assert bench.slices[key].triggered == 0.0
    bench.at(HOLD)
    assert bench.slices[key].triggered == 9.0


def test_a_deleted_slice_goes_after_the_hold() -> None:
    bench = Bench(piece("a", 1))
    bench.apply(gone("a"))
    assert bench.hosts() == {1}
    assert bench.at(HOLD) == [set()]
    assert bench.slices == {}


def test_each_endpoint_has_its_own_time() -> None:
    bench = Bench(piece("a", 1, 2, 3), piece("b", 4))
    bench.apply(Upsert(piece("a", 1, 2)))
    bench.now = 0.06
    bench.apply(Upsert(piece("a", 1)))
    assert bench.at(HOLD) == [{1, 2, 4}]
    assert bench.at(0.06 + HOLD + TOGETHER_SECONDS) == [{1, 4}]


def test_an_endpoint_that_comes_back_is_held_no_longer() -> None:
    bench = Bench(piece("a", 1, 2), piece("b", 3))
    bench.apply(Upsert(piece("a", 1)))
    assert bench.hosts() == {1, 2, 3}
    bench.apply(Upsert(piece("a", 1, 2)))
    assert bench.slices[ObjectKey("shop", "a")] == piece("a", 1, 2)
    assert bench.handover.next_due() == math.inf


def test_an_empty_slice_that_is_changed_holds_on() -> None:
    bench = Bench(piece("a", 1, 2), piece("b", 3))
    bench.apply(Upsert(piece("a")))
    bench.apply(Upsert(piece("a")))
    assert bench.hosts() == {1, 2, 3}


def test_conditions_change_at_once() -> None:
    bench = Bench(piece("a", 1))
    unready = Endpoint(ip_address("10.0.0.1"), ready=False, terminating=True)
    bench.apply(Upsert(piece("a", unready)))
    assert bench.slices == {ObjectKey("shop", "a"): piece("a", unready)}


def test_an_endpoint_that_takes_no_connections_goes_at_once() -> None:
    dead = Endpoint(ip_address("10.0.0.2"), ready=False, serving=False, terminating=True)
    bench = Bench(piece("a", 1, dead))
    assert bench.apply(Upsert(piece("a", 1))) == [{1}]


def test_the_same_address_with_another_port_is_another_endpoint() -> None:
    other = piece("b", 2, ports=(EndpointPort("http", Protocol.TCP, 9090),))
    bench = Bench(piece("a", 1, 2), other, piece("c", 3))
    bench.apply(Upsert(piece("a", 1)))
    assert [len(each.endpoints) for each in bench.slices.values()] == [2, 1, 1]


def test_a_slice_whose_ports_change_holds_nothing() -> None:
    bench = Bench(piece("a", 1, 2))
    other = piece("a", 1, ports=(EndpointPort("http", Protocol.TCP, 9090),))
    bench.apply(Upsert(other))
    assert bench.slices == {other.key: other}


def test_everything_else_passes_first() -> None:
    bench = Handover(lambda: 0.0, HOLD)
    service = Upsert(Service(WEB))
    a = Upsert(piece("a", 1))
    assert bench.apply([a, service, Delete(Service, WEB)]) == [service, Delete(Service, WEB), a]
