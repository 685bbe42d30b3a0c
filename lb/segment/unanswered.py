# SPDX-License-Identifier: Apache-2.0
"""Load-balancer addresses that nobody on the segment answers for: clients ask in vain, no packet tells."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lb.announce.servable import is_nodes_own
from lb.model import ObjectKey
from lb.served.problems import Problem
from lb.words import several, some

GRACE_SECONDS = 10.0
"""For so long an address may be nobody's: owners are found and change within a few seconds."""
_NEXT = "lbctl service list names each address, lbctl explain {service} the way to it"
_NEXT_NOWHERE = (
    "have a pool of the segment's addresses, name the network in announce_networks, or tell routers:"
    " lbctl announce bgp"
)


class Unanswered:
    """Remembers since when; note() is for one thread, the rest for any."""

    def __init__(self) -> None:
        self._since: dict[str, float] = {}
        self._told: Mapping[tuple[str, bool], Sequence[tuple[str, str]]] = {}

    def note(
        self, owners: Iterable[Mapping[str, Any]], services: Mapping[str, Sequence[ObjectKey]], now: float
    ) -> list[Problem]:
        """Take who owns what, as :meth:`lb.segment.speaker.Speaker.owners` has it; return what is new.

        services: those that have an address. now: seconds, growing.
        """
        why = {one["address"]: (one["why"], not one["interface"]) for one in owners if one["owner"] is None}
        for one in owners:
            if one["owner"] is not None or is_nodes_own(one["why"]):  # somewhere it is answered for
                why.pop(one["address"], None)
        self._since = {address: self._since.get(address, now) for address in why}
        told: dict[tuple[str, bool], list[tuple[str, str]]] = {}
        for address, reason in why.items():
            if now - self._since[address] >= GRACE_SECONDS:
                told.setdefault(reason, []).append((address, _first(services.get(address, ()))))
        before, self._told = self._told, told
        new = told.keys() - before.keys()
        return [_problem(reason, addresses) for reason, addresses in told.items() if reason in new]

    def count(self) -> int:
        """Return how many addresses are nobody's."""
        return sum(map(len, self._told.values()))

    def problems(self, *, routed: bool) -> list[Problem]:
        """Return a problem for each reason.

        routed: routers are told as well, so that an address may be in none of the segment's networks.
        """
        return [
            _problem(reason, addresses)
            for reason, addresses in self._told.items()
            if not (routed and reason[1])
        ]


def _first(services: Sequence[ObjectKey]) -> str:
    return str(services[0]) if services else ""


def _problem(reason: tuple[str, bool], addresses: Sequence[tuple[str, str]]) -> Problem:
    why, nowhere = reason
    named = some(f"{address} of {service}" if service else address for address, service in addresses)
    verb = "is" if len(addresses) == 1 else "are"
    what = several(len(addresses), "load-balancer address", "load-balancer addresses")
    service = addresses[0][1] or "SERVICE"
    return Problem(
        f"{what} {verb} answered for by nobody on the segment, {named}: {why}",
        _NEXT_NOWHERE if nowhere else _NEXT.format(service=service),
    )
