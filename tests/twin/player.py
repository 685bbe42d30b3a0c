# SPDX-License-Identifier: Apache-2.0
"""A client that does what it is told, run as a script in a namespace: ``python -I -S player.py``.

A question is a line of JSON, ``{"do": NAME, …}`` with the arguments of the method NAME of :class:`Player`.
The answer is another line: what the client saw, or ``{"error": …}`` with the name of an errno, ``timeout``,
or ``end`` when the other side closed before it answered. Sockets are called by the names that the questions
give them.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import struct
import sys
import time
from typing import Any

TCP_SECONDS, UDP_SECONDS = 1.6, 0.8
_LAST_TIME = struct.pack("ii", 1, 0)  # struct linger: a close sends RST
_IP_MTU_DISCOVER, _IPV6_MTU_DISCOVER, _DONT, _DO = 10, 23, 0, 2
_IPV6_DSTOPTS = 59
_RECORD_ROUTE = b"\x07\x07\x04" + bytes(5)  # RFC 791, section 3.1: room for one address, and the end
_DESTINATION_OPTIONS = b"\0\0\x01\x04" + bytes(4)  # RFC 8200, section 4.6: padding
_NUMBER = struct.Struct("!I")
Seen = dict[str, Any]


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


class Player:
    """The sockets of one client."""

    def __init__(self) -> None:
        self.sockets: dict[str, socket.socket] = {}
        self.asked = 0

    def _made(
        self, name: str, kind: socket.SocketKind, source: str, port: int, options: bool
    ) -> socket.socket:
        if name in self.sockets:
            self.sockets.pop(name).close()
        made = socket.socket(_family(source), kind)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, kind is socket.SOCK_STREAM)
        if options and made.family == socket.AF_INET:
            made.setsockopt(socket.IPPROTO_IP, socket.IP_OPTIONS, _RECORD_ROUTE)
        elif options:
            made.setsockopt(socket.IPPROTO_IPV6, _IPV6_DSTOPTS, _DESTINATION_OPTIONS)
        try:
            made.bind((source, port))
        except OSError:
            made.close()
            raise
        self.sockets[name] = made
        return made

    # --- TCP ------------------------------------------------------------------------------------------------

    def connect(self, sock: str, source: str, port: int, host: str, to: int, options: bool = False) -> Seen:
        """Open a connection from a port (0: the kernel's choice); who the process takes the other end for.

        options: all packets have an option of IPv4, or an extension header of IPv6.
        """
        made = self._made(sock, socket.SOCK_STREAM, source, port, options)
        made.settimeout(TCP_SECONDS)
        try:
            made.connect((host, to))
        except OSError:
            self.sockets.pop(sock).close()
            raise
        return {"peer": made.getpeername()[:2]}

    def request(self, sock: str, path: str, size: int = 0, last: bool = False) -> Seen:
        """Send a GET, or a POST of so many bytes; last: half-close behind it. The body, or its length."""
        stream = self.sockets[sock]
        method = "POST" if size else "GET"
        head = f"{method} {path} HTTP/1.1\r\nHost: twin\r\nContent-Length: {size}\r\n\r\n"
        stream.sendall(head.encode() + b"y" * size)
        if last:
            stream.shutdown(socket.SHUT_WR)
        data, body, length = b"", b"", 0
        while b"\r\n\r\n" not in data or len(body) < length:
            more = stream.recv(65536)
            if not more:
                return {"error": "end"}
            data += more
            header, _, body = data.partition(b"\r\n\r\n")
            for line in header.lower().split(b"\r\n"):
                if line.startswith(b"content-length:"):
                    length = int(line.split(b":")[1])
        return {"body": body.decode().strip() if length < 200 else f"{length} bytes"}

    def close(self, sock: str, reset: bool = False) -> Seen:
        """Close a connection, by FIN or by RST."""
        stream = self.sockets.pop(sock)
        if reset:
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LAST_TIME)
        stream.close()
        return {}

    # --- UDP ------------------------------------------------------------------------------------------------

    def udp(
        self, sock: str, source: str, port: int, host: str = "", to: int = 0, options: bool = False
    ) -> Seen:
        """Open a UDP socket, connected if a host is given; options: as of connect()."""
        made = self._made(sock, socket.SOCK_DGRAM, source, port, options)
        made.settimeout(UDP_SECONDS)
        if host:
            made.connect((host, to))
        return {"peer": made.getpeername()[:2]} if host else {}

    def ask(self, sock: str, size: int, df: bool, host: str = "", to: int = 0) -> Seen:
        """Send a datagram, to the connected end if no host is given; who answered, from which address."""
        channel = self.sockets[sock]
        if channel.family == socket.AF_INET:
            channel.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _DO if df else _DONT)
        else:
            channel.setsockopt(socket.IPPROTO_IPV6, _IPV6_MTU_DISCOVER, _DO if df else _DONT)
        data = self._numbered(size)
        if host:
            channel.sendto(data, (host, to))
        else:
            channel.send(data)
        return self._answer(channel, data)

    def pieces(self, sock: str, source: str, host: str, to: int, size: int, order: list[int]) -> Seen:
        """Send a datagram of IPv4 as fragments in this order, from a UDP socket's port; see ask()."""
        channel, data = self.sockets[sock], self._numbered(size)
        port = channel.getsockname()[1]
        whole = struct.pack("!HHHH", port, to, 8 + size, 0) + data
        step = -(-len(whole) // len(order) // 8) * 8
        head = (0x45, 0, 0, int.from_bytes(os.urandom(2)) or 1)
        with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            raw.bind((source, 0))  # the way to a VIP depends on it: see pair.py
            for at in order:
                part = whole[at * step : (at + 1) * step]
                place = at * step // 8 | (0x2000 if (at + 1) * step < len(whole) else 0)
                if part:
                    header = struct.pack(
                        "!BBHHHBBH4s4s",
                        *head,
                        place,
                        64,
                        socket.IPPROTO_UDP,
                        0,
                        socket.inet_aton(source),
                        socket.inet_aton(host),
                    )
                    raw.sendto(header + part, (host, 0))
        return self._answer(channel, data)

    def _numbered(self, size: int) -> bytes:
        self.asked += 1
        return _NUMBER.pack(self.asked) + b"z" * (size - _NUMBER.size)

    def _answer(self, channel: socket.socket, data: bytes) -> Seen:
        deadline = time.monotonic() + UDP_SECONDS
        while True:
            channel.settimeout(max(0.01, deadline - time.monotonic()))
            answer, peer = channel.recvfrom(65535)
            name, _, rest = answer.partition(b" ")  # the pod; the name of its port is next
            rest = rest.partition(b" ")[2]
            if rest[: _NUMBER.size] == data[: _NUMBER.size]:  # else the answer to an older one, or no answer
                return {"body": name.decode(), "peer": peer[:2], "whole": rest == data}

    # --- the rest -------------------------------------------------------------------------------------------

    def ping(self, source: str, host: str, size: int) -> Seen:
        """Send an echo request of IPv4 or IPv6 and wait for its reply."""
        six = ":" in host
        protocol = socket.getprotobyname("ipv6-icmp") if six else socket.IPPROTO_ICMP
        with socket.socket(_family(host), socket.SOCK_RAW, protocol) as raw:
            raw.settimeout(UDP_SECONDS)
            raw.bind((source, 0))
            self.asked += 1
            mark = struct.pack("!HH", os.getpid() & 0xFFFF, self.asked & 0xFFFF)
            packet = struct.pack("!BBH", 128 if six else 8, 0, 0) + mark + b"p" * size
            if not six:
                packet = packet[:2] + _checksum(packet) + packet[4:]
            raw.sendto(packet, (host, 0))
            deadline = time.monotonic() + UDP_SECONDS
            while True:
                raw.settimeout(max(0.01, deadline - time.monotonic()))
                answer, peer = raw.recvfrom(65535)
                inner = answer if six else answer[(answer[0] & 15) * 4 :]
                if inner[4:8] == mark and inner[0] in (0, 129):
                    return {"body": "echo", "peer": (peer[0], 0), "whole": inner[8:] == b"p" * size}
                if mark in inner[8:] and inner[0] in ((1, 2, 3) if six else (3, 11)):
                    return {"error": f"icmp {inner[0]} {inner[1]}"}

    def trace(self, source: str, host: str, to: int, ttl: int) -> Seen:
        """Send a datagram that so many routers may pass on: who answered, or which router let it end."""
        six = ":" in host
        level, hops, errors = (socket.IPPROTO_IPV6, 16, 25) if six else (socket.IPPROTO_IP, 2, 11)
        with socket.socket(_family(host), socket.SOCK_DGRAM) as channel:
            channel.bind((source, 0))
            channel.setsockopt(level, hops, ttl)
            channel.setsockopt(level, errors, 1)  # IP_RECVERR
            data = self._numbered(4)
            channel.sendto(data, (host, to))
            try:
                return self._answer(channel, data)
            except TimeoutError:
                raise
            except OSError:
                _, about, _, _ = channel.recvmsg(100, 1000, socket.MSG_ERRQUEUE)
        _, _, told = about[0]
        _, origin, kind, code = struct.unpack_from("=IBBB", told)
        at = told[24:40] if six else told[20:24]  # struct sockaddr behind struct sock_extended_err
        router = socket.inet_ntop(_family(host), at) if origin > 1 else "itself"
        return {"error": f"icmp {kind} {code}", "peer": (router, 0)}

    def end(self) -> Seen:
        """Close everything at once, connections by RST."""
        for name in list(self.sockets):
            with contextlib.suppress(OSError):
                self.close(name, reset=self.sockets[name].type == socket.SOCK_STREAM)
        return {}


def _checksum(packet: bytes) -> bytes:
    padded = packet + bytes(len(packet) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return struct.pack("!H", ~total & 0xFFFF)


def answered(player: Player, question: dict[str, Any]) -> Seen:
    """Return what came of a question."""
    if (
        "sock" in question
        and question["do"] not in ("connect", "udp")
        and question["sock"] not in player.sockets
    ):
        return {"error": "no socket"}
    try:
        seen: Seen = getattr(player, question.pop("do"))(**question)
    except TimeoutError:
        return {"error": "timeout"}
    except OSError as error:
        return {"error": errno.errorcode.get(error.errno or 0, str(error))}
    return seen


if __name__ == "__main__":
    playing = Player()
    for line in sys.stdin:
        print(json.dumps(answered(playing, json.loads(line))), flush=True)
