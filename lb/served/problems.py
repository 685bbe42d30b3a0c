# SPDX-License-Identifier: Apache-2.0
"""Something that is wrong at present, with what an operator does about it and since when it is so."""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

NEXT = {
    "service": "tried again within a minute; lbctl explain names the cause; raise the limit of a full map",
    "hook": "tried again within a minute; lbctl doctor says what this kernel and this driver lack",
    "uplink": "ip -brief link shows the names that there are; name the one towards clients with --uplink",
    "lost": "attached again every few seconds, in vain: bpftool net shows what else is attached there",
    "unseen": "give the agent its rights: docs/operations.md, What the agent must be allowed",
    "drift": "lbctl audit names each entry, lbctl audit --heal writes it",
    "conflict": "give one of the two another address or port",
    "input": "correct it: until then what was good of it before stays",
    "refusal": "give it another address; who may have which: docs/operations.md, External addresses",
}
"""What an operator does about each kind of problem that the agent's loop meets."""


@dataclass(frozen=True, slots=True)
class Problem:
    """text: what is wrong. next: what to do, ``""`` where text says it.

    key: by what it is known again while its text changes, with a number that grows; ``""``: by its text.
    """

    text: str
    next: str = ""
    key: str = ""


class Since:
    """Remembers since when each problem is there; wall: seconds since the epoch."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._first: dict[str, str] = {}

    def noted(self, problems: Iterable[Problem]) -> list[dict[str, Any]]:
        """Return the problems of now as JSON has them: text, next, and since, ISO 8601 in UTC.

        A problem that was not among those of the last call begins now.
        """
        now = time_text(self._wall())
        present = {one.key or one.text: one for one in problems}
        self._first = {key: self._first.get(key, now) for key in present}
        return [as_note(one, self._first[key]) for key, one in present.items()]


def as_note(problem: Problem, since: str | None = None) -> dict[str, Any]:
    """Return a problem as JSON has it; since: ISO 8601, None when nobody knows."""
    return {"text": problem.text, "next": problem.next, "since": since}


def read_notes(noted: Sequence[Any]) -> list[dict[str, Any]]:
    """Return the problems of an agent's notes; one of an older version has left texts alone."""
    return [as_note(Problem(one)) if isinstance(one, str) else one for one in noted]


def time_text(seconds: float) -> str:
    """Return a time since the epoch as ISO 8601 text in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
