# SPDX-License-Identifier: Apache-2.0
"""Packets for rows: built by Scapy, named by role, compared byte for byte.

The node is ``NODE1``. ``CLIENT`` and ``NODE2`` are on its uplink's segment; the pods of NODE2 are behind
NODE2, its own behind their interfaces.

A test runs in one IP family, see :func:`family`. It names addresses by their role, as IPv4; what goes into a
packet is :func:`here`, the role's address in the family, and what is read from one is a role again.
"""

from __future__ import annotations

import platform
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from itertools import pairwise
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import (
    ICMPv6DestUnreach,
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    ICMPv6TimeExceeded,
    IPv6,
    IPv6ExtHdrFragment,
)
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from tests.sctp import TAG, chunk_packet, with_checksum

CLIENT = "192.0.2.50"
CLIENT_2 = "192.0.2.51"
NODE1 = "192.0.2.1"
NODE2 = "192.0.2.2"
CLUSTER_VIP = "10.96.0.10"
LOAD_BALANCER_VIP = "203.0.113.10"
EXTERNAL_VIP = "198.51.100.7"
NOT_A_VIP = "10.96.0.99"
POD_NET = "10.0.1.0/24"
POD_NET_2 = "10.0.2.0/24"
POD_GATEWAY = "10.0.1.1"
POD_CLIENT = "10.0.1.7"
BACKEND_LOCAL = "10.0.1.5"
BACKEND_LOCAL_2 = "10.0.1.6"
BACKEND_REMOTE = "10.0.2.5"
BACKEND_REMOTE_2 = "10.0.2.6"
BACKEND_UNROUTED = "10.9.9.9"  # behind a route of the kind "blackhole"
NARROW_NET = "10.0.3.0/24"  # behind NODE2 as well, by a route of NARROW_MTU
NARROW_MTU = 1400
_LINUX = tuple(map(int, platform.release().split(".")[:2]))
TOLD_MTU = NARROW_MTU if _LINUX >= (5, 12) else 1280  # an older kernel does not say which it is
BACKEND_NARROW = "10.0.3.5"
SILENT_NEIGHBOUR = "192.0.2.77"  # on the uplink's segment, its MAC address unknown
UPLINK_2_ADDRESS = "192.0.3.1"
BEHIND_UPLINK_2 = "192.0.3.9"
ROUTER = "198.51.100.1"  # somewhere between a client and the node, or behind it

CLIENT_MAC = "02:00:00:00:00:50"
NODE1_MAC = "02:00:00:00:00:01"
NODE2_MAC = "02:00:00:00:00:02"
POD_MAC = "02:00:00:00:01:07"
POD_GATEWAY_MAC = "02:00:00:00:01:01"
UPLINK_2_MAC = "02:00:00:00:03:01"
UPLINK_2_PEER_MAC = "02:00:00:00:03:09"

CLIENT_PORT = 40_000


def moved(port: int, protocol: int = 6) -> int:
    """Return the port that a client's connection through a VIP comes from, where it keeps its address.

    Each port is exchanged with one that clients' kernels do not pick by themselves; a privileged one stays
    privileged, and SCTP keeps its own.
    """
    if protocol == 132 or port in (0, 1023):
        return port
    if port < 1024:
        return port + 511 if port < 512 else port - 511
    if port >= 64_512:
        return port ^ 512
    return port + 31_744 if port < 32_768 else port - 31_744


PAYLOAD = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n!"  # of odd length: checksums must pad

_version = [4]


def version() -> int:
    """Return the IP version of the family under test."""
    return _version[-1]


@contextmanager
def family(number: int) -> Iterator[None]:
    """Make packets of this IP version."""
    _version.append(number)
    try:
        yield
    finally:
        _version.pop()


def here(role: str) -> str:
    """Return the address of a role in the family under test.

    That of IPv6 differs from another role's in each of its words; those of one IPv4 network are in one /56.
    An address of IPv6 stands for itself.
    """
    if version() == 4 or ":" in role:
        return role
    a, b, c, d = IPv4Address(role).packed
    prefix = b"\xfd\x00\x00\x0a" if a == 10 else b"\x20\x01\x0d\xb8"
    mixed = (d + 1) * 0x9E3779B9 & 0xFFFFFFFF
    return str(IPv6Address(prefix + bytes([a, b, c, 0]) + struct.pack("!II", mixed, 0x100 + d)))


