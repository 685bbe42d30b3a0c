# SPDX-License-Identifier: Apache-2.0
"""Every source file names its licence in its first two lines, and the texts of all licences are there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOURCES = {".py", ".c", ".h", ".sh", ".yaml", ".toml", ".service", ".html", ".css", ".js"}
NAMES = {"Containerfile", "Makefile", "Vagrantfile", "lock", "run", "setup"}
DATA = (Path("tests/golden"), Path("tests/unit/texts"))
"""What tests read and compare whole, beside the tests; REUSE.toml says the licence of what is no Python."""
PROJECT, KERNEL_SIDE = "Apache-2.0", "GPL-2.0-only OR BSD-2-Clause"


def sources() -> Iterator[Path]:
    """The paths of all source files, relative to the top of the tree."""
    for folder, folders, files in os.walk(ROOT):
        here = Path(folder).relative_to(ROOT)
        folders[:] = [
            name
            for name in folders
            if (name == ".ci" or not name.startswith(".")) and name not in {"build", "__pycache__"}
        ]
        data = any(here.is_relative_to(each) for each in DATA)
        for name in files:
            path = here / name
            if data and path.suffix != ".py":
                continue
            if path.suffix in SOURCES or (not path.suffix and name in NAMES):
                yield path


# What follows is no licence of this file: REUSE-IgnoreStart
def licence_of(path: Path) -> str:
    """What the SPDX line among the first two lines says; empty without one."""
    for line in (ROOT / path).read_text().split("\n")[:2]:
        _, tag, rest = line.partition("SPDX-License-Identifier: ")
        if tag:
            return rest.removesuffix("*/").removesuffix("-->").strip()
    return ""


# REUSE-IgnoreEnd


def expected(path: Path) -> str:
    """BPF programs may call what the kernel keeps for the GPL; all else is under the project's licence."""
    runs_in_the_kernel = path.parts[0] == "bpf" or path.name in {"cost.h", "cost_tc.c", "cost_xdp.c"}
    return KERNEL_SIDE if runs_in_the_kernel else PROJECT


def test_every_source_file_names_its_licence() -> None:
    found = list(sources())
    assert {Path("lb/agent.py"), Path("bpf/lb.h"), Path(".ci/run"), Path("scripts/setup")} <= set(found)
    wrong = {str(path): licence_of(path) for path in found if licence_of(path) != expected(path)}
    assert not wrong, "the first line (the second after #!) is to name the licence"


@pytest.mark.parametrize("licence", ["Apache-2.0", "GPL-2.0-only", "BSD-2-Clause"])
def test_the_text_of_every_licence_is_there(licence: str) -> None:
    assert len((ROOT / "LICENSES" / f"{licence}.txt").read_text()) > 1000


def test_the_licence_of_the_project_is_at_the_top_as_well() -> None:
    assert (ROOT / "LICENSE").read_bytes() == (ROOT / "LICENSES" / "Apache-2.0.txt").read_bytes()
