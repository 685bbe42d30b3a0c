# SPDX-License-Identifier: Apache-2.0
"""The pods behind addresses, as the agent knows them; without an agent there are addresses alone."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping

from lb.errors import LbError
from lb.model import ObjectKey
from lb.rundir import RunDir
from lb.served.ask import ask

_ASK_SECONDS = 1.0
_AGAIN_SECONDS = 10.0


def known(run_dir: RunDir, service: ObjectKey | None = None) -> Mapping[str, str]:
    """Return ``namespace/name`` of pods by ``address:port`` and by address; service: of its endpoints."""
    query = {"service": str(service)} if service else {}
    with contextlib.suppress(LbError):
        found: dict[str, str] = ask(run_dir, "/api/pods", seconds=_ASK_SECONDS, **query)["pods"]
        return found
    return {}


def pod_at(pods: Mapping[str, str], place: str) -> str:
    """Return the pod at ``address:port``, or at the address if it is one pod's alone; ``""``: none known."""
    return pods.get(place) or pods.get(place.rpartition(":")[0].strip("[]"), "")


class Lookup:
    """Looks pods up by ``address:port``; for one that is not known the agent is asked again, every 10 s."""

    def __init__(
        self, read: Callable[[], Mapping[str, str]], clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._clock = clock
        self._pods: Mapping[str, str] = {}
        self._due = 0.0

    def __call__(self, place: str) -> str:
        """Return ``namespace/name``, ``""`` where nobody knows one."""
        found = pod_at(self._pods, place)
        if not found and place and self._clock() >= self._due:
            self._pods, self._due = self._read(), self._clock() + _AGAIN_SECONDS
            found = pod_at(self._pods, place)
        return found
