# SPDX-License-Identifier: Apache-2.0
"""Which backend a new connection gets, in sets of every shape: held against the rule written in Python."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from ipaddress import IPv4Address, ip_address
from math import gcd

import pytest
from msgspec import structs

from lb.model import Protocol
from lb.plan import SMALL_SET, lookup_table
from lb.plan.types import PortPlan, ServicePlan
from tests import packets as p
from tests.packet import plans
from tests.packet.harness import TC_UPLINK_IN, Datapath
from tests.packet.model_types import ModelBackend, Tuple5, chosen

PORTS = range(20_000, 20_032)


def weighted(plan: ServicePlan, weights: tuple[int, ...]) -> ServicePlan:
    """Return the plan with these weights, in the order of addresses; a backend of weight 0 is in no set."""

    def with_weights(port: PortPlan) -> PortPlan:
        backends = tuple(
            structs.replace(one, weight=weight) for one, weight in zip(port.backends, weights, strict=True)
        )
        offered = tuple(one for one in backends if one.weight)
        return replace(port, backends=backends, cluster=offered, local=tuple(o for o in offered if o.local))

    return replace(plan, ports=tuple(map(with_weights, plan.ports)))


def in_order(addresses: Iterable[str]) -> list[str]:
    """Return addresses in the order of backends, which in IPv6 is another."""
    return sorted(addresses, key=lambda one: int(ip_address(p.here(one))))


def backends_hit(datapath: Datapath, ports: range) -> list[bytes]:
    """Return the packets that come out for one connection from each port, as far as the backend shows."""
    out = []
    for port in ports:
        packet = p.udp(p.FROM_CLIENT, (p.CLIENT, port), (p.CLUSTER_VIP, plans.PORT))
        result = datapath.run(TC_UPLINK_IN, packet)
        assert result.reason == "NEW_LOCAL"
        out.append(result.packet[30:34])
    return out


@pytest.mark.parametrize("family", [4], ids=["ipv4"], indirect=True)
@pytest.mark.parametrize("count", [1, 2, 10, SMALL_SET, SMALL_SET + 1, 40])
def test_the_backend_is_the_one_that_the_hash_says(datapath: Datapath, count: int) -> None:
    addresses = [f"10.0.1.{100 + number}" for number in range(count)]
    datapath.apply(plans.service(*addresses, protocol=Protocol.UDP))
    backends = [ModelBackend(IPv4Address(one), plans.TARGET_PORT, local=True) for one in addresses]
    if count > SMALL_SET:
        table = lookup_table((4, int(one.address), one.port) for one in backends)
        backends = [backends[row] for row in table]
    expected = [
        chosen(
            tuple(backends),
            Tuple5(IPv4Address(p.CLIENT), IPv4Address(p.CLUSTER_VIP), port, plans.PORT, Protocol.UDP).hash(),
        ).address.packed
        for port in PORTS
    ]
    assert backends_hit(datapath, PORTS) == expected
    assert len(set(expected)) > min(count, 10) // 2


@pytest.mark.parametrize("family", [4, 6], ids=["ipv4", "ipv6"], indirect=True)
@pytest.mark.parametrize("weights", [(1, 3), (100, 100, 50), tuple(range(1, SMALL_SET + 1)), (1000, 1)])
def test_weights_of_a_list_count(datapath: Datapath, family: int, weights: tuple[int, ...]) -> None:
    """The programs agree with the rule in Python for each connection; its shares are another test's."""
    addresses = in_order(f"10.0.1.{100 + number}" for number in range(len(weights)))
    datapath.apply(weighted(plans.service(*addresses, protocol=Protocol.UDP), weights))
    backends = tuple(ModelBackend(IPv4Address(one), plans.TARGET_PORT, local=True) for one in addresses)
    common = gcd(*weights)
    for port in PORTS:
        flow = Tuple5(
            IPv4Address(p.CLIENT), IPv4Address(p.CLUSTER_VIP), port, plans.PORT, Protocol.UDP
        ).hash()
        packet = p.udp(p.FROM_CLIENT, (p.CLIENT, port), (p.CLUSTER_VIP, plans.PORT))
        wanted = chosen(backends, flow, [one // common for one in weights])
        sent = datapath.run(TC_UPLINK_IN, packet).packet
        assert ip_address(p.here(str(wanted.address))).packed in sent


def test_weights_of_a_table_count(datapath: Datapath) -> None:
    weights = tuple(100 if number else 1000 for number in range(SMALL_SET + 1))
    addresses = in_order(f"10.0.1.{100 + number}" for number in range(len(weights)))
    datapath.apply(weighted(plans.service(*addresses, protocol=Protocol.UDP), weights))
    for port in range(20_000, 20_400):
        packet = p.udp(p.FROM_CLIENT, (p.CLIENT, port), (p.CLUSTER_VIP, plans.PORT))
        assert datapath.run(TC_UPLINK_IN, packet).reason == "NEW_LOCAL"
    keys, flows = datapath.read("flows")
    hit = flows["backend"][keys["direction"] == 0].tolist()
    heaviest = max(hit.count(each) for each in set(hit))
    assert 0.3 < heaviest / len(hit) < 0.47  # 10 of 26 parts


def test_an_endpoint_of_weight_zero_keeps_its_connections_and_gets_no_new_one(datapath: Datapath) -> None:
    addresses = in_order(("10.0.1.100", "10.0.1.101"))
    datapath.apply(plans.service(*addresses, protocol=Protocol.UDP))

    def backend_of(port: int) -> bytes:
        packet = p.udp(p.FROM_CLIENT, (p.CLIENT, port), (p.CLUSTER_VIP, plans.PORT))
        return datapath.run(TC_UPLINK_IN, packet).packet

    before = {port: backend_of(port) for port in PORTS}
    datapath.apply(weighted(plans.service(*addresses, protocol=Protocol.UDP), (0, 100)))
    assert {port: backend_of(port) for port in PORTS} == before
    out = ip_address(p.here(addresses[0])).packed
    assert any(out in packet[14:60] for packet in before.values())
    assert not any(out in backend_of(port)[14:60] for port in range(21_000, 21_064))


@pytest.mark.parametrize("count", [SMALL_SET, SMALL_SET + 1])
def test_every_backend_of_a_set_is_used(datapath: Datapath, family: int, count: int) -> None:
    addresses = [f"10.0.1.{100 + number}" for number in range(count)]
    datapath.apply(plans.service(*addresses, protocol=Protocol.UDP))
    for port in range(20_000, 20_000 + 16 * count):
        packet = p.udp(p.FROM_CLIENT, (p.CLIENT, port), (p.CLUSTER_VIP, plans.PORT))
        assert datapath.run(TC_UPLINK_IN, packet).reason == "NEW_LOCAL"
    keys, flows = datapath.read("flows")
    assert len(set(flows["backend"][keys["direction"] == 0].tolist())) == count
