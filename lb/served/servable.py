# SPDX-License-Identifier: Apache-2.0
"""``/api/servable``: which external addresses of Services the node can serve, and why not; and asking it.

For the processes that tell the network (``lbctl announce``): they ask twice a second and name the version
that they have, so an answer is short unless something has changed. It is worked out in the thread of the one
who asks, from what the state holds at that moment.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Protocol

from lb.announce.report import Report, from_dict
from lb.announce.servable import NodeNow, servable
from lb.errors import LbError
from lb.model import IPAddress
from lb.rundir import RunDir
from lb.served.api import Query, as_json
from lb.served.ask import ask
from lb.served.health import STALE_SECONDS, Vitals
from lb.served.http import Answer
from lb.state import ClusterState

PATH = "/api/servable"
SPEAKER_PATH = "/api/bgp"
"""Where the process that tells routers says how it is."""
_ASK_SECONDS = 2.0


class ServingAgent(Vitals, Protocol):
    """What of the agent decides; read from any thread."""

    @property
    def in_step(self) -> bool:
        """Whether everything that the source listed at first is in the kernel."""
        ...

    @property
    def own_addresses(self) -> frozenset[IPAddress]:
        """The addresses that the node's own stack answers for."""
        ...


class Servables:
    """Tells of a state, and of an agent; may be asked from any one thread.

    quiet: the agent serves nothing (shadow mode), so no network is to be told of any address.
    """

    def __init__(
        self, state: ClusterState, agent: ServingAgent, node_name: str, *, quiet: bool = False
    ) -> None:
        self._quiet = quiet
        self._state = state
        self._agent = agent
        self._name = node_name
        self._seen: tuple[object, ...] = ()
        self._start = os.urandom(4).hex()
        self._count = 0
        self._report = Report("", False, node_name)
        self._of_others: tuple[int, Mapping[IPAddress, str]] = (-1, {})

    def answer(self) -> Answer:
        """Return what answers; to ``?known=VERSION`` that version alone, if nothing has changed."""
        return as_json(self._read)

    def _read(self, query: Query) -> dict[str, Any]:
        report = self.report()
        if query.get("known") == report.version:
            return {"version": report.version}
        return report.as_dict()

    def report(self) -> Report:
        """Return how it is now."""
        changes = self._state.changes  # before what is read: whatever comes meanwhile is seen next time
        here = NodeNow(
            self._name,
            self._state.node(self._name),
            eligible=self._agent.node_eligible,
            in_service=self._agent.in_service,
            fresh=self._agent.busy_seconds() < STALE_SECONDS,
            own=self._agent.own_addresses,
            others=self._others(changes),
            drained=self._agent.drained,
        )
        ready = self._agent.in_step and not self._quiet
        seen = (changes, here, ready)
        if seen != self._seen:
            verdicts = servable(here, self._state.services(), self._state.all_slices())
            node = here.node
            found = Report(
                self._report.version,
                ready,
                self._name,
                node.addresses if node else (),
                dict(node.labels) if node else {},
                verdicts,
            )
            if found != self._report or not found.version:
                self._count += 1
                self._report = replace(found, version=f"{self._start}.{self._count}")
            self._seen = seen
        return self._report

    def _others(self, changes: int) -> Mapping[IPAddress, str]:
        """Return the addresses of other Nodes, with their names; changes: how often anything has changed."""
        if self._of_others[0] != changes:
            nodes = [node for node in self._state.nodes() if node.name != self._name]
            self._of_others = changes, {address: node.name for node in nodes for address in node.addresses}
        return self._of_others[1]


class Asked:
    """Asks the agent of an instance again and again."""

    def __init__(self, run_dir: RunDir) -> None:
        self._run_dir = run_dir
        self._last: Report | None = None

    def report(self) -> Report:
        """Return what the agent says now.

        Raises LbError: it does not answer.
        Raises PermissionError: not root.
        """
        known = self._last.version if self._last else ""
        told = ask(self._run_dir, PATH, seconds=_ASK_SECONDS, known=known)
        if self._last is None or told != {"version": known}:
            self._last = from_dict(told)
        return self._last


def spoken(run_dir: RunDir, seconds: float = _ASK_SECONDS) -> dict[str, Any] | None:
    """Return the status of the process that tells routers about an instance.

    See :meth:`lb.bgp.status.SpeakerStatus.as_dict`; seconds: how long it is waited for.

    None where none runs, or it does not answer.

    Raises PermissionError: not root.
    """
    try:
        found = ask(run_dir.speaker, SPEAKER_PATH, seconds=seconds)
    except LbError:
        return None
    return found if isinstance(found, dict) else None
