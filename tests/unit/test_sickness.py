# SPDX-License-Identifier: Apache-2.0
"""What is wrong with lbctl itself is told unasked: with its time, and with what to do."""

from __future__ import annotations

import contextlib
import datetime
import json
import logging
import os
import time
from collections.abc import Iterator
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lb.cli.status import render
from lb.cutover.take_over import set_cutover
from lb.datapath.maps.fill import MapFill, evictions
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import Cutover
from lb.datapath.maps.map_table import MAPS, MapType
from lb.errors import LbError
from lb.model import Endpoint, EndpointSlice, Node, ObjectKey, Upsert
from lb.rundir import RunDir
from lb.served import status, takeover
from lb.served.http import Request, Response
from lb.served.liveness import SILENT_SECONDS, Liveness, liveness
from lb.served.missing_nodes import ASKED_AT_ONCE, MissingNodes
from lb.served.pressure import LOOK_SECONDS, Pressure
from lb.served.problems import Problem, Since, read_notes
from lb.served.starts import OFTEN, WINDOW_SECONDS, Starts
from lb.state import ClusterState
from tests.fake_maps import FakeMaps
from tests.unit.http_bench import serving
from tests.unit.pins_bench import own_pins, pin_empty_maps

PID = 77
WELL = {"pid": PID, "beat": 1000.0}


class Agent(RunDir):
    """A run directory whose lock a process holds."""

    pid: int | None = PID

    def holder(self) -> int | None:
        return self.pid


@pytest.fixture
def run_dir(tmp_path: Path) -> Agent:
    (tmp_path / "proc" / str(PID)).mkdir(parents=True)
    state(tmp_path, "S")
    return Agent("n1", tmp_path)


def state(folder: Path, letter: str) -> None:
    """Let the process be in a state; its name has what /proc/PID/stat is hard to read by."""
    (folder / "proc" / str(PID) / "stat").write_text(f"{PID} (lbctl) T (x) {letter} 1 77 77 0 -1\n")


def look(run_dir: RunDir, now: float, notes: dict[str, object] | None = None) -> Liveness:
    return liveness(run_dir, WELL if notes is None else notes, clock=lambda: now, proc=run_dir.root / "proc")


@contextlib.contextmanager
def answering(run_dir: RunDir, beat: float) -> Iterator[None]:
    """Answer at the agent's socket when it last came round its loop."""

    def answer(_request: Request) -> Response:
        return Response(200, json.dumps({"beat": beat}).encode())

    with serving() as server:
        server.open((str(run_dir.socket_path), 0), answer, "lbctl")
        yield


def test_an_agent_that_gets_on_is_no_problem(run_dir: Agent) -> None:
    assert look(run_dir, 1000 + SILENT_SECONDS).problem() is None


def test_an_agent_that_does_not_run_is_named(run_dir: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Agent, "pid", None)
    problem = look(run_dir, 1000).problem()
    assert problem is not None
    assert problem.text.startswith("no agent runs")
    assert "lbctl run" in problem.next


def test_a_stopped_agent_is_named_at_once_with_what_wakes_it(run_dir: Agent) -> None:
    state(run_dir.root, "T")
    problem = look(run_dir, 1038).problem()
    assert problem == Problem(
        f"the agent, process {PID}, is stopped by a signal or a debugger, silent for 38 s:"
        " changes are not taken in",
        f"kill -CONT {PID}; it then takes in by itself what it missed",
    )
    assert look(run_dir, 1000).silent


def test_an_agent_that_starts_is_not_silent(run_dir: Agent) -> None:
    """Its notes are those of the one before."""
    assert not look(run_dir, 9000, {**WELL, "pid": 76}).silent
    assert not look(run_dir, 9000, {}).silent
    state(run_dir.root, "T")
    assert look(run_dir, 9000, {}).silent


def test_a_silent_agent_is_named_with_how_long(run_dir: Agent) -> None:
    problem = look(run_dir, 1100).problem()
    assert problem is not None
    assert f"process {PID}, is silent for 100 s" in problem.text


