# SPDX-License-Identifier: Apache-2.0
"""What the process tells of itself: peers, what each is told, and why one is not up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lb.announce.servable import Standing, Verdict
from lb.bgp.bird import NO_SESSION, SessionState
from lb.bgp.config import Route, protocol_name, shown
from lb.bgp.peers import Peer

NETSTAT = Path("/proc/net/netstat")
MD5 = ("TCPMD5NotFound", "TCPMD5Unexpected", "TCPMD5Failure")
SIGNED_WRONG_SECONDS = 60.0
"""For how long a segment with a wrong signature is a reason: TCP tries again after up to 32 s."""


def signature_failures(text: str) -> int:
    """Return how many segments the kernel dropped for their MD5 signature, from /proc/net/netstat."""
    lines = text.splitlines()
    for names, values in zip(lines[::2], lines[1::2], strict=False):
        if names.startswith("TcpExt:"):
            counted = dict(zip(names.split(), values.split(), strict=False))
            return sum(int(counted.get(name, "0")) for name in MD5)
    return 0


@dataclass(slots=True)
class PeerNow:
    """A peer, the state of its session and since when (seconds since the epoch), and what it is told.

    losses: how often the session has ended since this process began.
    """

    peer: Peer
    routes: Sequence[Route] = ()
    session: SessionState = NO_SESSION
    since: float = 0.0
    losses: int = 0

    def note(self, session: SessionState, now: float) -> None:
        """Take in how the session is."""
        if session.up != self.session.up or not self.since:
            self.losses += self.session.up
            self.since = now
        self.session = session

    def why(self, *, wrongly_signed: bool) -> str:
        """Return why the session is not up, ``""`` when it is."""
        if self.session.up:
            return ""
        told = [self.session.state or "not started", self.session.error]
        if wrongly_signed:
            told.append(
                "TCP segments with a wrong MD5 signature arrive and are dropped: does password_file hold the"
                " router's password?"
                if self.peer.password
                else "TCP segments with an MD5 signature arrive and are dropped: the router wants a password"
            )
        elif "Connection" in self.session.error or self.session.state in ("Connect", "Active"):
            told.append(
                f"is {self.peer.address} a router that knows this node, and its port {self.peer.port} open?"
            )
        return ": ".join(filter(None, told))


@dataclass(slots=True)
class SpeakerStatus:
    """How everything is now. Single attributes are replaced, by one thread; any may read.

    told: what the network is told of each address. errors: what is wrong with the file. problem: why the
    engine does not do what it should, ``""`` when it does. restarts: of the engine.
    """

    node: str = ""
    router_id: str = ""
    told: Sequence[Verdict] = ()
    peers: Mapping[str, PeerNow] = field(default_factory=dict)
    errors: Sequence[str] = ()
    problem: str = ""
    running: bool = False
    restarts: int = 0
    agent_answers: bool = False
    silent_seconds: float = 0.0
    wrongly_signed: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        by_address = {str(one.address): self._told_to(one) for one in self.told}
        return {
            "node": self.node,
            "router_id": self.router_id,
            "engine": {"running": self.running, "restarts": self.restarts, "problem": self.problem},
            "agent": {"answers": self.agent_answers, "silent_seconds": round(self.silent_seconds, 1)},
            "problems": self.problems(),
            "peers": [self._peer(each) for each in self.peers.values()],
            "addresses": [
                {
                    "address": str(one.address),
                    "kind": one.kind.value,
                    "standing": one.standing.value,
                    "why": one.why or self._untold(one, by_address),
                    "services": [str(key) for key in one.services],
                    "peers": by_address[str(one.address)],
                }
                for one in self.told
            ],
        }

    def _told_to(self, verdict: Verdict) -> list[str]:
        """Return the peers that have a route from this node to an address that it serves."""
        if verdict.standing is Standing.CANNOT:
            return []
        return [
            name
            for name, each in self.peers.items()
            if any(verdict.address in route.network for route in each.routes)
        ]

    def _peer(self, each: PeerNow) -> dict[str, Any]:
        exported = dict(each.session.exported)
        return {
            "name": each.peer.name,
            "address": str(each.peer.address),
            "asn": each.peer.asn,
            "protocol": protocol_name(each.peer.name),
            "up": each.session.up,
            "state": each.session.state,
            "since": each.since,
            "why": each.why(wrongly_signed=self.wrongly_signed),
            "losses": each.losses,
            "bfd": each.peer.bfd is not None,
            "told": {f"ipv{version}": exported.get(version, 0) for version in each.peer.versions},
            "addresses": [shown(route.network) for route in each.routes],
        }

    def _untold(self, verdict: Verdict, by_address: Mapping[str, list[str]]) -> str:
        if verdict.standing is Standing.CANNOT or by_address[str(verdict.address)]:
            return ""
        return "no entry of advertise, with a peer of this node, fits it"

    def problems(self) -> list[str]:
        """Return what is wrong, a line each."""
        found = list(self.errors)
        if self.problem:
            found.append(self.problem)
        if not self.agent_answers and self.silent_seconds:
            found.append(f"the agent has not answered for {self.silent_seconds:.0f} s: what was told stays")
        found += [
            f"peer {each.peer.name} ({each.peer.address}) is not up: {why}"
            for each in self.peers.values()
            if (why := each.why(wrongly_signed=self.wrongly_signed))
        ]
        return found
