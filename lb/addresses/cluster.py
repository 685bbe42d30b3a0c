# SPDX-License-Identifier: Apache-2.0
"""Addresses for the Services of a cluster: statuses are read, and written by one process of several.

Who holds the Lease reads all Services, from its first moment as holder on, and only as long as it is that.
What it decides and writes is in :mod:`lb.addresses.controller`.
"""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections.abc import Sequence
from typing import Any

from lb.addresses.controller import AddressController
from lb.addresses.decode import CLAIMANTS, NAMESPACES
from lb.addresses.pool import PoolsFile
from lb.addresses.telemetry import Telemetry
from lb.errors import InputError
from lb.kube.availability import Availability, HangDetector
from lb.kube.client import ApiError, Client
from lb.kube.convert import NODES, R, Reader
from lb.kube.events import EventWriter
from lb.kube.lease import GIVE_UP_SECONDS, RENEW_SECONDS, Lease, LostLeaseError
from lb.kube.reflector import Reflector, Selection
from lb.kube.timing import Pace, Timing
from lb.kube.workers import Worker, running
from lb.model import Event, ObjectKey

_log = logging.getLogger(__name__)

_TICK_SECONDS = 0.5

Batch = tuple[str, Sequence[Event], bool]
"""Of which kind, what a reflector found, and whether a list is complete with it."""


class ClusterAllocator:
    """Gives addresses while it holds the Lease.

    identity names this process in Events.
    """

    def __init__(
        self,
        client: Client,
        lease: Lease,
        pools: PoolsFile,
        telemetry: Telemetry,
        *,
        identity: str,
        timing: Timing | None = None,
    ) -> None:
        self._client = client
        self._lease = lease
        self._pools = pools
        self._telemetry = telemetry
        self._identity = identity
        self._timing = timing or Timing()
        self._error = ""

    def run(self, stop: threading.Event) -> None:
        """Wait for the Lease and give addresses while it is ours, again and again, until stop is set."""
        while not stop.is_set():
            self._pools.refresh()
            self._telemetry.pools, self._telemetry.pools_error = self._pools.pools, self._pools.error
            if self._hold():
                _log.info("the Lease is ours: giving addresses")
                term = Term(self, stop)
                try:
                    term.run()
                finally:
                    self._telemetry.leading = False
            else:
                self._timing.wait(stop, RENEW_SECONDS * (1.0 + self._timing.random()) / 2)
        with contextlib.suppress(ApiError):
            self._lease.release()

    def _hold(self) -> bool:
        """Take or renew the Lease; failures are told once."""
        try:
            held = self._lease.hold()
        except ApiError as error:
            if str(error) != self._error:
                _log.warning("the Lease: %s; trying again", error)
            self._error = str(error)
            return False
        self._error = ""
        return held


class Term:
    """The time between taking the Lease and losing it: what is known of Services ends with it."""

    def __init__(self, allocator: ClusterAllocator, stop: threading.Event) -> None:
        self._stop = stop
        self._hold = allocator._hold
        self._client, self._lease = allocator._client, allocator._lease
        self._pools, self._telemetry = allocator._pools, allocator._telemetry
        self._timing = allocator._timing
        self._inbox: queue.SimpleQueue[Batch | BaseException] = queue.SimpleQueue()
        self._availability = Availability(self._client.probe, self._timing)
        self._events = EventWriter(self._client, allocator._identity, self._timing, self._availability)
        self._labelled = self._pools.pools.need_namespaces
        readers: list[Reader[Any, Any]] = [CLAIMANTS, NODES, *([NAMESPACES] if self._labelled else [])]
        self._reflectors = [self._reflector(each) for each in readers]
        self._unlisted = {each.path for each in readers}
        self._hang_detector = HangDetector(self._client.probe, self._timing, self._contact, self._hang_up)
        self._controller = AddressController(
            self._client, self._lease, self._pools, self._telemetry, publish=self._events.publish
        )
        self._due: float | None = None
        """When to look at everything, in clock seconds; None: nothing has changed."""
        self._renewal = self._timing.clock() + RENEW_SECONDS

    def run(self) -> None:
        """Give addresses until the Lease is lost or stop is set."""
        workers: tuple[Worker, ...] = (*self._reflectors, self._hang_detector, self._events)
        with running(workers, self._availability, lambda _, error: self._inbox.put(error)):
            while not self._stop.is_set() and self._turn():
                pass

    def _reflector(self, reader: Reader[Any, R]) -> Reflector[R]:
        return Reflector(
            self._client,
            Selection(reader),
            lambda events, listed: self._inbox.put((reader.path, events, listed)),
            self._report,
            timing=self._timing,
            pace=Pace(self._timing.clock),
            availability=self._availability,
        )

    def _contact(self) -> float | None:
        """Return when the reflector that has heard the API server least lately did; None: one never has."""
        found = [each.health().contact for each in self._reflectors]
        heard = [one for one in found if one is not None]
        return min(heard) if len(heard) == len(found) else None

    def _hang_up(self, why: str) -> None:
        for each in self._reflectors:
            each.hang_up(why)

    def _turn(self) -> bool:
        """Take in what has come, renew the Lease, look at everything if due; return whether to go on."""
        self._take_in()
        now = self._timing.clock()
        if now >= self._renewal:
            self._renewal = now + RENEW_SECONDS
            if not self._hold() and (not self._lease.held or now - self._lease.renewed > GIVE_UP_SECONDS):
                _log.warning("the Lease is ours no more: giving no addresses")
                return False
        if self._pools.refresh():
            self._due = now
        self._telemetry.pools, self._telemetry.pools_error = self._pools.pools, self._pools.error
        if self._pools.pools.need_namespaces is not self._labelled:
            _log.info("the pools go by labels of Namespaces %s", "no more" if self._labelled else "now")
            return False  # the next term reads them, or does not
        if not self._unlisted and self._due is not None and now >= self._due:
            try:
                wait = self._controller.look()
            except LostLeaseError as error:
                _log.warning("%s: giving no addresses", error)
                return False
            self._due = None if wait is None else now + wait
        return True

    def _report(self, error: InputError, _key: ObjectKey, _uid: str) -> None:
        """Tell of what no claimant can be made of; an API server gives no such object."""
        _log.error("%s", error)

    # what is known

    def _take_in(self) -> None:
        """Wait a moment for something to come, and take all of it."""
        batches: list[Batch | BaseException] = []
        with contextlib.suppress(queue.Empty):
            batches.append(self._inbox.get(timeout=_TICK_SECONDS))
        batches.extend(self._inbox.get() for _ in range(self._inbox.qsize()))
        for batch in batches:
            if isinstance(batch, BaseException):
                raise batch
            path, events, listed = batch
            news = [self._controller.learn(event) for event in events]
            if listed:
                self._unlisted.discard(path)
            if listed or any(news):
                self._due = self._timing.clock()
