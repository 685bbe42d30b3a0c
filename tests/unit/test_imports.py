# SPDX-License-Identifier: Apache-2.0
"""The import contracts of pyproject.toml are allow-lists: what nobody thought of is refused."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LIBRARIES = ("bcc", "pyroute2", "kubernetes", "prometheus_client", "scapy")


def refused(tree: Path) -> str:
    """Run import-linter in a tree; return what it says when it refuses."""
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tree,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "lb", tmp_path / "lb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_a_new_module_may_import_no_library_that_is_kept_to_few(tree: Path) -> None:
    planted = "".join(f"import {library}\n" for library in LIBRARIES)
    (tree / "lb" / "plan" / "planted.py").write_text(planted)
    said = refused(tree)
    for library in LIBRARIES:
        assert f"lb.plan.planted -> {library}" in said


@pytest.mark.parametrize("folder", ["lb", "lb/datapath"])
def test_a_new_module_has_its_place_among_the_layers(tree: Path, folder: str) -> None:
    (tree / folder / "planted.py").write_text("")
    assert "planted" in refused(tree)
