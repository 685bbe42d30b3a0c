# SPDX-License-Identifier: Apache-2.0
"""Who owns which address on a segment, as one node sees it: pure, the time is given with every call.

The best candidate for an address is the node that says it serves it best (:class:`Standing`), and of several
the one with the greatest hash of its name and the address (rendezvous hashing: Thaler, Ravishankar, 1996). So
the addresses are spread, and when a node comes or goes no other's addresses move.

Ownership changes hands by these rules:

- A node takes an address that nobody owns if it is the best candidate by all that it hears. What is new waits
  for a moment, so that all have told whether they serve it.
- An owner that finds another node better offers it the address, and goes on answering. That node takes it
  when it hears so; the owner ends when it hears that. So a hand-over leaves no gap, and nothing but the
  time that a frame takes has two that answer.
- An owner is dead when nothing was heard of it for ``dead`` seconds. Its ownership has ended before: it lasts
  ``keep`` seconds from its last beat on, by its own clock (the map's entries end by themselves).
- A node that comes, or comes back, listens for ``dead`` seconds before it says what it serves.
- Two owners hear of each other: a partition has healed, or a frame was lost. The better one stays and
  announces the address again, the other one ends.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import xxhash

from lb.announce.servable import Standing
from lb.model import IPAddress

_MOST_WEIGHTS = 1024
_SEED = 0x6C62_6172_7031  # part of the protocol: nodes with another one would disagree


class Hold(enum.StrEnum):
    """What a node has of an address."""

    FREE = ""
    HELD = "held"
    OFFERED = "offered"
    """Held, until the best candidate takes it."""


class Member(NamedTuple):
    """A node at a segment. mac: of its interface there."""

    node: str
    mac: str


class Claim(NamedTuple):
    """What a node says of an address: how well it serves it, and whether it owns it."""

    standing: Standing
    hold: Hold = Hold.FREE


Claims = Mapping[IPAddress, Claim]


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. beat: between two beats. keep, dead, settle: see the module.

    A node that has heard no other for ``lone_after`` keeps what it owns for ``lone_keep`` without a beat:
    nobody else could take it, and an agent that starts anew finds it.
    """

    beat: float = 0.4
    keep: float = 2.0
    dead: float = 2.4
    settle: float = 0.8
    lone_after: float = 60.0
    lone_keep: float = 30.0


TIMING = Timing()


@dataclass(slots=True)
class Step:
    """What has changed with a step.

    taken, ended: addresses that the node owns from now on, and no more. former: who has handed an address
    over, or is about to end because it owns one as well. dead: who owned a taken address until nothing was
    heard of it any more.
    """

    taken: list[IPAddress] = field(default_factory=list)
    ended: list[IPAddress] = field(default_factory=list)
    former: dict[IPAddress, Member] = field(default_factory=dict)
    dead: dict[IPAddress, Member] = field(default_factory=dict)


@dataclass(slots=True)
class _Peer:
    heard: float
    claims: Claims


@dataclass(slots=True)
class _Own:
    """An address that this node serves or owns.

    since: when it began to serve it. weights: those of nodes that were candidates, by their names.
    """

    standing: Standing
    since: float
    hold: Hold = Hold.FREE
    weights: dict[str, int] = field(default_factory=dict)


def weight(node: str, address: IPAddress) -> int:
    """Return the hash that decides between nodes: 64 bits, the greatest wins."""
    return xxhash.xxh3_64_intdigest(node.encode() + b"\0" + address.packed, _SEED)


def rank(member: Member, standing: Standing, address: IPAddress) -> tuple[int, int, str, str]:
    """Return what orders candidates for an address: the least is the best."""
    return _rank(member, standing, weight(member.node, address))


def _rank(member: Member, standing: Standing, weight: int) -> tuple[int, int, str, str]:
    return (standing.rank, -weight, member.node, member.mac)


