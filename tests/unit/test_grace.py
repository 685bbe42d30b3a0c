# SPDX-License-Identifier: Apache-2.0
"""Waiting for packets on their way, in a thread of its own."""

from __future__ import annotations

import threading

from lb.datapath.kernel.grace import GracePeriods, wait_for_running_programs
from lb.stop_event import StopEvent


def test_one_wait_counts_for_all_that_asked_before_it_and_for_none_after() -> None:
    told: list[bool] = []
    later = []

    def wait() -> None:
        later.append(periods.begin())

    periods = GracePeriods(lambda: told.append(True), wait)
    first, second = periods.begin(), periods.begin()
    assert not first()
    periods.step()
    assert (first(), second(), told) == (True, True, [True])
    assert not later[0]()
    periods.step()
    assert later[0]()
    assert not later[1]()


def test_a_real_wait_in_its_thread() -> None:
    ended, stop = threading.Event(), StopEvent()
    periods = GracePeriods(ended.set, wait_for_running_programs)
    over = periods.begin()
    thread = threading.Thread(target=periods.run, args=(stop,))
    thread.start()
    assert ended.wait(30)
    assert over()
    stop.set()
    thread.join(30)
    assert not thread.is_alive()
