# SPDX-License-Identifier: Apache-2.0
"""The source of manifests in its thread: it follows a folder that changes."""

from __future__ import annotations

import logging
import queue
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from lb.manifests import ManifestSource
from lb.model import Event, ObjectKey
from lb.state import ClusterState
from tests.unit.folder_bench import service

WAIT_SECONDS = 30


class Running:
    """A source in its thread; what it emits is applied to a state as it comes."""

    def __init__(self, root: Path) -> None:
        self.state = ClusterState()
        self.batches: queue.Queue[list[Event]] = queue.Queue()
        self.source = ManifestSource(
            [root], service_cidr="10.96.0.0/16", node_port_range="30000-32767", report=lambda _: None
        )

    def emit(self, events: Sequence[Event]) -> None:
        self.batches.put(list(events))

    def until(self, reached: Callable[[ClusterState], bool]) -> None:
        """Wait for batches until the state is as wanted."""
        while not reached(self.state):
            self.state.apply(self.batches.get(timeout=WAIT_SECONDS))

    def until_port(self, name: str, port: int | None) -> None:
        def reached(state: ClusterState) -> bool:
            found = state.service(ObjectKey("default", name))
            return (found.ports[0].port if found is not None else None) == port

        self.until(reached)


@contextmanager
def running(root: Path) -> Iterator[Running]:
    one = Running(root)
    stop = threading.Event()
    thread = threading.Thread(target=one.source.run, args=(one.emit, stop), daemon=True)
    thread.start()
    try:
        yield one
    finally:
        stop.set()
        thread.join(WAIT_SECONDS)
    assert not thread.is_alive()


def test_run_follows_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(service("a"))
    with running(tmp_path) as one:
        one.until(lambda state: state.synced)
        one.until_port("a", 80)
        (tmp_path / "a.yaml").write_text(service("a", 81))
        one.until_port("a", 81)
        (tmp_path / "new" / "deep").mkdir(parents=True)
        (tmp_path / "new" / "deep" / "b.yaml").write_text(service("b"))
        one.until_port("b", 80)
        shutil.rmtree(tmp_path / "new")
        one.until_port("b", None)
        (tmp_path / ".a.tmp").write_text(service("a", 82))
        (tmp_path / ".a.tmp").rename(tmp_path / "a.yaml")
        one.until_port("a", 82)
        (tmp_path / "a.yaml").unlink()
        one.until_port("a", None)


def test_run_follows_a_folder_that_is_replaced(tmp_path: Path) -> None:
    root = tmp_path / "manifests"
    root.mkdir()
    with running(root) as one:
        one.until(lambda state: state.synced)
        shutil.rmtree(root)
        root.mkdir()
        (root / "a.yaml").write_text(service("a"))
        one.until_port("a", 80)
        following = tmp_path / "next"
        following.mkdir()
        (following / "a.yaml").write_text(service("a", 81))
        root.rename(tmp_path / "old")
        following.rename(root)
        one.until_port("a", 81)
        (root / "a.yaml").write_text(service("a", 82))
        one.until_port("a", 82)


def test_run_without_notices_looks_by_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_paths: Path, **_options: object) -> Iterator[set[tuple[int, str]]]:
        raise OSError(28, "OS file watch limit reached.")

    monkeypatch.setattr("lb.manifests.notices.watchfiles.watch", refuse)
    monkeypatch.setattr("lb.manifests.notices.RESCAN_SECONDS", 0.01)
    with caplog.at_level(logging.WARNING), running(tmp_path) as one:
        one.until(lambda state: state.synced)
        (tmp_path / "a.yaml").write_text(service("a"))
        one.until_port("a", 80)
    assert len(caplog.messages) == 1
    assert "watch limit reached" in caplog.messages[0]
