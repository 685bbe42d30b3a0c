# SPDX-License-Identifier: Apache-2.0
"""A thread of an agent in shadow mode: reads what the programs decided, and asks conntrack what happened.

A connection is looked at half a second after its first packet. By then netfilter has translated it, or let it
pass, and conntrack's entry says how; or there is no entry, since it was dropped or refused. Which of the two
tells the refusal itself, which passes a hook on its way to the client. A connection of a process of this node
is translated before a hook sees it: there the socket tells which packet belongs to which call.

The entry is asked for by its addresses and ports, one question for each connection. So no queue of
conntrack's can overflow, and what other connections there are costs nothing. What there is no time for is
counted as not compared, as is what the ring had no room for.
"""

from __future__ import annotations

import functools
import logging
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

import numpy as np

from lb.cutover import conntrack
from lb.cutover.conntrack import Conntrack, Tuple
from lb.datapath.kernel.ringbuf import RingBuffer
from lb.datapath.maps.interface import Rows
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import (
    ADDRESS,
    REASONS,
    SHADOWED,
    VIP_KEY,
    BackendFlag,
    BackendStateCode,
    ShadowKind,
    ShadowOutcome,
    Side,
    VipFlag,
    VipKindCode,
    pack_address,
    unpack_address,
)
from lb.errors import LbError
from lb.model import IPAddress, ObjectKey, Protocol, socket_text
from lb.shadow import judge
from lb.shadow.judge import Offer, Ours, Outcome, Theirs, Verdict
from lb.shadow.tally import UNKNOWN, Tally
from lb.stop_event import StopEvent

_log = logging.getLogger(__name__)

_WAIT_NS = 500_000_000
_CALL_WAIT_NS = 2_000_000_000
_TOO_LATE_NS = 8_000_000_000
"""conntrack keeps a connection that a reset has ended for ten seconds."""
_AGAIN_NS = 30_000_000_000
"""So long packets of one tuple are one connection, where no flow says so: what is refused has none."""
_ROUND_SECONDS = 0.2
_BUSY_SECONDS = 0.05
"""Of each round at most: a quarter of a CPU."""
_MOST_PENDING = 50_000
_CHANGING_SECONDS = 5.0
_LEAST_DUMP_SECONDS = 10.0
_DUMP_SHARE = 50
"""After a listing of conntrack, so many times as long without one."""

_OUTCOMES = {
    ShadowOutcome.SERVED: Outcome.SERVED,
    ShadowOutcome.REFUSED: Outcome.REFUSED,
    ShadowOutcome.DROPPED: Outcome.DROPPED,
    ShadowOutcome.UNTOUCHED: Outcome.UNTOUCHED,
}
_NAMES = tuple(name for name, _ in REASONS)
_PROTOCOLS = {int(one): one for one in Protocol}


class Record(NamedTuple):
    """One record: struct shadowed of bpf/records.h; asked: addresses and ports as the packet came."""

    time_ns: int
    cookie: int
    asked: Tuple
    backend: tuple[IPAddress, int]
    kind: ShadowKind
    outcome: Outcome
    reason: str
    service: int
    side: Side
    connects: bool


def records(raw: bytes) -> Iterator[Record]:
    """Yield the records in a run of bytes; those of a protocol that Services do not have are left out."""
    names = SHADOWED.names or ()
    for row in np.frombuffer(raw, SHADOWED).tolist():
        one = dict(zip(names, row, strict=True))
        protocol = _PROTOCOLS.get(one["protocol"])
        if protocol is None:
            continue
        src, dst, to_dst = (_address(one[name], one["family"]) for name in ("src", "dst", "to_dst"))
        yield Record(
            one["time_ns"],
            one["cookie"],
            Tuple(src, one["sport"], dst, one["dport"], protocol),
            (to_dst, one["to_dport"]),
            ShadowKind(one["kind"]),
            _OUTCOMES[ShadowOutcome(one["outcome"])],
            _NAMES[one["reason"]],
            one["service"],
            Side(one["side"]),
            bool(one["connects"]),
        )


def _address(raw: bytes, family: int) -> IPAddress:
    return unpack_address(int.from_bytes(raw[:4], "big") if family == 4 else raw)


class Recent:
    """What was seen of late, by key, with the time in ns; the oldest goes."""

    def __init__(self, most: int = _MOST_PENDING) -> None:
        self._most = most
        self._seen: OrderedDict[Any, int] = OrderedDict()

    def note(self, key: Any, now: int) -> None:
        """Remember a key."""
        self._seen[key] = now
        self._seen.move_to_end(key)
        if len(self._seen) > self._most:
            self._seen.popitem(last=False)

    def has(self, key: Any, since: int) -> bool:
        """Tell whether a key was seen since then."""
        return self._seen.get(key, -1) >= since


