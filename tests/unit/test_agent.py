# SPDX-License-Identifier: Apache-2.0
"""The main loop: one step at a time, with fake maps, a fake clock and the events that a source would send."""

from __future__ import annotations

import logging
import queue
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from ipaddress import ip_address
from types import SimpleNamespace
from typing import Any, NoReturn

import numpy as np
import pytest

from lb.agent import AUDIT_SECONDS, BEAT_SECONDS, LOOK_AFTER_SECONDS, LOOK_AGAIN_SECONDS, Agent
from lb.config import Limits
from lb.datapath.attach.hooks import LostHook
from lb.datapath.sync.ledger import read_vips, vip_keys
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.sync.sync_record import SyncReport
from lb.datapath.view.dump import VipEntry, dump
from lb.errors import LbError
from lb.model import (
    Delete,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Event,
    IPAddress,
    Node,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    Synced,
    TrafficPolicy,
    Upsert,
)
from lb.parts import Failed, Inbox, InterfacesChanged, Reread, Settled, SourceEvents, Stop
from lb.plan import HealthCheck, plan_service
from lb.plan.types import ServicePlan, Topology, VipKey
from lb.retries import Retries
from lb.served.history import History, Since
from lb.state import ClusterState
from tests.fake_maps import FakeMaps

NODE = "node1"
NODE_ADDRESS = ip_address("192.0.2.11")
WEB = ObjectKey("default", "web")
DNS = ObjectKey("kube-system", "dns")
SYNCED = Synced("test")
EPOCH = 1.7e9
"""Seconds by which the time of day is ahead of the bench's clock."""


def service(key: ObjectKey, address: str, *, node_port: int = 0, created: str = "") -> Service:
    return Service(
        key,
        type=ServiceType.NODE_PORT if node_port else ServiceType.CLUSTER_IP,
        ports=(ServicePort("http", Protocol.TCP, 80, 8080, node_port),),
        cluster_ips=(ip_address(address),),
        created=created,
    )


def endpoints(key: ObjectKey, *addresses: str) -> EndpointSlice:
    return EndpointSlice(
        ObjectKey(key.namespace, f"{key.name}-1"),
        key,
        (EndpointPort("http", Protocol.TCP, 8080),),
        tuple(Endpoint(ip_address(address), node=NODE) for address in addresses),
    )


WEB_SERVICE = service(WEB, "10.96.0.1")
DNS_SERVICE = service(DNS, "10.96.0.2")


class FakeSurroundings:
    """A node whose topology and whose attach failures the test sets; notes what it was asked."""

    def __init__(self) -> None:
        self.addresses: tuple[IPAddress, ...] = (NODE_ADDRESS,)
        self.own: frozenset[IPAddress] = frozenset()
        self.sockets: frozenset[VipKey] = frozenset()
        self.problems: list[str] = []
        self.attached: list[frozenset[int] | None] = []
        self.changed: dict[str, int] = {}
        self.missing: list[list[LostHook]] = []
        self.unpinned: list[int | Exception] = []

    def lost(self) -> Sequence[LostHook]:
        return self.missing.pop(0) if self.missing else []

    def mend(self) -> int:
        found = self.unpinned.pop(0) if self.unpinned else 0
        if isinstance(found, Exception):
            raise found
        return found

    def topology(self, node: Node | None, claims: Callable[[IPAddress], bool]) -> Topology:
        internal = node.addresses if node else ()
        sockets = frozenset(one for one in self.sockets if claims(one.address))
        return Topology(NODE, node.zone if node else "", self.addresses, self.own, internal, sockets)

    def attach(self, changed: frozenset[int] | None) -> Sequence[str]:
        self.attached.append(changed)
        return list(self.problems)

    def drift(self) -> dict[str, int]:
        return dict(self.changed)


class FakeChecks:
    """Notes what the agent tells of health-check ports."""

    def __init__(self) -> None:
        self.now: dict[ObjectKey, HealthCheck] = {}
        self.node_ports: dict[ObjectKey, frozenset[int]] = {}
        self.unwritten: list[set[ObjectKey]] = []
        self.addresses: list[Sequence[IPAddress]] = []

    def update(
        self,
        checks: Mapping[ObjectKey, HealthCheck | None],
        unwritten: Collection[ObjectKey],
        node_ports: Mapping[ObjectKey, frozenset[int]],
    ) -> None:
        self.node_ports |= node_ports
        self.now |= {key: check for key, check in checks.items() if check}
        for key in [key for key, check in checks.items() if check is None]:
            self.now.pop(key, None)
        self.unwritten.append(set(unwritten))

    def move(self, addresses: Sequence[IPAddress]) -> None:
        self.addresses.append(addresses)


