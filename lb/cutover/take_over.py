# SPDX-License-Identifier: Apache-2.0
"""Take Services over: kube-proxy's connections become flows, its rules go.

The programs are attached, and serve what begins (CUTOVER_TAKE): what conntrack knows they leave to
netfilter, which goes on translating an established connection without the rule that began it. So the
connections that are to be moved only become fewer, and no packet waits. A batch of them moves in steps, each
of which holds for all packets when the next begins:

1. conntrack is no longer to see a client's packets in the form that our programs will give them, nor
   answers to a process of the node in that form: beside the old entry it would take them for another
   connection. Table ``lbctl-cutover`` hides them (:mod:`lb.cutover.netfilter`);
2. the flows are written: from here on our programs translate what clients send, and netfilter the answers to
   clients that keep their address;
3. conntrack no longer sees the other direction either: our programs translate both;
4. the old entries go, new ones come for what conntrack will see. Where it will see nothing the old entry
   stays: by it netfilter knows that the address and port that stand for the client are taken, also for what
   processes of the node send, whose ports the kernel picks without asking us. A client that is itself a
   process of the node gets an entry beside the new one for that (:attr:`lb.cutover.moves.Move.reserving`);
5. conntrack sees all again.

Before that kube-proxy's rules go: what a process of the node sends passes them before it comes to us, and
without its entry would be translated anew. Of the connections that have ended the entries go first, so that
no client that comes again from the same port is taken for an old one.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from lb.cutover import conntrack, moves, netfilter
from lb.cutover.adopt import Adopted, Adopter
from lb.cutover.conntrack import Conntrack, Entry, Tuple
from lb.cutover.moves import OF_HOST, SEEN_BY_STACK, Move
from lb.cutover.netfilter import Run, Untracked
from lb.datapath.attach.snat import add_snat_sources
from lb.datapath.kernel.grace import wait_for_running_programs
from lb.datapath.maps.expiry import live_flows
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import FAMILIES, Cutover, FlowPath
from lb.errors import LbError
from lb.model import IPAddress, Protocol

_AT_ONCE = 1000
_PASSES = 20
_PAUSE_SECONDS = 0.2
_TIMEOUTS = {Protocol.TCP: 432_000, Protocol.UDP: 120, Protocol.SCTP: 210}
"""Seconds of a new entry of conntrack: as long as the kernel has by default for an established one."""
MASQUERADED = frozenset({FlowPath.FORWARD, FlowPath.HAIRPIN, *OF_HOST})


@dataclass(slots=True)
class Report:
    """What a takeover did.

    moved: connections by protocol and path. left: why others stayed with netfilter, and how many; not_moved:
    why those that should have moved did not.
    """

    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: Mapping[str, int] = field(default_factory=dict)
    not_moved: Counter[str] = field(default_factory=Counter)


def set_cutover(maps: KernelMaps, what: Cutover) -> None:
    """Tell the programs to whom they leave packets of no flow; when this returns each packet meets them so.

    Since when it is so, ``lbctl status`` sees by the time of the map's pin.

    Raises BpfError: the map could not be mapped into memory.
    """
    values = maps.array("cutover")
    if int(values[0]) != what:
        values[0] = what
        os.utime(maps.pin_dir / "cutover")
    wait_for_running_programs()


def there(maps: Maps) -> set[tuple[Tuple, Tuple]]:
    """Return the flows that there are, as what the client sends and what the backend gets.

    Raises BpfError: the kernel refused.
    """
    now = time.monotonic_ns()
    live = (moves.moves_back(*live_flows(maps, version, now)) for version in FAMILIES)
    return {(move.client, move.backend) for each in live for move in each}


def take_over(
    maps: KernelMaps, own: frozenset[IPAddress], tell: Callable[[str], object], run: Run = netfilter.here
) -> Report:
    """Do it; own: the node's addresses. tell takes a line about each step.

    Raises LbError: the kernel, nft or iptables refused. It may be called again.
    """
    report = Report()
    with Adopter(maps) as adopter, Conntrack() as table, netfilter.untracked(run) as hidden:
        mover = _Mover(maps, adopter, table, hidden, report)
        set_cutover(maps, Cutover.TAKE)
        services = moves.known(maps)
        found = moves.plan(conntrack.dump(), services, own, there(maps))
        tell(f"{len(found.moves)} connections of kube-proxy's are open")
        for entry in found.dead:
            table.delete(entry.original, entry.ident)
        netfilter.remove_kube_proxy(run)
        tell("kube-proxy's rules are removed")
        for _ in range(_PASSES):
            found = moves.plan(conntrack.dump(), services, own, there(maps))
            report.left = dict(found.left)
            hidden.lasting = bool(found.moved or found.left)
            todo = [(entry, move) for entry, move in found.moves if entry.ident not in mover.done]
            if not todo:
                break
            report.not_moved.clear()
            for at in range(0, len(todo), _AT_ONCE):
                mover.move(todo[at : at + _AT_ONCE])
            if report.not_moved:
                time.sleep(_PAUSE_SECONDS)
        set_cutover(maps, Cutover.NONE)
    return report


@dataclass(frozen=True, slots=True)
class _Mover:
    """Moves connections, in the steps that stand at the top of this file.

    done: the numbers of the entries that it has moved.
    """

    maps: Maps
    adopter: Adopter
    table: Conntrack
    hidden: Untracked
    report: Report
    done: set[int] = field(default_factory=set)

    def move(self, batch: Sequence[tuple[Entry, Move]]) -> None:
        """Do a batch."""
        _admit(self.maps, [move for _, move in batch])
        kept = [move.backend for _, move in batch if move.path in SEEN_BY_STACK]
        sent = [move.client for _, move in batch if move.path in OF_HOST]
        self.hidden.add(requests=kept, answers=[one.reverse for one in sent])
        adopted = self._adopt(batch)
        wait_for_running_programs()
        kept_there = [move.backend.reverse for _, move in adopted if move.path in SEEN_BY_STACK]
        sent_there = [move.client for _, move in adopted if move.path in OF_HOST]
        self.hidden.add(requests=sent_there, answers=kept_there)
        self._exchange(adopted)
        self.hidden.drop(requests=[*kept, *sent_there], answers=[*(one.reverse for one in sent), *kept_there])

    def _adopt(self, batch: Sequence[tuple[Entry, Move]]) -> list[tuple[Entry, Move]]:
        """Make flows; return those that could be made."""
        adopted = []
        for entry, move in batch:
            done = self.adopter.flow(move)
            if done is Adopted.YES:
                adopted.append((entry, move))
            else:
                self.report.not_moved[_WHY[done]] += 1
        return adopted

    def _exchange(self, adopted: Sequence[tuple[Entry, Move]]) -> None:
        """Put new entries in the place of the old ones, whose last word about the connection counts."""
        now = {(entry.original, entry.ident): entry for entry in conntrack.dump()} if adopted else {}
        for entry, move in adopted:
            late = now.get((entry.original, entry.ident))
            if late and moves.as_it_is(move, late) != move:
                self.adopter.flow(moves.as_it_is(move, late))
            if move.passing:
                self.table.delete(entry.original, entry.ident)
                introduce(self.table, move.passing, move.tags)
            if move.reserving:
                reserve(self.table, move.reserving, move)
            self.done.add(entry.ident)
            self.report.moved[move.client.protocol.name, move.path.name.lower()] += 1


_WHY = {
    Adopted.KNOWN: "the client's packets lead elsewhere already: the connection began anew with us",
    Adopted.TAKEN: "another connection has its address and port towards the backend",
    Adopted.BAD: "the program could not read it",
}


def introduce(table: Conntrack, passing: Tuple, tags: tuple[int, int]) -> None:
    """Let conntrack know a connection that passes it untranslated, as established. tags: see Move."""
    seconds = _TIMEOUTS[passing.protocol]
    if not table.create(passing, seconds, tags=tags):
        table.delete(passing)
        table.delete(passing.reverse)
        if not table.create(passing, seconds, tags=tags):
            raise LbError(f"netfilter has another connection in the place of {passing}")


def reserve(table: Conntrack, entry: Tuple, move: Move) -> None:
    """Let netfilter know that the address and port that stand for the client are taken.

    Raises LbError: the kernel refused.
    """
    table.create(
        entry,
        _TIMEOUTS[entry.protocol],
        source=(move.backend.src, move.backend.sport),
        destination=(move.backend.dst, move.backend.dport),
        tags=move.tags,
    )


def _admit(maps: Maps, batch: Sequence[Move]) -> None:
    """Let the programs look for flows where answers come to the addresses and ports of these connections."""
    for version in FAMILIES:
        mine = [m for m in batch if m.client.version == version and m.path in MASQUERADED]
        if not mine:
            continue
        ports = [move.backend.sport for move in mine]
        row = maps.array(f"settings{version}")[:1]
        first, last = int(row["former_port_min"][0]), int(row["former_port_max"][0])
        # The range grows at each end by itself: at no moment is it another than before or after.
        row["former_port_min"] = min(first or 65_535, *ports)
        row["former_port_max"] = max(last, *ports)
        add_snat_sources(maps, version, [move.backend.src for move in mine])
    wait_for_running_programs()
