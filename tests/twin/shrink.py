# SPDX-License-Identifier: Apache-2.0
"""Delta debugging: the smallest part of a program that still fails.

Halves of the program are left out, then quarters, then single steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tests.twin.program import Step

Fails = Callable[[Sequence[Step]], bool]


def shrunken(steps: Sequence[Step], fails: Fails, tries: int = 60) -> list[Step]:
    """Return what is left once no step can go, with plain sizes and ports, or what so many tries left."""
    left, chunk, tried = list(steps), max(1, len(steps) // 2), 0

    def still(candidate: list[Step]) -> bool:
        nonlocal tried
        tried += 1
        return bool(candidate) and tried <= tries and fails(candidate)

    while True:
        at, shorter = 0, False
        while at < len(left):
            candidate = left[:at] + left[at + chunk :]
            if still(candidate):
                left, shorter = candidate, True
            else:
                at += chunk
        if chunk > 1:
            chunk //= 2
        elif not shorter:
            break
    for at, step in enumerate(left):
        for key, plain in (
            ("size", 4 if step["do"] == "ask" else 0),
            ("port", 0),
            ("df", False),
            ("last", False),
        ):
            if step.get(key, plain) != plain:
                candidate = [*left[:at], {**left[at], key: plain}, *left[at + 1 :]]
                if still(candidate):
                    left = candidate
    return left
