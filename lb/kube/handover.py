# SPDX-License-Identifier: Apache-2.0
"""An endpoint that moves from one EndpointSlice to another is never missing in between.

A move arrives as two events: one slice loses the endpoint, another gains it. The EndpointSlice controller
creates slices before it updates others and deletes last, but among several updates the order is open, and its
requests can be tens of milliseconds apart (Kubernetes documentation, "EndpointSlices": an endpoint may be in
two slices at a time, clients collect a Service's endpoints from all of them). kube-proxy escapes the gap only
because it gathers changes for a second.

Here changes are passed on at once, except one: an endpoint that takes connections and vanishes from its slice
stays in what is told of this slice for HOLD_SECONDS, or until another slice of the Service has it. A change
of its conditions (unready, terminating) is told at once: that is how a pod's end begins. So is what a slice
loses that is, and stays, a Service's only one for some ports and a family: had it moved, its new slice would
be there already.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from lb.model import Delete, Endpoint, EndpointPort, EndpointSlice, Event, ObjectKey, Upsert

HOLD_SECONDS = 0.1
TOGETHER_SECONDS = 0.05
"""Times end at multiples of this: of many that are held, several are let go together."""

_Held = dict[int, tuple[Endpoint, float]]
"""Endpoints that stay for now, by their addresses as numbers, with the clock seconds until which."""
_Present = Callable[[ObjectKey, tuple[EndpointPort, ...]], set[int]]
"""The addresses of a Service's slices with these ports."""


class Handover:
    """Passes events on, with vanished endpoints kept for a moment; clock gives seconds, monotonic."""

    def __init__(self, clock: Callable[[], float], hold_seconds: float = HOLD_SECONDS) -> None:
        self._clock = clock
        self._hold_seconds = hold_seconds
        self._slices: dict[ObjectKey, EndpointSlice] = {}
        self._of_service: dict[ObjectKey, tuple[ObjectKey, ...]] = {}
        self._held: dict[ObjectKey, tuple[EndpointSlice, _Held]] = {}

    def apply(self, events: Sequence[Event]) -> list[Event]:
        """Return what to tell now: everything but slices as it is, then slices, what is gone last."""
        passed: list[Event] = []
        before: dict[ObjectKey, EndpointSlice | None] = {}
        for event in events:
            if isinstance(event, Upsert) and isinstance(event.resource, EndpointSlice):
                key = event.resource.key
                before.setdefault(key, self._slices.get(key))
                self._put(key, event.resource)
            elif isinstance(event, Delete) and event.kind is EndpointSlice:
                before.setdefault(event.key, self._slices.get(event.key))
                self._put(event.key, None)
            else:
                passed.append(event)
        until = math.ceil((self._clock() + self._hold_seconds) / TOGETHER_SECONDS) * TOGETHER_SECONDS
        for key, old in before.items():
            self._hold(key, old, until)
        services = {piece.service for key in before if (piece := self._slices.get(key))}
        takers = [k for k, (form, _) in self._held.items() if form.service in services and k not in before]
        return passed + self._tell((*before, *takers), always=before)

    def due(self) -> list[Event]:
        """Return what to tell because the time of held endpoints is over."""
        now = self._clock()
        over = [k for k, (_, held) in self._held.items() if any(until <= now for _, until in held.values())]
        return self._tell(over, always=())

    def next_due(self) -> float:
        """Return the clock seconds at which :meth:`due` has something; infinity when nothing is held."""
        return min((until for _, held in self._held.values() for _, until in held.values()), default=math.inf)

    def _put(self, key: ObjectKey, piece: EndpointSlice | None) -> None:
        old = self._slices.pop(key, None)
        if old is not None:
            siblings = tuple([each for each in self._of_service.pop(old.service) if each != key])
            if siblings:
                self._of_service[old.service] = siblings
        if piece is not None:
            self._slices[key] = piece
            self._of_service[piece.service] = (*self._of_service.get(piece.service, ()), key)

    def _hold(self, key: ObjectKey, old: EndpointSlice | None, until: float) -> None:
        """Hold what a slice lost; with other ports or for another Service it would be another endpoint."""
        now = self._slices.get(key)
        if old is None or (
            now is not None
            and ((now.ports, now.service) != (old.ports, old.service) or not self._may_move(key, old))
        ):
            self._held.pop(key, None)
            return
        present = _numbers(now.endpoints) if now else set()
        lost = {
            number: (endpoint, until)
            for endpoint in old.endpoints
            if (number := int(endpoint.address)) not in present and _takes_connections(endpoint)
        }
        if lost:
            _, held = self._held.get(key, (old, {}))
            self._held[key] = (old, {**held, **lost})

    def _may_move(self, key: ObjectKey, piece: EndpointSlice) -> bool:
        """Tell whether the Service has another slice that the endpoints of this one might be in."""
        versions = {endpoint.address.version for endpoint in piece.endpoints[:1]}
        others = (self._slices[each] for each in self._of_service[piece.service] if each != key)
        return any(
            other.ports == piece.ports
            and (not versions or not other.endpoints or other.endpoints[0].address.version in versions)
            for other in others
        )

    def _tell(self, keys: Iterable[ObjectKey], always: Iterable[ObjectKey]) -> list[Event]:
        """Return the events of slices that let go of an endpoint or are in always; the gone last.

        A slice with endpoints that are held says no time of its change: that is not told in full yet.
        """
        changed, gone = [], []
        present = functools.cache(self._addresses)
        for key in keys:
            shrunk = self._release(key, present)
            if not shrunk and key not in always:
                continue
            piece = self._slices.get(key)
            if key in self._held:
                form, held = self._held[key]
                present_ones = piece.endpoints if piece else ()
                stay = (endpoint for endpoint, _ in held.values())
                base = piece or replace(form, pods="", hostnames="")
                whole = replace(base, endpoints=(*present_ones, *stay), triggered=0.0)
                changed.append(Upsert(whole))
            elif piece is not None:
                changed.append(Upsert(piece))
            else:
                gone.append(Delete(EndpointSlice, key))
        return [*changed, *gone]

    def _release(self, key: ObjectKey, present: _Present) -> bool:
        """Let go of a slice's held endpoints that another slice has, or it itself, or whose time is over."""
        if key not in self._held:
            return False
        form, held = self._held[key]
        taken = present(form.service, form.ports)
        now = self._clock()
        stay = {address: entry for address, entry in held.items() if address not in taken and entry[1] > now}
        if stay:
            self._held[key] = (form, stay)
        else:
            del self._held[key]
        return len(stay) < len(held)

    def _addresses(self, service: ObjectKey, ports: tuple[EndpointPort, ...]) -> set[int]:
        pieces = (self._slices[key] for key in self._of_service.get(service, ()))
        return set().union(*(_numbers(piece.endpoints) for piece in pieces if piece.ports == ports))


def _numbers(endpoints: Iterable[Endpoint]) -> set[int]:
    """Return addresses as numbers: an address as such takes four times as long to hash."""
    return {int(endpoint.address) for endpoint in endpoints}


def _takes_connections(endpoint: Endpoint) -> bool:
    return endpoint.ready or (endpoint.serving and endpoint.terminating)