def here_net(text: str) -> str:
    """Return the network in the family under test; /0 and /1 are that part of all its addresses."""
    network = IPv4Network(text)
    if version() == 4:
        return text
    if network.prefixlen <= 1:
        return f"{'8000::' if network.network_address.packed[0] else '::'}/{network.prefixlen}"
    if network.prefixlen == 32:
        return f"{here(str(network.network_address))}/128"
    assert network.prefixlen <= 24, text
    packed = IPv6Address(here(str(network.network_address))).packed[:8]
    return f"{IPv6Address(packed + bytes(8))}/{32 + network.prefixlen}"


def role(address: str | bytes | int) -> str:
    """Return which role an address has, given as text or as in a packet or map."""
    found = ip_address(address)
    if found.version == 4:
        return str(found)
    packed = found.packed
    return str(IPv4Address(packed[4:7] + packed[15:]))


def seen(client: tuple[str, int], protocol: int = 6) -> tuple[str, int]:
    """Return a client's address and port as a backend sees them that the client's own address gets to."""
    return client[0], moved(client[1], protocol)


def ether(src: str, dst: str) -> Ether:
    """Return an Ethernet header."""
    return Ether(src=src, dst=dst)


FROM_CLIENT = ether(CLIENT_MAC, NODE1_MAC)
FROM_NODE2 = ether(NODE2_MAC, NODE1_MAC)
TO_CLIENT = ether(NODE1_MAC, CLIENT_MAC)
TO_NODE2 = ether(NODE1_MAC, NODE2_MAC)
FROM_POD = ether(POD_MAC, POD_GATEWAY_MAC)
TO_POD = ether(POD_GATEWAY_MAC, POD_MAC)


def ip(src: str, dst: str, *, ttl: int = 64, **fields: Any) -> Packet:
    """Return an IP header of the family under test; fields are Scapy's."""
    if version() == 6:
        return IPv6(src=here(src), dst=here(dst), hlim=ttl, **{"tc": 0x24, "fl": 0xBEEF5, **fields})
    return IP(src=src, dst=dst, ttl=ttl, **{"id": 4711, "flags": "DF", "tos": 0x24, **fields})


def answer_ip(src: str, dst: str) -> Packet:
    """Return the header of what the data plane says itself."""
    plain = {"tc": 0, "fl": 0} if version() == 6 else {"id": 0, "tos": 0}
    return ip(src, dst, **plain)


def tcp(
    link: Packet,
    src: tuple[str, int],
    dst: tuple[str, int],
    flags: str = "S",
    payload: bytes = b"",
    *,
    ttl: int = 64,
    **fields: Any,
) -> bytes:
    """Return a TCP frame; fields are Scapy's of the TCP header. Checksums and lengths are right.

    By default what acknowledges anything acknowledges another segment of this function.
    """
    numbers = {"seq": 1000, "ack": 1001 if "A" in flags else 0}
    segment = TCP(sport=src[1], dport=dst[1], flags=flags, **{**numbers, **fields})
    return bytes(link / ip(src[0], dst[0], ttl=ttl) / segment / payload)


def udp(
    link: Packet,
    src: tuple[str, int],
    dst: tuple[str, int],
    payload: bytes = b"ping!",
    *,
    ttl: int = 64,
    checksum: bool = True,
) -> bytes:
    """Return a UDP frame; without a checksum on demand (RFC 768, and RFC 6935 for tunnels over IPv6)."""
    datagram = UDP(sport=src[1], dport=dst[1]) if checksum else UDP(sport=src[1], dport=dst[1], chksum=0)
    return bytes(link / ip(src[0], dst[0], ttl=ttl) / datagram / payload)


def sctp(
    link: Packet,
    src: tuple[str, int],
    dst: tuple[str, int],
    chunk: str = "INIT",
    payload: bytes = b"",
    *,
    ttl: int = 64,
    tag: int = TAG,
) -> bytes:
    """Return an SCTP frame of one chunk. tag: the verification tag.

    By default an INIT ACK asks for the tag that other chunks of this function have.
    """
    if chunk == "INIT ACK" and not payload:
        payload = TAG.to_bytes(4, "big")
    number = {"proto": 132} if version() == 4 else {"nh": 132}
    return bytes(
        link / ip(src[0], dst[0], ttl=ttl, **number) / chunk_packet(src[1], dst[1], chunk, payload, tag)
    )


def echo(
    link: Packet, src: str, dst: str, payload: bytes = PAYLOAD, *, ttl: int = 64, **fields: Any
) -> bytes:
    """Return an ICMP echo request."""
    asked = ICMPv6EchoRequest(id=77, seq=5, data=payload) if version() == 6 else ICMP(id=77, seq=5) / payload
    return bytes(link / ip(src, dst, ttl=ttl, **fields) / asked)


