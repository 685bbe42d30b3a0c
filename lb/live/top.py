# SPDX-License-Identifier: Apache-2.0
"""What ``lbctl top`` shows, as text: two samples make rows, rows and a view a screen, a key another view.

Nothing here touches a terminal; :mod:`lb.cli.top` paints.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np

from lb.datapath.maps.interface import Rows
from lb.datapath.maps.layouts import FAMILIES
from lb.datapath.sync.accounts import numbers
from lb.datapath.view.figures import Figures, PortName, Sample, quantile
from lb.datapath.view.words import ShownBackend
from lb.words import short

NAME_WIDTH = 24
"""A narrow terminal shows no fewer characters of a name; more columns are shown only beside wider names."""
WIDE_NAME = 32
TOP_LINES, BOTTOM_LINES = 3, 1


class Rates(NamedTuple):
    """The fields of :class:`lb.datapath.view.figures.Figures`, per second."""

    packets: float
    bytes: float
    reply_packets: float
    reply_bytes: float
    opened: float
    refused: float
    unanswered: float


@dataclass(frozen=True, slots=True)
class Row:
    """A Service port or a backend.

    port: its Service port; endpoint: None for the Service port itself. total, dropped: since it is there;
    rates, dropped_rate: per second, between the two samples. handshakes: how many in between, by bucket.
    backends: how many it has. counts_traffic: packets and bytes are known. pod: the backend's, where known.
    """

    port: PortName
    endpoint: ShownBackend | None
    total: Figures
    rates: Rates
    counts_traffic: bool
    handshakes: tuple[int, ...] = ()
    dropped: int = 0
    dropped_rate: float = 0.0
    backends: int = 0
    pod: str = ""

    @property
    def name(self) -> str:
        """What it is called on the screen."""
        if self.endpoint is None:
            return str(self.port)
        node = f"  {self.endpoint.node}" if self.endpoint.node else ""
        ending = " (ending)" if self.endpoint.terminating else ""
        pod = f"  {short(self.pod)}" if self.pod else ""
        return f"{self.endpoint.address}{pod}{node}{ending}"

    def as_dict(self) -> dict[str, Any]:
        """Return the row as JSON has it; times are in seconds."""
        fields: dict[str, Any] = self.port._asdict()
        if self.endpoint is not None:
            at = self.endpoint
            fields |= {
                "backend": at.address,
                "node": at.node,
                "local": at.local,
                "terminating": at.terminating,
            }
            fields |= {"pod": self.pod} if self.pod else {}
        total, rates = (
            self.total._asdict(),
            {name: round(one, 3) for name, one in self.rates._asdict().items()},
        )
        if not self.counts_traffic:
            for figures in (total, rates):
                for name in ("packets", "bytes", "reply_packets", "reply_bytes"):
                    del figures[name]
        fields |= {"total": total, "per_second": rates}
        if self.endpoint is None:
            fields["total"]["dropped"] = self.dropped
            fields["per_second"]["dropped"] = round(self.dropped_rate, 3)
            fields["backends"] = self.backends
            fields["handshakes"] = {
                "count": sum(self.handshakes),
                "p50_seconds": quantile(self.handshakes, 0.5),
                "p99_seconds": quantile(self.handshakes, 0.99),
            }
        return fields


def _grown(now: Rows, before: Rows | None) -> Rows:
    """Return by how much counters have grown; of one that is less than before: all of it, it began anew."""
    if before is None:
        return now
    return np.where(now >= before, now - before, now)


def service_rows(before: Sample, after: Sample, seconds: float) -> list[Row]:
    """Return a row for each Service port that is in the later sample, in the order of names."""
    members = [np.bincount(one.ports, minlength=len(after.ports)) for one in after.backends.values()]
    old, new = numbers(before.figures), numbers(after.figures)
    rows = []
    for port, at in after.ports.items():
        was = before.ports.get(port)
        grown = _grown(new[at], None if was is None else old[was])
        dropped = _grown(after.dropped[at], None if was is None else before.dropped[was])
        handshakes = _grown(after.handshakes[at], None if was is None else before.handshakes[was])
        rows.append(
            Row(
                port,
                None,
                after.of_port(at),
                Rates(*(grown / seconds).tolist()),
                after.counts_traffic,
                tuple(handshakes.tolist()),
                int(after.dropped[at].sum()),
                float(dropped.sum()) / seconds,
                sum(int(one[at]) for one in members),
            )
        )
    return rows


def backend_rows(
    before: Sample,
    after: Sample,
    seconds: float,
    port: PortName | None = None,
    pod_at: Callable[[str], str] = lambda _socket: "",
) -> list[Row]:
    """Return a row for each backend of the later sample; port: of this Service port alone.

    pod_at: returns the pod at ``address:port``, ``""`` where none is known.
    """
    ports = list(after.ports)
    wanted = after.ports.get(port) if port else None
    if port and wanted is None:
        return []
    rows = []
    for version in FAMILIES:
        then, now = before.backends[version], after.backends[version]
        uses = zip(then.ids.tolist(), then.slots["generation"].tolist(), strict=True)
        place = {use: at for at, use in enumerate(uses)}
        old, new = numbers(then.figures), numbers(now.figures)
        for at in range(len(now.ids)) if wanted is None else np.flatnonzero(now.ports == wanted).tolist():
            was = place.get((int(now.ids[at]), int(now.slots["generation"][at])))
            grown = _grown(new[at], None if was is None else old[was])
            endpoint = after.backend(version, at)
            rows.append(
                Row(
                    ports[int(now.ports[at])],
                    endpoint,
                    Figures(*new[at].tolist()),
                    Rates(*(grown / seconds).tolist()),
                    after.counts_traffic,
                    pod=pod_at(endpoint.address),
                )
            )
    return rows


# Cells ---------------------------------------------------------------------------------------------------


def quantity(value: float | None) -> str:
    """Return a number in at most five characters: 0, 0.3, 42, 1.2k, 340k, 5.6M."""
    if value is None:
        return "-"
    for unit in ("", "k", "M", "G", "T"):
        if value < 9.95 and (unit or value % 1):
            return f"{value:.1f}{unit}"
        if value < 999.5:
            return f"{value:.0f}{unit}"
        value /= 1000
    return f"{value:.0f}P"


def duration(seconds: float | None) -> str:
    """Return a time in at most five characters: 85µs, 1.2ms, 340ms, 2.1s."""
    if seconds is None:
        return "-"
    for unit, factor in (("µs", 1e6), ("ms", 1e3)):
        value = seconds * factor
        if value < 999.5:
            return f"{value:.1f}{unit}" if unit == "ms" and value < 9.95 else f"{value:.0f}{unit}"
    return f"{seconds:.1f}s"


class Column(NamedTuple):
    """A column of numbers; value is None where there is none. backends: backends have it as well."""

    title: str
    value: Callable[[Row], float | None]
    text: Callable[[float | None], str] = quantity
    backends: bool = True


def _traffic(value: Callable[[Row], float]) -> Callable[[Row], float | None]:
    return lambda row: value(row) if row.counts_traffic else None


COLUMNS = (
    Column("CONN/S", lambda row: row.rates.opened),
    Column("PKT/S", _traffic(lambda row: row.rates.packets + row.rates.reply_packets)),
    Column("IN/S", _traffic(lambda row: row.rates.bytes)),
    Column("OUT/S", _traffic(lambda row: row.rates.reply_bytes)),
    Column("P50", lambda row: quantile(row.handshakes, 0.5), duration, backends=False),
    Column("P99", lambda row: quantile(row.handshakes, 0.99), duration, backends=False),
    Column("FAIL/S", lambda row: row.rates.refused + row.rates.unanswered),
    Column("DROP/S", lambda row: row.dropped_rate, backends=False),
)
"""What is always shown: rates, and handshake times in the last interval."""
MORE_COLUMNS = (
    Column("CONNS", lambda row: row.total.opened),
    Column("FAILS", lambda row: row.total.refused + row.total.unanswered),
    Column("PKTS", _traffic(lambda row: row.total.packets + row.total.reply_packets)),
    Column("IN", _traffic(lambda row: row.total.bytes)),
    Column("OUT", _traffic(lambda row: row.total.reply_bytes)),
    Column("DROPS", lambda row: row.dropped, backends=False),
    Column("ENDPTS", lambda row: row.backends, backends=False),
)
"""What is shown where there is room: totals."""
_FIRST_TO_GO = ("P99", "P50", "OUT/S", "IN/S", "PKT/S", "CONN/S", "DROP/S", "FAIL/S")
"""In a narrow terminal: what goes wrong is shown longest."""
NAME = "NAME"
_CELL = 7


def columns(width: int, *, of_backends: bool) -> tuple[Column, ...]:
    """Return the columns that fit beside the name in so many characters."""
    shown = [one for one in COLUMNS if one.backends or not of_backends]
    for one in MORE_COLUMNS:
        if (one.backends or not of_backends) and width - _CELL * (len(shown) + 1) >= WIDE_NAME:
            shown.append(one)
    for title in _FIRST_TO_GO:
        if width - _CELL * len(shown) >= NAME_WIDTH:
            break
        shown = [one for one in shown if one.title != title]
    return tuple(shown)


# The screen ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class View:
    """What is looked at. port: whose backends; None: the Services. sort: title of a column, or NAME.

    selected: name of the row; ``""``: the first. above: the name that was selected among the Services.
    wanted: a text that names of Services must contain. typing: it is being typed.
    """

    port: PortName | None = None
    sort: str = COLUMNS[0].title
    selected: str = ""
    above: str = ""
    wanted: str = ""
    typing: bool = False


class Line(NamedTuple):
    """A line of the screen; style: "plain", "bold", "head", "selected"."""

    text: str
    style: str = "plain"


def ordered(rows: Sequence[Row], sort: str) -> list[Row]:
    """Return rows, the greatest first; by name where they are equal, or where names are what is asked for."""
    value = next((one.value for one in (*COLUMNS, *MORE_COLUMNS) if one.title == sort), None)
    return sorted(rows, key=lambda row: (-((value and value(row)) or 0.0), row.name))


def matching(rows: Sequence[Row], wanted: str) -> list[Row]:
    """Return the rows whose Service port has a text in its name, whatever the case; ``""``: all."""
    return [one for one in rows if wanted.lower() in str(one.port).lower()]


def screen(rows: Sequence[Row], view: View, width: int, height: int, title: str) -> list[Line]:
    """Return the lines of a screen, none longer than width; rows are in their order."""
    shown = columns(width, of_backends=view.port is not None)
    lines = [
        Line(_fit(title, width), "bold"),
        Line(_fit(summary(rows, width), width)),
        head(shown, view, width),
    ]
    room = max(height - TOP_LINES - BOTTOM_LINES, 0)
    at = _position(rows, view)
    start = max(0, min(at - room // 2, len(rows) - room))
    for number, row in enumerate(rows[start : start + room], start):
        lines.append(Line(cells(row, shown, width), "selected" if number == at else "plain"))
    if not rows and room:
        lines.append(Line(_fit("none", width)))
    lines += [Line(" " * width)] * (height - BOTTOM_LINES - len(lines))
    lines.append(Line(_fit(_keys_line(view), width)))
    return lines[:height]


def _keys_line(view: View) -> str:
    """Return what keys do, or the text that is being typed."""
    if view.typing:
        return f"name contains: {view.wanted}_   enter keeps it, escape drops it"
    into = "esc back" if view.port else "enter backends  / filter"
    shown = f"  only: {view.wanted}" if view.wanted and view.port is None else ""
    return f"q quit  {into}  \N{UPWARDS ARROW}\N{DOWNWARDS ARROW} select  < > sort{shown}"


def head(shown: Sequence[Column], view: View, width: int) -> Line:
    """Return the titles of the columns, with an arrow at that which is sorted by."""
    titles = [f"\N{DOWNWARDS ARROW}{one.title}" if one.title == view.sort else one.title for one in shown]
    first = "BACKEND" if view.port else "SERVICE"
    first = f"\N{DOWNWARDS ARROW}{first}" if view.sort == NAME else first
    text = _fit(first, width - _CELL * len(shown)) + "".join(title.rjust(_CELL) for title in titles)
    return Line(text, "head")


def cells(row: Row, shown: Sequence[Column], width: int, indent: str = "") -> str:
    """Return one row as text."""
    texts = ("-" if row.endpoint and not one.backends else one.text(one.value(row)) for one in shown)
    name = _fit(indent + row.name, width - _CELL * len(shown))
    return name + "".join(text.rjust(_CELL) for text in texts)


def summary(rows: Sequence[Row], width: int = sys.maxsize) -> str:
    """Return one line about all rows together; without the bytes where they have no room."""

    def total(title: str) -> str:
        value = next(one.value for one in COLUMNS if one.title == title)
        values = [value(row) for row in rows]
        return quantity(None if None in values else sum(one or 0.0 for one in values))

    first, last = (
        f"{total('CONN/S')} connections/s, {total('PKT/S')} packets/s",
        f"{total('FAIL/S')} failed/s",
    )
    whole = f"{first}, {total('IN/S')} bytes/s in, {total('OUT/S')} out, {last}"
    return whole if len(whole) <= width else f"{first}, {last}"


def _fit(text: str, width: int) -> str:
    """Return text in exactly so many characters; what is too long loses its middle."""
    if len(text) <= width:
        return text.ljust(width)
    if width < 2:
        return text[:width]
    left = width // 2
    return f"{text[:left]}\N{HORIZONTAL ELLIPSIS}{text[len(text) - (width - left - 1) :]}"


def _position(rows: Sequence[Row], view: View) -> int:
    return next((at for at, row in enumerate(rows) if row.name == view.selected), 0)


def press(key: str, view: View, rows: Sequence[Row], width: int, page: int) -> View | None:
    """Return the view after a key, or None to leave. key: a character, or a name such as "page down"."""
    if view.typing or (key == "/" and view.port is None):
        return _typed(key, view)
    at = _position(rows, view)
    steps: Mapping[str, int] = {
        "up": -1, "k": -1, "down": 1, "j": 1, "page up": -page, "page down": page,
        "home": -len(rows), "end": len(rows),
    }  # fmt: skip
    if key == "q":
        return None
    if key in steps and rows:
        return replace(view, selected=rows[max(0, min(at + steps[key], len(rows) - 1))].name)
    if key in ("<", ">"):
        titles = [NAME, *(one.title for one in columns(width, of_backends=view.port is not None))]
        now = titles.index(view.sort) if view.sort in titles else 0
        return replace(view, sort=titles[(now + (1 if key == ">" else -1)) % len(titles)])
    return _into_or_back(key, view, rows[at] if rows else None)


def _into_or_back(key: str, view: View, row: Row | None) -> View:
    """Return the backends of the row that is selected, or the Services again, as a key says."""
    if key in ("enter", "right") and view.port is None and row:
        return replace(view, port=row.port, selected="", above=row.name)
    if key in ("escape", "left", "backspace", "b") and view.port is not None:
        return replace(view, port=None, selected=view.above, above="")
    return view


def _typed(key: str, view: View) -> View:
    """Return the view after a key while a text is typed, or after that which begins it."""
    if not view.typing:
        return replace(view, typing=True)
    if key == "enter":
        return replace(view, typing=False)
    if key == "escape":
        return replace(view, typing=False, wanted="")
    if key == "backspace":
        return replace(view, wanted=view.wanted[:-1])
    return replace(view, wanted=view.wanted + key) if len(key) == 1 else view
