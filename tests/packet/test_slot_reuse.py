# SPDX-License-Identifier: Apache-2.0
"""A backend slot that has come into use again is not the backend that a flow or a client remembers."""

from __future__ import annotations

import pytest

from lb.model import Protocol
from tests import packets as p
from tests.packet import plans
from tests.packet.harness import TC_UPLINK_IN, Datapath


def datagram() -> bytes:
    return p.udp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), (p.CLUSTER_VIP, plans.PORT))


def only_slot(datapath: Datapath) -> int:
    (slot,) = datapath.array("backends")["state"].nonzero()[0].tolist()
    return int(slot)


@pytest.mark.parametrize("field", ["generation", "service"])
def test_a_udp_flow_does_not_follow_a_reused_slot(datapath: Datapath, field: str) -> None:
    datapath.apply(plans.service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    assert datapath.run(TC_UPLINK_IN, datagram()).reason == "NEW_LOCAL"
    assert datapath.run(TC_UPLINK_IN, datagram()).reason == "FLOW_HIT"
    slot, backends = only_slot(datapath), datapath.array("backends")
    backends[slot][field] += 1
    try:
        assert datapath.run(TC_UPLINK_IN, datagram()).reason == (
            "NEW_LOCAL" if field == "generation" else "NO_BACKEND"
        )
    finally:
        backends[slot][field] -= 1


def test_affinity_does_not_follow_a_reused_slot(datapath: Datapath) -> None:
    datapath.apply(plans.service(p.BACKEND_LOCAL, protocol=Protocol.UDP, affinity_seconds=100))
    datapath.run(TC_UPLINK_IN, datagram())
    slot, backends = only_slot(datapath), datapath.array("backends")
    backends[slot]["generation"] += 1
    try:
        datapath.run(TC_UPLINK_IN, datagram())
        _, remembered = datapath.read("affinity")
        assert remembered["generation"].tolist() == [int(backends[slot]["generation"])]
    finally:
        backends[slot]["generation"] -= 1
