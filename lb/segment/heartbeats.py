# SPDX-License-Identifier: Apache-2.0
"""What nodes tell each other on a segment: frames of Ethernet, to all, of our own kind.

They go wherever ARP goes, need no IP address, and pass no firewall of IP. Behind the link header, whose type
is the first of IEEE 802's two for local experiments: ``LBA1``, the length of what follows (two bytes, network
byte order), and JSON: an array of the fields of :class:`Part`. A beat that is too long for a frame comes in
parts. Anybody on the segment could forge one, as anybody there could forge ARP.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import ip_address

import msgspec

from lb.announce.servable import Standing
from lb.segment.election import Claim, Claims, Hold, Member

ETHERTYPE = 0x88B5
TO_ALL = b"\xff" * 6
MOST_PARTS = 64

_MAGIC = b"LBA1"
_HEAD = struct.Struct("!6s6sH4sH")
_IN_PART = 1200  # bytes of claims: with the rest of a part it fits into a frame of 1500 bytes
_MOST_NAME = 253
_STANDINGS = {Standing.SERVES: "s", Standing.LAST: "l", Standing.LEAVING: "g"}
_HOLDS = {Hold.FREE: "", Hold.HELD: "h", Hold.OFFERED: "o"}
_CODES: Mapping[Claim, str] = {
    Claim(standing, hold): letter + more
    for standing, letter in _STANDINGS.items()
    for hold, more in _HOLDS.items()
}
_CLAIMS: Mapping[str, Claim] = {code: claim for claim, code in _CODES.items()}


class Part(msgspec.Struct, array_like=True, frozen=True):
    """A part of a beat. number: of the beat, counted by its sender. claims: addresses by what is said."""

    node: str
    number: int
    part: int
    parts: int
    claims: dict[str, list[str]]


_DECODER = msgspec.json.Decoder(Part)


def frames(me: Member, number: int, claims: Claims) -> list[bytes]:
    """Return a beat as frames; claims beyond MOST_PARTS frames are left out."""
    parts = _split(claims)[:MOST_PARTS]
    return [_frame(me, Part(me.node, number, at, len(parts), part)) for at, part in enumerate(parts)]


def _split(claims: Claims) -> Sequence[dict[str, list[str]]]:
    parts: list[dict[str, list[str]]] = [{}]
    room = _IN_PART
    for address, claim in claims.items():
        text = str(address)
        room -= len(text) + 16
        if room < 0:
            parts.append({})
            room = _IN_PART - len(text) - 16
        parts[-1].setdefault(_CODES[claim], []).append(text)
    return parts


def _frame(me: Member, part: Part) -> bytes:
    text = msgspec.json.encode(part)
    source = bytes.fromhex(me.mac.replace(":", ""))
    return _HEAD.pack(TO_ALL, source, ETHERTYPE, _MAGIC, len(text)) + text


@dataclass(slots=True)
class _Pending:
    number: int
    parts: dict[int, Part] = field(default_factory=dict)


class Heartbeats:
    """Puts the parts of others' beats together. refused: how many frames were none that we understand."""

    _MOST_MEMBERS = 1024

    def __init__(self) -> None:
        self.refused = 0
        self._pending: dict[Member, _Pending] = {}

    def read(self, frame: bytes) -> tuple[Member, Claims] | None:
        """Return the beat that a frame completes, or None."""
        found = _read(frame)
        if found is None:
            self.refused += 1
            return None
        member, part = found
        if len(self._pending) >= self._MOST_MEMBERS:
            self._pending.clear()
        pending = self._pending.get(member)
        if pending is None or pending.number != part.number:
            pending = self._pending[member] = _Pending(part.number)
        pending.parts[part.part] = part
        if len(pending.parts) < part.parts:
            return None
        del self._pending[member]
        try:
            return member, {
                ip_address(text): _CLAIMS[code]
                for one in pending.parts.values()
                for code, texts in one.claims.items()
                for text in texts
            }
        except (KeyError, ValueError):
            self.refused += 1
            return None


def _read(frame: bytes) -> tuple[Member, Part] | None:
    """Return who sent a frame, and what is in it; None: nothing that we understand."""
    if len(frame) < _HEAD.size:
        return None
    _, source, kind, magic, length = _HEAD.unpack_from(frame)
    if (kind, magic) != (ETHERTYPE, _MAGIC) or len(frame) < _HEAD.size + length:
        return None
    try:
        part = _DECODER.decode(frame[_HEAD.size : _HEAD.size + length])
    except (msgspec.DecodeError, ValueError):
        return None
    if not (part.node and len(part.node) <= _MOST_NAME and 0 <= part.part < part.parts <= MOST_PARTS):
        return None
    return Member(part.node, source.hex(":")), part