def l3(frame: bytes) -> Packet:
    """Return the IP layer of a frame."""
    packet = Ether(frame)
    return packet[IPv6] if IPv6 in packet else packet[IP]


def protocol(frame: bytes) -> int:
    """Return the number of the protocol behind the IP header, which comes right behind the link header."""
    return frame[14 + (9 if version() == 4 else 6)]


def addresses(frame: bytes) -> tuple[str, str]:
    """Return source and destination of such a frame, without Scapy, which takes a hundred times as long."""
    at, size = (26, 4) if version() == 4 else (22, 16)
    src, dst = (ip_address(frame[start : start + size]) for start in (at, at + size))
    return str(src), str(dst)


def hops(frame: bytes) -> int:
    """Return the TTL, which IPv6 calls hop limit."""
    head = l3(frame)
    return int(head.hlim if isinstance(head, IPv6) else head.ttl)


def echo_reply_for(frame: bytes) -> bytes:
    """Return the frame that answers an echo request."""
    packet, asked = Ether(frame), l3(frame)
    packet.src, packet.dst = packet.dst, packet.src
    inner = packet[IPv6] if IPv6 in packet else packet[IP]
    inner.src, inner.dst = asked.dst, asked.src
    if IPv6 in packet:
        request = packet[ICMPv6EchoRequest]
        reply = ICMPv6EchoReply(id=request.id, seq=request.seq, data=request.data)
        inner.hlim = 64
        inner.remove_payload()
        return bytes(packet / reply)
    inner.ttl = 64
    packet[ICMP].type = 0
    del inner.chksum, packet[ICMP].chksum
    return bytes(packet)


def rebuilt(
    frame: bytes,
    *,
    link: Packet | None = None,
    src: tuple[str, int] | None = None,
    dst: tuple[str, int] | None = None,
    ttl: int | None = None,
) -> bytes:
    """Return the frame with other addresses and checksums made from scratch; a UDP checksum of 0 stays.

    With dst alone it is a request of a client that keeps its address, with src alone the answer to one: the
    client's port is :func:`moved`.
    """
    packet = Ether(frame)
    head = packet[IPv6] if IPv6 in packet else packet[IP]
    if link is not None:
        packet.src, packet.dst = link.src, link.dst
    if src is not None:
        head.src = here(src[0])
    if dst is not None:
        head.dst = here(dst[0])
    if ttl is not None:
        setattr(head, "hlim" if IPv6 in packet else "ttl", ttl)
    numbers = struct.unpack_from("!HH", bytes(head.payload))
    kept = moved(numbers[0 if dst else 1], protocol(frame)) if bool(src) != bool(dst) else None
    ports = (src[1] if src else dst and kept, dst[1] if dst else src and kept)
    if protocol(frame) == 132:
        body = bytes(head.payload)
        old = struct.unpack_from("!HH", body)
        new = [old[at] if port is None else port for at, port in enumerate(ports)]
        head.remove_payload()
        head.add_payload(Raw(with_checksum(struct.pack("!HH", *new) + body[4:])))
        if IPv6 in packet:
            head.nh = 132
    else:
        l4 = head.payload
        if ports[0] is not None:
            l4.sport = ports[0]
        if ports[1] is not None:
            l4.dport = ports[1]
        if not (isinstance(l4, UDP) and l4.chksum == 0):
            del l4.chksum
    if IPv6 not in packet:
        del head.chksum
    return bytes(packet)


