# SPDX-License-Identifier: Apache-2.0
"""What both sides' clients saw, in words that are the same on both, and where they differ.

Names of pods lose their side, addresses become roles: ``asked`` is the address that the client had asked,
``itself`` its own. Which of several endpoints answers is chance: ``ready`` stands for one of those that the
client is offered, ``past`` for one that was ready before, ``kept`` for the one that a connection has had
since it was opened, ``same`` for the one of the connection before, where the Service has affinity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from lb.lab.addressing import clients, node_address, outside_server, tunnel_address
from tests.twin.differences import DELIBERATE, OPEN, Case, earlier_program
from tests.twin.program import BACKENDS, FAR, START, Step, Target, World, changed
from tests.twin.services import Side, balancer_ip, cluster_ip, external_ip, place, source

Outcome = dict[str, Any]
Socket = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Difference:
    """A step at which the two saw different things; row: the known difference that covers it, or ``""``."""

    at: int
    step: Step
    ours: Outcome
    theirs: Outcome
    row: str

    def __str__(self) -> str:
        return f"step {self.at}: {self.step}\n    ours   {self.ours}\n    theirs {self.theirs}"


@dataclass(slots=True)
class _Opened:
    """A socket: where it leads and who may have been chosen for it when it was opened.

    chosen: by side, client's address and Service, whom the last connection went to, in the world as it was.
    """

    to: Target | None
    port: int | str
    ready: frozenset[str]
    chosen: dict[tuple[str, str, str], str]
    first: dict[str, str] = field(default_factory=dict)
    """By side, who answered first."""


def roles(side: Side, version: int, pods: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """Return what each address is in the words of both sides."""
    found = {
        str(outside_server(version)): "the outside server",
        str(clients(version)[side.client]): "the outside client",
    }
    for name, addresses in pods.items():
        found[addresses[version == 6]] = name.removeprefix(f"{side.name}-")
    for address in (node_address(side.node, version), tunnel_address(side.node, version)):
        found[str(address)] = "the node"
    for name in BACKENDS:
        found[balancer_ip(name, version)] = f"the load-balancer address of {name}"
        for which in (0, 1):
            found[cluster_ip(name, which, version)] = f"clusterIP {which} of {name}"
        if name != "host":
            found[external_ip(side, name, version)] = f"the external address of {name}"
    return found


class Comparison:
    """Goes through a program with what both saw."""

    def __init__(self, sides: Sequence[Side], pods: Mapping[str, Sequence[str]]) -> None:
        self._sides, self._pods = sides, pods

    def differences(self, steps: Sequence[Step], seen: Sequence[tuple[Outcome, Outcome]]) -> list[Difference]:
        """Return every step at which the two differ, known or not.

        A socket about which they differed once is not looked at again before it is opened anew.
        """
        world: World = dict(START)
        past = {name: set(_ready(world, name)) for name in world}
        opened: dict[Socket, _Opened] = {}
        apart: set[Socket] = set()
        chosen: dict[tuple[str, str, str], str] = {}
        connected: set[str] = set()
        found: list[Difference] = []
        for at, (step, outcomes) in enumerate(zip(steps, seen, strict=True)):
            if step["do"] == "world":
                chosen = {}
                if "service" in step:
                    name = step["service"]
                    world[name] = changed(world[name], step["field"], step["value"])
                    past[name] |= _ready(world, name)
                continue
            socket = (step["who"], step.get("sock", ""))
            if step["do"] in ("connect", "udp"):
                apart.discard(socket)
                to = step["to"]
                ready = _offered(world, to, step["who"]) if _of_service(to) else frozenset()
                opened[socket] = _Opened(to, step["port"], ready, chosen)
            if socket in apart or (socket[1] and socket not in opened):
                continue
            one = opened.get(socket)
            to = step.get("to") or (one.to if one else None)
            ours, theirs = (
                self._said(side, step, to, outcome, world, past, one)
                for side, outcome in zip(self._sides, outcomes, strict=True)
            )
            again = step["do"] == "connect" and _again(step, connected)
            if again and "EADDRNOTAVAIL" in (ours.get("error"), theirs.get("error")):
                apart.add(socket)  # its connection from before, in TIME-WAIT, or not any more
                continue
            if ours != theirs:
                port = one.port if one else 0
                others = (open_ for key, open_ in opened.items() if key[0] == socket[0] and key != socket)
                alone = all(open_.port != port for open_ in others)
                case = Case(step, to, port, alone, world, ours, theirs)
                if earlier_program(case):
                    apart.add(socket)
                    continue
                row = next((each.name for each in (*DELIBERATE, *OPEN) if each.covers(case)), "")
                found.append(Difference(at, step, ours, theirs, row))
                apart.add(socket)
            if step["do"] == "close":
                opened.pop(socket, None)
        return found

    def _said(
        self,
        side: Side,
        step: Step,
        to: Target | None,
        outcome: Outcome,
        world: World,
        past: Mapping[str, set[str]],
        opened: _Opened | None,
    ) -> Outcome:
        """Return an outcome in the words of both sides."""
        said = dict(outcome)
        names = roles(side, step["version"], self._pods)
        if "peer" in said:
            address, port = said["peer"]
            asked = place(side, to, step["version"], self._pods) if to else ("", 0, 0)
            said["peer"] = (
                "asked"
                if address == asked[0] and port in (0, *asked[1:])
                else f"{names.get(address, address)} port {port}"
            )
        body = said.get("body", "").removeprefix(f"{side.name}-")
        if not body:
            return said
        if step["do"] == "request" and step["path"] == "/clientip" and not step["size"]:
            itself = body == source(side, step["who"], step["version"], self._pods)
            said["body"] = "itself" if itself else names.get(body, body)
            if opened and len(opened.ready) > 1 and step["who"] in opened.ready:
                said["body"] = "itself or the node"  # as which a pod reaches itself: it is one of several
            return said
        who, *rest = body.split(" ", 1)
        said["body"] = " ".join([self._answering(side, step, to, who, world, past, opened), *rest])
        return said

    def _answering(
        self,
        side: Side,
        step: Step,
        to: Target | None,
        who: str,
        world: World,
        past: Mapping[str, set[str]],
        opened: _Opened | None,
    ) -> str:
        if not _of_service(to):
            return who
        assert to
        if step["do"] == "request" and opened:
            if len(opened.ready) > 1 and who in opened.ready:
                first = side.name not in opened.first
                if opened.first.setdefault(side.name, who) != who:
                    return "another"
                return self._chosen(side, step, to, who, world, opened) if first else "kept"
            return who
        now = _offered(world, to, step["who"])
        if who in now:
            return "ready" if len(now) > 1 else who
        return "past" if who in past[to[1]] and len(past[to[1]]) > 1 else who

    def _chosen(self, side: Side, step: Step, to: Target, who: str, world: World, opened: _Opened) -> str:
        """Return what a connection's first answer says of the one before it to a Service with affinity."""
        if not world[to[1]].affinity:
            return "kept"
        client = source(side, step["who"], step["version"], self._pods)
        return "same" if opened.chosen.setdefault((side.name, client, to[1]), who) == who else "another"


def _of_service(to: Target | None) -> bool:
    return bool(to) and to[0] in ("cluster", "node", "external", "balancer")  # type: ignore[index]


def _again(step: Step, connected: set[str]) -> bool:
    """Has the client connected from this port to this target before? Note that it has now."""
    one = f"{step['who']} {step['port']} {step['to']}"
    again = one in connected
    connected.add(one)
    return again


def _offered(world: World, to: Target, who: str) -> frozenset[str]:
    """Return which of the Service's endpoints its traffic policies offer this client at this target."""
    state = world[to[1]]
    local = state.internal_local if to[0] == "cluster" else state.external_local and who == "outside"
    return _ready(world, to[1], local)


def _ready(world: World, name: str, local: bool = False) -> frozenset[str]:
    backends = BACKENDS[name]
    usable = world[name].usable(len(backends), lambda at: not local or backends[at] != FAR)
    return frozenset(backends[at] for at in usable)
