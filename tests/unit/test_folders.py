# SPDX-License-Identifier: Apache-2.0
"""lb.folders: what is listed and made while others make and remove the same."""

from __future__ import annotations

import contextlib
import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lb.datapath.attach import netlink
from lb.datapath.kernel import pins
from lb.folders import entries, make

ROUNDS = 300


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Repeat work in another thread."""
    done = threading.Event()

    def repeat() -> None:
        while not done.is_set():
            work()

    thread = threading.Thread(target=repeat)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def test_entries_are_in_order(tmp_path: Path) -> None:
    for name in "cab":
        (tmp_path / name).touch()
    assert [path.name for path in entries(tmp_path)] == ["a", "b", "c"]


def test_no_folder_has_no_entries(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert entries(tmp_path / "none") == entries(tmp_path / "file") == []


def test_a_folder_that_must_be_new(tmp_path: Path) -> None:
    make(tmp_path / "a" / "b", exist_ok=False)
    make(tmp_path / "a" / "b")
    with pytest.raises(FileExistsError):
        make(tmp_path / "a" / "b", exist_ok=False)


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "lost").symlink_to(tmp_path / "none" / "at all")
    with pytest.raises(OSError, match="lost"):
        make(tmp_path / "lost" / "b")


def test_another_removes_the_parent(tmp_path: Path) -> None:
    parent = tmp_path / "parent"

    def remove() -> None:
        with contextlib.suppress(OSError):  # not there, or not empty
            parent.rmdir()
        time.sleep(random.random() / 10_000)  # never in step with the one that makes it

    with meanwhile(remove):
        for number in range(ROUNDS * 10):
            make(parent / str(number), exist_ok=False)
            (parent / str(number)).rmdir()


def test_others_make_and_remove_the_same_folder(tmp_path: Path) -> None:
    folder = tmp_path / "parent" / "folder"

    def come_and_go() -> None:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True)
        with contextlib.suppress(OSError):
            folder.rmdir()
            folder.parent.rmdir()
        time.sleep(random.random() / 10_000)

    with meanwhile(come_and_go), meanwhile(come_and_go):
        for _ in range(ROUNDS * 10):
            make(folder)


def test_a_folder_that_goes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Path.mkdir() is told that it exists, and then finds no directory."""
    folder = tmp_path / "folder"
    answers = [FileExistsError(), None]

    def mkdir(path: Path, mode: int = 0o777) -> None:
        answer = answers.pop(0)
        if answer:
            raise answer
        really(path, mode)

    really = os.mkdir
    monkeypatch.setattr(os, "mkdir", mkdir)
    make(folder)
    assert folder.is_dir()


def test_pins_of_others_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whose a program is is asked of all instances' pins; that of another may be unloaded just now."""
    monkeypatch.setattr(netlink, "ROOT", tmp_path)
    other = tmp_path / "other"

    def come_and_go() -> None:
        make(other / "progs-1")
        pins.remove_tree(other)

    with meanwhile(come_and_go):
        for _ in range(ROUNDS * 10):
            assert netlink.our_names() == {}
