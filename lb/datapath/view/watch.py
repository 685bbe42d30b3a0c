# SPDX-License-Identifier: Apache-2.0
"""Watching the data plane at work: saying what is wanted, and reading the events that the programs write.

What is wanted is in the map ``watch``. It has an end: whoever watches puts that off again and again, and
once it has passed the programs themselves clear what was wanted. So a watcher that was killed costs nothing
for longer than :data:`LEASE_SECONDS`, whether or not an agent runs.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from lb.datapath.kernel.closing import Closing
from lb.datapath.kernel.ringbuf import RingBuffer
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import EVENT, WATCHED_SERVICES, WatchFlag

LEASE_SECONDS = 5.0
"""How long after :meth:`Watch.renew` the programs still tell."""


class Watch(Closing):
    """Somebody who watches; close it. There is one at a time: see :meth:`lb.rundir.RunDir.watching`.

    Parameters
    ----------
    what: which events; one_in: of how many connections one is told of, all of it.
    services: the ids of Service ports, none: all. Where they are more than the programs look through, all
        are told of, and the caller chooses.
    clock: CLOCK_MONOTONIC in ns.

    Raises
    ------
    BpfError: the kernel refused.
    """

    def __init__(
        self,
        maps: KernelMaps,
        what: WatchFlag,
        *,
        one_in: int = 1,
        services: Sequence[int] = (),
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._row = maps.array("watch")
        self._what = what
        self._clock = clock
        self._ring = RingBuffer(maps.fd("events"))
        self._lost_before = int(self._row["lost"][0])
        self._row["what"] = 0
        self._row["one_in"] = one_in
        self.choose(services)
        self.renew()

    def close(self) -> None:
        """Stop watching."""
        self._row["what"] = 0
        self._ring.close()

    def choose(self, services: Sequence[int]) -> None:
        """Let the Service ports told of be others."""
        ids = np.zeros(WATCHED_SERVICES, "u4")
        if len(services) <= WATCHED_SERVICES:
            ids[: len(services)] = services
        self._row["services"][0] = ids

    def renew(self) -> None:
        """Go on watching for :data:`LEASE_SECONDS`."""
        self._row["until_ns"] = self._clock() + int(LEASE_SECONDS * 1e9)
        self._row["what"] = self._what

    @property
    def lost(self) -> int:
        """How many events there was no room for since this began."""
        return int(self._row["lost"][0]) - self._lost_before

    def wait(self, seconds: float) -> None:
        """Return when there is an event, at the latest after so many seconds."""
        self._ring.wait(seconds)

    def events(self) -> Iterator[Any]:
        """Yield the events that there are, each one record of :data:`lb.datapath.maps.layouts.EVENT`."""
        for record in self._ring.read():
            yield np.frombuffer(record.ljust(EVENT.itemsize, b"\0"), EVENT)[0]
