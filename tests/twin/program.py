# SPDX-License-Identifier: Apache-2.0
"""From a seed to a program: a pure function. A program is a list of steps, dictionaries that JSON can hold.

A step is an action of a client (``who``) or a change of the world (``who`` is ``""``). Ports are symbols: 0
is the kernel's choice, 1 to PORTS are ports of this run, ``"node0"`` and ``"node1"`` the numbers of web's
node ports. A target is ``[kind, name, …]``:

====================================== =====================================================================
``["cluster", SERVICE, ip, port]``     the first or the second clusterIP that the Service may have
``["node", SERVICE, number]``          the node's address with one of the Service's two node ports
``["external", SERVICE, port]``        the Service's external address
``["balancer", SERVICE, port]``        its load-balancer address
``["pod", POD]``                       the pod's own address and port
``["outside"]``                        the server outside the cluster
====================================== =====================================================================
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

Step = dict[str, Any]
Target = list[Any]
CLIENTS = ("pod", "web0", "node", "bare", "hostpod", "outside")
"""web0 is a backend, node a process whose sockets are served by the hooks, bare one whose sockets are not."""
FAR = "far"
"""The one endpoint that is on another node."""
BACKENDS = {"web": ("web0", "web1", "far"), "also": ("web0", "web1", "far"), "host": ("host",)}
"""Endpoints that a Service may have: pods of the node, one of another node, one with the node's network."""
PORTS = 3
SOCKETS = ("s", "t", "u", "v")
TYPES = ("ClusterIP", "NodePort", "LoadBalancer")
RANGES = (0, 1, 2)
"""Whom load-balancer addresses are for: everybody, the clients outside, or pods."""
SIZES = (4, 100, 1400, 1472, 1473, 3000, 8000)
AFFINITIES = (0, 600, 10800)
LENGTHS = (10, 1400, 20_000, 200_000)


@dataclass(frozen=True, slots=True)
class ServiceState:
    """What is asked of a Service; numbers choose one of two values, ready are positions in BACKENDS.

    ending: endpoints that are not ready terminate and serve as yet, and else there is none. target: which of
    their ports. internal_local, external_local: its traffic policies; affinity: of clients, for so many
    seconds; 0: none. ranges: one of RANGES.
    """

    there: bool = True
    ip: int = 0
    port: int = 0
    node_port: int = 0
    type: str = "NodePort"
    external: bool = True
    internal_local: bool = False
    external_local: bool = False
    affinity: int = 0
    ready: tuple[int, ...] = (0,)
    ending: bool = False
    target: int = 0
    ranges: int = 0

    def usable(self, count: int, here: Callable[[int], bool] = lambda _: True) -> frozenset[int]:
        """Return which of so many endpoints take new connections; here: which of them are offered at all."""
        if not self.there:
            return frozenset()
        ready = frozenset(filter(here, self.ready))
        return ready or frozenset(filter(here, range(count if self.ending else 0)))


World = dict[str, ServiceState]
START: World = {
    "web": ServiceState(),
    "also": ServiceState(ready=(0, 2), internal_local=True, external_local=True, affinity=600),
    "host": ServiceState(),
}
Kinds = dict[str, int]
KINDS: Kinds = {
    "connect": 10,
    "request": 12,
    "close": 4,
    "udp": 5,
    "ask": 12,
    "pieces": 2,
    "ping": 2,
    "trace": 2,
    "world": 8,
}
"""Kinds of steps, with how often each is drawn."""


def program(seed: int, length: int = 14, kinds: Kinds = KINDS) -> list[Step]:
    """Return the program of a seed."""
    chance = random.Random(seed)
    version, world = chance.choice((4, 4, 6)), dict(START)
    clients = chance.sample(CLIENTS, chance.choice((1, 1, 2, 3)))
    maker = _Maker(chance, random.Random(~seed), version, world, clients)
    return [maker.step(kinds) for _ in range(length)]


_NEEDS = {
    "request": (("tcp",), "connect"),
    "close": (("tcp",), "connect"),
    "ask": (("udp", "udp connected"), "udp"),
    "pieces": (("udp",), "udp"),
}
"""By kind of step, which sockets it can use and what is drawn instead where the client has none."""


