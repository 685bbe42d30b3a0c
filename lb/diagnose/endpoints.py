# SPDX-License-Identifier: Apache-2.0
"""What it means when an endpoint, asked directly, does not answer."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

from lb.diagnose.facts import Facts, Finding, Result
from lb.diagnose.probe import Outcome, Target, text
from lb.model import Pod, Protocol
from lb.words import some

_STEP = "endpoints, directly"
_LISTENERS = "in the pod: ss -ltnp (ss -lunp for UDP)"


def examine(facts: Facts, _known: bool) -> Iterator[Finding]:
    """Give a finding for each kind of outcome; those of one cause are told together."""
    tried = [one for one in facts.outcomes if one.target.kind == "endpoint"]
    if facts.not_tried:
        found = f"{len(tried)} of {len(tried) + facts.not_tried} were tried, some of each port"
        yield Finding(_STEP, Result.NOTE, found, "endpoints-not-tried", "--all tries every one")
    good = [one for one in tried if one.result == "answers"]
    if good:
        verb = "answers" if len(good) == 1 else "answer"
        yield Finding(_STEP, Result.OK, f"{some(_who(facts, one) for one in good)} {verb}")
    told: dict[tuple[Result, str, str, str], list[Outcome]] = {}
    for one in tried:
        if one.result != "answers":
            told.setdefault(_judge(facts, one), []).append(one)
    for (result, cause, found, then), outcomes in told.items():
        yield Finding(_STEP, result, f"{some(_who(facts, one) for one in outcomes)}: {found}", cause, then)


def _judge(facts: Facts, one: Outcome) -> tuple[Result, str, str, str]:
    """Return result, cause, what was found and what to do, for an endpoint that did not answer."""
    if one.result == "untried":
        return Result.NOTE, "untried", f"{one.detail}, which tells nothing", ""
    if one.result == "refused":
        return (Result.CAUSE, *_refused(facts, one.target))
    if one.result == "unreachable":
        found, then = f"no way there: {one.detail}", "look at the routes of this node: ip route get ADDRESS"
        return Result.CAUSE, "endpoint-unreachable", found, then
    then = "look at NetworkPolicies, packet filters and the way to the endpoint's node, and whether it hangs"
    return Result.CAUSE, "endpoint-silent", "no answer", then


def _refused(facts: Facts, target: Target) -> tuple[str, str, str]:
    """Return the cause of a refusal, in words and with what to do, as far as it can be told from here."""
    service, number = facts.service, target.port
    listeners = facts.listeners.get(target.address)
    if listeners is None:
        # From here nobody sees who listens: what the pod declares proves nothing, and is told beside it.
        pod = _pod(facts, target)
        declared = (
            {p.port for p in pod.container_ports if p.protocol.name == target.protocol} if pod else set()
        )
        found = f"refused: nothing listens on {number} of the pod's address, at most on localhost"
        then = f"{_LISTENERS}; it must listen on 0.0.0.0 or [::]"
        if declared and number not in declared:
            found += f"; the pod declares {some(sorted(declared))}"
            then += ", or targetPort must be the port that it listens on"
        return "endpoint-refuses", found, then
    same = [one for one in listeners if one.protocol is Protocol[target.protocol]]
    there = [one for one in same if one.port == number]
    if there and all(one.loopback_only for one in there):
        found = f"refused: the process listens on {some(one.address for one in there)} only"
        return "localhost-only", found, "let it listen on 0.0.0.0 or [::]: the pod's address is not localhost"
    if there:
        found = "refused, though a process listens there"
        return "endpoint-refuses", found, "look at packet filters in the pod and on the way: they reject it"
    open_ports = sorted({one.port for one in same if not one.loopback_only})
    if not open_ports:
        return "nothing-listens", "refused: no process of the pod listens", f"{_LISTENERS}; and its log"
    service_ports = service.ports if service else ()
    mixed = any(port.port in open_ports and port.target_port == number for port in service_ports)
    found = f"refused: nothing listens on {number}; processes of the pod listen on {some(open_ports)}"
    if mixed:
        found += ". port and targetPort look mixed up"
    return "wrong-target-port", found, "give targetPort the port that the container listens on"


def _pod(facts: Facts, target: Target) -> Pod | None:
    address = ip_address(target.address)
    return next((pod for pod in facts.pods or () if address in pod.addresses), None)


def _who(facts: Facts, one: Outcome) -> str:
    pod = _pod(facts, one.target)
    return f"{pod.key.name} {text(one.target)}" if pod else text(one.target)
