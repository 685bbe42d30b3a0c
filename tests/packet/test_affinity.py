# SPDX-License-Identifier: Apache-2.0
"""ClientIP affinity while the Service changes: switched on and off, and told apart from other Services'."""

from __future__ import annotations

import pytest

from lb.model import Protocol
from lb.plan.types import ServicePlan, VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path, destination, each_path
from tests.packet.harness import LIMITS, OUTSIDE_INGRESS, TC_UPLINK_IN, Datapath, own
from tests.packet.plans import VIPS, service

HOW_MANY = 40  # connections: the odds that one of four backends is never chosen are 4 * (3 / 4) ** 40
CLIENTS = 40
each_protocol = pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])


def reached(datapath: Datapath, path: Path, protocol: Protocol, first_port: int) -> set[str]:
    """Open connections from one client and return the backends that they went to."""
    found = set()
    for port in range(first_port, first_port + HOW_MANY):
        conversation = Conversation(datapath, path, port, protocol, VipKind.CLUSTER_IP)
        conversation.send()
        found.add(conversation.backend)
    return found


@each_path
@each_protocol
def test_affinity_switched_on_and_off(datapath: Datapath, path: Path, protocol: Protocol) -> None:
    """With the next connection; those that there are stay where they are."""
    backends = path.backends(20, 4)
    with_affinity, without = (
        service(*backends, protocol=protocol, affinity_seconds=seconds) for seconds in (100, 0)
    )
    datapath.apply(without)
    assert reached(datapath, path, protocol, 10_000) == set(backends)
    datapath.apply(with_affinity)
    kept = Conversation(datapath, path, 10_000, protocol, VipKind.CLUSTER_IP)
    assert kept.send("A") == "FLOW_HIT"
    chosen = reached(datapath, path, protocol, 20_000)
    assert len(chosen) == 1
    datapath.apply(without)
    assert reached(datapath, path, protocol, 30_000) == set(backends)
    datapath.apply(with_affinity)
    assert reached(datapath, path, protocol, 40_000) == chosen


@each_path
@each_protocol
def test_affinity_of_one_service_says_nothing_about_another(
    datapath: Datapath, path: Path, protocol: Protocol
) -> None:
    """One client, two Services with the same pods: each remembers its own choice."""
    one, two = path.backends(20, 2)
    kinds = {"first": VipKind.CLUSTER_IP, "second": VipKind.LOAD_BALANCER}

    def plan(name: str, *backends: str) -> ServicePlan:
        return service(*backends, name=name, protocol=protocol, vips=[kinds[name]], affinity_seconds=100)

    chosen = {"first": one, "second": two}
    datapath.apply(*(plan(name, backend) for name, backend in chosen.items()))
    for kind in kinds.values():
        Conversation(datapath, path, 1000, protocol, kind).send()
    datapath.apply(*(plan(name, one, two) for name in kinds))
    for name, backend in chosen.items():
        for port in range(2000, 2010):
            conversation = Conversation(datapath, path, port, protocol, kinds[name])
            conversation.send()
            assert conversation.backend == backend


@each_protocol
def test_affinity_that_is_over_is_a_new_choice_and_alike_on_every_node(
    datapath: Datapath, protocol: Protocol
) -> None:
    """After the timeout the time of day is in another period; a node without memory chooses as this one."""
    backends = [f"10.0.1.{host}" for host in range(20, 26)]
    datapath.apply(service(*backends, protocol=protocol, affinity_seconds=86_400))
    make = p.tcp if protocol is Protocol.TCP else p.udp
    vip = VIPS[VipKind.LOAD_BALANCER]
    settings = datapath.maps.array(own("settings"))
    period = 86_400 * 10**9

    def choices(port: int) -> list[str]:
        clients = [f"192.0.2.{host}" for host in range(100, 130)]
        frames = [make(p.FROM_CLIENT, (client, port), vip) for client in clients]
        return [destination(datapath.run(TC_UPLINK_IN, frame)) for frame in frames]

    first = choices(1000)
    settings["wall_ns"] = period
    assert choices(2000) == first, "remembered, whatever the time of day"
    datapath.reset()
    settings["wall_ns"] = period
    later = choices(3000)
    assert sum(one != other for one, other in zip(first, later, strict=True)) > 15
    datapath.reset()
    settings["wall_ns"] = period
    assert choices(4000) == later


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_affinity_outlives_a_flood_of_first_packets(datapath: Datapath, program: str) -> None:
    """Three strangers for each entry of the table, none of whom gets what the backend sends him.

    Clients begin while there is one backend, so that who is forgotten is likely to be led to another.
    """
    path = next(path for path in PATHS if path.ingress == program and not path.forwarded)
    backends = path.backends(20, 4)
    datapath.apply(service(*backends[:1], affinity_seconds=100))
    for number in range(CLIENTS):
        Conversation(datapath, path, 10_000, client=f"198.51.100.{1 + number}").establish()
    datapath.apply(service(*backends, affinity_seconds=100))
    frame = bytearray(Conversation(datapath, path).request("S"))
    address = slice(30 - 2, 30) if p.version() == 4 else slice(38 - 2, 38)
    before = datapath.maps.fill(own("affinity"))
    with datapath.namespace.entered():
        for number in range(3 * LIMITS.affinity):
            frame[address] = number.to_bytes(2)
            datapath.try_frame(program, bytes(frame))
    after = datapath.maps.fill(own("affinity"))
    assert after.provisional > LIMITS.affinity / 2, "the table is full of them"
    assert after.evicted == before.evicted
    for number in range(CLIENTS):
        client = Conversation(datapath, path, 10_001, client=f"198.51.100.{1 + number}")
        client.send()
        assert client.backend == backends[0]
