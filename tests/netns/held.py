# SPDX-License-Identifier: Apache-2.0
"""Connections that are held open, and used all the time, while something is changed below them.

A process in a place of the lab opens so many connections to each target and asks on each again and again who
is there: it must be the pod that it was. Beside them it opens new ones. It tells how it goes when it is
asked. Kinds: ``tcp``; ``half``, which has said that it sends no more and goes on reading; ``udp``, whose
datagrams may be lost singly, which is counted; ``sctp``, an association out of raw packets, for which pods
need a :class:`Responder` (the kernel at hand has no SCTP of its own), and whose packets are counted so as
well; ``new``, of which each request is a connection of its own; ``kept``, as ``tcp``, and ``again``, as
``new``, which go on with another connection when one has failed.
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

SCTP_PORT = 9001
SCTP = r"""
import random, socket, struct, sys
INIT, INIT_ACK, COOKIE_ECHO, COOKIE_ACK, DATA = 1, 2, 10, 11, 0
TABLE = []
for byte in range(256):
    for _ in range(8):
        byte = byte >> 1 ^ (0x82F63B78 if byte & 1 else 0)
    TABLE.append(byte)

def packet(sport, dport, tag, kind, body):
    head, body = struct.pack("!HHI", sport, dport, tag), body + bytes(-len(body) % 4)
    body = struct.pack("!BBH", kind, 0, 4 + len(body)) + body
    crc = 0xFFFFFFFF
    for byte in head + bytes(4) + body:
        crc = crc >> 8 ^ TABLE[(crc ^ byte) & 0xFF]
    return head + struct.pack("<I", crc ^ 0xFFFFFFFF) + body

def parsed(raw, family):
    raw = raw[(raw[0] & 15) * 4:] if family == socket.AF_INET else raw
    sport, dport, tag, _, kind = struct.unpack_from("!HHIIB", raw)
    return sport, dport, tag, kind, raw[16:]

def first(tag):
    return struct.pack("!IIHHI", tag, 1 << 16, 1, 1, 1)
"""
"""What both ends need: RFC 9260, sections 3.1 to 3.3, with one chunk in each packet."""
SERVER = (
    SCTP
    + r"""
import selectors
port, name = int(sys.argv[1]), sys.argv[2].encode()
known, waiting = {}, selectors.DefaultSelector()
for family in socket.AF_INET, socket.AF_INET6:
    waiting.register(socket.socket(family, socket.SOCK_RAW, 132), selectors.EVENT_READ)
waiting.register(sys.stdin, selectors.EVENT_READ)
print(flush=True)
while True:
    for found, _ in waiting.select():
        if found.fileobj is sys.stdin:
            sys.exit()
        raw, peer = found.fileobj.recvfrom(2000)
        sport, dport, tag, kind, body = parsed(raw, found.fileobj.family)
        if dport != port:
            continue
        if kind == INIT:
            theirs = struct.unpack_from("!I", body)[0]
            if known.get((peer[0], sport), (0, 0))[1] != theirs:
                known[peer[0], sport] = random.randrange(1, 1 << 32), theirs
        mine, theirs = known.get((peer[0], sport), (0, 0))
        answer = {
            INIT: (INIT_ACK, first(mine)), COOKIE_ECHO: (COOKIE_ACK, b""), DATA: (DATA, bytes(12) + name)
        }.get(kind)
        if answer and theirs and tag == (0 if kind == INIT else mine):
            found.fileobj.sendto(packet(port, sport, theirs, *answer), peer)
"""
)
CLIENT = (
    SCTP
    + r"""
import asyncio, json, time
TOLD = {"asked": {}, "failures": [], "ended": [], "lost": 0, "open": 0, "slowest": 0.0}
PATIENCE, DATAGRAM = 20, 2
stop = asyncio.Event()

def family(host):
    return socket.AF_INET6 if ":" in host else socket.AF_INET

