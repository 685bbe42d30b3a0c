# SPDX-License-Identifier: Apache-2.0
"""A small model of the data plane: the contract in a few dicts, to hold the real programs against.

It is written from the contract, not from the C: packets are taken apart and put together by Scapy, flows are
Python objects, and where the C may choose freely (which SNAT port) the model only checks that the choice was
a legal one. What must be equal on every node (which backend a hash names) it computes. Addresses are roles,
see tests/packets.py: the model knows no IP version but for the hash.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from typing import NamedTuple

from scapy.layers.inet import TCP
from scapy.layers.l2 import Ether
from scapy.packet import Packet

from lb.model import Protocol
from tests import options
from tests import packets as p
from tests.packet.model_types import (
    MASK,
    Expected,
    Flow,
    ModelBackend,
    ModelVip,
    Tuple5,
    World,
    chosen,
    hash_address,
    hash_words,
)
from tests.sctp import CHUNKS

TIME_WAIT = 60.0  # seconds
UDP_STREAM = 2.0  # seconds of answers
CLIENT_PORTS = range(1024, 32768)  # of clients that keep their address and lose their port
UNDONE_AT = {"inside": {"hairpin", "forward"}, "outside": {"forward"}, "out": {"stack"}}
"""The paths of the flows whose replies are translated where they enter, by side, or where they leave."""


class Model:
    """The data plane, as it should be. Every method takes the frame as bytes and gives an Expected."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = 0.0
        self.by_client: dict[Tuple5, Flow] = {}
        self.by_backend: dict[Tuple5, Flow] = {}  # keyed by the reply's tuple
        self.opened: set[str] = set()  # Services through which a connection was opened, ever
        self.affinity: dict[tuple[IPv4Address, str], tuple[ModelBackend, int, float]] = {}

    def ingress(self, frame: bytes, side: str, chosen_port: Callable[[], int]) -> Expected:
        """A frame that enters from a pod (side "inside") or an uplink ("outside").

        chosen_port gives the source port that the programs chose, when they had to choose one.
        """
        return _whatever_options(frame, lambda plain: self._ingress(plain, side, chosen_port))

    def _ingress(self, frame: bytes, side: str, chosen_port: Callable[[], int]) -> Expected:
        t = tuple_of(frame)
        reply = self.by_backend.get(t)
        if t.dport in self.world.snat_ports and reply and reply.path in UNDONE_AT[side]:
            return self._known(frame, reply, "backend", "REPLY")
        vip = self.world.vips.get((t.dst, t.dport, t.protocol))
        if vip is None and (lingering := self.world.gone.get((t.dst, t.dport, t.protocol))):
            return self._through_what_lingers(frame, t, lingering)
        if vip is None:
            whole = self.world.addresses.get(t.dst)
            if whole and whole.cluster_ip:
                return rejected(frame, "REJECT_UNKNOWN_PORT")
            return Expected("pass", frame, "NOT_VIP")
        flow = self.by_client.get(t)
        if flow and self._usable(frame, flow):
            return self._known(frame, flow, "client", "FLOW_HIT")
        if flow:
            self._forget(flow)
        return self._refusal(t.src, vip, side, frame) or self._new(frame, t, vip, side, chosen_port)

    def _through_what_lingers(self, frame: bytes, t: Tuple5, vip: ModelVip) -> Expected:
        """A packet for a VIP that its Service has no more: open connections go on."""
        flow = self.by_client.get(t)
        if flow and self._usable(frame, flow):
            return self._known(frame, flow, "client", "FLOW_HIT")
        if flow:
            self._forget(flow)
        return (
            rejected(frame, "REJECT_UNKNOWN_PORT") if vip.cluster_ip else Expected("pass", frame, "NOT_VIP")
        )

    def ping(self, frame: bytes, side: str) -> Expected:
        """An echo request that enters."""
        return _whatever_options(frame, lambda plain: self._ping(plain, side))

    def _ping(self, frame: bytes, side: str) -> Expected:
        asked = p.l3(frame)
        vip = self.world.addresses.get(IPv4Address(p.role(asked.dst)))
        if vip is None:
            return Expected("pass", frame, "NOT_VIP")
        answer = Expected("send", p.echo_reply_for(frame), "PING")
        return self._refusal(IPv4Address(p.role(asked.src)), vip, side, frame) or answer

    def later_fragment(self, first: str, to: IPv4Address, xdp: bool) -> str:
        """The reason of a later fragment that enters; first: that of its first, which was not translated."""
        if first != "NOT_VIP":
            return "STRAY_FRAGMENT"
        if xdp:
            return "TO_TC" if to in self.world.addresses else "FRAGMENT"
        return "NOT_VIP" if to in self.world.addresses or to == self.world.node_address else "FRAGMENT"

    def error(
        self, link: Packet, header: Packet, kind: str, about: bytes, length: int, side: str
    ) -> Expected:
        """An ICMP error that enters, or that leaves ("out"): its headers, the frame that it is about, and how
        much of that frame's packet it quotes behind the IP header. It changes no flow."""
        t = tuple_of(about).reversed()
        flow, sender = self.by_backend.get(t), "backend"
        if flow is None or flow.path not in UNDONE_AT[side]:
            flow, sender = (self.by_client.get(t) if side != "out" else None), "client"
        if flow is None:
            frame = p.icmp_error(link, header, kind, p.quote(about, length))
            return Expected("pass", frame, "NOT_VIP")
        to = flow.backend_side if sender == "client" else flow.client_side.reversed()
        known = p.rebuilt(about, src=(str(to.dst), to.dport), dst=(str(to.src), to.sport))
        source = IPv4Address(p.role(header.src))
        if source == t.src or (sender == "client" and flow.path != "stack"):
            source = to.src
        ours = flow.path != "stack"
        out = p.ip(str(source), str(to.dst), ttl=63 if ours else 64)
        frame = p.icmp_error(self._link(link, to, flow.path), out, kind, p.quote(known, length))
        return Expected("send" if ours else "pass", frame, "ICMP_ERROR")

    def egress(self, frame: bytes) -> Expected:
        """A frame that leaves, to a pod or out of an uplink."""
        return _whatever_options(frame, self._egress)

    def _egress(self, frame: bytes) -> Expected:
        flow = self.by_backend.get(tuple_of(frame))
        if flow is None or flow.path not in UNDONE_AT["out"]:
            return Expected("pass", frame, "NOT_VIP")
        if flow.state == "closed" and signals(frame) >= {"S", "A"}:
            self._forget(flow)
            return Expected("pass", frame, "NOT_VIP")
        return self._known(frame, flow, "backend", "REPLY")

    def _usable(self, frame: bytes, flow: Flow) -> bool:
        if flow.client_side.protocol is not Protocol.UDP:
            if signals(frame) & {"S", "A"} != {"S"}:
                return True
            if flow.state == "closed":
                return False
        alive = self.world.backends.get((flow.service, flow.backend)) == flow.incarnation
        return alive and not self._expired(flow)

    def _expired(self, flow: Flow) -> bool:
        timeouts = self.world.timeouts
        if flow.client_side.protocol is Protocol.UDP:
            limit = timeouts.udp_new if flow.state == "new" else timeouts.udp
        else:
            sctp = flow.client_side.protocol is Protocol.SCTP
            established = timeouts.sctp if sctp else timeouts.tcp_established
            limit = {"new": timeouts.tcp_syn, "established": established}.get(
                flow.state, timeouts.tcp_closing
            )
        return self.now - flow.last_seen > limit

    def _held(self, flow: Flow) -> bool:
        """Whether its port is another flow's last choice, at the best."""
        tcp = flow.client_side.protocol is Protocol.TCP
        time_wait = tcp and not flow.resets and flow.fins == {"client", "backend"}
        return not self._expired(flow) or (time_wait and self.now - flow.last_seen < TIME_WAIT)

    def _completes(self, frame: bytes, sender: str, flow: Flow) -> bool:
        """Whether the packet shows that both sides of a half-open flow get what the other one sends."""
        if flow.client_side.protocol is Protocol.UDP:
            return flow.answered and (sender == "client" or self.now - flow.last_seen > UDP_STREAM)
        said, numbers = signals(frame), numbers_of(frame)
        if said & {"S", "R"}:
            return False
        if sender == "client":
            return flow.answered and "A" in said and numbers.shown == flow.secret
        return flow.met_late or numbers.has_data

    def _shake_hands(self, frame: bytes, sender: str, flow: Flow) -> None:
        if self._completes(frame, sender, flow):
            flow.half_open = flow.answered = False
            self._confirm(flow)
        elif sender == "backend" and flow.client_side.protocol is Protocol.UDP:
            flow.answered = True
        elif sender == "backend" and signals(frame) >= {"S", "A"}:
            flow.answered, flow.secret = True, numbers_of(frame).secret

    def _confirm(self, flow: Flow) -> None:
        """What is remembered of a client begins anew when its connection is established."""
        t = flow.client_side
        vip = self.world.vips.get((t.dst, t.dport, t.protocol))
        if vip and vip.affinity_seconds:
            backend, incarnation, _ = self.affinity.get(
                (t.src, vip.service), (flow.backend, flow.incarnation, 0.0)
            )
            self.affinity[t.src, vip.service] = (backend, incarnation, self.now)

    def _advance(self, frame: bytes, sender: str, flow: Flow) -> None:
        if flow.half_open:
            self._shake_hands(frame, sender, flow)
        said = signals(frame)
        if "R" in said:
            flow.resets |= {sender}
        else:  # who goes on after his own reset has not sent it
            flow.resets -= {sender}
        if "F" in said:
            flow.fins |= {sender}
        if flow.resets or flow.fins == {"client", "backend"}:
            flow.state = "closed"
        elif flow.fins:
            flow.state = "closing"
        else:
            flow.state = "new" if flow.half_open else "established"

    def _known(self, frame: bytes, flow: Flow, sender: str, reason: str) -> Expected:
        before = replace(flow)
        self._advance(frame, sender, flow)
        if not (flow.answered and sender == "backend" and flow == before):
            flow.last_seen = self.now
        to = flow.backend_side if sender == "client" else flow.client_side.reversed()
        return self._send(frame, to, flow.path, reason)

    def _link(self, link: Packet, to: Tuple5, path: str) -> Packet:
        """The link header of a packet that we send, or that goes on."""
        if path == "stack":
            return link
        if path == "hairpin":
            return p.ether(link.dst, link.src)
        mac = self.world.next_hop(to.dst)
        assert mac is not None
        return p.ether(self.world.node_mac, mac)

    def _send(self, frame: bytes, to: Tuple5, path: str, reason: str) -> Expected:
        src, dst, ttl = (str(to.src), to.sport), (str(to.dst), to.dport), p.hops(frame)
        if path == "stack":
            return Expected("pass", p.rebuilt(frame, src=src, dst=dst), reason)
        if ttl <= 1:
            answer = p.time_exceeded_for(frame, str(self.world.node_address))
            return Expected("send", answer, "TTL_EXPIRED")
        link = self._link(Ether(frame), to, path)
        return Expected("send", p.rebuilt(frame, link=link, src=src, dst=dst, ttl=ttl - 1), reason)

    def _refusal(self, client: IPv4Address, vip: ModelVip, side: str, frame: bytes) -> Expected | None:
        """What becomes of a client to whom nobody is offered."""
        if vip.allowed and not any(client in network for network in vip.allowed):
            return Expected("drop", None, "SOURCE_NOT_ALLOWED")
        if vip.rows[side]:
            return None
        if vip.usable:
            return Expected("drop", None, "NO_LOCAL_ENDPOINT")
        return rejected(frame, "REJECT_NO_ENDPOINT")

    def _pick(self, t: Tuple5, vip: ModelVip, rows: tuple[ModelBackend, ...]) -> ModelBackend:
        if not vip.affinity_seconds:
            return chosen(rows, t.hash())
        kept = self.affinity.get((t.src, vip.service))
        if (
            kept is not None
            and kept[0] in rows
            and self.now - kept[2] < vip.affinity_seconds
            and self.world.backends.get((vip.service, kept[0])) == kept[1]
        ):
            backend = kept[0]
        else:
            period = 0  # the test lets the time of day begin with every packet
            backend = chosen(rows, hash_words(hash_words(hash_address(t.src), 0, 0), period, 0))
        incarnation = self.world.backends[vip.service, backend]
        self.affinity[t.src, vip.service] = (backend, incarnation, self.now)
        return backend

    def _new(
        self, frame: bytes, t: Tuple5, vip: ModelVip, side: str, chosen_port: Callable[[], int]
    ) -> Expected:
        backend = self._pick(t, vip, vip.rows[side])
        source, path, reason = t.src, "stack", "NEW_LOCAL" if backend.local else "NEW_REMOTE"
        if side == "inside" and backend.address == t.src:
            source, path, reason = self.world.node_address, "hairpin", "NEW_HAIRPIN"
        elif side == "outside" and not backend.local:
            if self.world.next_hop(backend.address) is None:
                return Expected("drop", None, "NO_ROUTE")
            source, path = self.world.node_address, "forward"
        sport = p.moved(t.sport, t.protocol) if path == "stack" else t.sport
        to = Tuple5(source, backend.address, sport, backend.port, t.protocol)
        holder = self.by_backend.get(to.reversed())
        taken = holder is not None and holder.client_side != t and self._held(holder)
        if path != "stack" or taken:
            to = replace(to, sport=chosen_port())
            ports = CLIENT_PORTS if path == "stack" else self.world.snat_ports
            assert to.sport in ports, f"source port {to.sport} is not in the range {ports}"
            holder = self.by_backend.get(to.reversed())
            if holder is not None and holder.client_side != t:
                gives_up = path != "stack" and holder.half_open
                assert gives_up or self._expired(holder), f"{to} is shared with {holder.client_side}"
        if holder is not None:
            self._forget(holder)
        incarnation = self.world.backends[vip.service, backend]
        flow = Flow(t, to, vip.service, backend, incarnation, path, last_seen=self.now)
        flow.met_late = t.protocol is not Protocol.UDP and "S" not in signals(frame)
        self._advance(frame, "client", flow)
        self.by_client[t] = self.by_backend[to.reversed()] = flow
        if t.protocol is Protocol.UDP or "S" in signals(frame):
            self.opened.add(vip.service)
        return self._send(frame, to, path, reason)

    def _forget(self, flow: Flow) -> None:
        for flows, key in (
            (self.by_client, flow.client_side),
            (self.by_backend, flow.backend_side.reversed()),
        ):
            if flows.get(key) is flow:
                del flows[key]


