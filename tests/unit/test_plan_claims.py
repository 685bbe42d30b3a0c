"""VIPs that several Services claim."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.model import ObjectKey
from lb.plan import Claims, Conflict
from lb.plan.types import ServicePlan
from tests.unit.plan_builders import port_plan, service_plan, vip_key

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
    return [f"{vip.key.address}:{vip.key.port}" for port in plan.ports for vip in port.vips]


@pytest.mark.parametrize("order", [(OLD, NEW), (NEW, OLD)])
def test_the_older_service_wins_whatever_came_first(order: tuple[ServicePlan, ServicePlan]) -> None:
    claims = Claims()
    applied: dict[ObjectKey, ServicePlan | None] = {}
    for plan in order:
        applied |= claims.update({plan.key: plan}).plans
    assert vips(applied[OLD.key]) == ["10.96.0.1:80", SHARED]
    assert vips(applied[NEW.key]) == ["10.96.0.2:80"]
    assert claims.conflicts() == (Conflict(OLD.key, NEW.key, vip_key(SHARED)),)


def test_an_unknown_age_loses_and_a_tie_goes_by_name() -> None:
    claims = Claims()
    decision = claims.update({p.key: p for p in (UNDATED, NEW)})
    assert vips(decision.plans[UNDATED.key]) == []
    twin = service_plan("b-undated", *UNDATED.ports)
    (conflict,) = Claims().update({p.key: p for p in (twin, UNDATED)}).conflicts
    assert conflict == Conflict(UNDATED.key, twin.key, vip_key(SHARED), older=False)
    assert str(conflict) == (
        "192.0.2.10:80/TCP belongs to Service default/a-undated, the first by name as their"
        " creationTimestamps tell no older one; default/b-undated claims it too"
    )
    (conflict,) = decision.conflicts
    assert (
        str(conflict)
        == "192.0.2.10:80/TCP belongs to the older Service default/new; default/a-undated claims it too"
    )


def test_a_vip_that_becomes_free_goes_to_the_next() -> None:
    claims = Claims()
    claims.update({p.key: p for p in (OLD, NEW, ALONE)})
    decision = claims.update({OLD.key: None})
    assert decision.plans[OLD.key] is None
    assert vips(decision.plans[NEW.key]) == ["10.96.0.2:80", SHARED]
    assert decision.plans.keys() == {OLD.key, NEW.key}
    assert decision.conflicts == ()
    assert claims.conflicts() == ()


def test_services_that_nothing_happened_to_are_left_alone() -> None:
    claims = Claims()
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
def test_any_history_ends_where_a_fresh_start_does(history: list[tuple[ServicePlan, bool]]) -> None:
    claims = Claims()
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
    fresh = Claims().update(now)
    assert {key: plan for key, plan in applied.items() if plan} == fresh.plans
    assert claims.conflicts() == fresh.conflicts
