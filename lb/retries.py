# SPDX-License-Identifier: Apache-2.0
"""What failed and when to try it again."""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)


@dataclass(slots=True)
class _Failure:
    message: str
    attempts: int
    due: float


class Retries(Generic[K]):
    """What failed and when to try again: after 1 s, then after twice as long each time, up to a minute."""

    FIRST_SECONDS = 1.0
    MOST_SECONDS = 60.0

    def __init__(self) -> None:
        self._failures: dict[K, _Failure] = {}

    def failed(self, key: K, message: str, now: float) -> bool:
        """Note a failure; return True when it is news: the first one, or another than last time."""
        before = self._failures.get(key)
        attempts = before.attempts + 1 if before else 1
        wait = min(self.FIRST_SECONDS * 2.0 ** min(attempts - 1, 10), self.MOST_SECONDS)
        self._failures[key] = _Failure(message, attempts, now + wait)
        return before is None or before.message != message

    def __len__(self) -> int:
        return len(self._failures)

    def succeeded(self, key: K) -> bool:
        """Note a success; return True when it had failed before."""
        return self._failures.pop(key, None) is not None

    def due(self, now: float) -> set[K]:
        """Return what is to be tried again now."""
        return {key for key, failure in self._failures.items() if failure.due <= now}

    def next_due(self) -> float:
        """Return the time of the next retry; infinity when nothing has failed."""
        return min((failure.due for failure in self._failures.values()), default=math.inf)

    def messages(self) -> list[str]:
        """Return the present failures, sorted."""
        return sorted(failure.message for failure in self._failures.values())
