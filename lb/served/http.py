# SPDX-License-Identifier: Apache-2.0
"""A small HTTP server: short answers to GET and HEAD, on any number of addresses, all in one thread.

Made for what a node tells of itself. Each request has a connection of its own, as health checks do it anyway;
nothing waits for a client, and one that is slow or idle is let go. The words are those of RFC 9110 and 9112.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from email.utils import formatdate
from http import HTTPStatus
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

from lb.stop_event import StopEvent

_log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""How often it is tried again to listen on an address that cannot be had."""
CLIENT_SECONDS = 10.0
"""How long a connection may last: request, answer and the client's goodbye."""
MOST_CLIENTS = 256
"""Connections at a time; one more costs the oldest its own."""
MOST_HEAD = 16 * 1024
"""Bytes of a request that are read."""
MOST_WAITING = 32 << 20
"""Bytes of answers that wait for slow readers; more cost the oldest connections theirs."""
_REST_SECONDS = 0.5
_PIECE = 65536

Address = tuple[str, int]
"""IP address as text, TCP port. An unspecified address, of whichever family, means every address of both.

A path, with port 0, is a Unix socket for root alone; whatever is at that path is replaced.
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request. method is GET or HEAD, path and query are as sent, the names of headers in lower case."""

    method: str
    path: str
    query: str
    headers: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Response:
    """An answer. The server adds the headers Content-Length, Date and Connection."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = (("Content-Type", "text/plain; charset=utf-8"),)


Answer = Callable[[Request], Response]
"""Answers a request; called in the server's thread, which does nothing else meanwhile."""


def routes(answers: Mapping[str, Answer]) -> Answer:
    """Return what answers each path, and 404 to every other."""

    def answer(request: Request) -> Response:
        found = answers.get(request.path)
        if found is None:
            return Response(404, f"not here; there is {', '.join(answers)}\n".encode())
        return found(request)

    return answer


def show(address: Address) -> str:
    """Return ``192.0.2.1:80`` or ``[2001:db8::1]:80``, of a Unix socket the path."""
    host, port = address
    if host.startswith("/"):
        return host
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


@dataclass(slots=True)
class _Site:
    """An address on which somebody wants to answer; socket is None while it cannot be had."""

    address: Address
    answer: Answer
    what: str
    failed: Callable[[str], None]
    socket: socket.socket | None = None
    error: str = ""


@dataclass(slots=True)
class _Client:
    """A connection: reads a request, sends an answer, then waits for the client's goodbye.

    Without that wait, bytes that were sent and not read (a request's body) would turn the close into a RST,
    which may overtake the answer (RFC 9112, section 9.6).
    """

    socket: socket.socket
    answer: Answer
    due: float
    asked: bytearray = field(default_factory=bytearray)
    told: memoryview | None = None


@contextlib.contextmanager
def serving() -> Iterator[HttpServer]:
    """Give a server that answers in a thread of its own until the end of the block."""
    server, stop = HttpServer(), StopEvent()
    thread = threading.Thread(target=server.run, args=(stop,), name="http", daemon=True)
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join(2.0)


