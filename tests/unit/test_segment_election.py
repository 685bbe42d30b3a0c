# SPDX-License-Identifier: Apache-2.0
"""Contract row announce: one owner for each address, whatever is lost; in simulated time."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest

from lb.announce.servable import Standing
from lb.model import IPAddress
from lb.segment.election import TIMING, Claims, Election, Hold, Member, rank, weight
from lb.segment.heartbeats import Heartbeats, Teller

ADDRESSES = [ip_address(text) for text in ("192.0.2.10", "192.0.2.11", "192.0.2.12", "2001:db8::10")]
VIP = ADDRESSES[0]
TURN = 0.05
SERVES = dict.fromkeys(ADDRESSES, Standing.SERVES)
SETTLED = TIMING.dead + TIMING.settle + 3 * TURN
REPLACED = 3.0  # seconds; what the contract promises of an owner that was killed


@dataclass
class Node:
    """A node of the simulation. until: when what it answers for ends, unless it goes on."""

    election: Election
    standings: Mapping[IPAddress, Standing]
    teller: Teller
    heartbeats: Heartbeats
    alive: bool = True
    told: Claims = field(default_factory=dict)
    beat_due: float = 0.0
    until: dict[IPAddress, float] = field(default_factory=dict)


class Segment:
    """Nodes that hear each other's frames at once, unless one is lost or a wall is between them."""

    def __init__(self, count: int, loss: float = 0.0, seed: int = 1) -> None:
        self.now = 1000.0
        self.random = random.Random(seed)
        self.loss = loss
        self.apart: set[frozenset[str]] = set()
        self.nodes: dict[str, Node] = {}
        for number in range(1, count + 1):
            self.join(f"node{number}")

    def join(self, name: str, adopted: Iterable[IPAddress] = ()) -> None:
        member = Member(name, f"02:00:00:00:00:{len(name)}{name[-1]}")
        election = Election(member, self.now, adopted)
        self.nodes[name] = Node(election, dict(SERVES), Teller(member), Heartbeats(member))

    def run(self, seconds: float, *, one: bool = False) -> None:
        """Let time pass; one: look all the time whether more than one node answers for an address."""
        end = self.now + seconds
        while self.now < end:
            self.now += TURN
            awake = [name for name, node in self.nodes.items() if node.alive]
            self.random.shuffle(awake)
            while awake:
                awake += self._turn(awake.pop(0))
            if one:
                self.check_one()

    def _turn(self, name: str) -> list[str]:
        """Let a node have its turn; return who has heard of it, and is woken by that."""
        node, woken = self.nodes[name], []
        election = node.election
        election.serve(node.standings, self.now)
        election.step(self.now)
        claims = election.claims(self.now)
        heartbeats = node.heartbeats
        if claims != node.told or self.now >= node.beat_due or heartbeats.asked:
            node.told, node.beat_due = claims, self.now + TIMING.beat
            frames = node.teller.beat(claims, heartbeats.missing, whole=heartbeats.asked)
            heartbeats.asked, heartbeats.missing = False, set()
            for other in self.nodes.values():
                pair = frozenset({name, other.election.me.node})
                if other.alive and other is not node and pair not in self.apart:
                    woken += self._hears(other, frames)
            election.sent(self.now)
            until = self.now + election.lasts(self.now)
            node.until = dict.fromkeys(election.owned(), until)
        node.until = {one: until for one, until in node.until.items() if one in election.owned()}
        return woken

    def _hears(self, node: Node, frames: Iterable[bytes]) -> list[str]:
        """Let a node hear frames of another, if they are not lost; return its name if that wakes it."""
        heard = [frame for frame in frames if self.random.random() >= self.loss]
        for frame in heard:
            if (found := node.heartbeats.read(frame)) is not None:
                node.election.hear(*found, self.now)
        return [node.election.me.node] if heard else []

    def answers(self, address: IPAddress) -> list[str]:
        """Return which nodes answer for an address: the programs do, whether or not the agent lives."""
        return sorted(name for name, node in self.nodes.items() if node.until.get(address, 0) > self.now)

    def check_one(self) -> None:
        __tracebackhide__ = True
        for address in ADDRESSES:
            assert len(self.answers(address)) <= 1, (address, self.answers(address), self.now)

    def owners(self) -> dict[IPAddress, list[str]]:
        return {address: self.answers(address) for address in ADDRESSES}

    def best(self, address: IPAddress, names: Sequence[str] = ()) -> str:
        nodes = [self.nodes[name] for name in names or self.nodes]
        ranked = [(rank(one.election.me, one.standings[address], address), one) for one in nodes]
        return min(ranked, key=lambda pair: pair[0])[1].election.me.node


