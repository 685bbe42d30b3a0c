# SPDX-License-Identifier: Apache-2.0
"""What the agent has lately written to the maps, for which Service and why; and how long that took.

The agent notes why a Service is to be planned anew (:meth:`History.due`), the reconciler what it wrote
(:meth:`History.wrote`), and the agent that the Service is in step (:meth:`History.settled`). Between the
first and the last lies the programming latency: Kubernetes' SLI of that name counts from the change of the
pod or Service that an EndpointSlice follows from, as its annotation
``endpoints.kubernetes.io/last-change-trigger-time`` says (kubernetes/community,
sig-scalability/slos/network_programming_latency.md). Without one it is counted from the event's arrival.
"""

from __future__ import annotations

import datetime
import enum
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import msgspec

from lb.datapath.sync.sync_record import Written
from lb.model import Delete, EndpointSlice, Event, ObjectKey, Upsert
from lb.served.api import Query, as_json, service_of
from lb.served.http import Answer

OF_ONE = 40
"""How many changes of one Service are remembered; what changes in both families is two."""
IN_ALL = 2000
"""How many changes are remembered in all: at most 4 MB."""
MOST_CHANGES = 200
"""How many changes of all Services one answer holds at most."""
_MOST_CAUSES = 4
_MOST_BEGINNINGS = 64


class Since(enum.StrEnum):
    """Where the measuring of programming latency begins."""

    TRIGGER = "trigger"
    """The change of a pod or Service, as the EndpointSlice tells."""
    ARRIVAL = "arrival"
    """The event's arrival at the agent."""


class Cause(msgspec.Struct, frozen=True, gc=False):
    """What made the agent plan a Service anew.

    kind: ``Service``, ``EndpointSlice`` or ``Node``, with the object's name and whether it is gone;
    ``interfaces``, ``start``, ``heal``, ``claim`` (another Service took or gave up a VIP) have no name.
    """

    kind: str
    name: str = ""
    gone: bool = False

    def __str__(self) -> str:
        words = (self.kind, self.name, "deleted" if self.gone else "")
        return " ".join(word for word in words if word)


START = Cause("start")
HEAL = Cause("heal")
CLAIM = Cause("claim")
INTERFACES = Cause("interfaces")


def cause_of(event: Event) -> Cause:
    """Return the cause that an event is."""
    if isinstance(event, Delete):
        return Cause(event.kind.__name__, event.key.name, gone=True)
    assert isinstance(event, Upsert)
    resource = event.resource
    key = getattr(resource, "key", None)
    return Cause(type(resource).__name__, key.name if key else getattr(resource, "name", ""))


@dataclass(slots=True)
class _Due:
    """Why a Service is to be planned. arrived: the first event, monotonic; beginnings: of latencies."""

    arrived: float
    causes: list[Cause] = field(default_factory=list)
    more: int = 0
    beginnings: list[tuple[Since, float]] = field(default_factory=list)


class Entry(msgspec.Struct, frozen=True, gc=False):
    """One change: when it was in the maps (seconds since the epoch), why, after how long, and what it was.

    seconds counts from the arrival of the first event; None where no event was the cause. more: further
    causes.
    """

    time: float
    causes: tuple[Cause, ...]
    more: int
    seconds: float | None
    written: Written

    def as_dict(self) -> dict[str, Any]:
        """Return the entry as JSON has it."""
        moment = datetime.datetime.fromtimestamp(self.time, datetime.UTC)
        return {
            "time": moment.isoformat(timespec="milliseconds"),
            "service": str(self.written.key),
            "family": f"IPv{self.written.version}",
            "causes": [str(cause) for cause in self.causes],
            "more_causes": self.more,
            "seconds": None if self.seconds is None else round(self.seconds, 6),
            "changes": self.written.as_dicts(),
        }


