# SPDX-License-Identifier: Apache-2.0
"""The main loop: one step at a time, with fake maps, a fake clock and the events that a source would send."""

from __future__ import annotations

import logging
import queue
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import numpy as np
import pytest

from lb.agent import BEAT_SECONDS
from lb.config import Limits
from lb.datapath.sync.ledger import read_vips
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.sync.sync_record import SyncReport
from lb.datapath.sync.tables import shares, table_rows
from lb.errors import LbError
from lb.inbox import Failed, InterfacesChanged, Settled, SourceEvents, Stop
from lb.model import (
    Delete,
    Event,
    Node,
    ObjectKey,
    Protocol,
    Service,
    ServiceType,
    TrafficPolicy,
    Upsert,
)
from lb.plan import HealthCheck, plan_service
from lb.plan.types import ServicePlan, VipKey
from lb.retries import Retries
from tests.fake_maps import FakeMaps
from tests.unit.agent_bench import (
    DNS,
    DNS_SERVICE,
    NODE,
    NODE_ADDRESS,
    SYNCED,
    WEB,
    WEB_SERVICE,
    Bench,
    endpoints,
    service,
    texts,
)


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_nothing_is_written_before_the_source_has_listed_everything(bench: Bench) -> None:
    bench.maps.writes.clear()
    bench.tell(Upsert(WEB_SERVICE))
    assert (bench.maps.writes, bench.synced) == ([], [])
    bench.tell(Upsert(endpoints(WEB, "10.0.0.1")), SYNCED)
    assert bench.vips() == {"10.96.0.1"}
    assert bench.synced == [[]]


def test_a_burst_is_one_sync(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), Upsert(DNS_SERVICE), Upsert(endpoints(WEB, "10.0.0.1")), SYNCED)
    assert bench.reconciler.syncs == [{WEB, DNS}]


def test_gathering_ends_although_messages_keep_coming() -> None:
    bench = Bench()

    class Endless(queue.SimpleQueue):  # type: ignore[type-arg]
        def get(self, block: bool = True, timeout: float | None = None) -> object:
            return SourceEvents([Upsert(WEB_SERVICE)], 0.0)

    bench.agent._inbox = Endless()
    bench.agent.step()
    bench.agent._inbox = bench.inbox
    bench.tell(SYNCED)
    assert bench.vips() == {"10.96.0.1"}


def test_what_waited_for_packets_on_their_way_is_freed_when_told(bench: Bench) -> None:
    passed = False
    bench.reconciler._quarantine._begin = lambda: lambda: passed
    bench.tell(Upsert(WEB_SERVICE), Upsert(endpoints(WEB, "10.0.0.1", "10.0.0.2")), SYNCED)
    bench.tell(Upsert(endpoints(WEB, "10.0.0.1")))
    slots = bench.maps.array("backends4")
    bench.tell(Settled())
    assert np.count_nonzero(slots["state"]) == 2
    passed = True
    bench.tell(Settled())
    assert np.count_nonzero(slots["state"]) == 1


def shares_now(bench: Bench) -> list[float]:
    """Return the share of each backend of the Service web, in the order of addresses."""
    return sorted(
        shares(
            table_rows(bench.maps),
            *read_vips(bench.maps)[VipKey(ip_address("10.96.0.1"), 80, Protocol.TCP)].inside,
        ).values()
    )


def test_a_new_endpoint_of_a_service_with_slow_start_is_planned_until_it_has_its_share(bench: Bench) -> None:
    slow = replace(WEB_SERVICE, slow_start=10)
    bench.tell(Upsert(slow), Upsert(endpoints(WEB, "10.0.0.1")), SYNCED)
    bench.tell(Upsert(endpoints(WEB, "10.0.0.1", "10.0.0.2")))
    found = [shares_now(bench)]
    for _ in range(12):
        bench.now += 1.0
        bench.tell()
        found.append(shares_now(bench))
    assert found[0] == pytest.approx([1 / 11, 10 / 11])
    assert found[4] == pytest.approx([1 / 3, 2 / 3])
    assert found[9:] == [[0.5, 0.5]] * 4
    assert bench.reconciler.syncs[2:] == [{WEB}] * 9


