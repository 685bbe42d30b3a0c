# SPDX-License-Identifier: Apache-2.0
"""The HTTP server: over real sockets on loopback, with polite clients and others."""

from __future__ import annotations

import contextlib
import errno
import logging
import select
import socket
import threading
from collections.abc import Iterator

import pytest

from lb.served import http as lbhttp
from lb.served.http import Address, HttpServer, Request, Response, routes, show
from tests.unit.http_bench import LOOPBACK, PATIENCE, ask, bound, serving

ANY: Address = (LOOPBACK, 0)


def say(text: str) -> lbhttp.Answer:
    return lambda request: Response(200, f"{text} {request.path}?{request.query}".encode())


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with serving() as running:
        yield running


@contextlib.contextmanager
def stepped(clock: list[float]) -> Iterator[HttpServer]:
    """A server that only does something when the test lets it take a step; the clock is the test's."""
    server = HttpServer(retry_seconds=10.0, clock=lambda: clock[0])
    try:
        yield server
    finally:
        server.shut()


def connect(address: Address) -> socket.socket:
    return socket.create_connection(address, timeout=PATIENCE)


def free_port() -> int:
    with socket.create_server((LOOPBACK, 0)) as listening:
        port: int = listening.getsockname()[1]
        return port


def raw(address: Address, *pieces: bytes) -> bytes:
    """Send bytes in pieces, and return everything that comes back until the server closes."""
    with connect(address) as client:
        for piece in pieces:
            client.sendall(piece)
        return b"".join(iter(lambda: client.recv(65536), b""))


# Answers -------------------------------------------------------------------------------------------------


def test_get(server: HttpServer) -> None:
    server.open(ANY, say("hello"), "test")
    status, headers, body = ask(bound(server, ANY), "/a?b=c")
    assert (status, body) == (200, b"hello /a?b=c")
    assert headers["Content-Length"] == str(len(body))
    assert headers["Connection"] == "close"
    assert headers["Date"].endswith(" GMT")


def test_head_is_get_without_the_body(server: HttpServer) -> None:
    server.open(ANY, say("hello"), "test")
    status, headers, body = ask(bound(server, ANY), "/", "HEAD")
    assert (status, headers["Content-Length"], body) == (200, "8", b"")


def test_routes_answer_404_elsewhere(server: HttpServer) -> None:
    server.open(ANY, routes({"/metrics": say("m"), "/x": say("x")}), "test")
    where = bound(server, ANY)
    assert ask(where, "/x?q")[::2] == (200, b"x /x?q")
    for path in ("/", "/metricsx", "/favicon.ico"):
        assert ask(where, path)[::2] == (404, b"not here; there is /metrics, /x\n")


def test_other_methods_are_not_allowed(server: HttpServer) -> None:
    server.open(ANY, say("hello"), "test")
    status, headers, _ = ask(bound(server, ANY), "/", "POST")
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_headers_are_told_in_lower_case(server: HttpServer) -> None:
    seen: list[Request] = []

    def answer(request: Request) -> Response:
        seen.append(request)
        return Response(200, b"")

    server.open(ANY, answer, "test")
    raw(bound(server, ANY), b"GET http://h:1/p?q HTTP/1.0\r\nACCEPT:  text/plain \r\nX: a:b\r\n\r\n")
    assert seen == [Request("GET", "/p", "q", {"accept": "text/plain", "x": "a:b"})]


