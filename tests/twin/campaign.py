# SPDX-License-Identifier: Apache-2.0
"""Many seeds one after another: what each found, and the small program of what nobody meant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from tests.twin.compare import Comparison, Difference
from tests.twin.pair import SIDES, Pair
from tests.twin.program import Step, program
from tests.twin.shrink import shrunken

AGAIN = 2
"""How often a program that differed must differ again: on a busy machine an answer may be late once."""


@dataclass(slots=True)
class Campaign:
    """What was run. known: how often each row was seen; faults: each seed's small program, in words."""

    seeds: int = 0
    steps: int = 0
    known: Counter[str] = field(default_factory=Counter)
    once: int = 0
    """Programs that differed and did not do so again."""
    faults: dict[int, str] = field(default_factory=dict)

    def __str__(self) -> str:
        rows = ", ".join(f"{name} {count}" for name, count in sorted(self.known.items()))
        return (
            f"{self.seeds} seeds, {self.steps} steps; known: {rows or 'none'};"
            f" not again: {self.once}; faults: {len(self.faults)}"
        )


def differences(pair: Pair, steps: Sequence[Step]) -> list[Difference]:
    """Run a program and return at which steps the two sides differed."""
    return Comparison(SIDES, pair.pods).differences(steps, pair.run(steps))


def faults(pair: Pair, steps: Sequence[Step]) -> list[Difference]:
    """Run a program and return where the two sides differed without a row for it."""
    return [each for each in differences(pair, steps) if not each.row]


def run(
    pair: Pair,
    seeds: Iterable[int],
    enough: Callable[[], bool] = lambda: False,
    report: Callable[[str], None] = print,
    shrink: bool = True,
) -> Campaign:
    """Run the programs of these seeds until enough() says so; report each fault as soon as it is small."""
    done = Campaign()
    for seed in seeds:
        if enough():
            break
        steps = program(seed)
        found = differences(pair, steps)
        done.seeds += 1
        done.steps += len(steps)
        done.known.update(each.row for each in found if each.row)
        first = [each for each in found if not each.row]
        if not first:
            continue
        if not all(faults(pair, steps) for _ in range(AGAIN)):
            done.once += 1
            continue
        small = steps[: first[0].at + 1]
        if shrink:
            small = shrunken(small, lambda left: all(faults(pair, left) for _ in range(AGAIN)))
        left = faults(pair, small) or first
        text = f"seed {seed}, {len(small)} of {len(steps)} steps:\n"
        text += "".join(f"  {step}\n" for step in small) + "".join(f"  {each}\n" for each in left)
        done.faults[seed] = text
        report(text)
    return done
