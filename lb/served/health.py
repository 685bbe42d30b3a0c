# SPDX-License-Identifier: Apache-2.0
"""How the node is doing, for load balancers: ``/healthz``, ``/livez`` and the health-check ports of Services.

The meaning is kube-proxy's (KEP-3836, "Kube-proxy improved ingress connectivity reliability"; the API
reference on ``spec.healthCheckNodePort``):

- ``/healthz`` is for whoever spreads traffic over nodes: 200 while new connections may come here. 503 when
  the node is about to be deleted, so that it is drained; when the agent is stale; and, beyond kube-proxy,
  when an operator has it drained (``lbctl node drain``), and when the maps are new and nothing has been
  written to them yet.
- ``/livez`` is for whoever restarts the agent: 503 only when it is stale.
- A health-check port is for the load balancer of one Service with externalTrafficPolicy Local: 200 when this
  node has a ready endpoint of it, the agent is not stale, and no operator has the node drained. That the node
  will be deleted does not count: its pods go first, and until then they are as good as before.

Stale: what the agent has been told is not in the kernel after STALE_SECONDS, twice kube-proxy's sync period.
That the API server is away does not count: the data plane carries on, and another node is no better off. Nor
does a single Service that cannot be written: the others are served.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import logging
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any, Protocol

from lb.config import Config, Switch
from lb.model import IPAddress, ObjectKey
from lb.plan import HealthCheck
from lb.served.http import Address, Answer, HttpServer, Request, Response, routes, show
from lb.served.problems import Problem
from lb.setting_forms import split_address

_log = logging.getLogger(__name__)

STALE_SECONDS = 60.0
_FIELD = "spec.healthCheckNodePort"
_NEXT = "free the port (ss -ltnp names who has it), or give the Service another; it is tried every 10 s"
_JSON = (("Content-Type", "application/json"), ("X-Content-Type-Options", "nosniff"))


class Vitals(Protocol):
    """What of the agent decides about its health; read from any thread."""

    @property
    def in_service(self) -> bool:
        """Whether the programs run on maps that were written once."""
        ...

    @property
    def node_eligible(self) -> bool:
        """Whether the node is to stay."""
        ...

    @property
    def drained(self) -> bool:
        """Whether an operator has the node drained."""
        ...

    def busy_seconds(self) -> float:
        """Return for how long the oldest change that it took in has not been in the kernel."""
        ...


class NodeHealth:
    """Answers ``/healthz`` and ``/livez``; wall gives seconds since the epoch."""

    def __init__(self, wall: Callable[[], float] = time.time) -> None:
        self._wall = wall
        self._vitals: Vitals | None = None
        self._updated: float | None = None

    def watch(self, vitals: Vitals) -> None:
        """Tell how these are; before, all is well."""
        self._vitals = vitals

    def synced(self) -> None:
        """Note that the maps are in step now."""
        self._updated = self._wall()

    def fresh(self) -> bool:
        """Return whether the agent is not stale; may be called from any thread."""
        return self._vitals is None or self._vitals.busy_seconds() < STALE_SECONDS

    def drained(self) -> bool:
        """Return whether an operator has the node drained; may be called from any thread."""
        return self._vitals is not None and self._vitals.drained

    def answer(self) -> Answer:
        """Return what answers both paths."""
        return routes({"/healthz": self._healthz, "/livez": self._livez})

    def _healthz(self, _request: Request) -> Response:
        vitals = self._vitals
        eligible = vitals is None or (vitals.node_eligible and not vitals.drained)
        healthy = eligible and self.fresh() and (vitals is None or vitals.in_service)
        return self._response(healthy, {"nodeEligible": eligible})

    def _livez(self, _request: Request) -> Response:
        return self._response(self.fresh(), {})

    def _response(self, healthy: bool, more: Mapping[str, Any]) -> Response:
        """Return the answer; as kube-proxy has it, what is healthy was updated now.

        When it is not, lastUpdated is the time of the last sync; null: there was none.
        """
        now = self._wall()
        updated = now if healthy else self._updated
        told = {
            "lastUpdated": None if updated is None else _time_text(updated),
            "currentTime": _time_text(now),
            "healthy": healthy,
            **more,
        }
        return Response(200 if healthy else 503, json.dumps(told).encode(), _JSON)


@dataclass(frozen=True, slots=True)
class Served:
    """A health-check port as it is: where it is listened to, and why it is not elsewhere."""

    service: ObjectKey
    check: HealthCheck
    addresses: tuple[Address, ...]
    errors: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return it for JSON."""
        return {
            "service": str(self.service),
            "port": self.check.port,
            "local_endpoints": self.check.count,
            "addresses": [show(address) for address in self.addresses],
            "errors": list(self.errors),
        }


