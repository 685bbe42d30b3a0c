# SPDX-License-Identifier: Apache-2.0
"""Starting BIRD, and what becomes of one that was there before."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.bgp.bird import Bird
from lb.bgp.config import bird_conf
from lb.errors import LbError
from tests.netns.waiting import eventually


@pytest.fixture
def bird(tmp_path: Path) -> Iterator[Bird]:
    made = Bird(tmp_path, seconds=1.0)
    made.write(bird_conf("192.0.2.1", []))
    yield made
    if made.alive():
        made.end()
    assert made.ended()


def running(bird: Bird) -> int:
    return int((bird.socket.parent / "bird.pid").read_text())


def test_one_that_hangs_is_replaced(bird: Bird) -> None:
    bird.start()
    before = running(bird)
    os.kill(before, signal.SIGSTOP)
    assert not bird.alive()
    bird.start()
    assert bird.alive()
    assert running(bird) != before
    eventually(lambda: not Path(f"/proc/{before}/cmdline").exists(), "the former one is gone")


def test_another_process_takes_it_over(bird: Bird) -> None:
    bird.start()
    other = Bird(bird.socket.parent)
    assert other.alive()
    other.configure()
    assert other.sessions() == {}


def test_what_bird_refuses_is_not_written(bird: Bird) -> None:
    before = bird.config.read_text()
    with pytest.raises(LbError, match="bird refuses its configuration"):
        bird.write("protocol nonsense")
    assert bird.config.read_text() == before
    bird.start()
    with pytest.raises(LbError, match="bird refuses 'disable'"):
        bird.disable("peer_nobody")
