# SPDX-License-Identifier: Apache-2.0
"""Connections that are held open, and used all the time, while something is changed below them.

A process in a place of the lab opens so many connections to each target and asks on each again and again who
is there: it must be the pod that it was. Beside them it opens new ones. It tells how it goes when it is
asked. Kinds: ``tcp``; ``half``, which has said that it sends no more and goes on reading; ``udp``, whose
datagrams may be lost singly, which is counted; ``new``, of which each request is a connection of its own.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from typing import Any

from lb.lab.lab import Lab

CLIENT = r"""
import asyncio, json, socket, sys
TOLD = {"asked": {}, "failures": [], "lost": 0, "open": 0, "slowest": 0.0}
PATIENCE, DATAGRAM = 20, 2
stop = asyncio.Event()

def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET

async def ask(stream, sink):
    stream.write(b"GET /hostname HTTP/1.1\r\nHost: web\r\n\r\n")
    head = await sink.readuntil(b"\r\n\r\n")
    size = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return (await sink.readexactly(int(size.split(b":")[1]))).strip().decode()

async def tcp(host, port, pause, asked):
    sink, stream = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE)
    pod = None
    try:
        while not stop.is_set():
            found = await asyncio.wait_for(ask(stream, sink), PATIENCE)
            if pod is None:
                TOLD["open"] += 1
            if pod not in (None, found):
                raise OSError(f"{pod} has become {found}")
            pod = found
            asked()
            await asyncio.sleep(pause)
    finally:
        stream.close()

async def half(host, port, pause, asked):
    sink, stream = await asyncio.wait_for(asyncio.open_connection(host, port, limit=1 << 12), PATIENCE)
    stream.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 12)
    try:
        stream.write(b"GET /large?bytes=%d HTTP/1.1\r\nHost: web\r\n\r\n" % (1 << 40))
        await sink.readuntil(b"\r\n\r\n")
        stream.write_eof()
        TOLD["open"] += 1
        while not stop.is_set():
            if not await asyncio.wait_for(sink.read(1 << 12), PATIENCE):
                raise OSError("it ended")
            asked()
            await asyncio.sleep(pause)
    finally:
        stream.transport.abort()

async def udp(host, port, pause, asked):
    loop, pod, misses = asyncio.get_running_loop(), None, 0
    with socket.socket(family(host), socket.SOCK_DGRAM) as channel:
        channel.setblocking(False)
        channel.connect((host, port))
        while not stop.is_set():
            await loop.sock_sendall(channel, b"who?")
            try:
                found = (await asyncio.wait_for(loop.sock_recv(channel, 100), DATAGRAM)).split()[0].decode()
            except TimeoutError:
                TOLD["lost"] += 1
                misses += 1
                if misses > 5:
                    raise
                continue
            misses = 0
            if pod is None:
                TOLD["open"] += 1
            if pod not in (None, found):
                raise OSError(f"{pod} has become {found}")
            pod = found
            asked()
            await asyncio.sleep(pause)

async def new(host, port, pause, asked):
    TOLD["open"] += 1
    while not stop.is_set():
        sink, stream = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE)
        try:
            await asyncio.wait_for(ask(stream, sink), PATIENCE)
        finally:
            stream.close()
        asked()
        await asyncio.sleep(pause)

async def hold(kind, name, host, port, pause):
    def asked():
        TOLD["asked"][name] = TOLD["asked"].get(name, 0) + 1
    try:
        await {"tcp": tcp, "half": half, "udp": udp, "new": new}[kind](host, port, pause, asked)
    except Exception as error:
        TOLD["failures"].append(f"{name}: {type(error).__name__} {error}")

async def main():
    sink = asyncio.StreamReader()
    await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(sink), sys.stdin)
    tasks = []
    while line := await sink.readline():
        for one in json.loads(line):
            for _ in range(one["count"]):
                args = one["kind"], one["name"], one["host"], one["port"], one["pause"]
                tasks.append(asyncio.ensure_future(hold(*args)))
                if len(tasks) % 20 == 0:
                    await asyncio.sleep(0.05)
        print(json.dumps(TOLD), flush=True)
    stop.set()
    for task in tasks:
        task.cancel()

asyncio.run(main())
"""


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked: count connections, each with a pause (seconds) between two requests."""

    kind: str
    name: str
    host: str
    port: int
    count: int = 1
    pause: float = 0.1


class Holder:
    """The process in one place; it ends with the stack."""

    def __init__(self, lab: Lab, place: str, targets: Sequence[Target], stack: ExitStack) -> None:
        self.place, self.targets = place, targets
        argv = lab.command(place, [sys.executable, "-I", "-S", "-c", CLIENT])
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.enter_context(process)
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        stack.callback(self._stdin.close)
        self._tell([asdict(target) for target in targets])

    def _tell(self, more: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        self._stdin.write(json.dumps(more) + "\n")
        self._stdin.flush()
        told: dict[str, Any] = json.loads(self._stdout.readline())
        return told

    def told(self) -> dict[str, Any]:
        """Return ``asked`` by target, ``failures``, ``lost`` datagrams, and how many were ``open``ed."""
        return self._tell([])

    @property
    def wanted(self) -> int:
        """How many connections it is to open."""
        return sum(target.count for target in self.targets)
