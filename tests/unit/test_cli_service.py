# SPDX-License-Identifier: Apache-2.0
"""``lbctl service list``, and the agent's notes of what it has from them."""

from __future__ import annotations

import errno
import logging
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lb.cli import main
from lb.cli.flows import render as render_flows
from lb.cli.service import collect, render, render_one, shown
from lb.config import Config
from lb.datapath.maps.layouts import FLOW, FLOW_KEY, FlowState
from lb.datapath.view.dump import FlowEntry, dump
from lb.model import ObjectKey, Protocol
from lb.plan import Conflict
from lb.plan.types import BackendState, VipKind
from lb.rundir import RunDir
from lb.served.notes import MOST, Notes
from lb.served.problems import Problem
from lb.served.repairs import Repairs
from tests.fake_maps import FakeMaps
from tests.unit.pins_bench import LIMITS
from tests.unit.plan_builders import NODE, RememberedClaims, backend, port_plan, service_plan, vip_key
from tests.unit.reconcile_bench import Bench

SHARED = "203.0.113.1:80"
WEB = service_plan(
    "web",
    port_plan(
        ["10.66.13.240:80", "9.9.9.9:80"],
        [backend("10.0.2.10:8080", "node2"), backend("10.0.1.9:8080", NODE)],
        draining=[backend("10.0.2.11:8080", "node2", BackendState.TERMINATING)],
        affinity_seconds=10800,
    ),
    port_plan(["[fd00:66::1]:80"], [backend("[fd00:1::9]:8080", NODE)], affinity_seconds=10800),
    port_plan(["10.66.13.240:9000"], [], name="udp", protocol=Protocol.UDP),
)
ELDER = service_plan(
    "elder", port_plan([SHARED], ["10.0.1.1:80"], name="", kind=VipKind.EXTERNAL_IP), created="2026-01-01"
)
HEIR = service_plan(
    "heir", port_plan([SHARED], ["10.0.1.2:80"], name="", kind=VipKind.EXTERNAL_IP), created="2026-01-02"
)
SAID = "203.0.113.1:80/TCP belongs to the older Service default/elder; default/heir claims it too"


class Told:
    """What the agent tells the notes."""

    def __init__(self, conflicts: list[Conflict]) -> None:
        self._conflicts = conflicts

    def service_count(self) -> int:
        return 3

    repairs, stopping = Repairs(), False

    def problems(self) -> list[Problem]:
        return [Problem(str(one), "give one another") for one in self._conflicts]

    def conflicts(self) -> list[Conflict]:
        return self._conflicts

    def refusals(self) -> list[str]:
        return []


class NoChecks:
    def problems(self) -> list[Problem]:
        return []

    def served(self) -> list[Any]:
        return []


def notes_writer(tmp_path: Path) -> Notes:
    checks: Any = NoChecks()
    return Notes(
        RunDir("n1", tmp_path),
        Config(),
        programs="",
        hooks=dict,
        source_health=list,
        checks=checks,
        healthz=lambda: None,
        evicted=dict,
        others={},
    )


def notes_of(tmp_path: Path, conflicts: list[Conflict]) -> dict[str, Any]:
    notes_writer(tmp_path).write(Told(conflicts))
    return RunDir("n1", tmp_path).notes()


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_services_by_port_and_family(bench: Bench) -> None:
    bench.apply(WEB)
    found = collect(bench.maps, {}, running=True)
    assert render(found) == (
        "SERVICE      PORT  FAMILY  PROTOCOL  BACKENDS  LOCAL  AFFINITY  VIPS\n"
        "default/web  http  IPv4    TCP              3      1  10800 s  "
        " clusterIP 9.9.9.9:80, clusterIP 10.66.13.240:80\n"
        "default/web  http  IPv6    TCP              1      1  10800 s   clusterIP [fd00:66::1]:80\n"
        "default/web  udp   IPv4    UDP              0      0  -         clusterIP 10.66.13.240:9000\n"
    )
    assert found["services"][0] == {
        "service": "default/web",
        "port_name": "http",
        "family": "IPv4",
        "protocol": "TCP",
        "backends": 3,
        "local": 1,
        "terminating": 1,
        "affinity_seconds": 10800,
        "vips": [
            {"kind": "clusterIP", "address": "9.9.9.9", "port": 80},
            {"kind": "clusterIP", "address": "10.66.13.240", "port": 80},
        ],
    }