BAD = {
    "no request": (b"\0\xff\r\n\r\n", 400),
    "no version": (b"GET /\r\n\r\n", 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\n", 400),
    "no URL": (b"GET http://[ HTTP/1.1\r\n\r\n", 400),
    "endless": (b"GET /" + b"x" * lbhttp.MOST_HEAD, 431),
}


@pytest.mark.parametrize(("said", "status"), BAD.values(), ids=BAD)
def test_what_is_no_request_is_told_so(server: HttpServer, said: bytes, status: int) -> None:
    server.open(ANY, say("hello"), "test")
    assert raw(bound(server, ANY), said).startswith(f"HTTP/1.1 {status} ".encode())


def test_an_answer_that_fails_is_logged_once_and_costs_no_other(
    server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_request: Request) -> Response:
        raise ZeroDivisionError("oops")

    server.open(ANY, routes({"/broken": broken, "/": say("hello")}), "test")
    where = bound(server, ANY)
    assert [ask(where, path)[0] for path in ("/broken", "/broken", "/")] == [500, 500, 200]
    assert [one.getMessage() for one in caplog.records] == ["GET /broken"]


# Clients that are not polite -----------------------------------------------------------------------------


def test_a_request_in_pieces_and_one_with_a_body(server: HttpServer) -> None:
    server.open(ANY, say("hello"), "test")
    where = bound(server, ANY)
    with connect(where) as client:
        for piece in (b"GE", b"T / HTTP/1.1\r", b"\nHost: x\r\n\r", b"\n"):
            client.sendall(piece)
        assert client.recv(17) == b"HTTP/1.1 200 OK\r\n"
    assert raw(where, b"GET / HTTP/1.1\r\nContent-Length: 99999\r\n\r\n" + b"x" * 99999).endswith(b"hello /?")


def test_a_slow_reader_gets_a_long_answer_and_holds_up_nobody(server: HttpServer) -> None:
    long = bytes(range(256)) * 65536  # 16 MiB: more than two sockets' buffers hold
    server.open(ANY, routes({"/long": lambda _: Response(200, long), "/": say("hello")}), "test")
    where = bound(server, ANY)
    with connect(where) as slow:
        slow.sendall(b"GET /long HTTP/1.1\r\n\r\n")
        assert slow.recv(4) == b"HTTP"
        assert ask(where)[0] == 200
        received = b"".join(iter(lambda: slow.recv(1 << 20), b""))
    assert received.partition(b"\r\n\r\n")[2] == long


def test_clients_that_leave_cost_nothing(server: HttpServer) -> None:
    server.open(ANY, say("hello"), "test")
    where = bound(server, ANY)
    for said in (b"", b"GET /met", b"GET / HTTP/1.0\r\n\r\n", b"\0\xff\r\n\r\n"):
        for reset in (b"\0" * 8, b"\1\0\0\0\0\0\0\0"):
            with connect(where) as client:
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
                client.sendall(said)
    assert ask(where)[0] == 200


def test_an_idle_client_is_let_go_after_a_while() -> None:
    clock = [100.0]
    with stepped(clock) as server:
        server.open(ANY, say("hello"), "test")
        with connect(bound(server, ANY)) as idle:
            server.step(PATIENCE)
            clock[0] += lbhttp.CLIENT_SECONDS - 0.1
            server.step(0)
            assert select.select([idle], [], [], 0) == ([], [], [])
            clock[0] += 0.1
            server.step(0)
            assert idle.recv(1) == b""


def test_one_client_too_many_costs_the_oldest_its_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lbhttp, "MOST_CLIENTS", 2)
    with stepped([0.0]) as server, contextlib.ExitStack() as stack:
        server.open(ANY, say("hello"), "test")
        clients = []
        for _ in range(3):
            clients.append(stack.enter_context(connect(bound(server, ANY))))
            server.step(PATIENCE)
        assert clients[0].recv(1) == b""
        clients[1].sendall(b"GET / HTTP/1.1\r\n\r\n")
        server.step(PATIENCE)
        assert clients[1].recv(4) == b"HTTP"


