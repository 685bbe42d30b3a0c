# SPDX-License-Identifier: Apache-2.0
"""Whether the agent of an instance works: one that is stopped, or hangs, still holds its lock."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lb.errors import LbError
from lb.rundir import RunDir
from lb.served.ask import ask
from lb.served.problems import Problem

SILENT_SECONDS = 15.0
"""An agent beats every five seconds; one that has not for so long is silent."""
_ASK_SECONDS = 2.0

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True)
class Liveness:
    """How an agent gets on.

    pid: None when none runs, 0 when it is unknown. silent_seconds: since it last came round its loop; 0 while
    it gets on, or starts. stopped: by a signal or a debugger. answers: its other threads go on.
    notes_seconds: how old its notes are though it gets on; 0 while they are young.
    """

    pid: int | None
    silent_seconds: float = 0.0
    stopped: bool = False
    answers: bool = True
    notes_seconds: float = 0.0

    @property
    def silent(self) -> bool:
        """Whether it runs and does not get on."""
        return self.stopped or self.silent_seconds > 0

    def problem(self) -> Problem | None:
        """Return what is wrong with it, None when it gets on."""
        if self.pid is None:
            return Problem(
                "no agent runs: packets go on by what the maps hold, changes are not taken in",
                "start it: systemctl start lbctl, or lbctl run; its log says why it ended",
            )
        if self.notes_seconds and not self.silent:
            return Problem(
                f"what is said here of the agent is {self.notes_seconds:.0f} s old: it cannot write notes",
                "its log says why: /run/lbctl is full (df) or read-only (mount)",
            )
        if not self.silent:
            return None
        who, quiet = f"the agent, process {self.pid}", f"{self.silent_seconds:.0f} s"
        if self.stopped:
            since = f", silent for {quiet}" if self.silent_seconds else ""
            return Problem(
                f"{who}, is stopped by a signal or a debugger{since}: changes are not taken in",
                f"kill -CONT {self.pid}; it then takes in by itself what it missed",
            )
        doing = f"has been at one step of its work for {quiet}" if self.answers else f"is silent for {quiet}"
        return Problem(
            f"{who}, {doing}: changes are not taken in",
            "see its log, and the machine's CPU and memory; restart it: systemctl restart lbctl",
        )


def liveness(
    run_dir: RunDir,
    notes: Mapping[str, Any],
    *,
    clock: Callable[[], float] = time.monotonic,
    proc: Path = _PROC,
) -> Liveness:
    """Look at the agent; notes: what it left in the run directory.

    Young notes are believed. Old ones may be due to a full file system: then the agent is asked, unless this
    is its own process.

    Raises PermissionError: not root.
    """
    pid = run_dir.holder()
    if pid is None:
        return Liveness(None)
    stopped = _stopped(pid, proc)
    beat = notes.get("beat")
    if not isinstance(beat, int | float) or notes.get("pid") != pid:  # it starts, or is an older version
        return Liveness(pid, stopped=stopped, answers=not stopped)
    answers, written = not stopped, beat
    if answers and pid != os.getpid() and clock() - beat > SILENT_SECONDS:
        try:
            beat = max(beat, float(ask(run_dir, "/api/agent", seconds=_ASK_SECONDS)["beat"]))
        except (LbError, KeyError):
            answers = False
    silent = clock() - beat
    late = silent if stopped or silent > SILENT_SECONDS else 0.0
    return Liveness(pid, late, stopped, answers, clock() - written if beat > written else 0.0)


def _stopped(pid: int, proc: Path) -> bool:
    """Tell whether a process is stopped; False where it cannot be seen: proc(5), "stat"."""
    with contextlib.suppress(OSError):
        stat = (proc / str(pid) / "stat").read_text()
        return stat.rpartition(")")[2].split()[0] in ("T", "t")
    return False
