# SPDX-License-Identifier: Apache-2.0
import socket
import threading
from collections.abc import Iterator

import pytest

from lb.lab.demo import answering
from lb.lab.pod import Pod


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    """A connection to a pod called p, on its port web."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    served, _ = listener.accept()
    listener.close()
    thread = threading.Thread(target=Pod("p", ["-a", "b c"]).converse, args=(served, "192.0.2.1", "web"))
    thread.start()
    client.settimeout(10)
    yield client
    client.close()
    thread.join()


def exchange(wire: socket.socket, request: bytes, method: str = "GET") -> tuple[str, bytes]:
    """Send bytes; return the status line and the body of one answer."""
    wire.sendall(request)
    with wire.makefile("rb") as stream:
        status = stream.readline().decode().strip()
        length = 0
        while (line := stream.readline().decode().strip().lower()) != "":
            if line.startswith("content-length:"):
                length = int(line.partition(":")[2])
        return status, b"" if method == "HEAD" else stream.read(length)


def ended(wire: socket.socket) -> bool:
    return wire.recv(1) == b""


@pytest.mark.parametrize(
    ("path", "status", "body"),
    [
        ("/", "200 OK", b"You've hit p on web\n"),
        ("/any/path?q=1", "200 OK", b"You've hit p on web\n"),
        ("/hostname", "200 OK", b"p\n"),
        ("/clientip", "200 OK", b"192.0.2.1\n"),
        ("/args", "200 OK", b"-a\nb c\n"),
        ("/headers", "200 OK", b"GET /headers HTTP/1.1\r\nX-A: b\r\n"),
        ("/large?bytes=3", "200 OK", b"xxx"),
        ("/large?bytes=200000", "200 OK", b"x" * 200_000),
        ("/large?bytes=-1", "400 Bad Request", b"give /large?bytes=N\n"),
        ("/ready", "200 OK", b"You've hit p on web\n"),
    ],
)
def test_answers(wire: socket.socket, path: str, status: str, body: bytes) -> None:
    request = f"GET {path} HTTP/1.1\r\nX-A: b\r\n\r\n".encode()
    assert exchange(wire, request) == (f"HTTP/1.1 {status}", body)


def test_one_connection_carries_many_requests(wire: socket.socket) -> None:
    for _ in range(3):
        assert exchange(wire, b"GET /hostname HTTP/1.1\r\n\r\n")[1] == b"p\n"
        assert (
            exchange(wire, b"POST / HTTP/1.1\r\nContent-Length: 5\r\n\r\nhello")[1] == b"p received 5 bytes\n"
        )
        assert exchange(wire, b"HEAD / HTTP/1.1\r\n\r\n", "HEAD")[0] == "HTTP/1.1 200 OK"


def test_a_body_may_come_in_pieces(wire: socket.socket) -> None:
    wire.sendall(b"POST / HTTP/1.1\r\nContent-")
    wire.sendall(b"Length: 100000\r\n\r\n" + b"a" * 10)
    assert exchange(wire, b"b" * 99_990)[1] == b"p received 100000 bytes\n"


def test_a_large_upload_is_invited(wire: socket.socket) -> None:
    wire.sendall(b"PUT / HTTP/1.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert wire.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert exchange(wire, b"ab")[1] == b"p received 2 bytes\n"


@pytest.mark.parametrize(
    "request_text",
    [b"GET / HTTP/1.1\r\nConnection: close\r\n\r\n", b"GET / HTTP/1.0\r\n\r\n"],
)
def test_the_connection_ends_when_the_client_wants_it(wire: socket.socket, request_text: bytes) -> None:
    assert exchange(wire, request_text)[0] == "HTTP/1.1 200 OK"
    assert ended(wire)


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"nonsense\r\n\r\n", "400 Bad Request"),
        (b"GET / SPDY/3\r\n\r\n", "400 Bad Request"),
        (b"POST / HTTP/1.1\r\nContent-Length: x\r\n\r\n", "400 Bad Request"),
        (b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n", "411 Length Required"),
    ],
)
def test_what_is_not_understood_is_refused(wire: socket.socket, request_text: bytes, status: str) -> None:
    assert exchange(wire, request_text)[0] == f"HTTP/1.1 {status}"
    assert ended(wire)


def test_other_methods_are_not_allowed(wire: socket.socket) -> None:
    assert exchange(wire, b"DELETE / HTTP/1.1\r\n\r\n")[0] == "HTTP/1.1 405 Method Not Allowed"


def test_the_demo_counts_answers_by_pod() -> None:
    text = "You've hit a on web\nYou've hit b on web\nYou've hit a on web\ncurl: nothing\n"
    assert answering(text, udp=False) == {"a": 2, "b": 1}
    assert answering("a echo hello\nTraceback:\n  something\n", udp=True) == {"a": 1}
