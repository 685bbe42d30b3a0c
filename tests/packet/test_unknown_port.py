# SPDX-License-Identifier: Apache-2.0
"""A clusterIP with a port that it does not have: refused at once, never forwarded, never looping."""

from __future__ import annotations

import pytest

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import OUTSIDE_INGRESS, PASS, SEND, TC_UPLINK_OUT, Datapath
from tests.packet.plans import BUILD, PORT, TARGET_PORT, VIPS, service
from tests.packet.rows import POD_IN, UPLINK_IN, Row, dropped, passed, play, sent, untouched

SIDES = {UPLINK_IN: (p.FROM_CLIENT, p.CLIENT), POD_IN: (p.FROM_POD, p.POD_CLIENT)}
PORTS = (1, PORT - 1, PORT + 1, TARGET_PORT, 61_000, 65_535)

both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
each_side = pytest.mark.parametrize("side", SIDES)
each_protocol = pytest.mark.parametrize("protocol", BUILD)
each_backend = pytest.mark.parametrize("backends", [(), (p.BACKEND_LOCAL,), (p.BACKEND_REMOTE,)], ids=len)


def refusal(frame: bytes, protocol: Protocol) -> bytes:
    return p.reset_for(frame) if protocol is Protocol.TCP else p.port_unreachable_for(frame)


@both_uplinks
@each_side
@each_protocol
@each_backend
def test_unknown_port_of_a_cluster_ip_is_refused(
    datapath: Datapath, uplink_program: str, side: str, protocol: Protocol, backends: tuple[str, ...]
) -> None:
    link, client = SIDES[side]
    frames = [
        BUILD[protocol](link, (client, p.CLIENT_PORT), (p.CLUSTER_VIP, port), ttl=ttl)
        for port in PORTS
        for ttl in (64, 1)
    ]
    steps = tuple(sent(side, frame, refusal(frame, protocol), "REJECT_UNKNOWN_PORT") for frame in frames)
    play(datapath, Row("unknown", (service(*backends, protocol=protocol),), steps), uplink_program)
    assert len(datapath.read("flows")[0]) == 0


@both_uplinks
@each_side
@each_protocol
def test_unknown_port_is_one_of_another_protocol_too(
    datapath: Datapath, uplink_program: str, side: str, protocol: Protocol
) -> None:
    link, client = SIDES[side]
    source, vip = (client, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP]
    known = BUILD[protocol](link, source, vip)
    steps = [passed(side, known, p.rebuilt(known, dst=(p.BACKEND_LOCAL, TARGET_PORT)), "NEW_LOCAL")]
    for other in set(BUILD) - {protocol}:
        frame = BUILD[other](link, source, vip)
        steps.append(sent(side, frame, refusal(frame, other), "REJECT_UNKNOWN_PORT"))
    plan = service(p.BACKEND_LOCAL, protocol=protocol)
    play(datapath, Row("another protocol", (plan,), tuple(steps)), uplink_program)


@each_protocol
def test_unknown_port_for_a_host_process(datapath: Datapath, protocol: Protocol) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    frame = BUILD[protocol](p.TO_NODE2, (p.NODE1, p.CLIENT_PORT), (p.CLUSTER_VIP, PORT + 1))
    result = datapath.run(TC_UPLINK_OUT, frame, from_host=True)
    assert (result.verdict, result.reason) == (SEND, "REJECT_UNKNOWN_PORT")
    p.assert_same(result.packet, refusal(frame, protocol))
    result = datapath.run(TC_UPLINK_OUT, frame)  # forwarded: it was seen where it came in
    assert (result.verdict, result.reason) == (PASS, "NOT_VIP")


@both_uplinks
@each_side
@each_protocol
def test_unknown_port_of_other_addresses_is_left_alone(
    datapath: Datapath, uplink_program: str, side: str, protocol: Protocol
) -> None:
    """The network may send external addresses to something else as well, by port."""
    link, client = SIDES[side]
    others = [VIPS[kind][0] for kind in VipKind if kind is not VipKind.CLUSTER_IP]
    steps = tuple(
        untouched(side, BUILD[protocol](link, (client, p.CLIENT_PORT), (address, PORT + 1)), "NOT_VIP")
        for address in (*others, p.NOT_A_VIP, p.BACKEND_LOCAL, p.BACKEND_REMOTE)
    )
    plan = service(p.BACKEND_LOCAL, protocol=protocol)
    play(datapath, Row("other addresses", (plan,), steps), uplink_program)


@both_uplinks
def test_unknown_port_of_a_service_that_went_is_nobodys(datapath: Datapath, uplink_program: str) -> None:
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), (p.CLUSTER_VIP, PORT + 1))
    refused = sent(UPLINK_IN, frame, p.reset_for(frame), "REJECT_UNKNOWN_PORT")
    play(datapath, Row("there", (service(p.BACKEND_LOCAL),), (refused,)), uplink_program)
    play(datapath, Row("gone", (), (untouched(UPLINK_IN, frame, "NOT_VIP"),)), uplink_program)


@both_uplinks
def test_unknown_port_a_reset_or_an_abort_is_not_answered(datapath: Datapath, uplink_program: str) -> None:
    source, vip = (p.CLIENT, p.CLIENT_PORT), (p.CLUSTER_VIP, PORT + 1)
    steps = tuple(
        dropped(UPLINK_IN, p.tcp(p.FROM_CLIENT, source, vip, flags), "REJECT_UNANSWERED")
        for flags in ("R", "RA")
    )
    play(datapath, Row("RST", (service(p.BACKEND_LOCAL),), steps), uplink_program)