def pieces(frame: bytes, *cuts: int, identity: int = 77) -> list[bytes]:
    """Return the frame's packet in fragments, cut at these offsets behind the IP header (RFC 791, RFC 8200).

    Without a cut, in IPv6, it is one atomic fragment (RFC 6946); in IPv4, it is whole.
    """
    packet, head = Ether(frame), l3(frame)
    link, body = ether(packet.src, packet.dst), bytes(head.payload)
    found = []
    for start, end in pairwise((0, *cuts, len(body))):
        assert start % 8 == 0
        more = end < len(body)
        if isinstance(head, IPv6):
            part = ip(head.src, head.dst, ttl=head.hlim, nh=44)
            part /= IPv6ExtHdrFragment(nh=head.nh, offset=start // 8, m=more, id=identity)
        else:
            part = ip(head.src, head.dst, ttl=head.ttl, id=identity, flags=int(more), frag=start // 8)
            part.proto = head.proto
        found.append(bytes(link / part / Raw(body[start:end])))
    return found


def reset_for(frame: bytes) -> bytes:
    """Return the answer of a closed port to a TCP frame: RFC 9293, section 3.10.7.1."""
    packet, head = Ether(frame), l3(frame)
    segment = packet[TCP]
    if "A" in segment.flags:
        answer = TCP(sport=segment.dport, dport=segment.sport, flags="R", seq=segment.ack, ack=0, window=0)
    else:
        length = len(segment.payload) + ("S" in segment.flags) + ("F" in segment.flags)
        next_seq = (segment.seq + length) % 2**32
        answer = TCP(sport=segment.dport, dport=segment.sport, flags="RA", seq=0, ack=next_seq, window=0)
    return bytes(Ether(src=packet.dst, dst=packet.src) / answer_ip(head.dst, head.src) / answer)


ICMP_ERRORS = {
    "port unreachable": ((3, 3), (1, 4)),
    "host unreachable": ((3, 1), (1, 3)),
    "too big": ((3, 4), (2, 0)),
    "time exceeded": ((11, 0), (3, 0)),
}
"""Type and code in each family: RFC 792 and RFC 1191; RFC 4443."""


def icmp_error(link: Packet, header: Packet, error: str, quoted: bytes, mtu: int = 0) -> bytes:
    """Return an ICMP error that quotes these bytes, the head of a packet from its IP header on."""
    kind, code = ICMP_ERRORS[error][version() == 6]
    head: Packet
    if version() == 6:
        head = {
            1: ICMPv6DestUnreach(code=code),
            2: ICMPv6PacketTooBig(mtu=mtu),
            3: ICMPv6TimeExceeded(code=code),
        }[kind]
    elif kind == 3:
        head = ICMP(type=3, code=code, nexthopmtu=mtu)
    else:
        head = ICMP(type=kind, code=code)
    return bytes(link / header / head / Raw(quoted))


def quote(frame: bytes, l4_bytes: int | None = None) -> bytes:
    """Return the head of a frame's packet, as the data plane's own errors quote it: 8 bytes behind the IP
    header (RFC 792), all of a TCP header without options, an SCTP header with its checksum; and IPv6's
    fragment header."""
    head = l3(frame)
    if l4_bytes is None:
        fragment = IPv6ExtHdrFragment in head
        number = head[IPv6ExtHdrFragment].nh if fragment else protocol(frame)
        l4_bytes = {6: 20, 132: 12}.get(number, 8) + 8 * fragment
    return bytes(head)[: (40 if isinstance(head, IPv6) else 20) + l4_bytes]


def icmp_error_for(frame: bytes, source: str, error: str, mtu: int = 0) -> bytes:
    """Return the ICMP error from source that the data plane gives for a frame."""
    packet, head = Ether(frame), l3(frame)
    back = Ether(src=packet.dst, dst=packet.src)
    return icmp_error(back, answer_ip(source, head.src), error, quote(frame), mtu)


def port_unreachable_for(frame: bytes) -> bytes:
    """Return the ICMP port unreachable for a datagram."""
    return icmp_error_for(frame, l3(frame).dst, "port unreachable")


def time_exceeded_for(frame: bytes, router: str) -> bytes:
    """Return what a router says of a frame whose TTL it would bring to zero (RFC 792)."""
    return icmp_error_for(frame, router, "time exceeded")


def difference(got: bytes, want: bytes) -> str:
    """Return "" when the frames are equal, else what differs: fields as Scapy names them, then offsets."""
    if got == want:
        return ""
    lines = []
    if len(got) != len(want):
        lines.append(f"length: got {len(got)}, want {len(want)}")
    got_fields, want_fields = _fields(got), _fields(want)
    lines += [
        f"{name}: got {got_fields.get(name)!r}, want {want_fields.get(name)!r}"
        for name in dict.fromkeys((*want_fields, *got_fields))
        if got_fields.get(name) != want_fields.get(name)
    ]
    offsets = [at for at, (a, b) in enumerate(zip(got, want, strict=False)) if a != b]
    lines.append(f"bytes that differ, by offset: {offsets}")
    lines.append(f"got  {got.hex(' ', 4)}")
    lines.append(f"want {want.hex(' ', 4)}")
    return "\n".join(lines)


def _fields(frame: bytes) -> dict[str, Any]:
    found = {}
    layer = Ether(frame)
    while layer:
        for field in layer.fields_desc:
            found[f"{layer.name}.{field.name}"] = layer.getfieldval(field.name)
        layer = layer.payload
    return found


def assert_same(got: bytes, want: bytes) -> None:
    """Fail with a readable difference unless two frames are equal in every byte."""
    __tracebackhide__ = True
    text = difference(got, want)
    assert not text, text
