# SPDX-License-Identifier: Apache-2.0
"""The same program of actions and changes, by this program's node and by one with kube-proxy's rules."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from tests.twin.campaign import run
from tests.twin.differences import DELIBERATE, OPEN
from tests.twin.pair import Pair
from tests.twin.program import Step, program
from tests.twin.shrink import shrunken

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/differences.md"
SEEDS = range(50)
SECONDS = 50.0
LEAST = 6
"""On a machine that is busy, fewer of the seeds fit; so many run however long they take."""


def test_a_seed_makes_one_program() -> None:
    for seed in SEEDS:
        steps = program(seed)
        assert json.loads(json.dumps(steps)) == steps == program(seed)


def test_a_program_shrinks_to_the_steps_that_fail_together() -> None:
    steps: list[Step] = [{"do": "ask", "number": number, "size": 4} for number in range(14)]

    def fails(left: Sequence[Step]) -> bool:
        return {3, 11} <= {step["number"] for step in left}

    assert [step["number"] for step in shrunken(steps, fails)] == [3, 11]


def test_every_known_difference_is_a_row_of_the_document() -> None:
    meant, unmended = DOCUMENT.read_text().split("## Not mended yet")
    for text, known in ((meant, DELIBERATE), (unmended, OPEN)):
        assert re.findall(r"^\| `([a-z-]+)` \|", text, re.MULTILINE) == [each.name for each in known]


def test_what_works_through_netfilter_works_here(tmp_path: Path) -> None:
    with Pair(f"w{os.getpid()}", tmp_path) as pair:
        end = time.monotonic() + SECONDS
        asked = itertools.count()
        done = run(pair, SEEDS, enough=lambda: next(asked) >= LEAST and time.monotonic() > end)
    assert not done.faults, "".join(done.faults.values())
    assert done.seeds >= LEAST
