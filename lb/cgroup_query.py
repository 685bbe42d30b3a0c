# SPDX-License-Identifier: Apache-2.0
"""Questions to a process in another control group, and its answers: JSON on its stdin and stdout.

Only a process of its own can join the control group whose sockets the data plane serves, as the node's own
processes do; it is in the network namespace of whoever starts it.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lb.errors import LbError

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def ask(module: str, questions: Sequence[DataclassInstance], cgroup: str, doing: str) -> list[dict[str, Any]]:
    """Return the answers of ``python -m MODULE [CGROUP]``, one for each question.

    cgroup: path of the control group; "" for the present one. doing: what the module does, for the error.

    Raises LbError: the process failed.
    """
    done = subprocess.run(
        [sys.executable, "-m", module, *([cgroup] if cgroup else [])],
        input=json.dumps([asdict(one) for one in questions]),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise LbError(f"{doing} failed: {last}")
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


def asked(argv: Sequence[str]) -> list[dict[str, Any]]:
    """Join the control group that argv names, if it names one, and return the questions on stdin."""
    if argv:
        with contextlib.suppress(OSError):  # without it, tc serves this process
            (Path(argv[0]) / "cgroup.procs").write_text(str(os.getpid()))
    questions: list[dict[str, Any]] = json.load(sys.stdin)
    return questions


def answer(answers: Sequence[DataclassInstance]) -> None:
    """Write the answers to stdout."""
    json.dump([asdict(one) for one in answers], sys.stdout)