class View:
    """What the maps hold, for one round; read as it is asked for."""

    def __init__(self, maps: KernelMaps) -> None:
        self._maps = maps
        self.name = functools.cache(self._name)
        self.offer = functools.cache(self._offer)

    def _name(self, service: int) -> str:
        row = self._maps.lookup("services", np.array([service], "u4"))
        if row is None:
            return UNKNOWN
        namespace, name, port_name = (text.decode() for text in row[0].tolist())
        return f"{namespace}/{name}:{port_name}"

    def vip(self, version: int, place: tuple[IPAddress, int], protocol: int) -> Rows | None:
        """Return the VIP's row, None without one."""
        key = np.zeros(1, VIP_KEY[version])
        key["address"] = np.array([pack_address(place[0])], ADDRESS[version])
        key["port"], key["protocol"] = place[1], protocol
        found = self._maps.lookup(f"vips{version}", key)
        return None if found is None else found[0]

    def _rows(self, version: int) -> Rows:
        rows = self._maps.array(f"backends{version}")
        used: Rows = rows[rows["state"] != BackendStateCode.FREE]
        return used

    def _offer(self, service: int, version: int, kind: int, member: BackendFlag) -> Offer:
        every = self._maps.array(f"backends{version}")
        rows = every[every["service"] == service]
        offered, known = {}, set()
        for row in rows[rows["state"] != BackendStateCode.FREE]:
            place = unpack_address(row["address"].tolist()), int(row["port"])
            known.add(place)
            if int(row["flags"]) & member:
                offered[place] = bool(int(row["flags"]) & BackendFlag.LOCAL)
        return Offer(VipKindCode(kind), offered, frozenset(known))

    def owner(self, place: tuple[IPAddress, int]) -> str:
        """Return a Service port that has a backend there, ``""`` without one."""
        version = place[0].version
        rows = self._rows(version)
        address = np.array([pack_address(place[0])], ADDRESS[version])
        found = rows[(rows["port"] == place[1]) & (rows["address"] == address)]
        return self._name(int(found["service"][0])) if len(found) else ""