def test_notes_that_cannot_be_written_are_no_silence(run_dir: Agent) -> None:
    with answering(run_dir, 1095.0):
        found = look(run_dir, 1100)
    problem = found.problem()
    assert problem is not None
    assert problem.text == "what is said here of the agent is 100 s old: it cannot write notes"
    assert not found.silent


def test_an_agent_that_hangs_in_its_loop_is_named(run_dir: Agent) -> None:
    with answering(run_dir, 1002.0):
        problem = look(run_dir, 1100).problem()
    assert problem is not None
    assert "has been at one step of its work for 98 s" in problem.text


def test_an_agent_does_not_ask_itself(run_dir: Agent, monkeypatch: pytest.MonkeyPatch) -> None:
    """The page is answered by the thread that would have to answer."""
    monkeypatch.setattr(Agent, "pid", os.getpid())
    found = look(run_dir, 1100, {"pid": os.getpid(), "beat": 1000.0})
    assert (found.silent_seconds, found.answers) == (100, True)


def test_a_problem_keeps_its_time_until_it_is_over() -> None:
    now = [0.0]
    since = Since(lambda: now[0])
    full, other = Problem("full", "raise it"), Problem("other")
    assert since.noted([full]) == [{"text": "full", "next": "raise it", "since": "1970-01-01T00:00:00+00:00"}]
    now[0] = 60
    assert [one["since"][14:19] for one in since.noted([full, other])] == ["00:00", "01:00"]
    since.noted([other])
    now[0] = 120
    assert [one["since"][14:19] for one in since.noted([full, other])] == ["02:00", "01:00"]


def test_notes_of_an_older_version_are_read() -> None:
    assert read_notes(["full"]) == [{"text": "full", "next": "", "since": None}]


