# SPDX-License-Identifier: Apache-2.0
"""The process of a pod: a real HTTP/1.1 server and a UDP echo that say which pod answered on which port.

Run as a script, not imported by the lab: ``python -I -S pod.py NAME@HOST ADDRESS,… PORT… MOUNT… -- ARG…``
where ADDRESS is what to listen on, PORT is ``tcp:8080:http-default`` or ``udp:9000:echo`` and ARG is shown.
It takes its own mount and UTS namespace, with an empty /var, HOST as host name, and what MOUNT names,
``/source:/target``; without ``@HOST`` it stays where it was started. It writes ``listening`` to stdout when
every port is open. Only light modules of the standard library are imported, because there may be dozens of
pods.

With ``-`` for ADDRESS it does not serve, but becomes the program that ARG… are: a server of the distribution
in the place of this one.

HTTP answers:

=====================  ====================================================================
``/``, any other path  ``You've hit NAME on PORTNAME``
``/hostname``          NAME
``/clientip``          the client's address as the pod sees it
``/args``              each ARG in a line
``/headers``           the request as it came
``/large?bytes=N``     N bytes, ``x`` each
``/ready``             200, or 503 while the file /var/unready exists
``/fail``              500
POST or PUT, any path  ``NAME received N bytes``
=====================  ====================================================================

A UDP datagram is answered by ``NAME PORTNAME `` and its own payload. On SIGTERM the pod serves on for a
second and until no connection is open, so that nothing breaks while the endpoint is being taken out.
"""

from __future__ import annotations

import ctypes
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator

UNREADY = "/var/unready"
_MAX_HEAD = 65536
_CHUNK = 65536
_DRAIN_SECONDS = 1.0


class BadRequestError(Exception):
    """The bytes are no request that this server understands; carries the status line."""


class Request:
    """The head of an HTTP request, and the body's length."""

    def __init__(self, head: bytes) -> None:
        """Parse ``head``, which ends before the empty line; BadRequestError says what is not understood."""
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ")
        if len(words) != 3 or not words[2].startswith("HTTP/1."):
            raise BadRequestError("400 Bad Request")
        self.method, self.target, self.version = words
        self.text = head
        self.headers = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(":") for line in lines[1:])
        }
        if "transfer-encoding" in self.headers:
            raise BadRequestError("411 Length Required")
        length = self.headers.get("content-length", "0")
        if not length.isdigit():
            raise BadRequestError("400 Bad Request")
        self.length = int(length)
        connection = self.headers.get("connection", "").lower()
        self.keep_alive = connection != "close" if self.version == "HTTP/1.1" else connection == "keep-alive"


def response(status: str, length: int, keep_alive: bool) -> bytes:
    """Return the head of a response with a body of ``length`` bytes."""
    connection = "keep-alive" if keep_alive else "close"
    return (
        f"HTTP/1.1 {status}\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n"
        f"Connection: {connection}\r\n\r\n"
    ).encode()


class Pod:
    """The pod's name and arguments, and how many connections it has open."""

    def __init__(self, name: str, args: list[str]) -> None:
        self.name = name
        self.args = args
        self._open = 0
        self._idle = threading.Condition()

    def answer(self, request: Request, port: str, client: str, received: int) -> tuple[str, bytes | int]:
        """Return the status and the body; a number stands for that many bytes."""
        path, _, query = request.target.partition("?")
        count = query.removeprefix("bytes=")
        status = "200 OK"
        body: bytes | int
        if request.method in ("POST", "PUT"):
            body = f"{self.name} received {received} bytes\n".encode()
        elif request.method not in ("GET", "HEAD"):
            status, body = "405 Method Not Allowed", b"GET, HEAD, POST, PUT\n"
        elif path == "/hostname":
            body = f"{self.name}\n".encode()
        elif path == "/clientip":
            body = f"{client}\n".encode()
        elif path == "/args":
            body = "".join(f"{arg}\n" for arg in self.args).encode(errors="surrogateescape")
        elif path == "/headers":
            body = request.text + b"\r\n"
        elif path == "/large" and count.isdigit():
            body = int(count)
        elif path == "/large":
            status, body = "400 Bad Request", b"give /large?bytes=N\n"
        elif path == "/ready" and os.path.exists(UNREADY):
            status, body = "503 Service Unavailable", b"not ready\n"
        elif path.rpartition("/")[2] == "fail":
            status, body = "500 Internal Server Error", f"{self.name} fails, as it was asked to\n".encode()
        else:
            body = f"You've hit {self.name} on {port}\n".encode()
        return status, body

    def open(self, address: str, protocol: str, number: str, port: str) -> None:
        """Serve on one port of one address from now on; port is the name to answer with."""
        kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
        opened = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, kind)
        if protocol == "tcp":  # with it, two processes of a node could open one UDP port
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind((address, int(number)))
        if protocol == "tcp":
            opened.listen(1024)
        serve = self.serve_tcp if protocol == "tcp" else self.serve_udp
        threading.Thread(target=serve, args=(opened, port), daemon=True).start()

    def serve_tcp(self, listener: socket.socket, port: str) -> None:
        """Accept for ever, one thread for each connection."""
        while True:
            connection, peer = listener.accept()
            threading.Thread(target=self.converse, args=(connection, peer[0], port), daemon=True).start()

    def converse(self, connection: socket.socket, client: str, port: str) -> None:
        """Answer the requests of one connection until either side ends it."""
        with self._idle:
            self._open += 1
        try:
            with connection:
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                while self._one_request(connection, client, port):
                    pass
        except OSError:
            pass  # the client went away
        finally:
            with self._idle:
                self._open -= 1
                self._idle.notify_all()

    def _one_request(self, connection: socket.socket, client: str, port: str) -> bool:
        """Answer one request; return whether another may follow on the connection."""
        head, rest = _read_head(connection)
        if not head:
            return False
        try:
            request = Request(head)
        except BadRequestError as error:
            connection.sendall(response(str(error), 0, False))
            return False
        if request.headers.get("expect", "").lower() == "100-continue":
            connection.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        if len(rest) > request.length:  # a pipelined request: answer this one and end
            rest, request.keep_alive = rest[: request.length], False
        received = len(rest)
        while received < request.length:
            data = connection.recv(min(_CHUNK, request.length - received))
            if not data:
                return False
            received += len(data)
        status, body = self.answer(request, port, client, received)
        length = body if isinstance(body, int) else len(body)
        first = response(status, length, request.keep_alive)
        chunks = iter(()) if request.method == "HEAD" else _chunks(body)
        connection.sendall(first + next(chunks, b""))
        for chunk in chunks:
            connection.sendall(chunk)
        return request.keep_alive

    def serve_udp(self, channel: socket.socket, port: str) -> None:
        """Echo for ever."""
        prefix = f"{self.name} {port} ".encode()
        while True:
            data, peer = channel.recvfrom(65535)
            try:
                channel.sendto(prefix + data, peer)
            except OSError:
                continue  # too long with the prefix, or the peer cannot be reached: it gets no answer

    def drain(self) -> None:
        """Return once no connection is open."""
        with self._idle:
            self._idle.wait_for(lambda: self._open == 0)


