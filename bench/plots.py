# SPDX-License-Identifier: Apache-2.0
"""Figures beside their targets, as PNG and SVG. The only module that needs matplotlib."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.results import Result, Sense

_MET, _MISSED, _PLAIN = "#3a7d44", "#b3392f", "#5b7083"
_BAR_INCHES = 0.3


def plot(results: Sequence[Result], directory: Path) -> list[Path]:
    """Draw what has targets, one picture for each unit and topic; return the files.

    A topic is the first two parts of a name, such as "packet, XDP". Bars are medians, whiskers the spread,
    and a black stroke is the target.
    """
    groups: dict[tuple[str, str], list[Result]] = {}
    for result in results:
        groups.setdefault((_topic(result), result.unit), []).append(result)
    return [
        path
        for (topic, unit), group in groups.items()
        if any(one.target is not None for one in group)
        for path in _bars(topic, unit, group, directory)
    ]


def _topic(result: Result) -> str:
    return ", ".join(result.name.partition(": ")[0].split(", ")[:2])


def _bars(section: str, unit: str, group: Sequence[Result], directory: Path) -> list[Path]:
    from matplotlib.figure import Figure  # noqa: PLC0415  (a second to import)

    figure = Figure(figsize=(9, 1.2 + _BAR_INCHES * len(group)), layout="constrained")
    axes = figure.subplots()
    at = range(len(group))
    values = [one.value for one in group]
    whiskers = [[one.value - one.low for one in group], [one.high - one.value for one in group]]
    colours = [_PLAIN if one.met is None else _MET if one.met else _MISSED for one in group]
    axes.barh(at, values, xerr=whiskers, color=colours, height=0.7, error_kw={"elinewidth": 1, "alpha": 0.5})
    for place, one in zip(at, group, strict=True):
        if one.target is not None:
            axes.plot([one.target, one.target], [place - 0.42, place + 0.42], color="black", linewidth=2)
    axes.set_yticks(at, [one.name[len(section) :].lstrip(",: ") for one in group])
    axes.invert_yaxis()
    bound = {one.sense for one in group if one.target is not None}
    words = {Sense.AT_MOST: "shorter", Sense.AT_LEAST: "longer"}
    axes.set_xlabel(f"{unit}{', '.join(f'; {words[sense]} than the black stroke is met' for sense in bound)}")
    axes.set_title(section)
    axes.spines[["top", "right"]].set_visible(False)
    directory.mkdir(parents=True, exist_ok=True)
    name = "".join(letter if letter.isalnum() else "-" for letter in f"{section} {unit}").strip("-")
    paths = []
    for kind in ("png", "svg"):
        paths.append(directory / f"{'-'.join(filter(None, name.split('-'))).lower()}.{kind}")
        figure.savefig(paths[-1], dpi=110)
    return paths
