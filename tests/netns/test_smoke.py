# SPDX-License-Identifier: Apache-2.0
"""vagrant/smoke.sh, which asks machines, on a lab of namespaces: one script for both."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.netns.conftest import EXAMPLES, MakeLab

SMOKE = Path(__file__).resolve().parents[2] / "vagrant" / "smoke.sh"


def smoke(*command: str, **variables: str) -> tuple[int, list[str]]:
    """Return the script's exit code and what it said, by line."""
    done = subprocess.run(
        [SMOKE, *command], env={**os.environ, **variables}, stdout=subprocess.PIPE, text=True, check=False
    )
    return done.returncode, done.stdout.splitlines()


def test_every_check_passes(make_lab: MakeLab) -> None:
    lab = make_lab(EXAMPLES, dns=True)
    code, (*checks, last) = smoke(
        sys.executable, "-m", "lb", "lab", "exec", "--id", lab.spec.id, REQUESTS="12"
    )
    assert [line for line in checks if not line.startswith("ok    ")] == []
    assert (code, last, len(checks)) == (0, "all checks passed", 30)


def test_where_nothing_answers_checks_fail() -> None:
    code, lines = smoke("false", WAIT="0")
    assert code == 1
    assert lines
    assert all(line.startswith("FAIL  ") for line in lines)
