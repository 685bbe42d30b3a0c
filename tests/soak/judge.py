# SPDX-License-Identifier: Apache-2.0
"""What may become of a frame, by the invariants alone: an independent judge of the programs.

It knows neither Services' backends nor flows, and shares no code with the reference model of the packet
tests. So it can say of every frame, however broken, whether what the programs did is forbidden.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from ipaddress import ip_address

from tests.packet.harness import DROP, PASS, SEND, TAKEN

ETHER = 14
TCP, UDP, ICMP, ICMP6 = 6, 17, 1, 58
EXTENSIONS = (0, 43, 60)
ROUTING, FRAGMENT, AUTHENTICATION = 43, 44, 51
_SOURCE_ROUTES = (131, 137)
_CHECKSUM_AT = {TCP: 16, UDP: 6, ICMP: 2, ICMP6: 2}


@dataclass(frozen=True, slots=True)
class Headers:
    """What an honest reader finds in a frame.

    l4: offset of the header behind IP and its extensions; -1: there is none, or it is in another fragment.
    hops: TTL or hop limit. rest: the bytes of the IP header that no translation changes.
    """

    version: int
    src: bytes
    dst: bytes
    protocol: int
    hops: int
    end: int
    l4: int
    fragment: bool
    rest: bytes


def headers(frame: bytes) -> Headers | None:
    """Return the headers of a frame, or None where it is no whole IPv4 or IPv6 packet."""
    kind = frame[12:14]
    ip = frame[ETHER:]
    if kind == b"\x08\x00" and len(ip) >= 20 and ip[0] >> 4 == 4:
        size, total = (ip[0] & 15) * 4, int.from_bytes(ip[2:4])
        if size < 20 or total < size or total > len(ip):
            return None
        place = int.from_bytes(ip[6:8])
        later = place & 0x1FFF
        rest = ip[:8] + ip[9:10] + ip[20:size]
        l4 = -1 if later else ETHER + size
        return Headers(4, ip[12:16], ip[16:20], ip[9], ip[8], ETHER + total, l4, bool(place & 0x3FFF), rest)
    if kind == b"\x86\xdd" and len(ip) >= 40 and ip[0] >> 4 == 6:
        total, number, at, fragment, later = 40 + int.from_bytes(ip[4:6]), ip[6], 40, False, False
        if total > len(ip):
            return None
        while number in (*EXTENSIONS, FRAGMENT) and not later:
            if at + 8 > total:
                return None
            if number == FRAGMENT:
                place = int.from_bytes(ip[at + 2 : at + 4])
                fragment, later = fragment or bool(place & 0xFFF9), bool(place >> 3)
                number, at = ip[at], at + 8
            else:
                number, at = ip[at], at + 8 + ip[at + 1] * 8
        l4 = -1 if later or at > total else ETHER + at
        return Headers(6, ip[8:24], ip[24:40], number, ip[7], ETHER + total, l4, fragment, ip[:7])
    return None


def is_routed_or_signed(frame: bytes) -> bool:
    """Has a whole packet a source route (IPv4 options, IPv6 routing header with segments left) or AH?

    Then its destination is not where it goes, or must not be changed.
    """
    ip = frame[ETHER:]
    if frame[12:14] == b"\x08\x00":
        at, end = 20, (ip[0] & 15) * 4
        while at < end and ip[at] != 0:
            if ip[at] in _SOURCE_ROUTES:
                return True
            at += 1 if ip[at] == 1 else ip[at + 1] or end
        return False
    number, at = ip[6], 40
    while number in (*EXTENSIONS, FRAGMENT) and at + 8 <= len(ip):
        if number == ROUTING and ip[at + 3]:
            return True
        number, at = ip[at], at + (8 if number == FRAGMENT else 8 + ip[at + 1] * 8)
    return number == AUTHENTICATION


def _sum(data: bytes) -> int:
    """Return the one's complement sum of data (RFC 1071), 0xFFFF for one that is right."""
    total: int = sum(struct.unpack(f"!{(len(data) + 1) // 2}H", data + b"\0" * (len(data) % 2)))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return total


def ip_checksum_right(frame: bytes) -> bool:
    """Is the IPv4 header's checksum right?"""
    return _sum(frame[ETHER : ETHER + (frame[ETHER] & 15) * 4]) == 0xFFFF


