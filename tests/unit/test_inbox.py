# SPDX-License-Identifier: Apache-2.0
"""Signals and threads that put messages into the agent's inbox."""

from __future__ import annotations

import queue
import signal
import threading

import pytest

from lb.inbox import Failed, Inbox, Reread, Stop, StopNow, stop_signals, threads


def test_signals_become_stop_and_handlers_come_back() -> None:
    inbox: Inbox = queue.SimpleQueue()
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with stop_signals(inbox) as runs:
        runs()
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert [inbox.get(timeout=5), inbox.get(timeout=5)] == [Reread(), Stop()]
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_that_nobody_would_read_ends_what_is_being_done(number: signal.Signals) -> None:
    """While the agent starts, and when the loop did not take notice of the first one."""
    inbox: Inbox = queue.SimpleQueue()
    with stop_signals(inbox) as runs:
        signal.raise_signal(signal.SIGHUP)
        with pytest.raises(StopNow):
            signal.raise_signal(number)
        runs()
        signal.raise_signal(number)
        with pytest.raises(StopNow):
            signal.raise_signal(number)
    assert [inbox.get(timeout=5), inbox.get(timeout=5)] == [Reread(), Stop()]


def test_a_thread_that_fails_tells_the_agent_and_the_others_end_with_the_context() -> None:
    inbox: Inbox = queue.SimpleQueue()
    ended = threading.Event()

    def fails(_stop: threading.Event) -> None:
        raise OSError("the disk is gone")

    def waits(stop: threading.Event) -> None:
        stop.wait()
        ended.set()

    with threads(inbox, {"source x": fails, "watcher": waits}):
        message = inbox.get(timeout=5)
        assert isinstance(message, Failed)
        assert (message.what, str(message.error)) == ("source x", "the disk is gone")
        assert not ended.is_set()
    assert ended.is_set()