async def ask(stream, sink):
    stream.write(b"GET /hostname HTTP/1.1\r\nHost: web\r\n\r\n")
    head = await sink.readuntil(b"\r\n\r\n")
    size = next(line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:"))
    return (await sink.readexactly(int(size.split(b":")[1]))).strip().decode()

# The first answer counts the connection as open; a later one has to be of the same pod.
def same(pod, found):
    if pod is None:
        TOLD["open"] += 1
    elif pod != found:
        raise OSError(f"{pod} has become {found}")
    return found

async def tcp(host, port, pause, asked, seen=lambda pod: None):
    sink, stream = await asyncio.wait_for(asyncio.open_connection(host, port), PATIENCE)
    pod = None
    try:
        while not stop.is_set():
            found = await asyncio.wait_for(ask(stream, sink), PATIENCE)
            pod = same(pod, found)
            seen(pod)
            asked()
            await asyncio.sleep(pause)
    except Exception as error:
        raise OSError(f"{stream.get_extra_info('sockname')}, of {pod}: {error!r}") from error
    finally:
        stream.close()

async def kept(host, port, pause, asked):
    while not stop.is_set():
        pods = [""]
        try:
            await tcp(host, port, pause, asked, pods.append)
        except Exception as error:
            TOLD["ended"].append((pods[-1], time.time(), f"{type(error).__name__} {error}"))
            await asyncio.sleep(pause)

async def again(host, port, pause, asked):
    while not stop.is_set():
        try:
            await new(host, port, pause, asked)
        except Exception as error:
            TOLD["failures"].append(f"{time.time():.1f} {type(error).__name__} {error}")

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
            pod = same(pod, found)
            asked()
            await asyncio.sleep(pause)

async def sctp(host, port, pause, asked):
    loop, pod = asyncio.get_running_loop(), None
    sport, mine, theirs = random.randrange(40000, 60000), random.randrange(1, 1 << 32), 0
    with socket.socket(family(host), socket.SOCK_RAW, 132) as channel:
        channel.setblocking(False)
        channel.connect((host, 0))

        async def heard(wanted):
            while True:
                raw = await loop.sock_recv(channel, 2000)
                source, target, tag, kind, body = parsed(raw, channel.family)
                if (source, target, tag, kind) == (port, sport, mine, wanted):
                    return body

        async def say(tag, kind, body, wanted):
            for _ in range(5):
                await loop.sock_sendall(channel, packet(sport, port, tag, kind, body))
                try:
                    return await asyncio.wait_for(heard(wanted), DATAGRAM)
                except TimeoutError:
                    TOLD["lost"] += 1
            raise TimeoutError

        theirs = struct.unpack_from("!I", await say(0, INIT, first(mine), INIT_ACK))[0]
        await say(theirs, COOKIE_ECHO, b"cookie", COOKIE_ACK)
        while not stop.is_set():
            found = (await say(theirs, DATA, bytes(12) + b"who?", DATA))[12:].strip(b"\0").decode()
            pod = same(pod, found)
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
        kinds = {"tcp": tcp, "half": half, "udp": udp, "sctp": sctp, "new": new, "kept": kept, "again": again}
        await kinds[kind](host, port, pause, asked)
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
)


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
        """Return ``asked`` by target, ``failures``, ``lost`` datagrams, and how many were ``open``ed.

        ended: of ``kept`` connections that were lost, the pod, the time, and why.
        """
        return self._tell([])

    @property
    def wanted(self) -> int:
        """How many connections it is to open."""
        return sum(target.count for target in self.targets)


class Responder:
    """Answers associations in a pod at SCTP_PORT with the pod's name; it ends with the stack."""

    def __init__(self, lab: Lab, pod: str, stack: ExitStack) -> None:
        argv = lab.command(pod, [sys.executable, "-I", "-S", "-c", SERVER, str(SCTP_PORT), pod])
        process = stack.enter_context(
            subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        assert process.stdin is not None
        assert process.stdout is not None
        stack.callback(process.stdin.close)
        assert process.stdout.readline() == "\n"
