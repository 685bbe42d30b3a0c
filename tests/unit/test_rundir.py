# SPDX-License-Identifier: Apache-2.0
"""lb.rundir: what an unprivileged neighbour can do there, and what is left when the file system is full."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import json
import logging
import os
import stat
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lb.errors import LbError
from lb.rundir import RunDir

NOBODY = 65534
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x00020000, 0x4000, 1 << 18


def in_child(work: Callable[[], str]) -> str:
    """Return what work returns in a process of its own; its exception as text."""
    reading, writing = os.pipe()
    pid = os.fork()
    if not pid:
        try:
            text = work()
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writing, text.encode()[:4000])
        os._exit(0)
    os.close(writing)
    with open(reading) as file:
        told = file.read()
    os.waitpid(pid, 0)
    return told


def as_nobody(work: Callable[[], str]) -> str:
    """Return what work returns as an unprivileged user in no group."""

    def dropped() -> str:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        return work()

    return in_child(dropped)


@contextlib.contextmanager
def open_to_all(path: Path) -> Iterator[None]:
    """Let every user pass through the folders that pytest keeps to itself."""
    before = {one: stat.S_IMODE(one.stat().st_mode) for one in path.parents}
    for one, mode in before.items():
        if one.stat().st_uid == os.geteuid() and not mode & 0o001:
            one.chmod(mode | 0o011)
    try:
        yield
    finally:
        for one, mode in before.items():
            one.chmod(mode)


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[RunDir]:
    with open_to_all(tmp_path / "lbctl"):
        yield RunDir("node1", tmp_path / "lbctl")


def try_to_lock(path: Path) -> str:
    fd = os.open(path, os.O_RDONLY)
    fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return "locked"


def modes(folder: Path) -> dict[str, str]:
    return {one.name: f"{stat.S_IMODE(one.lstat().st_mode):04o}" for one in (folder, *folder.iterdir())}


def test_nobody_can_lock_or_read_what_is_there(run_dir: RunDir) -> None:
    with run_dir.lock(), run_dir.watching():
        run_dir.write_notes({"pid": 1})
    assert modes(run_dir.root) == {
        "lbctl": "0700",
        "node1.lock": "0600",
        "node1.watch": "0600",
        "node1.json": "0600",
    }
    for path in (run_dir.lock_path, run_dir.watch_path, run_dir.notes_path, run_dir.root):
        assert as_nobody(lambda path=path: try_to_lock(path)).startswith("PermissionError")  # type: ignore[misc]
    assert as_nobody(lambda: str(run_dir.holder())).startswith("PermissionError")


def test_what_an_earlier_version_left_open_is_closed(run_dir: RunDir) -> None:
    run_dir.root.mkdir(0o755)
    run_dir.lock_path.touch(0o644)
    with run_dir.lock():
        assert modes(run_dir.root) == {"lbctl": "0700", "node1.lock": "0600"}


def test_a_folder_of_another_user_is_refused(run_dir: RunDir) -> None:
    run_dir.root.mkdir()
    os.chown(run_dir.root, NOBODY, NOBODY)
    with (
        pytest.raises(LbError, match=r"lbctl is not safe to use: .*lbctl belongs to user 65534"),
        run_dir.lock(),
    ):
        pass


def test_a_folder_below_one_that_others_may_write_to_is_refused(run_dir: RunDir) -> None:
    loose = run_dir.root.parent / "loose"
    loose.mkdir()
    loose.chmod(0o777)
    with (
        pytest.raises(LbError, match=r"others may write to .*loose, mode 0777"),
        RunDir("a", loose / "b").lock(),
    ):
        pass


def test_who_asks_for_the_holder_keeps_no_agent_from_starting(run_dir: RunDir) -> None:
    with run_dir.lock():
        pass
    done = threading.Event()

    def ask() -> None:
        while not done.is_set():
            run_dir.holder()

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for one in asking:
        one.start()
    try:
        for _ in range(50):
            with run_dir.lock():
                pass
    finally:
        done.set()
        for one in asking:
            one.join()


def test_a_second_agent_is_refused_by_the_pid_of_the_first(run_dir: RunDir) -> None:
    with run_dir.lock():
        assert run_dir.holder() == os.getpid()
        with (
            pytest.raises(LbError, match=f"node1: in use by process {os.getpid()}, which holds"),
            run_dir.lock(),
        ):
            pass
    assert run_dir.holder() is None


def huge(path: Path) -> None:
    """Make a file that no memory holds; it takes no room."""
    path.touch()
    os.truncate(path, 1 << 40)


@pytest.mark.parametrize(
    "put",
    [
        pytest.param(lambda _path: None, id="missing"),
        pytest.param(lambda path: path.touch(), id="empty"),
        pytest.param(lambda path: path.write_bytes(b"\xff\xfe{"), id="damaged"),
        pytest.param(lambda path: path.write_text('{"pid": 1'), id="truncated"),
        pytest.param(lambda path: path.write_text("[1]"), id="something else"),
        pytest.param(huge, id="huge"),
        pytest.param(lambda path: path.symlink_to("nowhere"), id="link to nowhere"),
        pytest.param(lambda path: path.symlink_to(path), id="link to itself"),
        pytest.param(lambda path: path.symlink_to("/dev/zero"), id="link to a device"),
        pytest.param(os.mkfifo, id="FIFO"),
        pytest.param(lambda path: path.mkdir(), id="folder"),
    ],
)
def test_whatever_is_in_the_place_of_a_file(run_dir: RunDir, put: Callable[[Path], None]) -> None:
    with run_dir.lock():
        pass
    for path in (run_dir.notes_path, run_dir.lock_path, run_dir.watch_path):
        path.unlink(missing_ok=True)
        put(path)
    assert run_dir.notes() == {}
    assert run_dir.holder() is None
    assert run_dir.elsewhere() == ""
    try:
        with run_dir.lock():
            assert run_dir.holder() is not None
    except LbError as error:
        assert str(run_dir.lock_path) in str(error)  # noqa: PT017  (both are right, a hang is not)
    if not run_dir.notes_path.is_dir() or run_dir.notes_path.is_symlink():
        run_dir.write_notes({"pid": 2})
        assert run_dir.notes() == {"pid": 2}
    else:
        with pytest.raises(IsADirectoryError):
            run_dir.write_notes({"pid": 2})


def test_nothing_that_lies_there_is_followed_or_overwritten(run_dir: RunDir, tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    run_dir.root.mkdir()
    for path in (run_dir.notes_path, run_dir.root / f".{run_dir.notes_path.name}.new", run_dir.lock_path):
        path.symlink_to(victim)
    run_dir.write_notes({"pid": 3})
    with pytest.raises(LbError, match="no lock at"), run_dir.lock():
        pass
    assert victim.read_text() == "precious"
    assert json.loads(run_dir.notes_path.read_text()) == {"pid": 3}


def full_tmpfs(at: Path, options: str) -> None:
    """Mount a small tmpfs for this process alone."""
    libc = ctypes.CDLL(None, use_errno=True)
    at.mkdir(exist_ok=True)
    if libc.unshare(_CLONE_NEWNS) or libc.mount(b"none", b"/", None, _MS_REC | _MS_PRIVATE, None):
        raise OSError(ctypes.get_errno(), "unshare")
    if libc.mount(b"tmpfs", os.fsencode(at), b"tmpfs", 0, f"mode=0755,{options}".encode()):
        raise OSError(ctypes.get_errno(), "mount")


@pytest.mark.parametrize("options", ["size=64k", "nr_inodes=2"])
def test_a_full_file_system_stops_nobody(
    tmp_path: Path, options: str, caplog: pytest.LogCaptureFixture
) -> None:
    def work() -> str:
        full_tmpfs(tmp_path / "run", options)
        run_dir = RunDir("node1", tmp_path / "run" / "lbctl")
        run_dir.root.mkdir()
        with contextlib.suppress(OSError), (tmp_path / "run" / "filler").open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        with run_dir.lock_if_room():
            try:
                run_dir.write_notes({"pid": 1})
            except OSError as error:
                told = errno.errorcode[error.errno or 0]
        left = sorted(path.name for path in run_dir.root.iterdir())
        logged = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
        return json.dumps([told, left, logged])

    told, left, logged = json.loads(in_child(work))
    assert told == "ENOSPC"
    if options.startswith("size"):
        assert (left, logged) == (["node1.lock"], [])
    else:
        assert left == []
        assert logged == [
            f"instance node1: no lock at {tmp_path}/run/lbctl/node1.lock: No space left on device;"
            " going on without: see that no second agent is started"
        ]