class HealthChecks:
    """The health-check ports of Services.

    Each is listened to on the node's NodePort addresses, of both families, as with kube-proxy: where
    NodePorts answer, load balancers reach the node, and an address that is kept from clients gets no open
    port. Each address tells of the endpoints of its own family: where there is none of it, connections are
    dropped. A port that two Services ask for (no API server lets that happen) is the one's who has it; one
    that is a Service's NodePort as well is that Service's: its packets never reach a socket of the node.

    Changed by the agent's thread alone, read by the server's.

    fresh, drained: see :meth:`NodeHealth.fresh`, :meth:`NodeHealth.drained`.
    failed: called with a Service and what is wrong with its port, each time that this is news.
    quiet: nothing is listened to, for somebody else is.
    """

    def __init__(
        self,
        server: HttpServer,
        *,
        fresh: Callable[[], bool],
        drained: Callable[[], bool],
        failed: Callable[[ObjectKey, str], None],
        quiet: bool = False,
    ) -> None:
        self._server = server
        self._quiet = quiet
        self._fresh = fresh
        self._drained = drained
        self._failed = failed
        self._checks: dict[ObjectKey, HealthCheck] = {}
        self._owners: dict[int, list[ObjectKey]] = {}
        self._node_ports: dict[ObjectKey, frozenset[int]] = {}
        self._taken: dict[int, list[ObjectKey]] = {}
        self._addresses: tuple[str, ...] = ()

    def update(
        self,
        checks: Mapping[ObjectKey, HealthCheck | None],
        unwritten: Collection[ObjectKey],
        node_ports: Mapping[ObjectKey, frozenset[int]],
    ) -> None:
        """Take what Services ask for now; None: nothing, or the Service is gone.

        Of an unwritten Service the kernel has what it had: an endpoint counts if it is in both. node_ports:
        the TCP ports that are the Services' own, empty for one that is gone.
        """
        moved = self._take(node_ports)
        changed = []
        for key, check in checks.items():
            known = self._checks.get(key)
            if check is not None and key in unwritten:
                kept = known.endpoints if known else frozenset[IPAddress]()
                check = HealthCheck(check.port, check.endpoints & kept)  # noqa: PLW2901
            if check == known:
                continue
            if check is None or known is None or check.port != known.port:
                changed.append((key, known, check))
            if check is None:
                del self._checks[key]
            else:
                self._checks[key] = check
        self._hand_over(changed)
        for port in sorted(moved & self._owners.keys()):
            if port in self._taken:
                self._tell(self._owners[port][0], port)
            self._listen(port)

    def _take(self, node_ports: Mapping[ObjectKey, frozenset[int]]) -> set[int]:
        """Note which Services have which ports; return the ports that somebody has or has not since."""
        before = set(self._taken)
        for key, ports in node_ports.items():
            old = self._node_ports.pop(key, frozenset())
            if ports:
                self._node_ports[key] = ports
            for port in old - ports:
                self._taken[port].remove(key)
                if not self._taken[port]:
                    del self._taken[port]
            for port in ports - old:
                self._taken.setdefault(port, []).append(key)
        return before ^ set(self._taken)

    def _in_the_way(self, key: ObjectKey, port: int) -> str:
        """Return what keeps a Service from its port, ``""`` when nothing does."""
        if holders := self._taken.get(port):
            return f"service {holders[0]} has it as a nodePort"
        owner = self._owners[port][0]
        return "" if owner == key else f"service {owner} has it"

    def _tell(self, key: ObjectKey, port: int) -> None:
        if text := self._in_the_way(key, port):
            _log.error("%s: %s", _place(key, port), text)
            self._failed(key, text)

    def move(self, addresses: Sequence[IPAddress]) -> None:
        """Listen on these addresses, and on no other."""
        before, self._addresses = self._addresses, () if self._quiet else tuple(map(str, addresses))
        gone = set(before) - set(self._addresses)
        for port in list(self._owners):
            for address in gone:
                self._server.close((address, port))
            self._listen(port)

    def served(self) -> list[Served]:
        """Return every port that a Service asks for, by Service; for the agent's thread."""
        found = []
        for key, check in sorted(self._checks.items()):
            sites = [(address, check.port) for address in self._addresses]
            errors = [text for site in sites if (text := self._server.error(site))]
            if text := self._in_the_way(key, check.port):
                sites, errors = [], [text]
            bound = tuple(site for site in sites if self._server.bound(site))
            found.append(Served(key, check, bound, tuple(errors)))
        return found

    def problems(self) -> list[Problem]:
        """Return what is wrong at present; for the agent's thread."""
        return [
            Problem(f"{_place(one.service, one.check.port)}: {text}", _NEXT)
            for one in self.served()
            for text in one.errors
        ]

    def _hand_over(self, changed: Iterable[tuple[ObjectKey, HealthCheck | None, HealthCheck | None]]) -> None:
        """Give up ports, then take ports: one may move from one Service to another at once."""
        touched = set()
        for key, before, _ in changed:
            if before is not None:
                self._owners[before.port].remove(key)
                touched.add(before.port)
        for key, _, after in changed:
            if after is not None:
                owners = self._owners.setdefault(after.port, [])
                owners.append(key)
                touched.add(after.port)
                self._tell(key, after.port)
        for port in sorted(touched):
            self._listen(port)

    def _listen(self, port: int) -> None:
        """Bring the addresses of one port in step."""
        owners = self._owners[port]
        if not owners:
            del self._owners[port]
        for address in self._addresses:
            if owners and port not in self._taken:
                key = owners[0]
                self._server.open(
                    (address, port),
                    functools.partial(self._answer, key, ip_address(address).version),
                    _place(key, port),
                    functools.partial(self._failed, key),
                )
            else:
                self._server.close((address, port))

    def _answer(self, key: ObjectKey, version: int, _request: Request) -> Response:
        check = self._checks.get(key)
        count = check.count_of(version) if check else 0  # None: the Service went a moment ago
        fresh, drained = self._fresh(), self._drained()
        told = {
            "service": {"namespace": key.namespace, "name": key.name},
            "localEndpoints": count,
            "serviceProxyHealthy": fresh,
        }
        headers = (*_JSON, ("X-Load-Balancing-Endpoint-Weight", str(count)))
        return Response(200 if count and fresh and not drained else 503, json.dumps(told).encode(), headers)


