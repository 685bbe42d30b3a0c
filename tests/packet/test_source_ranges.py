# SPDX-License-Identifier: Apache-2.0
"""loadBalancerSourceRanges: who may open connections to the load-balancer addresses, and to nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from lb.model import Protocol, TrafficPolicy
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import OUTSIDE_INGRESS, Datapath
from tests.packet.plans import TARGET_PORT, VIPS, service
from tests.packet.rows import POD_IN, UPLINK_IN, Row, dropped, passed, play, sent

VIP = VIPS[VipKind.LOAD_BALANCER]
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
PROTOCOLS: dict[Protocol, Callable[..., bytes]] = {Protocol.TCP: p.tcp, Protocol.UDP: p.udp}
CLIENTS = {p.CLIENT: (UPLINK_IN, p.FROM_CLIENT), p.POD_CLIENT: (POD_IN, p.FROM_POD)}

both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
both_protocols = pytest.mark.parametrize("protocol", PROTOCOLS)
each_client = pytest.mark.parametrize("client", CLIENTS)


def frame_of(client: str, protocol: Protocol = Protocol.TCP, kind: VipKind = VipKind.LOAD_BALANCER) -> bytes:
    return PROTOCOLS[protocol](CLIENTS[client][1], (client, p.CLIENT_PORT), VIPS[kind])


@both_uplinks
@both_protocols
@each_client
@pytest.mark.parametrize(
    ("ranges", "allowed"),
    [
        (["0.0.0.0/0"], True),
        (["{client}/32"], True),
        (["203.0.113.0/24", "{client}/32"], True),
        (["203.0.113.0/24"], False),
        (["{other}/32"], False),
        (["{first}.0.0.0/8", "203.0.113.0/24"], True),
        (["128.0.0.0/1", "0.0.0.0/1"], True),
    ],
    ids=["everybody", "itself", "one-of-two", "others", "its-neighbour", "its-network", "two-halves"],
)
def test_source_ranges_filter_the_load_balancer_address(
    datapath: Datapath, uplink_program: str, protocol: Protocol, client: str, ranges: list[str], allowed: bool
) -> None:
    """From outside and from pods alike."""
    other = client[:-1] + str((int(client[-1]) + 1) % 10)
    networks = [
        text.format(client=client, other=other, first=client.split(".", maxsplit=1)[0]) for text in ranges
    ]
    plan = service(p.BACKEND_LOCAL, protocol=protocol, source_ranges=networks)
    frame, hook = frame_of(client, protocol), CLIENTS[client][0]
    if allowed:
        step = passed(hook, frame, p.rebuilt(frame, dst=LOCAL), "NEW_LOCAL")
    else:
        step = dropped(hook, frame, "SOURCE_NOT_ALLOWED")
    play(datapath, Row("source ranges", (plan,), (step,)), uplink_program)


@both_uplinks
@each_client
@pytest.mark.parametrize("kind", [kind for kind in VipKind if kind is not VipKind.LOAD_BALANCER])
def test_source_ranges_do_not_concern_other_addresses(
    datapath: Datapath, uplink_program: str, client: str, kind: VipKind
) -> None:
    frame = frame_of(client, kind=kind)
    step = passed(CLIENTS[client][0], frame, p.rebuilt(frame, dst=LOCAL), "NEW_LOCAL")
    plan = service(p.BACKEND_LOCAL, source_ranges=["203.0.113.0/24"])
    play(datapath, Row(kind.value, (plan,), (step,)), uplink_program)


@both_uplinks
def test_source_ranges_are_those_of_the_service(datapath: Datapath, uplink_program: str) -> None:
    """Another Service that lets the client in lets it in nowhere else."""
    other = service(
        p.BACKEND_LOCAL, name="other", vips=[VipKind.LOAD_BALANCER], protocol=Protocol.UDP,
        source_ranges=[f"{p.CLIENT}/32"],
    )  # fmt: skip
    plan = service(p.BACKEND_LOCAL, source_ranges=["203.0.113.0/24"])
    step = dropped(UPLINK_IN, frame_of(p.CLIENT), "SOURCE_NOT_ALLOWED")
    play(datapath, Row("two Services", (plan, other), (step,)), uplink_program)


@both_uplinks
def test_source_ranges_leave_connections_from_before_alone(datapath: Datapath, uplink_program: str) -> None:
    first = frame_of(p.CLIENT)
    later = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), VIP, "A", seq=1001, ack=1)
    new = p.tcp(p.FROM_CLIENT, (p.CLIENT, 40_001), VIP)
    limited = service(p.BACKEND_LOCAL, source_ranges=["203.0.113.0/24"])
    rows = [
        Row(
            "nothing is limited",
            (service(p.BACKEND_LOCAL),),
            (passed(UPLINK_IN, first, p.rebuilt(first, dst=LOCAL), "NEW_LOCAL"),),
        ),
        Row(
            "new connections are",
            (limited,),
            (
                passed(UPLINK_IN, later, p.rebuilt(later, dst=LOCAL), "FLOW_HIT"),
                dropped(UPLINK_IN, new, "SOURCE_NOT_ALLOWED"),
            ),
        ),
        Row(
            "nothing is limited again",
            (service(p.BACKEND_LOCAL),),
            (passed(UPLINK_IN, new, p.rebuilt(new, dst=LOCAL), "NEW_LOCAL"),),
        ),
    ]
    for row in rows:
        play(datapath, row, uplink_program)


@both_uplinks
@pytest.mark.parametrize("policy", TrafficPolicy)
def test_source_ranges_come_before_the_question_for_endpoints(
    datapath: Datapath, uplink_program: str, policy: TrafficPolicy
) -> None:
    """A client that is not let in learns nothing; one that is gets the usual answer."""
    frame, pod_frame = frame_of(p.CLIENT), frame_of(p.POD_CLIENT)
    plan = service(external=policy, source_ranges=[f"{p.POD_CLIENT}/32"])
    steps = (
        dropped(UPLINK_IN, frame, "SOURCE_NOT_ALLOWED"),
        sent(POD_IN, pod_frame, p.reset_for(pod_frame), "REJECT_NO_ENDPOINT"),
    )
    play(datapath, Row("no endpoint", (plan,), steps), uplink_program)
