# SPDX-License-Identifier: Apache-2.0
"""Try packets on the live data plane, and gather the evidence of what became of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from lb.datapath.maps.layouts import Direction
from lb.datapath.programs.rehearsal import Outcome, Shadow, Verdict
from lb.datapath.view.lookups import Flow, Witness
from lb.diagnose import frames
from lb.diagnose.trace_story import Evidence, Hop, Side
from lb.model import FiveTuple


@dataclass(frozen=True, slots=True)
class EntryPoint:
    """Where a packet meets the data plane.

    hooks: the programs there in the order in which they run, XDP before tc, each with its hook's kind.
    came_in: for packets that leave, the interface that they came in by; 0: a process of the node sent it.
    """

    interface: str
    ifindex: int
    mac: str
    side: Side
    hooks: tuple[tuple[str, str], ...]
    came_in: int = 0


@dataclass(frozen=True, slots=True)
class Traced:
    """The evidence of one packet, and the frames: after is empty when it was dropped."""

    evidence: Evidence
    before: bytes
    after: bytes


def run(shadow: Shadow, entry: EntryPoint, frame: bytes, notes: Sequence[str] = ()) -> Traced:
    """Let a frame go through the programs of an entry, and gather what they saw and did.

    Raises BpfError, DatapathError: the kernel would not run it.
    """
    witness, packet, now = Witness(shadow.maps), frames.read(frame), time.monotonic_ns()
    outside = entry.side is Side.OUTSIDE
    vip = witness.vip(packet, outside=outside) if packet and packet.dport else None
    address = witness.address(packet, outside=outside) if packet and vip is None else None
    flow = _flow(witness, packet, Direction.FORWARD, now)
    reply = _flow(witness, packet, Direction.REPLY, now)
    affinity = witness.affinity(packet.src, vip, now) if packet and vip and vip.affinity_seconds else None
    hops: list[Hop] = []
    outcome: Outcome | None = None
    for program, at in entry.hooks:
        outcome = shadow.run(program, frame, ifindex=entry.ifindex, came_in=entry.came_in)
        hops.append(Hop(entry.interface, at, outcome))
        # XDP passes on what it left alone, and what it has translated: the tc program then sees that.
        if outcome.verdict is not Verdict.PASS or outcome.reason != "TO_TC":
            break
    assert outcome is not None
    after = b"" if outcome.verdict is Verdict.DROP else outcome.frame
    sent = frames.read(after) if after else None
    evidence = Evidence(
        frames.summary(frame),
        frames.summary(after) if after else "",
        tuple(frames.changes(frame, after)) if after else (),
        entry.side,
        tuple(hops),
        packet,
        sent,
        vip,
        address,
        flow,
        reply,
        affinity,
        _flow(witness, packet, Direction.FORWARD, time.monotonic_ns()) if vip else None,
        tuple(notes),
    )
    return Traced(evidence, frame, after)


def _flow(witness: Witness, packet: FiveTuple | None, direction: Direction, now: int) -> Flow | None:
    return witness.flow(packet, direction, now) if packet and packet.dport else None
