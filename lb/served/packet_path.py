# SPDX-License-Identifier: Apache-2.0
"""The path of packets to a VIP through this node, as boxes of a picture: pure, from the maps and hooks.

The way is that of bpf/README.md: client → hook and program → VIP → policy → backends → the way to them, and
where the answer is translated back.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from lb.datapath.view.catalogue import PortRow, PortVip
from lb.datapath.view.words import ShownBackend
from lb.plan.types import VipKind


class Client(StrEnum):
    """Who opens the connection."""

    OUTSIDE = "outside"
    POD = "pod"
    HOST = "host"


CLIENTS = {
    Client.OUTSIDE: "a client outside of this node",
    Client.POD: "a pod of this node",
    Client.HOST: "a process of this node",
}


@dataclass(frozen=True, slots=True)
class Way:
    """A backend with the share of new connections that it gets (0 to 1), and the ways to it and back."""

    backend: ShownBackend
    share: float
    there: str
    back: str


@dataclass(frozen=True, slots=True)
class PacketPath:
    """The boxes of the picture, for one VIP and one kind of client.

    refused: what becomes of a new connection when no backend is offered, ``""`` when one is. resting:
    backends that get no new connections from this side.
    """

    client: Client
    hooks: tuple[str, ...]
    vip: str
    policy: tuple[str, ...]
    ways: tuple[Way, ...]
    resting: tuple[str, ...]
    refused: str


class NodePrograms:
    """The programs of this node, by role.

    rows: as :func:`lb.served.status.collect` has them.
    redirect: whether local backends are reached past the host's stack.
    sockets: whose connections are led to a backend at the socket.
    """

    def __init__(
        self, rows: Sequence[Mapping[str, Any]], *, redirect: bool, sockets: Collection[Client]
    ) -> None:
        self._rows = rows
        self.redirect = redirect
        self._sockets = sockets if any(one["role"] == "sockets" for one in rows) else ()
        self.uplink_in = self._uplink("xdp", "tc ingress")
        self.uplink_out = self._uplink("tc egress")
        self.loopback = tuple(
            f"{one['program']} at {one['interface']}, {one['hook']}"
            for one in self._rows
            if one["role"] == "loopback"
        )
        self.pod_in, self.pod_out = self._pods("lb_tc_pod_in"), self._pods("lb_tc_pod_out")

    def _uplink(self, *kinds: str) -> tuple[str, ...]:
        return tuple(
            f"{one['program']} at {one['interface']}, {one['hook']}"
            for one in self._rows
            if one["role"] == "uplink" and one["hook"].startswith(kinds)
        )

    def _pods(self, program: str) -> tuple[str, ...]:
        count = sum(one["program"] == program for one in self._rows)
        return (f"{program} at {count} pod interface{'' if count == 1 else 's'}",) if count else ()

    def socket(self, client: Client, port: PortRow, vip: PortVip) -> tuple[str, ...]:
        """Return the program that leads a client's connections at the socket; none: tc does (bpf/sock.h)."""
        left_to_tc = client is Client.POD and (port.affinity_seconds or vip.source_ranges)
        if client not in self._sockets or port.protocol != "TCP" or left_to_tc:
            return ()
        return ("lb_sock_connect at the socket",)

    def first(self, client: Client, vip: PortVip) -> tuple[str, ...]:
        """Return what meets a client's packets first."""
        by_lo = vip.kind == VipKind.NODE_PORT
        ways = {
            Client.OUTSIDE: self.uplink_in,
            Client.POD: self.pod_in,
            Client.HOST: self.loopback if by_lo else self.uplink_out,
        }
        return ways[client]


def paths(port: PortRow, hooks: NodePrograms) -> list[list[PacketPath]]:
    """Return a path for each VIP of a port and, within it, each kind of client."""
    return [[_path(port, vip, client, hooks) for client in Client] for vip in port.vips]


def _path(port: PortRow, vip: PortVip, client: Client, hooks: NodePrograms) -> PacketPath:
    side = "outside" if client is Client.OUTSIDE else "inside"
    shares = vip.outside if client is Client.OUTSIDE else vip.inside
    socket = hooks.socket(client, port, vip)
    ways, resting = [], []
    for backend in port.backends:
        share = shares.get(backend.id, 0.0)
        if share:
            direct = vip.direct and client is Client.OUTSIDE and not backend.local
            if socket:
                there, back = _connected(backend), "nothing to translate: the socket knows the VIP"
            elif direct:
                there = f"{_where(backend)}: encapsulated, with the client's address; that node translates"
                back = "not by this node: that node answers the client"
            else:
                there, back = _there(backend, client, hooks), _back(backend, client, hooks)
            ways.append(Way(backend, share, there, back))
        else:
            why = "terminating" if backend.state == "terminating" else "not offered to this side"
            resting.append(f"{backend.address}: {why}; connections that it has go on")
    return PacketPath(
        client,
        socket or hooks.first(client, vip) or ("no program of ours is there",),
        f"{vip.kind} {vip.address}/{port.protocol}",
        tuple(_policy(port, vip, side)),
        tuple(ways),
        tuple(resting),
        "" if ways else _refused(port, vip, side),
    )


def _policy(port: PortRow, vip: PortVip, side: str) -> Iterator[str]:
    local = side in vip.local_only
    yield "Local: endpoints of this node alone" if local else "Cluster: endpoints of every node"
    if vip.source_ranges:
        yield f"only from {', '.join(vip.source_ranges)}"
    if port.affinity_seconds:
        yield f"a client keeps its backend for {port.affinity_seconds} s"


def _refused(port: PortRow, vip: PortVip, side: str) -> str:
    if side in vip.local_only and vip.usable:
        return "dropped (NO_LOCAL_ENDPOINT): there are endpoints on other nodes alone"
    answer = "a TCP RST" if port.protocol == "TCP" else "an ICMP port unreachable"
    return f"rejected with {answer}: there is no endpoint"


def _where(backend: ShownBackend) -> str:
    if backend.local:
        return "this node"
    return f"node {backend.node}" if backend.node else "a node that its endpoint does not name"


def _connected(backend: ShownBackend) -> str:
    return f"{_where(backend)}: connected straight to it, no NAT"


def _there(backend: ShownBackend, client: Client, hooks: NodePrograms) -> str:
    if backend.local and client is Client.HOST:
        return f"{_where(backend)}: SNAT to this node's address, through the host's stack"
    if backend.local:
        hairpin = "; to itself by hairpin, as the node" if client is Client.POD else ""
        return f"{_where(backend)}: {'past' if hooks.redirect else 'through'} the host's stack{hairpin}"
    if client is Client.POD:
        return f"{_where(backend)}: through the host's stack"
    return f"{_where(backend)}: SNAT to this node's address, out of the uplink"


def _back(backend: ShownBackend, client: Client, hooks: NodePrograms) -> str:
    if backend.local and (hooks.redirect or client is Client.HOST):
        found = hooks.pod_in
    elif client is Client.POD:
        found = hooks.pod_out
    else:
        found = hooks.uplink_out if backend.local else hooks.uplink_in
    return f"translated back by {found[0]}" if found else "no program of ours translates it back"