@pytest.mark.parametrize("version", [4, 6])
def test_a_list_reads_each_map_once_however_many_services_there_are(
    version: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To map the pool of sets and unmap it again for each VIP took 26 s at 10,000 Services."""
    many = Bench(LIMITS, version)
    for i in range(16):
        addresses = [backend(f"10.0.1.{i}:{port}", NODE) for port in range(1, 4)]
        many.apply(service_plan(f"web-{i}", port_plan([f"10.66.13.{i}:80"], addresses)))
    asked: Counter[str] = Counter()
    for name in ("read", "array"):
        original = getattr(FakeMaps, name)

        def counted(self: FakeMaps, name: str, *, original: Any = original) -> Any:
            asked[name] += 1
            return original(self, name)

        monkeypatch.setattr(FakeMaps, name, counted)
    assert len(collect(many.maps, {}, running=True)["services"]) == 16
    assert set(asked) == {"services", "vips4", "vips6", "backends4", "backends6"}
    assert set(asked.values()) == {1}
    asked.clear()
    assert len(dump(many.maps, 0, ("vips", "backends"))["vips"]) == 16
    assert asked["tables"] == 1
    assert set(asked.values()) == {1}


def test_nothing_is_listed_of_empty_maps_without_notes(bench: Bench) -> None:
    found = collect(bench.maps, {}, running=False)
    assert (found["services"], found["conflicts"]) == ([], [])
    assert render(found) == "SERVICE  PORT  FAMILY  PROTOCOL  BACKENDS  LOCAL  AFFINITY  VIPS\n"


def test_conflicts_name_the_winner_and_the_loser(bench: Bench, tmp_path: Path) -> None:
    claims = RememberedClaims()
    decision = claims.update({ELDER.key: ELDER, HEIR.key: HEIR})
    assert not bench.reconciler.sync(decision.plans).errors
    notes = notes_of(tmp_path, list(claims.conflicts()))
    found = collect(bench.maps, notes, running=True)
    assert render(found) == (
        "SERVICE        PORT  FAMILY  PROTOCOL  BACKENDS  LOCAL  AFFINITY  VIPS\n"
        "default/elder  -     IPv4    TCP              1      0  -         externalIP 203.0.113.1:80\n"
        "\n"
        f"conflict: {SAID}\n"
    )
    assert found["conflicts"] == [
        {
            "address": "203.0.113.1",
            "port": 80,
            "protocol": "TCP",
            "winner": "default/elder",
            "loser": "default/heir",
            "right": "older",
            "text": SAID,
        }
    ]
    assert found["conflicts_left_out"] == 0
    assert render({**found, "agent_running": False}).endswith(
        f"conflict: {SAID}\nthe agent does not run: the above is what it last knew\n"
    )


def test_notes_that_cannot_be_written_are_told_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file system of /run is full, and then has room again."""
    caplog.set_level(logging.INFO)
    full = True

    def replace(path: Path, data: bytes) -> None:
        if full:
            raise OSError(errno.ENOSPC, "No space left on device", str(path))
        path.write_bytes(data)

    monkeypatch.setattr("lb.rundir.replace_file", replace)
    notes = notes_writer(tmp_path)
    for _ in range(3):
        notes.write(Told([]))
    path = RunDir("n1", tmp_path).notes_path
    words = f"notes {path} cannot be written: No space left on device; all else works"
    assert [record.getMessage() for record in caplog.records] == [words]
    full = False
    notes.write(Told([]))
    assert caplog.records[-1].getMessage() == f"notes {path} can be written again"
    assert path.exists()


def test_conflicts_without_number_do_not_fill_the_notes(bench: Bench, tmp_path: Path) -> None:
    vip = vip_key(SHARED)
    conflicts = [Conflict(ELDER.key, ObjectKey("default", f"s{at:03}"), vip) for at in range(MOST + 7)]
    notes = notes_of(tmp_path, conflicts)
    assert len(notes["conflicts"]) == MOST
    assert notes["conflicts"][-1]["loser"] == "default/s099"
    assert (len(notes["problems"]), notes["problems_left_out"]) == (MOST, 7)
    text = render(collect(bench.maps, notes, running=True))
    assert text.count("conflict: ") == MOST + 1
    assert text.endswith("default/s099 claims it too\nconflict: 7 more, see the agent's log\n")


def test_an_instance_that_is_not_there_is_exit_code_1(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["service", "list", "--instance", "nobody.here"]) == 1
    assert "--instance nobody.here: no such instance" in capsys.readouterr().err


def test_one_service_is_shown() -> None:
    bench = Bench()
    bench.apply(WEB)
    key, value = np.zeros(1, FLOW_KEY[4]), np.zeros(1, FLOW[4])
    key["sport"], key["protocol"] = 40000, 6
    value["service"] = bench.row("10.66.13.240:80").service
    value["state"], value["last_seen"] = 1, 10**9
    bench.maps.array("settings4")["tcp_established_ns"] = 10**10
    bench.maps.update("flows4", key, value)
    key["sport"], value["state"] = 40001, FlowState.CLOSED
    bench.maps.array("settings4")["tcp_closing_ns"] = 10**10
    bench.maps.update("flows4", key, value)
    first = bench.maps.array("connections4")[1:2]
    first["opened"], first["refused"] = 7, 2
    found = shown(bench.maps, ObjectKey("default", "web"), 2 * 10**9)
    assert (
        render_one(found)
        == """\
default/web: 1 live connection, 1 closed, 0 clients with affinity

port http, TCP, IPv4, affinity 10800 s
  clusterIP 9.9.9.9:80: 2 offered
  clusterIP 10.66.13.240:80: 2 offered
    → 10.0.1.9:8080 on this node, active; so far 7 connections, 2 refused
    → 10.0.2.10:8080 on node2, active; so far 0 connections
    → 10.0.2.11:8080 on node2, terminating; so far 0 connections

port http, TCP, IPv6, affinity 10800 s
  clusterIP [fd00:66::1]:80: 1 offered
    → [fd00:1::9]:8080 on this node, active; so far 0 connections

port udp, UDP, IPv4
  clusterIP 10.66.13.240:9000: 0 offered
    → no backend: connections are rejected
"""
    )
    assert shown(bench.maps, ObjectKey("default", "other"), 0)["ports"] == []


def test_flows_are_listed() -> None:
    flow = FlowEntry("TCP", "10.244.1.2:40000", "10.96.0.1:80", "10.0.1.1:8080", "", "established", 61.4)
    assert render_flows([flow, replace(flow, state="closed")]) == (
        "PROTOCOL  CLIENT            VIP           BACKEND        SNAT  STATE        IDLE\n"
        "TCP       10.244.1.2:40000  10.96.0.1:80  10.0.1.1:8080  -     established  61 s\n"
        "TCP       10.244.1.2:40000  10.96.0.1:80  10.0.1.1:8080  -     closed       61 s\n"
        "1 live, 1 closed\n"
    )