class Election:
    """What one node knows of a segment.

    While nothing changes a step costs nothing, however many addresses there are: so the same object, given to
    :meth:`hear` or :meth:`serve` again, has to say the same.

    adopted: what an earlier agent of the node owned, whose entries in the map have not ended: so nobody else
    can have taken it.
    """

    def __init__(
        self, me: Member, now: float, adopted: Iterable[IPAddress] = (), timing: Timing = TIMING
    ) -> None:
        self.me = me
        self.timing = timing
        self._joined = self._sent = self._alone_since = now
        self._peers: dict[Member, _Peer] = {}
        self._own = {one: _Own(Standing.SERVES, now, Hold.HELD) for one in adopted}
        self._known: dict[IPAddress, Member] = {}
        self._leaving = False
        self._served: Mapping[IPAddress, Standing] | None = None
        self._changed = True
        """Something is known that was not when everything was last decided."""
        self._waits = False
        """An address is to be taken when some time has passed."""
        self.decisions = 0
        """Goes up whenever who owns what may have become another."""
        self._owned: list[IPAddress] | None = None
        self._claims: tuple[bool, Claims] | None = None

    # --- what comes in --------------------------------------------------------------------------------------

    def hear(self, member: Member, claims: Claims, now: float) -> None:
        """Take in a beat of another node."""
        if member == self.me:
            return
        known = self._peers.get(member)
        self._changed |= known is None or known.claims is not claims
        self._peers[member] = _Peer(now, claims)

    def serve(self, standings: Mapping[IPAddress, Standing], now: float) -> None:
        """Say how well this node serves each address; CANNOT, or no entry: not at all."""
        if standings is self._served:
            return
        self._served = standings
        self._changed = True
        able = {one: standing for one, standing in standings.items() if standing is not Standing.CANNOT}
        for address, standing in able.items():
            if address in self._own:
                self._own[address].standing = standing
            else:
                self._own[address] = _Own(standing, now)
        for address in self._own.keys() - able.keys():
            self._own[address].standing = Standing.CANNOT

    def sent(self, at: float) -> None:
        """Note that a beat went out; at: from before it did."""
        self._sent = at

    def leave(self) -> None:
        """Hand over whatever another node serves: the agent ends."""
        self._leaving = True
        self._changed = True

    # --- what comes out -------------------------------------------------------------------------------------

    def step(self, now: float) -> Step:
        """Decide by all that is known now."""
        step = Step()
        if now - self._sent > self.lasts(now):
            self._join_anew(now, step)
        before = len(self._peers)
        self._peers = {m: peer for m, peer in self._peers.items() if now - peer.heard < self.timing.dead}
        if self._peers:
            self._alone_since = now
        if self._changed or self._waits or len(self._peers) < before:
            self._decide_all(now, step)
        return step

    def _decide_all(self, now: float, step: Step) -> None:
        self._changed = self._waits = False
        self._owned = self._claims = None
        self.decisions += 1
        for address, own in list(self._own.items()):
            before = own.hold
            own.hold = self._decide(address, own, now, step)
            if before is Hold.FREE and own.hold is not Hold.FREE:
                step.taken.append(address)
            elif before is not Hold.FREE and own.hold is Hold.FREE:
                step.ended.append(address)
            if own.standing is Standing.CANNOT and own.hold is Hold.FREE:
                del self._own[address]
        self._known = {
            address: member
            for member, peer in self._peers.items()
            for address, claim in peer.claims.items()
            if claim.hold
        }

    def claims(self, now: float) -> Claims:
        """Return what is to be told; who has just come tells of nothing but what it owns."""
        joining = self.joining(now)
        if self._claims is None or self._claims[0] is not joining:
            found = {
                address: Claim(self._standing(own), own.hold)
                for address, own in self._own.items()
                if own.standing is not Standing.CANNOT and (own.hold or not joining)
            }
            self._claims = joining, found
        return self._claims[1]

    def owned(self) -> list[IPAddress]:
        """Return the addresses to answer for."""
        if self._owned is None:
            self._owned = [address for address, own in self._own.items() if own.hold]
        return self._owned

    def lasts(self, now: float) -> float:
        """Return for how many seconds from a beat on what is owned stays owned."""
        lone = not self._peers and now - self._alone_since >= self.timing.lone_after
        return self.timing.lone_keep if lone else self.timing.keep

    def joining(self, now: float) -> bool:
        """Tell whether the node only listens yet."""
        return now - self._joined < self.timing.dead

    def holder(self, address: IPAddress) -> Member | None:
        """Return who owns an address, as far as is known; None: nobody."""
        if (own := self._own.get(address)) and own.hold:
            return self.me
        found = [(rank(m, claim.standing, address), m) for m, claim in self._others(address) if claim.hold]
        return min(found)[1] if found else None

    def peers(self) -> Mapping[Member, Claims]:
        """Return the other nodes that are there, and what they say."""
        return {member: peer.claims for member, peer in self._peers.items()}

    # --- rules ----------------------------------------------------------------------------------------------

    def _join_anew(self, now: float, step: Step) -> None:
        """Nothing of the node was heard for so long that others may have taken what it owned."""
        self._joined = now
        self._sent = now
        self._changed = True
        for address, own in self._own.items():
            if own.hold:
                own.hold = Hold.FREE
                step.ended.append(address)

    def _others(self, address: IPAddress) -> Iterator[tuple[Member, Claim]]:
        for member, peer in self._peers.items():
            if (claim := peer.claims.get(address)) is not None:
                yield member, claim

    def _ranked(
        self, address: IPAddress, own: _Own, member: Member, standing: Standing
    ) -> tuple[int, int, str, str]:
        """Return the rank of a member for an address; the hash is not worked out again each time."""
        found = own.weights.get(member.node)
        if found is None:
            if len(own.weights) >= _MOST_WEIGHTS:  # of nodes that are gone
                own.weights.clear()
            found = own.weights[member.node] = weight(member.node, address)
        return _rank(member, standing, found)

    def _standing(self, own: _Own) -> Standing:
        worse = self._leaving and own.standing.rank < Standing.LEAVING.rank
        return Standing.LEAVING if worse else own.standing

    def _decide(self, address: IPAddress, own: _Own, now: float, step: Step) -> Hold:
        """Return what the node has of an address from now on."""
        if own.standing is Standing.CANNOT:
            return Hold.FREE
        others = list(self._others(address))
        mine = self._ranked(address, own, self.me, self._standing(own))
        best = all(mine < self._ranked(address, own, member, claim.standing) for member, claim in others)
        if own.hold is Hold.FREE:
            if not best:
                return Hold.FREE
            if not self._may_take(address, own, others, now):
                self._waits = True
                return Hold.FREE
            for member, claim in others:
                if claim.hold:
                    step.former[address] = member
            before = self._known.get(address)
            if before and before not in self._peers:
                step.dead[address] = before
            return Hold.HELD
        for member, claim in others:
            if not claim.hold:
                continue
            taken = own.hold is Hold.OFFERED and claim.hold is Hold.HELD
            better = self._ranked(address, own, member, claim.standing) < mine
            if taken or (claim.hold is own.hold and better):
                return Hold.FREE
            if claim.hold is Hold.HELD:
                step.former[address] = member
                self._waits = True  # for its end: until then the address is announced again and again
        return Hold.HELD if best else Hold.OFFERED

    def _may_take(
        self, address: IPAddress, own: _Own, others: list[tuple[Member, Claim]], now: float
    ) -> bool:
        holds = {claim.hold for _, claim in others}
        if self._leaving or Hold.HELD in holds:
            return False
        if Hold.OFFERED in holds:
            return True
        begun = max(own.since, self._joined + self.timing.dead)
        freed = address in self._known  # a moment ago somebody owned it
        return not self.joining(now) and (freed or now - begun >= self.timing.settle)
