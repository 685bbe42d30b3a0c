# SPDX-License-Identifier: Apache-2.0
"""``lbctl top``: what is on the screen, what keys do, and one run in a terminal."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lb.cli import main
from lb.cli.top import Meter, Screen, as_dict, as_table
from lb.datapath.maps import layouts
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.sync import accounts
from lb.datapath.view import figures
from lb.live import top
from lb.live.top import COLUMNS, NAME, View, duration, quantity
from tests.unit.figures_bench import MAIL, WEB, Node
from tests.unit.pins_bench import own_pins, pin_empty_maps

TEXTS = Path(__file__).parent / "texts"
SECONDS = 2.0


class Clock:
    now = 100.0

    def __call__(self) -> float:
        self.now += SECONDS
        return self.now


@pytest.fixture
def node() -> Node:
    return Node()


@pytest.fixture
def meter(node: Node) -> Meter:
    """A meter that has seen a busy interval, after one that was the same."""
    node.busy()
    meter = Meter(lambda: figures.sample(node.maps), Clock())
    node.busy()
    meter.look()
    return meter


@pytest.fixture
def shown(meter: Meter) -> Screen:
    return Screen(meter, "node1", SECONDS)


def text(screen: Screen, width: int = 80, height: int = 24) -> str:
    lines = screen.lines(width, height)
    assert len(lines) == height
    assert {len(line.text) for line in lines} == {width}
    return "\n".join(line.text.rstrip() for line in lines) + "\n"


def golden(name: str, got: str) -> None:
    assert got == (TEXTS / f"{name}.txt").read_text()


# What is on the screen -----------------------------------------------------------------------------------


def test_services_at_80_columns(shown: Screen) -> None:
    golden("top-services", text(shown))
    assert [line.style for line in shown.lines(80, 24)[:5]] == ["bold", "plain", "head", "selected", "plain"]


def test_backends_of_a_service_at_80_columns(shown: Screen) -> None:
    assert shown.press("enter", 80, 24)
    golden("top-backends", text(shown))


def test_more_columns_where_there_is_room(shown: Screen) -> None:
    golden("top-wide", text(shown, 140, 8))


def test_one_table(meter: Meter) -> None:
    golden("top-once", as_table(meter))


def test_json(meter: Meter) -> None:
    found = as_dict(meter)
    assert found["seconds"] == SECONDS
    web = next(one for one in found["services"] if one["service"] == "web")
    assert web["per_second"]["opened"] == 41
    assert web["total"] == {
        "packets": 1420, "bytes": 142_000, "reply_packets": 1360, "reply_bytes": 3_310_000,
        "opened": 164, "refused": 8, "unanswered": 2, "dropped": 8,
    }  # fmt: skip
    assert web["backends"] == 3
    assert web["handshakes"]["count"] == 78
    assert web["handshakes"]["p50_seconds"] < web["handshakes"]["p99_seconds"]
    dns = next(one for one in found["backends"] if one["service"] == "kube-dns")
    assert (dns["backend"], dns["node"], dns["terminating"]) == ("10.244.2.3:53", "node2", True)
    assert dns["per_second"]["packets"] == 30


def test_without_traffic_counters_there_are_dashes(meter: Meter) -> None:
    meter.before, meter.after = (replace(one, counts_traffic=False) for one in (meter.before, meter.after))
    screen = Screen(meter, "node1", SECONDS)
    row = text(screen).splitlines()[3].split()
    assert row[:5] == ["default/web:http", "41", "-", "-", "-"]
    assert "- packets/s" in text(screen)
    assert "packets" not in as_dict(meter)["services"][0]["total"]


@pytest.mark.parametrize("width", [1, 10, 24, 40, 79, 80, 81, 200])
@pytest.mark.parametrize("height", [1, 3, 4, 5, 50])
def test_a_screen_is_as_large_as_the_terminal(shown: Screen, width: int, height: int) -> None:
    for key in ("", "enter"):
        shown.press(key, width, height)
        text(shown, width, height)


def test_nothing_to_show() -> None:
    maps = Node().maps
    maps.delete("services", maps.read("services")[0])
    screen = Screen(Meter(lambda: figures.sample(maps), Clock()), "node1", SECONDS)
    assert text(screen).splitlines()[3] == "none"
    assert screen.press("enter", 80, 24)
    assert screen.press("down", 80, 24)


def test_numbers_are_short() -> None:
    cells = {
        None: "-", 0: "0", 0.25: "0.2", 1: "1", 9.94: "9.9", 9.96: "10", 42: "42", 999.4: "999",
        999.6: "1.0k", 1234: "1.2k", 9960: "10k", 123_456: "123k", 5_600_000: "5.6M", 2.5e9: "2.5G",
        3e12: "3.0T",
    }  # fmt: skip
    assert {value: quantity(value) for value in cells} == cells


def test_times_are_short() -> None:
    cells = {None: "-", 16e-6: "16µs", 0.00099: "990µs", 0.0012: "1.2ms", 0.34: "340ms", 2.1: "2.1s"}
    assert {value: duration(value) for value in cells} == cells


# Counters that begin anew --------------------------------------------------------------------------------


def test_what_appears_or_begins_anew_counts_from_nothing(node: Node) -> None:
    node.busy()
    meter = Meter(lambda: figures.sample(node.maps), Clock())
    accounts.begin(node.maps, [MAIL])
    node.of_service(MAIL, {}, dropped={"REJECT_NO_ENDPOINT": 1})
    node.backend(2, WEB, "10.244.2.9", 8080, node=2, generation=2)
    node.maps.array("connections4")[2:3]["opened"] = 6
    meter.look()
    (mail,) = [row for row in meter.services() if row.port.service == "mail"]
    assert mail.dropped_rate == 1 / SECONDS
    (new,) = [row for row in meter.backends() if row.name.startswith("10.244.2.9")]
    assert new.rates.opened == 6 / SECONDS


# Keys ----------------------------------------------------------------------------------------------------


def test_rows_are_sorted_by_the_column_of_the_view(shown: Screen) -> None:
    def first() -> str:
        return text(shown).splitlines()[3].split()[0]

    titles = [one.title for one in COLUMNS]
    assert shown.view.sort == titles[0]
    seen = {}
    for _ in range(len(titles) + 1):
        seen[shown.view.sort] = first()
        shown.press(">", 80, 24)
    assert shown.view.sort == titles[0]
    assert set(seen) == {*titles, NAME}
    assert (seen[NAME], seen["PKT/S"], seen["FAIL/S"]) == (
        "default/mail",
        "default/web:http",
        "default/web:http",
    )
    shown.press("<", 80, 24)
    assert shown.view.sort == NAME


def test_the_selection_follows_its_row(shown: Screen) -> None:
    names = [row.name for row in top.ordered(shown._rows, shown.view.sort)]
    for key, at in (("down", 1), ("j", 2), ("down", 2), ("up", 1), ("home", 0), ("end", 2), ("page up", 0)):
        shown.press(key, 80, 24)
        assert top.press("", shown.view, shown._rows, 80, 20) == shown.view
        assert (shown.view.selected or names[0]) == names[at], key
    shown.press("end", 80, 24)
    shown.press("<", 80, 24)
    assert shown.view.selected == names[2]


def test_into_a_service_and_back(shown: Screen) -> None:
    shown.press("down", 80, 24)
    before = shown.view.selected
    shown.press("enter", 80, 24)
    assert str(shown.view.port) == before
    shown.press("enter", 80, 24)  # there is nothing further in
    assert shown.press("escape", 80, 24)
    assert shown.view == View(None, shown.view.sort, before, "")
    assert not shown.press("q", 80, 24)


def test_a_text_that_is_typed_filters_services_and_stays(shown: Screen) -> None:
    for key in ("/", "D", "n", "x", "backspace"):
        shown.press(key, 80, 24)
    assert [str(row.port) for row in shown._rows] == ["kube-system/kube-dns:dns"]
    assert "name contains: Dn_" in text(shown)
    shown.press("enter", 80, 24)
    assert "only: Dn" in text(shown)
    shown.press("enter", 80, 24)
    assert shown.view.port is not None
    shown.press("escape", 80, 24)
    assert len(shown._rows) == 1
    for key in ("/", "escape"):
        assert shown.press(key, 80, 24)
    assert len(shown._rows) == 3
    assert all(len(line) <= 60 for line in (each.text for each in shown.lines(60, 24)))


def test_a_table_is_of_the_services_that_are_asked_for(node: Node) -> None:
    node.busy()
    meter = Meter(lambda: figures.sample(node.maps), Clock(), wanted="kube-dns")
    assert {str(row.port) for row in (*meter.services(), *meter.backends())} == {"kube-system/kube-dns:dns"}


def test_evictions_are_in_the_title_and_in_the_table(node: Node) -> None:
    meter = Meter(lambda: figures.sample(node.maps), Clock(), read_evicted=lambda: 456)
    screen = Screen(meter, "node1", 2)
    assert "evicted" not in text(screen)
    screen.look()
    assert text(screen).splitlines()[0].rstrip().endswith("every 2 s   evicted: 456")
    assert "456 established entries evicted so far" in as_table(meter)
    assert as_dict(meter)["evicted"] == 456


def test_a_backend_has_the_name_of_its_pod(node: Node) -> None:
    node.busy()
    pods = {"10.244.1.2:8080": "default/web-1"}
    meter = Meter(lambda: figures.sample(node.maps), Clock(), pod_at=lambda place: pods.get(place, ""))
    row = next(one for one in meter.backends() if one.pod)
    assert row.name.startswith("10.244.1.2:8080  web-1")
    assert row.as_dict()["pod"] == "default/web-1"


def test_a_service_that_has_gone_has_no_backends(node: Node, shown: Screen) -> None:
    shown.press("enter", 80, 24)
    node.maps.delete("services", node.maps.read("services")[0])
    shown.look()
    assert text(shown).splitlines()[3] == "none"


def test_many_rows_scroll(shown: Screen) -> None:
    (row, *_) = shown._rows
    rows = [replace(row, port=row.port._replace(service=f"s{number:02}")) for number in range(50)]
    for at in (0, 5, 30, 49):
        lines = top.screen(rows, View(selected=rows[at].name), 80, 14, "")
        (chosen,) = [line for line in lines if line.style == "selected"]
        assert rows[at].name in chosen.text
        assert sum("default/s" in line.text for line in lines) == 10


# The command ---------------------------------------------------------------------------------------------


@contextlib.contextmanager
def instance() -> Iterator[str]:
    """Give the name of an instance whose maps hold a Service."""
    with own_pins() as pins:
        pin_empty_maps(pins)
        with contextlib.closing(KernelMaps(pins.maps)) as maps:
            accounts.begin(maps, [WEB])
            row = np.array([(b"default", b"web", b"http")], layouts.SERVICE_NAME)
            maps.update("services", np.array([WEB], "u4"), row)
        yield pins.instance


def test_without_a_terminal_it_says_what_to_do() -> None:
    out, err = io.StringIO(), io.StringIO()
    with instance() as name:
        assert main(["top", "--instance", name], out=out, err=err) == 1
        assert (
            err.getvalue() == "lbctl: no terminal to show it on; --once prints a table, -o json an object\n"
        )
        assert main(["top", "--instance", name, "--once", "--interval", "0.1"], out=out, err=err) == 0
    assert out.getvalue().splitlines()[2].split()[0] == "default/web:http"


@pytest.mark.parametrize("interval", ["0", "nonsense", "nan", "1e9"])
def test_an_interval_that_is_none(interval: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(["top", "--interval", interval])
    assert left.value.code == 2
    assert "is not a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("end", ["key", "signal"])
def test_in_a_terminal(end: str) -> None:
    """It paints, it takes keys, it leaves the terminal as it found it."""
    environment = os.environ | {"TERM": "xterm", "LC_ALL": "C.UTF-8"}
    ours, theirs = pty.openpty()
    with instance() as name, open(ours, "rb", buffering=0) as terminal:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
        before = termios.tcgetattr(theirs)
        argv = [sys.executable, "-m", "lb", "top", "--instance", name, "--interval", "0.2"]
        process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
        try:
            painted = read_until(terminal, b"default/web:http")
            assert b"\x1b[?1049h" in painted  # a screen of its own
            os.write(ours, b"\r")
            read_until(terminal, b"BACKEND")
            if end == "key":
                os.write(ours, b"q")
            else:
                process.terminate()
            rest = read_until(terminal, b"\x1b[?1049l")
            assert b"Traceback" not in rest
            assert process.wait(10) == (0 if end == "key" else 128 + 15)
            assert termios.tcgetattr(theirs) == before
        finally:
            process.kill()
            process.wait()
            os.close(theirs)


def read_until(terminal: io.FileIO, wanted: bytes, seconds: float = 30) -> bytes:
    """Return what is written to a terminal up to the wanted bytes."""
    found = b""
    deadline = time.monotonic() + seconds
    while wanted not in found:
        ready, _, _ = select.select([terminal], [], [], max(0.0, deadline - time.monotonic()))
        assert ready, found
        found += terminal.read(4096)
    return found
