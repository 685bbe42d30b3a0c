# SPDX-License-Identifier: Apache-2.0
"""The thread of an agent that finds an owner for each address, on the segment of every uplink."""

from __future__ import annotations

import contextlib
import errno
import logging
import math
import select
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from ipaddress import ip_network
from typing import Any, Protocol

from lb.announce.report import Report
from lb.announce.servable import AddressKind, Standing, Verdict, is_nodes_own
from lb.config import Config
from lb.datapath.attach.hooks import Role
from lb.datapath.attach.netlink import Interface
from lb.datapath.attach.roles import interfaces_and_roles
from lb.datapath.maps.interface import Maps
from lb.errors import BpfError, LbError
from lb.model import IPAddress
from lb.rundir import RunDir
from lb.segment import ownership
from lb.segment.heartbeats import MOST_ADDRESSES
from lb.segment.link import Link
from lb.segment.member import Counts, SegmentMember
from lb.segment.ownership import Rival
from lb.segment.unanswered import Unanswered
from lb.served.problems import Problem
from lb.stop_event import StopEvent
from lb.words import some

_log = logging.getLogger(__name__)

TURN_SECONDS = 0.2
"""How often each segment is looked at, at least; what comes in is heard at once."""
LEAVE_SECONDS = 1.5
"""For how long an agent that ends waits for others to take over."""
LOOK_SECONDS = 30.0
"""How often interfaces are listed even if nobody has told of a change."""
RIVALS_EVERY, RIVALS_WITHIN = 1.0, 60.0
LAG_SECONDS = 30.0
"""A node that has heard nothing of its source for so long is left to others that have: what it serves may be
old. Where all are like that, nothing changes."""
_SEVERAL = "what two hosts claim, clients reach now here, now there: give one of them another address"

_TOO_MANY = f"a node announces {MOST_ADDRESSES} of each family, the lowest; tell routers of the others (BGP)"


class Heard(Protocol):
    """How far a kind of object is in step with the source: see :class:`lb.kube.reflector.Health`."""

    @property
    def error(self) -> str:
        """Why not; empty while all is well."""
        ...

    @property
    def contact(self) -> float | None:
        """When the source was heard for the last time, in seconds of the monotonic clock."""
        ...


def lag(health: Sequence[Heard]) -> float:
    """Return for how many seconds a source has not been heard that fails to answer; 0 when none does."""
    contacts = [one.contact for one in health if one.error and one.contact is not None]
    return time.monotonic() - min(contacts) if contacts else 0.0


def _behind(verdict: Verdict, seconds: int) -> Verdict:
    """Return the verdict of a node that others are better than."""
    if verdict.standing is not Standing.SERVES:
        return verdict
    why = f"the API server has not been heard for {seconds} s"
    return replace(verdict, standing=Standing.LAST, why=why)


@dataclass(frozen=True, slots=True, eq=False)
class View:
    """What the node is for the addresses of one segment; made_of: what that follows from."""

    made_of: tuple[object, ...]
    verdicts: Mapping[IPAddress, Verdict]
    standings: Mapping[IPAddress, Standing]


@dataclass(frozen=True, slots=True)
class Figures:
    """What metrics tell. owned: addresses, over all interfaces. taken, ended: since the agent began.

    unanswered: addresses that no node owns.
    """

    owned: int
    taken: int
    ended: int
    members: int
    rivals: int
    unanswered: int


