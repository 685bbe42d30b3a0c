# SPDX-License-Identifier: Apache-2.0
"""Processes that outlive the command that started them: starting, recognising and ending them.

A process is known by its id and its start time, so that a reused id is never taken for it.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.errors import LabError

_POLL_SECONDS = 0.02
START_SECONDS = 60.0
COMPILE_SECONDS = 240.0
"""Of an agent, whose first start on a machine compiles the programs: seconds, but many on a busy machine."""


@dataclass(frozen=True, slots=True)
class ProcessRef:
    """A process: its id, and its start in clock ticks after boot (field 22 of /proc/PID/stat, proc(5))."""

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef | None:
        """Return the process that has this id now; None when there is none or it is a zombie."""
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except (FileNotFoundError, ProcessLookupError):
            return None
        fields = text.rpartition(")")[2].split()
        return None if fields[0] in "ZX" else cls(pid, int(fields[19]))

    @classmethod
    def own(cls) -> ProcessRef:
        """Return the calling process."""
        found = cls.of(os.getpid())
        assert found is not None
        return found

    def alive(self) -> bool:
        """Tell whether this very process still runs."""
        return ProcessRef.of(self.pid) == self


def spawn(
    argv: Sequence[str], log: Path, environ: Mapping[str, str] | None = None, what: str = ""
) -> ProcessRef:
    """Start a process in a session of its own, adopted by init, with its output appended to log.

    what is its name in errors, by default the command's.

    Raises LabError: it ended at once, with what it wrote.
    """
    script = '"$@" </dev/null >>"$LAB_LOG" 2>&1 & echo $!'
    done = subprocess.run(
        ["sh", "-c", script, "sh", "setsid", *argv],
        env={**(os.environ if environ is None else environ), "LAB_LOG": str(log)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    found = ProcessRef.of(int(done.stdout))
    if found is None:
        raise LabError(f"{what or argv[0]} ended at once; the end of its log {log}:\n{tail(log)}")
    return found


def environment() -> dict[str, str]:
    """Return the environment of the lab's own processes: this package importable, no setting for it.

    Settings for a proxy are left out, because what these processes talk to is in the lab; so is the socket of
    a service manager (NOTIFY_SOCKET), which watches over the command that starts them and not over them.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("LBCTL_", "ETCD_", "NOTIFY_SOCKET")) and not name.lower().endswith("_proxy")
    }
    package_root = str(Path(__file__).resolve().parents[2])
    return {**kept, "PYTHONPATH": os.pathsep.join(filter(None, (package_root, kept.get("PYTHONPATH", ""))))}


def wait_for(
    what: str, done: Callable[[], bool], process: ProcessRef | None, log: Path, seconds: float = START_SECONDS
) -> None:
    """Wait until done() is true.

    Raises LabError: the process ended, or it took longer; carries the end of its log.
    """
    deadline = time.monotonic() + seconds
    while not done():
        if process is None or not process.alive():
            raise LabError(f"{what} ended; the end of its log {log}:\n{tail(log)}")
        if time.monotonic() > deadline:
            raise LabError(f"{what} is not ready after {seconds:g} s; the end of its log {log}:\n{tail(log)}")
        time.sleep(_POLL_SECONDS)


def tail(log: Path, lines: int = 8) -> str:
    """Return the last lines of a log file; a note when it is missing or empty."""
    with contextlib.suppress(FileNotFoundError):
        text = log.read_text(errors="replace").splitlines()[-lines:]
        if text:
            return "\n".join(text)
    return f"(nothing in {log})"


def kill(
    processes: Iterable[ProcessRef], how: signal.Signals = signal.SIGKILL, within: float = 10.0
) -> list[ProcessRef]:
    """Signal the processes and wait for their end; return those that still run after so many seconds."""
    with contextlib.ExitStack() as stack:
        waiting: dict[int, ProcessRef] = {}
        for process in processes:
            try:
                fd = os.pidfd_open(process.pid)
            except ProcessLookupError:
                continue
            stack.callback(os.close, fd)
            if process.alive():  # checked after the descriptor is open: it is this very process
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(fd, how)
                waiting[fd] = process
        poller = select.poll()
        for fd in waiting:
            poller.register(fd, select.POLLIN)
        deadline = time.monotonic() + within
        while waiting and (left := deadline - time.monotonic()) > 0:
            for fd, _ in poller.poll(left * 1000):
                poller.unregister(fd)
                del waiting[fd]
        return list(waiting.values())
