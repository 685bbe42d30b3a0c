# SPDX-License-Identifier: Apache-2.0
"""A folder of manifests with a source on it, whose clock and time stamps the test makes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from lb.errors import InputError
from lb.manifests import ManifestSource
from lb.model import Event, Resource, Upsert
from lb.state import ClusterState

SETTLED = 1_000_000_000
"""A time stamp, in seconds, at which files have been at rest for long when the clock says NOW."""

NOW = 1_000_000_100.0


def service(name: str, port: int = 80, extra: str = "") -> str:
    head = f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\n"
    return f"{head}spec:\n  ports: [{{port: {port}}}]\n{extra}"


BROKEN = service("web", 0)

UNPARSABLE = "a: [\n"


class Folder:
    """A folder with a source on it; every write gets a time stamp of its own, all of them long ago."""

    def __init__(self, root: Path, others: Sequence[Path] = ()) -> None:
        self.root = root
        self.reports: list[InputError] = []
        self.now = NOW
        self._stamp = SETTLED
        self.source = ManifestSource(
            [root, *others],
            service_cidr="10.96.0.0/16",
            node_port_range="30000-32767",
            report=self.reports.append,
            clock=lambda: self.now,
        )
        self._state = ClusterState()

    def write(self, name: str, text: str, stamp: float | None = None) -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        self._stamp += 1
        at = self._stamp if stamp is None else stamp
        os.utime(path, (at, at))
        return path

    def scan(self) -> list[Event]:
        events = self.source.scan()
        self._state.apply(events)
        return events

    def ports(self) -> dict[str, int]:
        """The port of every Service that has been emitted, after a scan."""
        self.scan()
        found = (self._state.service(key) for key in self._state.service_keys())
        return {each.key.name: each.ports[0].port for each in found if each is not None}

    def new_reports(self) -> list[str]:
        """What a scan reports, with the folder's own path left out."""
        self.reports.clear()
        self.scan()
        return [str(error).replace(f"{self.root}/", "") for error in self.reports]


def upserted(events: Sequence[Event]) -> list[Resource]:
    return [event.resource for event in events if isinstance(event, Upsert)]
