# SPDX-License-Identifier: Apache-2.0
"""Events (events.k8s.io/v1) on objects that an operator has to look at: a conflict, an unusable field.

Nothing waits for them: :meth:`EventWriter.publish` only notes what is to be told, a thread sends it, and a
failure is logged and forgotten. Rules, after the Event API's documentation and validation:

- The same thing about the same object is one Event. While it recurs its series is counted up, at most every
  SERIES_SECONDS.
- All nodes see the same Services. An Event's name follows from its content, so that the first node creates it
  and the others find it there (409) and are silent. What concerns one node says so in its note and is another
  Event.
- BURST Events at once, then one every REFILL_SECONDS; QUEUE may wait, more are dropped.
"""

from __future__ import annotations

import datetime
import hashlib
import logging
import queue
import threading
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from lb.kube.availability import Availability
from lb.kube.client import ApiError, Client
from lb.kube.timing import Backoff, Timing, micro_time, utc_now
from lb.model import EndpointSlice, Node, ObjectKey, Pod, ResourceKind, Service

_log = logging.getLogger(__name__)

BURST, REFILL_SECONDS, QUEUE = 10, 10.0, 100
SERIES_SECONDS = 360.0
REMEMBERED = 1024
TRIES = 5
_NOTE_MOST, _INSTANCE_MOST, _NAME_MOST = 1024, 128, 230

CONTROLLER = "lbctl"
_API_VERSION = {Service: "v1", Node: "v1", Pod: "v1", EndpointSlice: "discovery.k8s.io/v1"}


@dataclass(frozen=True, slots=True)
class Notice:
    """What an Event says.

    kind, key, uid: the object that it is about; ``kubectl describe`` finds Events by uid.
    reason: why, one CamelCase word, for machines.
    action: what was done or not done, likewise.
    note: the words for people, at most 1024 bytes.
    normal: nothing is wrong.
    """

    kind: ResourceKind | type[Pod]
    key: ObjectKey
    uid: str
    reason: str
    action: str
    note: str
    normal: bool = False

    @property
    def name(self) -> str:
        """The Event's name: the object's, and a hash of everything that the Event says."""
        said = "\0".join((self.kind.__name__, str(self.key), self.uid, self.reason, self.action, self.note))
        digest = hashlib.blake2b(said.encode(), digest_size=8).hexdigest()
        return f"{self.key.name[:_NAME_MOST].rstrip('-.')}.{digest}"


@dataclass(slots=True)
class _Told:
    """What was sent: how often it has come up, when it was sent last, whether the Event is ours."""

    count: int = 1
    sent: float = field(default=-SERIES_SECONDS)
    ours: bool = False
    pending: bool = True


class EventWriter:
    """Sends Events in a thread of its own.

    instance names who reports: the node. now gives the time of day, with its zone.
    """

    resource = "events"

    def __init__(
        self,
        client: Client,
        instance: str,
        timing: Timing,
        availability: Availability,
        now: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self._client = client
        self._instance = instance[:_INSTANCE_MOST]
        self._timing = timing
        self._availability = availability
        self._now = now
        self._queue: queue.Queue[Notice | None] = queue.Queue(QUEUE)
        self._lock = threading.Lock()
        self._told: OrderedDict[Notice, _Told] = OrderedDict()
        self._allowance, self._allowed_at = float(BURST), timing.clock()

    @property
    def waiting(self) -> int:
        """How many notices wait to be sent, the one that is being sent not among them."""
        return self._queue.qsize()

    def publish(self, notice: Notice) -> None:
        """Note what is to be told; returns at once, whatever the state of the API."""
        with self._lock:
            told = self._told.get(notice)
            if told is not None:
                self._told.move_to_end(notice)
                told.count += 1
                if told.pending or self._timing.clock() - told.sent < SERIES_SECONDS:
                    return
                told.pending = True
            else:
                self._told[notice] = _Told()
                while len(self._told) > REMEMBERED:
                    self._told.popitem(last=False)
        try:
            self._queue.put_nowait(notice)
        except queue.Full:
            _log.debug("event dropped, too many are waiting: %s: %s", notice.key, notice.note)
            self._forget(notice)

    def run(self, stop: threading.Event) -> None:
        """Send until stop is set and :meth:`interrupt` was called."""
        while not stop.is_set():
            self.step(stop)

    def interrupt(self) -> None:
        """Wake :meth:`run` when it waits for something to send; called after stop was set."""
        try:
            self._queue.put_nowait(None)
        except queue.Full:
            return  # then it does not wait

    def step(self, stop: threading.Event) -> None:
        """Wait for one notice and send it."""
        notice = self._queue.get()
        if notice is None:
            return
        self._timing.wait(stop, self._allow())
        backoff = Backoff(self._timing)
        left = TRIES
        while not stop.is_set():
            try:
                self._send(notice)
            except ApiError as error:
                left -= 1
                if left and error.status in (0, 401, 429, *range(500, 600)):
                    if self._availability.pause(stop, backoff, error):
                        left = TRIES
                    continue
                _log.warning(
                    "event %s on %s %s not written: %s",
                    notice.reason,
                    notice.kind.__name__,
                    notice.key,
                    error,
                )
                self._forget(notice)
            return

    def _allow(self) -> float:
        """Return the seconds to wait before the next Event may be sent."""
        now = self._timing.clock()
        self._allowance = min(self._allowance + (now - self._allowed_at) / REFILL_SECONDS, BURST) - 1
        self._allowed_at = now
        return max(0.0, -self._allowance * REFILL_SECONDS)

    def _send(self, notice: Notice) -> None:
        with self._lock:
            told = self._told.get(notice, _Told())
            count, ours = told.count, told.ours
        ours = (ours and self._count_up(notice, count)) or self._create(notice)
        with self._lock:
            told.ours, told.sent, told.pending = ours, self._timing.clock(), False

    def _forget(self, notice: Notice) -> None:
        with self._lock:
            self._told.pop(notice, None)

    def _path(self, notice: Notice) -> str:
        return f"/apis/events.k8s.io/v1/namespaces/{notice.key.namespace or 'default'}/events"

    def _create(self, notice: Notice) -> bool:
        """Create the Event; return whether it is ours, False when it is there already."""
        regarding = {
            "apiVersion": _API_VERSION[notice.kind],
            "kind": notice.kind.__name__,
            "name": notice.key.name,
            **({"namespace": notice.key.namespace} if notice.key.namespace else {}),
            **({"uid": notice.uid} if notice.uid else {}),
        }
        event = {
            "apiVersion": "events.k8s.io/v1",
            "kind": "Event",
            "metadata": {"name": notice.name, "namespace": notice.key.namespace or "default"},
            "eventTime": micro_time(self._now()),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "regarding": regarding,
            "reason": notice.reason,
            "action": notice.action,
            "note": notice.note.encode()[:_NOTE_MOST].decode(errors="ignore"),
            "type": "Normal" if notice.normal else "Warning",
        }
        try:
            self._client.request("POST", self._path(notice), body=event).body()
        except ApiError as error:
            if error.status == 409:
                return False
            raise
        return True

    def _count_up(self, notice: Notice, count: int) -> bool:
        """Count the Event's series up; return False when the Event has expired meanwhile."""
        series = {"series": {"count": count, "lastObservedTime": micro_time(self._now())}}
        try:
            self._client.request(
                "PATCH",
                f"{self._path(notice)}/{notice.name}",
                body=series,
                content_type="application/merge-patch+json",
            ).body()
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True
