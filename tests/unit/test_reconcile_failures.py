# SPDX-License-Identifier: Apache-2.0
"""The reconciler against fake maps: what it does when a map is full, or refuses a write."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from lb.config import Limits
from lb.datapath.maps.layouts import FAMILIES, NODE_NONE, BackendStateCode
from lb.errors import BpfError, CapacityError
from lb.plan.types import ServicePlan, VipKind
from tests.unit.plan_builders import backend, port_plan, service_plan, vip_key
from tests.unit.reconcile_bench import OTHER_VIP, SMALL, VIP, A, B, Bench, C, web


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(version=request.param)


@pytest.mark.parametrize(
    ("limits", "resource"),
    [
        (replace(SMALL, vips=1), "vips4"),
        (replace(SMALL, backends=3), "backends4"),
        (replace(SMALL, table_rows=32), "tables"),
        (replace(SMALL, services=1), "services"),
    ],
)
def test_a_full_map_costs_one_service_and_leaves_no_trace_of_it(limits: Limits, resource: str) -> None:
    bench = Bench(limits)
    first = web(A, B)
    second = service_plan("second", port_plan([OTHER_VIP], [A, B]))
    bench.apply(first)
    third = service_plan("third", port_plan([], []))
    report = bench.sync({second.key: second, third.key: third})
    error = report.errors[second.key]
    assert isinstance(error, CapacityError)
    assert error.resource == resource
    assert report.errors.keys() == {second.key}
    assert bench.reconciler.known() == {first.key}
    assert bench.vips() == [vip_key(VIP)]
    assert len(bench.maps.read("services")[0]) == 1
    assert np.count_nonzero(bench.maps.array(bench.name("backends"))["state"]) == 2
    bench.sync({first.key: None})
    bench.wait()
    assert not bench.sync({}).errors
    assert bench.reconciler.known() == {second.key}


def test_what_a_service_without_room_had_taken_the_next_one_gets_at_once() -> None:
    """Nothing was written of it, so nothing has to rest."""
    bench = Bench(replace(SMALL, backends=3))  # slot 0 is nobody's
    wide = service_plan("a-wide", port_plan([VIP], [A, B, C]))
    report = bench.sync(
        {wide.key: wide, (small := service_plan("small", port_plan([OTHER_VIP], [A, B]))).key: small}
    )
    assert report.errors.keys() == {wide.key}
    assert bench.reconciler.known() == {small.key}
    bench.check(exact=[small])


def test_a_full_vip_map_takes_back_the_vips_that_fitted() -> None:
    bench = Bench(replace(SMALL, vips=3))
    bench.apply(web(A))
    wide = service_plan("wide", port_plan(["10.96.0.7:80", "10.96.0.8:80", "10.96.0.9:80"], [A]))
    report = bench.sync({wide.key: wide})
    assert isinstance(report.errors[wide.key], CapacityError)
    assert bench.vips() == [vip_key(VIP)]


@pytest.mark.parametrize("name", ["services", "vips"])
def test_a_refused_write_is_tried_service_by_service(bench: Bench, name: str) -> None:
    plans = [web(A), service_plan("b", port_plan([OTHER_VIP], [B]))]
    bench.maps.fail(bench.name(name) if name == "vips" else name, times=2)
    report = bench.sync({plan.key: plan for plan in plans})
    assert report.errors.keys() == {plans[0].key}
    assert isinstance(report.errors[plans[0].key], BpfError)
    assert bench.reconciler.known() == {plans[1].key}
    assert bench.apply() != []
    assert bench.reconciler.known() == {plans[0].key, plans[1].key}


@pytest.mark.parametrize("times", [1, 2], ids=["undone", "undoing refused too"])
def test_a_refused_change_keeps_what_was(bench: Bench, times: int) -> None:
    bench.apply(web(A, B))
    before = bench.row()
    bench.maps.fail(bench.name("vips"), times)
    report = bench.sync({web().key: web(A, C)})
    assert report.errors.keys() == {web().key}
    assert bench.row() == before
    assert set(bench.choices(before.inside)) == {bench.place(A), bench.place(B)}
    assert bench.slot(B)["state"] == BackendStateCode.ACTIVE
    bench.wait()
    bench.apply()
    assert len(set(bench.choices(bench.row().inside))) == 2
    assert bench.slot(C)["state"] == BackendStateCode.ACTIVE


def test_source_ranges_that_can_be_neither_written_nor_taken_back_are_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    ranges = ["10.0.0.0/8"]
    plan = service_plan("web", port_plan([VIP], [A], kind=VipKind.LOAD_BALANCER, source_ranges=ranges))
    bench.maps.fail(bench.name("source_ranges"))
    bench.maps.fail(bench.name("source_ranges"), operation="delete")
    assert bench.sync({plan.key: plan}).errors.keys() == {plan.key}
    assert f"Service {plan.key}: source ranges are in an unknown state" in caplog.text
    assert not bench.sync({}).errors
    bench.check(exact=[plan])


def test_a_refused_deletion_is_tried_again(bench: Bench) -> None:
    bench.apply(web(A))
    bench.maps.fail(bench.name("vips"), operation="delete")
    assert bench.sync({web().key: None}).errors.keys() == {web().key}
    assert bench.slot(A)["state"] == BackendStateCode.ACTIVE
    bench.maps.fail("services", operation="delete")
    assert bench.sync({}).errors.keys() == {web().key}
    assert bench.reconciler.known() == {web().key}
    assert not bench.sync({}).errors
    assert bench.reconciler.known() == set()
    assert len(bench.maps.read("services")[0]) == 0


def test_a_port_left_over_from_a_failure_gets_its_name_at_the_next_try(bench: Bench) -> None:
    """The new port's name is refused, and so is the clean-up that would have dropped the port."""
    bench.apply(service_plan("web", port_plan([OTHER_VIP], [], name="old")))
    moved, heir = web(A), service_plan("heir", port_plan([OTHER_VIP], []))
    bench.maps.fail("services", times=2)
    bench.maps.fail("services", operation="delete")
    report = bench.sync({moved.key: moved, heir.key: heir})
    assert report.errors.keys() == {moved.key}
    bench.apply()
    bench.check(exact=[moved, heir])


def test_names_of_nodes_are_not_worth_a_service(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.maps.fail("nodes")
    plan = service_plan("web", port_plan([VIP], [backend(A, "node2")]))
    bench.apply(plan)
    assert "names of nodes not written" in caplog.text
    assert bench.apply() == [("update", "nodes")]


def test_node_names_that_nobody_needs_make_room(bench: Bench) -> None:
    """The map holds 16384 names, two of them reserved."""

    def plan(turn: int) -> ServicePlan:
        nodes = (backend(f"10.{turn}.{n >> 8}.{n & 255}:80", f"node-{turn}-{n}") for n in range(8200))
        return service_plan("web", port_plan([VIP], [A], draining=nodes))

    bench.apply(plan(0))
    bench.apply(plan(1))
    last = "10.1.32.7:80"
    assert bench.slot(last)["node"] == NODE_NONE
    bench.apply(plan(1))
    names = dict(zip(*(rows.tolist() for rows in bench.maps.read("nodes")), strict=True))
    assert names[int(bench.slot(last)["node"])] == (b"node-1-8199",)