class Speaker:
    """Owns addresses on segments; run() is for a thread of its own, all else may be called from any.

    Parameters
    ----------
    report: what the agent says that it can serve; called from the speaker's thread.
    opened: opens the maps.
    lagging: gives for how many seconds what the source says has not been heard; 0 while it is.
    """

    def __init__(
        self,
        config: Config,
        report: Callable[[], Report],
        opened: Callable[[], contextlib.AbstractContextManager[Maps]],
        lagging: Callable[[], float] = lambda: 0.0,
        *,
        clock: Callable[[], float] = time.monotonic,
        clock_ns: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self._config = config
        self._report = report
        self._opened = opened
        self._lagging = lagging
        self._clock, self._clock_ns = clock, clock_ns
        self._networks = [ip_network(text) for text in config.announce_networks]
        self._changed = threading.Event()
        self._changed.set()
        self._look_due = 0.0
        self._rivals_due = 0.0
        self._segments: dict[int, tuple[Interface, SegmentMember, Link]] = {}
        self._views: dict[int, View] = {}
        self._told_of: tuple[object, ...] = ()
        self._counts = Counts()
        self._failure = ""
        self._rivals: Sequence[Rival] = ()
        self._owners: Sequence[Mapping[str, Any]] = ()
        self._unanswered = Unanswered()

    # --- from any thread ------------------------------------------------------------------------------------

    def look(self) -> None:
        """Have the interfaces listed anew: something about them has changed."""
        self._changed.set()

    def owners(self) -> Sequence[Mapping[str, Any]]:
        """Return who owns each address on each segment, as JSON has it.

        With ``address``, ``interface``, ``owner`` (a node's name, null: nobody), ``here``, and ``why``:
        why it is not this node's, or not anybody's.
        """
        return self._owners

    def problems(self) -> list[Problem]:
        """Return what is wrong at present."""
        failures = [self._failure, *(member.failure for _, member, _ in list(self._segments.values()))]
        found = [
            Problem(text, "tried again all the time; other nodes take over") for text in failures if text
        ]
        found += [
            Problem(f"{member.interface}: {member.left_out} addresses are not announced", _TOO_MANY)
            for _, member, _ in list(self._segments.values())
            if member.left_out
        ]
        names = {index: interface.name for index, (interface, _, _) in list(self._segments.items())}
        found += [
            Problem(
                f"{one.address} on {names.get(one.ifindex, one.ifindex)}: the host at {one.mac.hex(':')} "
                "claims it as well",
                _SEVERAL,
            )
            for one in self._rivals
        ]
        routed = self._unanswered.count() > 0 and RunDir(self._config.instance).speaker.holder() is not None
        return found + self._unanswered.problems(routed=routed)

    def figures(self) -> Figures:
        """Return what metrics tell."""
        members = [member for _, member, _ in list(self._segments.values())]
        return Figures(
            owned=sum(len(one.election.owned()) for one in members),
            taken=self._counts.taken,
            ended=self._counts.ended,
            members=sum(len(one.election.peers()) for one in members),
            rivals=len(self._rivals),
            unanswered=self._unanswered.count(),
        )

    # --- the thread -----------------------------------------------------------------------------------------

    def run(self, stop: StopEvent) -> None:
        """Work until stop is set, then hand over what others serve."""
        with self._opened() as maps:
            try:
                while not stop.is_set():
                    try:
                        self._turn(maps)
                    except BpfError as error:  # nothing is put off then, and what is owned ends by itself
                        self._failed(f"addresses are not announced: {error}")
                        time.sleep(TURN_SECONDS)
                    self._wait(stop)
                self._leave(maps)
            finally:
                for _, _, link in self._segments.values():
                    link.close()

    def _failed(self, text: str) -> None:
        if text and text != self._failure:
            _log.error("%s", text)
        self._failure = text

    def _wait(self, stop: StopEvent | None) -> None:
        wake = [link.fileno() for _, _, link in self._segments.values()] + ([stop.fileno()] if stop else [])
        due = min((member.beat_due for _, member, _ in self._segments.values()), default=math.inf)
        select.select(wake, [], [], min(max(0.0, due - self._clock()), TURN_SECONDS))

    def _turn(self, maps: Maps) -> None:
        now = self._clock()
        if self._changed.is_set() or now >= self._look_due:
            self._changed.clear()
            self._look_due = now + LOOK_SECONDS
            self._look(maps)
        report = self._report()
        for index, (interface, member, _) in self._segments.items():
            self._views[index] = view = self._view(self._views.get(index), report, interface, member)
            member.turn(view.standings)
        self._tell(report, now)
        if now >= self._rivals_due:
            self._rivals_due = now + RIVALS_EVERY
            self._look_for_rivals(maps)
            self._end_strangers(maps)

    def _tell(self, report: Report, now: float) -> None:
        """Note who owns what, if that may have changed: it costs as much as there are addresses."""
        made_of = (
            *((each[1].election.decisions, self._views[index]) for index, each in self._segments.items()),
            report,
        )
        if now < self._rivals_due and made_of == self._told_of:
            return
        self._told_of = made_of
        told = [
            self._told(one, interface, member, now)
            for index, (interface, member, _) in self._segments.items()
            for one in self._views[index].verdicts.values()
        ]
        self._owners = told + self._nowhere(report, told)
        services = {str(address): one.services for address, one in report.verdicts.items()}
        for problem in self._unanswered.note(self._owners, services, now) if report.ready else ():
            _log.warning("%s; %s", problem.text, problem.next)

    def _view(self, known: View | None, report: Report, interface: Interface, member: SegmentMember) -> View:
        """Return what the node is for addresses of a segment; the one that is known, if nothing changed."""
        lag = self._lagging()
        behind = int(lag) if lag > LAG_SECONDS else 0
        made_of = (report, interface, None if report.ready else member.adopted, member.plugged(), behind)
        if known and known.made_of == made_of:
            return known
        verdicts = self._verdicts(report, interface, member, behind)
        return View(made_of, verdicts, {address: one.standing for address, one in verdicts.items()})

    def _verdicts(
        self, report: Report, interface: Interface, member: SegmentMember, lag: int
    ) -> dict[IPAddress, Verdict]:
        """Return what the node is for each address that belongs to a segment."""
        if not report.ready:  # what the maps have from before is served
            return {one: Verdict(one, Standing.SERVES) for one in member.adopted}
        found = {
            address: verdict
            for address, verdict in report.verdicts.items()
            if verdict.kind is AddressKind.LOAD_BALANCER and self._belongs(address, interface)
        }
        if member.plugged():
            return {address: _behind(one, lag) for address, one in found.items()} if lag else found
        why = f"{interface.name} has no carrier"
        return {
            address: Verdict(address, Standing.CANNOT, why, one.kind, one.services)
            for address, one in found.items()
        }

    def _belongs(self, address: IPAddress, interface: Interface) -> bool:
        own = (one.network for one in interface.addresses if not one.ip.is_link_local)
        return any(address in network for network in (*own, *self._networks))

    def _told(
        self, verdict: Verdict, interface: Interface, member: SegmentMember, now: float
    ) -> Mapping[str, Any]:
        holder = member.election.holder(verdict.address)
        here = holder == member.election.me
        why = verdict.why
        if not here and not why:
            if holder:
                why = f"node {holder.node} owns it"
            elif member.election.joining(now):
                why = f"this node has just come to the segment of {interface.name}, and listens yet"
            else:
                why = "it is about to be taken"
        return {
            "address": str(verdict.address),
            "interface": interface.name,
            "owner": holder.node if holder else None,
            "here": here,
            "why": why,
        }

    def _nowhere(self, report: Report, told: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """Return the addresses that belong to no segment of this node."""
        known = {one["address"] for one in told}
        names = some(interface.name for interface, _, _ in self._segments.values()) or "no uplink"
        return [
            {
                "address": str(address),
                "interface": "",
                "owner": None,
                "here": False,
                "why": verdict.why
                if is_nodes_own(verdict.why)
                else f"it is in no network of {names}, nor in announce_networks",
            }
            for address, verdict in report.verdicts.items()
            if verdict.kind is AddressKind.LOAD_BALANCER and str(address) not in known
        ]

    def _look_for_rivals(self, maps: Maps) -> None:
        try:
            found = ownership.rivals(maps, RIVALS_WITHIN, self._clock_ns())
        except BpfError as error:
            _log.debug("rivals: %s", error)
            return
        strangers = []
        for one in found:
            segment = self._segments.get(one.ifindex)
            if segment is None or segment[1].knows(one.mac):
                continue  # an interface that is gone; a node that has handed over, or is about to
            if one.ago * ownership.SECOND_NS > self._clock_ns() - segment[1].began_ns:
                continue  # from before this agent began, which has yet to hear whose node it is
            strangers.append(one)
            if one.ago <= 2 * RIVALS_EVERY:
                segment[1].defend((one.address,))
        known = {(one.address, one.mac) for one in self._rivals}
        for address, mac in {(one.address, one.mac) for one in strangers} - known:
            _log.error("%s: the host at %s claims it as well", address, mac.hex(":"))
        self._rivals = strangers

    def _look(self, maps: Maps) -> None:
        """Begin with interfaces that have come, or have another link address; end with what is gone."""
        try:
            interfaces, roles = interfaces_and_roles(self._config)
        except LbError as error:
            self._failed(str(error))
            return
        failure = ""
        wanted = {
            one.index: one
            for one in interfaces
            if roles.get(one.index) is Role.UPLINK and one.ethernet and one.mac and self._chosen(one)
        }
        for index, (_, member, link) in list(self._segments.items()):
            new = wanted.get(index)
            if new is None or (new.name, new.mac) != (member.interface, member.mac):
                link.close()
                del self._segments[index]
                self._views.pop(index, None)
                self._end(maps, index)
        for index, one in wanted.items():
            if index in self._segments:
                self._segments[index] = (one, *self._segments[index][1:])
                continue
            try:
                link = Link(one.name)
            except OSError as error:
                lacks = " (CAP_NET_RAW)" if error.errno == errno.EPERM else ""
                failure = f"{one.name}: {error.strerror}{lacks}: addresses are not announced there"
                continue
            member = SegmentMember(
                self._config.node_name,
                one,
                link,
                maps,
                self._counts,
                clock=self._clock,
                clock_ns=self._clock_ns,
            )
            self._segments[index] = (one, member, link)
        self._failed(failure)
        self._end_strangers(maps)

    def _chosen(self, interface: Interface) -> bool:
        patterns = self._config.announce_interfaces
        return not patterns or any(fnmatchcase(interface.name, pattern) for pattern in patterns)

    def _end(self, maps: Maps, ifindex: int) -> None:
        there = ownership.read(maps)
        ownership.end(maps, ifindex, [address for index, address in there if index == ifindex])

    def _end_strangers(self, maps: Maps) -> None:
        """Delete what the map holds of other interfaces, and what somebody else has written."""
        for index, address in ownership.read(maps):
            segment = self._segments.get(index)
            if segment is None or not segment[1].has_written(address):
                ownership.end(maps, index, [address])

    def _leave(self, maps: Maps) -> None:
        """Hand over, for as long as there is somebody to whom."""
        end = self._clock() + LEAVE_SECONDS
        for _, member, _ in self._segments.values():
            member.election.leave()
        while self._clock() < end and any(
            member.election.owned() and member.election.peers() for _, member, _ in self._segments.values()
        ):
            self._turn(maps)
            self._wait(None)
        for _, member, _ in self._segments.values():
            member.close()
