# SPDX-License-Identifier: Apache-2.0
"""Slow start: a new endpoint of a Service comes to its whole share of new connections step by step.

An endpoint is new when it becomes ready and was not before: it has come, or come back. It counts with a tenth
of its weight then, and with a tenth more after each tenth of the Service's time. Endpoints that were there
when the agent began count in full: to a fresh agent everything would be new. So do endpoints that are all
equally new.

Each node counts from when it has heard of the endpoint, so for the moment between two nodes' steps they may
choose differently for a tenth of the endpoint's share; at the end they agree.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from lb.model import EndpointSlice, IPAddress, ObjectKey, Service

STEPS = 10
_EARLY = 1e-3  # seconds: a step that is due is taken, however its time was rounded


class SlowStart:
    """Remembers since when endpoints are ready, of Services that have a slow start. Time in seconds."""

    def __init__(self) -> None:
        self._since: dict[ObjectKey, dict[IPAddress, float]] = {}
        self._due: dict[ObjectKey, float] = {}

    def percents(
        self, service: Service, slices: Iterable[EndpointSlice], now: float, *, begun: bool
    ) -> Mapping[IPAddress, int]:
        """Return how much of their weights the endpoints that are new count with: from 10 to 90.

        begun: the agent had everything in the kernel once; what is there before that is not new.
        """
        if not service.slow_start:
            self.forget(service.key)
            return {}
        known = self._since.get(service.key, {})
        first = now if begun else -math.inf
        ready = {one.address for piece in slices for one in piece.endpoints if one.ready}
        since = self._since[service.key] = {each: known.get(each, first) for each in ready}
        step = service.slow_start / STEPS
        taken = {each: 1 + int((now - at + _EARLY) / step) for each, at in since.items() if at > -math.inf}
        steps = {each: some for each, some in taken.items() if some < STEPS}
        self._due[service.key] = min(
            (since[each] + some * step for each, some in steps.items()), default=math.inf
        )
        if len(steps) == len(ready) and len(set(steps.values())) == 1:
            return {}  # nobody is there to take their part
        return {each: some * 100 // STEPS for each, some in steps.items()}

    def forget(self, key: ObjectKey) -> None:
        """Forget a Service."""
        self._since.pop(key, None)
        self._due.pop(key, None)

    def due(self, now: float) -> set[ObjectKey]:
        """Return the Services that have to be planned again by now."""
        found = {key for key, at in self._due.items() if at <= now}
        for key in found:
            self._due[key] = math.inf
        return found

    def next_due(self) -> float:
        """Return when the next step is; infinity: none is to come."""
        return min(self._due.values(), default=math.inf)