def settled(count: int = 3) -> Segment:
    segment = Segment(count)
    segment.run(SETTLED, one=True)
    return segment


def test_election_gives_each_address_to_the_best() -> None:
    segment = settled()
    assert segment.owners() == {address: [segment.best(address)] for address in ADDRESSES}


def test_election_spreads_addresses_and_moves_none_without_need() -> None:
    addresses = [ip_address(f"10.0.{high}.{low}") for high in range(4) for low in range(1, 251)]
    names = [f"node{number}" for number in range(10)]

    def owner(address: IPAddress, among: Sequence[str]) -> str:
        return max(among, key=lambda name: weight(name, address))

    with_all = {address: owner(address, names) for address in addresses}
    shares = Counter(with_all.values())
    assert min(shares.values()) > 60
    assert max(shares.values()) < 140
    without = {address: owner(address, names[1:]) for address in addresses}
    assert {with_all[one] for one in addresses if without[one] != with_all[one]} == {names[0]}


def test_election_waits_until_all_have_told() -> None:
    """A new address is not taken by the first node that hears of it, to be handed on at once."""
    segment = settled()
    new = ip_address("192.0.2.99")
    best = max(segment.nodes, key=lambda name: weight(name, new))
    for name in sorted(segment.nodes, key=lambda name: name == best):
        segment.nodes[name].standings = {**SERVES, new: Standing.SERVES}
        segment.run(0.2)
        assert segment.answers(new) == []
    segment.run(TIMING.settle + 2 * TURN)
    assert segment.answers(new) == [best]


def test_election_replaces_an_owner_that_was_killed() -> None:
    segment = settled()
    for address in ADDRESSES:
        [owner] = segment.answers(address)
        segment.nodes[owner].alive = False
        segment.run(REPLACED, one=True)
        [heir] = segment.answers(address)
        assert heir == segment.best(address, [name for name in segment.nodes if name != owner])
        segment.join(owner)
        segment.run(SETTLED, one=True)
        assert segment.answers(address) == [owner]


def test_election_hands_over_without_a_gap() -> None:
    """A node that is to be left, or serves worse than others, answers until another does."""
    for standing in (Standing.LAST, Standing.LEAVING):
        segment = settled()
        [owner] = segment.answers(VIP)
        segment.nodes[owner].standings = {**SERVES, VIP: standing}
        for _ in range(20):
            segment.run(TURN, one=True)
            assert segment.answers(VIP)
        assert segment.answers(VIP) == [segment.best(VIP)] != [owner]


def test_election_of_an_agent_that_ends() -> None:
    segment = settled()
    [owner] = segment.answers(VIP)
    segment.nodes[owner].election.leave()
    for _ in range(20):
        segment.run(TURN, one=True)
        assert segment.answers(VIP)
    assert segment.answers(VIP) != [owner]
    assert not segment.nodes[owner].election.owned()


def test_election_leaves_what_cannot_be_served_at_once() -> None:
    segment = settled()
    [owner] = segment.answers(VIP)
    segment.nodes[owner].standings = {**SERVES, VIP: Standing.CANNOT}
    segment.run(3 * TURN, one=True)
    assert segment.answers(VIP) == [segment.best(VIP, [name for name in segment.nodes if name != owner])]
    for node in segment.nodes.values():
        node.standings = {**SERVES, VIP: Standing.CANNOT}
    segment.run(3 * TURN)
    assert segment.answers(VIP) == []


