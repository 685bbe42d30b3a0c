# SPDX-License-Identifier: Apache-2.0
"""Frames to trace: made from a few words, read from capture files, and told in a line. All by Scapy."""

from __future__ import annotations

import errno
import gzip
import io
import struct
import zlib
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from scapy.error import Scapy_Exception
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.inet6 import ICMPv6EchoReply, ICMPv6EchoRequest, IPv6
from scapy.layers.l2 import Ether
from scapy.layers.sctp import SCTP, SCTPChunkInit, SCTPChunkInitAck
from scapy.packet import NoPayload, Packet
from scapy.utils import PcapReader, PcapWriter

from lb.datapath.view.words import protocol_name
from lb.errors import ConfigError
from lb.folders import create_file, read_stream
from lb.model import FiveTuple, Protocol, socket_text

ECHO = {4: 1, 6: 58}
"""The protocol of an echo request by IP version: ICMP, ICMPv6."""
TCP_FLAGS = "FSRPAUEC"
"""The letters of TCP's flags: FIN, SYN, RST, PSH, ACK, URG, ECE, CWR."""
_MOST_CAPTURE = 64 << 20
_GZIP = b"\x1f\x8b"
_SMALLEST_BLOCK = 12  # bytes of a block of a pcapng file
_PCAPNG = b"\n\r\r\n"
_SMALL_ENDIAN_PCAP = (b"\xd4\xc3\xb2\xa1", b"\x4d\x3c\xb2\xa1")  # its times in µs, in ns
_SOMEBODY = "02:00:00:00:00:01"
_SCTP_CHUNKS = {"S": SCTPChunkInit, "SA": SCTPChunkInitAck}


def build(packet: FiveTuple, *, mac: str, flags: str = "S") -> bytes:
    """Return the frame of a packet without payload, addressed to an interface's mac.

    The protocol is TCP (with these flags), UDP, SCTP (an INIT) or an echo request (no ports).
    """
    src, dst = str(packet.src), str(packet.dst)
    head = IP(src=src, dst=dst) if packet.version == 4 else IPv6(src=src, dst=dst)
    ports = {"sport": packet.sport, "dport": packet.dport}
    if packet.protocol == Protocol.TCP:
        body: Packet = TCP(**ports, flags=flags)
    elif packet.protocol == Protocol.UDP:
        body = UDP(**ports)
    elif packet.protocol == Protocol.SCTP:
        body = SCTP(**ports) / _SCTP_CHUNKS[flags]()
    else:
        body = ICMP() if packet.version == 4 else ICMPv6EchoRequest()
    return bytes(Ether(src=_SOMEBODY, dst=mac or "00:00:00:00:00:00") / head / body)


def answer(frame: bytes, mac: str) -> bytes | None:
    """Return the frame that a backend answers with, addressed to mac; None for what has no answer.

    To a SYN it is a SYN-ACK, to an INIT an INIT ACK, to another segment an ACK.
    """
    packet = read(frame)
    if packet is None or packet.protocol not in list(Protocol):
        return None
    layer = Ether(frame)
    starts = TCP not in layer or layer[TCP].flags == "S"
    return build(packet.reverse, mac=mac, flags="SA" if starts else "A")


def read(frame: bytes) -> FiveTuple | None:
    """Return where a frame is from and for; None when that cannot be told, as of ARP, of an ICMP error.

    Ports are 0 where there are none: in an echo request, and in a fragment other than the first.
    """
    head = _ip(frame)
    if head is None:
        return None
    number = int(head.proto if isinstance(head, IP) else head.nh)
    src, dst, body = ip_address(head.src), ip_address(head.dst), head.payload
    if isinstance(body, (TCP, UDP, SCTP)):
        return FiveTuple(src, int(body.sport), dst, int(body.dport), number)
    if (isinstance(body, ICMP) and body.type in (0, 8)) or isinstance(
        body, (ICMPv6EchoRequest, ICMPv6EchoReply)
    ):
        return FiveTuple(src, 0, dst, 0, number)
    return None


def is_echo(packet: FiveTuple) -> bool:
    """Tell whether it is a ping."""
    return packet.protocol == ECHO[packet.version]


def _ip(frame: bytes) -> Packet | None:
    """Return the IP layer of a frame, when it comes right behind the link header."""
    inner = Ether(frame).payload
    return inner if isinstance(inner, (IP, IPv6)) else None