class CountingReconciler(Reconciler):
    """The real one; notes which Services each sync was given."""

    syncs: list[set[ObjectKey]]

    def sync(self, plans: dict[ObjectKey, ServicePlan | None]) -> SyncReport:
        self.syncs.append(set(plans))
        return super().sync(plans)


class Bench:
    """An agent on a bench: everything around it is fake, but state, plan and reconciler are real."""

    def __init__(self, maps: FakeMaps | None = None, *, serving: bool = True) -> None:
        self.now = 1000.0
        self.maps = maps or FakeMaps(Limits(backends=64, table_rows=65536, vips=64, services=64))
        self.surroundings = FakeSurroundings()
        self.checks = FakeChecks()
        self.inbox: Inbox = queue.SimpleQueue()
        self.history = History(self.clock, lambda: self.now + EPOCH)
        self.latencies: list[tuple[Since, float]] = []
        self.history.measured = lambda since, seconds: self.latencies.append((since, seconds))
        self.reconciler = CountingReconciler(
            self.maps, self.clock, settle=lambda: None, tell=self.history.wrote
        )
        self.reconciler.syncs = []
        self.reconciler.recover()
        self.synced: list[list[str]] = []
        self.beats: list[list[str]] = []
        self.announced: list[tuple[str, str]] = []
        self.state = ClusterState()
        self.agent = Agent(
            inbox=self.inbox,
            state=self.state,
            node_name=NODE,
            surroundings=self.surroundings,
            reconciler=self.reconciler,
            serving=serving,
            checks=self.checks,
            history=self.history,
            announce=lambda key, note: self.announced.append((str(key), note.reason)),
            synced=lambda agent: self.synced.append([one.text for one in agent.problems()]),
            beat=lambda agent: self.beats.append([one.text for one in agent.problems()]),
            clock=self.clock,
        )

    def clock(self) -> float:
        # The time passes while somebody looks at the clock: gathering ends without a real wait.
        self.now += 0.001
        return self.now

    def tell(self, *messages: Event | InterfacesChanged | Failed | Settled | Stop) -> None:
        """Put the messages into the inbox, each event in a batch of its own, and let the agent step once."""
        for message in messages:
            if isinstance(message, InterfacesChanged | Failed | Settled | Stop):
                self.inbox.put(message)
            else:
                self.inbox.put(SourceEvents([message], self.now))
        self.agent.step()

    def vips(self) -> set[str]:
        keys, _ = self.maps.read("vips4")
        return {str(ip_address(int(key["address"]))) for key in keys}

    def backends(self) -> set[str]:
        vips = dump(self.maps, 0, ("vips",))["vips"]
        return {each.address for vip in vips if isinstance(vip, VipEntry) for each in vip.backends}

    def whole_addresses(self) -> set[str]:
        return {str(vip.address) for vip in read_vips(self.maps) if vip.protocol is None}


def texts(bench: Bench) -> list[str]:
    """Return what is wrong; each has to say what to do."""
    problems = bench.agent.problems()
    assert all(one.next for one in problems)
    return [one.text for one in problems]


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
    bench.reconciler._resting._begin = lambda: lambda: passed
    bench.tell(Upsert(WEB_SERVICE), Upsert(endpoints(WEB, "10.0.0.1", "10.0.0.2")), SYNCED)
    bench.tell(Upsert(endpoints(WEB, "10.0.0.1")))
    slots = bench.maps.array("backends4")
    bench.tell(Settled())
    assert np.count_nonzero(slots["state"]) == 2
    passed = True
    bench.tell(Settled())
    assert np.count_nonzero(slots["state"]) == 1


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
    bench.surroundings.addresses = (ip_address("192.0.2.12"),)
    bench.tell(InterfacesChanged(frozenset({2})))
    assert bench.vips() == {"10.96.0.1", "10.96.0.2", "192.0.2.12"}
    assert bench.surroundings.attached == [None, frozenset({2})]


