# SPDX-License-Identifier: Apache-2.0
"""A server of lb.served.http that runs while a test asks it, over loopback."""

from __future__ import annotations

import contextlib
import http.client
import threading
from collections.abc import Iterator

from lb.served import http as lbhttp
from lb.served.http import Address, HttpServer
from lb.stop_event import StopEvent

LOOPBACK = "127.0.0.1"
PATIENCE = 20.0
"""Seconds after which something that should happen has not; it normally takes milliseconds."""


@contextlib.contextmanager
def serving(retry_seconds: float = 0.01) -> Iterator[HttpServer]:
    """Run a server until the context ends; it must then end by itself."""
    server, stop = HttpServer(retry_seconds=retry_seconds), StopEvent()
    thread = threading.Thread(target=server.run, args=(stop,))
    thread.start()
    try:
        yield server
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def bound(server: HttpServer, address: Address) -> Address:
    """Return where it listens for an address; it must."""
    found = server.bound(address)
    assert found is not None
    return found


def url_of(server: HttpServer, address: Address) -> str:
    """Return the URL of an address."""
    return f"http://{lbhttp.show(bound(server, address))}"


def ask(address: Address, path: str = "/", method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """Return status, headers and body of an answer."""
    client = http.client.HTTPConnection(*address, timeout=PATIENCE)
    with contextlib.closing(client):
        client.request(method, path)
        response = client.getresponse()
        return response.status, dict(response.getheaders()), response.read()
