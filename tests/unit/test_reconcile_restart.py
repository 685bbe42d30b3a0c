# SPDX-License-Identifier: Apache-2.0
"""The reconciler over restarts, crashes, and any history of plans and failures."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lb.config import Limits
from lb.datapath.maps.layouts import FAMILIES
from lb.datapath.sync.ledger import VipRow, read_vips
from lb.datapath.sync.quarantine import QUARANTINE_SECONDS
from lb.datapath.sync.tables import table_rows
from lb.model import TrafficPolicy
from lb.plan.types import ServicePlan, Vip, VipKey, VipKind
from tests.fake_maps import FakeMaps
from tests.unit.plan_builders import (
    NODE,
    RememberedClaims,
    backend,
    plan_in,
    port_plan,
    service_plan,
    vip_key,
)
from tests.unit.reconcile_bench import OTHER_VIP, SMALL, VIP, A, B, Bench, C, Plans, check, web


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(version=request.param)


def test_recovered_the_same_plans_write_nothing(bench: Bench) -> None:
    plans = [
        service_plan(
            "web", port_plan([VIP, OTHER_VIP], [backend(A, NODE), backend(B, "node2")], draining=[C])
        ),
        service_plan("empty", port_plan(["10.96.0.3:80"], [])),
    ]
    bench.apply(*plans)
    ids = bench.row().service, int(bench.slot(A)["generation"])
    bench.start()
    assert bench.reconciler.known() == {plan.key for plan in plans}
    assert bench.apply(*plans) == []
    assert (bench.row().service, int(bench.slot(A)["generation"])) == ids
    bench.apply(web(A, C))
    assert bench.row().service == ids[0]


@pytest.mark.parametrize("version", FAMILIES)
def test_recovered_a_service_without_endpoints_has_no_rows_to_give_back(version: int) -> None:
    """The first row is another Service's, which goes, too: each row is handed out once."""
    bench = Bench(SMALL, version)
    first, empty = web(A), service_plan("empty", port_plan([OTHER_VIP], []))
    bench.apply(first, empty)
    assert bench.row().inside.offset == 0
    bench.start()
    bench.apply(service_plan("empty", port_plan([OTHER_VIP], [B])))
    bench.wait()
    bench.sync({first.key: None})
    bench.wait()
    later = [service_plan(f"later{n}", port_plan([f"10.96.1.{n}:80"], [A])) for n in range(3)]
    bench.apply(*later)
    bench.check(exact=[service_plan("empty", port_plan([OTHER_VIP], [B])), *later])


WRITES_OF_THAT_SYNC = 14


class CrashError(Exception):
    """The agent is killed."""


@pytest.mark.parametrize("writes", range(WRITES_OF_THAT_SYNC + 1))
def test_a_crash_anywhere_is_cleaned_up(bench: Bench, writes: int) -> None:
    """The agent dies before the nth write of a sync that adds one Service, changes one and deletes one."""
    limited: dict[str, Any] = {"kind": VipKind.LOAD_BALANCER, "source_ranges": ["10.0.0.0/8", "192.0.2.0/24"]}
    gone = service_plan("gone", port_plan(["10.96.0.3:80"], [A, C], **limited))
    backends = [backend(A, NODE), backend(B, "node2")]
    added = service_plan("added", port_plan(["10.96.0.4:80"], backends, **limited))
    plans: Plans = {web().key: web(A, C), gone.key: None, added.key: added}
    bench.apply(web(A, B), gone)
    bench.maps.writes.clear()

    def die() -> None:
        check(bench.maps)
        if len(bench.maps.writes) == writes:
            raise CrashError

    bench.maps.before_write = die
    if writes < WRITES_OF_THAT_SYNC:
        with pytest.raises(CrashError):
            bench.sync(plans)
    else:
        bench.sync(plans)
        assert len(bench.maps.writes) == WRITES_OF_THAT_SYNC
    bench.maps.before_write = lambda: check(bench.maps)
    bench.start()
    assert not bench.sync(plans).errors
    bench.check(exact=[web(A, C), added])
    bench.start()
    assert bench.sync(plans).writes == 0


def test_damage_is_repaired(bench: Bench) -> None:
    """A VIP whose port has no name, a slot used twice, rows that name no backend."""
    bench.apply(web(A, B), service_plan("nameless", port_plan([OTHER_VIP], [A])))
    nameless = bench.row(OTHER_VIP)
    maps = bench.maps
    maps.delete("services", np.array([nameless.service], "u4"))
    slots = maps.array(bench.name("backends"))
    slots[100] = slots[int(table_rows(maps)[bench.row().inside.offset])]
    table_rows(maps)[bench.row().inside.offset] = 99
    bench.start()
    strangers = bench.reconciler.known() - {web().key}
    assert len(strangers) == 1
    report = bench.sync({web().key: web(A, B), **dict.fromkeys(strangers)})
    assert not report.errors
    bench.check(exact=[web(A, B)])


