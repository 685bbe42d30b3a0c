# SPDX-License-Identifier: Apache-2.0
"""One interface of the node as a member of its segment: beats out and in, what is owned, announcements."""

from __future__ import annotations

import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lb.announce.servable import Standing
from lb.datapath.attach.netlink import Interface
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import FAMILIES
from lb.errors import BpfError, CapacityError
from lb.model import IPAddress
from lb.segment import ownership
from lb.segment.announcements import announcements
from lb.segment.election import Claims, Election, Member, Step
from lb.segment.heartbeats import MOST_ADDRESSES, Heartbeats, Teller
from lb.segment.ownership import SECOND_NS, Entry

_log = logging.getLogger(__name__)

REPEATS = (0.0, 0.3, 1.0, 3.0)
"""When an address that was taken is announced, in seconds from then on: a frame may be lost, and Linux notes
no second change of a neighbour within a second of the first."""
DEFEND_SECONDS = 1.0
"""How often one that another node or host claims as well is announced again, at most."""
KNOWN_SECONDS = 120.0
"""For how long a node that has ended is known by its link address: longer than claims are looked back at."""
FORMER_SECONDS = 60.0
"""For how long a former owner gets what is of its connections after it was heard for the last time."""
ORPHAN_SECONDS = 10.0
"""The same of one that died as owner. If its agent alone did, it is back by then, and the programs have gone
on meanwhile; what is of a dead node's connections is better reset than lost."""
AGAIN_SECONDS = 10.0
"""For how long nothing is owned after the kernel refused it: another node may do better."""


class Port(Protocol):
    """What sends and receives at an interface: :class:`lb.segment.link.Link`."""

    def running(self) -> bool:
        """Tell whether the interface is up and its cable plugged in."""
        ...

    def send(self, frame: bytes) -> None:
        """Send a frame; raises OSError."""
        ...

    def received(self) -> Iterator[bytes]:
        """Yield the frames that have come; raises OSError."""
        ...


@dataclass(slots=True)
class Counts:
    """Since the agent began: addresses taken and ended, of all segments."""

    taken: int = 0
    ended: int = 0


