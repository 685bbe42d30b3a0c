# SPDX-License-Identifier: Apache-2.0
"""Traffic policies: which endpoints a client is offered, by its side and by the kind of address it uses."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lb.model import Protocol, TrafficPolicy
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import OUTSIDE_INGRESS, Datapath
from tests.packet.plans import TARGET_PORT, VIPS, service
from tests.packet.rows import (
    POD_IN,
    SNAT_PORT,
    UPLINK_IN,
    UPLINK_OUT,
    Row,
    Step,
    dropped,
    passed,
    play,
    sent,
)

CLIENT = (p.CLIENT, p.CLIENT_PORT)
POD = (p.POD_CLIENT, p.CLIENT_PORT)
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
REMOTE = (p.BACKEND_REMOTE, TARGET_PORT)
SNATED = (p.NODE1, SNAT_PORT)
EXTERNAL_KINDS = tuple(kind for kind in VipKind if kind is not VipKind.CLUSTER_IP)
HOW_MANY = 24  # connections: with two backends, the odds that one is never chosen are 2 ** -23
PROTOCOLS: dict[Protocol, Callable[..., bytes]] = {Protocol.TCP: p.tcp, Protocol.UDP: p.udp}

both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
both_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
external_kinds = pytest.mark.parametrize("kind", EXTERNAL_KINDS)


def from_outside(protocol: Protocol, kind: VipKind, port: int = p.CLIENT_PORT) -> bytes:
    return PROTOCOLS[protocol](p.FROM_CLIENT, (p.CLIENT, port), VIPS[kind])


def from_pod(protocol: Protocol, kind: VipKind, port: int = p.CLIENT_PORT) -> bytes:
    return PROTOCOLS[protocol](p.FROM_POD, (p.POD_CLIENT, port), VIPS[kind])


@both_uplinks
@both_protocols
@pytest.mark.parametrize("side", [POD_IN, UPLINK_IN])
def test_internal_policy_local_uses_this_nodes_endpoints_only(
    datapath: Datapath, uplink_program: str, protocol: Protocol, side: str
) -> None:
    build = from_pod if side == POD_IN else from_outside
    frames = [build(protocol, VipKind.CLUSTER_IP, 40_000 + number) for number in range(HOW_MANY)]
    steps = tuple(passed(side, frame, p.rebuilt(frame, dst=LOCAL), "NEW_LOCAL") for frame in frames)
    plan = service(p.BACKEND_LOCAL, p.BACKEND_REMOTE, protocol=protocol, internal=TrafficPolicy.LOCAL)
    play(datapath, Row("internalTrafficPolicy Local", (plan,), steps), uplink_program)


@both_uplinks
@both_protocols
def test_internal_policy_local_without_a_local_endpoint_drops(
    datapath: Datapath, uplink_program: str, protocol: Protocol
) -> None:
    plan = service(p.BACKEND_REMOTE, protocol=protocol, internal=TrafficPolicy.LOCAL)
    steps = (
        dropped(POD_IN, from_pod(protocol, VipKind.CLUSTER_IP), "NO_LOCAL_ENDPOINT"),
        dropped(UPLINK_IN, from_outside(protocol, VipKind.CLUSTER_IP), "NO_LOCAL_ENDPOINT"),
    )
    play(datapath, Row("endpoints elsewhere", (plan,), steps), uplink_program)


@both_uplinks
@pytest.mark.parametrize("policy", ["internal", "external"])
def test_policy_local_without_any_endpoint_rejects(
    datapath: Datapath, uplink_program: str, policy: str
) -> None:
    kind = VipKind.CLUSTER_IP if policy == "internal" else VipKind.LOAD_BALANCER
    plan = service(internal=TrafficPolicy.LOCAL, external=TrafficPolicy.LOCAL)
    inside, outside = from_pod(Protocol.TCP, kind), from_outside(Protocol.TCP, kind)
    steps = (
        sent(POD_IN, inside, p.reset_for(inside), "REJECT_NO_ENDPOINT"),
        sent(UPLINK_IN, outside, p.reset_for(outside), "REJECT_NO_ENDPOINT"),
    )
    play(datapath, Row("no endpoint anywhere", (plan,), steps), uplink_program)


@both_uplinks
@external_kinds
def test_internal_policy_local_does_not_concern_external_addresses(
    datapath: Datapath, uplink_program: str, kind: VipKind
) -> None:
    frame, pod_frame = from_outside(Protocol.TCP, kind), from_pod(Protocol.TCP, kind)
    out = p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=REMOTE, ttl=63)
    steps = (
        sent(UPLINK_IN, frame, out, "NEW_REMOTE"),
        passed(POD_IN, pod_frame, p.rebuilt(pod_frame, dst=REMOTE), "NEW_REMOTE"),
    )
    plan = service(p.BACKEND_REMOTE, internal=TrafficPolicy.LOCAL)
    play(datapath, Row("remote endpoint", (plan,), steps), uplink_program)


@both_uplinks
@both_protocols
@external_kinds
def test_external_policy_local_uses_this_nodes_endpoints_and_keeps_the_source_address(
    datapath: Datapath, uplink_program: str, protocol: Protocol, kind: VipKind
) -> None:
    frames = [from_outside(protocol, kind, 40_000 + number) for number in range(HOW_MANY)]
    steps: list[Step] = []
    for number, frame in enumerate(frames):
        steps.append(passed(UPLINK_IN, frame, p.rebuilt(frame, dst=LOCAL), "NEW_LOCAL"))
        answer = PROTOCOLS[protocol](p.TO_CLIENT, LOCAL, p.seen((p.CLIENT, 40_000 + number)))
        steps.append(passed(UPLINK_OUT, answer, p.rebuilt(answer, src=VIPS[kind]), "REPLY"))
    plan = service(p.BACKEND_LOCAL, p.BACKEND_REMOTE, protocol=protocol, external=TrafficPolicy.LOCAL)
    play(datapath, Row("externalTrafficPolicy Local", (plan,), tuple(steps)), uplink_program)


@both_uplinks
@both_protocols
@external_kinds
def test_external_policy_local_without_a_local_endpoint_drops_what_comes_from_outside(
    datapath: Datapath, uplink_program: str, protocol: Protocol, kind: VipKind
) -> None:
    """A pod of the node uses the same address and reaches the endpoint elsewhere."""
    pod_frame = from_pod(protocol, kind)
    steps = (
        dropped(UPLINK_IN, from_outside(protocol, kind), "NO_LOCAL_ENDPOINT"),
        passed(POD_IN, pod_frame, p.rebuilt(pod_frame, dst=REMOTE), "NEW_REMOTE"),
    )
    plan = service(p.BACKEND_REMOTE, protocol=protocol, external=TrafficPolicy.LOCAL)
    play(datapath, Row("endpoints elsewhere", (plan,), steps), uplink_program)


@both_uplinks
def test_external_policy_local_does_not_concern_the_cluster_ip(
    datapath: Datapath, uplink_program: str
) -> None:
    frame = from_outside(Protocol.TCP, VipKind.CLUSTER_IP)
    out = p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=REMOTE, ttl=63)
    plan = service(p.BACKEND_REMOTE, external=TrafficPolicy.LOCAL)
    play(datapath, Row("clusterIP", (plan,), (sent(UPLINK_IN, frame, out, "NEW_REMOTE"),)), uplink_program)


@both_uplinks
def test_external_policy_local_terminating_endpoint_here_before_a_ready_one_elsewhere(
    datapath: Datapath, uplink_program: str
) -> None:
    plan = service(
        p.BACKEND_REMOTE,
        terminating=[p.BACKEND_LOCAL],
        local=[p.BACKEND_LOCAL],
        external=TrafficPolicy.LOCAL,
    )
    frame, pod_frame = (build(Protocol.TCP, VipKind.NODE_PORT) for build in (from_outside, from_pod))
    steps = (
        passed(UPLINK_IN, frame, p.rebuilt(frame, dst=LOCAL), "NEW_LOCAL"),
        passed(POD_IN, pod_frame, p.rebuilt(pod_frame, dst=REMOTE), "NEW_REMOTE"),
    )
    play(datapath, Row("terminating here", (plan,), steps), uplink_program)


@both_uplinks
def test_external_policy_local_leaves_connections_from_before_alone(
    datapath: Datapath, uplink_program: str
) -> None:
    frame = from_outside(Protocol.TCP, VipKind.LOAD_BALANCER)
    later = p.tcp(p.FROM_CLIENT, CLIENT, VIPS[VipKind.LOAD_BALANCER], "A", seq=1001, ack=1)
    to_node2 = {"link": p.TO_NODE2, "src": SNATED, "dst": REMOTE, "ttl": 63}
    before, after = service(p.BACKEND_REMOTE), service(p.BACKEND_REMOTE, external=TrafficPolicy.LOCAL)
    first = sent(UPLINK_IN, frame, p.rebuilt(frame, **to_node2), "NEW_REMOTE")
    second = sent(UPLINK_IN, later, p.rebuilt(later, **to_node2), "FLOW_HIT")
    play(datapath, Row("Cluster", (before,), (first,)), uplink_program)
    play(datapath, Row("Local", (after,), (second,)), uplink_program)


@both_uplinks
def test_internal_policy_local_affinity_never_leads_out_of_the_set(
    datapath: Datapath, uplink_program: str
) -> None:
    """A pod that was given the endpoint elsewhere by the load balancer's address, which is free to."""
    pod_frame = from_pod(Protocol.TCP, VipKind.LOAD_BALANCER)
    again = from_pod(Protocol.TCP, VipKind.CLUSTER_IP, 40_001)
    back = from_pod(Protocol.TCP, VipKind.LOAD_BALANCER, 40_002)
    one, two = (
        service(*backends, affinity_seconds=100, internal=TrafficPolicy.LOCAL)
        for backends in ([p.BACKEND_REMOTE], [p.BACKEND_LOCAL, p.BACKEND_REMOTE])
    )
    play(
        datapath,
        Row(
            "the only endpoint is remembered",
            (one,),
            (passed(POD_IN, pod_frame, p.rebuilt(pod_frame, dst=REMOTE), "NEW_REMOTE"),),
        ),
        uplink_program,
    )
    play(
        datapath,
        Row(
            "the clusterIP is for local endpoints, and what it chose is remembered from then on",
            (two,),
            (
                passed(POD_IN, again, p.rebuilt(again, dst=LOCAL), "NEW_LOCAL"),
                passed(POD_IN, back, p.rebuilt(back, dst=LOCAL), "NEW_LOCAL"),
            ),
        ),
        uplink_program,
    )


