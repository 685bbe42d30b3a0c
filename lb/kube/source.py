# SPDX-License-Identifier: Apache-2.0
"""The Kubernetes API as a source of Services, EndpointSlices and the node itself."""

from __future__ import annotations

import contextlib
import logging
import math
import queue
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from lb.errors import InputError
from lb.kube.availability import Availability, HangDetector
from lb.kube.client import Client
from lb.kube.convert import ENDPOINT_SLICES, NODES, SERVICES, R
from lb.kube.events import EventWriter, Notice
from lb.kube.handover import HOLD_SECONDS, Handover
from lb.kube.reflector import SILENCE_SECONDS, Health, Reflector, Selection
from lb.kube.timing import Pace, Timing
from lb.kube.workers import Worker, running
from lb.model import Event, ObjectKey, Service, Synced
from lb.stop_event import StopEvent

_log = logging.getLogger(__name__)

NOT_OURS = "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless"
"""Labels that give a Service, and the slices that carry its labels, to another proxy; kube-proxy's
selectors."""
_OF_A_SERVICE = "kubernetes.io/service-name"
_TICK_SECONDS = 0.5
_GATHER_SECONDS = 0.005
"""Under load, how long the reflectors may take for what came by a tick."""


@dataclass(frozen=True, slots=True)
class _Batch:
    """What one reflector found, or how it failed."""

    resource: str
    events: Sequence[Event] = ()
    listed: bool = False
    failure: BaseException | None = None


class _NodeList(msgspec.Struct, gc=False):
    items: list[msgspec.Raw] | None = None


class KubernetesSource:
    """Follows the API server; see :mod:`lb.kube.reflector` for how.

    Of Services it reads all that are not headless (they are DNS alone) and not another proxy's; of
    EndpointSlices those that belong to a Service; of Nodes only the one of this name, since the zones of the
    others are in the slices. Whether another Node is there is asked for one at a time.

    client: how to reach the API server.
    node_name: the Node that is about us.
    report: called with every object that cannot be used, once for as long as it stands; from several threads.
    for_names: whether all Services are read, with all of their slices, for DNS; then nothing is announced.
    every_node: whether all Nodes are read, for direct return, or to announce no address that is a Node's.
    timing, hold_seconds, silence: for tests.
    """

    name = "kubernetes"

    def __init__(
        self,
        client: Client,
        *,
        node_name: str,
        report: Callable[[InputError], None],
        for_names: bool = False,
        every_node: bool = False,
        timing: Timing | None = None,
        hold_seconds: float = HOLD_SECONDS,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self._client = client
        self._report = report
        self._timing = timing or Timing()
        self._silence = silence
        self._inbox: queue.SimpleQueue[_Batch] = queue.SimpleQueue()
        self._pace = Pace(self._timing.clock)
        self._handover = Handover(self._timing.clock, hold_seconds)
        self._availability = Availability(client.probe, self._timing)
        self._hang_detector = HangDetector(client.probe, self._timing, self._contact, self._hang_up)
        self._events = EventWriter(client, node_name, self._timing, self._availability)
        services = Selection(SERVICES, labels=NOT_OURS, fields="spec.clusterIP!=None")
        slices = Selection(ENDPOINT_SLICES, labels=f"{_OF_A_SERVICE},{NOT_OURS}")
        if for_names:
            services, slices = Selection(SERVICES), Selection(ENDPOINT_SLICES, labels=_OF_A_SERVICE)
        self._announces = not for_names
        self._services = self._reflector(services)
        self._slices = self._reflector(slices)
        own = Selection(NODES, fields=f"metadata.name={node_name}")
        self._nodes = self._reflector(Selection(NODES) if every_node else own)
        self._waiting_for = {each.resource for each in self._reflectors}

    @property
    def _reflectors(self) -> tuple[Reflector[Any], ...]:
        return (self._services, self._slices, self._nodes)

    def run(self, emit: Callable[[Sequence[Event]], None], stop: StopEvent) -> None:
        """Emit what is there, Synced once all three kinds were listed, then changes, until stop is set."""
        stop.then(lambda: self._inbox.put(_Batch("")))
        with running(
            (*self._reflectors, self._hang_detector, self._events), self._availability, self._failed
        ):
            while not stop.is_set():
                self._turn(emit)

    def health(self) -> tuple[Health, ...]:
        """Return how far each kind is in step; may be called from any thread, at any time."""
        return tuple(each.health() for each in self._reflectors)

    def refused(self) -> list[str]:
        """Return what is wrong with objects that cannot be used; may be called from any thread."""
        return [text for each in self._reflectors for text in each.refused()]

    def lacks_node(self, name: str) -> bool:
        """Ask, in the caller's thread, whether there is no Node of this name.

        The answer comes from what the server remembers (resourceVersion 0), and costs its etcd nothing.

        Raises ApiError: the server refused or did not answer.
        """
        query = {"fieldSelector": f"metadata.name={name}", "resourceVersion": "0"}
        body = self._client.request("GET", NODES.path, query).body()
        return not msgspec.json.decode(body, type=_NodeList).items

    def announce(self, service: ObjectKey, *, reason: str, action: str, note: str) -> None:
        """Write a Warning Event on a Service, soon; never waits, never fails, from any thread."""
        uid = self._services.uid(service)
        self._events.publish(Notice(Service, service, uid, reason, action, note))

    def _reflector(self, selection: Selection[R]) -> Reflector[R]:
        kind = selection.reader.model
        resource = selection.reader.path.rpartition("/")[2]

        def deliver(events: Sequence[Event], listed: bool) -> None:
            self._inbox.put(_Batch(resource, events, listed))

        def report(error: InputError, key: ObjectKey, uid: str) -> None:
            self._report(error)
            note = f"{error.field}: {error.message}" if error.field else error.message
            if self._announces:
                self._events.publish(Notice(kind, key, uid, "Unusable", "KeepLastGood", note))

        return Reflector(
            self._client,
            selection,
            deliver,
            report,
            timing=self._timing,
            pace=self._pace,
            availability=self._availability,
            silence=self._silence,
        )

    def _contact(self) -> float | None:
        """Return when the last word of the API server came."""
        return max((each.contact for each in self.health() if each.contact is not None), default=None)

    def _hang_up(self, why: str) -> None:
        waiting = [each for each in self._reflectors if not each.health().error]
        if waiting:
            _log.warning("%s; what is known stays, trying again", why)
        for each in waiting:
            each.hang_up(why)

    def _turn(self, emit: Callable[[Sequence[Event]], None]) -> None:
        """Wait for something to emit, and emit it."""
        due = self._handover.next_due()
        wait = None if due == math.inf else min(max(due - self._timing.clock(), 0.0), _TICK_SECONDS)
        batches: list[_Batch] = []
        with contextlib.suppress(queue.Empty):
            batches.append(self._inbox.get(timeout=wait))
        if self._pace.wait():
            time.sleep(_GATHER_SECONDS)
        batches.extend(self._inbox.get() for _ in range(self._inbox.qsize()))
        events = self._handover.apply([event for batch in batches for event in batch.events])
        events += self._handover.due()
        for batch in batches:
            if batch.failure is not None:
                raise batch.failure
            if batch.listed and batch.resource in self._waiting_for:
                self._waiting_for.discard(batch.resource)
                if not self._waiting_for:
                    events.append(Synced(self.name))
        if events:
            emit(events)

    def _failed(self, worker: Worker, error: Exception) -> None:
        if worker is self._events:
            _log.error("no more Events will be written", exc_info=error)
        else:
            self._inbox.put(_Batch("", failure=error))
