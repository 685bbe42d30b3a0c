# SPDX-License-Identifier: Apache-2.0
"""What ends threads."""

from __future__ import annotations

import select
import threading

from lb.stop_event import StopEvent


def test_what_waits_for_a_descriptor_wakes() -> None:
    stop = StopEvent()
    assert not select.select([stop], [], [], 0)[0]
    thread = threading.Thread(target=lambda: select.select([stop], [], []))
    thread.start()
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
    assert select.select([stop], [], [], 0)[0], "for whoever comes later, too"


def test_calls_come_once_when_it_is_set_or_at_once() -> None:
    stop, calls = StopEvent(), list[str]()
    stop.then(lambda: calls.append("before"))
    assert not calls
    stop.set()
    stop.set()
    assert calls == ["before"]
    stop.then(lambda: calls.append("after"))
    assert calls == ["before", "after"]
    assert stop.is_set()
