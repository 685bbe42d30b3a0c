# SPDX-License-Identifier: Apache-2.0
"""The forwarder, between two loopback ports."""

import asyncio
import contextlib
import socket
from collections.abc import Awaitable, Callable

from lb.lab.forward import forward

Peer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def _through(far: Peer, near: Peer) -> None:
    """Run a server behind a forwarder and a client before it."""
    server = await asyncio.start_server(far, "127.0.0.1", 0)
    listener = socket.create_server(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    work = asyncio.create_task(forward(listener, "127.0.0.1", server.sockets[0].getsockname()[1]))
    try:
        async with asyncio.timeout(20):
            await near(*await asyncio.open_connection("127.0.0.1", port))
    finally:
        work.cancel()
        await asyncio.wait({work})
        server.close()


def test_bytes_pass_both_ways_and_one_end_may_close_first() -> None:
    payload = bytes(range(256)) * 4096

    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        data = await reader.read()  # to the end that the client sends
        writer.write(data[::-1])
        await writer.drain()
        writer.close()

    async def near(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(payload)
        writer.write_eof()
        assert await reader.read() == payload[::-1]
        writer.close()

    asyncio.run(_through(far, near))


def test_a_broken_connection_breaks_on_both_sides() -> None:
    broken = asyncio.Event()

    async def far(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            assert await reader.read() == b""
        writer.close()
        broken.set()

    async def near(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()
        await broken.wait()

    asyncio.run(_through(far, near))


def test_nobody_behind_it() -> None:
    async def check() -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        with socket.create_server(("127.0.0.1", 0)) as closed:
            unused = closed.getsockname()[1]
        port = listener.getsockname()[1]
        work = asyncio.create_task(forward(listener, "127.0.0.1", unused))
        async with asyncio.timeout(20):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
            writer.close()
        work.cancel()
        await asyncio.wait({work})

    asyncio.run(check())