def _read_head(connection: socket.socket) -> tuple[bytes, bytes]:
    """Return the bytes before the empty line and those after it; empty when the client ended first."""
    data = b""
    while b"\r\n\r\n" not in data:
        more = connection.recv(_CHUNK)
        if not more or len(data) > _MAX_HEAD:
            return b"", b""
        data += more
    head, _, rest = data.partition(b"\r\n\r\n")
    return head, rest


def _chunks(body: bytes | int) -> Iterator[bytes]:
    if isinstance(body, bytes):
        yield body
        return
    while body > 0:
        yield b"x" * min(body, _CHUNK)
        body -= _CHUNK


def be_a_container(host: str, mounts: list[str]) -> None:
    """Take a mount namespace with an empty /var and these mounts, and a UTS namespace with this host name.

    A mount is ``/source:/target``. A target below /var is made; elsewhere one that the machine lacks is left
    out, for it would have to be made on the machine.

    Mounts stay slaves of the machine's, so that removals there arrive here, and the mounts of network
    namespaces are left: otherwise this process would keep other pods' namespaces alive.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    clone_newns, clone_newuts, ms_bind, ms_rec, ms_slave, detach = (
        0x20000,
        0x4000000,
        0x1000,
        0x4000,
        1 << 19,
        2,
    )

    def check(result: int, what: str) -> None:
        if result:
            raise OSError(ctypes.get_errno(), what)

    check(libc.unshare(clone_newns | clone_newuts), "unshare")
    check(libc.mount(None, b"/", None, ctypes.c_ulong(ms_rec | ms_slave), None), "mount --make-rslave /")
    while libc.umount2(b"/run/netns", detach) == 0:
        pass
    check(libc.mount(b"tmpfs", b"/var", b"tmpfs", ctypes.c_ulong(0), b"size=4m"), "mount /var")
    for source, _, target in (mount.partition(":") for mount in mounts):
        if target.startswith("/var/"):
            os.makedirs(target, exist_ok=True)
        if os.path.exists(target):
            what = f"mount {source} on {target}"
            check(libc.mount(source.encode(), target.encode(), None, ctypes.c_ulong(ms_bind), None), what)
    socket.sethostname(host[:64])


def become(argv: list[str]) -> None:
    """Say that all is prepared, and become another program, which has stderr for both of its streams."""
    print("listening", flush=True)
    os.dup2(2, 1)
    try:
        os.execvp(argv[0], argv)  # noqa: S606
    except OSError as error:
        sys.exit(f"{argv[0]} cannot be started: {error.strerror}")


def main(name: str, addresses: str, ports: list[str], args: list[str]) -> None:
    """Open every port, say so, and serve until SIGTERM; or become the program that args name."""
    name, _, host = name.partition("@")
    if host:
        be_a_container(host, [each for each in ports if each.startswith("/")])
    ports = [each for each in ports if not each.startswith("/")]
    if addresses == "-":
        become(args)
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # in every thread: sigwait below takes it
    pod = Pod(name, args)
    for address in addresses.split(","):
        for entry in ports:
            try:
                pod.open(address, *entry.split(":"))
            except OSError as error:
                sys.exit(f"port {entry} of {address} cannot be opened: {error.strerror}")
    print("listening", flush=True)
    signal.sigwait({signal.SIGTERM})
    time.sleep(_DRAIN_SECONDS)
    pod.drain()


if __name__ == "__main__":
    end = sys.argv.index("--", 3)
    main(sys.argv[1], sys.argv[2], sys.argv[3:end], sys.argv[end + 1 :])
