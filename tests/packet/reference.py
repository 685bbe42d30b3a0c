"""A small model of the data plane: the contract in a few dicts, to hold the real programs against.

It is written from the contract, not from the C: packets are taken apart and put together by Scapy, flows are
Python objects, and where the C may choose freely (which SNAT port) the model only checks that the choice was
a legal one. What must be equal on every node (which backend a hash names) it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Network, ip_address

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from lb.model import Protocol
from lb.plan import SMALL_SET, weights
from tests import packets as p
from tests.packets import time_exceeded_for

SEED = 0x4C426374
MASK = 0xFFFFFFFF


def _rotate(word: int, bits: int) -> int:
    return ((word << bits) | (word >> (32 - bits))) & MASK


def hash_words(a: int, b: int, c: int) -> int:
    """The final mix of Bob Jenkins' lookup3, over three 32-bit words."""
    a, b, c = ((word + SEED) & MASK for word in (a, b, c))
    c = ((c ^ b) - _rotate(b, 14)) & MASK
    a = ((a ^ c) - _rotate(c, 11)) & MASK
    b = ((b ^ a) - _rotate(a, 25)) & MASK
    c = ((c ^ b) - _rotate(b, 16)) & MASK
    a = ((a ^ c) - _rotate(c, 4)) & MASK
    b = ((b ^ a) - _rotate(a, 14)) & MASK
    return ((c ^ b) - _rotate(b, 24)) & MASK


@dataclass(frozen=True)
class Tuple5:
    """A packet's addresses, ports and protocol."""

    src: IPv4Address
    dst: IPv4Address
    sport: int
    dport: int
    protocol: Protocol

    def reversed(self) -> Tuple5:
        return Tuple5(self.dst, self.src, self.dport, self.sport, self.protocol)

    def hash(self) -> int:
        return hash_words(
            int(self.src), (int(self.dst) + self.protocol) & MASK, self.sport << 16 | self.dport
        )


@dataclass(frozen=True)
class ModelBackend:
    """Where an endpoint is; two Service ports never share one."""

    address: IPv4Address
    port: int
    local: bool


@dataclass(frozen=True)
class ModelVip:
    """A VIP: its Service port, and for each side the backends of a small set, or of each row of a large one.

    usable: the Service port has an endpoint on some node. allowed: whose connections it takes; empty: all.
    """

    service: str
    affinity_seconds: int
    rows: Mapping[str, tuple[ModelBackend, ...]]
    usable: bool
    allowed: tuple[IPv4Network, ...] = ()


