# SPDX-License-Identifier: Apache-2.0
"""Labs for the tests that send real traffic: fixtures ``lab`` (with agents) and ``make_lab``.

Every lab has an id of its own and is gone afterwards, whatever the test did to it.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from lb.lab.addressing import LabSpec
from lb.lab.lab import Lab
from lb.lab.removal import down
from lb.lab.store import Store

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
MakeLab = Callable[..., Lab]
_numbers = itertools.count()


def fresh_id() -> str:
    """Return an id that no other lab of this machine has."""
    return f"t{os.getpid()}x{next(_numbers)}"


def silent(_line: str) -> None:
    """Take a line of progress."""


def remove(lab: str) -> None:
    """Take a lab down if there is any of it."""
    if Store(lab).exists():
        down(lab, silent)


@contextlib.contextmanager
def _labs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeLab]:
    made = []

    def make(manifests: Path | None = None, *, within: Mapping[str, float] = {}, **fields: Any) -> Lab:
        if manifests is None:
            manifests = tmp_path_factory.mktemp("manifests") / "m"
            shutil.copytree(EXAMPLES, manifests, ignore=shutil.ignore_patterns("*ingress*"))
        spec = LabSpec(id=fresh_id(), manifests=str(manifests), **fields)
        made.append(spec.id)
        return Lab.up(spec, silent, **within)

    try:
        yield make
    finally:
        for lab in made:
            remove(lab)


@pytest.fixture(scope="module")
def make_lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MakeLab]:
    """Bring labs up: ``make_lab(manifests=DIR, agents=False, nodes=2, …)``, fields of LabSpec, and
    ``within``: how long to wait, by the names that Lab.up has for it.

    Without manifests the lab has a copy of the examples, which a test may edit; without those of Ingress,
    which would add pods to every lab. All are gone when the module ends: a lab that nobody uses takes CPU.
    """
    with _labs(tmp_path_factory) as make:
        yield make


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    """A lab of two nodes with agents, running the examples. Leave its pods ready and its agents running."""
    with _labs(tmp_path_factory) as make:
        yield make()
