# SPDX-License-Identifier: Apache-2.0
"""What was compared in shadow mode, by Service port, with an example of each kind of difference."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lb.served.problems import time_text
from lb.shadow.judge import MEANINGS, Verdict

NOT_COMPARED: Mapping[str, str] = {
    "lost": "the ring had no room for what the programs wrote down",
    "late": "so many connections began that they were not looked at in time",
    "unsent": "a process connected a UDP socket and sent nothing",
    "changing": "they differ, and the Service was changed within the last seconds",
    "unasked": "conntrack could not be asked",
}
"""Why a connection was not compared."""

UNKNOWN = "-"
"""In the place of a Service port: none here has the address."""


@dataclass(slots=True)
class _Of:
    agreed: int = 0
    meant: Counter[str] = field(default_factory=Counter)
    different: Counter[str] = field(default_factory=Counter)
    examples: dict[str, dict[str, Any]] = field(default_factory=dict)


class Tally:
    """Counts, from one thread; told to any. since: the time of the first, seconds since the epoch."""

    def __init__(self, since: float) -> None:
        self._since = since
        self._lock = threading.Lock()
        self._services: dict[str, _Of] = {}
        self._not_compared: Counter[str] = Counter()

    def add(self, service: str, verdict: Verdict, example: Mapping[str, Any]) -> None:
        """Count a connection of a Service port, ``namespace/name:port name``."""
        with self._lock:
            of = self._services.setdefault(service, _Of())
            if not verdict.kind:
                of.agreed += 1
                return
            if verdict.row:
                of.meant[verdict.row] += 1
            else:
                of.different[verdict.kind] += 1
            of.examples[verdict.row or verdict.kind] = {"kind": verdict.kind, **example}

    def skip(self, why: str, count: int = 1) -> None:
        """Count connections that were not compared; why: of NOT_COMPARED."""
        with self._lock:
            self._not_compared[why] += count

    def report(self, now: float) -> dict[str, Any]:
        """Return it all as JSON has it; now: seconds since the epoch."""
        with self._lock:
            services: list[dict[str, Any]] = [
                {
                    "service": name,
                    "agreed": of.agreed,
                    "meant": dict(of.meant),
                    "different": dict(of.different),
                    "examples": [{"of": key, **example} for key, example in of.examples.items()],
                }
                for name, of in sorted(self._services.items())
            ]
            skipped = {why: self._not_compared[why] for why in NOT_COMPARED}
        return {
            "since": time_text(self._since),
            "seconds": round(now - self._since, 1),
            "agreed": sum(one["agreed"] for one in services),
            "meant": _sum(services, "meant"),
            "different": _sum(services, "different"),
            "not_compared": skipped,
            "meanings": {kind: MEANINGS[kind] for kind in _sum(services, "different")},
            "services": services,
        }


def _sum(services: list[dict[str, Any]], key: str) -> dict[str, int]:
    total: Counter[str] = Counter()
    for one in services:
        total.update(one[key])
    return dict(sorted(total.items()))