class _Maker:
    """Draws steps one after another; knows the world and which sockets the clients should have."""

    def __init__(
        self, chance: random.Random, extras: random.Random, version: int, world: World, clients: list[str]
    ) -> None:
        self.chance, self.extras, self.version = chance, extras, version
        self.world, self.clients = world, clients
        self.open: dict[tuple[str, str], str] = {}
        self.last = ""

    def step(self, kinds: Kinds) -> Step:
        """Return the next step; after an opening or a change of the world often one that uses a socket."""
        drawn = (
            {**kinds, "request": 20 * kinds["request"], "ask": 20 * kinds["ask"]}
            if self._curious()
            else kinds
        )
        kind = self.chance.choices(list(drawn), list(drawn.values()))[0]
        who = self.chance.choice(self.clients)
        if kind == "pieces" and self.version == 6:
            kind = "ask"
        wanted, instead = _NEEDS.get(kind, ((), ""))
        names = [sock for (owner, sock), what in self.open.items() if owner == who and what in wanted]
        if instead and not names:
            kind = instead
        step: Step = getattr(self, f"_{kind}")(who, names)
        self.last = kind
        return step if step["do"] == "world" else {**step, "version": self.version}

    def _curious(self) -> bool:
        return self.last in ("connect", "udp", "world") and bool(self.open) and self.chance.random() < 0.6

    def _target(self) -> Target:
        chance = self.chance
        kinds = ("cluster", "node", "external", "balancer", "pod", "outside")
        kind = chance.choices(kinds, (8, 5, 3, 2, 4, 1))[0]
        if kind == "outside":
            return [kind]
        if kind == "pod":
            return [kind, chance.choice(("web0", "web0", "web1", "far", "host"))]
        name = chance.choice(("web", "web", "web", "also", "host"))
        now = self.world[name]
        stale = chance.random() < 0.1
        if kind == "cluster":
            return [kind, name, now.ip ^ stale, now.port]
        if kind == "node":
            return [kind, name, now.node_port ^ stale]
        return [kind, name, now.port]

    def _port(self) -> int | str:
        drawn: int | str = self.chance.choice((0, 1, 1, 1, 1, 2, "node0", "node1"))
        return drawn

    def _connect(self, who: str, _: list[str]) -> Step:
        sock = self.chance.choice(SOCKETS)
        self.open[who, sock] = "tcp"
        step: Step = {"do": "connect", "who": who, "sock": sock, "port": self._port(), "to": self._target()}
        return self._with_options(step)

    def _request(self, who: str, names: list[str]) -> Step:
        path = self.chance.choices(("/hostname", "/clientip", "/large"), (6, 2, 1))[0]
        size = self.chance.choice(LENGTHS) if self.chance.random() < 0.15 else 0
        if path == "/large":
            path = f"/large?bytes={self.chance.choice(LENGTHS)}"
        sock, last = self.chance.choice(names), self.chance.random() < 0.1
        return {"do": "request", "who": who, "sock": sock, "path": path, "size": size, "last": last}

    def _close(self, who: str, names: list[str]) -> Step:
        sock = self.chance.choice(names)
        del self.open[who, sock]
        return {"do": "close", "who": who, "sock": sock, "reset": self.chance.random() < 0.5}

    def _udp(self, who: str, _: list[str]) -> Step:
        sock, connected = self.chance.choice(SOCKETS), self.chance.random() < 0.5
        self.open[who, sock] = "udp connected" if connected else "udp"
        to = self._target() if connected else None
        return self._with_options({"do": "udp", "who": who, "sock": sock, "port": self._port(), "to": to})

    def _with_options(self, step: Step) -> Step:
        """Let one socket in six send options, or extension headers: by a chance of its own."""
        return {**step, "options": True} if self.extras.random() < 1 / 6 else step

    def _ask(self, who: str, names: list[str]) -> Step:
        sock = self.chance.choice(names)
        to = None if self.open[who, sock] == "udp connected" else self._target()
        size = self.chance.choice(SIZES) if self.chance.random() < 0.4 else 4
        return {
            "do": "ask",
            "who": who,
            "sock": sock,
            "to": to,
            "size": size,
            "df": self.chance.random() < 0.5,
        }

    def _pieces(self, who: str, names: list[str]) -> Step:
        order = list(range(self.chance.choice((2, 3))))
        self.chance.shuffle(order)
        size = self.chance.choice((200, 2000))
        sock = self.chance.choice(names)
        return {"do": "pieces", "who": who, "sock": sock, "to": self._target(), "size": size, "order": order}

    def _ping(self, who: str, _: list[str]) -> Step:
        return {"do": "ping", "who": who, "to": self._target(), "size": self.chance.choice((8, 1400, 3000))}

    def _trace(self, who: str, _: list[str]) -> Step:
        return {"do": "trace", "who": who, "to": self._target(), "ttl": self.chance.choice((1, 2, 2, 3))}

    def _world(self, *_: object) -> Step:
        chance, name = self.chance, self.chance.choice(("web", "web", "also", "host"))
        now = self.world[name]
        kind = chance.choices(("service", "neighbours", "mtu"), (8, 1, 1))[0]
        if kind == "neighbours":
            return {"do": "world", "who": "", "flush": True}
        if kind == "mtu":
            where, mtu = chance.choice(("pod", "web0", "web1")), chance.choice((1280, 1500))
            return {"do": "world", "who": "", "pod": where, "mtu": mtu}
        fields = {
            "ready": 8,
            "there": 4,
            "ip": 2,
            "port": 1,
            "node_port": 2,
            "type": 2,
            "external": 1,
            "internal_local": 1,
            "external_local": 2,
            "affinity": 2,
            "ending": 2,
            "target": 2,
            "ranges": 2,
        }
        field = chance.choices(list(fields), list(fields.values()))[0]
        if field == "ready":
            count = len(BACKENDS[name])
            value: Any = sorted(chance.sample(range(count), chance.choice((0, 1, 1, 1, 2)[: count + 2])))
        elif field == "affinity":
            value = chance.choice([each for each in AFFINITIES if each != now.affinity])
        elif field in ("type", "ranges"):
            every: tuple[object, ...] = TYPES if field == "type" else RANGES
            value = chance.choice([each for each in every if each != getattr(now, field)])
        else:
            before = getattr(now, field)
            value = not before if isinstance(before, bool) else 1 - before
        self.world[name] = changed(now, field, value)
        return {"do": "world", "who": "", "service": name, "field": field, "value": value}


def changed(state: ServiceState, field: str, value: Any) -> ServiceState:
    """Return the Service with one field changed."""
    if field == "ready":
        return replace(state, ready=tuple(value))
    fields: dict[str, Any] = {field: value}
    return replace(state, **fields)
