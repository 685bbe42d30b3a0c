# SPDX-License-Identifier: Apache-2.0
"""What make test-distros does, but for the root that it makes."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.distros import __main__ as distros


def test_both_commands_of_the_readme_run_in_order() -> None:
    lines = distros.commands(["-k", "two words"]).replace(".venv/bin/lbctl", "echo lbctl")
    instead = "cd() { :; }; make() { printf '%s|' make \"$@\"; }"
    argv = ["bash", "-ec", f"{instead}\n{lines}"]
    said = subprocess.run(argv, check=True, stdout=subprocess.PIPE, text=True).stdout
    assert said == "make|lab|lbctl lab down\nmake|test|PYTEST_ARGS=-k 'two words'|"


@pytest.mark.parametrize("words", [["no-such-suite"], ["trixie", "bookworm"]])
def test_what_debootstrap_does_not_know_is_refused(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert distros.main(words) == 2
    assert "usage" in capsys.readouterr().err


def test_what_runs_inside_leaves_no_mount() -> None:
    """The mounts are in a namespace that ends with the commands."""
    assert distros.run_in(distros.TREE / "no-such-directory", "true") != 0
    assert "no-such-directory" not in Path("/proc/self/mounts").read_text()
