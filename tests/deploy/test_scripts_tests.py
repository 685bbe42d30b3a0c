# SPDX-License-Identifier: Apache-2.0
"""scripts/tests: a test that fails beside others gets one more try, alone; a fault stays a fault."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

_TESTS = """
import pathlib
import pytest

@pytest.mark.parametrize("number", range({faults}))
def test_fault(number):
    assert False

def test_too_slow_beside_others():
    been = pathlib.Path({been!r})
    first = not been.exists()
    been.touch()
    assert not first

def test_sound():
    pass
"""


@pytest.mark.parametrize(
    ("faults", "code", "last"),
    [(0, 0, "1 passed"), (1, 1, "1 failed, 1 passed"), (20, 1, "which are too many to try again")],
)
def test_one_more_try(tmp_path: Path, faults: int, code: int, last: str) -> None:
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    file = tmp_path / "test_some.py"
    file.write_text(_TESTS.format(faults=faults, been=str(tmp_path / "been")))
    argv = [
        "scripts/tests",
        "-n",
        "0",
        "-c",
        str(tmp_path / "pytest.ini"),
        "--rootdir",
        str(tmp_path),
        str(file),
    ]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    assert last in done.stdout.splitlines()[-1]
    assert "test_too_slow_beside_others" in done.stdout
