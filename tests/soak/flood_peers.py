# SPDX-License-Identifier: Apache-2.0
"""Both ends of the real connections of tests/soak/floods.py; the standard library alone, for a lab's places.

``flood_peers.py serve PORT NAME``: echoes on TCP and UDP, but answers ``who`` with its name; the datagram
``push`` sends a byte to every connection.
``flood_peers.py connect COUNT ADDRESS PORT``: opens connections, prints ``ready``, and obeys lines on stdin.
``ask`` and ``pushed`` print to how many connections an answer, or a byte that was pushed, comes within five
seconds. ``new SECONDS`` opens connections one after another and prints how many went well, of how many, and
milliseconds: the median, the 99th percentile. ``who`` prints who serves a new connection.
``flood_peers.py clients ADDRESS PORT SOURCE…``: opens a connection from each source address, prints
``ready``, and for each line on stdin of how many of them another one serves a new connection, and of how many
nobody does.
"""

from __future__ import annotations

import contextlib
import select
import selectors
import socket
import sys
import time

PATIENCE = 5.0
CONNECT_SECONDS = 4.0  # a lost SYN is sent again after 1 and after 3 seconds
NEW_SECONDS = 0.005  # from one new connection to the next: 60 s of them in TIME-WAIT leave the client ports
WHO = b"who"


def serve(port: int, name: str) -> None:
    """Answer until the process is ended."""
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("", port), family=socket.AF_INET6, backlog=4096, dualstack_ipv6=True)
    datagrams = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    datagrams.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
    datagrams.bind(("", port))
    for each in (listener, datagrams):
        each.setblocking(False)
        selector.register(each, selectors.EVENT_READ, each)
    connections: set[socket.socket] = set()
    print("ready", flush=True)
    while True:
        for key, _ in selector.select():
            one: socket.socket = key.data
            try:
                if one is listener:
                    made, _ = listener.accept()
                    made.setblocking(False)
                    connections.add(made)
                    selector.register(made, selectors.EVENT_READ, made)
                elif one is datagrams:
                    data, sender = datagrams.recvfrom(2048)
                    if data == b"push":
                        for waiting in connections:
                            with contextlib.suppress(OSError):
                                waiting.send(b"p")
                    else:
                        datagrams.sendto(data, sender)
                elif data := one.recv(4096):
                    one.send(name.encode() if data == WHO else data)
                else:
                    raise ConnectionError
            except BlockingIOError:
                pass
            except OSError:
                if one in connections:
                    selector.unregister(one)
                    connections.discard(one)
                    one.close()


def answered(connections: list[socket.socket]) -> int:
    """Return to how many something comes before PATIENCE is over."""
    poll = select.poll()
    by_number = {one.fileno(): one for one in connections}
    for number in by_number:
        poll.register(number, select.POLLIN)
    end, found = time.monotonic() + PATIENCE, 0
    while by_number and (left := end - time.monotonic()) > 0:
        for number, _ in poll.poll(left * 1000):
            poll.unregister(number)
            try:
                found += bool(by_number.pop(number).recv(4096))
            except OSError:
                continue
    return found


def opened(address: tuple[str, int], seconds: float) -> tuple[int, int, list[float]]:
    """Open connections one after another; return how many went well, of how many, and their times."""
    times: list[float] = []
    tried, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        tried += 1
        began = time.monotonic()
        try:
            with socket.create_connection(address, CONNECT_SECONDS) as one:
                one.settimeout(CONNECT_SECONDS)
                one.sendall(b"x")
                if one.recv(1):
                    times.append(1000 * (time.monotonic() - began))
        except OSError:
            continue
        time.sleep(max(0.0, began + NEW_SECONDS - time.monotonic()))
    return len(times), tried, sorted(times)


def who(address: tuple[str, int], source: str = "") -> str:
    """Return who serves a new connection; an empty text: nobody did."""
    try:
        with socket.create_connection(address, CONNECT_SECONDS, (source, 0) if source else None) as one:
            one.settimeout(CONNECT_SECONDS)
            one.sendall(WHO)
            return one.recv(4096).decode()
    except OSError:
        return ""


def clients(address: tuple[str, int], sources: list[str]) -> None:
    """Be clients at addresses of their own, and say which of them have lost their backend."""
    before = {source: who(address, source) for source in sources}
    assert all(before.values()), before
    print("ready", flush=True)
    for _ in sys.stdin:
        now = {source: who(address, source) for source in sources}
        lost = sum(not name for name in now.values())
        print(sum(now[source] != before[source] for source in sources) - lost, lost, flush=True)


def connect(count: int, address: tuple[str, int]) -> None:
    """Be the clients."""
    connections = [socket.create_connection(address, 10) for _ in range(count)]
    for one in connections:
        one.sendall(b"x")
    for one in connections:
        one.recv(1)
        one.setblocking(False)
    print("ready", flush=True)
    for line in sys.stdin:
        what, *rest = line.split()
        if what == "ask":
            for one in connections:
                with contextlib.suppress(OSError):
                    one.send(b"x")
            print(answered(connections), flush=True)
        elif what == "pushed":
            print(answered(connections), flush=True)
        elif what == WHO.decode():
            print(who(address), flush=True)
        else:
            well, tried, times = opened(address, float(rest[0]))
            middle, late = (times[int(len(times) * part)] if times else 0.0 for part in (0.5, 0.99))
            print(well, tried, f"{middle:.1f} {late:.1f}", flush=True)


if __name__ == "__main__":
    what, *words = sys.argv[1:]
    if what == "serve":
        serve(int(words[0]), words[1])
    elif what == "clients":
        clients((words[0], int(words[1])), words[2:])
    else:
        connect(int(words[0]), (words[1], int(words[2])))
