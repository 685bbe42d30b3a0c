# SPDX-License-Identifier: Apache-2.0
"""SCTP packets of one chunk, with a CRC32c of their own making: byte by byte, from a table."""

from __future__ import annotations

import struct

_POLYNOMIAL = 0x82F63B78  # CRC32c, bits reversed: RFC 9260, appendix A


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (_POLYNOMIAL if byte & 1 else 0)
    return byte


_TABLE = [_entry(byte) for byte in range(256)]

CHUNKS = {
    "DATA": 0,
    "INIT": 1,
    "INIT ACK": 2,
    "HEARTBEAT": 4,
    "ABORT": 6,
    "SHUTDOWN": 7,
    "SHUTDOWN ACK": 8,
    "COOKIE ECHO": 10,
    "COOKIE ACK": 11,
    "SHUTDOWN COMPLETE": 14,
}
"""Chunk types: RFC 9260, section 3.2."""


def crc32c(data: bytes) -> int:
    """Return the CRC32c of data."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = crc >> 8 ^ _TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


def with_checksum(packet: bytes) -> bytes:
    """Return an SCTP packet with its checksum right, which lies there with its lowest byte first."""
    blank = packet[:8] + bytes(4) + packet[12:]
    return packet[:8] + struct.pack("<I", crc32c(blank)) + packet[12:]


TAG = 0xC0FFEE00


def chunk_packet(sport: int, dport: int, chunk: str, payload: bytes = b"", tag: int = TAG) -> bytes:
    """Return an SCTP packet of one chunk, with its checksum. tag: the verification tag."""
    head = struct.pack("!HHII", sport, dport, tag, 0)
    body = struct.pack("!BBH", CHUNKS[chunk], 0, 4 + len(payload)) + payload
    return with_checksum(head + body + bytes(-len(body) % 4))
