# SPDX-License-Identifier: Apache-2.0
"""A start that fails leaves no instance behind; one that was there before stays as it was."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from lb import serve
from lb.config import Config
from lb.errors import DatapathError, LbError
from lb.inbox import StopNow
from lb.rundir import RunDir

HERE = "n1"


Start = Callable[[BaseException], Path]


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Start:
    """Give what starts an agent that gets as far as to make its pins, and then ends with an error."""
    pinned = tmp_path / "bpf"
    monkeypatch.setattr("lb.datapath.kernel.pins.ROOT", pinned)
    monkeypatch.setattr(serve, "RunDir", functools.partial(RunDir, root=tmp_path / "run"))
    monkeypatch.setattr(serve, "build_source", lambda _config: None)

    def begin(error: BaseException) -> Path:
        def startup(*_args: object, **_more: object) -> None:
            (pinned / HERE / "maps").mkdir(parents=True, exist_ok=True)
            raise error

        monkeypatch.setattr(serve, "startup", startup)
        with contextlib.suppress(LbError):
            serve.serve(Config(sources=("manifests:/m",), node_name=HERE))
        return tmp_path

    return begin


@pytest.mark.parametrize("error", [DatapathError("no room"), StopNow()])
def test_a_start_that_fails_leaves_nothing(
    start: Callable[[BaseException], Path], error: BaseException
) -> None:
    root = start(error)
    assert list(root.rglob("*")) == []


def test_an_instance_that_was_there_stays(start: Start, tmp_path: Path) -> None:
    kept = tmp_path / "bpf" / HERE / "maps"
    kept.mkdir(parents=True)
    start(DatapathError("no room"))
    assert kept.is_dir()
    assert RunDir(HERE, tmp_path / "run").lock_path.exists()


def test_an_instance_in_use_stays(start: Start, tmp_path: Path) -> None:
    run_dir = RunDir(HERE, tmp_path / "run")
    with run_dir.lock():
        start(AssertionError("it must not come that far"))
        assert run_dir.holder() is not None
