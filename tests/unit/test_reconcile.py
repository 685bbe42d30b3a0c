# SPDX-License-Identifier: Apache-2.0
"""The reconciler against fake maps: what it writes, and in which order."""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from lb.config import Limits
from lb.datapath.maps.layouts import (
    FAMILIES,
    LINE_ROWS,
    NODE_SELF,
    BackendFlag,
    BackendStateCode,
    VipFlag,
    unpack_address,
)
from lb.datapath.sync.tables import shares, table_rows
from lb.errors import CapacityError
from lb.model import TrafficPolicy
from lb.plan.types import ServicePlan, VipKind
from tests.unit.plan_builders import NODE, backend, port_plan, service_plan, vip_key
from tests.unit.reconcile_bench import OTHER_VIP, SMALL, VIP, A, B, Bench, C, check, web

HERE = BackendFlag.LOCAL | BackendFlag.IN_CLUSTER_SET | BackendFlag.IN_LOCAL_SET


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def bench(request: pytest.FixtureRequest) -> Bench:
    return Bench(version=request.param)


def test_a_new_service_is_written_from_the_names_to_the_vip(bench: Bench) -> None:
    plan = service_plan("web", port_plan([VIP], [backend(A, NODE), backend(B, "node2")], affinity_seconds=60))
    assert bench.apply(plan) == [
        ("update", "service_counters"),
        ("update", "ended"),
        ("update", "services"),
        ("update", "nodes"),
        ("store", "backends"),
        ("store", "backends"),
        ("update", "tables"),
        ("update", "vips"),
    ]
    row = bench.row()
    assert (row.affinity_seconds, row.inside.size) == (60, 2)
    assert row.inside == row.outside
    assert bench.choices(row.inside) == [bench.place(f"{b.address}:{b.port}") for b in plan.ports[0].cluster]
    assert bench.slot(A)["node"] == NODE_SELF
    assert bench.slot(A)["flags"] == HERE
    assert bench.slot(B)["flags"] == BackendFlag.IN_CLUSTER_SET
    assert bench.slot(A)["generation"] == 1
    assert bench.slot(A)["service"] == row.service > 0
    assert bench.reconciler.known() == {plan.key}


def test_one_call_for_each_map_however_many_services(bench: Bench) -> None:
    plans = [service_plan(f"s{n}", port_plan([f"10.96.1.{n}:80"], [f"10.0.1.{n}:80"])) for n in range(1, 50)]
    writes = bench.apply(*plans)
    assert [write for write in writes if write[0] == "update"] == [
        ("update", "service_counters"),
        ("update", "ended"),
        ("update", "services"),
        ("update", "tables"),
        ("update", "vips"),
    ]


def test_the_same_plan_again_writes_nothing(bench: Bench) -> None:
    bench.apply(web(A, B))
    assert bench.apply(web(A, B)) == []
    assert bench.sync({}).writes == 0


def test_two_vips_and_both_sides_share_one_table(bench: Bench) -> None:
    bench.apply(web(A, B, vips=(VIP, OTHER_VIP)))
    assert bench.row().inside == bench.row().outside == bench.row(OTHER_VIP).inside


def test_sides_with_different_backends_have_tables_of_their_own(bench: Bench) -> None:
    plan = port_plan([VIP], [backend(A, NODE), B], outside=TrafficPolicy.LOCAL)
    bench.apply(service_plan("web", plan))
    assert len(set(bench.choices(bench.row().inside))) == 2
    assert bench.choices(bench.row().outside) == [bench.place(A)]


def test_no_backend_is_a_vip_with_empty_sets(bench: Bench) -> None:
    bench.apply(web())
    assert bench.row().inside == bench.row().outside == (0, 0)
    assert bench.row().flags == 0


def test_no_local_backend_is_a_side_that_drops(bench: Bench) -> None:
    bench.apply(service_plan("web", port_plan([VIP], [A], outside=TrafficPolicy.LOCAL)))
    assert bench.row().outside == (0, 0)
    assert bench.row().inside.size == 1
    assert bench.row().flags == VipFlag.OUTSIDE_LOCAL | VipFlag.USABLE