class Watcher:
    """Compares, in :meth:`run`; :meth:`report` is for any thread.

    opened: opens the maps. lately: returns how many seconds ago something was written for a Service, None for
    one that nothing is remembered of. clock: CLOCK_MONOTONIC in ns. wall: seconds since the epoch.
    """

    def __init__(
        self,
        opened: Callable[[], AbstractContextManager[KernelMaps]],
        lately: Callable[[ObjectKey], float | None],
        *,
        clock: Callable[[], int] = time.monotonic_ns,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._opened, self._lately = opened, lately
        self._clock, self._wall = clock, wall
        self._tally = Tally(wall())
        self._pending: deque[Record] = deque()
        self._calls: deque[Record] = deque()
        self._sent: dict[int, Tuple] = {}
        self._asked = Recent()
        self._answered = Recent()
        self._foreign = Recent()
        self._lost = 0
        self._next_dump = 0.0

    def report(self) -> dict[str, Any]:
        """Return what was compared so far."""
        return self._tally.report(self._wall())

    def run(self, stop: StopEvent) -> None:
        """Compare until stop is set. What fails in one round is logged, and the next goes on."""
        with self._opened() as maps, Conntrack() as table:
            ring = RingBuffer(maps.fd("events"))
            self._lost = int(maps.array("watch")["lost"][0])
            try:
                while not stop.wait(_ROUND_SECONDS):
                    self.round(maps, table, ring)
            finally:
                ring.close()

    def round(self, maps: KernelMaps, table: Conntrack, ring: RingBuffer) -> None:
        """Take what there is in the ring, and compare what is due."""
        lost = int(maps.array("watch")["lost"][0])
        if lost != self._lost:
            self._tally.skip("lost", (lost - self._lost) & 0xFFFF_FFFF)
            self._lost = lost
        self.take(b"".join(ring.read()))
        view = View(maps)
        until = time.monotonic() + _BUSY_SECONDS
        try:
            self._work(view, table, until)
            self._look_for_others(view)
        except LbError as error:
            _log.warning("shadow: %s", error)
            self._tally.skip("unasked")

    def take(self, raw: bytes) -> None:
        """Take the records in a run of bytes."""
        for one in records(raw):
            if one.kind is ShadowKind.ANSWERED:
                asked = one.asked
                self._answered.note(asked, one.time_ns)
                self._answered.note((asked.dst, asked.dport, asked.protocol), one.time_ns)
            elif one.kind is ShadowKind.SENT:
                self._sent[one.cookie] = one.asked
            elif len(self._pending) + len(self._calls) >= _MOST_PENDING:
                self._tally.skip("late")
            elif one.kind is ShadowKind.CALLED:
                self._calls.append(one)
            elif not self._asked.has(one.asked, one.time_ns - _AGAIN_NS) or one.outcome is Outcome.SERVED:
                self._asked.note(one.asked, one.time_ns)
                self._pending.append(one)

    def _work(self, view: View, table: Conntrack, until: float) -> None:
        for queue, wait, look in (
            (self._pending, _WAIT_NS, functools.partial(self._of_packet, table)),
            (self._calls, _CALL_WAIT_NS, self._of_call),
        ):
            while queue and queue[0].time_ns + wait <= self._clock() and time.monotonic() < until:
                one = queue.popleft()
                if self._clock() - one.time_ns > _TOO_LATE_NS:
                    self._sent.pop(one.cookie, None)
                    self._tally.skip("late")
                elif theirs := look(one):
                    self._compare(view, one, theirs)

    def _of_packet(self, table: Conntrack, one: Record) -> Theirs:
        """Return what became of a packet that came to a hook."""
        entry = table.find(one.asked)
        if entry and entry.translated and entry.original == one.asked:
            backend = entry.reply.src, entry.reply.sport
            return Theirs(Outcome.SERVED, backend, entry.reply.dst != one.asked.src)
        if self._answered.has(one.asked, one.time_ns):
            return Theirs(Outcome.REFUSED)
        return Theirs(Outcome.UNTOUCHED if entry else Outcome.DROPPED)

    def _of_call(self, one: Record) -> Theirs | None:
        """Return what became of what a process of this node sent; None: it has sent nothing."""
        sent = self._sent.pop(one.cookie, None)
        to = (one.asked.dst, one.asked.dport)
        if sent and (sent.dst, sent.dport) != to:
            return Theirs(Outcome.SERVED, (sent.dst, sent.dport))
        if self._answered.has((*to, one.asked.protocol), one.time_ns):
            return Theirs(Outcome.REFUSED)
        if sent:
            return Theirs(Outcome.UNTOUCHED)
        if one.connects and one.asked.protocol is Protocol.UDP:
            self._tally.skip("unsent")
            return None
        return Theirs(Outcome.DROPPED)

    def _compare(self, view: View, one: Record, theirs: Theirs) -> None:
        asked = one.asked
        row = view.vip(asked.version, (asked.dst, asked.dport), asked.protocol)
        name = view.name(one.service)
        offer = Offer(VipKindCode.CLUSTER_IP, {})
        if row is not None:
            local = VipFlag.OUTSIDE_LOCAL if one.side is Side.OUTSIDE else VipFlag.INSIDE_LOCAL
            member = BackendFlag.IN_LOCAL_SET if int(row["flags"]) & local else BackendFlag.IN_CLUSTER_SET
            offer = view.offer(int(row["service"]), asked.version, int(row["kind"]), member)
        others = ""
        if theirs.backend and theirs.backend not in offer.known:
            others = view.owner(theirs.backend)
            offer = Offer(offer.kind, offer.offered, offer.known, others)
        ours = Ours(one.outcome, one.reason, one.side)
        verdict = judge.judge(ours, theirs, offer, asked.src, asked.protocol)
        if verdict.kind and not verdict.row and self._is_changing(name):
            self._tally.skip("changing")
            return
        self._tally.add(name, verdict, self._example(one, theirs, others) if verdict.kind else {})

    def _is_changing(self, name: str) -> bool:
        namespace, _, rest = name.partition("/")
        ago = self._lately(ObjectKey(namespace, rest.partition(":")[0]))
        return ago is not None and ago < _CHANGING_SECONDS

    def _example(self, one: Record, theirs: Theirs, others: str) -> dict[str, Any]:
        asked = one.asked
        served = one.outcome is Outcome.SERVED
        return {
            "protocol": asked.protocol.name,
            "client": socket_text(asked.src, asked.sport) if asked.sport else str(asked.src),
            "vip": socket_text(asked.dst, asked.dport),
            "from": one.side.name.lower(),
            "here": {
                "outcome": one.outcome.value,
                "reason": one.reason,
                "backend": socket_text(*one.backend) if served else "",
            },
            "there": {
                "outcome": theirs.outcome.value,
                "backend": socket_text(*theirs.backend) if theirs.backend else "",
                "masqueraded": theirs.masqueraded,
                "service": others,
            },
        }

    def _look_for_others(self, view: View) -> None:
        """Look through conntrack, now and then, for what netfilter translates and no VIP here is."""
        began = time.monotonic()
        if began < self._next_dump:
            return
        now = self._clock()
        for entry in conntrack.dump():
            asked = entry.original
            if not entry.translated or self._foreign.has((asked, entry.ident), 0):
                continue
            if view.vip(asked.version, (asked.dst, asked.dport), asked.protocol) is not None:
                continue
            self._foreign.note((asked, entry.ident), now)
            example = {
                "protocol": asked.protocol.name,
                "client": socket_text(asked.src, asked.sport),
                "vip": socket_text(asked.dst, asked.dport),
                "there": {"outcome": "served", "backend": socket_text(entry.reply.src, entry.reply.sport)},
            }
            self._tally.add(UNKNOWN, Verdict(judge.NO_SERVICE), example)
        took = time.monotonic() - began
        self._next_dump = time.monotonic() + max(_LEAST_DUMP_SECONDS, _DUMP_SHARE * took)