def summary(frame: bytes) -> str:
    """Return a frame in a line: ``TCP 192.0.2.50:40000 > 10.96.0.10:80 [S], ttl 64, 54 bytes``."""
    packet, layer = read(frame), Ether(frame)
    head = _ip(frame)
    size = f"{len(frame)} bytes"
    if packet is None or head is None:
        return f"{layer.summary()}, {size}"
    ttl = f"ttl {head.ttl if isinstance(head, IP) else head.hlim}"
    if is_echo(packet):
        asks = head.payload.type in (8, 128)
        words = f"{packet.src} > {packet.dst} echo {'request' if asks else 'reply'}"
    else:
        flags = f" [{head.payload.flags}]" if TCP in layer else ""
        words = f"{socket_text(packet.src, packet.sport)} > {socket_text(packet.dst, packet.dport)}{flags}"
    return f"{protocol_name(packet.protocol)} {words}, {ttl}, {size}"


def changes(before: bytes, after: bytes) -> list[tuple[str, str, str]]:
    """Return each field that differs as (name, before, after), named by Scapy: ``IP.dst``.

    Of two packets of different layers, as a segment and the ICMP error about it, nothing can be compared.
    """
    old, new = _fields(before), _fields(after)
    if list(old) != list(new):
        return []
    return [(name, old[name], new[name]) for name in old if old[name] != new[name]]


def _fields(frame: bytes) -> dict[str, str]:
    found = {}
    layer: Any = Ether(frame)
    while not isinstance(layer, NoPayload):
        for field in layer.fields_desc:
            value = layer.getfieldval(field.name)
            found[f"{type(layer).__name__}.{field.name}"] = (
                f"0x{value:04x}" if "chksum" in field.name or field.name == "cksum" else str(value)
            )
        layer = layer.payload
    return found


def read_capture(path: Path, mac: str) -> Iterator[bytes]:
    """Yield the frames of a capture file, pcap or pcapng; packets without an Ethernet header get one to mac.

    Raises ConfigError: the file cannot be read, is no capture, is too large, or ends in the middle of a
    packet.
    """
    try:
        data = read_stream(path, _MOST_CAPTURE)
        if data.startswith(_GZIP):
            data = _unpacked(data)
        with PcapReader(io.BytesIO(data)) as reader:
            if not _is_whole(data):
                raise ConfigError(f"--read {path}: it is damaged, or ends in the middle of a packet")
            for packet in reader:
                yield bytes(packet) if isinstance(packet, Ether) else _framed(packet, mac)
    except (OSError, EOFError, ValueError, struct.error, zlib.error, Scapy_Exception) as error:
        words = (
            error.strerror if isinstance(error, OSError) and error.strerror else "not a pcap or pcapng file"
        )
        raise ConfigError(f"--read {path}: {words}") from error


def _unpacked(data: bytes) -> bytes:
    """Return what gzip has packed.

    Raises OSError: it is too large, or damaged. EOFError, zlib.error: it is damaged.
    """
    with gzip.GzipFile(fileobj=io.BytesIO(data)) as file:
        found = file.read(_MOST_CAPTURE + 1)
    if len(found) > _MOST_CAPTURE:
        raise OSError(errno.EFBIG, f"is larger than {_MOST_CAPTURE} bytes")
    return found


def _is_whole(data: bytes) -> bool:
    """Tell whether a capture ends with a packet's last byte; Scapy leaves out what is cut, with a warning.

    A pcap file has a header of 24 bytes, then packets of a header of 16 and as many bytes as its third word
    says. A pcapng file is a sequence of blocks: type, length of the whole block, and so on; the byte order is
    that of the section, whose first block tells it behind its length.

    Raises struct.error: it ends in the middle of a header.
    """
    if data.startswith(_PCAPNG):
        at, order = 0, "<"
        while at < len(data):
            if data.startswith(_PCAPNG, at):
                order = "<" if data.startswith(b"\x4d\x3c\x2b\x1a", at + 8) else ">"
            at += max(struct.unpack_from(f"{order}I", data, at + 4)[0], _SMALLEST_BLOCK)
        return at == len(data)
    at, order = 24, "<" if data.startswith(_SMALL_ENDIAN_PCAP) else ">"
    while at < len(data):
        at += 16 + struct.unpack_from(f"{order}I", data, at + 8)[0]
    return at == len(data)


def _framed(packet: Packet, mac: str) -> bytes:
    for kind in (IP, IPv6):
        if kind in packet:
            return bytes(Ether(src=_SOMEBODY, dst=mac) / packet[kind])
    return bytes(packet)


def write_capture(path: Path, frames: Sequence[bytes]) -> None:
    """Write frames as a pcap file.

    Raises ConfigError: it cannot be written.
    """
    try:
        with create_file(path) as file, PcapWriter(file, linktype=1) as writer:
            for frame in frames:
                writer.write(Ether(frame))
    except OSError as error:
        raise ConfigError(f"--pcap {path}: {error.strerror}") from error
