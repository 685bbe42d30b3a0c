# SPDX-License-Identifier: Apache-2.0
"""What nodes tell each other on a segment: frames of Ethernet, to all, of our own kind.

They go wherever ARP goes, need no IP address, and pass no firewall of IP. Behind the link header, whose type
is the first of IEEE 802's two for local experiments: ``LBA1``, the length of what follows (two bytes, network
byte order), and MessagePack: an array of the fields of :class:`Part`.

A whole beat, which lists every address, is sent when something has changed: 1,000 IPv6 addresses take twelve
frames. All others are one short frame with a hash of the last whole one. Who hears a hash that it does not
know, because it has just come or has lost a frame, says so in its own next beat, and a whole one follows.
Until then it counts as not heard. Anybody on the segment could forge a beat, as anybody there could forge
ARP.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv6Address

import msgspec
import xxhash

from lb.announce.servable import Standing
from lb.model import IPAddress
from lb.segment.election import Claim, Claims, Hold, Member

ETHERTYPE = 0x88B5
TO_ALL = b"\xff" * 6
MOST_ADDRESSES = 4096
"""Of each family, in a beat: as many as the map ``announced`` has room for."""

_MOST_PARTS = 96  # enough for these
_MAGIC = b"LBA1"
_HEAD = struct.Struct("!6s6sH4sH")
_IN_PART = 1160  # bytes of claims: with a name of 253 bytes a part still fits into a frame of 1500 bytes
_MOST_NAME = 253
_MOST_MISSING = 190  # as many link addresses as fit into a short beat
_KINDS: tuple[tuple[Callable[[bytes], IPAddress], int], ...] = ((IPv4Address, 4), (IPv6Address, 16))
_STANDINGS = {Standing.SERVES: "s", Standing.LAST: "l", Standing.LEAVING: "g"}
_HOLDS = {Hold.FREE: "", Hold.HELD: "h", Hold.OFFERED: "o"}
_CODES: Mapping[Claim, str] = {
    Claim(standing, hold): letter + more
    for standing, letter in _STANDINGS.items()
    for hold, more in _HOLDS.items()
}
_CLAIMS: Mapping[str, Claim] = {code: claim for claim, code in _CODES.items()}

Packed = dict[str, tuple[bytes, bytes]]
"""Addresses by what is said of them: those of IPv4 one behind the other, and those of IPv6."""


class Part(msgspec.Struct, array_like=True, frozen=True):
    """A part of a beat.

    state: hash of all claims. number: of the beat, counted by its sender. parts: 0 for a short beat, which
    has no claims. missing: link addresses, one behind the other, of nodes whose claims the sender lacks.
    """

    node: str
    state: int
    number: int
    part: int = 0
    parts: int = 0
    missing: bytes = b""
    claims: Packed = msgspec.field(default_factory=dict)


_DECODER = msgspec.msgpack.Decoder(Part)


class Teller:
    """Makes the beats of one node."""

    def __init__(self, me: Member) -> None:
        self._me = me
        self._number = 0
        self._claims: Claims | None = None
        self._parts: Sequence[Packed] = ()
        self._state = 0

    def beat(self, claims: Claims, missing: Collection[Member] = (), *, whole: bool = False) -> list[bytes]:
        """Return the next beat as frames.

        claims: at most MOST_ADDRESSES of each family, not changed afterwards. missing: whose claims are not
        known. whole: somebody lacks ours; those that have changed are told anyway.
        """
        self._number += 1
        parts: Sequence[Packed] = ()
        if claims is not self._claims and claims != self._claims:
            self._claims, self._parts = claims, list(_split(claims))
            self._state = xxhash.xxh3_64_intdigest(msgspec.msgpack.encode(self._parts))
            whole = True
        if whole:
            parts = self._parts
        lacked = b"".join(_bytes(each.mac) for each in sorted(missing)[:_MOST_MISSING])
        return [
            *(self._frame(at, len(parts), claims=part) for at, part in enumerate(parts)),
            self._frame(missing=lacked),
        ]

    def _frame(
        self, at: int = 0, parts: int = 0, missing: bytes = b"", claims: Packed | None = None
    ) -> bytes:
        part = Part(self._me.node, self._state, self._number, at, parts, missing, claims or {})
        text = msgspec.msgpack.encode(part)
        return _HEAD.pack(TO_ALL, _bytes(self._me.mac), ETHERTYPE, _MAGIC, len(text)) + text


def _bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def _split(claims: Claims) -> Iterator[Packed]:
    """Yield the claims as parts that fit into a frame, at least one."""
    part: dict[str, tuple[bytearray, bytearray]] = {}
    room = _IN_PART
    for address, claim in claims.items():
        code, size = _CODES[claim], len(address.packed)
        room -= size if code in part else size + 16
        if room < 0:
            yield _packed(part)
            part, room = {}, _IN_PART - size - 16
        part.setdefault(code, (bytearray(), bytearray()))[address.version == 6].extend(address.packed)
    yield _packed(part)


def _packed(part: Mapping[str, tuple[bytearray, bytearray]]) -> Packed:
    return {code: (bytes(four), bytes(six)) for code, (four, six) in part.items()}


def _unpacked(parts: Iterable[Part]) -> dict[IPAddress, Claim]:
    """Return the claims in all parts of a beat.

    Raises ValueError: what is said of an address is nothing that we know, or half an address is left.
    """
    found: dict[IPAddress, Claim] = {}
    for part in parts:
        for code, packed in part.claims.items():
            if code not in _CLAIMS:
                raise ValueError(code)
            for (kind, size), data in zip(_KINDS, packed, strict=True):
                if len(data) % size:
                    raise ValueError(f"{len(data)} bytes of addresses")
                found |= {kind(data[at : at + size]): _CLAIMS[code] for at in range(0, len(data), size)}
    return found


@dataclass(slots=True)
class _Pending:
    number: int
    parts: dict[int, Part] = field(default_factory=dict)


class Heartbeats:
    """Understands others' beats; me: who hears them.

    Attributes
    ----------
    refused: how many frames were none that we understand.
    missing: members that were heard, whose claims are not known.
    asked: whether another has missed ours; whoever answers sets it to False.
    """

    _MOST_MEMBERS = 256

    def __init__(self, me: Member) -> None:
        self.refused = 0
        self.missing: set[Member] = set()
        self.asked = False
        self._me = _bytes(me.mac)
        self._pending: dict[Member, _Pending] = {}
        self._known: dict[Member, tuple[int, Claims]] = {}

    def read(self, frame: bytes) -> tuple[Member, Claims] | None:
        """Return what a member says of addresses now, or None: the frame does not tell it."""
        found = _read(frame)
        if found is None:
            self.refused += 1
            return None
        member, part = found
        if part.parts:
            return self._whole(member, part)
        self.asked |= any(
            part.missing[at : at + len(self._me)] == self._me
            for at in range(0, len(part.missing), len(self._me))
        )
        state, claims = self._known.get(member, (None, {}))
        if state != part.state:
            if len(self.missing) < self._MOST_MEMBERS:
                self.missing.add(member)
            return None
        return member, claims

    def _whole(self, member: Member, part: Part) -> tuple[Member, Claims] | None:
        """Return the beat that a part completes, or None."""
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
            claims = _unpacked(pending.parts.values())
        except ValueError:
            self.refused += 1
            return None
        if len(self._known) >= self._MOST_MEMBERS:
            self._known.clear()
        self._known[member] = part.state, claims
        self.missing.discard(member)
        return member, claims


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
    whole = 0 <= part.part < part.parts <= _MOST_PARTS
    if not (part.node and len(part.node) <= _MOST_NAME and (whole or part.parts == 0)):
        return None
    return Member(part.node, source.hex(":")), part
