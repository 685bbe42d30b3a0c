# SPDX-License-Identifier: Apache-2.0
"""scripts/setup says what it does before it does it; a Python that only pretends takes the steps."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.deploy.conftest import ROOT

PYTHON = """#!/bin/sh
echo "call: $*" >&2
case $* in
"-m pip install --require"*)
	for each in one two three; do echo "Collecting $each==1.0"; sleep 1.1; done
	echo "Installing collected packages: one, two, three" ;;
esac
"""
"""In place of .venv/bin/python: says how it was called, and takes its time where pip does."""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with only what the script reads, whose environment has the Python above."""
    for name in ("scripts", "requirements"):
        shutil.copytree(ROOT / name, tmp_path / name)
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    python = tmp_path / ".venv" / "bin" / "python"
    python.write_text(PYTHON)
    python.chmod(0o755)
    return tmp_path


def run(tree: Path) -> list[str]:
    """Run the script; return what it said, and which calls of Python came between, in order."""
    done = subprocess.run(
        [tree / "scripts" / "setup"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout.splitlines()


def test_every_step_is_told_before_it_is_taken(tree: Path) -> None:
    said = run(tree)
    expected = [
        "setup: fetching the packages",
        "call: -m pip install --require-hashes",
        "setup:   at ",  # two seconds have passed
        "setup:   unpacking",
        "setup: installing lbctl",
        "call: -m pip install --quiet",
        *(["setup: compiling", "call: -m lb."] if os.geteuid() == 0 else []),
        "setup: done",
    ]
    assert len(said) == len(expected), said
    assert [line[: len(begin)] for line, begin in zip(said, expected, strict=True)] == expected


def test_packages_have_known_hashes_and_only_lbctl_is_built(tree: Path) -> None:
    install, editable = (line for line in run(tree) if "pip install" in line)
    assert "--require-hashes --only-binary :all: -r requirements/build.txt -r requirements/run.txt" in install
    assert "--no-deps --no-build-isolation --editable ." in editable


def test_a_second_run_does_nothing_until_a_lock_changes(tree: Path) -> None:
    run(tree)
    assert run(tree) == []
    with (tree / "requirements" / "run.txt").open("a") as lock:
        lock.write("# a change\n")
    assert run(tree)
