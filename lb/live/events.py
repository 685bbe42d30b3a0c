# SPDX-License-Identifier: Apache-2.0
"""Events of the data plane in words: what became of one packet, as ``lbctl monitor`` tells it."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from ipaddress import IPv4Address, IPv6Address
from textwrap import TextWrapper
from typing import Any

import numpy as np

from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import HOOKS, ID, REASONS, Direction
from lb.datapath.sync.ledger import read_names, read_vips
from lb.datapath.view.words import NEW_FLOW, protocol_name
from lb.errors import ConfigError
from lb.model import IPAddress, ObjectKey, Protocol, socket_text
from lb.words import short

_ANSWERS = {
    "PING": "answered",
    "REJECT_NO_ENDPOINT": "refused",
    "REJECT_UNKNOWN_PORT": "refused",
    "REJECT_NO_LISTENER": "refused",
    "TTL_EXPIRED": "refused",
    "TOO_BIG": "refused",
}
_DROPS = {"XDP": 1, "TC": 2, "SOCK": 0}
"""The verdict that lets nothing pass, by the kind of hook, which its name begins with."""
_INDENT = " " * 4
_SOCKET = "SOCK"
_TCP_FLAGS = "FSRPAUEC"
"""From the lowest bit on: RFC 9293, section 3.1."""


class What(StrEnum):
    """What an event is about. NEW and CLOSED: a connection begins, and was ended by both sides."""

    NEW = "new"
    CLOSED = "closed"
    PASSED = "passed"
    ANSWERED = "answered"
    REFUSED = "refused"
    DROPPED = "dropped"


@dataclass(frozen=True, slots=True)
class PacketEvent:
    """What became of one packet, or of a process's call that gives an address.

    time_ns: ns since 1970. interface: its name, or its ifindex where it has none any more, ``""`` of a call.
    service: as ``namespace/name:port name``, ``""`` where none is known. source, destination: as the packet
    came; sent_source, sent_destination: as it went, ``""`` where it was not translated. flags: TCP's, as
    letters. length: bytes of the frame as it came, 0 of a call.

    client, vip, backend, snat: of a packet of a connection. What is not known, or not there, is ``""``:
    without SNAT the backend sees the client's own address, and of a call nobody knows the port, nor always
    the address, that it will come from. pod: the backend's, ``namespace/name``.
    """

    time_ns: int
    what: What
    hook: str
    interface: str
    reason: str
    meaning: str
    service: str
    protocol: str
    reply: bool
    source: str
    destination: str
    sent_source: str
    sent_destination: str
    client: str
    vip: str
    backend: str
    snat: str
    flags: str
    length: int
    pod: str = ""

    def as_dict(self) -> dict[str, Any]:
        """Return the event as JSON has it; what is not known is left out."""
        fields = {name: getattr(self, name) for name in self.__slots__ if name != "time_ns"}
        fields["what"] = self.what.value
        known = {name: value for name, value in fields.items() if value != ""}
        return {"time": _moment(self.time_ns).isoformat(timespec="microseconds"), **known}

    def words(self) -> str:
        """Return what it says of the packet, without the time, in one line."""
        flags = f" [{self.flags}]" if self.flags else ""
        return f"{self._head()}  {self.protocol} {self._way()}{flags}"

    def _head(self) -> str:
        return f"{self.what:<8}  {self.reason:<18}  {self.service or '-'}"

    def line(self, width: int | None = None) -> str:
        """Return the event with the time of the day: in one line, or in several of at most width columns."""
        clock = _moment(self.time_ns).strftime("%H:%M:%S.%f")
        line = f"{clock}  {self.words()}  {f'{self.interface} {self.hook}'.strip()}"
        if width is None or len(line) <= width:
            return line
        head, rest = f"{clock}  {self._head()}", line[len(clock) + 2 + len(self._head()) :].strip()
        place = f"{self.interface} {self.hook}".strip()
        if len(head) + 2 + len(place) <= width:  # its place is with the head, where there is room
            head, rest = f"{head}  {place}", rest.removesuffix(place).rstrip()
        break_up = TextWrapper(
            width, subsequent_indent=_INDENT, break_long_words=False, break_on_hyphens=False
        )
        lines = break_up.wrap(head)
        break_up.initial_indent = _INDENT
        return "\n".join([*lines, *break_up.wrap(rest)])

    def _way(self) -> str:
        """Tell the ends: to the right what the client sends, to the left what it gets."""
        if not self.vip:
            sent = f" => {self.sent_source} -> {self.sent_destination}" if self.sent_source else ""
            return f"{self.source} -> {self.destination}{sent}"
        snat = f" as {self.snat}" if self.snat else ""
        there, back = ("<-", "<=") if self.reply else ("->", "=>")
        pod = f" ({short(self.pod)})" if self.pod else ""
        backend = f" {back} {self.backend}{pod}{snat}" if self.backend else ""
        return f"{self.client or 'a process'} {there} {self.vip}{backend}"


def _moment(time_ns: int) -> datetime:
    return datetime.fromtimestamp(time_ns // 1000 / 1e6).astimezone()


class Names:
    """What the ids in events mean; looked up once until :meth:`forget`.

    Services are those of the maps, interfaces those of the calling thread's network namespace. pod_at returns
    the pod at ``address:port``, as ``namespace/name``, ``""`` where none is known.
    """

    def __init__(self, maps: KernelMaps, pod_at: Callable[[str], str] = lambda _socket: "") -> None:
        self._maps = maps
        self.pod_at = pod_at
        self._services: dict[int, str] = {}
        self._interfaces: dict[int, str] = {}

    def forget(self) -> None:
        """Look everything up anew: an id may have become another's."""
        self._services.clear()
        self._interfaces.clear()

    def service(self, ident: int) -> str:
        """Return a Service port, ``namespace/name:port name``; ``""`` when there is none of this id."""
        name = self._services.get(ident)
        if name is None:
            row = self._maps.lookup("services", np.array([ident], ID)) if ident else None
            name = "" if row is None else _service_text(*(each.decode() for each in row[0].tolist()))
            self._services[ident] = name
        return name

    def interface(self, index: int) -> str:
        """Return the name of an interface, or its number when there is none of this ifindex; ``""`` for 0."""
        if not index:
            return ""
        if index not in self._interfaces:
            try:
                self._interfaces[index] = socket.if_indextoname(index)
            except OSError:
                self._interfaces[index] = str(index)
        return self._interfaces[index]

    def ports(self, key: ObjectKey, port: str = "") -> list[int]:
        """Return the ids of the ports of a Service, or of a namespace, sorted; port: of that name or number.

        Raises ConfigError: there is no such Service, or it has no such port.
        """
        found = {
            ident: port_name
            for ident, (service, port_name) in read_names(self._maps).items()
            if key.covers(service)
        }
        if not found:
            where = f"--service {key}" if key.name else f"-n {key.namespace}"
            raise ConfigError(f"{where}: this node has nothing of such a Service in its maps")
        if not port:
            return sorted(found)
        numbered = (
            {row.service for vip, row in read_vips(self._maps).items() if str(vip.port) == port}
            if port.isdecimal()
            else set()
        )
        chosen = sorted(ident for ident, name in found.items() if name == port or ident in numbered)
        if not chosen:
            raise ConfigError(f"--service {key}:{port}: the Service has no port of that name or number")
        return chosen


