# SPDX-License-Identifier: Apache-2.0
"""What ends threads."""

from __future__ import annotations

import select
import threading

from lb.stop_event import Halt


def test_what_waits_for_a_descriptor_wakes() -> None:
    halt = Halt()
    assert not select.select([halt], [], [], 0)[0]
    thread = threading.Thread(target=lambda: select.select([halt], [], []))
    thread.start()
    halt.set()
    thread.join(30)
    assert not thread.is_alive()
    assert select.select([halt], [], [], 0)[0], "for whoever comes later, too"


def test_calls_come_once_when_it_is_set_or_at_once() -> None:
    halt, calls = Halt(), list[str]()
    halt.then(lambda: calls.append("before"))
    assert not calls
    halt.set()
    halt.set()
    assert calls == ["before"]
    halt.then(lambda: calls.append("after"))
    assert calls == ["before", "after"]
    assert halt.is_set()
