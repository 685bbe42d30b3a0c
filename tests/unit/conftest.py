# SPDX-License-Identifier: Apache-2.0
"""What a test has of its own: an instance, programs that compile quickly, a folder of manifests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.datapath.kernel.pins import Pins
from lb.datapath.programs import build
from tests.unit.folder_bench import Folder
from tests.unit.pins_bench import own_pins, tiny_tree


@pytest.fixture
def pins() -> Iterator[Pins]:
    with own_pins() as own:
        yield own


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(build, "CACHE", tmp_path / "cache")
    return tiny_tree(tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return Folder(tmp_path)
