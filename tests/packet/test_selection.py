# SPDX-License-Identifier: Apache-2.0
"""Which backend a new connection gets, in sets of every shape: held against the rule written in Python."""

from __future__ import annotations

from ipaddress import IPv4Address

import pytest

from lb.model import Protocol
from lb.plan import SMALL_SET, lookup_table
from tests import packets as p
from tests.packet import plans
from tests.packet.harness import TC_UPLINK_IN, Datapath
from tests.packet.model_types import ModelBackend, Tuple5, chosen

PORTS = range(20_000, 20_032)


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


@pytest.mark.parametrize("count", [SMALL_SET, SMALL_SET + 1])
def test_every_backend_of_a_set_is_used(datapath: Datapath, family: int, count: int) -> None:
    addresses = [f"10.0.1.{100 + number}" for number in range(count)]
    datapath.apply(plans.service(*addresses, protocol=Protocol.UDP))
    for port in range(20_000, 20_000 + 16 * count):
        packet = p.udp(p.FROM_CLIENT, (p.CLIENT, port), (p.CLUSTER_VIP, plans.PORT))
        assert datapath.run(TC_UPLINK_IN, packet).reason == "NEW_LOCAL"
    keys, flows = datapath.read("flows")
    assert len(set(flows["backend"][keys["direction"] == 0].tolist())) == count