def l4_checksum_right(frame: bytes, found: Headers) -> bool | None:
    """Is the checksum of TCP, UDP or ICMP right? None: the frame has none, or not all that it is over."""
    at = _CHECKSUM_AT.get(found.protocol)
    if at is None or found.l4 < 0 or found.fragment or found.l4 + at + 2 > found.end:
        return None
    body = frame[found.l4 : found.end]
    if found.protocol == UDP:
        if body[6:8] == b"\0\0" and found.version == 4:
            return None
        if int.from_bytes(body[4:6]) != len(body):
            return None
    if found.protocol == ICMP:
        return _sum(body) == 0xFFFF
    pseudo = found.src + found.dst + struct.pack("!II", len(body), found.protocol)
    return _sum(pseudo + body) == 0xFFFF


@dataclass(slots=True)
class Judge:
    """Judges what became of frames at a node.

    ours: addresses that a frame must have, or quote in an ICMP error, to be any business of the programs:
    VIPs, backends, the node's own.
    """

    ours: set[bytes] = field(default_factory=set)

    @classmethod
    def of(cls, addresses: set[str]) -> Judge:
        """Return the judge for these addresses of both families."""
        return cls({ip_address(address).packed for address in addresses})

    def concerns(self, frame: bytes) -> bool:
        """Could the frame be for a VIP, or an answer or error of a translated flow?"""
        found = headers(frame)
        if found is None:
            return False
        if found.src in self.ours or found.dst in self.ours:
            return True
        if found.protocol not in (ICMP, ICMP6) or found.l4 < 0:
            return False
        quoted = frame[12:14] + frame[found.l4 + 8 : found.end]
        inner = quoted[2:]
        size = 4 if found.version == 4 else 16
        at = 12 if found.version == 4 else 8
        return inner[at : at + size] in self.ours or inner[at + size : at + 2 * size] in self.ours

    def fault(self, before: bytes, verdict: str, after: bytes) -> str:
        """Return what is wrong with what became of a frame; empty where nothing is."""
        if verdict not in (PASS, DROP, SEND, TAKEN):
            return f"no verdict of the hook: {verdict}"
        if not self.concerns(before):
            found = headers(before)
            if verdict == TAKEN and found is not None and found.fragment:
                return ""  # to an address without a route: see may_be_ours() of bpf/pieces.h
            if verdict != PASS:
                return f"{verdict}: it is no business of the programs"
            return "" if after == before else "changed: it is no business of the programs"
        if verdict == PASS and after == before:
            return ""
        whole = headers(before)
        if whole and not whole.fragment and is_routed_or_signed(before):
            return f"{verdict}: its destination is another than it says, or signed"
        if verdict in (DROP, TAKEN):
            return ""
        old, new = headers(before), headers(after)
        if old is None or new is None:
            return "it is no whole IP packet any more" if new is None else "translated, and no whole packet"
        if new.version != old.version:
            return "of another IP version"
        if verdict == SEND and new.dst == old.src:
            return self._answer_fault(before, old, after, new)
        return self._translation_fault(before, old, after, new)

    def _answer_fault(self, before: bytes, old: Headers, after: bytes, new: Headers) -> str:
        """Look at what goes back to the sender: RST, ICMP error, echo reply. It is as right as its cause."""
        if new.version == 4 and ip_checksum_right(before) and not ip_checksum_right(after):
            return "an answer whose IP checksum is wrong"
        if l4_checksum_right(before, old) and l4_checksum_right(after, new) is False:
            return "an answer whose checksum is wrong"
        return "" if new.src in self.ours else "an answer in a stranger's name"

    def _translation_fault(self, before: bytes, old: Headers, after: bytes, new: Headers) -> str:
        """Look at a packet that was translated: addresses, ports, TTL and checksums may differ."""
        # Of a piece, what is behind the packet's end is taken off: it may be what is left of a cut packet.
        if len(after) != len(before) and not (old.fragment and len(after) == old.end):
            return f"{len(before)} bytes became {len(after)}"
        if (new.rest, new.protocol, new.end, new.l4) != (old.rest, old.protocol, old.end, old.l4):
            return "the IP header changed beyond addresses, TTL and checksum"
        if not 0 <= old.hops - new.hops <= 1:
            return f"TTL {old.hops} became {new.hops}"
        if old.version == 4 and ip_checksum_right(before) != ip_checksum_right(after):
            return "the IP checksum was right and is wrong, or the other way round"
        right = l4_checksum_right(before, old)
        if right and not l4_checksum_right(after, new):
            return "the checksum was right and is wrong"
        if old.l4 < 0:
            size = 20 if old.version == 4 else 40
            rest = before[ETHER + size : len(after)]
            return "" if rest == after[ETHER + size :] else "payload changed"
        if old.protocol in (TCP, UDP):
            at = _CHECKSUM_AT[old.protocol]
            for start, end in ((old.l4 + 4, old.l4 + at), (old.l4 + at + 2, len(after))):
                if before[start:end] != after[start:end]:
                    return "payload or flags changed"
        return ""