def test_addresses_of_the_node_object_reach_the_interfaces_and_no_service(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    for times, address in enumerate(("192.0.2.12", "192.0.2.13"), 1):
        bench.tell(Upsert(Node(NODE, (ip_address(address),))))
        assert bench.surroundings.attached == [None, *[frozenset()] * times]
    bench.tell(Upsert(Node("node2", (ip_address("192.0.2.14"),))))
    assert len(bench.surroundings.attached) == 3
    assert [keys for keys in bench.reconciler.syncs[1:] if keys] == []


def test_ping_addresses_of_the_node_concern_only_who_claims_them(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    external = ip_address("203.0.113.7")
    with caplog.at_level(logging.INFO):
        bench.tell(Upsert(replace(WEB_SERVICE, external_ips=(external,))), Upsert(DNS_SERVICE), SYNCED)
        assert bench.whole_addresses() == {"10.96.0.1", "10.96.0.2", str(external)}
        bench.surroundings.own |= {external, ip_address("192.0.2.77")}
        bench.tell(InterfacesChanged(frozenset({2})))
    assert bench.whole_addresses() == {"10.96.0.1", "10.96.0.2"}
    assert bench.reconciler.syncs[1:] == [{WEB}]
    assert caplog.text.count("NodePorts on") == 1


def test_interface_events_that_change_no_address_plan_nothing(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.tell(InterfacesChanged(frozenset({7})), InterfacesChanged(frozenset({8})))
    assert len(bench.reconciler.syncs) == 1
    assert bench.surroundings.attached[-1] == frozenset({7, 8})


def test_another_zone_of_this_node_plans_everything_and_of_another_node_nothing(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), Upsert(DNS_SERVICE), SYNCED)
    bench.tell(Upsert(Node("node2", zone="b")))
    bench.tell(Upsert(Node(NODE, zone="a")))
    assert [keys for keys in bench.reconciler.syncs[1:] if keys] == [{WEB, DNS}]


def test_empty_maps_serve_nobody_so_programs_wait_for_the_first_sync() -> None:
    bench = Bench(serving=False)
    bench.tell(Upsert(WEB_SERVICE), InterfacesChanged(frozenset({2})))
    assert bench.surroundings.attached == []
    bench.tell(SYNCED)
    assert bench.surroundings.attached == [None]
    assert bench.vips() == {"10.96.0.1"}


def test_the_first_sync_is_told_even_without_any_service(bench: Bench) -> None:
    bench.tell(SYNCED)
    assert bench.synced == [[]]


def test_problems_and_services_are_counted() -> None:
    bench = Bench()
    bench.surroundings.problems = ["eth0: xdp-native: Device or resource busy"]
    bench.maps.fail("vips4", times=1000)
    bench.tell(
        InterfacesChanged(frozenset({2})), Upsert(WEB_SERVICE), Upsert(service(DNS, "10.96.0.1")), SYNCED
    )
    assert bench.agent.service_count() == 2
    assert bench.agent.problem_counts() == {"service": 1, "hook": 1, "conflict": 1, "refusal": 0}
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
    bench.surroundings.problems = ["eth0: xdp-native: Device or resource busy"]
    bench.tell(InterfacesChanged(frozenset({2})), SYNCED)
    bench.now += Retries.FIRST_SECONDS
    bench.agent.step()
    assert caplog.text.count("eth0: xdp-native") == 1
    bench.tell(Upsert(WEB_SERVICE))
    assert bench.synced[-1] == ["eth0: xdp-native: Device or resource busy"]
    bench.surroundings.problems = []
    bench.now += Retries.MOST_SECONDS
    bench.agent.step()
    assert texts(bench) == []
    tries = len(bench.surroundings.attached)
    bench.tell(Upsert(DNS_SERVICE))
    assert len(bench.surroundings.attached) == tries


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


# Health ----------------------------------------------------------------------------------------------------

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
    bench.surroundings.addresses = (NODE_ADDRESS, ip_address("2001:db8::11"))
    bench.tell(InterfacesChanged(frozenset({2})))
    assert bench.checks.addresses == [(NODE_ADDRESS,), bench.surroundings.addresses]


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


def test_what_others_write_to_the_maps_is_told_and_healed_on_demand(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), Upsert(endpoints(WEB, "10.0.0.1")), SYNCED)
    bench.maps.delete("vips4", vip_keys(4, read_vips(bench.maps)))
    bench.surroundings.changed = {"ifaces4": 1}
    bench.now += AUDIT_SECONDS
    bench.agent.step()
    assert bench.agent.drift["vips4"] > 0
    assert not bench.agent.drift["ifaces4"], "it may have changed just now"
    bench.now += LOOK_AGAIN_SECONDS
    bench.agent.step()
    (problem,) = texts(bench)
    assert "somebody else has written to the maps" in problem
    assert ": 1 of ifaces4, " in problem
    assert "of vips4; lbctl audit names and heals it" in problem
    assert bench.vips() == set()
    bench.inbox.put(Reread())
    bench.agent.step()
    assert bench.vips() == {"10.96.0.1"}
    assert texts(bench) == []


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
    bench.surroundings.own = frozenset({NODE_ADDRESS})
    bench.tell(Upsert(evil(str(NODE_ADDRESS))), SYNCED)
    assert bench.vips() == {"10.96.0.66", str(NODE_ADDRESS)}
    bench.surroundings.sockets = frozenset({VipKey(NODE_ADDRESS, 80, Protocol.TCP)})
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


def test_a_second_look_at_what_others_wrote_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent sleeps no longer than until the second look, also when nothing else is due sooner."""
    bench.tell(SYNCED)
    bench.surroundings.changed = {"ifaces4": 1}
    bench.now += AUDIT_SECONDS
    bench.agent.step()
    waits: list[float] = []

    def wait(timeout: float) -> NoReturn:
        waits.append(timeout)
        raise queue.Empty

    monkeypatch.setattr(bench.agent, "_inbox", SimpleNamespace(get=wait))
    bench.agent.step()
    assert waits[0] <= LOOK_AGAIN_SECONDS


UPLINK_HOOK = LostHook("uplink eth0, tc ingress: lb_tc_uplink_in", outward=True)
POD_HOOK = LostHook("pod pod-x, tc egress: lb_tc_pod_out", outward=False)


def look_after(bench: Bench) -> None:
    """Let the time pass after which the agent looks at its hooks and pins."""
    bench.now += LOOK_AFTER_SECONDS
    bench.tell()


def test_self_repair_a_detached_hook_is_told_and_attached_again(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.surroundings.attached.clear()
    bench.surroundings.missing = [[UPLINK_HOOK], []]
    look_after(bench)
    assert bench.surroundings.attached == [None]
    assert f"{UPLINK_HOOK.place}: somebody detached it" in caplog.text
    assert (bench.agent.in_service, texts(bench), bench.agent.repairs) == (True, [], 1)


@pytest.mark.parametrize(("hook", "in_service"), [(UPLINK_HOOK, False), (POD_HOOK, True)])
def test_self_repair_that_fails_is_a_problem_until_it_succeeds(
    bench: Bench, hook: LostHook, in_service: bool
) -> None:
    """Without a program on an uplink nothing from outside is served: /healthz says so."""
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.surroundings.missing = [[hook]] * 3
    bench.surroundings.problems = ["eth0: tc ingress: Operation not permitted"]
    look_after(bench)
    assert bench.agent.in_service is in_service
    assert texts(bench) == [*bench.surroundings.problems, f"{hook.place}: detached"]
    tries = len(bench.surroundings.attached)
    look_after(bench)
    assert len(bench.surroundings.attached) <= tries + 1, "tried as all that failed, not at every look"
    bench.surroundings.problems, bench.surroundings.missing = [], []
    bench.now += Retries.MOST_SECONDS
    look_after(bench)
    assert (bench.agent.in_service, texts(bench)) == (True, [])


def test_self_repair_removed_pins_are_pinned_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.surroundings.unpinned = [110]
    look_after(bench)
    assert "somebody removed 110 pins of this instance: pinned again" in caplog.text
    assert bench.agent.repairs == 110


def test_self_repair_that_cannot_look_says_so_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.surroundings.unpinned = [
        PermissionError(1, "not permitted"),
        PermissionError(1, "not permitted"),
        0,
    ]
    look_after(bench)
    look_after(bench)
    assert caplog.text.count("cannot look after hooks and pins: [Errno 1] not permitted") == 1
    assert texts(bench) == ["cannot look after hooks and pins: [Errno 1] not permitted"]
    look_after(bench)
    assert texts(bench) == []


def test_self_repair_waits_for_the_first_sync() -> None:
    bench = Bench(serving=False)
    bench.surroundings.missing = [[UPLINK_HOOK]]
    look_after(bench)
    assert bench.surroundings.missing == [[UPLINK_HOOK]]


def test_self_repair_is_looked_for_in_time(bench: Bench) -> None:
    """The agent waits for messages no longer than until it is due."""
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    asked: list[float | None] = []

    class Silent(queue.SimpleQueue):  # type: ignore[type-arg]
        def get(self, block: bool = True, timeout: float | None = None) -> object:
            asked.append(timeout)
            raise queue.Empty

    bench.agent._inbox = Silent()
    bench.agent.step()
    (timeout,) = asked
    assert timeout is not None
    assert timeout <= LOOK_AFTER_SECONDS
