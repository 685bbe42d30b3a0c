# SPDX-License-Identifier: Apache-2.0
"""Figures as pictures, PNG and SVG: bars, a group for each measure, a colour for each contender; and curves.

Goals stand in the table; a picture has the limit as a line. The only module that needs matplotlib.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from bench.results import Result

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LIMITS = {"x floor": "the floor", "x limit": "the limit: directly to the pods"}
"""Where 1 is what nothing could be better than, by unit."""
_COLOURS = {
    "lbctl": "#2b6cb0",
    "lbctl, tc": "#2b6cb0",
    "lbctl, redirect": "#63b3ed",
    "lbctl, sockets": "#2c9c8f",
    "lbctl, XDP": "#805ad5",
    "nftables": "#dd6b20",
    "iptables": "#c53030",
}
_SERVICES = re.compile(r", ([\d,]+) Services?$")
_POINT = re.compile(r"growth, ([^,]+), (.+): ([\d,]+)$")
"""Of a curve: what grows, the curve's name, and where on it the figure is."""
_WIDTH = 0.8  # of a group, in measures


class Bar(NamedTuple):
    """One figure: of which picture, measure and contender it is; with how many Services, 0 for no matter."""

    topic: str
    measure: str
    contender: str
    services: int
    result: Result


def bar(result: Result) -> Bar:
    """Return the place of a figure by its name.

    Names are as in ``traffic, pod to clusterIP, UDP echo, to the limit: nftables, 10,000 Services`` and
    ``packet, tc: not a VIP``.
    """
    head, _, tail = result.name.partition(": ")
    first, _, rest = head.partition(", ")
    if result.unit == "x floor":
        return Bar(first, tail, f"lbctl, {rest}" if rest else "lbctl", 0, result)
    second, _, measure = rest.partition(", ")
    topic = f"{first}, {second}" if second else first
    if result.unit != "x limit":
        return Bar(topic, ", ".join(filter(None, (measure, tail))), "lbctl", 0, result)
    many = _SERVICES.search(tail)
    contender = _SERVICES.sub("", tail).replace("ours", "lbctl")
    return Bar(
        topic,
        measure.removesuffix(", to the limit"),
        contender,
        int(many[1].replace(",", "")) if many else 0,
        result,
    )


def plot(results: Sequence[Result], directory: Path) -> list[Path]:
    """Draw what has goals, a picture for each topic and unit; return the files.

    Bars are medians, whiskers the spread. Of a contender that was measured with several numbers of Services
    it is the largest one.
    """
    groups: dict[tuple[str, str], list[Bar]] = {}
    curves: dict[tuple[str, str], dict[str, list[tuple[int, Result]]]] = {}
    for result in results:
        if point := _POINT.match(result.name):
            lines = curves.setdefault((point[1], result.unit), {})
            lines.setdefault(point[2], []).append((int(point[3].replace(",", "")), result))
            continue
        one = bar(result)
        groups.setdefault((one.topic, result.unit), []).append(one)
    bars = [
        path
        for (topic, unit), group in groups.items()
        if any(one.result.target is not None for one in group)
        for path in _draw(topic, unit, group, directory)
    ]
    return bars + [
        path for (what, unit), lines in curves.items() for path in _grow(what, unit, lines, directory)
    ]


def _grow(
    what: str, unit: str, lines: Mapping[str, Sequence[tuple[int, Result]]], directory: Path
) -> list[Path]:
    """Draw curves beside each other: medians, and the spread behind them."""
    from matplotlib.figure import Figure  # noqa: PLC0415

    figure = Figure(figsize=(8, 4), layout="constrained")
    axes = figure.subplots()
    for name, points in lines.items():
        at, found = zip(*points, strict=True)
        (line,) = axes.plot(at, [one.value for one in found], marker="o", label=name)
        axes.fill_between(
            at, [one.low for one in found], [one.high for one in found], alpha=0.15, color=line.get_color()
        )
    axes.set_xscale("log")
    axes.set_ylim(bottom=0)
    axes.set_xlabel(what)
    axes.set_ylabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(frameon=False)
    return _save(figure, f"growth {what} {unit}", directory)


def _draw(topic: str, unit: str, bars: Sequence[Bar], directory: Path) -> list[Path]:
    from matplotlib.figure import Figure  # noqa: PLC0415  (a second to import)

    most = max(one.services for one in bars)
    shown = {(one.contender, one.measure): one.result for one in bars if one.services in (0, most)}
    contenders = list(dict.fromkeys(contender for contender, _ in shown))
    measures = list(dict.fromkeys(measure for _, measure in shown))
    figure = Figure(figsize=(10, min(7.0, 1.6 + 0.22 * len(shown))), layout="constrained")
    axes = figure.subplots()
    height = _WIDTH / len(contenders)
    for number, contender in enumerate(contenders):
        here = [(at, shown[contender, one]) for at, one in enumerate(measures) if (contender, one) in shown]
        axes.barh(
            [at - _WIDTH / 2 + (number + 0.5) * height for at, _ in here],
            [one.value for _, one in here],
            height,
            xerr=[[one.value - one.low for _, one in here], [one.high - one.value for _, one in here]],
            color=_COLOURS.get(contender, "#5b7083"),
            label=contender,
            error_kw={"elinewidth": 0.8, "alpha": 0.5},
        )
    if unit in _LIMITS:
        axes.axvline(1, color="black", linewidth=1.2, label=_LIMITS[unit])
    axes.set_yticks(range(len(measures)), measures)
    axes.margins(y=0.02)
    axes.invert_yaxis()
    axes.set_xlabel(unit)
    axes.set_title(f"{topic}, {most:,} Services" if most else topic)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return _save(figure, f"{topic} {unit}", directory)


def _save(figure: Figure, title: str, directory: Path) -> list[Path]:
    directory.mkdir(parents=True, exist_ok=True)
    name = "-".join(re.findall(r"\w+", title)).lower()
    paths = [directory / f"{name}.{kind}" for kind in ("png", "svg")]
    for path in paths:
        figure.savefig(path, dpi=90)
    return paths
