# SPDX-License-Identifier: Apache-2.0
"""Echo requests to a VIP: answered while there is somebody who would serve the client that asks."""

from __future__ import annotations

import pytest

from lb.model import TrafficPolicy
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import OUTSIDE_INGRESS, PASS, SEND, TC_UPLINK_OUT, Datapath
from tests.packet.plans import VIPS, service
from tests.packet.rows import POD_IN, UPLINK_IN, Row, dropped, play, sent, untouched

SIDES = {UPLINK_IN: (p.FROM_CLIENT, p.CLIENT), POD_IN: (p.FROM_POD, p.POD_CLIENT)}
WHOLE = [kind for kind in VipKind if kind is not VipKind.NODE_PORT]

both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
each_side = pytest.mark.parametrize("side", SIDES)
each_kind = pytest.mark.parametrize("kind", WHOLE)


def ping(side: str, kind: VipKind, payload: bytes = p.PAYLOAD, ttl: int = 64) -> bytes:
    link, client = SIDES[side]
    return p.echo(link, client, VIPS[kind][0], payload, ttl=ttl)


@both_uplinks
@each_side
@each_kind
@pytest.mark.parametrize("backend", [p.BACKEND_LOCAL, p.BACKEND_REMOTE, p.BACKEND_UNROUTED])
def test_ping_is_answered(
    datapath: Datapath, uplink_program: str, side: str, kind: VipKind, backend: str
) -> None:
    """By this node, wherever the endpoint is; no flow comes of it."""
    frames = [
        ping(side, kind),
        ping(side, kind, b""),
        ping(side, kind, bytes(range(256)) * 5, ttl=1),
        ping(side, kind, b"\xff\xff"),
    ]
    steps = tuple(sent(side, frame, p.echo_reply_for(frame), "PING") for frame in frames)
    play(datapath, Row("ping", (service(backend),), steps), uplink_program)
    assert len(datapath.read("flows")[0]) == 0


@each_kind
def test_ping_of_a_host_process_is_answered(datapath: Datapath, kind: VipKind) -> None:
    datapath.apply(service(p.BACKEND_REMOTE))
    frame = p.echo(p.TO_NODE2, p.NODE1, VIPS[kind][0])
    result = datapath.run(TC_UPLINK_OUT, frame, from_host=True)
    assert (result.verdict, result.reason) == (SEND, "PING")
    p.assert_same(result.packet, p.echo_reply_for(frame))
    result = datapath.run(TC_UPLINK_OUT, frame)
    assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
    p.assert_same(result.packet, frame)


@both_uplinks
@each_side
@each_kind
@pytest.mark.parametrize("policy", list(TrafficPolicy))
def test_ping_without_any_endpoint_is_unreachable(
    datapath: Datapath, uplink_program: str, side: str, kind: VipKind, policy: TrafficPolicy
) -> None:
    frame = ping(side, kind)
    answer = p.icmp_error_for(frame, VIPS[kind][0], "host unreachable")
    step = sent(side, frame, answer, "REJECT_NO_ENDPOINT")
    play(datapath, Row("none", (service(internal=policy, external=policy),), (step,)), uplink_program)


@both_uplinks
@each_kind
def test_ping_under_policy_local_without_an_endpoint_here(
    datapath: Datapath, uplink_program: str, kind: VipKind
) -> None:
    """Silence, as for a connection: a router that probes goes to another node. Pods are free to use the
    external addresses."""
    plan = service(p.BACKEND_REMOTE, internal=TrafficPolicy.LOCAL, external=TrafficPolicy.LOCAL)
    outside, inside = ping(UPLINK_IN, kind), ping(POD_IN, kind)
    steps = (
        dropped(UPLINK_IN, outside, "NO_LOCAL_ENDPOINT"),
        dropped(POD_IN, inside, "NO_LOCAL_ENDPOINT")
        if kind is VipKind.CLUSTER_IP
        else sent(POD_IN, inside, p.echo_reply_for(inside), "PING"),
    )
    play(datapath, Row("elsewhere", (plan,), steps), uplink_program)


@both_uplinks
@each_side
def test_ping_honours_source_ranges(datapath: Datapath, uplink_program: str, side: str) -> None:
    """Of the load-balancer address, and of no other."""
    link, client = SIDES[side]
    frames = {kind: p.echo(link, client, VIPS[kind][0]) for kind in WHOLE}
    for ranges, allowed in (([f"{client}/32"], True), (["203.0.113.0/24"], False)):
        steps = tuple(
            sent(side, frame, p.echo_reply_for(frame), "PING")
            if allowed or kind is not VipKind.LOAD_BALANCER
            else dropped(side, frame, "SOURCE_NOT_ALLOWED")
            for kind, frame in frames.items()
        )
        plan = service(p.BACKEND_LOCAL, source_ranges=ranges)
        play(datapath, Row("source ranges", (plan,), steps), uplink_program)


@both_uplinks
@each_side
def test_ping_to_an_address_of_the_node_is_the_stacks(
    datapath: Datapath, uplink_program: str, side: str
) -> None:
    """Node ports or not; and so is one to no VIP."""
    link, client = SIDES[side]
    steps = tuple(
        untouched(side, p.echo(link, client, address), "NOT_VIP")
        for address in (p.NODE1, p.UPLINK_2_ADDRESS, p.NOT_A_VIP, p.BACKEND_LOCAL)
    )
    play(datapath, Row("the node", (service(p.BACKEND_LOCAL),), steps), uplink_program)


def test_ping_to_many_is_not_answered(datapath: Datapath) -> None:
    frame = p.echo(p.ether(p.POD_MAC, "ff:ff:ff:ff:ff:ff"), p.POD_CLIENT, p.CLUSTER_VIP)
    step = dropped(POD_IN, frame, "REJECT_UNANSWERED")
    play(datapath, Row("broadcast", (service(p.BACKEND_LOCAL),), (step,)), POD_IN)
