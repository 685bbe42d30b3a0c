# SPDX-License-Identifier: Apache-2.0
"""VIPs that several Services claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.model import ObjectKey, Protocol, Service, ServicePort
from lb.plan import Conflict, plan_service
from lb.plan.claims import Right
from lb.plan.types import ServicePlan, Topology, Vip, VipKey, VipKind
from tests.unit.plan_builders import RememberedClaims, port_plan, service_plan, vip_key

SHARED = "192.0.2.10:80"
OLD = service_plan(
    "old", port_plan([SHARED, "10.96.0.1:80"], ["10.0.1.1:80"]), created="2024-01-01T00:00:00Z"
)
NEW = service_plan(
    "new", port_plan([SHARED, "10.96.0.2:80"], ["10.0.1.2:80"]), created="2024-06-01T00:00:00Z"
)
UNDATED = service_plan("a-undated", port_plan([SHARED], ["10.0.1.3:80"]))
ALONE = service_plan("alone", port_plan(["10.96.0.9:80"], []), created="2023-01-01T00:00:00Z")


def vips(plan: ServicePlan | None) -> list[str]:
    assert plan is not None
    return [f"{vip.key.address}:{vip.key.port}" for port in plan.ports for vip in port.vips if vip.key.port]


@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)])
def test_the_older_service_wins_whatever_came_first(order: tuple[ServicePlan, ServicePlan]) -> None:
    claims = RememberedClaims()
    applied: dict[ObjectKey, ServicePlan | None] = {}
    for plan in order:
        applied |= claims.update({plan.key: plan}).plans
    assert vips(applied[OLD.key]) == ["10.96.0.1:80", SHARED]
    assert vips(applied[NEW.key]) == ["10.96.0.2:80"]
    assert claims.conflicts() == (Conflict(OLD.key, NEW.key, vip_key(SHARED)),)


def test_an_unknown_age_loses_and_a_tie_goes_by_name() -> None:
    claims = RememberedClaims()
    decision = claims.update({p.key: p for p in (UNDATED, NEW)})
    assert vips(decision.plans[UNDATED.key]) == []
    twin = service_plan("b-undated", *UNDATED.ports)
    (conflict,) = RememberedClaims().update({p.key: p for p in (twin, UNDATED)}).conflicts
    assert conflict == Conflict(UNDATED.key, twin.key, vip_key(SHARED), right=Right.HOLDER)
    assert str(conflict) == (
        "192.0.2.10:80/TCP belongs to Service default/a-undated; default/b-undated claims it too, and their"
        " creationTimestamps do not tell which is older"
    )
    assert decision.conflicts == (Conflict(NEW.key, UNDATED.key, vip_key(SHARED), right=Right.HOLDER),)


@pytest.mark.parametrize("restart", [False, True], ids=["at once", "over a restart"])
@pytest.mark.parametrize("newcomer", [service_plan("a", *UNDATED.ports), NEW], ids=["undated", "dated"])
def test_conflicts_without_timestamps_leave_the_vip_where_it_is(newcomer: ServicePlan, restart: bool) -> None:
    claims = RememberedClaims()
    claims.update({UNDATED.key: UNDATED})
    if restart:
        claims = RememberedClaims({vip_key(SHARED): UNDATED.key})
    plans = {UNDATED.key: UNDATED, newcomer.key: newcomer} if restart else {newcomer.key: newcomer}
    decision = claims.update(plans)
    assert SHARED not in vips(decision.plans[newcomer.key])
    assert decision.conflicts == (Conflict(UNDATED.key, newcomer.key, vip_key(SHARED), right=Right.HOLDER),)
    again = claims.update({UNDATED.key: UNDATED})
    assert again.conflicts == decision.conflicts
    assert vips(again.plans[UNDATED.key]) == [SHARED]


def test_conflicts_with_timestamps_do_not_ask_who_was_there_first() -> None:
    decision = RememberedClaims({vip_key(SHARED): NEW.key}).update({p.key: p for p in (OLD, NEW)})
    assert SHARED in vips(decision.plans[OLD.key])


WHOLE = VipKey(ip_address("192.0.2.10"))
LIMITED = ["198.51.100.0/24"]


def sharing(
    name: str,
    *backends: str,
    kind: VipKind = VipKind.LOAD_BALANCER,
    created: str = "",
    ranges: Sequence[str] = (),
) -> ServicePlan:
    """A Service with a port of its own at the shared address."""
    port = port_plan([f"{WHOLE.address}:{80 + ord(name)}"], backends, kind=kind, source_ranges=ranges)
    return service_plan(name, replace(port, vips=(Vip(WHOLE, kind), *port.vips)), created=created)


@pytest.mark.parametrize(
    ("claimants", "winner"),
    [
        ([sharing("a"), sharing("b")], "a"),
        ([sharing("a"), sharing("b", "10.0.1.1:80")], "b"),
        ([sharing("a", "10.0.1.1:80", created="2025"), sharing("b", "10.0.1.1:80", created="2024")], "b"),
        # whom one of them lets in gets an answer: the one that lets everybody in answers
        ([sharing("a", "10.0.1.1:80", ranges=LIMITED), sharing("b", "10.0.1.1:80")], "b"),
        ([sharing("a", "10.0.1.1:80", ranges=LIMITED), sharing("b")], "a"),
        ([sharing("a", "10.0.1.1:80", ranges=["fd00::/8"]), sharing("b", "10.0.1.1:80")], "a"),
        ([sharing("a", "10.0.1.1:80", ranges=LIMITED), sharing("b", "10.0.1.1:80", ranges=LIMITED)], "a"),
        (
            [
                sharing("a", "10.0.1.1:80", ranges=LIMITED, kind=VipKind.EXTERNAL_IP),
                sharing("b", "10.0.1.1:80"),
            ],
            "a",
        ),
    ],
)
def test_ping_an_address_that_services_share_is_no_conflict(
    claimants: list[ServicePlan], winner: str
) -> None:
    claims = RememberedClaims()
    decision = claims.update({plan.key: plan for plan in claimants})
    assert decision.conflicts == claims.conflicts() == ()
    having = [k.name for k, p in decision.plans.items() if p and WHOLE in {v.key for v in p.ports[0].vips}]
    assert having == [winner]
    assert all(plan is None or len(vips(plan)) == 1 for plan in decision.plans.values())


def test_ping_a_shared_address_goes_to_who_has_endpoints_and_stays() -> None:
    claims = RememberedClaims()
    claims.update({plan.key: plan for plan in (sharing("a", "10.0.1.1:80"), sharing("b", "10.0.1.1:80"))})
    gone = claims.update({sharing("a").key: sharing("a")})
    assert {key.name for key in gone.plans} == {"a", "b"}
    back = claims.update({sharing("a").key: sharing("a", "10.0.1.1:80")})
    assert {key.name for key in back.plans} == {"a"}
    assert claims.update({sharing("b").key: None}).plans.keys() == {sharing("a").key, sharing("b").key}


def test_a_vip_that_becomes_free_goes_to_the_next() -> None:
    claims = RememberedClaims()
    claims.update({p.key: p for p in (OLD, NEW, ALONE)})
    decision = claims.update({OLD.key: None})
    assert decision.plans[OLD.key] is None
    assert vips(decision.plans[NEW.key]) == ["10.96.0.2:80", SHARED]
    assert decision.plans.keys() == {OLD.key, NEW.key}
    assert decision.conflicts == ()
    assert claims.conflicts() == ()


def test_services_that_nothing_happened_to_are_left_alone() -> None:
    claims = RememberedClaims()
    claims.update({p.key: p for p in (OLD, NEW, ALONE)})
    changed = service_plan("new", port_plan([SHARED, "10.96.0.3:80"], ["10.0.1.2:80"]), created=NEW.created)
    decision = claims.update({NEW.key: changed})
    assert decision.plans.keys() == {NEW.key}
    assert vips(decision.plans[NEW.key]) == ["10.96.0.3:80"]
    assert decision.conflicts == (Conflict(OLD.key, NEW.key, vip_key(SHARED)),)


def test_conflict_reads_well() -> None:
    assert str(Conflict(OLD.key, NEW.key, vip_key(SHARED))) == (
        "192.0.2.10:80/TCP belongs to the older Service default/old; default/new claims it too"
    )


plans = st.builds(
    lambda name, claimed, year: service_plan(
        name, port_plan([f"192.0.2.{n}:80" for n in claimed], []), created=year
    ),
    st.sampled_from("abcd"),
    st.sets(st.integers(1, 4)),
    st.sampled_from(["", "2023", "2024"]),
)


@given(st.lists(st.tuples(plans, st.booleans()), max_size=12))
def test_any_history_ends_where_a_start_with_its_maps_does(history: list[tuple[ServicePlan, bool]]) -> None:
    claims = RememberedClaims()
    applied: dict[ObjectKey, ServicePlan | None] = {}
    now: dict[ObjectKey, ServicePlan] = {}
    for plan, there in history:
        if there:
            now[plan.key] = plan
        else:
            now.pop(plan.key, None)
        applied |= claims.update({plan.key: plan if there else None}).plans
        taken = [vip for p in applied.values() if p for vip in vips(p)]
        assert len(taken) == len(set(taken))
    holders = {v.key: key for key, plan in applied.items() if plan for p in plan.ports for v in p.vips}
    fresh = RememberedClaims(holders).update(now)
    assert {key: plan for key, plan in applied.items() if plan} == fresh.plans
    assert claims.conflicts() == fresh.conflicts


def test_a_cluster_ip_belongs_to_its_service_with_every_port() -> None:
    """However old another is, whichever port it asks for, whoever comes first, and until the owner goes."""
    owner = sharing("b", kind=VipKind.CLUSTER_IP, created="2024")
    thieves = [
        sharing("a", "10.0.1.1:80", created="2020"),
        sharing("c", "10.0.1.1:80", kind=VipKind.EXTERNAL_IP),
    ]
    claims = RememberedClaims()
    before = claims.update({plan.key: plan for plan in thieves})
    assert before.conflicts == ()
    assert [len(vips(plan)) for plan in before.plans.values()] == [1, 1]
    came = claims.update({owner.key: owner})
    assert [(key.name, vips(plan)) for key, plan in came.plans.items()] == [
        ("a", []),
        ("b", ["192.0.2.10:178"]),
        ("c", []),
    ]
    assert [str(one) for one in came.conflicts] == [
        f"192.0.2.10:{port}/TCP is refused to Service default/{name}: 192.0.2.10 is the clusterIP of"
        " Service default/b"
        for port, name in ((177, "a"), (179, "c"))
    ]
    assert claims.conflicts() == came.conflicts
    went = claims.update({owner.key: None})
    assert went.conflicts == claims.conflicts() == ()
    assert {key.name: vips(plan) for key, plan in went.plans.items() if plan} == {
        "a": ["192.0.2.10:177"],
        "c": ["192.0.2.10:179"],
    }


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("kind", [VipKind.CLUSTER_IP, VipKind.NODE_PORT])
def test_what_the_api_server_gives_out_goes_before_what_anybody_may_write(kind: VipKind, order: int) -> None:
    given = service_plan("given", port_plan([SHARED], ["10.0.1.1:80"], kind=kind), created="2024")
    written = service_plan(
        "written", port_plan([SHARED], ["10.0.1.2:80"], kind=VipKind.EXTERNAL_IP), created="2020"
    )
    claims = RememberedClaims({vip_key(SHARED): written.key})
    applied: dict[ObjectKey, ServicePlan | None] = {}
    for plan in (given, written)[::order]:
        applied |= claims.update({plan.key: plan}).plans
    assert (vips(applied[given.key]), vips(applied[written.key])) == ([SHARED], [])
    assert claims.conflicts() == (
        Conflict(given.key, written.key, vip_key(SHARED), Right.CLUSTER_IP)
        if kind is VipKind.CLUSTER_IP
        else Conflict(given.key, written.key, vip_key(SHARED), Right.NODE_PORT),
    )


def test_a_service_has_its_own_cluster_ip_as_an_external_address() -> None:
    address = ip_address("10.96.0.1")
    plan = plan_service(
        Service(
            ObjectKey("default", "own"),
            ports=(ServicePort("", Protocol.TCP, 80, 80),),
            cluster_ips=(address,),
            external_ips=(address,),
        ),
        [],
        Topology("node1"),
    )
    decision = RememberedClaims().update({plan.key: plan})
    assert decision.conflicts == ()
    assert vips(decision.plans[plan.key]) == ["10.96.0.1:80"]