def test_a_changed_set_gets_a_new_table_and_the_vip_one_update(bench: Bench) -> None:
    bench.apply(web(A, B))
    old = bench.row()
    rows = bench.choices(old.inside)
    assert bench.apply(web(A, C)) == [
        ("store", "backends"),
        ("store", "backends"),
        ("update", "tables"),
        ("update", "vips"),
        ("store", "backends"),
    ]
    assert bench.row().inside.offset != old.inside.offset
    assert bench.choices(old.inside) == rows


def test_a_set_that_grows_large_gets_a_lookup_table() -> None:
    """At 17 backends; some of the tables are of several lines, and none is overwritten by the next."""
    bench = Bench(Limits(vips=64, backends=512, table_rows=1 << 17, flows=16, affinity=16, services=64))
    plans = [
        service_plan(f"s{n}", port_plan([f"10.96.1.{n}:80"], [f"10.0.{n}.{m}:80" for m in range(1, n + 1)]))
        for n in range(1, 21)
    ]
    bench.apply(*plans)
    assert [bench.row(f"10.96.1.{n}:80").inside.size for n in (1, 16, 17, 20)] == [1, 16, 2039, 2039]
    bench.check(exact=plans)
    grown = service_plan("s16", port_plan(["10.96.1.16:80"], [f"10.0.16.{m}:80" for m in range(1, 18)]))
    bench.apply(grown)
    plans[15] = grown
    bench.check(exact=plans)
    bench.start()
    assert bench.sync({plan.key: plan for plan in plans}).writes == 0


def test_unequal_weights_make_a_set_of_their_own_that_a_restart_knows() -> None:
    bench = Bench(SMALL)
    heavy = structs.replace(backend(A), weight=300)
    plan = service_plan("web", port_plan((VIP,), (heavy, backend(B))))
    bench.apply(plan)
    region = bench.row().inside
    assert region.size == LINE_ROWS + 2
    assert shares(table_rows(bench.maps), *region) == {1: 0.75, 2: 0.25}
    bench.start()
    assert bench.sync({plan.key: plan}).writes == 0
    equal = service_plan("web", port_plan((VIP,), (heavy, structs.replace(backend(B), weight=300))))
    bench.apply(equal)
    assert bench.row().inside.size == 2
    bench.check(exact=[equal])


def test_a_large_set_of_unequal_weights_is_made_anew_by_a_restart() -> None:
    """Its weights cannot be read from it; what its VIPs lead to is the same before and after."""
    bench = Bench(Limits(vips=64, backends=512, table_rows=1 << 17, flows=16, affinity=16, services=64))
    ends = [structs.replace(backend(f"10.0.0.{n}:80"), weight=50 + n) for n in range(1, 20)]
    plan = service_plan("web", port_plan((VIP,), ends))
    bench.apply(plan)
    before = bench.row().inside
    found = shares(table_rows(bench.maps), *before)
    assert max(found.values()) > 1.3 * min(found.values())
    bench.start()
    assert bench.sync({plan.key: plan}).table_rows == before.size
    assert shares(table_rows(bench.maps), *bench.row().inside) == found


def test_freed_rows_rest_before_they_are_used_again() -> None:
    bench = Bench(SMALL)
    bench.apply(web(A, B))
    first = bench.row().inside
    for text in (C, B, C):  # a line each: the pool of 4 is used up by what rests
        bench.apply(web(A, text))
    report = bench.sync({web().key: web(A, B)})
    assert isinstance(report.errors[web().key], CapacityError)
    bench.wait()
    bench.apply()
    assert bench.row().inside == first


def test_slots_are_reused_with_the_next_generation() -> None:
    bench = Bench(SMALL)
    generations = []
    for number in range(1, 20):
        bench.apply(web(f"10.0.1.{number}:80"))
        generations.append(int(bench.slot(f"10.0.1.{number}:80")["generation"]))
        bench.wait()
    assert generations == sorted(generations)
    assert generations[-1] == 3  # seven slots for nineteen uses


def test_settles_only_before_a_backend_goes_that_a_packet_may_have_chosen(bench: Bench) -> None:
    bench.apply(web(A, B))
    bench.apply(web(A, draining=(B,)))
    bench.apply(web(A))
    assert bench.settled == []
    bench.apply(web(B))
    assert bench.settled[0][-1][:2] == ("update", bench.name("vips"))
    assert bench.writes()[-1] == ("store", "backends")


