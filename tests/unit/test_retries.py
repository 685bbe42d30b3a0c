# SPDX-License-Identifier: Apache-2.0
"""lb.retries, with times of the test's own."""

from __future__ import annotations

import pytest

from lb.retries import Retries


def test_retries_wait_longer_each_time_up_to_a_minute() -> None:
    retries = Retries[str]()
    waits = []
    for _ in range(9):
        retries.failed("x", "why", 0.0)
        waits.append(retries.next_due())
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert (retries.due(59.9), retries.due(60.0)) == (set(), {"x"})
    assert retries.succeeded("x")
    assert not retries.succeeded("x")
    assert retries.next_due() == float("inf")


@pytest.mark.parametrize(("messages", "news"), [(("a", "a"), False), (("a", "b"), True)])
def test_only_another_failure_is_news(messages: tuple[str, str], news: bool) -> None:
    retries = Retries[str]()
    assert retries.failed("x", messages[0], 0.0)
    assert retries.failed("x", messages[1], 1.0) is news