def test_only_what_changed_is_planned_again(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), Upsert(DNS_SERVICE), SYNCED)
    bench.tell(Upsert(endpoints(DNS, "10.0.0.9")))
    assert bench.reconciler.syncs[1:] == [{DNS}]


def test_a_deleted_service_leaves_the_maps(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), Upsert(DNS_SERVICE), SYNCED)
    bench.tell(Delete(Service, WEB))
    assert bench.vips() == {"10.96.0.2"}


def test_services_that_vanished_while_no_agent_ran_leave_the_maps(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), Upsert(DNS_SERVICE), SYNCED)
    after = Bench(bench.maps)
    assert after.vips() == {"10.96.0.1", "10.96.0.2"}
    after.tell(Upsert(DNS_SERVICE), SYNCED)
    assert after.vips() == {"10.96.0.2"}


def test_a_restart_with_the_same_services_writes_nothing(bench: Bench) -> None:
    events = (Upsert(WEB_SERVICE), Upsert(endpoints(WEB, "10.0.0.1", "10.0.0.2")), SYNCED)
    bench.tell(*events)
    bench.maps.writes.clear()
    after = Bench(bench.maps)
    after.tell(*events)
    assert after.maps.writes == []
    assert after.synced == [[]]


def test_a_service_that_fails_costs_no_other_and_is_logged_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.maps = FakeMaps(Limits(backends=2, table_rows=65536, vips=64, services=64))
    bench = Bench(bench.maps)
    many = endpoints(WEB, *(f"10.0.0.{number}" for number in range(1, 9)))
    bench.tell(Upsert(WEB_SERVICE), Upsert(many), Upsert(DNS_SERVICE), SYNCED)
    assert bench.vips() == {"10.96.0.2"}
    assert len(bench.synced[0]) == 1
    assert bench.synced[0][0].startswith("service default/web: backends")
    for _ in range(5):
        bench.now += Retries.MOST_SECONDS
        bench.agent.step()
    assert len(bench.reconciler.syncs) == 6
    assert caplog.text.count("service default/web: backends") == 1
    assert bench.announced == [("default/web", "MapFull")]