def test_state_and_place_change_in_the_slot(bench: Bench) -> None:
    bench.apply(web(A, B))
    generation = int(bench.slot(B)["generation"])
    bench.apply(web(A, draining=(B,)))
    assert bench.slot(B)["state"] == BackendStateCode.TERMINATING
    moved = backend(B, NODE)
    assert bench.apply(service_plan("web", port_plan([VIP], [A, moved]))) == [
        ("update", "nodes"),
        ("store", "backends"),  # flags
        ("store", "backends"),  # node
        ("store", "backends"),  # state
        ("update", "tables"),
        ("update", "vips"),
    ]
    slot = bench.slot(B)
    assert slot["state"] == BackendStateCode.ACTIVE
    assert slot["flags"] == HERE
    assert slot["generation"] == generation


def test_affinity_alone_is_one_update(bench: Bench) -> None:
    bench.apply(web(A))
    assert bench.apply(service_plan("web", port_plan([VIP], [A], affinity_seconds=9))) == [("update", "vips")]


def test_deletion_goes_the_other_way_and_leaves_nothing(bench: Bench) -> None:
    bench.apply(web(A, B))
    bench.maps.writes.clear()
    bench.sync({web().key: None})
    assert bench.writes() == [
        ("delete", "vips"),
        ("store", "backends"),
        ("delete", "services"),
        ("delete", "service_counters"),
    ]
    assert bench.reconciler.known() == set()
    assert not bench.maps.array(bench.name("backends"))["state"].any()


@pytest.mark.parametrize("nothing", [service_plan("web"), web(A, vips=())], ids=["headless", "no vip left"])
def test_a_plan_without_vips_has_nothing_in_the_maps(bench: Bench, nothing: ServicePlan) -> None:
    assert bench.apply(nothing) == []
    bench.apply(web(A))
    bench.apply(nothing)
    assert bench.reconciler.known() == set()


def test_a_vip_changes_hands_in_one_update_without_a_gap(bench: Bench) -> None:
    bench.apply(web(A, vips=(VIP, OTHER_VIP)))
    heir = service_plan("heir", port_plan([VIP], [B]))
    writes = bench.apply(web(A, vips=(OTHER_VIP,)), heir)
    assert ("delete", "vips") not in writes
    assert bench.choices(bench.row().inside) == [bench.place(B)]
    bench.sync({web().key: None})
    assert bench.vips() == [vip_key(VIP)]


def limited(*ranges: str) -> ServicePlan:
    return service_plan("web", port_plan([VIP], [A], kind=VipKind.LOAD_BALANCER, source_ranges=ranges))


def test_source_ranges_are_there_before_the_vip_asks_for_them_and_until_it_does_not(bench: Bench) -> None:
    bench.apply(web(A))
    assert bench.apply(limited("10.0.0.0/8", "192.0.2.0/24")) == [
        ("update", "source_ranges"),
        ("update", "vips"),
    ]
    assert bench.apply(limited("10.0.0.0/8", "10.0.0.0/16")) == [
        ("update", "source_ranges"),
        ("delete", "source_ranges"),
    ]
    bench.check(exact=[limited("10.0.0.0/8", "10.0.0.0/16")])
    settled = len(bench.settled)
    assert bench.apply(limited()) == [("update", "vips"), ("delete", "source_ranges")]
    assert bench.settled[settled][-1][:2] == ("update", bench.name("vips"))


def test_source_ranges_that_do_not_fit_leave_the_service_as_it_was() -> None:
    bench = Bench(replace(SMALL, source_ranges=3))
    bench.apply(limited("10.0.0.0/8"))
    more = limited("10.0.0.0/8", "10.1.0.0/16", "10.2.0.0/16", "10.3.0.0/16")
    report = bench.sync({more.key: more})
    (error,) = report.errors.values()
    assert isinstance(error, CapacityError)
    assert "limits.source_ranges" in str(error)
    bench.check(exact=[limited("10.0.0.0/8")])


SIX = port_plan(
    ["[fd00::1]:80", "[fd00::2]:80"], ["[fd00::1:1]:8080", "[fd00::1:2]:8080"], affinity_seconds=5
)


