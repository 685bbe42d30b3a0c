# SPDX-License-Identifier: Apache-2.0
"""Whom the backend sees as its client, and who is reached: by the client's side, address and policies.

The table is kube-proxy's of internal, external and masqueraded traffic. It differs in one thing, on purpose:
a source address is hidden only where the answer would else pass the node by, that is for a client outside
whose backend is on another node, and for a pod that reaches itself.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from msgspec import structs

from lb.config import SnatPorts
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import ServicePlan, VipKind
from tests import packets as p
from tests.packet.conversation import Conversation, Path, destination, each_path, source
from tests.packet.harness import (
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_POD_IN,
    TC_UPLINK_IN,
    Datapath,
)
from tests.packet.plans import LOCAL_NET, TARGET_PORT, VIPS, service

CLUSTER, LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL
SERVICES = {
    "both-cluster": {},
    "external-local": {"external": LOCAL},
    "internal-local": {"internal": LOCAL},
    "both-local": {"internal": LOCAL, "external": LOCAL},
}
BY_TC = [TC_UPLINK_IN, TC_POD_IN]  # XDP leaves to tc what it cannot send, and then shows no choice
HOW_MANY = 24  # connections: with two backends, the odds that one is never chosen are 2 ** -23

each_protocol = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
each_kind = pytest.mark.parametrize("kind", list(VipKind))


def reached(program: str, kind: VipKind, policies: dict[str, TrafficPolicy]) -> set[str]:
    """Return who may get the connection, in the words of the Kubernetes documentation.

    internalTrafficPolicy is about the clusterIP, whoever asks; externalTrafficPolicy about clients outside
    that use another address.
    """
    if kind is VipKind.CLUSTER_IP:
        policy = policies.get("internal", CLUSTER)
    else:
        policy = CLUSTER if program == TC_POD_IN else policies.get("external", CLUSTER)
    return {p.BACKEND_LOCAL} if policy is LOCAL else {p.BACKEND_LOCAL, p.BACKEND_REMOTE}


@pytest.mark.parametrize("program", [*OUTSIDE_INGRESS, TC_POD_IN])
@each_protocol
@each_kind
@pytest.mark.parametrize("policies", SERVICES.values(), ids=SERVICES)
def test_source_address_and_endpoints_by_side_address_and_policy(
    datapath: Datapath,
    program: str,
    protocol: Protocol,
    kind: VipKind,
    policies: dict[str, TrafficPolicy],
) -> None:
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_999))
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_REMOTE, protocol=protocol, **policies))  # type: ignore[arg-type]
    make = p.tcp if protocol is Protocol.TCP else p.udp
    address, link = (p.POD_CLIENT, p.FROM_POD) if program == TC_POD_IN else (p.CLIENT, p.FROM_CLIENT)
    found = set()
    for port in range(40_000, 40_000 + HOW_MANY):
        frame = make(link, (address, port), VIPS[kind])
        result = datapath.run(program, frame)
        backend, seen = destination(result), source(result)
        found.add(backend)
        hidden = program != TC_POD_IN and not backend.startswith(LOCAL_NET)
        assert seen[0] == p.NODE1 if hidden else seen == p.seen((address, port))
        way = {"link": p.TO_NODE2, "ttl": 63} if hidden else {}
        p.assert_same(result.packet, p.rebuilt(frame, src=seen, dst=(backend, TARGET_PORT), **way))
        assert result.verdict == (SEND if hidden else PASS)
    assert found == reached(program, kind, policies)


@each_path
@each_protocol
@each_kind
def test_source_address_is_restored_on_the_way_back(
    datapath: Datapath, path: Path, protocol: Protocol, kind: VipKind
) -> None:
    """Client and VIP see each other's address alone, whatever was in between."""
    datapath.apply(service(*path.backends(20, 3), protocol=protocol))
    for port in range(40_000, 40_005):
        conversation = Conversation(datapath, path, port, protocol, kind)
        conversation.send()
        for _ in range(2):
            assert conversation.answer() == "REPLY"
            assert conversation.send("A") == "FLOW_HIT"


def twin(plan: ServicePlan) -> ServicePlan:
    """Return the same Service as the other node has it: what is local here is remote there."""
    (port,) = plan.ports
    backends, cluster, local = (
        tuple(structs.replace(each, local=not each.local) for each in members)
        for members in (port.backends, port.cluster, port.local)
    )
    return replace(plan, ports=(replace(port, backends=backends, cluster=cluster, local=local),))


@pytest.mark.parametrize("program", BY_TC)
@each_protocol
def test_affinity_across_nodes_the_first_choice_is_the_same(
    datapath: Datapath, program: str, protocol: Protocol
) -> None:
    """No state is shared: the client's address and the time of day decide, whatever node, VIP and port."""
    backends = [f"10.0.{node}.{host}" for node in (1, 2) for host in range(20, 26)]
    plan = service(*backends, protocol=protocol, affinity_seconds=86_400)
    make = p.tcp if protocol is Protocol.TCP else p.udp
    clients = [f"192.0.2.{host}" for host in range(100, 140)]
    choices = []
    for one, kind, port in ((plan, VipKind.CLUSTER_IP, 1000), (twin(plan), VipKind.NODE_PORT, 2000)):
        datapath.apply(one)
        datapath.reset()
        frames = {client: make(p.FROM_CLIENT, (client, port), VIPS[kind]) for client in clients}
        choices.append(
            {client: destination(datapath.run(program, frame)) for client, frame in frames.items()}
        )
    assert choices[0] == choices[1]
    assert len(set(choices[0].values())) > 6


@pytest.mark.parametrize("program", BY_TC)
def test_affinity_across_nodes_connections_without_affinity_agree_too(
    datapath: Datapath, program: str
) -> None:
    """So that another node may take over in the middle of a connection."""
    backends = [f"10.0.{node}.{host}" for node in (1, 2) for host in range(20, 26)]
    plan = service(*backends)
    frames = [
        p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIPS[VipKind.LOAD_BALANCER]) for port in range(1000, 1040)
    ]
    choices = []
    for one in (plan, twin(plan)):
        datapath.apply(one)
        datapath.reset()
        choices.append([destination(datapath.run(program, frame)) for frame in frames])
    assert choices[0] == choices[1]
    assert len(set(choices[0])) > 6
