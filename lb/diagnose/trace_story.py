# SPDX-License-Identifier: Apache-2.0
"""What became of a packet and why, step by step: from evidence to words. Pure: no map is read here."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from lb.datapath.programs.rehearsal import Outcome, Verdict
from lb.datapath.view.lookups import Affinity, Flow, Vip
from lb.datapath.view.words import NEW_FLOW, ShownBackend, protocol_name
from lb.model import FiveTuple, socket_text


class Side(StrEnum):
    """Where a packet comes from, as traffic policies see it."""

    OUTSIDE = "outside"
    INSIDE = "inside"
    HOST = "host"
    LEAVING = "leaving"


_FROM = {
    Side.OUTSIDE: "from outside",
    Side.INSIDE: "from a pod of this node",
    Side.HOST: "from this node itself",
}


@dataclass(frozen=True, slots=True)
class Hop:
    """One program that the packet went through; at: the hook's kind, as ``"tc ingress"``."""

    interface: str
    at: str
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Evidence:
    """All that is known of one packet's way.

    before, after, changed: the packet in a line, and the fields that differ as (name, before, after). after
    is empty when it was dropped. packet: None when it has no addresses that Services go by; sent: the same
    of what came out. vip, address, flow, reply, affinity are what the maps said before: the VIP, the Service
    address as a whole, the flows that have the packet as request and as reply, the client's backend. made:
    the flow as it is afterwards. notes: what else to know. pods: ``namespace/name`` by ``address:port``, of
    those backends of flow and made whose pods are known.
    """

    before: str
    after: str
    changed: tuple[tuple[str, str, str], ...]
    side: Side
    hops: tuple[Hop, ...]
    packet: FiveTuple | None = None
    sent: FiveTuple | None = None
    vip: Vip | None = None
    address: Vip | None = None
    flow: Flow | None = None
    reply: Flow | None = None
    affinity: Affinity | None = None
    made: Flow | None = None
    notes: tuple[str, ...] = ()
    pods: Mapping[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> Outcome:
        """What the last program did."""
        return self.hops[-1].outcome


@dataclass(frozen=True, slots=True)
class Step:
    """One step of a story."""

    step: str
    text: str


_NO_TUPLE = frozenset(
    {
        "NOT_IP",
        "VLAN",
        "MALFORMED",
        "IP_OPTIONS",
        "FRAGMENT",
        "STRAY_FRAGMENT",
        "FRAGMENT_HELD",
        "OTHER_PROTOCOL",
    }
)
_UNREAD = _NO_TUPLE | {"MARTIAN", "NOT_FOR_US", "ICMP_ERROR"}
"""Reasons of packets whose tuple was not gone by."""
_BEFORE_SELECTION = frozenset(
    {"SOURCE_NOT_ALLOWED", "REJECT_NO_ENDPOINT", "REJECT_UNANSWERED", "NO_LOCAL_ENDPOINT"}
)


def tell(e: Evidence) -> list[Step]:
    """Return the story in the order of the data plane's work (bpf/lb.h)."""
    return [Step(step, text) for step, text in _tell(e)]


def _tell(e: Evidence) -> Iterator[tuple[str, str]]:
    for note in e.notes:
        yield "note", note
    for hop in e.hops:
        more = "" if hop is e.hops[-1] else f": {hop.outcome.reason} ({hop.outcome.meaning})"
        yield "program", f"{hop.outcome.program} at {hop.interface}, {hop.at}{more}"
    if e.packet is not None and e.outcome.reason not in _UNREAD:
        if e.outcome.reason == "REPLY" or (e.side is Side.LEAVING and e.vip is None):
            yield from _reply(e, e.packet)
        else:
            yield from _request(e, e.packet)
    yield "verdict", f"{_verdict(e)}: {e.outcome.reason} ({e.outcome.meaning})"


def _reply(e: Evidence, packet: FiveTuple) -> Iterator[tuple[str, str]]:
    if e.reply is None:
        yield "flow", f"none that has {packet.client} answering {packet.target}"
        return
    flow = e.reply
    yield "flow", f"the reply of {flow.client} > {flow.vip}, {_state(flow)}"
    if e.outcome.reason == "REPLY":
        yield "NAT", _nat(e, packet)


def _request(e: Evidence, packet: FiveTuple) -> Iterator[tuple[str, str]]:
    reason = e.outcome.reason
    if e.vip is None:
        yield "VIP", _no_vip(e, packet)
        if e.address is None:
            return
        if packet.dport == 0 and e.address is not None:
            yield from _policy(e, packet, e.address)
        return
    vip = e.vip
    port = f", port {vip.port_name}" if vip.port_name else ""
    yield "VIP", f"{packet.target}/{protocol_name(packet.protocol)} is a {vip.kind} of {vip.service}{port}"
    if reason == "NOT_VIP":
        return
    if reason == "FLOW_HIT" and e.flow is not None:
        yield "flow", f"known, {_state(e.flow)}: goes on as it went"
        yield "backend", _backend(e, e.flow.backend)
        yield "NAT", _nat(e, packet)
        return
    yield "flow", _why_new(e)
    yield from _policy(e, packet, vip)
    if reason in _BEFORE_SELECTION:
        return
    yield from _selection(e, packet, vip)
    if e.made is not None and reason in NEW_FLOW:
        yield "backend", _backend(e, e.made.backend)
        yield "NAT", _nat(e, packet)


def _no_vip(e: Evidence, packet: FiveTuple) -> str:
    name = protocol_name(packet.protocol)
    if e.address is None:
        what = str(packet.dst) if packet.dport == 0 else f"{packet.target}/{name}"
        return f"no Service has {what}"
    if packet.dport == 0:
        return f"{packet.dst} is a {e.address.kind} of {e.address.service}"
    return (
        f"{packet.dst} is a {e.address.kind} of {e.address.service}, which has no port {packet.dport}/{name}"
    )


def _why_new(e: Evidence) -> str:
    if e.flow is None:
        return "none known: a new connection"
    flow = e.flow
    if flow.state == "closed":
        why = "is closed"
    elif flow.over:
        why = "has been idle for too long"
    else:
        why = "has lost its backend"
    return f"the one of before {why} ({_state(flow)}, {flow.backend.address}): selected afresh"


def _policy(e: Evidence, packet: FiveTuple, vip: Vip) -> Iterator[tuple[str, str]]:
    if vip.ranges:
        verb = "is not among" if e.outcome.reason == "SOURCE_NOT_ALLOWED" else "is among"
        yield "source", f"{packet.src} {verb} loadBalancerSourceRanges {', '.join(vip.ranges)}"
        if e.outcome.reason == "SOURCE_NOT_ALLOWED":
            return
    side = Side.INSIDE if e.side is Side.LEAVING else e.side
    field = ""
    if vip.kind == "clusterIP":
        field = "internalTrafficPolicy"
    elif side is Side.OUTSIDE:
        field = "externalTrafficPolicy"
    where = _FROM[side]
    policy = f"{where}, {field} {'Local' if vip.local else 'Cluster'}" if field else where
    if vip.offered:
        yield "policy", f"{policy}: {_count(vip.offered)} offered"
    elif vip.usable:
        yield "policy", f"{policy}: no endpoint on this node, though there are some on others"
    else:
        yield "policy", f"{policy}: the Service has no endpoint to offer, on any node"


def _count(backends: int) -> str:
    return "1 backend is" if backends == 1 else f"{backends} backends are"


def _selection(e: Evidence, packet: FiveTuple, vip: Vip) -> Iterator[tuple[str, str]]:
    of = "of addresses, ports and protocol"
    if vip.affinity_seconds:
        kept = e.affinity
        if kept is not None and not kept.unfit:
            yield (
                "affinity",
                f"{packet.src} keeps {kept.backend.address}, as {kept.idle_seconds} s ago"
                f" (for {vip.affinity_seconds} s)",
            )
            return
        had = (
            f"{packet.src} had {kept.backend.address}, but {kept.unfit}"
            if kept
            else f"{packet.src} has none yet"
        )
        yield "affinity", f"{had}; what is chosen now it keeps for {vip.affinity_seconds} s"
        of = "of the client's address alone"
    if vip.table:
        yield "hash", f"{of}: a row of a Maglev table of {vip.rows} for {vip.offered} backends"
    else:
        weighted = ", by weight" if vip.weighted else ""
        yield "hash", f"{of}: rendezvous among {vip.offered}{weighted}"


def _state(flow: Flow) -> str:
    return f"{flow.state}, idle for {flow.idle_seconds} s"


def _backend(e: Evidence, backend: ShownBackend) -> str:
    if backend.state == "free":
        return f"{backend.address or 'its slot'}, which is gone: the connection is the peers' to end"
    where = "this node" if backend.local else "another node"
    node = f"{backend.node}, {where}" if backend.node else "no node that is named"
    pod = e.pods.get(backend.address, "")
    return f"{backend.address}{f' ({pod})' if pod else ''} on {node}, {backend.state}"


def _nat(e: Evidence, packet: FiveTuple) -> str:
    if e.sent is None:
        return "none: the packet did not come out"
    flow = e.made or e.flow
    if flow is not None and flow.path == "direct" and e.sent.target != packet.target:
        return (
            f"none here: as it came, encapsulated from {e.sent.client} to {e.sent.target}, whose node does it"
        )
    parts = []
    for name, old, new in (
        ("destination", packet.target, e.sent.target),
        ("source", packet.client, e.sent.client),
    ):
        parts.append(f"{name} {old} becomes {new}" if old != new else f"{name} {old} stays")
    return "; ".join(parts)


def _verdict(e: Evidence) -> str:
    outcome, hop = e.outcome, e.hops[-1]
    if outcome.verdict is Verdict.DROP:
        return "dropped"
    if outcome.verdict is Verdict.HELD:
        return "held back"
    if outcome.verdict is Verdict.PASS:
        if outcome.reason == "TO_TC":
            return "left to tc, but no program of ours is there"
        return (
            f"leaves by {hop.interface}"
            if e.side in (Side.LEAVING, Side.HOST)
            else "on to the kernel's stack"
        )
    if outcome.reason in NEW_FLOW or outcome.reason in ("FLOW_HIT", "REPLY", "ICMP_ERROR"):
        path = (e.made or e.flow or e.reply or _NO_FLOW).path
        return {
            "hairpin": f"back out of {hop.interface}, to the pod itself",
            "redirect": "along the route, past the kernel's stack",
        }.get(path, "sent along the route by the program")
    return f"answered by the program, back out of {hop.interface}"


_NO_FLOW = Flow("", "", ShownBackend(0, "", "", False, ""), "", "", "", 0.0, False)


def as_dict(e: Evidence, reply: Evidence | None = None) -> dict[str, Any]:
    """Return evidence and story as the JSON form has them; reply: those of the backend's answer."""
    fields: dict[str, Any] = {
        "before": e.before,
        "after": e.after or None,
        "changed": [dict(zip(("field", "before", "after"), one, strict=True)) for one in e.changed],
        "side": e.side.value,
        "hops": [
            {
                "interface": hop.interface,
                "hook": hop.outcome.hook,
                "at": hop.at,
                "program": hop.outcome.program,
                "verdict": hop.outcome.verdict.value,
                "reason": hop.outcome.reason,
                "meaning": hop.outcome.meaning,
            }
            for hop in e.hops
        ],
        "packet": _tuple(e.packet),
        "sent": _tuple(e.sent),
        **{
            name: None if found is None else asdict(found)
            for name, found in (
                ("vip", e.vip),
                ("address", e.address),
                ("flow_before", e.reply if e.outcome.reason == "REPLY" else e.flow),
                ("affinity_before", e.affinity),
                ("flow_after", e.made),
            )
        },
        "pods": dict(e.pods),
        "verdict": e.outcome.verdict.value,
        "reason": e.outcome.reason,
        "story": [asdict(step) for step in tell(e)],
    }
    if reply is not None:
        fields["reply"] = as_dict(reply)
    return fields


def _tuple(found: FiveTuple | None) -> Mapping[str, Any] | None:
    if found is None:
        return None
    return {
        "protocol": protocol_name(found.protocol),
        "source": socket_text(found.src, found.sport) if found.sport else str(found.src),
        "destination": socket_text(found.dst, found.dport) if found.dport else str(found.dst),
    }


def render(e: Evidence) -> str:
    """Return the story as text: the packet, an indented line for each step, and what came out."""
    rows = [(one.step, one.text) for one in tell(e)]
    if e.after and e.after != e.before:
        rows.append(("after", e.after))
    rows += [
        ("changed" if not at else "", f"{name} {old} > {new}")
        for at, (name, old, new) in enumerate(e.changed)
    ]
    if not e.changed and e.outcome.verdict is not Verdict.DROP and e.after == e.before:
        rows.append(("after", "as it came"))
    return f"{e.before}\n" + "".join(f"  {step:<9} {text}\n" for step, text in rows)
