# SPDX-License-Identifier: Apache-2.0
"""A folder of manifests as a source of Services, EndpointSlices and Nodes."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from lb.errors import InputError
from lb.manifests.cluster import ResourceId, assemble
from lb.manifests.complete import Pools
from lb.manifests.documents import passed_over_text
from lb.manifests.library import Library, folders
from lb.manifests.notices import RESCAN_SECONDS, notices
from lb.manifests.objects import Parsed, ServiceRequest
from lb.model import Delete, Event, ObjectKey, Resource, Service, Synced, Upsert

log = logging.getLogger(__name__)


class ManifestSource:
    """Reads folders of manifests and follows their changes.

    directories: see :func:`lb.manifests.library.folders`. report is called with every error, once for as long
    as it stands unchanged. clock gives seconds since the epoch.

    Raises ConfigError: a directory does not exist, or service_cidr or node_port_range is malformed.
    """

    name = "manifests"
    lacks_node = None

    def __init__(
        self,
        directories: Sequence[str | Path],
        *,
        service_cidr: str,
        node_port_range: str,
        report: Callable[[InputError], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._directories = folders(directories)
        self._pools = Pools.parse(service_cidr, node_port_range)
        self._report = report
        self._library = Library(self._directories, self._pools.node_ports, clock)
        self._emitted: dict[ResourceId, Resource] = {}
        self._reported: set[str] = set()
        self._refused: set[str] = set()
        self._given: set[str] = set()
        self._passed_over = ""
        self._synced = False

    def health(self) -> tuple[()]:
        """Return nothing: a folder is never out of reach, and its faults are reported."""
        return ()

    def refused(self) -> list[str]:
        """Return the errors that stand, without warnings; may be called from any thread."""
        return sorted(self._refused)

    def announce(self, service: ObjectKey, *, reason: str, action: str, note: str) -> None:
        """Do nothing: the log has it, and manifests are nobody's to write to."""

    def run(self, emit: Callable[[Sequence[Event]], None], stop: threading.Event) -> None:
        """Emit what the folders hold, then Synced, then every change, until stop is set."""
        due = 0.0
        for noticed in notices(self._directories, stop):
            now = time.monotonic()
            if noticed or now >= due:
                due = now + RESCAN_SECONDS
                events = self.scan()
                if events:
                    emit(events)

    def scan(self) -> list[Event]:
        """Look at the folders and return what changed since last time; the first time ends with Synced."""
        if not self._library.refresh() and self._synced:
            return []
        objects, errors = self._library.contents()
        resources, more = assemble(objects, self._pools)
        self._report_new([*errors, *more])
        self._log_given(objects, resources)
        self._log_passed_over()
        events: list[Event] = [Delete(kind, key) for kind, key in self._emitted.keys() - resources.keys()]
        events.extend(
            Upsert(resource)
            for identity, resource in resources.items()
            if self._emitted.get(identity) != resource
        )
        self._emitted = resources
        if not self._synced:
            self._synced = True
            events.append(Synced(self.name))
        return events

    def _report_new(self, errors: Iterable[InputError]) -> None:
        standing = {str(error): error for error in errors}
        for text, error in standing.items():
            if text not in self._reported:
                self._report(error)
        self._reported = set(standing)
        self._refused = {text for text, error in standing.items() if not error.used}

    def _log_given(self, objects: Iterable[Parsed], resources: dict[ResourceId, Resource]) -> None:
        given: set[str] = set()
        for parsed in objects:
            if isinstance(parsed, ServiceRequest):
                complete = resources.get((Service, parsed.service.key))
                if isinstance(complete, Service) and complete is not parsed.service:
                    given.add(_given(parsed.service, complete))
        for text in sorted(given - self._given):
            log.info("%s", text)
        self._given = given

    def _log_passed_over(self) -> None:
        """Tell of kinds that are not read, when there are others than at the last look."""
        before, self._passed_over = self._passed_over, passed_over_text(self._library.passed_over())
        if self._passed_over and self._passed_over != before:
            log.info("%s: %s", self.name, self._passed_over)


def _given(written: Service, complete: Service) -> str:
    """Say what a Service got that its manifest does not name."""
    parts = [f"clusterIP {ip}" for ip in complete.cluster_ips if ip not in written.cluster_ips]
    for before, after in zip(written.ports, complete.ports, strict=True):
        if before != after:
            parts.append(f"nodePort {after.node_port} for {after.name or after.port}/{after.protocol.name}")
    if complete.health_check_node_port != written.health_check_node_port:
        parts.append(f"healthCheckNodePort {complete.health_check_node_port}")
    return f"Service {complete.key} is given {', '.join(parts)}"
