# SPDX-License-Identifier: Apache-2.0
"""Packets of events as a pcapng file, for Wireshark: each as it came and as it goes, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from scapy.packet import Raw
from scapy.utils import PcapNgWriter

from lb.errors import ConfigError
from lb.folders import create_file
from lb.live.events import PacketEvent, What

_ETHERNET = 1  # LINKTYPE_ETHERNET
_ETHERTYPES = {4: b"\x08\x00", 6: b"\x86\xdd"}
_LINK_BYTES = 14


class Capture:
    """A pcapng file being written; close it. Its interfaces are the hooks.

    A packet of a device without link header gets one of zeros, so that all are of one kind.

    Raises ConfigError: it cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            with create_file(path) as file:
                self._writer = PcapNgWriter(f"/proc/self/fd/{file.fileno()}")  # it takes nothing but a name
        except OSError as error:
            raise self._error(error) from error
        self._writer.linktype = _ETHERNET
        self._writer.sync = True  # whoever reads along sees each packet at once
        self._writer.write_header(None)

    def close(self) -> None:
        """Finish the file."""
        try:
            self._writer.close()
        except OSError as error:
            raise self._error(error) from error

    def write(self, record: Any, event: PacketEvent) -> None:
        """Write the packets of an event: record is what it was told from.

        Raises ConfigError: it cannot be written.
        """
        before = record["before"][: record["captured"]].tobytes()
        after = record["after"][: record["sent_captured"]].tobytes()
        words = f"{' '.join(event.words().split())}: {event.meaning}"
        bare = not record["l3"]
        # Where we send a packet on that came without a link header, it has got one.
        grown = record["sent_len"] == record["len"] + _LINK_BYTES and event.what is not What.REFUSED
        try:
            if before:
                self._write(*_framed(before, record["len"], record, bare), event, f"before: {words}")
            if after:
                framed = _framed(after, record["sent_len"], record, bare and not grown)
                self._write(*framed, event, f"after: {words}")
        except OSError as error:
            raise self._error(error) from error

    def _write(self, data: bytes, length: int, event: PacketEvent, comment: str) -> None:
        packet = Raw(data)
        packet.time = event.time_ns / 1e9
        packet.wirelen = length
        packet.sniffed_on = event.hook
        packet.comment = comment.encode()
        self._writer.write_packet(packet)

    def _error(self, error: OSError) -> ConfigError:
        return ConfigError(f"--pcap {self._path}: {error.strerror}")


def _framed(data: bytes, length: int, record: Any, bare: bool) -> tuple[bytes, int]:
    """Return a packet and its length with a link header, an empty one in front of what is bare."""
    if not bare:
        return data, int(length)
    return bytes(_LINK_BYTES - 2) + _ETHERTYPES[int(record["family"])] + data, int(length) + _LINK_BYTES
