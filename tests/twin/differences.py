# SPDX-License-Identifier: Apache-2.0
"""The differences between the two sides that are known; docs/differences.md has a row of each name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.twin.program import BACKENDS, FAR, Step, Target, World


@dataclass(frozen=True, slots=True)
class Case:
    """A step at which the two saw different things.

    to: where it went, or where its socket leads. port: of the socket, as a program's symbol. alone: no
    other open socket of the client has that port.
    """

    step: Step
    to: Target | None
    port: int | str
    alone: bool
    world: World
    ours: dict[str, Any]
    theirs: dict[str, Any]

    @property
    def service(self) -> str:
        """The Service of the target, or ``""``."""
        return self.to[1] if self.to and self.to[0] in ("cluster", "node", "external", "balancer") else ""

    @property
    def served(self) -> bool:
        """Does the Service have the target now?"""
        if not self.service or not self.to:
            return False
        state, (kind, _, *rest) = self.world[self.service], self.to
        if not state.there:
            return False
        if kind == "cluster":
            return rest == [state.ip, state.port]
        if kind == "node":
            return state.type != "ClusterIP" and rest == [state.node_port]
        if kind == "balancer":
            return state.type == "LoadBalancer" and rest == [state.port]
        return state.external and rest == [state.port]

    @property
    def ready(self) -> tuple[str, ...]:
        """The endpoints of the Service now."""
        if not self.served:
            return ()
        backends = BACKENDS[self.service]
        return tuple(backends[at] for at in self.world[self.service].usable(len(backends)))


@dataclass(frozen=True, slots=True)
class Known:
    """A difference that is known, by its row's name in docs/differences.md."""

    name: str
    covers: Callable[[Case], bool]


_PORT_UNREACHABLE = ("icmp 3 3", "icmp 1 4")
_TOO_FAR = ("icmp 11 0", "icmp 3 0")


def _refused(seen: dict[str, Any]) -> bool:
    """Was a client told that nobody takes what it sent?"""
    return seen.get("error") in ("ECONNREFUSED", *_PORT_UNREACHABLE)


def _source_address(case: Case) -> bool:
    asked = case.step["do"] == "request" and case.step["path"] == "/clientip"
    return (
        asked
        and bool(case.service)
        and case.ours == {"body": "itself"}
        and case.theirs == {"body": "the node"}
    )


def _ping(case: Case) -> bool:
    told = case.ours.get("error", "")  # ENOBUFS: a process of the node whose later pieces are dropped
    answered = case.ours.get("body") == "echo" or "icmp" in told or told == "ENOBUFS"
    return case.step["do"] == "ping" and bool(case.service) and answered and "error" in case.theirs


def _udp_without_endpoints(case: Case) -> bool:
    """Theirs goes on with the backend that conntrack remembers, or waits in vain for one that is gone.

    A socket without a peer does not hear of ICMP errors; where netfilter rejects, its call fails.
    """
    asked = case.step["do"] in ("ask", "pieces", "trace")
    hooked = case.step["who"] in ("node", "hostpod")
    untold = bool(case.step.get("to")) and case.step["do"] != "trace" and not hooked
    told = _refused(case.ours) or (untold and case.ours == {"error": "timeout"})
    return asked and bool(case.service) and not case.ready and told


def _unused_cluster_ip(case: Case) -> bool:
    return (
        case.to is not None
        and case.to[0] == "cluster"
        and not case.served
        and _refused(case.ours)
        and (case.theirs == {"error": "timeout"} or case.theirs.get("error", "") in _TOO_FAR)
    )


def _listens(case: Case) -> bool:
    """A process of the node listens at an external address, and is no endpoint of the Service that has it."""
    return (
        case.to is not None
        and (case.to == ["pod", "host"] or case.to[:2] == ["external", "host"])
        and not (case.world["host"].there and case.world["host"].ready)
        and "error" not in case.ours
        and case.theirs == {"error": "ECONNREFUSED"}
    )


def _large_by_lo(case: Case) -> bool:
    own = case.step["who"] in ("node", "hostpod", "bare") and case.to is not None
    large = case.step.get("size", 0) > 1200
    return own and large and case.step["do"] in ("ask", "pieces") and case.ours == {"error": "timeout"}


def _drop_in_silence(case: Case) -> bool:
    if not case.service or not case.to:
        return False
    state, told = case.world[case.service], case.theirs.get("error", "")
    drops = state.internal_local or (case.to[0] == "balancer" and bool(state.ranges))
    return drops and case.ours == {"error": "timeout"} and (told == "EPERM" or told.startswith("icmp"))


def _router(case: Case) -> bool:
    """Netfilter lets an ICMP error, too, come from the address that was asked."""
    traced = case.step["do"] == "trace" and case.ours.get("error", "").startswith("icmp")
    return bool(traced and case.ours["error"] == case.theirs.get("error"))


def _local_from_the_node(case: Case) -> bool:
    """kubernetes#131765: kube-proxy's nftables mode drops this before it would choose among all endpoints."""
    own = case.step["who"] in ("node", "hostpod", "bare") and case.to is not None
    outer = own and case.served and case.to is not None and case.to[0] in ("node", "external")
    return (
        outer
        and case.world[case.service].external_local
        and set(case.ready) == {FAR}
        and "error" not in case.ours
        and case.theirs.get("error") in ("timeout", "EPERM")
    )


def earlier_program(case: Case) -> bool:
    """No difference: both keep flows of UDP whose Service has gone.

    But what conntrack knows is flushed before each program, and our flows are not; and the numbers of node
    ports are the same in all programs, so a client may have the port of one in an earlier program.
    """
    node_port = case.step["do"] in ("ask", "pieces") and str(case.port).startswith("node")
    return node_port and not case.served and "body" in case.ours and "error" in case.theirs


DELIBERATE = (
    Known("source-address-kept", _source_address),
    Known("ping-answered", _ping),
    Known("udp-without-endpoints-refused", _udp_without_endpoints),
    Known("unused-cluster-ip-refused", _unused_cluster_ip),
    Known("listening-process-keeps-its-port", _listens),
    Known("large-datagram-by-lo", _large_by_lo),
    Known("dropped-in-silence", _drop_in_silence),
    Known("policy-local-from-the-node", _local_from_the_node),
    Known("routers-by-their-own-address", _router),
)
OPEN: tuple[Known, ...] = ()
"""What is no decision, and not mended yet: a row goes when its fault does."""