def _whatever_options(frame: bytes, without: Callable[[bytes], Expected]) -> Expected:
    """What becomes of a frame with options: the same as without."""
    plain, extra = options.out_of(frame)
    expected = without(plain)
    if not extra.size or expected.packet is None:
        return expected
    return replace(expected, packet=options.answer_with(expected.packet, plain, extra))


def tuple_of(frame: bytes) -> Tuple5:
    """Return the packet's 5-tuple, in roles."""
    head = p.l3(frame)
    sport, dport = struct.unpack_from("!HH", bytes(head.payload))
    src, dst = (IPv4Address(p.role(address)) for address in (head.src, head.dst))
    return Tuple5(src, dst, sport, dport, Protocol(p.protocol(frame)))


def signals(frame: bytes) -> frozenset[str]:
    """Return what a packet says of its connection: flags of TCP, or what a chunk of SCTP means."""
    head = p.l3(frame)
    if TCP in head:
        return frozenset(str(head[TCP].flags))
    if p.protocol(frame) != Protocol.SCTP:
        return frozenset()
    chunk = bytes(head.payload)[12]
    words = {"INIT": "S", "INIT ACK": "SA", "ABORT": "R", "SHUTDOWN COMPLETE": "R"}
    return frozenset(next((word for name, word in words.items() if CHUNKS[name] == chunk), "A"))


