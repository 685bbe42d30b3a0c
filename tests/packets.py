"""Packets for rows: built by Scapy, named by role, compared byte for byte.

The node is ``NODE1``. ``CLIENT`` and ``NODE2`` are on its uplink's segment; the pods of NODE2 are behind
NODE2, its own behind their interfaces.
"""

from __future__ import annotations

from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

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
SILENT_NEIGHBOUR = "192.0.2.77"  # on the uplink's segment, its MAC address unknown
UPLINK_2_ADDRESS = "192.0.3.1"
BEHIND_UPLINK_2 = "192.0.3.9"

CLIENT_MAC = "02:00:00:00:00:50"
NODE1_MAC = "02:00:00:00:00:01"
NODE2_MAC = "02:00:00:00:00:02"
POD_MAC = "02:00:00:00:01:07"
POD_GATEWAY_MAC = "02:00:00:00:01:01"
UPLINK_2_MAC = "02:00:00:00:03:01"
UPLINK_2_PEER_MAC = "02:00:00:00:03:09"

CLIENT_PORT = 40_000
PAYLOAD = b"GET / HTTP/1.1\r\nHost: web\r\n\r\n!"  # of odd length: checksums must pad


def ether(src: str, dst: str) -> Ether:
    """Return an Ethernet header."""
    return Ether(src=src, dst=dst)


FROM_CLIENT = ether(CLIENT_MAC, NODE1_MAC)
FROM_NODE2 = ether(NODE2_MAC, NODE1_MAC)
TO_CLIENT = ether(NODE1_MAC, CLIENT_MAC)
TO_NODE2 = ether(NODE1_MAC, NODE2_MAC)
FROM_POD = ether(POD_MAC, POD_GATEWAY_MAC)
TO_POD = ether(POD_GATEWAY_MAC, POD_MAC)


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
    """Return a TCP frame; fields are Scapy's of the TCP header. Checksums and lengths are right."""
    segment = TCP(sport=src[1], dport=dst[1], flags=flags, **{"seq": 1000, "ack": 0, **fields})
    return _frame(link, src[0], dst[0], ttl, segment, payload)


def udp(
    link: Packet,
    src: tuple[str, int],
    dst: tuple[str, int],
    payload: bytes = b"ping!",
    *,
    ttl: int = 64,
    checksum: bool = True,
) -> bytes:
    """Return a UDP frame; without a checksum on demand (RFC 768 allows it over IPv4)."""
    datagram = UDP(sport=src[1], dport=dst[1]) if checksum else UDP(sport=src[1], dport=dst[1], chksum=0)
    return _frame(link, src[0], dst[0], ttl, datagram, payload)


def _frame(link: Packet, src: str, dst: str, ttl: int, l4: Packet, payload: bytes) -> bytes:
    packet = link / IP(src=src, dst=dst, ttl=ttl, id=4711, flags="DF") / l4
    return bytes(packet / Raw(payload) if payload else packet)


def rebuilt(
    frame: bytes,
    *,
    link: Packet | None = None,
    src: tuple[str, int] | None = None,
    dst: tuple[str, int] | None = None,
    ttl: int | None = None,
) -> bytes:
    """Return the frame with other addresses and checksums made from scratch; a UDP checksum of 0 stays."""
    packet = Ether(frame)
    ip, l4 = packet[IP], packet[IP].payload
    if link is not None:
        packet.src, packet.dst = link.src, link.dst
    if src is not None:
        ip.src, l4.sport = src
    if dst is not None:
        ip.dst, l4.dport = dst
    if ttl is not None:
        ip.ttl = ttl
    del ip.chksum
    if not (isinstance(l4, UDP) and l4.chksum == 0):
        del l4.chksum
    return bytes(packet)


def reset_for(frame: bytes) -> bytes:
    """Return the answer of a closed port to a TCP frame: RFC 9293, section 3.10.7.1."""
    packet = Ether(frame)
    ip, segment = packet[IP], packet[TCP]
    if "A" in segment.flags:
        answer = TCP(sport=segment.dport, dport=segment.sport, flags="R", seq=segment.ack, ack=0, window=0)
    else:
        length = len(segment.payload) + ("S" in segment.flags) + ("F" in segment.flags)
        next_seq = (segment.seq + length) % 2**32
        answer = TCP(sport=segment.dport, dport=segment.sport, flags="RA", seq=0, ack=next_seq, window=0)
    header = IP(src=ip.dst, dst=ip.src, ttl=64, id=0, flags="DF")
    return bytes(Ether(src=packet.dst, dst=packet.src) / header / answer)


def icmp_error_for(frame: bytes, source: str, kind: int, code: int, rest: int = 0) -> bytes:
    """Return the ICMP error from source about a frame: it quotes the IP header and the L4 header's beginning.

    That is 8 bytes of UDP (RFC 792) and all of a TCP header without options.
    """
    packet = Ether(frame)
    ip = packet[IP]
    quoted = bytes(ip)[: 20 + (20 if TCP in packet else 8)]
    header = IP(src=source, dst=ip.src, ttl=64, id=0, flags="DF")
    error = ICMP(type=kind, code=code, unused=rest) if kind != 3 else ICMP(type=3, code=code, nexthopmtu=rest)
    return bytes(Ether(src=packet.dst, dst=packet.src) / header / error / Raw(quoted))


def port_unreachable_for(frame: bytes) -> bytes:
    """Return the ICMP port unreachable for a UDP frame."""
    return icmp_error_for(frame, Ether(frame)[IP].dst, 3, 3)


def time_exceeded_for(frame: bytes, router: str) -> bytes:
    """Return what a router says of a frame whose TTL it would bring to zero (RFC 792)."""
    return icmp_error_for(frame, router, 11, 0)


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
