# SPDX-License-Identifier: Apache-2.0
"""The API server of the control plane's bench: the tests' double, in a process of its own, of some size."""

from __future__ import annotations

import functools
import gc
import gzip
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection

from bench.cluster import fill, slice_of
from lb.config import Limits
from tests.kube.double import ApiDouble, Handler, Request
from tests.kube.faults import error_event

RATE = 100  # changes a second under load
LOOK = 0.0001  # seconds between two looks at the map
_PAGE = 500


@dataclass(frozen=True, slots=True)
class Size:
    """A cluster; ports and endpoints are those of each Service, dual: in each family.

    changes: how many to time.
    """

    services: int
    endpoints: int
    changes: int
    dual: bool = False
    ports: int = 1

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions that there are."""
        return (4, 6) if self.dual else (4,)

    def limits(self) -> Limits:
        """Return the default limits, raised where so many do not fit."""
        default = Limits()
        families = len(self.versions)
        ports = self.services * self.ports
        rows = families * ports * (32 if self.endpoints <= 16 else 256 * self.endpoints)
        return Limits(
            vips=max(default.vips, self.services + ports),
            backends=max(default.backends, ports * (self.endpoints + 1) + self.ports * self.changes),
            table_rows=max(default.table_rows, 2 * rows),
            services=max(default.services, families * ports),
        )


class Lists:
    """Pages of the lists, made before they are asked for; begun is when the first one was."""

    def __init__(self, double: ApiDouble) -> None:
        self._double = double
        self.begun = 0.0

    def prepare(self) -> None:
        """Have the next listing of Services and EndpointSlices ready."""
        self.begun = 0.0
        for group, kind in (("", "services"), ("discovery.k8s.io", "endpointslices")):
            query = {"limit": str(_PAGE)}
            while True:
                page = self._double.page(Request("list", group, kind, dict(query), {}))
                body = gzip.compress(json.dumps(page).encode(), 1)
                self._double.fault("list", kind, functools.partial(self._send, body))
                if not (token := page["metadata"].get("continue")):
                    break
                query["continue"] = token

    def _send(self, body: bytes, handler: Handler) -> None:
        self.begun = self.begun or time.monotonic()
        handler.send_response(200)
        handler.send_header("Content-Type", "application/json")
        handler.send_header("Content-Encoding", "gzip")
        handler.send_header("Content-Length", str(len(body)))
        handler.end_headers()
        handler.wfile.write(body)


def api_server(pipe: Connection, size: Size) -> None:
    """Be the API server, and do what the pipe says until it says None.

    N changes an endpoint of Service N; ``("rate", seconds)`` 100 a second; ``"lists"`` prepares the lists;
    ``"begun"`` asks when the first of them was asked for; ``"relist"`` forgets the past, as a server that
    starts anew does, and waits until everything was listed.
    """
    handed_over: list[float] = []
    send = Handler.send_chunk

    def noting(handler: Handler, data: bytes) -> None:
        handed_over.append(time.monotonic())
        send(handler, data)

    Handler.send_chunk = noting  # type: ignore[method-assign, assignment]
    with ApiDouble() as double:
        fill(double, size.services, size.endpoints, dual=size.dual, ports=size.ports)
        lists = Lists(double)
        gc.freeze()  # the pauses of the double's own collections are not what is measured
        pipe.send(double.url)
        generation = 0
        while (word := pipe.recv()) is not None:
            if word == "lists":
                lists.prepare()
                pipe.send(None)
            elif word == "begun":
                pipe.send(lists.begun)
            elif word == "relist":
                relist(double, lists)
                pipe.send(None)
            elif isinstance(word, int):
                generation += 1
                item = slice_of(word, size.endpoints, generation, ports=size.ports)
                pipe.send(item["endpoints"][0]["addresses"][0])
                handed_over.clear()
                double.put(item)
                while not handed_over:
                    time.sleep(0.001)
                pipe.send(handed_over[0])
            else:
                generation += 1
                begun = time.monotonic()
                for number in range(int(word[1] * RATE)):
                    time.sleep(max(0.0, begun + number / RATE - time.monotonic()))
                    double.put(slice_of(number % size.services, size.endpoints, generation, ports=size.ports))
                pipe.send(time.monotonic() - begun)


def relist(double: ApiDouble, lists: Lists) -> None:
    """Have every watch end with 410, and wait for the new ones."""
    kinds = ("services", "endpointslices", "nodes")
    before = {kind: len(double.asked("watch", kind)) for kind in kinds}
    double.compact()
    lists.prepare()
    for kind in kinds:
        double.disturb(kind, error_event(410, "Expired"))
    wait_for(lambda: all(len(double.asked("watch", kind)) > before[kind] for kind in kinds))


def wait_for(done: Callable[[], bool], seconds: float = 60.0) -> float:
    """Look until done; return the time of that."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("the map does not follow")
        time.sleep(LOOK)
    return time.monotonic()
