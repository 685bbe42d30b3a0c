# SPDX-License-Identifier: Apache-2.0
"""lb.folders: what is listed and made while others make and remove the same; files that a person names."""

from __future__ import annotations

import contextlib
import os
import random
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lb import folders
from lb.datapath.attach import netlink
from lb.datapath.kernel import pins
from lb.folders import create_file, entries, make, read_stream

ROUNDS = 300
STRANGER = 65534


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


@contextlib.contextmanager
def pipe(*pieces: bytes) -> Iterator[Path]:
    """Give the name of a pipe into which another thread writes pieces, one after the other, and closes it."""
    reads, writes = os.pipe()

    def write() -> None:
        with open(writes, "wb", buffering=0) as file:
            for piece in pieces:
                file.write(piece)
                time.sleep(0.01)

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield Path(f"/proc/self/fd/{reads}")
    finally:
        os.close(reads)
        thread.join()


def test_a_pipe_is_read_to_its_end(tmp_path: Path) -> None:
    with pipe(b"some ", b"words") as path:
        assert read_stream(path, 10) == b"some words"
    with pipe(b"some ", b"words") as path, pytest.raises(OSError, match="is larger than 9 bytes"):
        read_stream(path, 9)
    (tmp_path / "file").write_bytes(b"words")
    assert read_stream(tmp_path / "file", 5) == b"words"
    assert read_stream(Path("/dev/null"), 1) == b""
    with pytest.raises(OSError, match="is larger"):
        read_stream(Path("/dev/zero"), 100_000)
    with pytest.raises(IsADirectoryError):
        read_stream(tmp_path, 1)


def test_nobody_waits_for_a_pipe_without_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(folders, "SILENCE_SECONDS", 0.05)
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(OSError, match=r"nothing came from it for 0.05 seconds"):
        read_stream(tmp_path / "fifo", 1)
    with pytest.raises(OSError, match="No such device or address"):
        create_file(tmp_path / "fifo")


def test_a_new_file_is_private_and_an_old_one_is_emptied(tmp_path: Path) -> None:
    path = tmp_path / "new"
    with create_file(path) as file:
        file.write(b"long words")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    (tmp_path / "link").symlink_to("new")
    with create_file(tmp_path / "link") as file:
        file.write(b"words")
    assert path.read_bytes() == b"words"


def test_a_pipe_is_written_to() -> None:
    reads, writes = os.pipe()
    with create_file(Path(f"/proc/self/fd/{writes}")) as file:
        file.write(b"words")
    os.close(writes)
    with open(reads, "rb") as read:
        assert read.read() == b"words"


@pytest.mark.parametrize("what", ["link", "folder", "file", "second name"])
def test_what_a_stranger_put_into_a_shared_folder_is_not_written_to(what: str, tmp_path: Path) -> None:
    """It may be a link to a file of ours, or a file that the stranger reads."""
    shared, mine = tmp_path / "shared", tmp_path / "mine"
    shared.mkdir()
    shared.chmod(0o1777)
    mine.mkdir()
    (mine / "secret").write_text("secret")
    path = shared / "out"
    if what == "link":
        path.symlink_to(mine / "secret")
    elif what == "folder":
        path.symlink_to(mine)
    elif what == "file":
        path.write_text("secret")
    else:
        path.hardlink_to(mine / "secret")
    if what != "second name":
        os.chown(path, STRANGER, STRANGER, follow_symlinks=False)
    by_kernel = f"Permission denied: '{path}'"  # fs.protected_regular, which systemd switches on
    ours = f"{path} (belongs to user {STRANGER}|has a second name)"
    with pytest.raises(OSError, match=f"{ours}|{by_kernel}"):
        create_file(path / "secret" if what == "folder" else path)
    assert (mine / "secret").read_text() == "secret"
    if what == "second name":
        return
    shared.chmod(0o755)  # here nobody else can put anything
    with create_file(path / "secret" if what == "folder" else path) as file:
        file.write(b"new")