def _place(key: ObjectKey, port: int) -> str:
    return f"service {key}: {_FIELD} {port}"


def _time_text(seconds: float) -> str:
    """Return a time since the epoch as Kubernetes writes it, RFC 3339 in UTC."""
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat().replace("+00:00", "Z")


@dataclass(frozen=True, slots=True)
class Health:
    """What tells load balancers and kubelet how the node and its Services are.

    server: answers on the addresses of both. address: of ``/healthz``; None: nobody asked for it.
    """

    server: HttpServer
    node: NodeHealth
    checks: HealthChecks
    address: Address | None

    def bound(self) -> Address | None:
        """Return where ``/healthz`` is answered at present, if it is."""
        return self.address and self.server.bound(self.address)


def open_health(
    config: Config, stack: contextlib.ExitStack, failed: Callable[[ObjectKey, str], None]
) -> Health:
    """Open ``/healthz`` and prepare the health-check ports of Services; stack takes the server.

    failed: see :class:`HealthChecks`.
    """
    server = HttpServer()
    stack.callback(server.shut)
    node = NodeHealth()
    quiet = config.shadow is Switch.ON
    checks = HealthChecks(server, fresh=node.fresh, drained=node.drained, failed=failed, quiet=quiet)
    address = split_address(config.healthz_address)
    if address:
        server.open(address, node.answer(), "healthz")
    return Health(server, node, checks, address)
