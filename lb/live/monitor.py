# SPDX-License-Identifier: Apache-2.0
"""The loop of ``lbctl monitor``: reads events from the programs and hands them to their reader."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Sequence
from typing import Any

from lb.datapath.view.watch import Watch
from lb.errors import ConfigError
from lb.live.events import Names, PacketEvent, clock_offset, describe

RENEW_SECONDS = 1.0
"""How often the programs are told that a watcher is there, and names are read again."""


class Monitor:
    """Tells events as they come.

    Parameters
    ----------
    services: returns the ids of the Service ports to tell of; of all when it is None.
    tell: takes each event with its record; several: all of them do.
    told: called when there is nothing more to tell for the moment.
    complain: takes a line about events that were lost.
    clock: seconds, monotonic.

    Attributes
    ----------
    count: how many events were told.
    """

    def __init__(
        self,
        watch: Watch,
        names: Names,
        *,
        services: Callable[[], list[int]] | None,
        tell: Sequence[Callable[[Any, PacketEvent], None]],
        told: Callable[[], object],
        complain: Callable[[str], object],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.count = 0
        self._watch = watch
        self._names = names
        self._find = services
        self._services = set(services()) if services else None
        self._tell = tell
        self._told = told
        self._complain = complain
        self._clock = clock
        self._lost = 0
        self._offset = clock_offset()
        self._renew_due = -math.inf
        self._waiting = False
        self._ended = False

    def end(self) -> None:
        """End :meth:`run`, between two events; for a signal's handler.

        Raises KeyboardInterrupt: nothing is being told, but waited for.
        """
        self._ended = True
        if self._waiting:
            raise KeyboardInterrupt

    def run(self, count: float = math.inf, seconds: float = math.inf) -> None:
        """Tell events until there were so many, or for so long, or until :meth:`end`."""
        end = self._clock() + seconds
        with contextlib.suppress(KeyboardInterrupt):
            while not self._ended and self.count < count and self._clock() < end:
                self.step(count, end)

    def step(self, count: float, end: float) -> None:
        """Wait for events until it is time for something else, and tell them; in all not more than count."""
        now = self._clock()
        if now >= self._renew_due:
            self._renew()
            self._renew_due = now + RENEW_SECONDS
        self._waiting = True
        if not self._ended:
            self._watch.wait(max(0.0, min(self._renew_due, end) - now))
        self._waiting = False
        for record in self._watch.events():
            if self._services is not None and int(record["service"]) not in self._services:
                continue
            event = describe(record, self._names, self._offset)
            for tell in self._tell:
                tell(record, event)
            self.count += 1
            if self._ended or self.count >= count:
                break
        self._told()

    def _renew(self) -> None:
        self._names.forget()
        self._offset = clock_offset()  # somebody may have set the clock
        if self._find is not None:
            with contextlib.suppress(ConfigError):  # gone; it may come back
                self._services = set(self._find())
            self._watch.choose(sorted(self._services or ()))
        self._watch.renew()
        if self._watch.lost > self._lost:
            lost = self._watch.lost - self._lost
            self._complain(f"{lost} events lost; ask for fewer: --service, --sample, --drops")
            self._lost += lost
