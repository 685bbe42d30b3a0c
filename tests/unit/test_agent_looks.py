# SPDX-License-Identifier: Apache-2.0
"""What the agent's loop looks for without being told: what others detached, unpinned or wrote."""

from __future__ import annotations

import logging
import queue
from types import SimpleNamespace
from typing import NoReturn

import pytest

from lb.agent import AUDIT_SECONDS, LOOK_AFTER_SECONDS, LOOK_AGAIN_SECONDS
from lb.datapath.attach.hooks import LostHook
from lb.datapath.sync.ledger import read_vips, vip_keys
from lb.inbox import InterfacesChanged, Reread
from lb.model import Upsert
from lb.retries import Retries
from lb.served.repairs import OFTEN, WINDOW_SECONDS
from tests.unit.agent_bench import SYNCED, WEB, WEB_SERVICE, Bench, endpoints, texts


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_what_others_write_to_the_maps_is_told_and_healed_on_demand(bench: Bench) -> None:
    bench.tell(Upsert(WEB_SERVICE), Upsert(endpoints(WEB, "10.0.0.1")), SYNCED)
    bench.maps.delete("vips4", vip_keys(4, read_vips(bench.maps)))
    bench.attachments.changed = {"ifaces4": 1}
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


def test_a_second_look_at_what_others_wrote_is_waited_for(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent sleeps no longer than until the second look, also when nothing else is due sooner."""
    bench.tell(SYNCED)
    bench.attachments.changed = {"ifaces4": 1}
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
    bench.attachments.attached.clear()
    bench.attachments.missing = [[UPLINK_HOOK], []]
    look_after(bench)
    assert bench.attachments.attached == [None]
    assert f"{UPLINK_HOOK.place}: somebody detached it" in caplog.text
    assert (bench.agent.in_service, texts(bench), bench.agent.repairs.count) == (True, [], 1)


@pytest.mark.parametrize(("hook", "in_service"), [(UPLINK_HOOK, False), (POD_HOOK, True)])
def test_self_repair_that_fails_is_a_problem_until_it_succeeds(
    bench: Bench, hook: LostHook, in_service: bool
) -> None:
    """Without a program on an uplink nothing from outside is served: /healthz says so."""
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.attachments.missing = [[hook]] * 3
    bench.attachments.problems = ["eth0: tc ingress: Operation not permitted"]
    look_after(bench)
    assert bench.agent.in_service is in_service
    assert texts(bench) == [*bench.attachments.problems, f"{hook.place}: detached"]
    tries = len(bench.attachments.attached)
    look_after(bench)
    assert len(bench.attachments.attached) <= tries + 1, "tried as all that failed, not at every look"
    bench.attachments.problems, bench.attachments.missing = [], []
    bench.now += Retries.MOST_SECONDS
    look_after(bench)
    assert (bench.agent.in_service, texts(bench)) == (True, [])


def test_self_repair_again_and_again_is_a_problem(bench: Bench) -> None:
    """Two that take each other's hooks go on for ever, and each repair by itself goes well."""
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    for number in range(OFTEN):
        assert texts(bench) == [], number
        bench.attachments.missing = [[UPLINK_HOOK], []]
        look_after(bench)
    assert texts(bench) == [
        f"something on this node takes hooks or pins away again and again, the last time {UPLINK_HOOK.place}:"
        " each time packets go past the programs for up to three seconds"
    ]
    assert bench.agent.problem_counts()["repairs"] == 1
    bench.now += WINDOW_SECONDS
    assert texts(bench) == []


def test_a_node_without_an_uplink_is_not_in_service(bench: Bench) -> None:
    """Nothing from outside is served: /healthz says so."""
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    assert bench.agent.in_service
    bench.attachments.uplink = False
    assert not bench.agent.in_service


def test_a_change_of_interfaces_mends_what_failed_at_once(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    """An uplink that is back is served, and no problem any more, without waiting for the next try."""
    caplog.set_level(logging.INFO)
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.attachments.problems = ["uplink eth0: there is no such interface"]
    bench.tell(InterfacesChanged(frozenset({7})))
    assert texts(bench) == bench.attachments.problems
    bench.attachments.problems = []
    bench.tell(InterfacesChanged(frozenset({8})))
    assert bench.attachments.attached[-1] is None
    assert texts(bench) == []
    assert "no longer so: uplink eth0: there is no such interface" in caplog.text


def test_self_repair_removed_pins_are_pinned_again(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.attachments.unpinned = [110]
    look_after(bench)
    assert "somebody removed 110 pins of this instance: pinned again" in caplog.text
    assert bench.agent.repairs.count == 110


def test_self_repair_that_cannot_look_says_so_once(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    bench.tell(Upsert(WEB_SERVICE), SYNCED)
    bench.attachments.unpinned = [
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
    bench.attachments.missing = [[UPLINK_HOOK]]
    look_after(bench)
    assert bench.attachments.missing == [[UPLINK_HOOK]]


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