def test_dual_stack_families_of_a_service_are_apart() -> None:
    bench = Bench()
    dual = service_plan("dual", port_plan([VIP], [A, B]), SIX)
    bench.apply(dual)
    check(bench.maps, exact=[dual])
    report = bench.reconciler.sync({dual.key: service_plan("dual", SIX)})
    assert (report.vips_deleted, report.backends_freed, report.names_deleted) == (1, 2, 1)
    check(bench.maps, exact=[service_plan("dual", SIX)])
    bench.apply(dual)
    bench.apply(service_plan("dual"))
    assert bench.reconciler.known() == set()


def test_dual_stack_a_family_that_has_no_room_does_not_cost_the_other() -> None:
    bench = Bench(replace(SMALL, vips=1))
    dual = service_plan("dual", port_plan([VIP], [A, B]), SIX)
    report = bench.reconciler.sync({dual.key: dual})
    assert report.errors.keys() == {dual.key}
    check(bench.maps, exact=[service_plan("dual", port_plan([VIP], [A, B]))])


def cluster_network(bench: Bench) -> str:
    """Return the network of clusterIPs as the programs see it."""
    row = bench.maps.array(bench.name("settings"))[0]
    net, mask = (unpack_address(row[name].tolist()) for name in ("cluster_net", "cluster_mask"))
    return f"{net}/{bin(int(mask)).count('1')}"


def test_cluster_ip_network_is_there_before_the_vip_and_only_grows() -> None:
    bench = Bench()
    assert cluster_network(bench) == "0.0.0.0/32"
    bench.maps.before_write = lambda: check(bench.maps)
    for vip, network in (
        ("10.96.0.7:80", "10.96.0.7/32"),
        ("10.96.0.5:80", "10.96.0.4/30"),
        ("10.96.200.1:80", "10.96.0.0/16"),
    ):
        bench.apply(service_plan(f"s{vip[-4]}", port_plan([vip], [A])))
        assert cluster_network(bench) == network
    bench.apply(service_plan("s1"))
    bench.apply(service_plan("lb", port_plan(["203.0.113.7:80"], [A], kind=VipKind.LOAD_BALANCER)))
    assert cluster_network(bench) == "10.96.0.0/16"
    bench.start()
    assert cluster_network(bench) == "10.96.0.4/30"


def test_cluster_ip_network_of_ipv6() -> None:
    bench = Bench()
    bench.apply(service_plan("dual", SIX))
    bench.version = 6
    assert cluster_network(bench) == "fd00::/126"
    bench.reconciler.sync({service_plan("dual").key: None})
    bench.start()
    assert cluster_network(bench) == "::/128"


WHOLE = "10.96.0.1"


def test_ping_an_address_as_a_whole_shares_the_table_of_its_port(bench: Bench) -> None:
    bench.apply(web(A, B, vips=(WHOLE, VIP)))
    assert bench.row(WHOLE) == bench.row(VIP)
    bench.check(exact=[web(A, B, vips=(WHOLE, VIP))])
    bench.start()
    assert bench.apply(web(A, B, vips=(WHOLE, VIP))) == []


def test_ping_an_address_as_a_whole_changes_ports_in_one_update(bench: Bench) -> None:
    def plan(first: list[str], second: list[str], *, at: int) -> ServicePlan:
        vips = [VIP, "10.96.0.1:81"]
        ports = [
            port_plan([WHOLE, vip] if at == index else [vip], backends, name=f"p{index}")
            for index, (vip, backends) in enumerate(zip(vips, (first, second), strict=True))
        ]
        return service_plan("web", *ports)

    bench.apply(plan([A], [], at=0))
    writes = bench.apply(plan([], [B], at=1))
    assert writes.count(("update", "vips")) == 1
    assert ("delete", "vips") not in writes
    bench.check(exact=[plan([], [B], at=1)])
    bench.start()
    assert bench.apply(plan([], [B], at=1)) == []


def test_a_name_too_long_is_refused(bench: Bench) -> None:
    plan = service_plan("n" * 64, port_plan([VIP], [A]))
    report = bench.sync({plan.key: plan})
    assert "more than 63 bytes" in str(report.errors[plan.key])
    assert bench.reconciler.known() == set()
