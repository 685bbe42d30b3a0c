# SPDX-License-Identifier: Apache-2.0
"""The agent's notes for those who look: the ready file and ``/run/lbctl/INSTANCE.json``."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import lb
from lb.config import Config, texts
from lb.folders import replace_file
from lb.plan import Conflict
from lb.rundir import RunDir, network_namespace
from lb.served.health import HealthChecks
from lb.served.http import Address, show
from lb.served.problems import Problem, Since, time_text
from lb.served.repairs import Repairs
from lb.served.starts import Starts
from lb.words import several

if TYPE_CHECKING:
    from lb.kube.reflector import Health

_log = logging.getLogger(__name__)

_SOURCE_NEXT = (
    "traffic goes on; does the API server answer, and has the agent its rights (deploy/base/rbac.yaml)?"
)
MOST = 100
"""How many problems, and how many conflicts, the notes list; of the others they have the number."""


class AgentReport(Protocol):
    """What the agent itself tells."""

    def service_count(self) -> int:
        """Return how many Services the sources have told of."""
        ...

    @property
    def stopping(self) -> bool:
        """Whether it was told to stop."""
        ...

    @property
    def repairs(self) -> Repairs:
        """What others took away, and was put back."""
        ...

    def problems(self) -> list[Problem]:
        """Return what is wrong at present."""
        ...

    def refusals(self) -> list[str]:
        """Return what Services ask for and cannot have, a text for each of them."""
        ...

    def conflicts(self) -> Sequence[Conflict]:
        """Return the VIPs that several Services claim at present."""
        ...


class Notes:
    """Writes the notes, from the agent's thread.

    Parameters
    ----------
    programs: the fingerprint of the programs' build.
    hooks: gives what is to be noted of hooks, by name.
    source_health: gives how far each kind of object is in step.
    healthz: gives where ``/healthz`` is answered, None while it is not.
    evicted: gives by map how many entries have made room, as they were counted last.
    others: by kind, what tells of problems that neither the agent itself nor checks meet; may grow.

    Attributes
    ----------
    started: when the agent began, ISO 8601 in UTC.
    """

    def __init__(
        self,
        run_dir: RunDir,
        config: Config,
        *,
        programs: str,
        hooks: Callable[[], Mapping[str, Any]],
        source_health: Callable[[], Sequence[Health]],
        checks: HealthChecks,
        healthz: Callable[[], Address | None],
        evicted: Callable[[], Mapping[str, int]],
        others: Mapping[str, Callable[[], Sequence[Problem]]],
    ) -> None:
        self._run_dir = run_dir
        self._config = config
        self._settings = _settings(config)
        self._programs = programs
        self._hooks = hooks
        self._source_health = source_health
        self._checks = checks
        self._healthz = healthz
        self._ready = Path(config.ready_file) if config.ready_file else None
        self._evicted = evicted
        self._others = others
        self._since = Since()
        self.started = time_text(time.time())
        self._starts = Starts(run_dir.notes())
        self._last_sync: str | None = None
        self._complaints: dict[str, int | None] = {}

    def synced(self, agent: AgentReport) -> None:
        """Note the time; after the first sync write the notes, and then the ready file."""
        self._last_sync = time_text(time.time())
        if self._ready:
            self.write(agent)
            self._put("ready file", self._ready, lambda path: replace_file(path, b"%d\n" % os.getpid()))
            self._ready = None
            _log.info("ready, number of Services: %d", agent.service_count())

    def _put(self, what: str, path: Path, write: Callable[[Path], None]) -> None:
        """Write a file. That it cannot be written is logged once, and everything else goes on."""
        try:
            write(path)
        except OSError as error:
            if self._complaints.get(what) != error.errno:
                _log.error("%s %s cannot be written: %s; all else works", what, path, error.strerror)
            self._complaints[what] = error.errno
        else:
            if self._complaints.pop(what, None):
                _log.info("%s %s can be written again", what, path)

    def write(self, agent: AgentReport) -> None:
        """Write the notes; see :meth:`_put`."""
        self._put(
            "notes", self._run_dir.notes_path, lambda _path: self._run_dir.write_notes(self._notes(agent))
        )

    def ended(self, agent: AgentReport) -> None:
        """Note that the agent ends, and whether it was told to."""
        self._starts.ended = agent.stopping
        self.write(agent)

    def _notes(self, agent: AgentReport) -> dict[str, Any]:
        healthz = self._healthz()
        every = [*agent.problems(), *self._checks.problems(), *self._sources(), *self._starts.problems()]
        every += [one for problems in self._others.values() for one in problems()]
        conflicts = agent.conflicts()
        return {
            "version": lb.__version__,
            "instance": self._config.instance,
            "node": self._config.node_name,
            "pid": os.getpid(),
            "network_namespace": network_namespace(),
            "settings": self._settings,
            **self._starts.as_notes(),
            "rereads": True,  # on SIGHUP; one of an older version would end
            "started": self.started,
            "beat": time.monotonic(),
            "last_sync": self._last_sync,
            "services": agent.service_count(),
            "problems": self._since.noted(every[:MOST]),
            "problems_left_out": len(every[MOST:]),
            "repairs": agent.repairs.as_dict(),
            "evicted": dict(self._evicted()),
            "conflicts": [one.as_dict() for one in conflicts[:MOST]],
            "conflicts_left_out": len(conflicts[MOST:]),
            "refusals": _first(agent.refusals()),
            "healthz": show(healthz) if healthz else None,
            "health_check_node_ports": [one.as_dict() for one in self._checks.served()],
            **self._hooks(),
            "programs": self._programs,
            "source": [_health_note(each) for each in self._source_health()],
        }

    def _sources(self) -> list[Problem]:
        return [
            Problem(
                f"source, {one.resource}: failed {several(one.failures, 'time')}: {one.error}",
                _SOURCE_NEXT,
                f"source {one.resource}",
            )
            for one in self._source_health()
            if one.error
        ]


def _settings(config: Config) -> dict[str, list[str]]:
    """Return what the agent was told, with paths that mean the same from any directory."""
    found = texts(config)
    if sources := found.get("sources"):
        kind = "manifests:"
        found["sources"] = [
            kind + str(Path(one.removeprefix(kind)).resolve()) if one.startswith(kind) else one
            for one in sources
        ]
    if path := found.get("kubeconfig"):
        found["kubeconfig"] = [str(Path(path[0]).resolve())]
    return found


def _health_note(health: Health) -> dict[str, Any]:
    """Return how far one kind of object is in step, with the time of day of the last contact."""
    contact = None if health.contact is None else time.time() - (time.monotonic() - health.contact)
    return {
        "resource": health.resource,
        "listed": health.listed,
        "contact": None if contact is None else time_text(contact),
        "resource_version": health.resource_version,
        "error": health.error,
        "failures": health.failures,
        "objects": health.objects,
        "unusable": health.broken,
    }


def _first(texts: list[str]) -> list[str]:
    rest = len(texts[MOST:])
    return [*texts[:MOST], *([f"{rest} more, see the agent's log"] if rest else [])]