def test_evictions_are_told_once_with_the_limit_to_raise(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    now, counts = [0.0], {"flows4": 7, "affinity6": 0}
    pressure = Pressure(lambda: dict(counts), lambda: now[0])
    pressure.look()
    assert pressure.problems() == ()  # what was there at the start is nobody's news
    counts["flows4"] += 456
    pressure.look()
    assert pressure.problems() == ()  # it is not time yet
    now[0] += LOOK_SECONDS
    pressure.look()
    (problem,) = pressure.problems()
    assert problem.text == (
        "flows4 is too small: 456 established connections made room for new ones within 5 min"
    )
    assert problem.next.startswith("raise --limits-flows: docs/operations.md")
    now[0] += LOOK_SECONDS
    pressure.look()
    assert pressure.problems() == ()
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
    assert "456 established connections" in caplog.records[0].getMessage()


def test_evictions_are_read_of_every_table_that_forgets() -> None:
    caches = {spec.name for spec in MAPS if spec.type is MapType.CACHE}
    assert {"flows4", "flows6", "affinity4", "affinity6"} == caches == evictions(FakeMaps()).keys()


def test_status_names_full_maps_and_what_was_evicted_since_the_agent_looked() -> None:
    fills = [
        MapFill("vips4", 61, 64, "refused"),
        MapFill("flows4", 64, 64, "forgets", evicted=500, provisional=0),
        MapFill("sockets4", 64, 64, "forgets"),
        MapFill("tables", 60, 64, "refused"),
        MapFill("nodes", 64, 64, "refused"),
    ]
    found = list(status.full(fills, {"evicted": {"flows4": 44}}))
    assert [one.text for one in found] == [
        "map vips4 is 95 % full: what is new will be refused",
        "flows4 is too small: 456 established connections made room for new ones within the last minutes",
        "map tables is 93 % full: what is new will be refused",
        "map nodes is 100 % full: what is new will be refused",
    ]
    assert [one.next.partition(":")[0].split(",")[0] for one in found] == [
        "raise --limits-vips",
        "raise --limits-flows",
        "raise --limits-table-rows",
        "its size is fixed",
    ]


def test_evictions_of_before_the_agents_first_look_are_no_news() -> None:
    assert not list(status.full([MapFill("flows4", 1, 64, "forgets", evicted=9, provisional=0)], {}))


def on_nodes(*names: str) -> ClusterState:
    """Return a state with a Service that has an endpoint on each of these nodes."""
    endpoints = tuple(Endpoint(ip_address(f"10.0.0.{at}"), node=name) for at, name in enumerate(names, 1))
    piece = EndpointSlice(ObjectKey("shop", "web-1"), ObjectKey("shop", "web"), endpoints=endpoints)
    state = ClusterState()
    state.apply([Upsert(piece)])
    return state


def test_a_node_that_is_gone_is_told_once_and_until_it_is_back(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    state = on_nodes("here", "gone", "")
    nodes = MissingNodes(state, None)
    nodes.look()
    assert nodes.problems() == []  # manifests without a Node say nothing of nodes
    state.apply([Upsert(Node("here"))])
    nodes.look()
    nodes.look()
    (problem,) = nodes.problems()
    assert problem.text == "there is no Node gone, but endpoints on it get their share of connections"
    assert "lbctl explain shop/web" in problem.next
    state.apply([Upsert(Node("gone"))])
    nodes.look()
    assert nodes.problems() == []
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]


def test_an_api_server_is_asked_about_a_few_nodes_at_a_time() -> None:
    names = [f"n{number}" for number in range(2 * ASKED_AT_ONCE)]
    asked: list[str] = []
    away = False

    def lacks(name: str) -> bool:
        if away:
            raise LbError("nobody answers")
        asked.append(name)
        return name == "n0"

    nodes = MissingNodes(on_nodes(*names), lacks)
    nodes.look()
    assert sorted(asked) == names[:ASKED_AT_ONCE]
    away = True
    nodes.look()
    away = False
    nodes.look()
    assert len(nodes.problems()) == 1, "what was missing stays so while nobody answers"
    assert set(asked) == set(names)
    assert asked.count("n0") == 2, "one that is missing is asked about again"


@pytest.mark.parametrize(
    ("what", "next_step"),
    [
        (Cutover.TAKE, "lbctl cutover moves connections"),
        (Cutover.LEAVE, "call lbctl cutover --back again"),
    ],
)
def test_a_takeover_that_is_not_finished_is_named_until_it_is(
    run_dir: Agent, what: Cutover, next_step: str
) -> None:
    with own_pins() as pins:
        pin_empty_maps(pins)
        pin = pins.maps / "cutover"
        with KernelMaps(pins.maps) as maps:
            assert list(takeover.noted(maps)) == []
            os.utime(pin, (1000, 1000))
            before = int(time.time())
            set_cutover(maps, what)
            found = status.collect(pins.instance, run_dir)
            (problem,) = [one for one in found["problems"] if "cutover" in one["next"]]
            assert next_step in problem["next"]
            assert datetime.datetime.fromisoformat(problem["since"]).timestamp() >= before
            assert f"- {problem['text'][:20]}" in render(found)
            os.utime(pin, (1000, 1000))
            set_cutover(maps, what)  # called again: it is so since then
            assert [one["since"] for one in takeover.noted(maps)] == ["1970-01-01T00:16:40+00:00"]
            set_cutover(maps, Cutover.NONE)
        assert takeover.look(lambda: KernelMaps(pins.maps)) == []


def test_an_agent_that_ends_again_and_again_is_told(caplog: pytest.LogCaptureFixture) -> None:
    """Each start by itself goes well; the notes of the agent before tell how it ended."""
    now, notes = [1000.0], dict[str, Any]()
    for _ in range(OFTEN + 1):
        starts = Starts(notes, lambda: now[0])
        notes = {"pid": 7, **starts.as_notes()}
        now[0] += 20
    how = "ended without being told to: killed, out of memory, or by an error in its log"
    (problem,) = starts.problems()
    assert problem.text == f"3 times within 10 min the agent {how}"
    assert "oom" in problem.next
    assert caplog.text.count(f"the agent before this one, process 7, {how}") == OFTEN
    caplog.clear()
    now[0] += WINDOW_SECONDS
    starts.ended = True
    after = Starts({"pid": 7, **starts.as_notes()}, lambda: now[0])
    assert (after.problems(), caplog.text) == ([], "")


def test_notes_of_a_version_that_counts_no_ends_tell_nothing(caplog: pytest.LogCaptureFixture) -> None:
    assert Starts({"pid": 7, "failures": "x"}).problems() == []
    assert caplog.text == ""