class History:
    """Remembers the last changes. One thread notes them, any thread reads them.

    Parameters
    ----------
    clock: seconds, monotonic; wall: seconds since the epoch.

    Attributes
    ----------
    otherwise: the cause of what is written for a Service that no event is about.
    measured: called with each programming latency: where it begins, and seconds.
    """

    def __init__(
        self, clock: Callable[[], float] = time.monotonic, wall: Callable[[], float] = time.time
    ) -> None:
        self.otherwise = START
        self.measured: Callable[[Since, float], None] = lambda _since, _seconds: None
        self._clock = clock
        self._wall = wall
        self._began = wall()
        self._due: dict[ObjectKey, _Due] = {}
        self._lock = threading.Lock()  # around what is remembered
        self._entries: OrderedDict[int, Entry] = OrderedDict()
        self._of_service: dict[ObjectKey, list[int]] = {}  # no deques: an empty one has 700 bytes
        self._next = 0

    def due(self, keys: Iterable[ObjectKey], cause: Cause, arrived: float, triggered: float = 0.0) -> None:
        """Note that these Services are to be planned anew.

        arrived: when the event came, monotonic. triggered: when the change happened that it follows from, in
        seconds since the epoch; 0: nobody says. What happened before the agent's start is not its latency.
        """
        for key in keys:
            due = self._due.get(key)
            if due is None:
                due = self._due[key] = _Due(arrived)
            if len(due.causes) >= _MOST_CAUSES:
                due.more += cause not in due.causes
            elif cause not in due.causes:
                due.causes.append(cause)
            if len(due.beginnings) < _MOST_BEGINNINGS:
                since_trigger = triggered > self._began
                due.beginnings.append(
                    (Since.TRIGGER, triggered) if since_trigger else (Since.ARRIVAL, arrived)
                )

    def due_by(self, keys: Iterable[ObjectKey], event: Event, arrived: float) -> None:
        """Note that these Services are to be planned anew, because of an event of the source."""
        piece = event.resource if isinstance(event, Upsert) else None
        triggered = piece.triggered if isinstance(piece, EndpointSlice) else 0.0
        self.due(keys, cause_of(event), arrived, triggered)

    def wrote(self, written: Written) -> None:
        """Remember what has just been written for a Service."""
        due = self._due.get(written.key)
        if due is None:
            entry = Entry(self._wall(), (self.otherwise,), 0, None, written)
        else:
            seconds = self._clock() - due.arrived
            entry = Entry(self._wall(), tuple(due.causes), due.more, seconds, written)
        with self._lock:
            self._remember(entry)

    def _remember(self, entry: Entry) -> None:
        key = entry.written.key
        numbers = self._of_service.setdefault(key, [])
        if len(numbers) >= OF_ONE:
            del self._entries[numbers.pop(0)]
        self._entries[self._next] = entry
        numbers.append(self._next)
        self._next += 1
        if len(self._entries) > IN_ALL:
            _, oldest = self._entries.popitem(last=False)
            of_oldest = self._of_service[oldest.written.key]
            del of_oldest[0]
            if not of_oldest:
                del self._of_service[oldest.written.key]

    def settled(self, keys: Iterable[ObjectKey]) -> None:
        """Note that these Services are in the maps as planned: their latencies are known."""
        if not self._due:
            return
        now, today = self._clock(), self._wall()
        for key in keys:
            due = self._due.pop(key, None)
            for since, then in due.beginnings if due else ():
                self.measured(since, max(0.0, (today if since is Since.TRIGGER else now) - then))

    def of(self, key: ObjectKey) -> list[Entry]:
        """Return the changes of a Service, the oldest first; may be called from any thread."""
        with self._lock:
            return [self._entries[number] for number in self._of_service.get(key, ())]

    def seconds_since(self, key: ObjectKey) -> float | None:
        """Return how long ago a Service was changed last; None: nothing is remembered. From any thread."""
        entries = self.of(key)
        return self._wall() - entries[-1].time if entries else None

    def last(self, count: int) -> list[Entry]:
        """Return the last changes of all Services, the oldest first; may be called from any thread."""
        with self._lock:
            entries = [*self._entries.values()]
        return entries[-count:] if count else []


def history_answer(history: History, instance: str, started: str) -> Answer:
    """Return what answers with the last changes: of ``?service=NAMESPACE/NAME``, or of all Services."""

    def read(query: Query) -> dict[str, Any]:
        key = service_of(query) if "service" in query else None
        entries = history.of(key) if key else history.last(MOST_CHANGES)
        return {
            "instance": instance,
            "service": str(key) if key else None,
            "agent_started": started,
            "changes": [entry.as_dict() for entry in entries],
        }

    return as_json(read)