class HttpServer:
    """Listens on what it is told to, from any thread; answers in the one that runs it.

    An address that cannot be had (another process has it, it is not on this node) is one error in the log; it
    is tried again, since whoever has it may be on its way out. No failure here is anybody else's.

    retry_seconds: see RETRY_SECONDS.
    clock: seconds, monotonic.
    """

    def __init__(
        self, *, retry_seconds: float = RETRY_SECONDS, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._poll = select.epoll()
        self._lock = threading.Lock()  # around the sites; clients are the running thread's own
        self._sites: dict[Address, _Site] = {}
        self._by_fd: dict[int, _Site] = {}
        self._clients: dict[int, _Client] = {}
        self._retry_due = clock() + retry_seconds
        self._complaint = ""

    def open(
        self, address: Address, answer: Answer, what: str, failed: Callable[[str], None] = lambda _error: None
    ) -> None:
        """Answer on an address from now on; on one that is open already, only the answer changes.

        what is its name in the log. failed is called with each error that is news, and must not come back
        here.
        """
        with self._lock:
            site = self._sites.get(address)
            if site is None:
                site = self._sites[address] = _Site(address, answer, what, failed)
            elif site.what != what:
                site.error = ""  # it is news for the one who wants it now
            site.answer, site.what, site.failed = answer, what, failed
            if site.socket is None:
                self._listen(site)

    def close(self, address: Address) -> None:
        """Listen there no more; a request that was begun is still answered. Nothing if it is not open."""
        with self._lock:
            site = self._sites.pop(address, None)
            if site is not None and site.socket is not None:
                self._poll.unregister(site.socket)
                del self._by_fd[site.socket.fileno()]
                site.socket.close()
                if address[0].startswith("/"):
                    Path(address[0]).unlink(missing_ok=True)

    def bound(self, address: Address) -> Address | None:
        """Return where it listens for this address, with the port that the kernel chose for 0, or None."""
        with self._lock:
            site = self._sites.get(address)
            if site is None or site.socket is None:
                return None
            return _bound(site.address, site.socket)

    def error(self, address: Address) -> str:
        """Return why it does not listen there at present, ``""`` if it does or should not."""
        with self._lock:
            site = self._sites.get(address)
            return "" if site is None or site.socket is not None else site.error

    def run(self, stop: StopEvent) -> None:
        """Answer until stop is set; then nothing is listened to any more."""
        self._poll.register(stop, select.EPOLLIN)
        try:
            while not stop.is_set():
                first = next(iter(self._clients.values()), None)
                most = self._retry_seconds if first is None else first.due - self._clock()
                self.step(min(max(most, 0), self._retry_seconds))
        finally:
            self.shut()

    def step(self, seconds: float) -> None:
        """Wait for somebody for so long, and answer those that are there."""
        for number, _ in self._poll.poll(seconds):
            client = self._clients.get(number)
            if client is not None:
                self._serve(client)
            else:
                self._accept(number)
        now = self._clock()
        for client in list(self._clients.values()):  # in the order in which they came
            if client.due > now:
                break
            self._drop(client)
        if now >= self._retry_due:
            self._retry_due = now + self._retry_seconds
            with self._lock:
                for site in self._sites.values():
                    if site.socket is None:
                        self._listen(site)

    def shut(self) -> None:
        """Close every address and connection; may be called again."""
        for address in list(self._sites):
            self.close(address)
        for client in list(self._clients.values()):
            self._drop(client)
        self._poll.close()

    def _listen(self, site: _Site) -> None:
        try:
            listening = _listening(site.address)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            text = f"cannot listen on {show(site.address)}: {reason}"
            if text != site.error:
                site.error = text
                _log.error(
                    "%s: %s; all else works, trying again every %g s", site.what, text, self._retry_seconds
                )
                site.failed(text)
            return
        site.socket, site.error = listening, ""
        self._by_fd[listening.fileno()] = site
        self._poll.register(listening, select.EPOLLIN)
        _log.info("%s: listening on %s", site.what, show(_bound(site.address, listening)))

    def _accept(self, number: int) -> None:
        try:
            with self._lock:
                site = self._by_fd.get(number)
                if site is None or site.socket is None:
                    return
                accepted, _ = site.socket.accept()
        except OSError as error:  # it went away again, or there are too many open files
            if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                self._make_room()
            return
        accepted.setblocking(False)
        if len(self._clients) >= MOST_CLIENTS:
            self._make_room()
        client = _Client(accepted, site.answer, self._clock() + CLIENT_SECONDS)
        self._clients[accepted.fileno()] = client
        self._poll.register(accepted, select.EPOLLIN)

    def _make_room(self) -> None:
        """Drop the oldest client; without any, wait a moment: new connections stay in the queue meanwhile."""
        for client in self._clients.values():
            self._drop(client)
            return
        time.sleep(_REST_SECONDS)

    def _serve(self, client: _Client) -> None:
        """Go on with a client as far as that needs no waiting."""
        with self._dropping(client):
            if client.told is None and not self._read(client):
                return
            while client.told:
                client.told = client.told[client.socket.send(client.told) :]
                if not client.told:
                    client.socket.shutdown(socket.SHUT_WR)
                    self._poll.modify(client.socket, select.EPOLLIN)
            if not client.socket.recv(_PIECE):  # whatever else it says is for nobody
                self._drop(client)

    def _read(self, client: _Client) -> bool:
        """Read on; return whether the request is complete and there is an answer to send."""
        piece = client.socket.recv(_PIECE)
        if not piece:
            self._drop(client)
            return False
        client.asked += piece
        head, end, _ = bytes(client.asked).partition(b"\r\n\r\n")
        if not end and len(head) < MOST_HEAD:
            return False
        whole = end and len(head) <= MOST_HEAD
        client.told = memoryview(self._reply(client.answer, head) if whole else _encode(_plain(431)))
        self._bound_waiting(client)
        self._poll.modify(client.socket, select.EPOLLOUT)
        return True

    def _bound_waiting(self, newest: _Client) -> None:
        """Let go of the oldest that read slowly, until what waits for readers is within bounds."""
        waiting = sum(len(client.told) for client in self._clients.values() if client.told)
        for client in list(self._clients.values()):
            if waiting <= MOST_WAITING:
                break
            if client is not newest and client.told:
                waiting -= len(client.told)
                self._drop(client)

    def _reply(self, answer: Answer, head: bytes) -> bytes:
        request = _parse(head)
        if isinstance(request, Response):
            return _encode(request)
        try:
            response = answer(request)
        except Exception as error:
            if str(error) != self._complaint:
                self._complaint = str(error)
                _log.exception("GET %s", request.path)
            response = _plain(500)
        return _encode(response, body=request.method != "HEAD")

    @contextlib.contextmanager
    def _dropping(self, client: _Client) -> Iterator[None]:
        """Go on later when a call would wait; let go of a client whose connection is broken."""
        try:
            yield
        except BlockingIOError:
            pass
        except OSError as error:
            _log.debug("a client left: %s", error)
            self._drop(client)

    def _drop(self, client: _Client) -> None:
        if self._clients.pop(client.socket.fileno(), None) is not None:
            self._poll.unregister(client.socket)
            client.socket.close()


def _bound(address: Address, listening: socket.socket) -> Address:
    """Return an address with the port that the kernel chose for 0."""
    host, port = address
    return (host, port) if host.startswith("/") else (host, listening.getsockname()[1])


def _listening(address: Address) -> socket.socket:
    """Return a socket that listens.

    Raises OSError: another process has the address, or it is not on this node.
    """
    host, port = address
    if host.startswith("/"):
        return _listening_at(Path(host))
    ip = ip_address(host)
    both = ip.is_unspecified and socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both or ip.version == 6 else socket.AF_INET
    where = ("::" if both else host, port)
    listening = socket.create_server(where, family=family, backlog=MOST_CLIENTS, dualstack_ipv6=both)
    listening.setblocking(False)
    return listening


def _listening_at(path: Path) -> socket.socket:
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        os.fchmod(listening.fileno(), 0o600)  # the file that bind makes has the mode of the socket
        listening.bind(str(path))
        listening.listen(MOST_CLIENTS)
    except OSError:
        listening.close()
        raise
    listening.setblocking(False)
    return listening


def _parse(head: bytes) -> Request | Response:
    """Return a request, or the answer to one that cannot be taken."""
    line, *fields = head.decode("latin-1").split("\r\n")
    words = line.split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return _plain(400)
    if words[0] not in ("GET", "HEAD"):
        return Response(405, b"GET or HEAD\n", (("Allow", "GET, HEAD"),))
    try:
        target = urlsplit(words[1])
    except ValueError:
        return _plain(400)
    pairs = (each.partition(":") for each in fields)
    headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
    return Request(words[0], target.path, target.query, headers)


def _plain(status: int) -> Response:
    return Response(status, f"{HTTPStatus(status).phrase}\n".encode())


def _encode(response: Response, *, body: bool = True) -> bytes:
    headers = (
        *response.headers,
        ("Content-Length", str(len(response.body))),
        ("Date", formatdate(usegmt=True)),
        ("Connection", "close"),
    )
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in headers]
    head = "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
    return head + response.body if body else head
