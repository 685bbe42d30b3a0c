# SPDX-License-Identifier: Apache-2.0
"""The HTTP side of the API server's double: requests, watches, and what is done to them."""

from __future__ import annotations

import bisect
import contextlib
import functools
import gzip
import json
import re
import socket
import ssl
import struct
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlsplit

from tests.kube.rules import (
    KINDS,
    Change,
    Object,
    StatusError,
    api_version,
    check_event,
    event_of,
    selects,
)

if TYPE_CHECKING:
    from tests.kube.double import ApiDouble

_PATH = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/v1(?:/namespaces/(?P<namespace>[^/]+))?/(?P<resource>[a-z]+)(?:/(?P<name>[^/]+))?"
)


@dataclass(frozen=True)
class Request:
    """What was asked; verb as RBAC names it. sub: the subresource, ``status``."""

    verb: str
    group: str
    resource: str
    query: dict[str, str]
    headers: dict[str, str]
    sub: str = ""

    @property
    def right(self) -> tuple[str, str, str]:
        """API group, resource and verb, as a role allows it."""
        return self.group, f"{self.resource}/{self.sub}" if self.sub else self.resource, self.verb


@dataclass(eq=False)
class Watch:
    """An open watch; commands are carried out by its own thread."""

    resource: str
    commands: deque[Callable[[Handler], bool]] = field(default_factory=deque)


Fault = Callable[["Handler"], None]
Disturbance = Callable[["Handler"], bool]
"""Done to an open watch; returns whether the watch goes on."""