def _service_text(namespace: str, name: str, port_name: str) -> str:
    return f"{namespace}/{name}:{port_name}" if port_name else f"{namespace}/{name}"


def describe(record: Any, names: Names, clock_offset_ns: int) -> PacketEvent:
    """Return a record of :data:`lb.datapath.maps.layouts.EVENT` in words.

    clock_offset_ns: the time since 1970 less CLOCK_MONOTONIC, see :func:`clock_offset`.
    """
    hook = HOOKS[record["hook"]][0]
    reason, meaning = REASONS[record["reason"]]
    protocol = int(record["protocol"])
    source, destination = _socket(record, "src", "sport"), _socket(record, "dst", "dport")
    sent_source, sent_destination = (
        _socket(record, "to_src", "to_sport"),
        _socket(record, "to_dst", "to_dport"),
    )
    reply = record["direction"] == Direction.REPLY
    client = vip = backend = snat = ""
    if protocol in list(Protocol):
        if reply:
            client, vip, backend, seen = sent_destination, sent_source, source, destination
        else:
            client, vip, backend, seen = source, destination, sent_destination, sent_source
        snat = seen if seen != client else ""
    return PacketEvent(
        int(record["time_ns"]) + clock_offset_ns,
        _what(record, hook, reason),
        hook,
        names.interface(int(record["ifindex"])),
        reason,
        meaning,
        names.service(int(record["service"])),
        protocol_name(protocol),
        bool(reply),
        source,
        destination,
        sent_source,
        sent_destination,
        client,
        vip,
        backend,
        snat,
        _flags(int(record["tcp_flags"])) if protocol == Protocol.TCP else "",
        int(record["len"]),
        names.pod_at(backend) if backend else "",
    )


def clock_offset() -> int:
    """Return by how many ns the time since 1970 is ahead of CLOCK_MONOTONIC at present."""
    return time.time_ns() - time.monotonic_ns()


def _what(record: Any, hook: str, reason: str) -> What:
    kind = hook.partition("_")[0]
    if record["verdict"] == _DROPS[kind]:
        return What.REFUSED if kind == _SOCKET else What.DROPPED
    if reason in _ANSWERS:
        return What(_ANSWERS[reason])
    if reason in NEW_FLOW:
        return What.NEW
    return What.CLOSED if record["closes"] else What.PASSED


def _socket(record: Any, address: str, port: str) -> str:
    """Return address and port, the address alone where there is no port, and ``""`` where there is none."""
    packed = record[address].tobytes()
    if not any(packed):
        return ""
    there: IPAddress = IPv4Address(packed[:4]) if record["family"] == 4 else IPv6Address(packed)
    number = int(record[port])
    return socket_text(there, number) if number else str(there)


def _flags(bits: int) -> str:
    return "".join(letter for at, letter in enumerate(_TCP_FLAGS) if bits >> at & 1)