class Numbers(NamedTuple):
    """What a packet of TCP or SCTP carries to show that its sender gets the other side's packets.

    secret: what only who gets this packet knows: its sequence number + 1; INIT ACK's tag. shown: the secret
    of the other side, as the sender knows it: the acknowledgement number; the verification tag. has_data:
    beyond the header that every packet has.
    """

    secret: int
    shown: int
    has_data: bool


def numbers_of(frame: bytes) -> Numbers:
    """Return a packet's numbers."""
    head = p.l3(frame)
    if TCP in head:
        return Numbers((head[TCP].seq + 1) & MASK, head[TCP].ack, bool(bytes(head[TCP].payload)))
    packet = bytes(head.payload)
    initiated = int.from_bytes(packet[16:20], "big") if packet[12] == CHUNKS["INIT ACK"] else 0
    return Numbers(initiated, int.from_bytes(packet[4:8], "big"), True)


def rejected(frame: bytes, reason: str) -> Expected:
    """The answer of a VIP where nobody is: RST (RFC 9293, 3.10.7.1) or ICMP (RFC 1122, 4.1.3.1)."""
    if p.protocol(frame) == Protocol.TCP:
        if "R" in signals(frame):
            return Expected("drop", None, "REJECT_UNANSWERED")
        return Expected("send", p.reset_for(frame), reason)
    ping = p.protocol(frame) not in (Protocol.UDP, Protocol.SCTP)
    error = "host unreachable" if ping else "port unreachable"
    return Expected("send", p.icmp_error_for(frame, p.l3(frame).dst, error), reason)
