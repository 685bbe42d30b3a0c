# SPDX-License-Identifier: Apache-2.0
"""What the agent remembers of its writes: cause, latency, entries; how much; and how it is told."""

from __future__ import annotations

import json
import tracemalloc
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lb.cli import history as command
from lb.datapath.sync.ledger import read_vips, vip_keys
from lb.datapath.sync.sync_record import MOST_NAMED, Part, Written
from lb.errors import LbError
from lb.inbox import InterfacesChanged, Reread
from lb.model import Delete, EndpointSlice, Node, ObjectKey, Protocol, Service, Upsert
from lb.plan.types import VipKey
from lb.retries import Retries
from lb.rundir import RunDir
from lb.served.ask import ask
from lb.served.history import IN_ALL, OF_ONE, START, Cause, History, Since, cause_of, history_answer
from lb.served.http import Request, routes
from tests.unit.agent_bench import (
    DNS,
    DNS_SERVICE,
    EPOCH,
    SYNCED,
    WEB,
    WEB_SERVICE,
    Bench,
    endpoints,
    service,
)
from tests.unit.http_bench import serving

ONE = "10.0.0.1"
TWO = "10.0.0.2"


def told(bench: Bench, key: ObjectKey = WEB) -> list[tuple[list[str], list[str]]]:
    """Return each change's causes, and what became of its entries as the command prints it."""
    entries = [entry.as_dict() for entry in bench.history.of(key)]
    return [(one["causes"], [command.change(part, {}) for part in one["changes"]]) for one in entries]


@pytest.fixture
def bench() -> Bench:
    """An agent that serves WEB with one endpoint, and remembers that."""
    bench = Bench()
    bench.tell(Upsert(WEB_SERVICE), Upsert(endpoints(WEB, ONE)), SYNCED)
    return bench


# What is noted -------------------------------------------------------------------------------------------


def test_the_first_sync_has_the_start_as_its_cause_and_no_latency(bench: Bench) -> None:
    whole, port = "10.96.0.1", "10.96.0.1:80/TCP"
    (entry,) = bench.history.of(WEB)
    assert (entry.causes, entry.seconds) == ((START,), None)
    (vips, backends, rows) = told(bench)[0][1]
    assert vips.startswith("+ 2 VIPs")
    assert {whole, port} == set(vips.removeprefix("+ 2 VIPs ").split(", "))
    assert (backends, rows) == ("+ 1 backend 10.0.0.1:8080", "+ 1 table row")
    assert bench.latencies == []


def test_a_restart_that_writes_nothing_remembers_nothing(bench: Bench) -> None:
    after = Bench(bench.maps)
    after.tell(Upsert(WEB_SERVICE), Upsert(endpoints(WEB, ONE)), SYNCED)
    assert told(after) == []


def test_a_change_of_endpoints_names_its_slice_and_the_backends(bench: Bench) -> None:
    bench.tell(Upsert(endpoints(WEB, TWO)))
    causes, changes = told(bench)[-1]
    assert causes == ["EndpointSlice web-1"]
    assert changes[0].startswith("~ 2 VIPs")
    assert changes[1:] == ["+ 1 backend 10.0.0.2:8080", "- 1 backend 10.0.0.1:8080", "+ 1 table row"]


def test_an_endpoint_that_terminates_and_comes_back(bench: Bench) -> None:
    piece = endpoints(WEB, ONE, TWO)
    bench.tell(Upsert(piece))
    first, second = piece.endpoints
    ending = type(second)(second.address, ready=False, terminating=True, node=second.node)
    bench.tell(Upsert(replace(piece, endpoints=(first, ending))))
    assert "terminating: 1 backend 10.0.0.2:8080" in told(bench)[-1][1]
    bench.tell(Upsert(piece))
    assert "active again: 1 backend 10.0.0.2:8080" in told(bench)[-1][1]


def test_a_deleted_service_leaves_its_removal_behind(bench: Bench) -> None:
    bench.tell(Delete(EndpointSlice, ObjectKey("default", "web-1")), Delete(Service, WEB))
    causes, changes = told(bench)[-1]
    assert causes == ["EndpointSlice web-1 deleted", "Service web deleted"]
    assert [line[: len("- 1 backend")] for line in changes] == ["- 2 VIPs 10", "- 1 backend"]


def test_what_changes_nothing_in_the_maps_is_not_remembered(bench: Bench) -> None:
    before = told(bench)
    bench.tell(Upsert(replace(WEB_SERVICE, health_check_node_port=30999)))
    assert told(bench) == before
    assert [since for since, _ in bench.latencies] == [Since.ARRIVAL]


def test_a_change_of_affinity_is_a_change_of_vips(bench: Bench) -> None:
    bench.tell(Upsert(replace(WEB_SERVICE, affinity_seconds=60)))
    causes, changes = told(bench)[-1]
    assert causes == ["Service web"]
    assert [line.split()[:3] for line in changes] == [["~", "2", "VIPs"]]


