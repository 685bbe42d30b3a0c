# SPDX-License-Identifier: Apache-2.0
"""Which Service has a VIP that several of them claim."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

import msgspec

from lb.model import IPAddress, ObjectKey
from lb.plan.types import PortPlan, ServicePlan, Vip, VipKey, VipKind


class Right(enum.StrEnum):
    """Why the winner of a conflict has the VIP."""

    CLUSTER_IP = "clusterIP"
    """The address is its clusterIP, which no other Service can have, whatever the port."""
    NODE_PORT = "nodePort"
    """It is one of its node ports at an address of the node."""
    OLDER = "older"
    """It was created before the other."""
    HOLDER = "holder"
    """creationTimestamps do not tell; it was there first, or is the first by name."""


@dataclass(frozen=True, slots=True)
class Conflict:
    """Two Services claim one VIP: the winner has it, the loser does without."""

    winner: ObjectKey
    loser: ObjectKey
    vip: VipKey
    right: Right = Right.OLDER

    def as_dict(self) -> dict[str, Any]:
        """Return the conflict as JSON has it."""
        return {
            "address": str(self.vip.address),
            "port": self.vip.port,
            "protocol": self.vip.protocol.name if self.vip.protocol else None,
            "winner": str(self.winner),
            "loser": str(self.loser),
            "right": self.right.value,
            "text": str(self),
        }

    def __str__(self) -> str:
        match self.right:
            case Right.CLUSTER_IP:
                whose = f"{self.vip.address} is the clusterIP of Service {self.winner}"
                return f"{self.vip} is refused to Service {self.loser}: {whose}"
            case Right.NODE_PORT:
                return f"{self.vip} is refused to Service {self.loser}: it is a node port of {self.winner}"
            case Right.OLDER:
                return f"{self.vip} belongs to the older Service {self.winner}; {self.loser} claims it too"
            case Right.HOLDER:
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


_Standing = tuple[int, bool, bool]
_RANKS = {VipKind.CLUSTER_IP: 2, VipKind.NODE_PORT: 1}
"""Kinds of VIPs that go before others: those that the API server gives out, each once."""


class _Claim(msgspec.Struct, frozen=True, gc=False):
    """What is kept of a plan: there is one of these for each Service.

    standings: for each of the VIPs the rank of its kind, whether its port has anyone to offer, and whether
        that is offered to everybody, whatever their address.
    """

    created: str
    vips: tuple[VipKey, ...]
    standings: tuple[_Standing, ...]


class Claims:
    """Remembers every Service's claims, and says who has what.

    An address that is a clusterIP belongs to that Service with all its ports, those too that it does not
    have: anybody may write any address into externalIPs, and would else take over a live one (CVE-2020-8554).
    A node port goes before what others claim at the node's address. Between claims of one rank, the older
    Service wins.

    Where creationTimestamps do not tell, as with most manifests, whoever has the VIP keeps it; of several
    that come at once, one that says when it was created wins, then the first by key.

    Several Services may share an address without conflict, since each has ports of its own. The entry for the
    address as a whole, which answers pings, is that of the Service whose clusterIP it is; else that of one
    with endpoints to offer; else the rules above decide.
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
        self._standings: dict[ObjectKey, dict[VipKey, _Standing]] = {}  # of this update

    def update(self, plans: Mapping[ObjectKey, ServicePlan | None]) -> Decision:
        """Take in new plans (None: the Service is gone) and decide anew about the VIPs they concern.

        The cost is that of the Services given, and of those that they share a VIP with.
        """
        before: dict[VipKey, tuple[ObjectKey | None, bool]] = {}
        for key, plan in plans.items():
            claim = self._claims.get(key)
            old, new = set(claim.vips if claim else ()), set(_vips(plan))
            for vip in old | new:
                if vip not in before:
                    before[vip] = self._winners.get(vip), self._is_cluster_ip(vip)
            self._claims.pop(key, None)
            self._standings.pop(key, None)
            for vip in old - new:
                self._withdraw(vip, key)
            for vip in new - old:
                self._claim(vip, key)
            if plan is not None:
                self._claims[key] = _claim_of(plan)
        for vip in before.keys() & self._contested.keys():
            self._winners[vip] = self._decide(vip, before[vip][0] or self._holders.get(vip))
        self._holders = MappingProxyType({})
        affected = dict(plans)
        for vip, (old_winner, was_cluster_ip) in before.items():
            winner = self._winners.get(vip)
            others = {winner, old_winner} if winner != old_winner else set()
            if was_cluster_ip != self._is_cluster_ip(vip):
                others |= self._contested.get(vip, set())
            for other in others:
                if other is None or other in affected:
                    continue
                if (again := self._plan_again(other)) is not None:
                    affected[other] = again
        decision = Decision(
            {key: self._without_lost(key, affected[key]) for key in sorted(affected)},
            self._conflicts_about(before),
        )
        self._standings.clear()
        return decision

    def conflicts(self) -> tuple[Conflict, ...]:
        """Return every conflict there is now, sorted by VIP and loser."""
        found = self._conflicts_about(self._contested)
        self._standings.clear()
        return found

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
        standing = {key: self._standing(vip, key) for key in self._contested[vip]}
        best = max(standing.values())
        rivals = {key for key, one in standing.items() if one == best}
        first = min(rivals, key=self._seniority)
        return first if holder not in rivals or self._is_older(first, holder) else holder

    def _standing(self, vip: VipKey, key: ObjectKey) -> _Standing:
        """Return what orders the claims of Services on a VIP before their age does; the greatest wins.

        Whether a port has anyone to offer, and to everybody, counts for an address as a whole, which Services
        share: whom one of them lets in gets an answer to a ping.
        """
        found = self._standings.get(key)
        if found is None:
            claim = self._claims[key]
            found = self._standings[key] = dict(zip(claim.vips, claim.standings, strict=True))
        rank, offers, to_all = found[vip]
        return rank, offers and not vip.port, to_all and not vip.port

    def _is_cluster_ip(self, vip: VipKey) -> bool:
        """Tell whether an address as a whole is the clusterIP of the Service that has it."""
        winner = None if vip.port or vip not in self._contested else self._winners[vip]
        return winner in self._claims and self._standing(vip, winner)[0] == _RANKS[VipKind.CLUSTER_IP]

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
            replace(port, vips=tuple(vip for vip in port.vips if self._has(key, vip.key)))
            for port in plan.ports
        )
        return replace(plan, ports=tuple(ports))

    def _has(self, key: ObjectKey, vip: VipKey) -> bool:
        """Tell whether a VIP that a Service claims is its to serve."""
        return self._winners[vip] == key and self._owner(vip, key) is None

    def _owner(self, vip: VipKey, key: ObjectKey) -> ObjectKey | None:
        """Return the other Service whose clusterIP a VIP's address is; None for one that is given out."""
        whole = VipKey(vip.address)
        if not vip.port or not self._is_cluster_ip(whole) or self._standing(vip, key)[0]:
            return None
        owner = self._winners[whole]
        return owner if owner != key else None

    def _conflicts_about(self, vips: Iterable[VipKey]) -> tuple[Conflict, ...]:
        found: dict[tuple[VipKey, ObjectKey], Conflict] = {}
        ports = _PortsOf(self._claims)
        contested = [vip for vip in vips if vip in self._contested]
        for whole in [vip for vip in contested if self._is_cluster_ip(vip)]:
            winner = self._winners[whole]
            for loser in self._contested[whole] - {winner}:
                for vip in ports.at(loser, whole.address):
                    if not self._standing(vip, loser)[0]:
                        found[vip, loser] = Conflict(winner, loser, vip, Right.CLUSTER_IP)
        for vip in [vip for vip in contested if vip.port]:
            winner = self._winners[vip]
            for loser in self._contested[vip] - {winner}:
                if (vip, winner) not in found:
                    found.setdefault(
                        (vip, loser), Conflict(winner, loser, vip, self._right(vip, winner, loser))
                    )
        return tuple(sorted(found.values(), key=_conflict_order))

    def _right(self, vip: VipKey, winner: ObjectKey, loser: ObjectKey) -> Right:
        rank = self._standing(vip, winner)[0]
        if rank > self._standing(vip, loser)[0]:
            return Right.CLUSTER_IP if rank == _RANKS[VipKind.CLUSTER_IP] else Right.NODE_PORT
        return Right.OLDER if self._is_older(winner, loser) else Right.HOLDER


