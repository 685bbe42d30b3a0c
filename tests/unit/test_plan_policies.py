# SPDX-License-Identifier: Apache-2.0
"""Which endpoints take new connections: traffic policies, terminating endpoints, topology hints."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from msgspec import structs

from lb.model import Endpoint, ServiceType, TrafficPolicy
from lb.plan import plan_service
from lb.plan.types import VipKind
from tests.unit.plan_bench import (
    DYING,
    EXTERNAL,
    READY_LOCAL,
    READY_REMOTE,
    SERVING,
    TOPOLOGY,
    UNREADY,
    WEB,
    offers,
    only,
    piece,
)


@pytest.mark.parametrize("internal", TrafficPolicy)
@pytest.mark.parametrize("external", TrafficPolicy)
def test_policies_of_each_kind_of_vip(internal: TrafficPolicy, external: TrafficPolicy) -> None:
    service = replace(
        WEB,
        type=ServiceType.LOAD_BALANCER,
        load_balancer_ips=(ip_address("198.51.100.1"),),
        external_ips=(EXTERNAL,),
        internal_policy=internal,
        external_policy=external,
    )
    port = only(plan_service(service, [piece(READY_LOCAL)], TOPOLOGY))
    found = {vip.kind: (vip.inside, vip.outside) for vip in port.vips}
    elsewhere = (TrafficPolicy.CLUSTER, external)
    assert found == dict.fromkeys(VipKind, elsewhere) | {VipKind.CLUSTER_IP: (internal, internal)}


DYING_REMOTE = Endpoint(ip_address("10.0.2.3"), ready=False, serving=True, terminating=True, node="node2")

SERVING_LOCAL = structs.replace(SERVING, node="node1")


@pytest.mark.parametrize(
    ("endpoints", "cluster", "local"),
    [
        ([READY_LOCAL, READY_REMOTE], ["10.0.1.1", "10.0.2.1"], ["10.0.1.1"]),
        ([READY_REMOTE], ["10.0.2.1"], []),
        ([READY_REMOTE, SERVING_LOCAL], ["10.0.2.1"], ["10.0.1.3"]),
        ([READY_LOCAL, SERVING_LOCAL], ["10.0.1.1"], ["10.0.1.1"]),
        ([SERVING_LOCAL, DYING_REMOTE], ["10.0.1.3", "10.0.2.3"], ["10.0.1.3"]),
        ([DYING_REMOTE], ["10.0.2.3"], []),
        ([structs.replace(DYING, node="node1"), READY_REMOTE], ["10.0.2.1"], []),
        ([structs.replace(UNREADY, node="node1"), READY_REMOTE], ["10.0.2.1"], []),
        ([structs.replace(DYING, node="node1"), UNREADY], [], []),
    ],
    ids=[
        "ready-in-both-places",
        "ready-elsewhere",
        "terminating-here-ready-elsewhere",
        "ready-before-terminating-here",
        "terminating-in-both-places",
        "terminating-elsewhere",
        "not-serving-here",
        "not-ready-here",
        "none-anywhere",
    ],
)
def test_policy_local_and_terminating(
    endpoints: list[Endpoint], cluster: list[str], local: list[str]
) -> None:
    assert offers(only(plan_service(WEB, [piece(*endpoints)], TOPOLOGY))) == (cluster, local)


def hinted(number: int, *, zones: str = "", nodes: str = "", **fields: Any) -> Endpoint:
    """An endpoint 10.0.0.<number>, with a hint for each letter of zones and for node<digit> of nodes."""
    return Endpoint(
        ip_address(f"10.0.0.{number}"),
        hint_zones=frozenset(zones),
        hint_nodes=frozenset(f"node{digit}" for digit in nodes),
        **fields,
    )


GOING: dict[str, Any] = {"ready": False, "serving": True, "terminating": True}


@pytest.mark.parametrize(
    ("zone", "endpoints", "chosen"),
    [
        ("a", [hinted(1), hinted(2)], [1, 2]),
        ("a", [hinted(1, zones="a"), hinted(2, zones="b")], [1]),
        ("a", [hinted(1, zones="ab"), hinted(2, zones="b"), hinted(3, zones="a")], [1, 3]),
        ("b", [hinted(1, zones="a"), hinted(2, zones="bc")], [2]),
        ("", [hinted(1, zones="a"), hinted(2, zones="b")], [1, 2]),
        ("a", [hinted(1, zones="a"), hinted(2)], [1, 2]),
        ("c", [hinted(1, zones="a"), hinted(2, zones="b")], [1, 2]),
        ("a", [hinted(1, zones="a"), hinted(2, zones="b"), hinted(3, ready=False, serving=False)], [1]),
        ("a", [hinted(1, zones="a"), hinted(2, zones="b"), hinted(3, **GOING)], [1]),
        ("a", [hinted(1, zones="a", **GOING), hinted(2, zones="b")], [2]),
        ("a", [hinted(1, zones="a", **GOING), hinted(2, zones="b", **GOING)], [1, 2]),
        ("a", [hinted(1, zones="a", nodes="1"), hinted(2, zones="a", nodes="2")], [1]),
        ("", [hinted(1, nodes="1"), hinted(2, nodes="2")], [1]),
        ("a", [hinted(1, zones="a", nodes="3"), hinted(2, zones="b", nodes="2")], [1]),
        ("c", [hinted(1, zones="a", nodes="3"), hinted(2, zones="b", nodes="2")], [1, 2]),
        ("a", [hinted(1, zones="b", nodes="1"), hinted(2, zones="a")], [2]),
        ("a", [hinted(1, nodes="1"), hinted(2)], [1, 2]),
        ("a", [hinted(1, nodes="2"), hinted(2, nodes="3")], [1, 2]),
    ],
    ids=[
        "no-hints",
        "one-in-this-zone",
        "hints-for-several-zones",
        "the-other-zone",
        "node-without-a-zone",
        "one-has-no-hint",
        "none-for-this-zone",
        "an-unready-one-needs-no-hint",
        "a-terminating-one-needs-no-hint",
        "close-but-terminating",
        "all-terminating",
        "node-before-zone",
        "node-without-a-zone-but-with-an-endpoint",
        "none-for-this-node-so-its-zone",
        "none-for-this-node-nor-its-zone",
        "one-has-no-node-hint-so-the-zone",
        "one-has-no-hint-for-nodes",
        "none-for-this-node-and-no-zones",
    ],
)
def test_topology_hints(zone: str, endpoints: list[Endpoint], chosen: list[int]) -> None:
    port = only(plan_service(WEB, [piece(*endpoints)], replace(TOPOLOGY, zone=zone)))
    assert offers(port)[0] == [f"10.0.0.{number}" for number in chosen]
    assert len(port.backends) == len([each for each in endpoints if each.ready or each.terminating])


def test_topology_hints_do_not_concern_policy_local() -> None:
    here, there = hinted(1, zones="b", node="node1"), hinted(2, zones="a", node="node2")
    port = only(plan_service(WEB, [piece(here, there)], replace(TOPOLOGY, zone="a")))
    assert offers(port) == (["10.0.0.2"], ["10.0.0.1"])