def test_a_service_that_failed_is_tried_again_and_its_recovery_told(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.maps.fail("vips4", times=1000)
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    assert bench.vips() == set()
    bench.maps.fail("vips4", times=0)
    bench.now += Retries.FIRST_SECONDS
    bench.agent.step()
    assert bench.vips() == {"10.96.0.1"}
    assert "service default/web: no longer failing" in caplog.text
    assert bench.synced[-1] == []


def test_a_bug_that_one_service_meets_costs_no_other(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def buggy(one: Service, *others: Any) -> ServicePlan:
        if one.key == WEB:
            raise ZeroDivisionError("oops")
        return plan_service(one, *others)

    monkeypatch.setattr("lb.agent.plan_service", buggy)
    bench.tell(Upsert(WEB_SERVICE), Upsert(DNS_SERVICE), SYNCED)
    assert bench.vips() == {"10.96.0.2"}
    assert bench.synced == [["service default/web: ZeroDivisionError: oops"]]
    monkeypatch.undo()
    bench.now += Retries.FIRST_SECONDS
    bench.agent.step()
    assert bench.vips() == {"10.96.0.1", "10.96.0.2"}


def test_a_conflict_is_logged_once_and_again_when_it_is_over(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    younger = service(DNS, "10.96.0.1", created="2026-01-02T00:00:00Z")
    older = replace(WEB_SERVICE, created="2026-01-01T00:00:00Z")
    bench.tell(Upsert(younger), Upsert(older), SYNCED)
    bench.tell(Upsert(endpoints(WEB, "10.0.0.1")))
    said = "10.96.0.1:80/TCP belongs to the older Service default/web; kube-system/dns claims it too"
    assert caplog.text.count(said) == 1
    assert bench.synced[-1] == [said]
    [conflict] = bench.agent.conflicts()
    assert (str(conflict.winner), str(conflict.loser)) == ("default/web", "kube-system/dns")
    assert bench.announced == [("kube-system/dns", "VIPConflict")]
    bench.tell(Delete(Service, WEB))
    assert f"no longer: {said}" in caplog.text
    assert (bench.vips(), bench.synced[-1]) == ({"10.96.0.1"}, [])
    assert bench.agent.conflicts() == []


def test_conflicts_without_timestamps_stay_decided_over_a_restart(bench: Bench) -> None:
    older, newer = service(WEB, "10.96.0.1"), service(ObjectKey("default", "a"), "10.96.0.1")
    bench.tell(Upsert(older), SYNCED)
    bench.tell(Upsert(newer))
    assert bench.announced == [("default/a", "VIPConflict")]
    again = Bench(bench.maps)
    again.tell(Upsert(newer), Upsert(older), SYNCED)
    assert again.announced == [("default/a", "VIPConflict")]


def test_others_are_told_how_it_goes_before_and_after_the_first_sync(bench: Bench) -> None:
    for expected in (1, 2):
        bench.now += BEAT_SECONDS
        bench.agent.step()
        assert len(bench.beats) == expected
        bench.tell(SYNCED)


def test_new_addresses_of_the_node_reach_every_service(bench: Bench) -> None:
    bench.tell(Upsert(service(WEB, "10.96.0.1", node_port=30080)), Upsert(DNS_SERVICE), SYNCED)
    assert bench.vips() == {"10.96.0.1", "10.96.0.2", str(NODE_ADDRESS)}
    bench.attachments.addresses = (ip_address("192.0.2.12"),)
    bench.tell(InterfacesChanged(frozenset({2})))
    assert bench.vips() == {"10.96.0.1", "10.96.0.2", "192.0.2.12"}
    assert bench.attachments.attached == [None, frozenset({2})]


def test_addresses_of_the_node_object_reach_the_interfaces_and_no_service(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    for times, address in enumerate(("192.0.2.12", "192.0.2.13"), 1):
        bench.tell(Upsert(Node(NODE, (ip_address(address),))))
        assert bench.attachments.attached == [None, *[frozenset()] * times]
    bench.tell(Upsert(Node("node2", (ip_address("192.0.2.14"),))))
    assert len(bench.attachments.attached) == 3
    assert [keys for keys in bench.reconciler.syncs[1:] if keys] == []


def test_ping_addresses_of_the_node_concern_only_who_claims_them(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    external = ip_address("203.0.113.7")
    with caplog.at_level(logging.INFO):
        bench.tell(Upsert(replace(WEB_SERVICE, external_ips=(external,))), Upsert(DNS_SERVICE), SYNCED)
        assert bench.whole_addresses() == {"10.96.0.1", "10.96.0.2", str(external)}
        bench.attachments.own |= {external, ip_address("192.0.2.77")}
        bench.tell(InterfacesChanged(frozenset({2})))
    assert bench.whole_addresses() == {"10.96.0.1", "10.96.0.2"}
    assert bench.reconciler.syncs[1:] == [{WEB}]
    assert caplog.text.count("NodePorts on") == 1


def test_interface_events_that_change_no_address_plan_nothing(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.tell(InterfacesChanged(frozenset({7})), InterfacesChanged(frozenset({8})))
    assert len(bench.reconciler.syncs) == 1
    assert bench.attachments.attached[-1] == frozenset({7, 8})


def test_another_zone_of_this_node_plans_everything_and_of_another_node_nothing(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), Upsert(DNS_SERVICE), SYNCED)
    bench.tell(Upsert(Node("node2", zone="b")))
    bench.tell(Upsert(Node(NODE, zone="a")))
    assert [keys for keys in bench.reconciler.syncs[1:] if keys] == [{WEB, DNS}]


def test_empty_maps_serve_nobody_so_programs_wait_for_the_first_sync() -> None:
    bench = Bench(serving=False)
    bench.tell(Upsert(WEB_SERVICE), InterfacesChanged(frozenset({2})))
    assert bench.attachments.attached == []
    bench.tell(SYNCED)
    assert bench.attachments.attached == [None]
    assert bench.vips() == {"10.96.0.1"}


def test_the_first_sync_is_told_even_without_any_service(bench: Bench) -> None:
    bench.tell(SYNCED)
    assert bench.synced == [[]]


def test_problems_and_services_are_counted() -> None:
    bench = Bench()
    bench.attachments.problems = ["eth0: xdp-native: Device or resource busy"]
    bench.maps.fail("vips4", times=1000)
    bench.tell(
        InterfacesChanged(frozenset({2})), Upsert(WEB_SERVICE), Upsert(service(DNS, "10.96.0.1")), SYNCED
    )
    assert bench.agent.service_count() == 2
    assert bench.agent.problem_counts() == {
        "service": 1,
        "hook": 1,
        "repairs": 0,
        "conflict": 1,
        "refusal": 0,
    }
    assert len(texts(bench)) == 3


def test_the_time_of_a_sync_is_measured(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow(plans: dict[ObjectKey, ServicePlan | None]) -> SyncReport:
        bench.now += 0.25
        return Reconciler.sync(bench.reconciler, plans)

    monkeypatch.setattr(bench.reconciler, "sync", slow)
    assert bench.agent.sync_seconds == 0
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    assert 0.25 < bench.agent.sync_seconds < 0.3


def test_a_hook_that_fails_is_logged_once_and_tried_again(caplog: pytest.LogCaptureFixture) -> None:
    bench = Bench()
    bench.attachments.problems = ["eth0: xdp-native: Device or resource busy"]
    bench.tell(InterfacesChanged(frozenset({2})), SYNCED)
    bench.now += Retries.FIRST_SECONDS
    bench.agent.step()
    assert caplog.text.count("eth0: xdp-native") == 1
    bench.tell(Upsert(WEB_SERVICE))
    assert bench.synced[-1] == ["eth0: xdp-native: Device or resource busy"]
    bench.attachments.problems = []
    bench.now += Retries.MOST_SECONDS
    bench.agent.step()
    assert texts(bench) == []
    tries = len(bench.attachments.attached)
    bench.tell(Upsert(DNS_SERVICE))
    assert len(bench.attachments.attached) == tries


def test_stop_ends_the_loop_and_writes_nothing(bench: Bench) -> None:
    bench.tell(SYNCED)
    bench.maps.writes.clear()
    for message in (SourceEvents([Upsert(WEB_SERVICE)], 0.0), Stop()):
        bench.inbox.put(message)
    bench.agent.run()
    assert bench.maps.writes == []
    assert bench.agent.stopping


def test_a_source_that_fails_ends_the_agent_with_its_words(bench: Bench) -> None:
    with pytest.raises(LbError, match=r"^source manifests failed: the disk is gone$"):
        bench.tell(Failed("source manifests", OSError("the disk is gone")))


BALANCED = replace(
    WEB_SERVICE,
    type=ServiceType.LOAD_BALANCER,
    external_policy=TrafficPolicy.LOCAL,
    health_check_node_port=30500,
)


def test_health_check_node_port_is_told_after_the_sync_and_follows_the_service(bench: Bench) -> None:
    ready = Upsert(endpoints(WEB, "10.0.0.1", "10.0.0.2"))
    bench.tell(Upsert(BALANCED), ready, Upsert(DNS_SERVICE))
    assert bench.checks.unwritten == []
    bench.tell(SYNCED)
    both = frozenset(map(ip_address, ("10.0.0.1", "10.0.0.2")))
    assert bench.checks.now == {WEB: HealthCheck(30500, both)}
    bench.tell(Upsert(endpoints(WEB)))
    assert bench.checks.now == {WEB: HealthCheck(30500, frozenset())}
    bench.tell(Upsert(replace(BALANCED, health_check_node_port=30600)))
    assert bench.checks.now == {WEB: HealthCheck(30600, frozenset())}
    bench.tell(Upsert(WEB_SERVICE))
    assert bench.checks.now == {}
    bench.tell(Upsert(BALANCED))
    bench.tell(Delete(Service, WEB))
    assert bench.checks.now == {}


def test_health_check_node_port_is_told_of_services_that_were_not_written(bench: Bench) -> None:
    bench.maps.fail("vips4", times=1000)
    bench.tell(Upsert(BALANCED), SYNCED)
    assert bench.checks.unwritten == [{WEB}]


def test_health_check_node_port_moves_with_the_node_port_addresses(bench: Bench) -> None:
    bench.tell(SYNCED)
    bench.attachments.addresses = (NODE_ADDRESS, ip_address("2001:db8::11"))
    bench.tell(InterfacesChanged(frozenset({2})))
    assert bench.checks.addresses == [(NODE_ADDRESS,), bench.attachments.addresses]


def test_node_health_the_node_is_eligible_until_it_leaves(bench: Bench) -> None:
    rows: list[tuple[Event, bool]] = [
        (SYNCED, True),  # a source without Nodes: nothing speaks against it
        (Upsert(Node(NODE)), True),
        (Upsert(Node("node2", terminating=True)), True),
        (Upsert(Node(NODE, terminating=True)), False),
        (Upsert(Node(NODE)), True),
        (Delete(Node, ObjectKey("", NODE)), False),
    ]
    for event, eligible in rows:
        bench.tell(event)
        assert bench.agent.node_eligible is eligible, event


def test_node_health_the_agent_is_busy_while_a_sync_lasts(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []

    def slow(plans: dict[ObjectKey, ServicePlan | None]) -> SyncReport:
        bench.now += 61
        seen.append(bench.agent.busy_seconds())
        return Reconciler.sync(bench.reconciler, plans)

    monkeypatch.setattr(bench.reconciler, "sync", slow)
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    assert 61 < seen[0] < 62
    assert bench.agent.busy_seconds() == 0.0


def test_node_health_new_maps_are_in_service_with_the_first_sync() -> None:
    assert Bench(serving=True).agent.in_service
    new = Bench(serving=False)
    before = new.agent.in_service
    new.tell(SYNCED)
    assert (before, new.agent.in_service) == (False, True)


EVIL = ObjectKey("tenant", "evil")


def evil(*addresses: str) -> Service:
    return replace(
        service(EVIL, "10.96.0.66", created="2020"), external_ips=tuple(map(ip_address, addresses))
    )


def test_what_a_service_cannot_have_is_told_once_and_when_it_is_over(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    bench.tell(Upsert(WEB_SERVICE), Upsert(endpoints(WEB, "10.0.1.1")), Upsert(evil("10.0.1.1")), SYNCED)
    assert bench.vips() == {"10.96.0.1", "10.96.0.66"}
    told = "service tenant/evil: externalIP 10.0.1.1 is refused: it is the address of an endpoint"
    assert [record.getMessage() for record in caplog.records].count(told) == 1
    assert bench.agent.refusals() == [told]
    assert told in texts(bench)
    assert bench.agent.problem_counts()["refusal"] == 1
    assert bench.announced == [(str(EVIL), "PartRefused")]
    bench.tell(Upsert(endpoints(WEB, "10.0.1.2")))
    assert bench.vips() == {"10.96.0.1", "10.96.0.66", "10.0.1.1"}
    assert f"no longer: {told}" in caplog.text
    assert bench.agent.refusals() == []
    bench.tell(Upsert(endpoints(WEB, "10.0.1.1")))
    assert bench.vips() == {"10.96.0.1", "10.96.0.66"}


def test_a_process_that_listens_on_the_node_keeps_its_port(bench: Bench) -> None:
    bench.attachments.own = frozenset({NODE_ADDRESS})
    bench.tell(Upsert(evil(str(NODE_ADDRESS))), SYNCED)
    assert bench.vips() == {"10.96.0.66", str(NODE_ADDRESS)}
    bench.attachments.sockets = frozenset({VipKey(NODE_ADDRESS, 80, Protocol.TCP)})
    bench.now += BEAT_SECONDS
    bench.agent.step()
    bench.agent.step()
    assert bench.vips() == {"10.96.0.66"}
    (told,) = bench.agent.refusals()
    assert "externalIP 192.0.2.11:80/TCP is refused: a process of this node listens there" in told


def test_services_that_are_each_others_endpoint_have_none(bench: Bench) -> None:
    bench.tell(
        Upsert(WEB_SERVICE),
        Upsert(DNS_SERVICE),
        Upsert(endpoints(WEB, "10.96.0.2", "10.0.1.1")),
        Upsert(endpoints(DNS, "10.96.0.1")),
        SYNCED,
    )
    assert bench.backends() == {"10.0.1.1"}
    bench.tell(Delete(Service, DNS))
    assert bench.backends() == {"10.0.1.1", "10.96.0.2"}
    bench.tell(Upsert(DNS_SERVICE))
    assert bench.backends() == {"10.0.1.1"}
