# SPDX-License-Identifier: Apache-2.0
"""``GET /``: the page, one file made of three, and what it asks for below ``/api/``.

The page loads nothing but itself and asks nobody but this server: its Content-Security-Policy lets no browser
do anything else. What it is told of objects is JSON, which the script puts into the page as text alone.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import threading
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from ipaddress import ip_address
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import urlsplit

from lb.announce.reach import balanced, reached
from lb.config import Config, SocketMode, Switch
from lb.datapath.maps.interface import Maps
from lb.datapath.sync.ledger import read_names
from lb.datapath.view import catalogue, dump, figures
from lb.datapath.view.figures import Figures, PortName, Sample, quantile
from lb.errors import LbError
from lb.rundir import RunDir
from lb.served import status
from lb.served.api import Query, as_json, service_of
from lb.served.failing_services import FailingServices, without_backend
from lb.served.history import History
from lb.served.http import Answer, Request, Response
from lb.served.packet_path import CLIENTS, Client, NodePrograms, paths
from lb.served.problems import read_notes
from lb.served.servable import spoken
from lb.served.state_view import StateView

MOST_SERVICES = 100
"""How many Services are listed unless more are asked for."""
FRESH_SECONDS = 2.0
"""For how long the same reading of the maps is given to everybody who asks."""
STEADY_SECONDS = 20.0
"""The same of hooks and of how full maps are: neither changes fast, and to count flows takes 0.1 s of CPU."""

_SPEAKER_SECONDS = 0.5
"""How long the process that tells routers is waited for: nothing else is answered meanwhile."""

_QUANTILES = {"p50": 0.5, "p99": 0.99}

T = TypeVar("T")
Opened = Callable[[], contextlib.AbstractContextManager[Maps]]


class Kept(Generic[T]):
    """Reads at most once in so many seconds; clock: seconds, monotonic."""

    def __init__(
        self, read: Callable[[], T], seconds: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._read = read
        self._seconds = seconds
        self._clock = clock
        self._found: tuple[float, T] | None = None
        self._lock = threading.Lock()

    def __call__(self) -> T:
        """Return what was read lately."""
        with self._lock:
            if self._found is None or self._clock() - self._found[0] >= self._seconds:
                self._found = (self._clock(), self._read())
            return self._found[1]


def document() -> tuple[bytes, str]:
    """Return the page, with its style and script in it, and the Content-Security-Policy that fits them."""
    here = Path(__file__).parent / "page"
    style, script = ((here / name).read_text() for name in ("page.css", "page.js"))
    html = (here / "page.html").read_text()
    html = html.replace("/* page.css */", style).replace("/* page.js */", script)
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src '{_digest(style)}'",
            f"script-src '{_digest(script)}'",
            "connect-src 'self'",
            "img-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return html.encode(), policy


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def page() -> Answer:
    """Return what answers with the page."""
    body, policy = document()
    headers = (
        ("Content-Type", "text/html; charset=utf-8"),
        ("Content-Security-Policy", policy),
        ("Cache-Control", "no-cache"),
        ("Referrer-Policy", "no-referrer"),
        ("X-Content-Type-Options", "nosniff"),
    )

    def answer(_request: Request) -> Response:
        return Response(200, body, headers)

    return answer


def by_own_name(answer: Answer, names: Collection[str] = ()) -> Answer:
    """Return the same for those that call this server by an address, as localhost or by one of names.

    names: of the node, in small letters. All others get 403: a browser that some site has made to believe its
    name is that of this machine (DNS rebinding) says that name in Host, and would show the site what it is
    told.
    """

    def checked(request: Request) -> Response:
        try:
            host = urlsplit(f"//{request.headers.get('host', '')}").hostname or ""
            if host != "localhost" and host not in names:
                ip_address(host)
        except ValueError:
            return Response(403, b"ask for this by an IP address, as localhost, or by the node's name\n")
        return answer(request)

    return checked


def shown(asked: Mapping[str, Answer], names: Collection[str]) -> dict[str, Answer]:
    """Return the page and the other answers; only for requests whose Host is one of the node's names."""
    return {path: by_own_name(answer, names) for path, answer in {"/": page(), **asked}.items()}