def test_a_node_that_moves_and_interfaces_that_change_are_causes(bench: Bench) -> None:
    bench.tell(Upsert(service(DNS, "10.96.0.2", node_port=30053)))
    bench.attachments.addresses = (ip_address("192.0.2.12"),)
    bench.tell(InterfacesChanged(frozenset({3})))
    causes, changes = told(bench, DNS)[-1]
    assert causes == ["interfaces"]
    assert changes == ["+ 1 VIP 192.0.2.12:30053/TCP", "- 1 VIP 192.0.2.11:30053/TCP"]
    bench.attachments.addresses = (ip_address("192.0.2.13"),)
    bench.tell(Upsert(Node("node1", zone="east")))
    assert told(bench, DNS)[-1][0] == ["Node node1"]


def test_a_heal_is_a_cause(bench: Bench) -> None:
    bench.maps.delete("vips4", vip_keys(4, read_vips(bench.maps)))
    bench.inbox.put(Reread())
    bench.agent.step()
    causes, changes = told(bench)[-1]
    assert (causes, changes[0].split()[:3]) == (["heal"], ["+", "2", "VIPs"])


def test_another_services_claim_is_a_cause(bench: Bench) -> None:
    younger = replace(service(DNS, "10.96.0.1"), created="2026-01-02T00:00:00Z")
    bench.tell(Upsert(younger), Upsert(replace(WEB_SERVICE, created="2026-01-01T00:00:00Z")))
    bench.tell(Delete(Service, WEB))
    causes, changes = told(bench, DNS)[-1]
    assert causes == ["claim"]
    assert "+ 2 VIPs" in changes[0]


def test_a_service_that_failed_keeps_its_cause_and_counts_the_wait(bench: Bench) -> None:
    bench.maps.fail("vips4", times=1000)
    bench.tell(Upsert(endpoints(WEB, TWO)))
    assert (len(told(bench)), bench.latencies) == (1, [])
    bench.maps.fail("vips4", times=0)
    bench.now += Retries.FIRST_SECONDS
    bench.agent.step()
    entry = bench.history.of(WEB)[-1]
    assert list(map(str, entry.causes)) == ["EndpointSlice web-1"]
    assert entry.seconds is not None
    assert entry.seconds > Retries.FIRST_SECONDS
    ((since, seconds),) = bench.latencies
    assert (since, seconds > Retries.FIRST_SECONDS) == (Since.ARRIVAL, True)


# Latency -------------------------------------------------------------------------------------------------


def test_latency_counts_from_what_triggered_the_slice(bench: Bench) -> None:
    bench.now += 10
    bench.tell(Upsert(replace(endpoints(WEB, TWO), triggered=EPOCH + bench.now - 3)))
    ((since, seconds),) = bench.latencies
    assert since is Since.TRIGGER
    assert 3 < seconds < 3.5


def test_a_trigger_before_the_start_is_not_the_agents_latency(bench: Bench) -> None:
    bench.tell(Upsert(replace(endpoints(WEB, TWO), triggered=EPOCH + 10)))
    ((since, seconds),) = bench.latencies
    assert (since, seconds < 1) == (Since.ARRIVAL, True)


def test_every_event_has_a_latency_of_its_own(bench: Bench) -> None:
    bench.tell(Upsert(endpoints(WEB, TWO)), Upsert(endpoints(WEB, ONE, TWO)), Upsert(DNS_SERVICE))
    assert len(bench.latencies) == 3


# Bounds --------------------------------------------------------------------------------------------------


def a_write(number: int, names: int = MOST_NAMED) -> Written:
    vips = tuple(VipKey(ip_address(number << 8 | at), 80, Protocol.TCP) for at in range(names))
    backends = tuple((number << 8 | at) << 16 | 8080 for at in range(names))
    key = ObjectKey("default", f"s{number}")
    parts = (Part("vips", "added", 2, vips[:2]), Part("backends", "added", names, backends))
    return Written(key, 4, (*parts, Part("table_rows", "added", 32)))


def test_only_the_last_changes_of_a_service_are_kept() -> None:
    history = History()
    other = a_write(2)
    history.wrote(other)
    for number in range(OF_ONE + 5):
        history.wrote(Written(WEB, 4, (Part("table_rows", "added", number),)))
    assert [entry.written.parts[0].count for entry in history.of(WEB)] == list(range(5, OF_ONE + 5))
    assert [entry.written for entry in history.of(other.key)] == [other]


def test_of_all_services_the_oldest_change_goes_first_and_memory_is_bounded() -> None:
    tracemalloc.start()
    try:
        history = History()
        for number in range(IN_ALL + 500):
            key = ObjectKey("default", f"s{number}")
            history.due((key,), Cause("EndpointSlice", f"s{number}-abcde"), 1.0)
            history.wrote(a_write(number))
            history.settled((key,))
        used, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(history.last(10 * IN_ALL)) == IN_ALL
    assert history.of(ObjectKey("default", "s499")) == []
    assert len(history.of(ObjectKey("default", "s500"))) == 1
    assert len(history._of_service) == IN_ALL
    assert used < 4_000_000


