"""Which Service has a VIP that several of them claim."""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, replace

from lb.model import ObjectKey
from lb.plan.types import ServicePlan, VipKey


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two Services claim one VIP: the winner has it, the loser does without.

    older is false when neither Service says that it is, and the winner is the first by name.
    """

    winner: ObjectKey
    loser: ObjectKey
    vip: VipKey
    older: bool = True

    def __str__(self) -> str:
        if self.older:
            return f"{self.vip} belongs to the older Service {self.winner}; {self.loser} claims it too"
        return (
            f"{self.vip} belongs to Service {self.winner}, the first by name as their creationTimestamps tell"
            f" no older one; {self.loser} claims it too"
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


class Claims:
    """Remembers every Service's claims. The older Service wins a VIP; of the same age, the first by key.

    A Service of unknown age loses to one that says when it was created.
    """

    def __init__(self) -> None:
        self._plans: dict[ObjectKey, ServicePlan] = {}
        self._claimants: dict[VipKey, set[ObjectKey]] = {}
        self._contested: set[VipKey] = set()

    def update(self, plans: Mapping[ObjectKey, ServicePlan | None]) -> Decision:
        """Take in new plans (None: the Service is gone) and decide anew about the VIPs they concern.

        The cost is that of the Services given, and of those that they share a VIP with.
        """
        touched = {vip for key, plan in plans.items() for vip in _vips(self._plans.get(key)) | _vips(plan)}
        before = {vip: self._winner(vip) for vip in touched}
        for key, plan in plans.items():
            self._replace(key, plan)
        affected = set(plans)
        for vip, old_winner in before.items():
            winner = self._winner(vip)
            if winner != old_winner:
                affected.update(key for key in (winner, old_winner) if key is not None)
        return Decision(
            {key: self._without_lost(key) for key in sorted(affected)}, self._conflicts_about(touched)
        )

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return every conflict there is now, sorted by VIP and loser."""
        return self._conflicts_about(self._contested)

    def _replace(self, key: ObjectKey, plan: ServicePlan | None) -> None:
        for vip in _vips(self._plans.pop(key, None)):
            claimants = self._claimants[vip]
            claimants.discard(key)
            if len(claimants) < 2:
                self._contested.discard(vip)
            if not claimants:
                del self._claimants[vip]
        if plan is None:
            return
        self._plans[key] = plan
        for vip in _vips(plan):
            claimants = self._claimants.setdefault(vip, set())
            claimants.add(key)
            if len(claimants) > 1:
                self._contested.add(vip)

    def _winner(self, vip: VipKey) -> ObjectKey | None:
        return min(self._claimants.get(vip, ()), key=self._seniority, default=None)

    def _seniority(self, key: ObjectKey) -> tuple[bool, str, ObjectKey]:
        created = self._plans[key].created
        return (not created, created, key)

    def _without_lost(self, key: ObjectKey) -> ServicePlan | None:
        plan = self._plans.get(key)
        if plan is None or self._contested.isdisjoint(_vips(plan)):
            return plan
        ports = (
            replace(port, vips=tuple(vip for vip in port.vips if self._winner(vip.key) == key))
            for port in plan.ports
        )
        return replace(plan, ports=tuple(ports))

    def _conflicts_about(self, vips: Set[VipKey]) -> tuple[Conflict, ...]:
        found = []
        for vip in vips & self._contested:
            winner, *losers = sorted(self._claimants[vip], key=self._seniority)
            first = self._plans[winner].created
            found += [Conflict(winner, loser, vip, first != self._plans[loser].created) for loser in losers]
        return tuple(sorted(found, key=_conflict_order))


def _vips(plan: ServicePlan | None) -> set[VipKey]:
    return {vip.key for port in plan.ports for vip in port.vips} if plan else set()


def _conflict_order(conflict: Conflict) -> tuple[int, int, int, int, ObjectKey]:
    vip = conflict.vip
    return (vip.address.version, int(vip.address), vip.port, vip.protocol, conflict.loser)
