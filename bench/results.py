# SPDX-License-Identifier: Apache-2.0
"""What a bench found: figures with their spread, held against targets, as a table, JSON and plots."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TextIO

DIRECTORY = Path(__file__).parent / "results"


class Sense(Enum):
    """On which side of its target a good figure is."""

    AT_MOST = "≤"
    AT_LEAST = "≥"


@dataclass(frozen=True, slots=True)
class Result:
    """One figure: the median of its rounds, with the lowest and the highest of them.

    Attributes
    ----------
    name: what was measured; a part before a colon names the section of the table.
    unit: of value, low, high and target: ``"ns"``, ``"x floor"``, ``"1/s"``, …
    target: what was set out to be reached; None where nothing was.
    """

    name: str
    value: float
    unit: str
    low: float
    high: float
    target: float | None = None
    sense: Sense = Sense.AT_MOST

    @classmethod
    def of(
        cls,
        name: str,
        rounds: Iterable[float],
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> Result:
        """Return the median of the rounds; ValueError when there is none, or both targets are given."""
        values = list(rounds)
        if not values or (at_most is not None and at_least is not None):
            raise ValueError(f"{name}: no rounds, or two targets")
        target, sense = (at_most, Sense.AT_MOST) if at_least is None else (at_least, Sense.AT_LEAST)
        return cls(name, statistics.median(values), unit, min(values), max(values), target, sense)

    @property
    def met(self) -> bool | None:
        """Say whether the target was reached; None without one. What is shown rounded is judged exactly."""
        if self.target is None:
            return None
        return self.value <= self.target if self.sense is Sense.AT_MOST else self.value >= self.target

    def as_dict(self) -> dict[str, object]:
        """Return the figure as it stands in latest.json."""
        return {
            "name": self.name,
            "value": self.value,
            "unit": self.unit,
            "low": self.low,
            "high": self.high,
            "target": self.target,
            "met": self.met,
        }


def write_table(results: Sequence[Result], out: TextIO) -> None:
    """Print one line for each figure, with its spread and its target, below its section's name."""
    section = ""
    for result in results:
        head, _, tail = result.name.rpartition(": ")
        if head != section:
            out.write(f"\n{head}\n")
            section = head
        spread = f"{_short(result.low)} to {_short(result.high)}"
        line = f"  {tail:<58}{_short(result.value):>10} {result.unit:<11}{spread:<23}"
        if result.target is not None:
            line += f"{result.sense.value} {result.target:g}  {'met' if result.met else 'MISSED'}"
        out.write(f"{line.rstrip()}\n")
    judged = [result.met for result in results if result.met is not None]
    out.write(f"\n{sum(judged)} of {len(judged)} targets met\n")


def write_json(results: Sequence[Result], path: Path) -> None:
    """Write the figures as a list of objects."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = ",\n".join(json.dumps(result.as_dict(), ensure_ascii=False) for result in results)
    path.write_text(f"[\n{rows}\n]\n")


def _short(value: float) -> str:
    """Return four significant digits, and no exponent."""
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.4g}"