class InFlight:
    """Packets that read a VIP at some instant of a sync, and go on to read its table at any later one."""

    def __init__(self, maps: FakeMaps) -> None:
        self._maps = maps
        self._seen: dict[tuple[VipKey, VipRow], list[tuple[Any, ...]]] = {}

    def look(self) -> None:
        check(self._maps)
        for vip, row in read_vips(self._maps).items():
            self._seen.setdefault((vip, row), self._backends(vip, row))
        for (vip, row), backends in self._seen.items():
            assert self._backends(vip, row) == backends

    def _backends(self, vip: VipKey, row: VipRow) -> list[tuple[Any, ...]]:
        slots = self._maps.array(f"backends{vip.address.version}")
        tables = table_rows(self._maps)
        regions = (row.inside, row.outside)
        ids = np.concatenate([tables[region.offset : region.offset + region.size] for region in regions])
        return slots[["address", "port", "service"]][ids].tolist()  # type: ignore[no-any-return]


WHOLE = "10.96.0.1"
whole_addresses = st.sampled_from([(), (Vip(vip_key(WHOLE), VipKind.LOAD_BALANCER),)])
vip_texts = st.sets(st.sampled_from([VIP, OTHER_VIP, "192.0.2.1:80"]), max_size=2)
range_texts = st.sets(st.sampled_from(["10.0.0.0/8", "10.0.0.0/16", "192.0.2.1/32", "0.0.0.0/0"]), max_size=3)
backend_texts = st.sets(st.sampled_from([A, B, C, "10.0.1.4:80"]), max_size=3)


@st.composite
def service_plans(draw: st.DrawFn) -> ServicePlan:
    offered, affinity = draw(backend_texts), draw(st.sampled_from([0, 60]))
    draining = draw(backend_texts) - offered
    ranges, policies = draw(range_texts), draw(st.tuples(*[st.sampled_from(TrafficPolicy)] * 2))
    ports = [
        port_plan(
            draw(vip_texts),
            offered,
            draining=draining,
            affinity_seconds=affinity,
            kind=VipKind.LOAD_BALANCER,
            inside=policies[0],
            outside=policies[1],
            source_ranges=ranges,
        )
    ]
    if draw(st.booleans()):
        vips = {f"10.96.9.{draw(st.integers(1, 2))}:443"} | draw(st.sets(st.just(WHOLE)))
        ports.append(port_plan(vips, draw(backend_texts), name="https"))
    else:
        ports[0] = replace(ports[0], vips=(*draw(whole_addresses), *ports[0].vips))
    plan = service_plan(draw(st.sampled_from(["one", "two", "three"])), *ports)
    four, six = (plan_in(version, plan).ports for version in FAMILIES)
    return replace(plan, ports=draw(st.sampled_from([four, six, four + six])))


failures = st.tuples(
    st.sampled_from(
        [
            ("update", "source_ranges4"),
            ("delete", "source_ranges4"),
            ("update", "vips4"),
            ("delete", "vips4"),
            ("update", "vips6"),
            ("delete", "vips6"),
            ("update", "services"),
            ("delete", "services"),
        ]
    ),
    st.integers(1, 5),
)
plan_batches = st.lists(st.tuples(service_plans(), st.booleans()), max_size=3)
Step = tuple[list[tuple[ServicePlan, bool]], tuple[tuple[str, str], int] | None, bool, bool]
histories = st.lists(st.tuples(plan_batches, st.none() | failures, st.booleans(), st.booleans()), max_size=8)


@settings(max_examples=200, deadline=None)
@given(histories)
def test_any_history_of_plans_failures_and_restarts(history: list[Step]) -> None:
    """A step: plans (or deletions), a failure to inject, whether time passes, whether the agent restarts."""
    bench = Bench(Limits(vips=16, backends=32, table_rows=24_000, flows=16, affinity=16, services=32))
    claims = RememberedClaims()
    wanted: Plans = {}
    for batch, failure, wait, restart in history:
        plans = claims.update({plan.key: plan if there else None for plan, there in batch}).plans
        wanted |= plans
        if failure:
            (operation, name), times = failure
            bench.maps.fail(name, times, operation)
        bench.maps.before_write = InFlight(bench.maps).look
        bench.maps.before_write()
        report = bench.sync(plans)
        for _ in range(12):
            if not report.errors:
                break
            bench.wait()
            bench.maps.before_write = InFlight(bench.maps).look
            report = bench.reconciler.sync({})
        assert not report.errors
        check(bench.maps, exact=[plan for plan in wanted.values() if plan])
        bench.clock.now += QUARANTINE_SECONDS if wait else 0
        if restart:
            bench.start()
            assert bench.reconciler.sync(dict(wanted)).writes == 0
