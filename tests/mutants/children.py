# SPDX-License-Identifier: Apache-2.0
"""Tests in a child that has everything imported already, for so long."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence

import pytest

OPTIONS = ("-x", "-q", "--no-header", "--tb=line", "-p", "no:cacheprovider", "-p", "no:xdist")
"""Of pytest: it ends with the first failure."""


def tested(prepare: Callable[[], None], words: Sequence[str], patience: float) -> tuple[str, str]:
    """Have a child prepare, and run pytest with these words; return what became of it, and what was said.

    One of ``noticed`` (a test failed, or what was changed could not be imported), ``survived`` and
    ``unknown``: it took more than patience seconds.

    Raises
    ------
    RuntimeError: neither; pytest's words.
    """
    with tempfile.TemporaryFile("w+") as said:
        child = os.fork()
        if not child:
            _be_child(prepare, words, said.fileno())
        status, late = _waited(child, patience)
        said.seek(0)
        text = said.read()
    code = os.waitstatus_to_exitcode(status)
    if late:
        return "unknown", text
    if code not in (0, 1) and "ImportError while" not in text and "errors during collection" not in text:
        raise RuntimeError(f"pytest ended with {code}\n{text}")
    return ("noticed" if code else "survived"), text


def _waited(child: int, patience: float) -> tuple[int, bool]:
    """Wait for a child; return its status, and whether it had to be ended."""
    deadline, signals = time.monotonic() + patience, [signal.SIGINT, signal.SIGKILL]
    while True:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status, len(signals) < 2
        if time.monotonic() > deadline and signals:
            os.kill(child, signals.pop(0))  # fixtures take down what they have made
            deadline = time.monotonic() + 60
        time.sleep(0.02)


def _be_child(prepare: Callable[[], None], words: Sequence[str], output: int) -> None:
    code = 3
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # in the background it is ignored
        os.dup2(output, 1)
        os.dup2(output, 2)
        prepare()
        code = int(pytest.main([*OPTIONS, *words]))
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)
