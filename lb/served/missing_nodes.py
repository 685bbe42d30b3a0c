# SPDX-License-Identifier: Apache-2.0
"""Endpoints on Nodes that are gone: they get their share of connections while EndpointSlices list them."""

from __future__ import annotations

import bisect
import logging
import threading
from collections.abc import Callable, Mapping

from lb.errors import LbError
from lb.model import ObjectKey
from lb.served.problems import Problem
from lb.state import ClusterState

_log = logging.getLogger(__name__)

START_SECONDS = 2.0
LOOK_SECONDS = 60.0
"""How long after the start, and then how often, it is looked."""
ASKED_AT_ONCE = 2
"""How many names a look asks an API server about, besides those that were missing: 5,000 agents ask it 170
times a second, and an agent of 20 nodes knows of each after ten minutes."""


class MissingNodes:
    """Looks, in a thread of its own, whether each Node is there that an endpoint names.

    lacks tells whether there is no Node of a name, and raises LbError where that cannot be told. None: the
    state knows every Node.
    """

    def __init__(self, state: ClusterState, lacks: Callable[[str], bool] | None) -> None:
        self._state = state
        self._lacks = lacks or state.lacks_node
        self._most = ASKED_AT_ONCE if lacks else None
        self._last = ""
        self._named: dict[str, ObjectKey] = {}
        self._named_at = -1
        self._missing: Mapping[str, ObjectKey] = {}

    def run(self, stop: threading.Event) -> None:
        """Look until stop is set."""
        wait = START_SECONDS
        while not stop.wait(wait):
            if self._state.synced:
                self.look()
                wait = LOOK_SECONDS

    def look(self) -> None:
        """Ask about the Nodes that were missing, and about those whose turn it is; tell what is new."""
        named = self._names()
        names = sorted(named)
        at = bisect.bisect_right(names, self._last)
        turn = [*names[at:], *names[:at]][: self._most]
        try:
            asked = {name: self._lacks(name) for name in {*turn, *(self._missing.keys() & named)}}
        except LbError as error:
            _log.debug("Nodes cannot be looked for: %s", error)
            return
        self._last = turn[-1] if turn else ""
        before, self._missing = self._missing, {name: named[name] for name in sorted(asked) if asked[name]}
        for name in sorted(self._missing.keys() - before):
            problem = _problem(name, named[name])
            _log.warning("%s; %s", problem.text, problem.next)
        for name in sorted(before.keys() - self._missing):
            _log.info("no endpoint is on a missing Node %s any more", name)

    def _names(self) -> dict[str, ObjectKey]:
        """Return the nodes that endpoints name, each with a Service of one of them."""
        changes = self._state.slice_changes
        if changes != self._named_at:  # else no endpoint has changed since: there may be 100,000 of them
            slices = reversed(self._state.all_slices())
            named = {endpoint.node: piece.service for piece in slices for endpoint in piece.endpoints}
            named.pop("", None)
            self._named, self._named_at = named, changes
        return self._named

    def problems(self) -> list[Problem]:
        """Return which Nodes are missing; may be called from any thread."""
        return [_problem(name, service) for name, service in self._missing.items()]


def _problem(name: str, service: ObjectKey) -> Problem:
    return Problem(
        f"there is no Node {name}, but endpoints on it get their share of connections",
        f"see why its pods are still in EndpointSlices; lbctl explain {service} names them",
    )