class Server(ThreadingTCPServer):
    """The sockets of a double; double: its state."""

    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False

    def __init__(self, address: tuple[str, int], double: ApiDouble, tls: ssl.SSLContext | None) -> None:
        self.double = double
        super().__init__(address, Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients break connections on purpose here."""


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server
    request_: Request
    begun: int
    """The version that a watch was asked to begin after."""

    @property
    def double(self) -> ApiDouble:
        """The server's state."""
        return self.server.double

    def setup(self) -> None:
        """See the base class."""
        self.double.track(self.request)
        super().setup()

    def finish(self) -> None:
        """See the base class."""
        self.double.untrack(self.request)
        with contextlib.suppress(OSError):
            super().finish()

    def parse_request(self) -> bool:
        """Read a request, and go on with it unless the server hangs."""
        parsed = super().parse_request()
        self.double.awake.wait()
        return parsed

    def log_message(self, *_: Any) -> None:
        """Be silent."""

    def do_GET(self) -> None:
        """Answer list and watch, and whether the server is ready."""
        if self.path == "/readyz":
            self.double.probes += 1
            ready = self.double.ready
            self.send_bytes(200, b"ok") if ready else self.send_bytes(500, b"[-]poststarthook failed")
            return
        self._answer("watch" if "watch" in self._query() else "list")

    def do_POST(self) -> None:
        """Answer create."""
        self._answer("create")

    def do_PATCH(self) -> None:
        """Answer patch."""
        self._answer("patch")

    def _query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.path).query))

    def _answer(self, verb: str) -> None:
        match = _PATH.fullmatch(urlsplit(self.path).path)
        assert match, self.path
        group, resource = match["group"] or "", match["resource"]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.request_ = Request(verb, group, resource, self._query(), dict(self.headers))
        with self.double.changed:
            self.double.requests.append(self.request_)
            self.double.changed.notify_all()
        fault = self.double.take_fault(verb, resource)
        if fault is not None:
            fault(self)
            return
        try:
            self._admit()
            if verb == "watch":
                self._watch()
            elif verb == "list":
                self.send_json(200, self.double.page(self.request_))
            else:
                self._write(match["namespace"] or "", match["name"], json.loads(body))
        except StatusError as status:
            self.send_json(status.code, status.body)

    def _admit(self) -> None:
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        if self.double.tokens is not None and (scheme.lower(), token in self.double.tokens) != (
            "bearer",
            True,
        ):
            raise StatusError(401, "Unauthorized", "Unauthorized")
        group, _, _ = KINDS[self.request_.resource]
        if group != self.request_.group:
            raise StatusError(404, "NotFound", "the server could not find the requested resource")

    def send_json(self, code: int, body: Object, headers: dict[str, str] | None = None) -> None:
        """Send a whole answer."""
        self.send_bytes(code, json.dumps(body).encode(), headers)

    def send_bytes(self, code: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        """Send a whole answer; compressed, as the API server does it, when it is long."""
        headers = {"Content-Type": "application/json", **(headers or {})}
        if len(body) > 128 * 1024 and "gzip" in self.headers.get("Accept-Encoding", ""):
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, 1)
        self.send_response(code)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _write(self, namespace: str, name: str | None, body: Object) -> None:
        stored = self.double.objects[self.request_.resource]
        if self.request_.verb == "create":
            check_event(body)
            if (namespace, body["metadata"]["name"]) in stored:
                raise StatusError(409, "AlreadyExists", "already exists")
            body["metadata"]["namespace"] = namespace
            self.send_json(201, self.double.put(body))
            return
        if (namespace, name or "") not in stored:
            raise StatusError(404, "NotFound", "not found")
        if self.headers["Content-Type"] != "application/merge-patch+json":
            raise StatusError(415, "UnsupportedMediaType", self.headers["Content-Type"])
        merged = {**stored[namespace, name or ""], **body}
        check_event(merged)
        self.send_json(200, self.double.put(merged))

    # watches

    def selectors(self) -> dict[str, str]:
        """Return the query of a watch; it selects."""
        return self.request_.query

    def _watch(self) -> None:
        """Answer a watch from a version on; without one, or for a streaming list, from what is there."""
        query = self.request_.query
        streaming = query.get("sendInitialEvents") == "true"
        if streaming != (query.get("resourceVersionMatch") == "NotOlderThan"):
            raise StatusError(422, "Invalid", "resourceVersionMatch: goes with sendInitialEvents")
        asked = query.get("resourceVersion") or "0"
        from_now = streaming or asked == "0"
        watch = Watch(self.request_.resource)
        present: list[Object] = []
        with self.double.changed:
            start = self.double.version if from_now else int(asked)
            if from_now:
                known = sorted(self.double.objects[watch.resource].items())
                present = [item for _, item in known if selects(self.selectors(), item)]
            expired = start < self.double.oldest
            self.double.watches.add(watch)
            self.double.changed.notify_all()
        self.begin_stream()
        try:
            with contextlib.suppress(OSError):
                for item in present:
                    self.send_event("ADDED", item)
                if streaming:
                    self.send_bookmark(start, {"k8s.io/initial-events-end": "true"})
                if expired:
                    words = f"too old resource version: {start} ({self.double.oldest})"
                    self.send_event("ERROR", StatusError(410, "Expired", words).body)
                    self.send_chunk(b"")
                else:
                    self._stream(watch, start)
        finally:
            with self.double.changed:
                self.double.watches.discard(watch)
                self.double.changed.notify_all()

    def begin_stream(self) -> None:
        """Send the header of a chunked answer."""
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()

    def _stream(self, watch: Watch, version: int) -> None:
        """Tell what comes after a version.

        Of a version that was not reached yet, as after :meth:`ApiDouble.restore`, the real server says
        nothing; it keeps silent until versions have passed it.
        """
        double, query = self.double, self.selectors()
        self.begun = version
        end = time.monotonic() + float(self.request_.query.get("timeoutSeconds", "3600"))
        while True:
            with double.changed:
                awaited = functools.partial(self._is_awaited, watch, version)
                if not double.changed.wait_for(awaited, end - time.monotonic()):
                    self.send_chunk(b"")
                    return
                if double.released.is_set():
                    return
                changes = self._later(watch, version)
                command = watch.commands.popleft() if watch.commands and not changes else None
            for change in changes:
                version = change.version
                if (event := event_of(query, change)) is not None:
                    self.send_event(*event)
            if command is not None and not command(self):
                return

    def _is_awaited(self, watch: Watch, version: int) -> bool:
        if not self.double.awake.is_set():
            return self.double.released.is_set()
        return bool(watch.commands or self.double.released.is_set() or self._later(watch, version))

    def _later(self, watch: Watch, version: int) -> list[Change]:
        history = self.double.history[watch.resource]
        return history[bisect.bisect_right(history, version, key=lambda change: change.version) :]

    def send_event(self, kind: str, item: Object) -> None:
        """Send one line of a watch, as a chunk."""
        self.send_chunk(json.dumps({"type": kind, "object": item}).encode() + b"\n")

    def send_bookmark(self, version: int, annotations: dict[str, str] | None = None) -> None:
        """Send the event that says up to which version everything has been told."""
        group, number, kind = KINDS[self.request_.resource]
        meta: Object = {"resourceVersion": str(version), "creationTimestamp": None}
        if annotations:
            meta["annotations"] = annotations
        self.send_event(
            "BOOKMARK", {"kind": kind, "apiVersion": api_version(group, number), "metadata": meta}
        )

    def send_chunk(self, data: bytes) -> None:
        """Send one chunk; an empty one ends the answer."""
        self.wfile.write(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    def reset(self) -> None:
        """Break the connection with a RST."""
        self.wfile.flush()
        self.request.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.request.close()
