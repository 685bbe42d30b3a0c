# SPDX-License-Identifier: Apache-2.0
"""A pod that reaches itself through its Service sees the node as its client, and the VIP as its server."""

from __future__ import annotations

import pytest

from lb.config import SnatPorts
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import destination, source
from tests.packet.harness import PASS, SEND, TC_POD_IN, Datapath
from tests.packet.plans import BUILD, TARGET_PORT, VIPS, service

POD = p.BACKEND_LOCAL

each_protocol = pytest.mark.parametrize("protocol", BUILD)


def request(protocol: Protocol, kind: VipKind, port: int = p.CLIENT_PORT) -> bytes:
    return BUILD[protocol](p.FROM_POD, (POD, port), VIPS[kind])


def there_and_back(datapath: Datapath, protocol: Protocol, kind: VipKind, port: int = p.CLIENT_PORT) -> int:
    """Play a request and its answer, both at the pod's interface; return the port that the pod answers to."""
    frame = request(protocol, kind, port)
    result = datapath.run(TC_POD_IN, frame)
    seen = source(result)
    assert (result.verdict, seen[0]) == (SEND, p.NODE1)
    out = p.rebuilt(frame, link=p.TO_POD, src=seen, dst=(POD, TARGET_PORT), ttl=63)
    p.assert_same(result.packet, out)
    answer(datapath, protocol, kind, seen, port)
    return seen[1]


def answer(datapath: Datapath, protocol: Protocol, kind: VipKind, seen: tuple[str, int], port: int) -> None:
    frame = BUILD[protocol](p.FROM_POD, (POD, TARGET_PORT), seen)
    result = datapath.run(TC_POD_IN, frame)
    assert (result.verdict, result.reason) == (SEND, "REPLY")
    p.assert_same(result.packet, p.rebuilt(frame, link=p.TO_POD, src=VIPS[kind], dst=(POD, port), ttl=63))


@each_protocol
@pytest.mark.parametrize("kind", list(VipKind))
@pytest.mark.parametrize("policy", list(TrafficPolicy))
def test_hairpin_at_every_address_and_policy(
    datapath: Datapath, protocol: Protocol, kind: VipKind, policy: TrafficPolicy
) -> None:
    datapath.apply(service(POD, protocol=protocol, internal=policy, external=policy))
    there_and_back(datapath, protocol, kind)


@each_protocol
def test_hairpin_only_to_itself(datapath: Datapath, protocol: Protocol) -> None:
    """Of two backends one is the pod: its packets to the other one keep its address."""
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_999))
    datapath.apply(service(POD, p.BACKEND_REMOTE, protocol=protocol))
    found = set()
    for port in range(40_000, 40_040):
        frame = request(protocol, VipKind.CLUSTER_IP, port)
        result = datapath.run(TC_POD_IN, frame)
        found.add(destination(result))
        if destination(result) == POD:
            assert (result.verdict, result.reason, source(result)[0]) == (SEND, "NEW_HAIRPIN", p.NODE1)
        else:
            assert (result.verdict, result.reason) == (PASS, "NEW_REMOTE")
            p.assert_same(result.packet, p.rebuilt(frame, dst=(p.BACKEND_REMOTE, TARGET_PORT)))
    assert found == {POD, p.BACKEND_REMOTE}


@each_protocol
def test_hairpin_through_two_addresses_from_one_port(datapath: Datapath, protocol: Protocol) -> None:
    """Each conversation has a port of its own, so that each answer comes from the address that was asked."""
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_999))
    datapath.apply(service(POD, protocol=protocol))
    ports = {kind: there_and_back(datapath, protocol, kind) for kind in VipKind}
    assert len(set(ports.values())) == len(VipKind)
    for kind, port in ports.items():
        answer(datapath, protocol, kind, (p.NODE1, port), p.CLIENT_PORT)