@both_uplinks
def test_external_policy_local_affinity_never_leads_out_of_the_set(
    datapath: Datapath, uplink_program: str
) -> None:
    frame = from_outside(Protocol.TCP, VipKind.LOAD_BALANCER)
    again = from_outside(Protocol.TCP, VipKind.LOAD_BALANCER, 40_001)
    before = service(p.BACKEND_REMOTE, affinity_seconds=100)
    after = service(p.BACKEND_LOCAL, p.BACKEND_REMOTE, affinity_seconds=100, external=TrafficPolicy.LOCAL)
    to_node2 = p.rebuilt(frame, link=p.TO_NODE2, src=SNATED, dst=REMOTE, ttl=63)
    play(
        datapath, Row("Cluster", (before,), (sent(UPLINK_IN, frame, to_node2, "NEW_REMOTE"),)), uplink_program
    )
    step = passed(UPLINK_IN, again, p.rebuilt(again, dst=LOCAL), "NEW_LOCAL")
    play(datapath, Row("Local", (after,), (step,)), uplink_program)


@both_uplinks
def test_affinity_to_a_terminating_endpoint_holds_while_there_is_no_ready_one(
    datapath: Datapath, uplink_program: str
) -> None:
    """Both are offered (no ready endpoint is left): the client keeps the one it had."""
    vip = VipKind.CLUSTER_IP
    frames = [from_pod(Protocol.TCP, vip, 40_000 + number) for number in range(3)]
    for backend in (LOCAL, (p.BACKEND_LOCAL_2, TARGET_PORT)):
        datapath.reset()
        first = service(backend[0], affinity_seconds=100)
        both = service(
            terminating=[p.BACKEND_LOCAL, p.BACKEND_LOCAL_2],
            local=[p.BACKEND_LOCAL, p.BACKEND_LOCAL_2],
            internal=TrafficPolicy.LOCAL,
            affinity_seconds=100,
        )
        steps = [passed(POD_IN, frame, p.rebuilt(frame, dst=backend), "NEW_LOCAL") for frame in frames]
        play(datapath, Row("ready", (first,), tuple(steps[:1])), uplink_program)
        play(datapath, Row("terminating", (both,), tuple(steps[1:])), uplink_program)
