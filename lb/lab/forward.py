# SPDX-License-Identifier: Apache-2.0
"""Lets the machine reach the lab's API server, without an interface or a route of its own.

Started by ``lab up`` as ``python -m lb.lab.forward LAB``. It opens a port on the machine's loopback, then
moves into the namespace of the API server for good: connections arrive from the one and leave into the other.
Bytes pass as they are; TLS is between the two ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys

from lb.lab import namespaces
from lb.lab.addressing import API_PORT, api_server
from lb.lab.processes import ProcessRef
from lb.lab.store import Store

_CHUNK = 65536


async def forward(listener: socket.socket, host: str, port: int) -> None:
    """Forward every connection to a host and port, for ever."""

    async def converse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection(host, port)
        except OSError:
            writer.transport.abort()
            return
        try:
            await asyncio.gather(_pump(reader, far_writer), _pump(far_reader, writer))
        except OSError:
            pass  # one side broke off: so does the other
        finally:
            for each in (writer, far_writer):
                each.transport.abort()

    server = await asyncio.start_server(converse, sock=listener)
    await server.serve_forever()


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Copy one direction until its end, and pass the end on."""
    while data := await reader.read(_CHUNK):
        writer.write(data)
        await writer.drain()
    with contextlib.suppress(OSError):
        writer.write_eof()


def main(lab: str) -> None:
    """Forward for a lab whose namespaces exist."""
    store = Store(lab)
    store.write_process("forwarder", ProcessRef.own())
    listener = socket.create_server(("127.0.0.1", 0))
    spec = store.read_lab().spec
    namespaces.enter(spec.api)
    store.write_port(listener.getsockname()[1])
    asyncio.run(forward(listener, str(api_server(spec.versions[0])), API_PORT))


if __name__ == "__main__":
    main(sys.argv[1])
