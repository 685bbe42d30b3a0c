# SPDX-License-Identifier: Apache-2.0
"""Ids and rows that no Service uses any more, before another Service may get them.

A packet that read a VIP a moment ago may still follow it to a backend or to rows of a table. So a backend
that a packet could choose is freed only when every program that ran at that moment has ended; and what is
free rests for :data:`QUARANTINE_SECONDS` before another Service gets its id or its rows.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from lb.datapath.maps.layouts import FAMILIES
from lb.datapath.sync.ledger import Ledger
from lb.datapath.sync.pools import Region
from lb.datapath.sync.slots import Slots

QUARANTINE_SECONDS = 1.0
"""How long freed backend ids and table rows rest; a program run takes microseconds."""


@dataclass(slots=True)
class Unused:
    """Ids and rows that no Service has any more; backends by IP version.

    exposed: a packet on its way may still choose one of the backends.
    """

    backends: dict[int, list[int]] = field(default_factory=lambda: {version: [] for version in FAMILIES})
    regions: list[Region] = field(default_factory=list)
    exposed: bool = False

    def release(self, ledger: Ledger) -> None:
        """Hand everything back to the pools of a ledger."""
        for version, backends in self.backends.items():
            ledger.backend_ids[version].release(backends)
        for region in self.regions:
            ledger.rows.release(region)


class Quarantine:
    """What is unused and waits: first for packets on their way, then for its quarantine to end.

    clock: seconds, monotonic. begin: returns what tells whether every program that runs now has ended.
    """

    def __init__(
        self, slots: Slots, clock: Callable[[], float], begin: Callable[[], Callable[[], bool]]
    ) -> None:
        self._slots = slots
        self._clock = clock
        self._begin = begin
        self._exposed: deque[tuple[Callable[[], bool], Unused]] = deque()
        self._quarantine: deque[tuple[float, Unused]] = deque()  # with the time that it ends

    @property
    def settling(self) -> bool:
        """Whether a packet on its way may still choose some of the backends."""
        return bool(self._exposed)

    @property
    def empty(self) -> bool:
        """Whether nothing rests."""
        return not (self._exposed or self._quarantine)

    def take(self, unused: Unused) -> None:
        """Let something rest."""
        if unused.exposed:
            self._exposed.append((self._begin(), unused))
            self.free()
        elif any(unused.backends.values()) or unused.regions:
            self._free(unused)

    def free(self) -> None:
        """Free the backends that no packet on its way can choose any more."""
        while self._exposed and self._exposed[0][0]():
            self._free(self._exposed.popleft()[1])

    def _free(self, unused: Unused) -> None:
        for version, backends in unused.backends.items():
            if backends:
                self._slots.free(version, backends)
        self._quarantine.append((self._clock() + QUARANTINE_SECONDS, unused))

    def end(self, ledger: Ledger) -> None:
        """Hand back what has rested long enough."""
        now = self._clock()
        while self._quarantine and self._quarantine[0][0] <= now:
            self._quarantine.popleft()[1].release(ledger)
