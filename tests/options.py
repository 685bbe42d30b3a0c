# SPDX-License-Identifier: Apache-2.0
"""IPv4 options and IPv6 extension headers: put into packets, and taken out again.

A packet with them is translated as the same packet without. So what must become of one is told by what must
become of the other: take them out, ask whoever knows plain packets, put them in again.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from scapy.layers.inet import TCP

from tests import packets as p

ETHER = 14
HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION = 0, 43, 44, 51, 60
EXTENSIONS = (HOP_BY_HOP, ROUTING, FRAGMENT, AUTHENTICATION, DESTINATION)
ICMP, ICMP6, UDP = 1, 58, 17

Header = tuple[int, bytes]
"""An extension header: the number that the header before it names it by, and its bytes but for the first."""


@dataclass(frozen=True, slots=True)
class Options:
    """What a packet has besides its IP header.

    inside: IPv4's options, a multiple of 4 bytes. headers: IPv6's extension headers, in their order.
    """

    inside: bytes = b""
    headers: tuple[Header, ...] = ()

    @property
    def size(self) -> int:
        """How many bytes longer a packet is with them."""
        return len(self.inside) + sum(1 + len(rest) for _, rest in self.headers)


def _extension(number: int, length: int, content: bytes = b"") -> Header:
    """Return an extension header of so many bytes, a multiple of 8, that begins with this content."""
    return number, bytes([length // 8 - 1]) + content + bytes(length - 2 - len(content))


def padding(length: int) -> bytes:
    """Return destination or hop-by-hop options that say nothing: PadN of RFC 8200, section 4.2."""
    return bytes([1, length - 4])


ROUTER_ALERT = _extension(HOP_BY_HOP, 8, b"\x05\x02\x00\x00\x01\x00")
FOR_THE_END = _extension(DESTINATION, 8, padding(8))
USED_UP = _extension(ROUTING, 24, b"\x02\x00")  # of type 2, no segments left
SEGMENTS = _extension(ROUTING, 40, b"\x04\x00\x01")  # of type 4, the last segment reached
SIGNED: Header = AUTHENTICATION, bytes([4]) + bytes(22)  # its length counts 4 bytes each: RFC 4302

TRANSLATED: dict[int, dict[str, Options]] = {
    4: {
        "no operation": Options(b"\x01" * 4),
        "router alert": Options(b"\x94\x04\x00\x00"),
        "record route": Options(b"\x07\x0b\x04" + bytes(8) + b"\x00"),
        "time stamps": Options(b"\x01\x44\x0c\x05" + bytes(9) + b"\x00\x00\x00"),
        "as many as there may be": Options(b"\x01" * 40),
        "a source route behind the end": Options(b"\x01\x00\x83\x07\x04" + bytes(7)),
    },
    6: {
        "hop by hop": Options(headers=(ROUTER_ALERT,)),
        "for the destination": Options(headers=(FOR_THE_END,)),
        "a route that is used up": Options(headers=(USED_UP,)),
        "each kind, and once more": Options(
            headers=(ROUTER_ALERT, FOR_THE_END, USED_UP, FOR_THE_END, FOR_THE_END)
        ),
        "segments that are used up, hop by hop": Options(headers=(ROUTER_ALERT, SEGMENTS)),
        "200 bytes": Options(
            headers=(
                _extension(HOP_BY_HOP, 80, padding(80)),
                _extension(DESTINATION, 120, padding(120)),
            )
        ),
    },
}
"""By IP version and name."""

LEFT_ALONE: dict[int, dict[str, Options]] = {
    4: {
        "loose source route": Options(b"\x83\x07\x04\xc0\x00\x02\x02\x00"),
        "strict source route": Options(b"\x89\x07\x04\xc0\x00\x02\x02\x00"),
        "source route behind others": Options(
            b"\x01\x94\x04\x00\x00\x01\x83\x07\x04\xc0\x00\x02\x02\x00\x00\x00"
        ),
    },
    6: {
        "source route": Options(headers=(_extension(ROUTING, 24, b"\x00\x01"),)),
        "source route that is used up": Options(headers=(_extension(ROUTING, 24, b"\x00\x00"),)),
        "segments that are left": Options(headers=(_extension(ROUTING, 24, b"\x04\x01\x00"),)),
        "authentication": Options(headers=(SIGNED,)),
        "authentication behind others": Options(headers=(ROUTER_ALERT, SIGNED)),
        "six headers": Options(headers=(FOR_THE_END,) * 6),
        "208 bytes": Options(headers=(_extension(DESTINATION, 208, padding(208)),)),
    },
}

MALFORMED: dict[int, dict[str, Options]] = {
    4: {
        "no length": Options(b"\x07\x00\x01\x01"),
        "length of 1": Options(b"\x07\x01\x01\x01"),
        "longer than there is room": Options(b"\x07\x05\x04\x00"),
        "longer than the packet": Options(b"\x01\x07\xff\x00"),
        "a type alone": Options(b"\x01\x01\x01\x07"),
    },
    6: {
        "longer than the packet": Options(headers=((DESTINATION, bytes([255]) + bytes(6)),)),
        "longer than the packet behind others": Options(
            headers=(ROUTER_ALERT, (HOP_BY_HOP, bytes([30]) + bytes(6)))
        ),
    },
}


def _checksum(data: bytes) -> bytes:
    """Return the Internet checksum of data whose own field is 0 (RFC 1071)."""
    data += b"\0" * (len(data) % 2)
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def into_packet(packet: bytes, options: Options) -> bytes:
    """Return an IP packet, or the head of one that an ICMP error quotes, with options."""
    if packet[0] >> 4 == 4:
        head = bytearray(packet[:20] + options.inside)
        head[0] = 0x40 | len(head) // 4
        head[2:4] = struct.pack("!H", int.from_bytes(packet[2:4], "big") + options.size)
        head[10:12] = bytes(2)
        head[10:12] = _checksum(bytes(head))
        return bytes(head) + packet[20:]
    head = bytearray(packet[:40])
    head[4:6] = struct.pack("!H", int.from_bytes(packet[4:6], "big") + options.size)
    numbers = [number for number, _ in options.headers] + [packet[6]]
    head[6] = numbers[0]
    chain = b"".join(
        bytes([after]) + rest for after, (_, rest) in zip(numbers[1:], options.headers, strict=True)
    )
    return bytes(head) + chain + packet[40:]


def out_of_packet(packet: bytes) -> tuple[bytes, Options]:
    """Return an IP packet without its options, and these. A fragment header, and what follows it, stays."""
    if packet[0] >> 4 == 4:
        size = (packet[0] & 15) * 4
        options = Options(packet[20:size])
        head = bytearray(packet[:20])
        head[0] = 0x45
        head[2:4] = struct.pack("!H", int.from_bytes(packet[2:4], "big") - options.size)
        head[10:12] = bytes(2)
        head[10:12] = _checksum(bytes(head))
        return bytes(head) + packet[size:], options
    number, at, headers = packet[6], 40, []
    while number in EXTENSIONS and number != FRAGMENT:
        end = at + 8 + packet[at + 1] * 8
        headers.append((number, packet[at + 1 : end]))
        number, at = packet[at], end
    options = Options(headers=tuple(headers))
    head = bytearray(packet[:40])
    head[4:6] = struct.pack("!H", int.from_bytes(packet[4:6], "big") - options.size)
    head[6] = number
    return bytes(head) + packet[at:], options


def into(frame: bytes, options: Options) -> bytes:
    """Return the frame with options behind its IP header."""
    return frame[:ETHER] + into_packet(frame[ETHER:], options)


def out_of(frame: bytes) -> tuple[bytes, Options]:
    """Return the frame without options, and these."""
    packet, options = out_of_packet(frame[ETHER:])
    return frame[:ETHER] + packet, options


def is_error(frame: bytes) -> bool:
    """Is the frame, which has no options, an ICMP error?"""
    version = frame[ETHER] >> 4
    kind = frame[ETHER + (20 if version == 4 else 40)]
    if version == 4:
        return frame[ETHER + 9] == ICMP and kind in (3, 11, 12)
    return frame[ETHER + 6] == ICMP6 and kind < 128


def _with_quote(frame: bytes, quoted: bytes) -> bytes:
    """Return an ICMP error, which has no options, with another quote."""
    version = frame[ETHER] >> 4
    at = ETHER + (20 if version == 4 else 40)
    ip, icmp = bytearray(frame[ETHER:at]), bytearray(frame[at : at + 8] + quoted)
    icmp[2:4] = bytes(2)
    if version == 4:
        ip[2:4] = struct.pack("!H", 20 + len(icmp))
        ip[10:12] = bytes(2)
        ip[10:12] = _checksum(bytes(ip))
        icmp[2:4] = _checksum(bytes(icmp))
    else:
        ip[4:6] = struct.pack("!H", len(icmp))
        pseudo = bytes(ip[8:40]) + struct.pack("!II", len(icmp), ICMP6)
        icmp[2:4] = _checksum(pseudo + bytes(icmp))
    return frame[:ETHER] + bytes(ip + icmp)


def into_quote(frame: bytes, options: Options) -> bytes:
    """Return an ICMP error, which has no options, about the packet with options."""
    at = ETHER + (28 if frame[ETHER] >> 4 == 4 else 48)
    return _with_quote(frame, into_packet(frame[at:], options))


def out_of_quote(frame: bytes) -> tuple[bytes, Options]:
    """Return an ICMP error, which has no options, about the packet without options, and these."""
    at = ETHER + (28 if frame[ETHER] >> 4 == 4 else 48)
    quoted, options = out_of_packet(frame[at:])
    return _with_quote(frame, quoted), options


def answer_with(frame: bytes, asked: bytes, options: Options) -> bytes:
    """Return what must become of a packet with options, given what becomes of the one without, asked.

    What is translated or turned round keeps them, an error about it quotes them, and a reset has none. Where
    asked is an ICMP error itself, it has them, and is about a packet that has them.
    """
    if not options.size:
        return frame
    if is_error(asked):
        return into(into_quote(frame, options), options)
    if is_error(frame):
        return into_quote(frame, options)
    return frame if _is_reset_for(frame, asked) else into(frame, options)


def _is_reset_for(frame: bytes, asked: bytes) -> bool:
    """Is it the answer of nobody to a TCP segment?"""
    answer, segment = p.l3(frame), p.l3(asked)
    if TCP not in answer or TCP not in segment or "R" in segment[TCP].flags:
        return False
    return "R" in answer[TCP].flags and bool(answer.dst == segment.src and answer.src == segment.dst)
