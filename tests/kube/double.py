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
import contextlib
import copy
import socket
import ssl
import threading
import uuid

from tests.kube.double_http import Disturbance, Fault, Handler, Request, Server, Watch
from tests.kube.rules import (
    KINDS,
    Change,
    Object,
    StatusError,
    api_version,
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
        self._server = Server(("127.0.0.1", self._port), self, self._tls)
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
