# SPDX-License-Identifier: Apache-2.0
"""Tells of packets that go nowhere, unasked: dropped by the programs, never answered, or never seen by them.

Others may be at fault: a firewall's rule, a route that is gone, another program before ours. It costs a look
at a few arrays every 15 s.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import FAMILIES, BackendStateCode
from lb.datapath.sync.ledger import read_names
from lb.datapath.view.dump import counters
from lb.datapath.view.words import backend
from lb.served.problems import Problem
from lb.served.watch import Watch
from lb.words import several, some

LOOK_SECONDS = 15.0
HOLD_SECONDS = 300.0
"""For so long after the last of them drops stay a problem."""
LASTING = 4
"""In so many looks one after another some are dropped before it is told: a pod that goes costs a few."""
WINDOW_SECONDS = 30.0
"""Over which it is judged whether a backend answers."""
LEAST_FAILED, MOST_ANSWERED = 3, 0.2
"""Of a backend at least so many connections fail in that time, and at most that part of all goes well."""
LEAST_STRAYS = 50
"""So many packets come in by uplinks in two looks, and the programs see none."""

_ROUTES = "look at the routes of this node: ip route get ADDRESS; lbctl monitor --drops shows the packets"
_AT_ONCE = {
    "FLOWS_FULL": "raise --limits-flows: docs/operations.md, How large the maps must be; lbctl top",
    "SNAT_EXHAUSTED": "widen --snat-ports, or have more endpoints; lbctl status: how often there was none",
    "STEP_MISSING_VIP": "restart the agent, which loads the programs anew: systemctl restart lbctl",
}
_LASTING = {
    "NO_ROUTE": _ROUTES,
    "NO_BACKEND": "lbctl audit compares the maps with the source, lbctl audit --heal writes them",
    "REWRITE_FAILED": "lbctl monitor --drops shows the packets; the kernel's log may say why",
    "SERVICE_LOOP": "lbctl monitor --drops names the Services: their endpoints are each other's addresses",
}
NEXT = _AT_ONCE | _LASTING
"""What is to be done about drops of each reason; those that a Service's own fields ask for are not here."""
_INWARD = frozenset({"XDP_UPLINK", "TC_UPLINK_IN", "TC_L3_IN"})

Row = tuple[int, int]
"""IP version and number of a backend."""


@dataclass(slots=True)
class _Drops:
    meaning: str
    streak: int = 0
    told: bool = False
    last: float = -math.inf
    since_told: int = 0


class Losses(Watch):
    """Looks from the agent's thread.

    Parameters
    ----------
    maps: the agent's.
    arrived: gives how many packets have come in by the uplinks, as the kernel counts them.
    clock: seconds, monotonic.
    """

    def __init__(
        self, maps: Maps, arrived: Callable[[], int], clock: Callable[[], float] = time.monotonic
    ) -> None:
        super().__init__("what became of packets", LOOK_SECONDS, clock=clock)
        self._maps, self._arrived = maps, arrived
        self._drops: dict[str, _Drops] = {}
        self._counts: Counter[str] | None = None
        self._window_due = -math.inf
        self._failing: Mapping[Row, tuple[int, int]] = {}
        self._strays: list[tuple[int, int]] = []
        self._of_backends: list[Problem] = []

    def found(self, now: float) -> list[Problem]:
        """Look at the counters and, now and then, at the backends."""
        return [*self._look_at_counters(now), *self._look_at_backends(now)]

    def _look_at_counters(self, now: float) -> list[Problem]:
        counts, seen, meanings = Counter[str](), 0, dict[str, str]()
        for one in counters(self._maps):
            seen += one.packets if one.hook in _INWARD else 0
            counts[one.reason] += one.packets
            meanings[one.reason] = one.meaning
        before, self._counts = self._counts, counts
        if before is None:
            return self._strayed(seen)
        return [*self._dropped(now, counts - before, meanings), *self._strayed(seen)]

    def _dropped(self, now: float, grown: Counter[str], meanings: Mapping[str, str]) -> list[Problem]:
        """Return the reasons for which packets are dropped; grown: how many since the last look."""
        found = []
        for reason, step in NEXT.items():
            count = grown[reason]
            one = self._drops.setdefault(reason, _Drops(meanings[reason]))
            one.streak = one.streak + 1 if count else 0
            one.since_told += count
            if count:
                one.last = now
            one.told |= count > 0 and (reason in _AT_ONCE or one.streak >= LASTING)
            if not one.told or now - one.last >= HOLD_SECONDS:
                one.told, one.since_told = False, one.since_told if one.streak else 0
                continue
            dropped = several(one.since_told, "packet")
            text = f"{dropped} lost, {reason}: {one.meaning.partition(':')[0]}"
            found.append(Problem(text, step, reason))
        return found

    def _strayed(self, seen: int) -> list[Problem]:
        """Return whether packets come in by the uplinks that no program of ours has seen."""
        self._strays = [*self._strays[-2:], (self._arrived(), seen)]
        came, ours = (last - early for early, last in zip(self._strays[0], self._strays[-1], strict=True))
        if len(self._strays) < 3 or ours or came < LEAST_STRAYS:
            return []
        return [
            Problem(
                f"{several(came, 'packet')} came in by the uplinks within {2 * LOOK_SECONDS:.0f} s, and the"
                " programs have seen none: another program before them keeps what comes",
                "bpftool net shows what is attached there; detach it, or start it before the agent",
                "strays",
            )
        ]

    def _look_at_backends(self, now: float) -> list[Problem]:
        """Return which backends answer hardly anybody; judged anew every WINDOW_SECONDS."""
        if now < self._window_due:
            return self._of_backends
        self._window_due = now + WINDOW_SECONDS
        before, self._failing = self._failing, dict(self._read_failing())
        silent = []
        for row, (opened, failed) in self._failing.items():
            if row not in before:
                continue
            came, lost = opened - before[row][0], failed - before[row][1]
            if lost >= LEAST_FAILED and came - lost <= MOST_ANSWERED * came:
                silent.append((row, came, lost))
        self._of_backends = list(self._unanswered(silent))
        return self._of_backends

    def _read_failing(self) -> list[tuple[Row, tuple[int, int]]]:
        """Return, of backends of which any connection failed, how many were opened and how many failed."""
        found: list[tuple[Row, tuple[int, int]]] = []
        for version in FAMILIES:
            counted = self._maps.array(f"connections{version}")
            failed = counted["refused"] + counted["unanswered"]
            rows = np.flatnonzero(failed).tolist()
            found += [((version, row), (int(counted["opened"][row]), int(failed[row]))) for row in rows]
        return found

    def _unanswered(self, silent: Sequence[tuple[Row, int, int]]) -> list[Problem]:
        """Return a problem for each Service of which backends do not answer."""
        if not silent:
            return []
        names = read_names(self._maps)
        by_service: dict[str, list[str]] = {}
        for (version, row), came, lost in silent:
            slot = self._maps.array(f"backends{version}")[row]
            service = names.get(int(slot["service"]))
            if slot["state"] == BackendStateCode.ACTIVE and service:
                place = backend(row, slot.item(), lambda _node: None, gone=False).address
                by_service.setdefault(service[0], []).append(f"{place} ({lost} of {came})")
        return [
            Problem(
                f"connections to Service {service} are refused or unanswered: {some(places)}",
                f"lbctl explain {service} tries each endpoint; a firewall or a route between here and there?",
                f"backends {service}",
            )
            for service, places in by_service.items()
        ]
