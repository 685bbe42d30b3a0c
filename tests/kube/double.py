# SPDX-License-Identifier: Apache-2.0
"""A double of the API server over real sockets: list, watch, events, and every fault on command.

It behaves as the API documentation says (resource versions, pages, bookmarks, selectors, 410 Gone), holds
objects as plain dictionaries, and serves HTTP/1.1 on loopback, or HTTPS when given an SSL context. Tests
change objects with :meth:`ApiDouble.put` and :meth:`ApiDouble.remove`, and faults come in two ways:
:meth:`ApiDouble.fault` answers the next requests of a kind, :meth:`ApiDouble.disturb` does something to the
watches that are open.
"""

from __future__ import annotations

import base64
import bisect
import contextlib
import copy
import functools
import gzip
import json
import re
import socket
import ssl
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from socketserver import ThreadingTCPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from tests.kube.rules import (
    KINDS,
    Change,
    Object,
    StatusError,
    api_version,
    check_event,
    event_of,
    resource_of,
    selects,
)

__all__ = [
    "KINDS",
    "ApiDouble",
    "Disturbance",
    "Fault",
    "Handler",
    "Key",
    "Object",
    "Request",
    "StatusError",
    "Watch",
    "api_version",
    "resource_of",
]

Key = tuple[str, str]
Backup = tuple[int, dict[str, dict[Key, Object]]]
"""A version, and the objects of then by resource."""

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


