"""``GET /metrics`` over HTTP, in a thread of its own."""

from __future__ import annotations

import logging
import socket
import socketserver
import threading
from collections.abc import Callable
from http.server import ThreadingHTTPServer
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import CollectorRegistry, MetricsHandler, ProcessCollector
from prometheus_client.registry import Collector

_log = logging.getLogger(__name__)

RETRY_SECONDS = 10.0
"""How often it is tried again to listen on an address that cannot be had."""
_TICK_SECONDS = 0.5
_CLIENT_SECONDS = 10.0
"""How long a client may take for its request, and for taking a piece of the answer."""


class Endpoint:
    """Answers on one address, or tries to, until it is told to stop.

    An address that cannot be had (another process has it, it is not on this node) is an error in the log,
    once; it is tried again, since the process that has it may be on its way out. No failure here is the
    agent's.

    Parameters
    ----------
    host, port: an IP address and a TCP port; port 0: one that the kernel chooses.
    metrics: what to tell, beside memory and CPU time of this process.
    listening: called with the URL, each time an attempt to listen has succeeded.
    """

    def __init__(
        self,
        host: str,
        port: int,
        metrics: Collector,
        *,
        listening: Callable[[str], None] = lambda url: _log.info("metrics: %s", url),
        retry_seconds: float = RETRY_SECONDS,
    ) -> None:
        self._host = host
        self._port = port
        self._listening = listening
        self._retry_seconds = retry_seconds
        self._registry = CollectorRegistry(support_collectors_without_names=True)  # /metrics?name[]=…
        self._registry.register(metrics)
        ProcessCollector(registry=self._registry)
        self._error = ""

    def run(self, stop: threading.Event) -> None:
        """Answer until stop is set."""
        while not stop.is_set():
            server = self._listen()
            if server is None:
                stop.wait(self._retry_seconds)
                continue
            with server:
                while not stop.is_set():
                    server.handle_request()

    def _listen(self) -> _Server | None:
        where = f"[{self._host}]" if ":" in self._host else self._host
        try:
            server = _Server(self._host, self._port, self._registry)
        except OSError as error:
            if str(error) != self._error:
                self._error = str(error)
                _log.error(
                    "metrics: cannot listen on %s:%d: %s; all else works, trying again every %g s",
                    where,
                    self._port,
                    error.strerror or error,
                    self._retry_seconds,
                )
            return None
        self._error = ""
        self._listening(f"http://{where}:{server.server_address[1]}/metrics")
        return server


class _Handler(MetricsHandler):
    """Prometheus' own handler, at one path."""

    timeout = _CLIENT_SECONDS

    def do_GET(self) -> None:  # noqa: N802  (named by http.server)
        if urlsplit(self.path).path == "/metrics":
            super().do_GET()
        else:
            self.send_error(404, explain="There is /metrics here.")


class _Server(ThreadingHTTPServer):
    """Listens from the moment it is made.

    Raises
    ------
    OSError: the address cannot be had.
    """

    daemon_threads = True
    allow_reuse_port = False
    timeout = _TICK_SECONDS

    def __init__(self, host: str, port: int, registry: CollectorRegistry) -> None:
        self.address_family = socket.AF_INET6 if ip_address(host).version == 6 else socket.AF_INET
        super().__init__((host, port), _Handler.factory(registry))

    def server_bind(self) -> None:
        """Bind; without HTTPServer's question to DNS for this host's name, which may take seconds."""
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002
        """Log what goes wrong with one client; most often it has gone away."""
        _log.debug("metrics: %s", client_address, exc_info=True)