def test_election_keeps_what_all_are_to_leave() -> None:
    segment = settled()
    before = segment.owners()
    for node in segment.nodes.values():
        node.standings = dict.fromkeys(ADDRESSES, Standing.LEAVING)
    segment.run(5.0)
    assert segment.owners() == before


def test_election_has_an_owner_on_either_side_of_a_wall_and_one_when_it_falls() -> None:
    segment = settled(4)
    near = ["node1", "node2"]
    segment.apart = {frozenset({a, b}) for a in near for b in ("node3", "node4")}
    segment.run(REPLACED)
    for address in ADDRESSES:
        assert len(segment.answers(address)) == 2
        assert len(set(segment.answers(address)) & set(near)) == 1
    segment.apart = set()
    segment.run(TIMING.beat + 2 * TURN)
    segment.check_one()
    assert segment.owners() == {address: [segment.best(address)] for address in ADDRESSES}


def test_election_of_an_agent_that_hung_begins_anew() -> None:
    """It has stopped to answer before others took over, and what it wakes up with is nothing."""
    segment = settled()
    [owner] = segment.answers(VIP)
    node = segment.nodes[owner]
    node.alive = False
    segment.run(10.0, one=True)
    assert segment.answers(VIP) != [owner]
    node.alive = True
    segment.run(TURN, one=True)
    assert not node.election.owned()
    segment.run(SETTLED, one=True)
    assert segment.answers(VIP) == [owner]


def test_election_of_an_agent_that_starts_anew_within_its_time_goes_on() -> None:
    segment = settled()
    before = segment.owners()
    [owner] = segment.answers(VIP)
    segment.nodes[owner].alive = False
    segment.run(1.0, one=True)
    segment.join(owner, segment.nodes[owner].until)
    for _ in range(80):
        segment.run(TURN, one=True)
        assert segment.owners() == before


def test_election_of_a_node_that_is_alone_lasts_longer() -> None:
    segment = settled(1)
    election = segment.nodes["node1"].election
    assert election.lasts(segment.now) == TIMING.keep
    segment.run(TIMING.lone_after)
    assert election.lasts(segment.now) == TIMING.lone_keep
    segment.join("node2")
    segment.run(2 * TIMING.beat)
    assert election.lasts(segment.now) == TIMING.keep


@pytest.mark.parametrize("seed", range(12))
def test_election_settles_after_whatever_happens(seed: int) -> None:
    """Deaths, returns, walls, lost frames, changes of what is served; then quiet, and one owner for each."""
    segment = Segment(4, loss=0.2, seed=seed)
    names = list(segment.nodes)
    for _ in range(30):
        name, other = segment.random.sample(names, 2)
        node = segment.nodes[name]
        match segment.random.randrange(5):
            case 0:
                node.alive = False
            case 1:
                node.alive = True
            case 2:
                segment.apart ^= {frozenset({name, other})}
            case 3:
                node.standings = {one: segment.random.choice(list(Standing)) for one in ADDRESSES}
            case 4:
                node.standings = dict(SERVES)
        segment.run(segment.random.uniform(0.1, 4.0))
    segment.loss, segment.apart = 0.0, set()
    for node in segment.nodes.values():
        node.alive, node.standings = True, dict(SERVES)
    segment.run(2 * SETTLED)
    assert segment.owners() == {address: [segment.best(address)] for address in ADDRESSES}
    segment.run(5.0, one=True)


def test_election_tells_who_owns_what() -> None:
    segment = settled()
    [owner] = segment.answers(VIP)
    for node in segment.nodes.values():
        holder = node.election.holder(VIP)
        assert holder is not None
        assert holder.node == owner
    assert segment.nodes[owner].told[VIP].hold is Hold.HELD