class Views:
    """What the page is told. opened gives maps of the reader's own, so that the agent's are left alone.

    owners: who answers for addresses (:meth:`lb.segment.speaker.Speaker.owners`); None: nobody announces.
    """

    def __init__(
        self,
        run_dir: RunDir,
        config: Config,
        opened: Opened,
        history: History,
        known: StateView,
        *,
        owners: Callable[[], Sequence[Mapping[str, Any]]] | None = None,
        collect: Callable[[str, RunDir], dict[str, Any]] = status.collect,
    ) -> None:
        self._run_dir = run_dir
        self._opened = opened
        self._history = history
        self._known = known
        self._owners = owners
        self._trouble = FailingServices()
        self._redirect = config.redirect is Switch.ON
        served = {SocketMode.HOST: (Client.HOST,), SocketMode.ALL: (Client.HOST, Client.POD)}
        self._sockets = served.get(config.socket_lb, ())
        self._steady = Kept(lambda: collect(run_dir.instance, run_dir), STEADY_SECONDS)
        self._state = Kept(self._read_state, FRESH_SECONDS)
        self._names = Kept(self._read_names, FRESH_SECONDS)
        self._speaker = Kept(lambda: spoken(run_dir, _SPEAKER_SECONDS), FRESH_SECONDS)
        self._figures = Kept(self._read_figures, FRESH_SECONDS)

    def answers(self) -> dict[str, Answer]:
        """Return what answers each path."""
        return {
            "/api/state": as_json(lambda _query: self._state()),
            "/api/services": as_json(self.services),
            "/api/service": as_json(self.service),
        }

    def _read_state(self) -> dict[str, Any]:
        notes = self._run_dir.notes()
        now = {name: notes[name] for name in ("last_sync", "services") if name in notes}
        found = self._steady()
        with self._opened() as maps:
            counters = [one.as_dict() for one in dump.counters(maps) if one.packets]
        return {
            **found,
            "agent": {**found["agent"], **now},
            "source": notes.get("source", found["source"]),
            # What the status finds for itself has no time; what the agent has noted is read anew.
            "problems": [
                *(one for one in found["problems"] if one["since"] is None),
                *read_notes(notes.get("problems", [])),
            ],
            "version": notes.get("version"),
            "reasons": counters,
            "time": time.time(),
        }

    def _read_names(self) -> catalogue.Names:
        with self._opened() as maps:
            return read_names(maps)

    def _read_figures(self) -> _Counted:
        with self._opened() as maps:
            counted = _Counted(figures.sample(maps), time.time())
        self._trouble.note(counted.time, counted.sample)
        return counted

    def services(self, query: Query) -> dict[str, Any]:
        """Return the Services whose NAMESPACE/NAME contains ``q``, ``limit`` of them with their ports.

        Those with trouble come first, unless ``sort`` is ``name``.

        Raises LbError: limit is no number.
        """
        wanted = query.get("q", "").lower()
        most = _limit(query)
        names = self._names()
        counted = self._figures()
        matching = {service for service, _ in names.values() if wanted in service.lower()}
        if query.get("sort") == "name":
            in_order = sorted(matching)
        else:
            in_order = self._trouble.in_order(matching, without_backend(counted.sample))
        rank = {service: at for at, service in enumerate(in_order[:most])}
        with self._opened() as maps:
            ports = catalogue.ports(maps, {port: name for port, name in names.items() if name[0] in rank})
        ports.sort(key=lambda port: rank[port.service])
        lately = self._trouble.lately()
        by_port: dict[tuple[str, str, str], list[catalogue.PortRow]] = {}
        for port in ports:
            by_port.setdefault((port.service, port.port_name, port.protocol), []).append(port)
        return {
            "matching": len(matching),
            "listed": len(rank),
            "ports": [
                {
                    **_summary(families),
                    **counted.of_port(families[0]),
                    "trouble": lately[families[0].service],
                }
                for families in by_port.values()
            ],
            "unserved": [one for one in self._known.unserved() if wanted in one["service"].lower()],
            "counts_traffic": counted.sample.counts_traffic,
            "time": counted.time,
        }

    def service(self, query: Query) -> dict[str, Any]:
        """Return one Service: its ports, the ways of packets to them, and its last changes.

        Raises LbError: there is none of this name in the maps.
        """
        key = service_of(query)
        with self._opened() as maps:
            names = read_names(maps)
            wanted = {port: name for port, name in names.items() if name[0] == str(key)}
            ports = catalogue.ports(maps, wanted)
        if not ports:
            raise LbError(f"Service {key} has nothing in the maps; lbctl explain {key} says why")
        hooks = NodePrograms(self._steady()["hooks"], redirect=self._redirect, sockets=self._sockets)
        counted = self._figures()
        return {
            "service": str(key),
            "clients": dict(CLIENTS),
            "pods": self._known.pods(query),
            "balanced": [self._found(one) for one in self._known.balanced(query)],
            "ports": [
                {
                    **asdict(port),
                    **counted.of_port(port),
                    "of_backends": counted.of_backends(port),
                    "paths": [[asdict(one) for one in each] for each in paths(port, hooks)],
                }
                for port in ports
            ],
            "changes": [entry.as_dict() for entry in self._history.of(key)],
            "counts_traffic": counted.sample.counts_traffic,
            "time": counted.time,
        }

    def _found(self, one: Mapping[str, Any]) -> dict[str, Any]:
        """Return what is said of the addresses of a Service of type LoadBalancer, and how each is found."""
        owners = None if self._owners is None else self._owners()
        ways = reached(one["addresses"], owners, self._speaker()) if one["addresses"] else []
        return {"text": balanced(one) if one["note"] or not ways else "", "addresses": ways}


