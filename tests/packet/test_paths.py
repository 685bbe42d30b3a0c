# SPDX-License-Identifier: Apache-2.0
"""Every way through the data plane, both directions: client outside or in a pod, backend here or not."""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Address
from typing import Any

import pytest

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import OUTSIDE_INGRESS, Datapath
from tests.packet.model_types import Tuple5, hash_words
from tests.packet.plans import TARGET_PORT, VIPS, service
from tests.packet.reference import CLIENT_PORTS
from tests.packet.rows import (
    POD_IN,
    POD_OUT,
    SNAT_PORT,
    UPLINK_IN,
    UPLINK_OUT,
    Row,
    passed,
    play,
    sent,
    untouched,
)

CLIENT = (p.CLIENT, p.CLIENT_PORT)
POD = (p.POD_CLIENT, p.CLIENT_PORT)
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
REMOTE = (p.BACKEND_REMOTE, TARGET_PORT)
SNATED = (p.NODE1, SNAT_PORT)
Build = Callable[..., bytes]


def _first(protocol: Protocol) -> tuple[Build, dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the builder of frames, and its arguments for a first packet, its answer and a later packet."""
    if protocol is Protocol.UDP:
        return p.udp, {}, {"payload": b"pong"}, {"payload": b""}
    if protocol is Protocol.SCTP:
        return (
            p.sctp,
            {},
            {"chunk": "INIT ACK", "payload": b"cookie"},
            {"chunk": "DATA", "payload": p.PAYLOAD},
        )
    later = {"flags": "PA", "seq": 1001, "ack": 501, "payload": p.PAYLOAD}
    return p.tcp, {}, {"flags": "SA", "seq": 500, "ack": 1001}, later


def rows(protocol: Protocol, kind: VipKind) -> list[Row]:
    build, first, answer, later = _first(protocol)
    vip = VIPS[kind]
    name = f"{protocol.name} {kind.value}"
    local = (service(p.BACKEND_LOCAL, protocol=protocol),)
    remote = (service(p.BACKEND_REMOTE, protocol=protocol),)

    to_vip = build(p.FROM_CLIENT, CLIENT, vip, **first)
    to_vip_later = build(p.FROM_CLIENT, CLIENT, vip, **later)
    local_answer = build(p.TO_CLIENT, LOCAL, p.seen(CLIENT, protocol), **answer)
    remote_answer = build(p.FROM_NODE2, REMOTE, SNATED, **answer)
    pod_to_vip = build(p.FROM_POD, POD, vip, **first)
    pod_to_vip_later = build(p.FROM_POD, POD, vip, **later)
    seen_pod = p.seen(POD, protocol)
    answer_to_pod = {
        address: build(p.TO_POD, address, seen_pod, ttl=63, **answer) for address in (LOCAL, REMOTE)
    }
    self_to_vip = build(p.FROM_POD, (p.BACKEND_LOCAL, p.CLIENT_PORT), vip, **first)
    self_answer = build(p.FROM_POD, LOCAL, SNATED, **answer)
    back_to_pod = {"link": p.TO_POD, "ttl": 63}
    to_node2 = {"link": p.TO_NODE2, "src": SNATED, "dst": REMOTE, "ttl": 63}

    return [
        Row(
            f"{name}: outside, backend here: the source address is kept",
            local,
            (
                passed(UPLINK_IN, to_vip, p.rebuilt(to_vip, dst=LOCAL), "NEW_LOCAL"),
                passed(UPLINK_OUT, local_answer, p.rebuilt(local_answer, src=vip), "REPLY"),
                passed(UPLINK_IN, to_vip_later, p.rebuilt(to_vip_later, dst=LOCAL), "FLOW_HIT"),
            ),
        ),
        Row(
            f"{name}: outside, backend elsewhere: from the node's address, and on at once",
            remote,
            (
                sent(UPLINK_IN, to_vip, p.rebuilt(to_vip, **to_node2), "NEW_REMOTE"),
                sent(
                    UPLINK_IN,
                    remote_answer,
                    p.rebuilt(remote_answer, link=p.TO_CLIENT, src=vip, dst=CLIENT, ttl=63),
                    "REPLY",
                ),
                sent(UPLINK_IN, to_vip_later, p.rebuilt(to_vip_later, **to_node2), "FLOW_HIT"),
            ),
        ),
        Row(
            f"{name}: pod, backend here",
            local,
            (
                passed(POD_IN, pod_to_vip, p.rebuilt(pod_to_vip, dst=LOCAL), "NEW_LOCAL"),
                passed(POD_OUT, answer_to_pod[LOCAL], p.rebuilt(answer_to_pod[LOCAL], src=vip), "REPLY"),
                passed(POD_IN, pod_to_vip_later, p.rebuilt(pod_to_vip_later, dst=LOCAL), "FLOW_HIT"),
            ),
        ),
        Row(
            f"{name}: pod, backend elsewhere: the pod's address is kept",
            remote,
            (
                passed(POD_IN, pod_to_vip, p.rebuilt(pod_to_vip, dst=REMOTE), "NEW_REMOTE"),
                untouched(
                    UPLINK_IN, build(p.FROM_NODE2, REMOTE, seen_pod, **answer), "NOT_VIP"
                ),  # undone where it faces the client
                passed(POD_OUT, answer_to_pod[REMOTE], p.rebuilt(answer_to_pod[REMOTE], src=vip), "REPLY"),
                passed(POD_IN, pod_to_vip_later, p.rebuilt(pod_to_vip_later, dst=REMOTE), "FLOW_HIT"),
            ),
        ),
        Row(
            f"{name}: a pod is its own backend: it sees the node as its client",
            local,
            (
                sent(
                    POD_IN,
                    self_to_vip,
                    p.rebuilt(self_to_vip, src=SNATED, dst=LOCAL, **back_to_pod),
                    "NEW_HAIRPIN",
                ),
                sent(
                    POD_IN,
                    self_answer,
                    p.rebuilt(self_answer, src=vip, dst=(p.BACKEND_LOCAL, p.CLIENT_PORT), **back_to_pod),
                    "REPLY",
                ),
                sent(
                    POD_IN,
                    self_to_vip,
                    p.rebuilt(self_to_vip, src=SNATED, dst=LOCAL, **back_to_pod),
                    "FLOW_HIT",
                ),
            ),
        ),
    ]


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
@pytest.mark.parametrize("protocol", list(Protocol))
@pytest.mark.parametrize("kind", list(VipKind))
def test_cluster_ip_and_other_vips_each_way(
    datapath: Datapath, uplink_program: str, protocol: Protocol, kind: VipKind
) -> None:
    for row in rows(protocol, kind):
        datapath.reset()
        play(datapath, row, uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_udp_without_checksum_stays_without(datapath: Datapath, uplink_program: str) -> None:
    vip = VIPS[VipKind.CLUSTER_IP]
    frame = p.udp(p.FROM_CLIENT, CLIENT, vip, checksum=False)
    answer = p.udp(p.TO_CLIENT, LOCAL, p.seen(CLIENT), checksum=False)
    row = Row(
        "no checksum",
        (service(p.BACKEND_LOCAL, protocol=Protocol.UDP),),
        (
            passed(UPLINK_IN, frame, p.rebuilt(frame, dst=LOCAL), "NEW_LOCAL"),
            passed(UPLINK_OUT, answer, p.rebuilt(answer, src=vip), "REPLY"),
        ),
    )
    play(datapath, row, uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_one_number_for_tcp_and_udp(datapath: Datapath, uplink_program: str) -> None:
    vip = VIPS[VipKind.NODE_PORT]
    frames: dict[Protocol, Build] = {Protocol.TCP: p.tcp, Protocol.UDP: p.udp}
    backends = {Protocol.TCP: LOCAL, Protocol.UDP: (p.BACKEND_LOCAL_2, TARGET_PORT)}
    services = tuple(
        service(backends[protocol][0], name=protocol.name.lower(), protocol=protocol, whole=False)
        for protocol in frames
    )
    steps = []
    for protocol, build in frames.items():
        frame = build(p.FROM_CLIENT, CLIENT, vip)
        steps.append(passed(UPLINK_IN, frame, p.rebuilt(frame, dst=backends[protocol]), "NEW_LOCAL"))
    play(datapath, Row("same number", services, tuple(steps)), uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_two_vips_from_one_client_port_are_told_apart(datapath: Datapath, uplink_program: str) -> None:
    """The backend would see one 5-tuple twice, so the second connection gets another port."""
    first, second = VIPS[VipKind.CLUSTER_IP], VIPS[VipKind.LOAD_BALANCER]
    asked = Tuple5(IPv4Address(p.CLIENT), IPv4Address(second[0]), p.CLIENT_PORT, second[1], Protocol.TCP)
    by_chance = hash_words(asked.hash(), 0, 0)
    moved = (p.CLIENT, CLIENT_PORTS[by_chance * len(CLIENT_PORTS) >> 32])
    one = p.tcp(p.FROM_CLIENT, CLIENT, first)
    two = p.tcp(p.FROM_CLIENT, CLIENT, second)
    answer_one = p.tcp(p.TO_CLIENT, LOCAL, p.seen(CLIENT), "SA", seq=1, ack=1001)
    answer_two = p.tcp(p.TO_CLIENT, LOCAL, moved, "SA", seq=1, ack=1001)
    row = Row(
        "one client port, two VIPs, one backend",
        (service(p.BACKEND_LOCAL),),
        (
            passed(UPLINK_IN, one, p.rebuilt(one, dst=LOCAL), "NEW_LOCAL"),
            passed(UPLINK_IN, two, p.rebuilt(two, src=moved, dst=LOCAL), "NEW_LOCAL"),
            passed(UPLINK_OUT, answer_one, p.rebuilt(answer_one, src=first), "REPLY"),
            passed(UPLINK_OUT, answer_two, p.rebuilt(answer_two, src=second, dst=CLIENT), "REPLY"),
        ),
    )
    play(datapath, row, uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_ethernet_padding_is_kept(datapath: Datapath, uplink_program: str) -> None:
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIPS[VipKind.CLUSTER_IP])
    padding = b"\xaa" * (60 - len(frame))
    row = Row(
        "a frame of the least length",
        (service(p.BACKEND_LOCAL),),
        (passed(UPLINK_IN, frame + padding, p.rebuilt(frame, dst=LOCAL) + padding, "NEW_LOCAL"),),
    )
    play(datapath, row, uplink_program)
