# SPDX-License-Identifier: Apache-2.0
"""The data plane's benches work: tiny sizes, no word about the figures."""

from __future__ import annotations

import io
import json
import math
import sys
import types
from pathlib import Path

import pytest

from bench import __main__ as main
from bench import lab_traffic, packet_cost, plots
from bench.feeder import Feeder
from bench.results import Result, write_table
from tests.packet.harness import LIMITS, XDP


def test_packet_cost() -> None:
    found = packet_cost.measure(rounds=1, repeat=64)
    names = [result.name for result in found]
    assert len(set(names)) == len(names)
    for hook in ("XDP", "tc"):
        for path in ("not a VIP", "established TCP, 1 flow", "first packet, flow table full"):
            assert f"packet, {hook}: {path}" in names
    assert "packet, tc: reply, revNAT, 1 flow" in names
    assert all(math.isfinite(result.value) for result in found)


def test_packets_that_take_another_path_are_an_error() -> None:
    case = next(case for case in packet_cost.cases("XDP") if case.reason == "FLOW_HIT")
    with Feeder(LIMITS) as feeder:
        packet_cost.set_up(feeder)
        assert case.traffic.program == XDP
        with pytest.raises(RuntimeError, match="NEW_LOCAL"):
            feeder.proved(case.traffic, case.reason, 8)
        feeder.proved(case.traffic, case.reason, 8)


def test_lab_traffic() -> None:
    found = lab_traffic.measure(rounds=1, millis=50, services=(1, 3))
    names = {result.name for result in found}
    assert len(names) == len(found)
    for way in lab_traffic.WAYS:
        for workload in lab_traffic.WORKLOADS:
            own_ways = ("ours, sockets",) if way.inside else ("ours, XDP",)
            for contender in ("ours", "ours, redirect", *own_ways, "nftables", "iptables"):
                assert f"traffic, {way.name}, {workload.name}, to the limit: {contender}, 3 Services" in names
    assert all(result.value > 0 for result in found if result.unit in ("1/s", "MB/s", "x limit"))


def test_a_result_is_the_median_of_its_rounds() -> None:
    met = Result.of("one: figure", [3, 1, 2], "ns", at_most=2)
    assert (met.value, met.low, met.high, met.met) == (2, 1, 3, True)
    assert Result.of("one: figure", [1.9], "x", at_least=2).met is False
    assert Result.of("one: figure", [1.9], "x").met is None
    with pytest.raises(ValueError, match="no rounds"):
        Result.of("one: figure", [], "x")


def test_the_table_has_each_figure_beside_its_target() -> None:
    out = io.StringIO()
    rows = [
        Result.of("packet: a", [1.5], "x floor", at_most=2),
        Result.of("packet: b", [2.5], "x floor", at_most=2),
        Result.of("traffic: c", [12345], "1/s"),
    ]
    write_table(rows, out)
    lines = out.getvalue().splitlines()
    assert lines[1] == "packet"
    assert lines[2].split() == ["a", "1.5", "x", "floor", "1.5", "to", "1.5", "≤", "2", "met"]
    assert lines[3].split() == ["b", "2.5", "x", "floor", "2.5", "to", "2.5", "≤", "2", "MISSED"]
    assert "12,345 1/s" in lines[6]
    assert lines[-1] == "1 of 2 targets met"


@pytest.mark.parametrize(
    ("name", "unit", "place"),
    [
        ("packet, tc: UDP, existing flow", "x floor", ("packet", "UDP, existing flow", "lbctl, tc", 0)),
        (
            "traffic, pod to clusterIP, UDP echo, to the limit: ours, redirect, 10,000 Services",
            "x limit", ("traffic, pod to clusterIP", "UDP echo", "lbctl, redirect", 10_000),
        ),
        (
            "traffic, pod to clusterIP, UDP echo, to the limit: iptables, 1 Service",
            "x limit", ("traffic, pod to clusterIP", "UDP echo", "iptables", 1),
        ),
        ("control plane, 1 Service: cold start", "s", ("control plane, 1 Service", "cold start", "lbctl", 0)),
    ],
)  # fmt: skip
def test_a_plot_groups_figures_by_measure_and_contender(
    name: str, unit: str, place: tuple[str, str, str, int]
) -> None:
    assert plots.bar(Result.of(name, [1.0], unit))[:4] == place


def test_bench_writes_json_and_plots(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    section = types.ModuleType("a_section")
    asked = []

    def measure(quick: bool) -> list[Result]:
        asked.append(quick)
        return [Result.of("fake: a", [1.5, 1.6, 1.7], "x floor", at_most=2), Result.of("fake: b", [5], "ns")]

    monkeypatch.setattr(section, "measure", measure, raising=False)
    monkeypatch.setitem(sys.modules, "a_section", section)
    monkeypatch.setattr(main, "SECTIONS", {"fake": "a_section"})
    assert main.main(["--quick", "--output", str(tmp_path)]) == 0
    assert asked == [True]
    assert json.loads((tmp_path / "latest.json").read_text())[0] == {
        "name": "fake: a",
        "value": 1.6,
        "unit": "x floor",
        "low": 1.5,
        "high": 1.7,
        "target": 2,
        "met": True,
    }
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".png", ".svg"}
    assert "1 of 1 targets met" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main.main(["nothing"])
    assert "there are fake" in capsys.readouterr().err
