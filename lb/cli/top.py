# SPDX-License-Identifier: Apache-2.0
"""``lbctl top``: Services and backends by what they carry, live."""

from __future__ import annotations

import argparse
import curses
import locale
import math
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TextIO

from lb.cli import instances, output
from lb.cli.pods import Lookup, known
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.fill import evictions
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view import figures
from lb.datapath.view.figures import PortName, Sample
from lb.errors import LbError
from lb.live import top
from lb.live.top import Line, Row, View
from lb.rundir import RunDir
from lb.stop_event import on_signals
from lb.words import in_line

_ONCE_WIDTH = 132
_EVICTED_SECONDS = 30.0
"""How often evictions are looked for: reading the tables takes 0.1 s of CPU."""


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl top``."""
    name = instances.choose(args)
    with KernelMaps(Pins(name).maps) as maps:
        meter = Meter(
            lambda: figures.sample(maps),
            time.monotonic,
            args.namespace or "",
            Lookup(lambda: known(RunDir(name))),
            args.filter,
            lambda: sum(evictions(maps).values()),
        )
        if args.once or args.output != "screen":
            time.sleep(args.interval)
            meter.look()
            output.write(args, out, as_dict(meter), lambda: as_table(meter))
        else:
            _on_screen(meter, name, args.interval)
    return 0


@dataclass(slots=True)
class Meter:
    """The last two samples, and the seconds between them.

    namespace: of which to tell; ``""``: of all. wanted: a text that names of Services must contain. evicted:
    how many established entries made room for new ones since the maps were made.
    """

    read: Callable[[], Sample]
    clock: Callable[[], float]
    namespace: str = ""
    pod_at: Callable[[str], str] = lambda _socket: ""
    wanted: str = ""
    read_evicted: Callable[[], int] = lambda: 0
    evicted: int = field(init=False, default=0)
    _evicted_due: float = field(init=False, default=-math.inf)
    before: Sample = field(init=False)
    after: Sample = field(init=False)
    seconds: float = field(init=False, default=1.0)
    _at: float = field(init=False)

    def __post_init__(self) -> None:
        self._at = self.clock()
        self.before = self.after = self.read()

    def look(self) -> None:
        """Take another sample."""
        now = self.clock()
        self.before, self.after = self.after, self.read()
        self.seconds, self._at = max(now - self._at, 1e-3), now
        if now >= self._evicted_due:
            self.evicted, self._evicted_due = self.read_evicted(), now + _EVICTED_SECONDS

    def services(self) -> list[Row]:
        """Return a row for each Service port."""
        return self._shown(top.service_rows(self.before, self.after, self.seconds))

    def backends(self, view: View | None = None) -> list[Row]:
        """Return a row for each backend, of the Service port that is looked at or of all."""
        port = view.port if view else None
        rows = top.backend_rows(self.before, self.after, self.seconds, port, self.pod_at)
        return rows if port else self._shown(rows)

    def _shown(self, rows: list[Row]) -> list[Row]:
        found = [one for one in rows if self.namespace in ("", one.port.namespace)]
        return top.matching(found, self.wanted)


def as_dict(meter: Meter) -> dict[str, Any]:
    """Return everything as the JSON form has it."""
    return {
        "seconds": round(meter.seconds, 3),
        "evicted": meter.evicted,
        "services": [one.as_dict() for one in meter.services()],
        "backends": [one.as_dict() for one in meter.backends()],
    }


def as_table(meter: Meter) -> str:
    """Return Services, the busiest first, each with its backends below it."""
    services, by_port = meter.services(), dict[PortName, list[Row]]()
    for one in meter.backends():
        by_port.setdefault(one.port, []).append(one)
    shown, view = top.columns(_ONCE_WIDTH, of_backends=False), View()
    evicted = f"; {meter.evicted} established entries evicted so far" if meter.evicted else ""
    lines = [top.summary(services) + evicted, top.head(shown, view, _ONCE_WIDTH).text]
    for service in top.ordered(services, view.sort):
        lines.append(top.cells(service, shown, _ONCE_WIDTH))
        backends = top.ordered(by_port.get(service.port, ()), view.sort)
        lines += [top.cells(one, shown, _ONCE_WIDTH, indent="  ") for one in backends]
    return "\n".join(line.rstrip() for line in lines) + "\n"


class Screen:
    """What is on the terminal: the meter's rows under a view."""

    def __init__(self, meter: Meter, name: str, interval: float) -> None:
        self._meter, self._name, self._interval = meter, name, interval
        self.view = View(wanted=meter.wanted)
        self._rows: list[Row] = []
        self.arrange()

    def look(self) -> None:
        """Take another sample."""
        self._meter.look()
        self.arrange()

    def arrange(self) -> None:
        """Make the rows that the view asks for."""
        self._meter.wanted = self.view.wanted
        rows = self._meter.backends(self.view) if self.view.port else self._meter.services()
        self._rows = top.ordered(rows, self.view.sort)

    def lines(self, width: int, height: int) -> list[Line]:
        """Return the screen."""
        place = f" {self.view.port}" if self.view.port else ""
        what = "backends" if self.view.port else "Service ports"
        title = f"lbctl top {self._name}{place}   {what}: {len(self._rows)}   every {self._interval:g} s"
        title += f"   evicted: {self._meter.evicted}" if self._meter.evicted else ""
        return top.screen(self._rows, self.view, width, height, title)

    def press(self, key: str, width: int, height: int) -> bool:
        """Take a key; False: leave."""
        view = top.press(key, self.view, self._rows, width, max(height - top.TOP_LINES - 2, 1))
        if view is None:
            return False
        if view != self.view:
            self.view = view
            self.arrange()
        return True


