# SPDX-License-Identifier: Apache-2.0
"""Packets as nodes send them to each other with direct return: encapsulated."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, ip_address
from typing import Any

from scapy.layers.inet import UDP
from scapy.packet import Packet, Raw

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.model_types import ModelBackend, Tuple5, chosen, hash_words
from tests.packet.plans import TARGET_PORT, VIPS

GUE_PORT = 6080
CLIENT = (p.CLIENT, p.CLIENT_PORT)
VIP = VIPS[VipKind.LOAD_BALANCER]
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
REMOTE = (p.BACKEND_REMOTE, TARGET_PORT)


def source_port(client: tuple[str, int], vip: tuple[str, int], protocol: Protocol) -> int:
    """Return the UDP source port that tells a connection apart."""
    of = Tuple5(IPv4Address(client[0]), IPv4Address(vip[0]), client[1], vip[1], protocol)
    return 0xC000 | hash_words(of.hash(), 0, 0) >> 18


def encapsulated(
    frame: bytes,
    *,
    link: Packet = p.TO_NODE2,
    nodes: tuple[str, str] = (p.NODE1, p.NODE2),
    backend: tuple[str, int] = REMOTE,
    sport: int | None = None,
    head: bytes | None = None,
    **fields: Any,
) -> bytes:
    """Return the frame's packet as a node sends it to another; fields are of the outer IP header."""
    inner = bytes(p.l3(frame))
    if head is None:
        address = ip_address(p.here(backend[0])).packed
        words = len(address) // 4 + 1
        head = struct.pack("!BBHBBH", words, {4: 4, 6: 41}[p.version()], 0, 1, 0, backend[1]) + address
    if sport is None:
        of = p.l3(frame)
        protocol = {"TCP": Protocol.TCP, "UDP": Protocol.UDP}.get(of.payload.name, Protocol.SCTP)
        ports = struct.unpack_from("!HH", bytes(of.payload))
        client, vip = (p.role(of.src), ports[0]), (p.role(of.dst), ports[1])
        sport = source_port(client, vip, protocol)
    plain: dict[str, Any] = {"tc": 0x24, "fl": 0} if p.version() == 6 else {"id": 0}
    outer = p.ip(*nodes, **{**plain, **fields})
    return bytes(link / outer / UDP(sport=sport, dport=GUE_PORT, chksum=0) / Raw(head + inner))


def handed(frame: bytes, backend: tuple[str, int] = LOCAL, **fields: Any) -> bytes:
    """Return a client's packet as NODE2 sends it here."""
    return encapsulated(frame, link=p.FROM_NODE2, nodes=(p.NODE2, p.NODE1), backend=backend, **fields)


def client_of(
    want: str, *others: str, than: tuple[str, ...] = (), protocol: Protocol = Protocol.TCP
) -> tuple[str, int]:
    """Return a client whose connection to VIP a set of these backends gives to the first of them.

    than: of these alone it is given to the first, too.
    """
    for port in range(40_000, 41_000):
        of = Tuple5(IPv4Address(p.CLIENT), IPv4Address(VIP[0]), port, VIP[1], protocol)
        if all(_choice(of, hosts) == hosts[0] for hosts in ((want, *others), than) if hosts):
            return p.CLIENT, port
    raise AssertionError(want)


def _choice(of: Tuple5, hosts: tuple[str, ...]) -> str:
    rows = tuple(
        ModelBackend(IPv4Address(host), TARGET_PORT, local=False)
        for host in sorted(set(hosts), key=lambda host: int(ip_address(p.here(host))))
    )
    return str(chosen(rows, of.hash()).address)


def with_chance(
    frame: bytes,
    chosen_one: tuple[str, int],
    second: tuple[str, tuple[str, int]] | None = None,
    hops: int = 0,
    **fields: Any,
) -> bytes:
    """Return the frame's packet as a node sends it that has not seen its connection begin.

    second: the node and the backend that are named beside the chosen one.
    """
    size = {4: 4, 6: 16}[p.version()]
    words = (8 + size + 2 * size + 4) // 4 - 1
    head = struct.pack("!BBHBBH", words, {4: 4, 6: 41}[p.version()], 0, 1, hops, chosen_one[1])
    head += ip_address(p.here(chosen_one[0])).packed
    node, (backend, port) = second or ("", ("", 0))
    head += b"".join(ip_address(p.here(each)).packed if each else bytes(size) for each in (node, backend))
    return encapsulated(frame, head=head + struct.pack("!HH", port, 0), **fields)
