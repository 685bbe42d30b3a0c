# SPDX-License-Identifier: Apache-2.0
"""Lets the lab ask the machine's resolver for names, without an interface or a route to the machine.

Started by ``lab up`` as ``python -m lb.lab.relay LAB RESOLVER``. It opens port 53 of UDP and TCP on the
loopback of the lab's outside, then returns to the machine for good: questions arrive from the one and leave
into the other. While the resolver is silent, it is asked all the same, but whoever asks is told at once that
it failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
import time
from typing import cast

from lb.lab import namespaces
from lb.lab.forward import forward
from lb.lab.store import Store

WAIT_SECONDS = 1.5
AWAY_SECONDS = 10.0
"""For how long a resolver that was silent counts as away."""

_PORT = 53
_SERVFAIL = 2


def failure(question: bytes) -> bytes:
    """Return the answer to a question that the server failed (RFC 1035 4.1.1: QR, RA, RCODE 2)."""
    flags = bytes([question[2] | 0x80, 0x80 | _SERVFAIL])
    counts = question[4:6] + bytes(6)
    end = 12
    while end < len(question) and question[end]:
        end += question[end] + 1
    return question[:2] + flags + counts + question[12 : end + 5]


class _Answer(asyncio.DatagramProtocol):
    def __init__(self, answer: asyncio.Future[bytes]) -> None:
        self._answer = answer

    def datagram_received(self, data: bytes, _peer: object) -> None:
        if not self._answer.done():
            self._answer.set_result(data)

    def error_received(self, error: Exception) -> None:
        if not self._answer.done():
            self._answer.set_exception(error)


class Relay(asyncio.DatagramProtocol):
    """Passes questions on to a resolver and its answers back."""

    def __init__(self, resolver: str) -> None:
        self._resolver = resolver
        self._away_until = 0.0
        self._tasks: set[asyncio.Task[None]] = set()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See the base class."""
        self._transport = cast("asyncio.DatagramTransport", transport)

    def datagram_received(self, data: bytes, peer: object) -> None:
        """Take a question."""
        if len(data) > 12:
            task = asyncio.ensure_future(self._ask(data, peer))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _ask(self, question: bytes, peer: object) -> None:
        away = time.monotonic() < self._away_until
        if away:
            self._transport.sendto(failure(question), peer)  # type: ignore[arg-type]
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        try:
            upstream, _ = await loop.create_datagram_endpoint(
                lambda: _Answer(answer), remote_addr=(self._resolver, _PORT)
            )
            with contextlib.closing(upstream):
                upstream.sendto(question)
                data = await asyncio.wait_for(answer, WAIT_SECONDS)
            self._away_until = 0.0
        except (OSError, TimeoutError):
            self._away_until = time.monotonic() + AWAY_SECONDS
            data = failure(question)
        if not away:
            self._transport.sendto(data, peer)  # type: ignore[arg-type]


async def relay(resolver: str, datagrams: socket.socket, listener: socket.socket) -> None:
    """Pass on what comes to these sockets, for ever."""
    loop = asyncio.get_running_loop()
    await loop.create_datagram_endpoint(lambda: Relay(resolver), sock=datagrams)
    await forward(listener, resolver, _PORT)


def main(lab: str, resolver: str) -> None:
    """Relay for a lab whose namespaces exist."""
    store = Store(lab)
    with namespaces.inside(store.read_lab().spec.client):
        datagrams = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        datagrams.bind(("127.0.0.1", _PORT))
        listener = socket.create_server(("127.0.0.1", _PORT))
    asyncio.run(relay(resolver, datagrams, listener))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
