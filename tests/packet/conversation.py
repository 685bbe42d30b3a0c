# SPDX-License-Identifier: Apache-2.0
"""A client talks to a VIP and its backend answers, by hand: every packet that comes out is compared whole."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
from scapy.packet import Packet

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import (
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_POD_IN,
    TC_POD_OUT,
    TC_UPLINK_OUT,
    Datapath,
    Result,
)
from tests.packet.plans import TARGET_PORT, VIPS

LOCAL_NET, REMOTE_NET = "10.0.1.", "10.0.2."
SCTP_WORDS = {"S": "INIT", "SA": "INIT ACK", "A": "DATA", "R": "ABORT", "RA": "ABORT"}
"""What begins, goes on and ends an association, where TCP has flags."""


@dataclass(frozen=True)
class Path:
    """One way through the programs: where each side's packets come in, and where its backends are.

    forwarded: the node sends on by itself, in its own name; else the stack does, and the backend sees the
    client.
    """

    name: str
    client: str
    link: Packet
    ingress: str
    answer_link: Packet
    egress: str
    net: str
    forwarded: bool = False

    def backends(self, first: int, count: int) -> tuple[str, ...]:
        """Return addresses of this path's backends."""
        return tuple(f"{self.net}{host}" for host in range(first, first + count))


PATHS = [
    Path("pod-here", p.POD_CLIENT, p.FROM_POD, TC_POD_IN, p.TO_POD, TC_POD_OUT, LOCAL_NET),
    Path("pod-away", p.POD_CLIENT, p.FROM_POD, TC_POD_IN, p.TO_POD, TC_POD_OUT, REMOTE_NET),
]
for program in OUTSIDE_INGRESS:
    PATHS += [
        Path(f"here-{program}", p.CLIENT, p.FROM_CLIENT, program, p.TO_CLIENT, TC_UPLINK_OUT, LOCAL_NET),
        Path(f"away-{program}", p.CLIENT, p.FROM_CLIENT, program, p.FROM_NODE2, program, REMOTE_NET, True),
    ]

each_path = pytest.mark.parametrize("path", PATHS, ids=lambda path: path.name)


class Conversation:
    """One 5-tuple's packets, both ways.

    backend is where the last packet to the VIP went, seen the (address, port) that this backend answers to.
    """

    def __init__(
        self,
        datapath: Datapath,
        path: Path,
        port: int = p.CLIENT_PORT,
        protocol: Protocol = Protocol.TCP,
        kind: VipKind = VipKind.LOAD_BALANCER,
        client: str = "",
    ) -> None:
        self._datapath, self._path, self._protocol = datapath, path, protocol
        self._client = (client or path.client, port)
        self._vip = VIPS[kind]
        self.backend = ""
        self.seen = ("", 0)

    def send(self, flags: str = "S", **fields: Any) -> str:
        """Send a packet to the VIP and return the counted reason; flags are of TCP."""
        path, frame = self._path, self.request(flags, **fields)
        result = self._datapath.run(path.ingress, frame)
        assert result.verdict == (SEND if path.forwarded else PASS), result
        self.backend, self.seen = destination(result), source(result)
        way = {"link": p.TO_NODE2, "ttl": 63} if path.forwarded else {}
        out = p.rebuilt(frame, src=self.seen, dst=(self.backend, TARGET_PORT), **way)
        p.assert_same(result.packet, out)
        return result.reason

    def establish(self) -> None:
        """Complete the handshake, or make it a conversation."""
        self.send()
        self.answer()
        self.send("A")

    def try_to_send(self, flags: str = "S", **fields: Any) -> Result:
        """Send a packet to the VIP, whatever becomes of it."""
        return self._datapath.run(self._path.ingress, self.request(flags, **fields))

    def request(self, flags: str = "S", **fields: Any) -> bytes:
        """Return a packet to the VIP."""
        return self._frame(self._path.link, self._client, self._vip, flags, fields)

    def answer(self, flags: str = "SA", **fields: Any) -> str:
        """Let the backend send a packet, which must reach the client as the VIP's; return the reason."""
        frame = self.reply(flags, **fields)
        result = self._datapath.run(self._path.egress, frame)
        way = {"link": p.TO_CLIENT, "ttl": 63} if self._path.forwarded else {}
        p.assert_same(result.packet, p.rebuilt(frame, src=self._vip, dst=self._client, **way))
        return result.reason

    def stray(self, flags: str = "SA", **fields: Any) -> str:
        """Let the backend send a packet that is nobody's reply: it must be left as it is."""
        frame = self.reply(flags, **fields)
        result = self._datapath.run(self._path.egress, frame)
        assert result.verdict == PASS
        p.assert_same(result.packet, frame)
        return result.reason

    def reply(self, flags: str = "SA", *, link: Packet | None = None, **fields: Any) -> bytes:
        """Return a packet of the backend as it comes to the node's programs; link: to another of them."""
        return self._frame(
            link or self._path.answer_link, (self.backend, TARGET_PORT), self.seen, flags, fields
        )

    def _frame(
        self, link: Packet, src: tuple[str, int], dst: tuple[str, int], flags: str, fields: dict[str, Any]
    ) -> bytes:
        if self._protocol is Protocol.UDP:
            return p.udp(link, src, dst, **fields)
        if self._protocol is Protocol.SCTP:
            return p.sctp(link, src, dst, SCTP_WORDS.get(flags, flags.replace("_", " ")), **fields)
        return p.tcp(link, src, dst, flags, **fields)


def destination(result: Result) -> str:
    """Return the destination address of what came out."""
    return p.role(p.addresses(result.packet)[1])


def source(result: Result) -> tuple[str, int]:
    """Return the source of what came out."""
    l4 = 14 + (20 if p.version() == 4 else 40)
    return p.role(p.addresses(result.packet)[0]), int.from_bytes(result.packet[l4 : l4 + 2], "big")