def _limit(query: Query) -> int:
    text = query.get("limit", str(MOST_SERVICES))
    if not text.isdecimal() or len(text) > 6:
        raise LbError("limit: must be a number")
    return int(text)


class _Counted:
    """What was counted at one time, seconds since the epoch."""

    def __init__(self, sample: Sample, time: float) -> None:
        self.sample = sample
        self.time = time
        self._rows = {
            version: dict(zip(one.ids.tolist(), range(len(one.ids)), strict=True))
            for version, one in sample.backends.items()
        }

    def of_port(self, port: catalogue.PortRow) -> dict[str, Any]:
        """Return figures, handshake times and dropped packets of a Service port, both families together."""
        namespace, _, name = port.service.partition("/")
        row = self.sample.ports.get(PortName(namespace, name, port.port_name, port.protocol))
        if row is None:  # it has come since
            return {"figures": None, "handshake_seconds": {}, "dropped": {}}
        times = self.sample.handshakes[row].tolist()
        return {
            "figures": self.sample.of_port(row)._asdict(),
            "handshake_seconds": {word: quantile(times, part) for word, part in _QUANTILES.items()},
            "dropped": self.sample.dropped_of(row),
        }

    def of_backends(self, port: catalogue.PortRow) -> dict[int, dict[str, int]]:
        """Return the figures of a port's backends by their ids."""
        rows, figures = self._rows[port.version], self.sample.backends[port.version].figures
        ids = [backend.id for backend in port.backends if backend.id in rows]
        return {backend: Figures(*figures[rows[backend]].item())._asdict() for backend in ids}


def _summary(families: Sequence[catalogue.PortRow]) -> dict[str, Any]:
    """Return a port, given for each family, as the list has it."""
    first = families[0]
    backends = [backend for port in families for backend in port.backends]
    return {
        "service": first.service,
        "port_name": first.port_name,
        "protocol": first.protocol,
        "vips": [f"{vip.kind} {vip.address}" for port in families for vip in port.vips],
        "backends": len(backends),
        "local": sum(backend.local for backend in backends),
        "terminating": sum(backend.state == "terminating" for backend in backends),
    }