def chosen(rows: tuple[ModelBackend, ...], flow: int) -> ModelBackend:
    """Return where the hash of a flow leads: select_backend() of bpf/backend.h."""
    if len(rows) > SMALL_SET:
        return rows[flow * len(rows) >> 32]
    scores = []
    addresses = [ip_address(p.here(str(one.address))) for one in rows]
    identities = [(at.version, int(at), one.port) for at, one in zip(addresses, rows, strict=True)]
    for row, weight in enumerate(weights(identities)):
        mixed = (weight ^ flow) * 0x9E3779B97F4A7C15 % 2**64
        mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 % 2**64
        scores.append(mixed // SMALL_SET * SMALL_SET + row)
    return rows[max(scores) % SMALL_SET]


@dataclass
class Flow:
    """One connection, both directions: the packet as the client sends it, and as the backend gets it."""

    client_side: Tuple5
    backend_side: Tuple5
    service: str
    backend: ModelBackend
    incarnation: int  # of the backend, which may go and come back
    path: str  # stack | forward | hairpin
    state: str = "new"  # new | established | closing | closed
    fins: frozenset[str] = frozenset()
    resets: frozenset[str] = frozenset()
    last_seen: float = 0.0


@dataclass(frozen=True)
class Timeouts:
    """Seconds."""

    tcp_syn: float
    tcp_established: float
    tcp_closing: float
    udp_new: float
    udp: float


@dataclass(frozen=True)
class Expected:
    """What must become of a packet. packet None: dropped. reason: the counter that moves."""

    verdict: str  # pass | drop | send
    packet: bytes | None
    reason: str


@dataclass
class World:
    """What surrounds the programs: the node, its routes, its tables."""

    node_address: IPv4Address
    node_mac: str
    snat_ports: range
    timeouts: Timeouts
    neighbours: Mapping[IPv4Network, str]  # network -> MAC of the next hop, out of the uplink
    vips: dict[tuple[IPv4Address, int, Protocol], ModelVip] = field(default_factory=dict)
    backends: dict[tuple[str, ModelBackend], int] = field(default_factory=dict)  # alive: which time

    def next_hop(self, address: IPv4Address) -> str | None:
        return next((mac for network, mac in self.neighbours.items() if address in network), None)


class Model:
    """The data plane, as it should be. Every method takes the frame as bytes and gives an Expected."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.now = 0.0
        self.by_client: dict[Tuple5, Flow] = {}
        self.by_backend: dict[Tuple5, Flow] = {}  # keyed by the reply's tuple
        self.affinity: dict[tuple[IPv4Address, str], tuple[ModelBackend, int, float]] = {}

    def ingress(self, frame: bytes, side: str, chosen_port: Callable[[], int]) -> Expected:
        """A frame that enters from a pod (side "inside") or an uplink ("outside").

        chosen_port gives the source port that the programs chose, when they had to choose one.
        """
        packet = Ether(frame)
        t = tuple_of(packet)
        reply = self.by_backend.get(t)
        undone_here = "hairpin" if side == "inside" else "forward"
        if t.dport in self.world.snat_ports and reply and reply.path == undone_here:
            return self._known(packet, reply, "backend", "REPLY")
        vip = self.world.vips.get((t.dst, t.dport, t.protocol))
        if vip is None:
            return Expected("pass", frame, "NOT_VIP")
        flow = self.by_client.get(t)
        if flow and self._usable(packet, flow):
            return self._known(packet, flow, "client", "FLOW_HIT")
        if flow:
            self._forget(flow)
        return self._new(packet, t, vip, side, chosen_port)

    def egress(self, frame: bytes) -> Expected:
        """A frame that leaves, to a pod or out of an uplink."""
        packet = Ether(frame)
        flow = self.by_backend.get(tuple_of(packet))
        if flow is None or flow.path != "stack":
            return Expected("pass", frame, "NOT_VIP")
        if flow.state == "closed" and TCP in packet and packet[TCP].flags.S and packet[TCP].flags.A:
            self._forget(flow)
            return Expected("pass", frame, "NOT_VIP")
        return self._known(packet, flow, "backend", "REPLY")

    def _usable(self, packet: Packet, flow: Flow) -> bool:
        if TCP in packet:
            if not packet[TCP].flags.S or packet[TCP].flags.A:
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
            limit = {"new": timeouts.tcp_syn, "established": timeouts.tcp_established}.get(
                flow.state, timeouts.tcp_closing
            )
        return self.now - flow.last_seen > limit

    def _advance(self, packet: Packet, sender: str, flow: Flow) -> None:
        if sender == "backend" and flow.state == "new":
            flow.state = "established"
        if TCP not in packet:
            return
        if packet[TCP].flags.R:
            flow.resets |= {sender}
        else:  # who goes on after his own reset has not sent it
            flow.resets -= {sender}
        if packet[TCP].flags.F:
            flow.fins |= {sender}
        if flow.resets or flow.fins == {"client", "backend"}:
            flow.state = "closed"
        elif flow.fins:
            flow.state = "closing"
        elif flow.state == "closed":
            flow.state = "established"

    def _known(self, packet: Packet, flow: Flow, sender: str, reason: str) -> Expected:
        self._advance(packet, sender, flow)
        flow.last_seen = self.now
        to = flow.backend_side if sender == "client" else flow.client_side.reversed()
        return self._send(packet, to, flow.path, reason)

    def _send(self, packet: Packet, to: Tuple5, path: str, reason: str) -> Expected:
        out = translated(packet, to)
        if path == "stack":
            return Expected("pass", rebuilt(out), reason)
        if packet[IP].ttl <= 1:
            frame = time_exceeded_for(bytes(packet), str(self.world.node_address))
            return Expected("send", frame, "TTL_EXPIRED")
        out[IP].ttl -= 1
        if path == "hairpin":
            out.src, out.dst = packet.dst, packet.src
        else:
            mac = self.world.next_hop(to.dst)
            assert mac is not None
            out.src, out.dst = self.world.node_mac, mac
        return Expected("send", rebuilt(out), reason)

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
            backend = chosen(rows, hash_words(int(t.src), 0, 0))
        incarnation = self.world.backends[vip.service, backend]
        self.affinity[t.src, vip.service] = (backend, incarnation, self.now)
        return backend

    def _new(
        self, packet: Packet, t: Tuple5, vip: ModelVip, side: str, chosen_port: Callable[[], int]
    ) -> Expected:
        if vip.allowed and not any(t.src in network for network in vip.allowed):
            return Expected("drop", None, "SOURCE_NOT_ALLOWED")
        rows = vip.rows[side]
        if not rows:
            return Expected("drop", None, "NO_LOCAL_ENDPOINT") if vip.usable else rejected(packet)
        backend = self._pick(t, vip, rows)
        source, path, reason = t.src, "stack", "NEW_LOCAL" if backend.local else "NEW_REMOTE"
        if side == "inside" and backend.address == t.src:
            source, path, reason = self.world.node_address, "hairpin", "NEW_HAIRPIN"
        elif side == "outside" and not backend.local:
            if self.world.next_hop(backend.address) is None:
                return Expected("drop", None, "NO_ROUTE")
            source, path = self.world.node_address, "forward"
        to = Tuple5(source, backend.address, t.sport, backend.port, t.protocol)
        holder = self.by_backend.get(to.reversed())
        taken = holder is not None and holder.client_side != t and not self._expired(holder)
        if path != "stack" or taken:
            to = replace(to, sport=chosen_port())
            assert to.sport in self.world.snat_ports, f"SNAT port {to.sport} is not in the reserved range"
            holder = self.by_backend.get(to.reversed())
            if holder is not None and holder.client_side != t:
                assert self._expired(holder), f"{to} is shared with the live flow of {holder.client_side}"
        if holder is not None:
            self._forget(holder)
        incarnation = self.world.backends[vip.service, backend]
        flow = Flow(t, to, vip.service, backend, incarnation, path, last_seen=self.now)
        self._advance(packet, "client", flow)
        self.by_client[t] = self.by_backend[to.reversed()] = flow
        return self._send(packet, to, path, reason)

    def _forget(self, flow: Flow) -> None:
        for flows, key in (
            (self.by_client, flow.client_side),
            (self.by_backend, flow.backend_side.reversed()),
        ):
            if flows.get(key) is flow:
                del flows[key]


def tuple_of(packet: Packet) -> Tuple5:
    """Return the packet's 5-tuple."""
    l4 = packet[TCP] if TCP in packet else packet[UDP]
    return Tuple5(
        IPv4Address(packet[IP].src),
        IPv4Address(packet[IP].dst),
        l4.sport,
        l4.dport,
        Protocol(packet[IP].proto),
    )


def translated(packet: Packet, to: Tuple5) -> Packet:
    """Return a copy with to's addresses and ports; checksums are left to :func:`rebuilt`."""
    out = packet.copy()
    l4 = out[TCP] if TCP in out else out[UDP]
    out[IP].src, out[IP].dst = str(to.src), str(to.dst)
    l4.sport, l4.dport = to.sport, to.dport
    return out


def rebuilt(packet: Packet) -> bytes:
    """Return the bytes with all checksums computed from scratch; a UDP datagram without one stays without."""
    del packet[IP].chksum
    if TCP in packet:
        del packet[TCP].chksum
    elif UDP in packet and packet[UDP].chksum != 0:
        del packet[UDP].chksum
    return bytes(packet)


def rejected(packet: Packet) -> Expected:
    """The answer of a VIP without endpoints: RST (RFC 9293, 3.10.7.1) or ICMP (RFC 1122, 4.1.3.1)."""
    ip = IP(src=packet[IP].dst, dst=packet[IP].src, id=0, flags="DF", ttl=64)
    ether = Ether(src=packet.dst, dst=packet.src)
    if UDP in packet:
        quoted = bytes(packet[IP])[:28]
        answer = ether / ip / ICMP(type=3, code=3) / Raw(quoted)
        return Expected("send", bytes(answer), "REJECT_NO_ENDPOINT")
    tcp = packet[TCP]
    if tcp.flags.R:
        return Expected("drop", None, "REJECT_UNANSWERED")
    payload = packet[IP].len - 20 - tcp.dataofs * 4
    if tcp.flags.A:
        reset = TCP(sport=tcp.dport, dport=tcp.sport, flags="R", seq=tcp.ack, ack=0, window=0)
    else:
        ack = (tcp.seq + payload + int(tcp.flags.S) + int(tcp.flags.F)) & MASK
        reset = TCP(sport=tcp.dport, dport=tcp.sport, flags="RA", seq=0, ack=ack, window=0)
    return Expected("send", bytes(ether / ip / reset), "REJECT_NO_ENDPOINT")
