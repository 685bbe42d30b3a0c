# SPDX-License-Identifier: Apache-2.0
"""Which Services fail: their connections that failed and their dropped packets of the last minute."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Collection

import numpy as np

from lb.datapath.maps.layouts import REASONS
from lb.datapath.view.figures import Sample

WINDOW_SECONDS = 60.0
"""How far back lately is."""
MEANT = frozenset({"SOURCE_NOT_ALLOWED", "NO_LOCAL_ENDPOINT"})
"""Drops that a Service's own fields ask for: no trouble."""
_COUNTED = [at for at, (name, _) in enumerate(REASONS) if name not in MEANT]


class FailingServices:
    """Remembers what had gone wrong at earlier looks: of each Service that had any, one number."""

    def __init__(self) -> None:
        self._looks: deque[tuple[float, Counter[str]]] = deque()

    def note(self, time: float, sample: Sample) -> None:
        """Take a look; time: seconds, growing."""
        self._looks.append((time, totals(sample)))
        while len(self._looks) > 1 and self._looks[1][0] <= time - WINDOW_SECONDS:
            self._looks.popleft()

    def lately(self) -> Counter[str]:
        """Return by Service how much went wrong since the look a minute ago, where there was any."""
        if len(self._looks) < 2:
            return Counter()
        before, now = self._looks[0][1], self._looks[-1][1]
        # One that is less than before began anew.
        grown = {
            name: count - before[name] if count >= before[name] else count for name, count in now.items()
        }
        return Counter({name: count for name, count in grown.items() if count})

    def in_order(self, services: Collection[str], without_backend: Collection[str]) -> list[str]:
        """Return Services in order: what went wrong most lately, then those that refuse all, then by name."""
        lately = self.lately()
        return sorted(services, key=lambda name: (-lately[name], name not in without_backend, name))


def totals(sample: Sample) -> Counter[str]:
    """Return by Service how many connections failed and packets went nowhere, where there were any."""
    figures = sample.figures
    wrong = figures["refused"] + figures["unanswered"] + sample.dropped[:, _COUNTED].sum(axis=1)
    found = Counter[str]()
    rows = set(np.flatnonzero(wrong).tolist())
    for port, row in sample.ports.items() if rows else ():
        if row in rows:
            found[f"{port.namespace}/{port.service}"] += int(wrong[row])
    return found


def without_backend(sample: Sample) -> set[str]:
    """Return the Services of which no port has a backend."""
    having = np.zeros(len(sample.ports), bool)
    for one in sample.backends.values():
        having[one.ports] = True
    names: dict[str, bool] = {}
    for port, row in sample.ports.items():
        name = f"{port.namespace}/{port.service}"
        names[name] = names.get(name, False) or bool(having[row])
    return {name for name, has in names.items() if not has}
