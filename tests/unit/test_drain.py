# SPDX-License-Identifier: Apache-2.0
"""``lbctl node drain``: the mark, what counts as a connection from outside, and when waiting ends."""

from __future__ import annotations

from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lb.cli.node import render, status_line, wait
from lb.datapath.maps.layouts import (
    ANNOUNCED,
    ANNOUNCED_KEY,
    FLOW,
    FLOW_KEY,
    Direction,
    FlowPath,
    FlowState,
    pack_address,
)
from lb.datapath.view.outside import Remaining, answered, remaining
from lb.plan.types import VipKind
from lb.rundir import RunDir
from lb.served.drain import DrainMark
from tests.unit.plan_builders import address_in, port_plan, service_plan, vip_key
from tests.unit.reconcile_bench import VIP, A, Bench

OUTER = "203.0.113.10:80"
NOW = 100 * 10**9


def test_the_mark_is_there_until_it_is_taken_away(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    mark = DrainMark(run_dir)
    assert mark.since() is None
    mark.put()
    since = mark.since()
    mark.put()
    assert (DrainMark(RunDir("n1", tmp_path)).since(), mark.is_set()) == (since, True)
    assert not DrainMark(RunDir("n2", tmp_path)).is_set()
    mark.take_away()
    mark.take_away()
    assert not mark.is_set()
    mark.put()
    run_dir.remove()
    assert not mark.is_set()


@pytest.mark.parametrize("version", [4, 6])
def test_connections_from_outside_are_those_through_addresses_that_it_uses(version: int) -> None:
    bench = Bench(version=version)
    bench.apply(
        service_plan("web", port_plan([OUTER], [A], kind=VipKind.LOAD_BALANCER)),
        service_plan("inner", port_plan([VIP], [A])),
    )
    ids = {name: number for number, name in enumerate(("web", "inner"), 1)}

    def flow(
        number: int,
        vip: str = OUTER,
        state: FlowState = FlowState.ESTABLISHED,
        path: FlowPath = FlowPath.FORWARD,
        direction: Direction = Direction.FORWARD,
        seconds: int = 2,
    ) -> None:
        to = vip_key(vip)
        key, value = np.zeros(1, FLOW_KEY[version]), np.zeros(1, FLOW[version])
        key["dst"] = pack_address(address_in(version, to.address))
        key["sport"], key["dport"], key["protocol"], key["direction"] = number, to.port, 6, direction
        value["service"] = ids["web" if vip == OUTER else "inner"]
        value["state"], value["path"], value["last_seen"] = state, path, NOW - seconds * 10**9
        bench.maps.update(f"flows{version}", key, value)

    settings = bench.maps.array(f"settings{version}")
    for name in ("tcp_syn_ns", "tcp_established_ns", "tcp_closing_ns"):
        settings[name] = 60 * 10**9
    flow(1)
    flow(2, state=FlowState.NEW, path=FlowPath.STACK, seconds=5)
    flow(3, state=FlowState.CLOSED)
    flow(4, direction=Direction.REPLY)
    flow(5, vip=VIP)
    flow(6, path=FlowPath.HOST)
    flow(7, seconds=61)
    assert remaining(bench.maps, NOW) == [Remaining("default/web", 2, 2.0)]


@pytest.mark.parametrize("version", [4, 6])
def test_an_address_is_answered_for_until_its_entry_ends(version: int) -> None:
    bench = Bench(version=version)
    addresses = [address_in(version, IPv4Address(f"203.0.113.{number}")) for number in (10, 11)]
    for address, until_ns in zip(addresses, (NOW + 1, NOW), strict=True):
        key, value = np.zeros(1, ANNOUNCED_KEY[version]), np.zeros(1, ANNOUNCED)
        key["address"], key["ifindex"], value["until_ns"] = pack_address(address), 3, until_ns
        bench.maps.update(f"announced{version}", key, value)
    assert answered(bench.maps, NOW) == {str(addresses[0])}


class Looks:
    """What is found one look after the other, and a clock that goes on with each sleep."""

    def __init__(self, *found: tuple[int, list[str] | None]) -> None:
        self.left = list(found)
        self.now = 0.0
        self.said: list[str] = []

    def look(self) -> dict[str, Any]:
        connections, told = self.left.pop(0) if len(self.left) > 1 else self.left[0]
        return {"connections": connections, "told": told, "services": []}

    def sleep(self, seconds: float) -> None:
        self.now += seconds

    def wait(self, until: float | None) -> bool:
        return wait(self.look, until, self.said.append, lambda: self.now, self.sleep)[1]


def test_waiting_ends_when_nothing_has_come_for_a_while() -> None:
    looks = Looks((2, ["v"]), (0, ["v"]), (0, []), (0, []), (1, []), (0, []), (0, []), (0, None), (0, []))
    assert looks.wait(None)
    assert looks.now == 10.0
    assert looks.said[0] == "2 connections left; the network is still told of 1 address"


def test_waiting_is_given_up_when_its_time_is_over() -> None:
    looks = Looks((1, []))
    assert not looks.wait(12.0)
    assert looks.now == 12.0
    assert looks.said == ["1 connection left"]


def test_what_is_told_as_text() -> None:
    found = {
        "instance": "n1",
        "drained_since": "2026-01-01T00:00:00+00:00",
        "told": [],
        "connections": 3,
        "services": [{"service": "default/web", "connections": 3, "quiet_seconds": 4.2}],
    }
    assert status_line(found) == "3 connections left"
    assert "is not known" in status_line({**found, "told": None})
    lines = render(found).splitlines()
    assert lines[0] == "n1: drained; 3 connections left"
    assert lines[-1].split() == ["default/web", "3", "4", "s"]
    assert render({**found, "drained_since": None, "services": [], "connections": 0}) == (
        "n1: in service; 0 connections left\n"
    )
