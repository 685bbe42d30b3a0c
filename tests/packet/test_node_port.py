# SPDX-License-Identifier: Apache-2.0
"""What a node port, an address without endpoints and a foreign port mean to a packet, address by address."""

from __future__ import annotations

import pytest

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import OUTSIDE_INGRESS, Datapath
from tests.packet.plans import BUILD, NODE_PORT, PORT, TARGET_PORT, VIPS, service
from tests.packet.rows import POD_IN, UPLINK_IN, Row, passed, play, sent, untouched

CLIENT = (p.CLIENT, p.CLIENT_PORT)
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
OTHER = {Protocol.TCP: Protocol.UDP, Protocol.UDP: Protocol.SCTP, Protocol.SCTP: Protocol.TCP}
SIDES = {UPLINK_IN: (p.FROM_CLIENT, CLIENT), POD_IN: (p.FROM_POD, (p.POD_CLIENT, p.CLIENT_PORT))}

both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
each_protocol = pytest.mark.parametrize("protocol", BUILD)
each_side = pytest.mark.parametrize("side", SIDES)


def rejection(frame: bytes, protocol: Protocol) -> bytes:
    return p.reset_for(frame) if protocol is Protocol.TCP else p.port_unreachable_for(frame)


@both_uplinks
@each_protocol
@each_side
def test_node_port_of_an_address_that_is_not_admitted_is_the_nodes_own(
    datapath: Datapath, uplink_program: str, protocol: Protocol, side: str
) -> None:
    link, client = SIDES[side]
    admitted = BUILD[protocol](link, client, (p.NODE1, NODE_PORT))
    steps = (
        passed(side, admitted, p.rebuilt(admitted, dst=LOCAL), "NEW_LOCAL"),
        untouched(side, BUILD[protocol](link, client, (p.UPLINK_2_ADDRESS, NODE_PORT)), "NOT_VIP"),
        untouched(side, BUILD[protocol](link, client, (p.POD_GATEWAY, NODE_PORT)), "NOT_VIP"),
    )
    plan = service(p.BACKEND_LOCAL, protocol=protocol)
    play(datapath, Row("the primary address alone", (plan,), steps), uplink_program)


@both_uplinks
@each_protocol
@each_side
def test_node_port_belongs_to_one_protocol(
    datapath: Datapath, uplink_program: str, protocol: Protocol, side: str
) -> None:
    """The same number of the other protocol is free for a program of the node; so are other numbers."""
    link, client = SIDES[side]
    steps = (
        untouched(side, BUILD[OTHER[protocol]](link, client, (p.NODE1, NODE_PORT)), "NOT_VIP"),
        untouched(side, BUILD[protocol](link, client, (p.NODE1, NODE_PORT + 1)), "NOT_VIP"),
        untouched(side, BUILD[protocol](link, client, (p.NODE1, PORT)), "NOT_VIP"),
    )
    plan = service(p.BACKEND_LOCAL, protocol=protocol)
    play(datapath, Row("the node's own", (plan,), steps), uplink_program)


@both_uplinks
@each_protocol
@each_side
@pytest.mark.parametrize("kind", list(VipKind))
def test_reject_at_every_address_of_a_service_without_endpoints(
    datapath: Datapath, uplink_program: str, protocol: Protocol, side: str, kind: VipKind
) -> None:
    link, client = SIDES[side]
    frame = BUILD[protocol](link, client, VIPS[kind])
    step = sent(side, frame, rejection(frame, protocol), "REJECT_NO_ENDPOINT")
    play(datapath, Row(kind.value, (service(protocol=protocol),), (step,) * 2), uplink_program)


@both_uplinks
@each_protocol
@each_side
def test_reject_concerns_the_service_without_endpoints_alone(
    datapath: Datapath, uplink_program: str, protocol: Protocol, side: str
) -> None:
    link, client = SIDES[side]
    empty = service(name="empty", protocol=protocol, vips=[VipKind.EXTERNAL_IP])
    full = service(p.BACKEND_LOCAL, protocol=protocol, vips=[VipKind.CLUSTER_IP])
    to_empty = BUILD[protocol](link, client, VIPS[VipKind.EXTERNAL_IP])
    to_full = BUILD[protocol](link, client, VIPS[VipKind.CLUSTER_IP])
    steps = (
        sent(side, to_empty, rejection(to_empty, protocol), "REJECT_NO_ENDPOINT"),
        passed(side, to_full, p.rebuilt(to_full, dst=LOCAL), "NEW_LOCAL"),
    )
    play(datapath, Row("two Services", (empty, full), steps), uplink_program)


@both_uplinks
@each_protocol
@each_side
def test_external_ips_of_a_service_that_went_are_left_alone(
    datapath: Datapath, uplink_program: str, protocol: Protocol, side: str
) -> None:
    """Deleted, or turned into an ExternalName: no rejection in a name that nobody has any more."""
    link, client = SIDES[side]
    for kind in VipKind:
        frame = BUILD[protocol](link, client, VIPS[kind])
        before = passed(side, frame, p.rebuilt(frame, dst=LOCAL), "NEW_LOCAL")
        datapath.reset()
        play(
            datapath, Row("there", (service(p.BACKEND_LOCAL, protocol=protocol),), (before,)), uplink_program
        )
        datapath.apply()
        datapath.reset()  # its connections are over: see test_service_gone.py
        play(datapath, Row("gone", (), (untouched(side, frame, "NOT_VIP"),)), uplink_program)
