# SPDX-License-Identifier: Apache-2.0
"""What the model of the data plane works on: tuples, backends, VIPs, flows."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, ip_address

from lb.model import Protocol
from lb.plan import SMALL_SET, seeds
from lb.plan.rendezvous import FULL_WEIGHT
from tests import packets as p

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


def hash_address(role: IPv4Address) -> int:
    """An address as one word: for IPv4 itself."""
    packed = ip_address(p.here(str(role))).packed
    if len(packed) == 4:
        return int(role)
    a, b, c, last = struct.unpack("!4I", packed)
    return (hash_words(a, b, c) + int(last)) & MASK


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
            hash_address(self.src),
            (hash_address(self.dst) + self.protocol) & MASK,
            self.sport << 16 | self.dport,
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
    cluster_ip: its address is nobody's but the Service's.
    """

    service: str
    affinity_seconds: int
    rows: Mapping[str, tuple[ModelBackend, ...]]
    usable: bool
    allowed: tuple[IPv4Network, ...] = ()
    cluster_ip: bool = False


def minus_log2(word: int) -> int:
    """The programs' -log2(word / 2^32), in units of 2^-32: minus_log2() of bpf/backend.h."""
    zeros = 32 - word.bit_length()
    x = 2**32 - (word << zeros)
    cubic = 220704563 + (1115207865 * x >> 32)
    cubic = 808837336 + (cubic * x >> 32)
    cubic = 1548487856 + (cubic * x >> 32)
    return (zeros << 32) + (cubic * x >> 30)


def weighted_row(seeds_of_rows: Sequence[int], weights: Sequence[int], flow: int) -> int:
    """Return which of a list of unequal weights a hash leads to: weighted_rendezvous() of bpf/backend.h."""
    near = []
    for row, (seed, weight) in enumerate(zip(seeds_of_rows, weights, strict=True)):
        mixed = (seed ^ flow) * 0x9E3779B97F4A7C15 % 2**64
        mixed = (mixed ^ mixed >> 32) * 0xD6E8FEB86659FD93 % 2**64
        far = minus_log2(mixed >> 32 | 1) * (FULL_WEIGHT // weight)
        near.append((2**64 - 1 - far) // SMALL_SET * SMALL_SET + row)
    return max(near) % SMALL_SET


def chosen(rows: tuple[ModelBackend, ...], flow: int, weights: Sequence[int] = ()) -> ModelBackend:
    """Return where the hash of a flow leads: select_backend() of bpf/backend.h. weights: of a list."""
    if len(rows) > SMALL_SET:
        return rows[flow * len(rows) >> 32]
    scores = []
    addresses = [ip_address(p.here(str(one.address))) for one in rows]
    sockets = [int(at) << 16 | one.port for at, one in zip(addresses, rows, strict=True)]
    if weights:
        return rows[weighted_row(seeds(addresses[0].version, sockets), weights, flow)]
    for row, seed in enumerate(seeds(addresses[0].version, sockets)):
        mixed = (seed ^ flow) * 0x9E3779B97F4A7C15 % 2**64
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
    met_late: bool = False  # its first packet began no connection
    half_open: bool = True  # nothing has shown yet that the client gets what the backend sends
    answered: bool = False  # half open, but the backend has answered
    secret: int = 0  # what the client has to show then
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
    sctp: float


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
    addresses: dict[IPv4Address, ModelVip] = field(default_factory=dict)
    gone: dict[tuple[IPv4Address, int, Protocol], ModelVip] = field(default_factory=dict)  # that linger
    backends: dict[tuple[str, ModelBackend], int] = field(default_factory=dict)  # alive: which time

    def next_hop(self, address: IPv4Address) -> str | None:
        return next((mac for network, mac in self.neighbours.items() if address in network), None)
