# SPDX-License-Identifier: Apache-2.0
"""A client's connections through a VIP and straight to the pod behind it, from one source port."""

from __future__ import annotations

import pytest

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path, source
from tests.packet.harness import PASS, Datapath
from tests.packet.plans import BUILD, TARGET_PORT, VIPS, service

KEPT = [path for path in PATHS if not path.forwarded]
kept = pytest.mark.parametrize("path", KEPT, ids=lambda path: path.name)
both_protocols = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
PORTS = (1, 511, 512, 1022, 1024, 32_767, 32_768, 40_000, 60_999, 61_000, 64_511, 64_512, 65_023, 65_535)


@kept
@both_protocols
@pytest.mark.parametrize("port", PORTS)
def test_same_port_through_a_vip_and_straight_to_the_pod(
    datapath: Datapath, path: Path, protocol: Protocol, port: int
) -> None:
    """In either order: what is direct passes as it is, both ways, and the VIP's answers are the VIP's."""
    datapath.apply(service(*path.backends(20, 1), protocol=protocol))
    talk = Conversation(datapath, path, port, protocol)
    straight(datapath, path, protocol, port)
    talk.send()
    straight(datapath, path, protocol, port)
    talk.answer()
    straight(datapath, path, protocol, port)
    assert talk.seen is not None
    assert talk.seen[1] != port
    assert (talk.seen[1] < 1024) == (port < 1024), "what needs a privilege needs it still"


def straight(datapath: Datapath, path: Path, protocol: Protocol, port: int) -> None:
    """A packet to the pod and its answer."""
    (pod,) = path.backends(20, 1)
    there = BUILD[protocol](path.link, (path.client, port), (pod, TARGET_PORT))
    back = BUILD[protocol](path.answer_link, (pod, TARGET_PORT), (path.client, port))
    for program, frame in ((path.ingress, there), (path.egress, back)):
        result = datapath.run(program, frame)
        assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
        p.assert_same(result.packet, frame)


@kept
def test_same_port_two_connections_of_a_client_never_meet(datapath: Datapath, path: Path) -> None:
    """The ports are exchanged in pairs."""
    datapath.apply(service(*path.backends(20, 1)))
    for port in PORTS:
        for one in (port, p.moved(port)):
            talk = Conversation(datapath, path, one)
            talk.send()
            assert talk.seen == (path.client, p.moved(one))
    assert [p.moved(p.moved(port)) for port in range(65_536)] == list(range(65_536))


@kept
def test_same_port_is_chosen_alike_when_flows_were_lost(datapath: Datapath, path: Path) -> None:
    datapath.apply(service(*path.backends(20, 1)))
    talk = Conversation(datapath, path)
    talk.send()
    before = talk.seen
    datapath.reset()
    talk.send("A")
    assert talk.seen == before


@kept
def test_same_port_of_sctp_stays(datapath: Datapath, path: Path) -> None:
    """Its checksum covers all pieces of a packet, so another port would cost it packets in fragments."""
    datapath.apply(service(*path.backends(20, 1), protocol=Protocol.SCTP))
    frame = p.sctp(path.link, (path.client, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP])
    assert source(datapath.run(path.ingress, frame))[1] == p.CLIENT_PORT