class ApiDouble:
    """The server; a context manager that ends with all its connections closed."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.changed = threading.Condition()
        self.version = 1000
        self.oldest = 1000
        """Watches from before this version get 410."""
        self.objects: dict[str, dict[Key, Object]] = {resource: {} for resource in KINDS}
        self.history: dict[str, list[Change]] = {resource: [] for resource in KINDS}
        self.requests: list[Request] = []
        self.tokens: set[str] | None = None
        """Bearer tokens that are admitted; None: all."""
        self.watches: set[Watch] = set()
        self.released = threading.Event()
        """Set when hanging requests are to end."""
        self.awake = threading.Event()
        """Cleared while the server hangs, see :meth:`hang`."""
        self.awake.set()
        self.page_most = 500
        self.ready = True
        """Whether ``/readyz`` says so."""
        self.probes = 0
        """How often it was asked."""
        self.accepted = 0
        """Connections so far."""
        self._faults: list[tuple[str, str, Fault]] = []
        self._snapshots: dict[str, tuple[int, list[Object]]] = {}
        self._connections: set[socket.socket] = set()
        self._tls = tls
        self._port = 0
        self._start()

    def _start(self) -> None:
        self._server = _Server(("127.0.0.1", self._port), self, self._tls)
        self._port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """Where it listens."""
        return f"{'https' if self._tls else 'http'}://127.0.0.1:{self._port}"

    def __enter__(self) -> ApiDouble:
        return self

    def __exit__(self, *_: object) -> None:
        self.released.set()
        self.awake.set()
        self.stop()

    def stop(self) -> None:
        """Close everything; connecting is refused from now on."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        with self.changed:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            self.changed.notify_all()

    def restart(self) -> None:
        """Come back on the same port, with all objects; watches from before get 410, as with the real one.

        That is so because a server that starts writes something itself, so versions have gone on.
        """
        self.version += 1
        self.compact()
        self._start()

    def backup(self) -> Backup:
        """Return all objects and the version, as a backup of etcd has them."""
        with self.changed:
            return self.version, copy.deepcopy(self.objects)

    def restore(self, backup: Backup) -> None:
        """Be as a backup says: versions that were given since are given a second time."""
        with self.changed:
            self.version, self.objects = backup[0], copy.deepcopy(backup[1])
            self.compact()

    # objects

    def put(self, item: Object) -> Object:
        """Add or change an object, with status; return it as stored."""
        item = copy.deepcopy(item)
        resource = resource_of(item)
        meta = item["metadata"]
        key = (meta.get("namespace", ""), meta["name"])
        with self.changed:
            before = self.objects[resource].get(key)
            self.version += 1
            meta["resourceVersion"] = str(self.version)
            meta["uid"] = before["metadata"]["uid"] if before else str(uuid.uuid4())
            meta.setdefault("creationTimestamp", "2020-01-15T10:20:58Z")
            self.objects[resource][key] = item
            self.history[resource].append(Change(self.version, before, item))
            self.changed.notify_all()
        return item

    def remove(self, item: Object) -> None:
        """Delete an object."""
        resource = resource_of(item)
        key = (item["metadata"].get("namespace", ""), item["metadata"]["name"])
        with self.changed:
            before = self.objects[resource].pop(key)
            self.version += 1
            gone = copy.deepcopy(before)
            gone["metadata"]["resourceVersion"] = str(self.version)
            self.history[resource].append(Change(self.version, gone, None))
            self.changed.notify_all()

    def compact(self) -> None:
        """Forget the past: older versions and all continue tokens are expired."""
        with self.changed:
            self.oldest = self.version
            for changes in self.history.values():
                changes.clear()
            self._snapshots.clear()

    # faults

    def fault(self, verb: str, resource: str, what: Fault, times: int = 1) -> None:
        """Let ``what`` answer the next requests of this verb (list, watch, create …) and resource."""
        with self.changed:
            self._faults += [(verb, resource, what)] * times

    def disturb(self, resource: str, what: Disturbance) -> None:
        """Do something to every open watch of a resource."""
        with self.changed:
            for watch in self.watches:
                if watch.resource == resource:
                    watch.commands.append(what)
            self.changed.notify_all()

    def hang(self, hangs: bool = True) -> None:
        """Take connections and requests from now on and say nothing; or go on with all of them."""
        with self.changed:
            self.awake.clear() if hangs else self.awake.set()
            self.changed.notify_all()

    def asked(self, verb: str, resource: str) -> list[Request]:
        """Return the requests of a verb and resource so far."""
        with self.changed:
            return [each for each in self.requests if (each.verb, each.resource) == (verb, resource)]

    def watching(self, *resources: str) -> bool:
        """Return whether each of the resources has an open watch."""
        with self.changed:
            return set(resources) <= {watch.resource for watch in self.watches}

    def take_fault(self, verb: str, resource: str) -> Fault | None:
        """Return the fault that is due for a request."""
        with self.changed:
            for i, (fault_verb, fault_resource, what) in enumerate(self._faults):
                if (fault_verb, fault_resource) == (verb, resource):
                    del self._faults[i]
                    return what
        return None

    # lists

    def page(self, request: Request) -> Object:
        """Return the page of a list that a request asks for.

        Raises
        ------
        StatusError: the continue token is expired.
        """
        limit = min(int(request.query.get("limit", "0")), self.page_most)
        with self.changed:
            if token := request.query.get("continue"):
                if token not in self._snapshots:
                    raise StatusError(410, "Expired", "The provided continue parameter is too old")
                version, items = self._snapshots.pop(token)
            else:
                version = self.version
                items = [
                    o for _, o in sorted(self.objects[request.resource].items()) if selects(request.query, o)
                ]
            meta: Object = {"resourceVersion": str(version)}
            if limit and len(items) > limit:
                token = base64.b64encode(uuid.uuid4().bytes).decode()
                self._snapshots[token] = (version, items[limit:])
                meta |= {"continue": token, "remainingItemCount": len(items) - limit}
                items = items[:limit]
        group, version_name, kind = KINDS[request.resource]
        return {
            "kind": f"{kind}List",
            "apiVersion": api_version(group, version_name),
            "metadata": meta,
            "items": items,
        }

    def track(self, connection: socket.socket) -> None:
        """Remember a connection, to close it at the end."""
        with self.changed:
            self._connections.add(connection)
            self.accepted += 1

    def untrack(self, connection: socket.socket) -> None:
        """Forget a connection that is closed."""
        with self.changed:
            self._connections.discard(connection)


class _Server(ThreadingTCPServer):
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
    server: _Server
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