class SegmentMember:
    """What the node is on the segment of one interface.

    Parameters
    ----------
    name: the node's. port: sends and receives at the interface.
    clock: seconds; clock_ns: nanoseconds of the programs' clock (CLOCK_MONOTONIC).

    Attributes
    ----------
    failure: why what is owned cannot be told or written, ``""`` while all is well.
    left_out: addresses that are served and not announced, since there are more than beats have room for.
    beat_due: when the others are to be told again.
    began_ns: since when others are listened to.
    """

    def __init__(
        self,
        name: str,
        interface: Interface,
        port: Port,
        maps: Maps,
        counts: Counts,
        *,
        clock: Callable[[], float],
        clock_ns: Callable[[], int],
    ) -> None:
        self.ifindex, self.interface, self.mac = interface.index, interface.name, interface.mac
        self.failure = ""
        self.left_out = 0
        self._mac = bytes.fromhex(interface.mac.replace(":", ""))
        self._port, self._maps, self._counts = port, maps, counts
        self._clock, self._clock_ns = clock, clock_ns
        me = Member(name, interface.mac)
        self._beats, self._teller = Heartbeats(me), Teller(me)
        self._told: Claims = {}
        self.beat_due = 0.0
        self._announce: list[tuple[float, int, IPAddress]] = []
        self._order = itertools.count()
        self._refused_until = 0.0
        self._settled: Sequence[IPAddress] | None = None
        """What was owned when the map was last found to hold no more."""
        self._defended: dict[IPAddress, float] = {}
        self._heard: dict[str, float] = {}
        self.began_ns = clock_ns()
        self._former = self._former_owners()
        self._mine = self._living()
        self.election = Election(me, clock(), self._mine)

    def _living(self) -> set[IPAddress]:
        """Return what an earlier agent of this node owned a moment ago."""
        now_ns = self._clock_ns()
        return {
            address
            for (ifindex, address), entry in ownership.read(self._maps).items()
            if ifindex == self.ifindex and entry.until_ns > now_ns
        }

    def _former_owners(self) -> dict[IPAddress, tuple[Member, float]]:
        """Return whom that agent had addresses from, by link address alone, and until when they count."""
        now, now_ns = self._clock(), self._clock_ns()
        return {
            address: (Member("", entry.former.hex(":")), now + (entry.former_ns - now_ns) / SECOND_NS)
            for (ifindex, address), entry in ownership.read(self._maps).items()
            if ifindex == self.ifindex and entry.former_ns > now_ns
        }

    @property
    def adopted(self) -> frozenset[IPAddress]:
        """What is owned from before: known to be served while the agent has not looked yet."""
        return frozenset(self._mine)

    def plugged(self) -> bool:
        """Tell whether the segment can be reached."""
        return self._port.running()

    def turn(self, standings: Mapping[IPAddress, Standing]) -> None:
        """Read what has come, decide, tell the others, tell the programs, tell the segment."""
        now = self._clock()
        self._hear(now)
        self.election.serve({} if now < self._refused_until else self._tellable(standings), now)
        step = self.election.step(now)
        self._note(step, now)
        claims = self.election.claims(now)
        changed = claims is not self._told and claims != self._told
        if now >= self.beat_due or changed or self._beats.asked:
            self._beat(claims)
        self._withdraw()
        self._announce_due(now)

    def has_written(self, address: IPAddress) -> bool:
        """Tell whether an entry of the map is this one's: owned, or of a former owner."""
        return address in self._mine or address in self._former

    def defend(self, addresses: Iterable[IPAddress]) -> None:
        """Announce owned addresses again that somebody else claims, unless that was just done."""
        now = self._clock()
        for address in set(addresses).intersection(self.election.owned()):
            if now - self._defended.get(address, -DEFEND_SECONDS) >= DEFEND_SECONDS:
                self._defended[address] = now
                heapq.heappush(self._announce, (now, next(self._order), address))

    def knows(self, mac: bytes) -> bool:
        """Tell whether a link address is this node's, or that of a member which was heard lately.

        One that has ended was a member when it claimed what it had.
        """
        text = mac.hex(":")
        return text == self.mac or self._heard.get(text, -math.inf) > self._clock() - KNOWN_SECONDS

    def close(self) -> None:
        """Tell that the node is gone; what nobody has taken is answered for until its time is over."""
        self._beat({}, last=True)

    def _tellable(self, standings: Mapping[IPAddress, Standing]) -> Mapping[IPAddress, Standing]:
        """Return what the node serves, as far as it can be told; of what all serve all leave out the same."""
        self.left_out = 0
        if len(standings) <= MOST_ADDRESSES:
            return standings
        found: dict[IPAddress, Standing] = {}
        for version in FAMILIES:
            family = sorted((each for each in standings if each.version == version), key=int)
            found |= {each: standings[each] for each in family[:MOST_ADDRESSES]}
        self.left_out = len(standings) - len(found)
        return found

    def _hear(self, now: float) -> None:
        try:
            for frame in self._port.received():
                if found := self._beats.read(frame):
                    if found[0].mac not in self._heard:
                        self._heard = {m: at for m, at in self._heard.items() if at > now - KNOWN_SECONDS}
                    self._heard[found[0].mac] = now
                    self.election.hear(*found, now)
        except OSError as error:
            _log.debug("%s: %s", self.interface, error)

    def _note(self, step: Step, now: float) -> None:
        for address in step.taken:
            _log.info("%s: %s is this node's", self.interface, address)
            for after in REPEATS:
                heapq.heappush(self._announce, (now + after, next(self._order), address))
        for address in step.ended:
            holder = self.election.holder(address)
            whose = f"node {holder.node}'s" if holder else "nobody's"
            _log.info("%s: %s is %s", self.interface, address, whose)
        self._counts.taken += len(step.taken)
        self._counts.ended += len(step.ended)
        self._remember(step, now)
        self.defend(step.former.keys() - set(step.taken))

    def _remember(self, step: Step, now: float) -> None:
        """Note whom an address is from; whoever is heard still leads its connections."""
        self._former |= {address: (member, now + FORMER_SECONDS) for address, member in step.former.items()}
        for address in step.taken:
            if address not in step.former:
                self._former.pop(address, None)
        self._former |= {address: (member, now + ORPHAN_SECONDS) for address, member in step.dead.items()}
        heard = self.election.peers()
        for address, (member, end) in list(self._former.items()):
            if member in heard:
                self._former[address] = member, now + FORMER_SECONDS
            elif end <= now:
                del self._former[address]

    def _beat(self, claims: Claims, *, last: bool = False) -> None:
        """Tell the others; only then what is owned is owned for another while."""
        at, at_ns = self._clock(), self._clock_ns()
        self.beat_due = at + self.election.timing.beat
        self._told = claims
        asked, self._beats.asked = self._beats.asked, False
        missing, self._beats.missing = self._beats.missing, set()
        try:
            for frame in self._teller.beat(claims, missing, whole=asked):
                self._port.send(frame)
        except OSError as error:
            self._failed(f"{self.interface}: other nodes cannot be told: {error.strerror}")
            return
        if last:
            return
        self.election.sent(at)
        until = at_ns + int(self.election.lasts(at) * SECOND_NS)
        entries = {address: self._entry(address, until, at, at_ns) for address in self.election.owned()}
        try:
            ownership.write(self._maps, self.ifindex, self._mac, entries)
            self._mine.update(entries)
        except (BpfError, CapacityError) as error:
            self._failed(f"{self.interface}: addresses cannot be announced: {error}")
            self._refused_until = at + AGAIN_SECONDS
        else:
            if at >= self._refused_until:
                self._failed("")

    def _entry(self, address: IPAddress, until_ns: int, now: float, now_ns: int) -> Entry:
        member, end = self._former.get(address, (None, now))
        if member is None:
            return Entry(until_ns)
        mac = bytes.fromhex(member.mac.replace(":", ""))
        return Entry(until_ns, mac, now_ns + int((end - now) * SECOND_NS))

    def _failed(self, text: str) -> None:
        if text and text != self.failure:
            _log.error("%s", text)
        self.failure = text

    def _withdraw(self) -> None:
        """Let the programs answer no more for what is another's; what they send on, they send on."""
        owned = self.election.owned()
        if owned is self._settled:
            return
        gone = self._mine.difference(owned)
        now, now_ns = self._clock(), self._clock_ns()
        kept = {address: self._entry(address, 0, now, now_ns) for address in gone & self._former.keys()}
        try:
            ownership.end(self._maps, self.ifindex, gone - kept.keys())
            ownership.write(self._maps, self.ifindex, self._mac, kept)
            self._mine -= gone
            self._settled = owned
        except BpfError as error:
            self._failed(f"{self.interface}: addresses cannot be withdrawn: {error}")

    def _announce_due(self, now: float) -> None:
        if not self._announce or self._announce[0][0] > now:
            return
        owned = set(self.election.owned())
        while self._announce and self._announce[0][0] <= now:
            _, _, address = heapq.heappop(self._announce)
            if address not in owned:
                continue
            try:
                for frame in announcements(address, self._mac):
                    self._port.send(frame)
            except OSError as error:
                _log.debug("%s: %s: %s", self.interface, address, error)
