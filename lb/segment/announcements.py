# SPDX-License-Identifier: Apache-2.0
"""The frames that tell a segment where an address is from now on, without having been asked."""

from __future__ import annotations

import struct
from ipaddress import IPv4Address, IPv6Address

from lb.model import IPAddress

_ALL = b"\xff" * 6
_ALL_NODES_MAC = bytes.fromhex("333300000001")
_ALL_NODES = IPv6Address("ff02::1").packed
_ETH_P_ARP, _ETH_P_IPV6 = 0x0806, 0x86DD
_REQUEST, _REPLY = 1, 2
_ICMPV6, _HOP_LIMIT = 58, 255
_ADVERTISEMENT, _TARGET_LINK = 136, 2
_OVERRIDE = 0x20


def announcements(address: IPAddress, mac: bytes) -> list[bytes]:
    """Return the frames by which hosts correct what they have noted of an address; mac: six bytes.

    Of IPv4 these are a gratuitous request and a gratuitous reply (RFC 5227, section 3: an announcement is a
    request; some hosts heed replies alone); of IPv6 an unsolicited advertisement to all nodes, with override
    (RFC 4861, section 7.2.6).
    """
    if isinstance(address, IPv4Address):
        return [_arp(operation, address, mac) for operation in (_REQUEST, _REPLY)]
    return [_advertisement(address, mac)]


def _arp(operation: int, address: IPv4Address, mac: bytes) -> bytes:
    target = _ALL if operation == _REPLY else bytes(6)
    head = struct.pack("!6s6sHHHBBH", _ALL, mac, _ETH_P_ARP, 1, 0x0800, 6, 4, operation)
    return head + mac + address.packed + target + address.packed


def _advertisement(address: IPv6Address, mac: bytes) -> bytes:
    option = struct.pack("!BB6s", _TARGET_LINK, 1, mac)
    body = struct.pack("!B3x16s", _OVERRIDE, address.packed) + option
    length = 4 + len(body)
    pseudo = address.packed + _ALL_NODES + struct.pack("!I3xB", length, _ICMPV6)
    check = _checksum(pseudo + struct.pack("!BBH", _ADVERTISEMENT, 0, 0) + body)
    message = struct.pack("!BBH", _ADVERTISEMENT, 0, check) + body
    header = struct.pack("!IHBB", 6 << 28, length, _ICMPV6, _HOP_LIMIT) + address.packed + _ALL_NODES
    return struct.pack("!6s6sH", _ALL_NODES_MAC, mac, _ETH_P_IPV6) + header + message


def _checksum(data: bytes) -> int:
    """Return the Internet checksum of an even number of bytes (RFC 1071)."""
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
