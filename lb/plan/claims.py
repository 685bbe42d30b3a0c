# SPDX-License-Identifier: Apache-2.0
"""Which Service has a VIP that several of them claim."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import msgspec

from lb.model import ObjectKey
from lb.plan.types import ServicePlan, VipKey, VipKind


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two Services claim one VIP: the winner has it, the loser does without.

    older is false when their creationTimestamps do not tell which is the older one.
    """

    winner: ObjectKey
    loser: ObjectKey
    vip: VipKey
    older: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return the conflict as JSON has it."""
        return {
            "address": str(self.vip.address),
            "port": self.vip.port,
            "protocol": self.vip.protocol.name if self.vip.protocol else None,
            "winner": str(self.winner),
            "loser": str(self.loser),
            "text": str(self),
        }

    def __str__(self) -> str:
        if self.older:
            return f"{self.vip} belongs to the older Service {self.winner}; {self.loser} claims it too"
        return (
            f"{self.vip} belongs to Service {self.winner}; {self.loser} claims it too, and their"
            " creationTimestamps do not tell which is older"
        )


@dataclass(frozen=True, slots=True)
class Decision:
    """What follows from a change.

    plans: what to apply, without the VIPs that a Service lost: the changed Services, and the unchanged
        ones that won or lost a VIP thereby; None for a Service that is gone.
    conflicts: those about the VIPs that the changed Services claim, or claimed before; sorted.
    """

    plans: dict[ObjectKey, ServicePlan | None]
    conflicts: tuple[Conflict, ...]


class _Claim(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a plan: there is one of these for each Service.

    standings: for each of the VIPs whether it is a clusterIP, and whether its port has anyone to offer.
    """

    created: str
    vips: tuple[VipKey, ...]
    standings: tuple[tuple[bool, bool], ...]


class Claims:
    """Remembers every Service's claims. The older Service wins a VIP.

    Where creationTimestamps do not tell, as with most manifests, whoever has the VIP keeps it; of several
    that come at once, one that says when it was created wins, then the first by key.

    Addresses as a whole are shared without conflict, since each of the Services may have ports of its own.
    What their packets meet is that of a Service whose clusterIP the address is, before others; then of one
    with endpoints to offer; then as above.
    """

    def __init__(
        self,
        plan_again: Callable[[ObjectKey], ServicePlan | None],
        holders: Mapping[VipKey, ObjectKey] = MappingProxyType({}),
    ) -> None:
        """Begin.

        plan_again: gives the plan of a Service that was updated earlier; None: there is none to be had now.
        holders: who had which VIP before the first update.
        """
        self._plan_again = plan_again
        self._claims: dict[ObjectKey, _Claim] = {}
        self._winners: dict[VipKey, ObjectKey] = {}
        self._contested: dict[VipKey, set[ObjectKey]] = {}  # all that claim it, where there are several
        self._holders = holders

    def update(self, plans: Mapping[ObjectKey, ServicePlan | None]) -> Decision:
        """Take in new plans (None: the Service is gone) and decide anew about the VIPs they concern.

        The cost is that of the Services given, and of those that they share a VIP with.
        """
        before: dict[VipKey, ObjectKey | None] = {}
        for key, plan in plans.items():
            claim = self._claims.pop(key, None)
            old, new = set(claim.vips if claim else ()), set(_vips(plan))
            for vip in old | new:
                before.setdefault(vip, self._winners.get(vip))
            for vip in old - new:
                self._withdraw(vip, key)
            for vip in new - old:
                self._claim(vip, key)
            if plan is not None:
                self._claims[key] = _claim_of(plan)
        for vip in before.keys() & self._contested.keys():
            self._winners[vip] = self._decide(vip, before[vip] or self._holders.get(vip))
        self._holders = MappingProxyType({})
        affected = dict(plans)
        for vip, old_winner in before.items():
            winner = self._winners.get(vip)
            if winner != old_winner:
                for other in (winner, old_winner):
                    if other is None or other in affected:
                        continue
                    if (again := self._plan_again(other)) is not None:
                        affected[other] = again
        return Decision(
            {key: self._without_lost(key, affected[key]) for key in sorted(affected)},
            self._conflicts_about(before),
        )

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return every conflict there is now, sorted by VIP and loser."""
        return self._conflicts_about(self._contested)

    def _claim(self, vip: VipKey, key: ObjectKey) -> None:
        holder = self._winners.setdefault(vip, key)
        if holder != key:
            self._contested.setdefault(vip, {holder}).add(key)

    def _withdraw(self, vip: VipKey, key: ObjectKey) -> None:
        rivals = self._contested.get(vip, set())
        rivals.discard(key)
        if len(rivals) == 1:
            del self._contested[vip]
        if self._winners[vip] == key:
            del self._winners[vip]
            if rivals:
                self._winners[vip] = min(rivals)  # of several, update() decides

    def _decide(self, vip: VipKey, holder: ObjectKey | None) -> ObjectKey:
        rivals = self._contested[vip]
        if not vip.port:
            standing = {key: self._standing(vip, key) for key in rivals}
            best = max(standing.values())
            rivals = {key for key in rivals if standing[key] == best}
        first = min(rivals, key=self._seniority)
        return first if holder not in rivals or self._is_older(first, holder) else holder

    def _standing(self, address: VipKey, key: ObjectKey) -> tuple[bool, bool]:
        """Return what orders the claims of Services on an address as a whole; the greatest wins."""
        claim = self._claims[key]
        return claim.standings[claim.vips.index(address)]

    def _seniority(self, key: ObjectKey) -> tuple[bool, str, ObjectKey]:
        created = self._claims[key].created
        return (not created, created, key)

    def _is_older(self, one: ObjectKey, other: ObjectKey) -> bool:
        """Tell whether creationTimestamps say that one Service is older than the other."""
        return "" < self._claims[one].created < self._claims[other].created

    def _without_lost(self, key: ObjectKey, plan: ServicePlan | None) -> ServicePlan | None:
        if plan is None or self._contested.keys().isdisjoint(_vips(plan)):
            return plan
        ports = (
            replace(port, vips=tuple(vip for vip in port.vips if self._winners[vip.key] == key))
            for port in plan.ports
        )
        return replace(plan, ports=tuple(ports))

    def _conflicts_about(self, vips: Iterable[VipKey]) -> tuple[Conflict, ...]:
        found = []
        for vip in vips:
            if vip.port and vip in self._contested:
                winner = self._winners[vip]
                losers = self._contested[vip] - {winner}
                found += [Conflict(winner, loser, vip, self._is_older(winner, loser)) for loser in losers]
        return tuple(sorted(found, key=_conflict_order))


def _vips(plan: ServicePlan | None) -> tuple[VipKey, ...]:
    return tuple([vip.key for port in plan.ports for vip in port.vips]) if plan else ()


def _claim_of(plan: ServicePlan) -> _Claim:
    standings = tuple(
        [(vip.kind is VipKind.CLUSTER_IP, bool(port.cluster)) for port in plan.ports for vip in port.vips]
    )
    return _Claim(plan.created, _vips(plan), _STANDINGS.setdefault(standings, standings))


_STANDINGS: dict[tuple[tuple[bool, bool], ...], tuple[tuple[bool, bool], ...]] = {}
"""One tuple for all claims that have the same: they are few."""


def _conflict_order(conflict: Conflict) -> tuple[int, int, int, int, ObjectKey]:
    vip = conflict.vip
    return (vip.address.version, int(vip.address), vip.port, vip.protocol or 0, conflict.loser)