def test_causes_and_beginnings_of_a_service_that_keeps_failing_are_bounded() -> None:
    history = History()
    for number in range(1000):
        history.due((WEB,), Cause("EndpointSlice", f"web-{number}"), float(number))
    history.wrote(Written(WEB, 4, (Part("table_rows", "added", 1),)))
    (entry,) = history.of(WEB)
    assert len(entry.causes) + entry.more == 1000
    assert len(entry.causes) < 10
    measured: list[float] = []
    history.measured = lambda _since, seconds: measured.append(seconds)
    history.settled((WEB,))
    assert 0 < len(measured) < 100


def test_many_names_are_cut_and_counted(bench: Bench) -> None:
    many = [f"10.0.1.{number}" for number in range(MOST_NAMED + 3)]
    bench.tell(Upsert(endpoints(WEB, *many)))
    added = next(line for line in told(bench)[-1][1] if line.startswith("+ 11 backends"))
    assert added.endswith("and 3 more")


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (Upsert(WEB_SERVICE), "Service web"),
        (Upsert(Node("n1")), "Node n1"),
        (Delete(Node, ObjectKey("", "n1")), "Node n1 deleted"),
        (Delete(EndpointSlice, ObjectKey("a", "b")), "EndpointSlice b deleted"),
    ],
)
def test_an_events_cause(event: Any, text: str) -> None:
    assert str(cause_of(event)) == text


# Telling -------------------------------------------------------------------------------------------------


def answered(history: History, query: str) -> tuple[int, Any]:
    response = history_answer(history, "n1", "yesterday")(Request("GET", "/api/history", query, {}))
    return response.status, json.loads(response.body)


def test_the_answer_for_one_service_and_for_all(bench: Bench) -> None:
    bench.tell(Upsert(DNS_SERVICE))
    status, one = answered(bench.history, "service=default/web")
    assert (status, one["service"], len(one["changes"])) == (200, "default/web", 1)
    _, every = answered(bench.history, "")
    assert [change["service"] for change in every["changes"]] == ["default/web", "kube-system/dns"]
    assert answered(bench.history, "service=web") == (400, {"error": "service: must be NAMESPACE/NAME"})


def test_the_command_asks_the_agent_at_its_socket(bench: Bench, tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    address = (str(run_dir.socket_path), 0)
    with serving() as server, run_dir.lock():
        server.open(address, routes({"/api/history": history_answer(bench.history, "n1", "now")}), "lbctl")
        assert server.bound(address) == address
        assert run_dir.socket_path.stat().st_mode & 0o777 == 0o600
        text = command.render(ask(run_dir, "/api/history", service="default/web"), {})
        with pytest.raises(LbError, match="instance n1: service: must be NAMESPACE/NAME"):
            ask(run_dir, "/api/history", service="web")
    assert not run_dir.socket_path.exists()
    head, *lines = text.splitlines()
    assert head.endswith("IPv4: start")
    assert lines[1:] == ["    + 1 backend 10.0.0.1:8080", "    + 1 table row"]


def test_a_socket_that_an_agent_left_behind_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "n1.sock"
    path.write_text("")
    with serving() as server:
        server.open((str(path), 0), routes({}), "lbctl")
        assert path.is_socket()


def test_an_instance_of_a_long_name_has_a_socket_too(tmp_path: Path) -> None:
    paths = {RunDir(name * 200, Path("/run/lbctl")).socket_path for name in "ab"}
    assert len(paths) == 2
    assert all(len(str(path)) <= 107 for path in paths)


def test_without_an_agent_the_command_says_so(tmp_path: Path) -> None:
    with pytest.raises(LbError, match=r"instance n1: no agent runs, and this is in an agent's memory alone"):
        ask(RunDir("n1", tmp_path), "/api/history")


def test_an_agent_that_does_not_answer_is_named(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    with run_dir.lock(), pytest.raises(LbError, match=r"process \d+, does not answer at .*n1\.sock"):
        ask(run_dir, "/api/history")


def test_a_service_without_a_history_is_said_to_have_none() -> None:
    found = {"service": "default/web", "agent_started": "2026-11-22T10:00:00+00:00", "changes": []}
    assert command.render(found, {}) == (
        "default/web: nothing was written for it that the agent remembers;"
        " it started 2026-11-22T10:00:00+00:00\n"
    )


def test_backends_whose_pods_are_known_have_their_names() -> None:
    part = {"verb": "added", "what": "backends", "count": 2, "names": ["10.0.0.1:80", "10.0.0.2:80"]}
    known = {"10.0.0.1:80": "default/web-1"}
    assert command.change(part, known) == "+ 2 backends 10.0.0.1:80 (web-1), 10.0.0.2:80"
