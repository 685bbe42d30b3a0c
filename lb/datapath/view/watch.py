# SPDX-License-Identifier: Apache-2.0
"""Watching the data plane at work: saying what is wanted, and reading the events that the programs write.

The map ``watch`` says which events are wanted, and until when. A watcher extends that time again and again;
after it has passed, the programs clear the map themselves. So a watcher that was killed costs nothing after
:data:`LEASE_SECONDS`, whether or not an agent runs.
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
"""How long after :meth:`Watch.renew` the programs go on reporting."""


class Watch(Closing):
    """Somebody who watches; close it. There is one at a time: see :meth:`lb.rundir.RunDir.watching`.

    what: which events are wanted.
    one_in: out of so many connections one is reported, with all of its packets.
    services: ids of Service ports; empty means all. If they are more than the programs can look through, the
        programs report all Services, and the caller has to choose.
    clock: CLOCK_MONOTONIC in nanoseconds.

    Raises BpfError: the kernel refused.
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
        """Change which Service ports are reported."""
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