class _PortsOf:
    """Finds the VIPs that a Service claims at an address."""

    def __init__(self, claims: Mapping[ObjectKey, _Claim]) -> None:
        self._claims = claims
        self._found: dict[ObjectKey, dict[IPAddress, list[VipKey]]] = {}

    def at(self, key: ObjectKey, address: IPAddress) -> Sequence[VipKey]:
        """Return those with a port."""
        found = self._found.get(key)
        if found is None:
            found = self._found[key] = {}
            for vip in self._claims[key].vips:
                if vip.port:
                    found.setdefault(vip.address, []).append(vip)
        return found.get(address, ())


def _vips(plan: ServicePlan | None) -> tuple[VipKey, ...]:
    return tuple([vip.key for port in plan.ports for vip in port.vips]) if plan else ()


def _claim_of(plan: ServicePlan) -> _Claim:
    standings = tuple(
        [
            (_RANKS.get(vip.kind, 0), bool(port.cluster), _is_for_all(vip, port))
            for port in plan.ports
            for vip in port.vips
        ]
    )
    return _Claim(plan.created, _vips(plan), _STANDINGS.setdefault(standings, standings))


def _is_for_all(vip: Vip, port: PortPlan) -> bool:
    """Tell whether no source range limits who may use a VIP."""
    version = vip.key.address.version
    limited = vip.kind is VipKind.LOAD_BALANCER
    return not (limited and any(one.version == version for one in port.source_ranges))


_STANDINGS: dict[tuple[_Standing, ...], tuple[_Standing, ...]] = {}
"""One tuple for all claims that have the same: they are few."""


def _conflict_order(conflict: Conflict) -> tuple[int, int, int, int, ObjectKey]:
    vip = conflict.vip
    return (vip.address.version, int(vip.address), vip.port, vip.protocol or 0, conflict.loser)
