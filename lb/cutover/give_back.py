# SPDX-License-Identifier: Apache-2.0
"""Give Services back: flows become connections of netfilter's, the programs go.

kube-proxy's rules are there already. What netfilter will need of each flow is put into conntrack in steps,
each of which holds for all packets when the next begins:

1. table ``lbctl-cutover`` hides from conntrack both directions of each connection that our programs
   translate, in the form in which conntrack has seen its packets until now;
2. conntrack's entries for packets of that form go, and entries come by which netfilter would translate the
   connections itself;
3. what begins is netfilter's from now on (CUTOVER_LEAVE): the programs translate packets of flows alone.
   Connections that have begun since the first step go through the first two now. Only from here on does
   netfilter choose ports that stand for clients, and it knows which are taken;
4. conntrack sees again the answers to clients that keep their address, and what processes of the node send:
   netfilter translates these, our programs the other direction;
5. the programs go, one after the other: whatever meets none of them is translated by netfilter;
6. conntrack sees all.
"""

from __future__ import annotations

import functools
import socket
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from lb.cutover import affinity, moves, netfilter
from lb.cutover.conntrack import Conntrack, TcpState
from lb.cutover.moves import OF_HOST, SEEN_BY_STACK, Move
from lb.cutover.netfilter import Run, Untracked
from lb.cutover.take_over import set_cutover
from lb.datapath.attach import hooks, sockets
from lb.datapath.kernel import pins
from lb.datapath.kernel.grace import wait_for_running_programs
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.expiry import live_flows
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import FAMILIES, Cutover, FlowSign, FlowState
from lb.model import Protocol

_SECONDS = {
    (Protocol.TCP, FlowState.NEW): 120,
    (Protocol.TCP, FlowState.ESTABLISHED): 432_000,
    (Protocol.TCP, FlowState.CLOSING): 3600,
    (Protocol.UDP, FlowState.NEW): 30,
    (Protocol.UDP, FlowState.ESTABLISHED): 120,
    (Protocol.SCTP, FlowState.NEW): 30,
    (Protocol.SCTP, FlowState.ESTABLISHED): 210,
}
"""Until netfilter forgets a connection of which no packet comes any more: about what it has by default. One
that is half closed has longer than it has there, as with us."""


@dataclass(slots=True)
class Report:
    """What was given back: connections by protocol and path; left: why others were not, and how many.

    clients: how many of them kube-proxy remembers as having a backend of their own (affinity).
    """

    moved: Counter[tuple[str, str]] = field(default_factory=Counter)
    left: Counter[str] = field(default_factory=Counter)
    clients: int = 0
    detached: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


TAKEN = "netfilter has another connection in its place"
TAGS = "SCTP, of whose verification tags one was not seen: netfilter wants both"


def _tags(maps: KernelMaps, version: int) -> dict[bytes, int]:
    """Return the verification tags that were seen, by the key of a flow's half."""
    keys, values = maps.read(f"tags{version}")
    return {key.tobytes(): socket.ntohl(tag) for key, tag in zip(keys, values.tolist(), strict=True)}


def flows(maps: KernelMaps) -> tuple[list[Move], Counter[str]]:
    """Return the connections that can be given back, and why others cannot be, and how many.

    Raises BpfError: the kernel refused.
    """
    found: list[Move] = []
    left: Counter[str] = Counter()
    for version in FAMILIES:
        tags = _tags(maps, version)
        for move in moves.moves_back(*live_flows(maps, version, time.monotonic_ns())):
            if move.client.protocol is Protocol.SCTP:
                client, backend = (tags.get(key.tobytes(), 0) for key in moves.tag_keys(move))
                if client and backend:
                    found.append(replace(move, tags=(client, backend)))
                else:
                    left[TAGS] += 1
            else:
                found.append(move)
    return found, left


def give_back(name: str, tell: Callable[[str], object], run: Run = netfilter.here) -> Report:
    """Do it, for an instance whose agent does not run.

    Raises LbError: the kernel or nft refused. The programs are attached still, and serve known connections.
    """
    report = Report()
    with KernelMaps(Pins(name).maps) as maps, Conntrack() as table, netfilter.untracked(run) as hidden:
        try:
            early, _ = flows(maps)
            tell(f"{len(early)} connections are open")
            _hand_over(early, hidden, table, report)
            report.clients = affinity.give(maps, run)
            set_cutover(maps, Cutover.LEAVE)
            every, report.left = flows(maps)
            known = {(move.client, move.backend) for move in early}
            _hand_over([m for m in every if (m.client, m.backend) not in known], hidden, table, report)
            open_still = {move.client for move in every}
            for move in early:
                if move.client not in open_still:
                    table.delete(move.client)
            hidden.drop(
                requests=[m.client for m in (*early, *every) if m.path in OF_HOST],
                answers=[m.backend.reverse for m in (*early, *every) if m.path in SEEN_BY_STACK],
            )
        except BaseException:
            set_cutover(maps, Cutover.NONE)
            raise
        done = hooks.detach_all()
        report.detached = done.detached + sockets.detach(Pins(name))
        report.errors = list(map(str, done.errors))
        wait_for_running_programs()
    pins.unload(Pins(name))
    return report


def _hand_over(batch: Sequence[Move], hidden: Untracked, table: Conntrack, report: Report) -> None:
    """Let netfilter know these connections; our programs go on translating both directions of them."""
    theirs = [move.passing for move in batch if move.passing]
    hidden.add(requests=theirs, answers=[one.reverse for one in theirs])
    for move in batch:
        _introduce(table, move, report)


def _introduce(table: Conntrack, move: Move, report: Report) -> None:
    """Let netfilter know a connection as one that it translates itself."""
    if move.passing:
        table.delete(move.passing)
        table.delete(move.passing.reverse)
    if move.reserving:
        table.delete(move.reserving)
    state, first = TcpState.ESTABLISHED, ""
    if move.state is FlowState.CLOSING:
        state = TcpState.CLOSE_WAIT
        first = "server" if move.signs & FlowSign.FIN_BACKEND else "client"
    create = functools.partial(
        table.create,
        move.client,
        _SECONDS[move.client.protocol, move.state],
        source=(move.backend.src, move.backend.sport),
        destination=(move.backend.dst, move.backend.dport),
        state=state,
        closed_first=first,
        tags=move.tags,
    )
    # In its place may be one of before, from the same port of the client: that has ended.
    if create() or (table.delete(move.client) and create()):
        report.moved[move.client.protocol.name, move.path.name.lower()] += 1
    else:
        report.left[TAKEN] += 1