def test_answers_that_nobody_reads_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who asks for much, often, and does not read, costs the older ones of such connections."""
    monkeypatch.setattr(lbhttp, "MOST_WAITING", 40 << 20)
    with stepped([0.0]) as server, contextlib.ExitStack() as stack:
        server.open(ANY, lambda _request: Response(200, bytes(16 << 20)), "test")
        clients = [stack.enter_context(connect(bound(server, ANY))) for _ in range(6)]
        for client in clients:
            client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for _ in range(40):
            server.step(0.01)
        waiting = [len(one.told) for one in server._clients.values() if one.told]
        assert 1 <= len(waiting) <= 2
        assert sum(waiting) <= 40 << 20


def test_a_long_head_is_refused_though_it_comes_at_once(server: HttpServer) -> None:
    server.open(ANY, say("hello"), "test")
    head = b"GET / HTTP/1.1\r\nX: " + b"x" * lbhttp.MOST_HEAD + b"\r\n\r\n"
    assert raw(bound(server, ANY), head).startswith(b"HTTP/1.1 431 ")


def test_without_a_file_for_a_client_another_one_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    """accept() fails with EMFILE: the oldest connection is given up, and the next step has room."""
    with stepped([0.0]) as server, contextlib.ExitStack() as stack:
        server.open(ANY, say("hello"), "test")
        oldest = stack.enter_context(connect(bound(server, ANY)))
        server.step(PATIENCE)
        accept = socket.socket.accept
        errors = iter([OSError(errno.EMFILE, "Too many open files")])

        def scarce(listening: socket.socket) -> tuple[socket.socket, object]:
            for error in errors:
                raise error
            return accept(listening)

        monkeypatch.setattr(socket.socket, "accept", scarce)
        newer = stack.enter_context(connect(bound(server, ANY)))
        newer.sendall(b"GET / HTTP/1.1\r\n\r\n")
        server.step(PATIENCE)
        assert oldest.recv(1) == b""
        server.step(PATIENCE)
        server.step(PATIENCE)
        assert newer.recv(4) == b"HTTP"


# Addresses -----------------------------------------------------------------------------------------------


def test_only_the_given_address_is_bound(server: HttpServer) -> None:
    server.open(ANY, say("hello"), "test")
    with pytest.raises(ConnectionRefusedError):
        connect(("127.0.0.2", bound(server, ANY)[1]))


def test_ipv6(server: HttpServer) -> None:
    server.open(("::1", 0), say("hello"), "test")
    where = bound(server, ("::1", 0))
    assert show(where) == f"[::1]:{where[1]}"
    assert ask(where)[0] == 200


@pytest.mark.parametrize("unspecified", ["0.0.0.0", "::"])
def test_an_unspecified_address_means_both_families(server: HttpServer, unspecified: str) -> None:
    server.open((unspecified, 0), say("hello"), "test")
    host, port = bound(server, (unspecified, 0))
    assert host == unspecified
    assert [ask((each, port))[0] for each in (LOOPBACK, "::1")] == [200, 200]


def test_many_addresses_each_with_its_own_answer(server: HttpServer) -> None:
    addresses = [(f"127.0.1.{number}", 0) for number in range(1, 51)]
    for address in addresses:
        server.open(address, say(address[0]), "test")
    answers = [ask(bound(server, address))[2] for address in addresses]
    assert answers == [f"{host} /?".encode() for host, _ in addresses]


def test_an_open_address_can_be_given_another_answer(server: HttpServer) -> None:
    server.open(ANY, say("one"), "test")
    where = bound(server, ANY)
    server.open(ANY, say("two"), "test")
    assert bound(server, ANY) == where
    assert ask(where)[2] == b"two /?"


def test_a_closed_address_refuses_and_can_be_opened_again_at_once(server: HttpServer) -> None:
    address = (LOOPBACK, free_port())
    for text in (b"one", b"two", b"three"):
        server.open(address, say(text.decode()), "test")
        assert ask(address)[2] == text + b" /?"
        server.close(address)
        assert server.bound(address) is None
        with pytest.raises(ConnectionRefusedError):
            connect(address)
    server.close(address)


def test_the_address_is_free_after_the_stop() -> None:
    address = (LOOPBACK, free_port())
    for _ in range(2):
        with serving() as server:
            server.open(address, say("hello"), "test")
            assert ask(address)[0] == 200


def test_a_taken_address_is_one_error_and_is_had_once_it_is_free(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    failures: list[str] = []
    clock = [0.0]
    with stepped(clock) as server:
        with socket.create_server((LOOPBACK, 0)) as taken:
            address: Address = taken.getsockname()
            text = f"cannot listen on {show(address)}: Address already in use"
            server.open(address, say("hello"), "web", failures.append)
            for _ in range(3):
                assert (server.bound(address), server.error(address)) == (None, text)
                clock[0] += 10.0
                server.step(0)
            server.open(address, say("hello"), "dns", failures.append)
        clock[0] += 10.0
        server.step(0)
        assert (server.bound(address), server.error(address)) == (address, "")
    assert failures == [text, text], "once for each who wants it"
    again = f"{text}; all else works, trying again every 10 s"
    assert [(one.levelno, one.getMessage()) for one in caplog.records] == [
        (logging.ERROR, f"web: {again}"),
        (logging.ERROR, f"dns: {again}"),
        (logging.INFO, f"dns: listening on {show(address)}"),
    ]


def test_an_address_that_is_not_here(server: HttpServer) -> None:
    server.open(("192.0.2.77", 80), say("hello"), "test")
    assert server.error(("192.0.2.77", 80)) == (
        "cannot listen on 192.0.2.77:80: Cannot assign requested address"
    )
    server.close(("192.0.2.77", 80))
    assert server.error(("192.0.2.77", 80)) == ""


def test_addresses_come_and_go_while_requests_run(server: HttpServer) -> None:
    """One thread asks a port that stays; meanwhile others open and close all the time."""
    server.open(ANY, say("hello"), "test")
    where = bound(server, ANY)
    done = threading.Event()
    statuses: list[int] = []

    def keep_asking() -> None:
        while not done.is_set():
            statuses.append(ask(where)[0])

    thread = threading.Thread(target=keep_asking)
    thread.start()
    for _ in range(200):
        for number in range(1, 4):
            server.open((f"127.0.2.{number}", 0), say("x"), "test")
        for number in range(1, 4):
            server.close((f"127.0.2.{number}", 0))
    done.set()
    thread.join(PATIENCE)
    assert set(statuses) == {200}