def _on_screen(meter: Meter, name: str, interval: float) -> None:
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise LbError("no terminal to show it on; --once prints a table, -o json an object")
    locale.setlocale(locale.LC_ALL, "")
    os.environ.setdefault("ESCDELAY", "25")
    try:
        with on_signals(_leave, signal.SIGTERM):
            curses.wrapper(_loop, Screen(meter, name, interval), interval)
    except curses.error as error:
        raise LbError(f"this terminal (TERM={os.environ.get('TERM', '')}) cannot show it: {error}") from error


def _leave(number: int, _frame: object) -> None:
    """End the command, so that the terminal is put in order."""
    raise SystemExit(128 + number)


_KEYS = {
    curses.KEY_UP: "up", curses.KEY_DOWN: "down", curses.KEY_LEFT: "left", curses.KEY_RIGHT: "right",
    curses.KEY_PPAGE: "page up", curses.KEY_NPAGE: "page down", curses.KEY_HOME: "home",
    curses.KEY_END: "end", curses.KEY_ENTER: "enter", 10: "enter", 13: "enter", 27: "escape",
    curses.KEY_BACKSPACE: "backspace", 127: "backspace", 8: "backspace",
}  # fmt: skip


def _loop(window: curses.window, screen: Screen, interval: float) -> None:
    """Paint, wait for a key or for the time to look again, until somebody leaves."""
    curses.use_default_colors()
    curses.curs_set(0)
    due = time.monotonic() + interval
    while True:
        height, width = window.getmaxyx()
        _paint(window, screen.lines(width, height), width)
        window.timeout(max(0, round((due - time.monotonic()) * 1000)))
        key = window.getch()
        if key == -1:
            screen.look()
            due = time.monotonic() + interval
        elif key != curses.KEY_RESIZE:
            name = _KEYS.get(key, chr(key) if 32 <= key < 127 else "")
            if not screen.press(name, width, height):
                return


_STYLES = {"plain": curses.A_NORMAL, "bold": curses.A_BOLD, "head": curses.A_UNDERLINE | curses.A_BOLD,
           "selected": curses.A_REVERSE}  # fmt: skip


def _paint(window: curses.window, lines: list[Line], width: int) -> None:
    """Write the lines; what reaches the terminal is the difference, which curses knows."""
    window.erase()
    for at, line in enumerate(lines):
        # The last cell of the last line would scroll: insert there.
        put = window.addnstr if at < len(lines) - 1 else window.insnstr
        put(at, 0, in_line(line.text), width, _STYLES[line.style])
    window.noutrefresh()
    curses.doupdate()
