# SPDX-License-Identifier: Apache-2.0
"""Which endpoints each traffic policy offers: kube-proxy's table of cases, in this program's terms.

A row is a node's zone, endpoints, and who is offered under policy Cluster and under Local. Both sets exist
for every Service port; a VIP names one of them for each side (``lb.plan.services.policies``).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from ipaddress import ip_address

import pytest
from msgspec import structs

from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)
from lb.plan import plan_service
from lb.plan.types import PortPlan, Topology, VipKind

KEY = ObjectKey("default", "web")
PORT = ServicePort("http", Protocol.TCP, 80, 8080, node_port=30080)
WEB = Service(KEY, ports=(PORT,), cluster_ips=(ip_address("10.96.0.10"),))
CLUSTER, LOCAL = TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL

# ready, serving, terminating: the conditions of an EndpointSlice
READY = (True, True, False)
UNREADY = (False, False, False)
GOING = (False, True, True)
GONE = (False, False, True)


@dataclass(frozen=True)
class Row:
    """chosen are numbers of endpoints, counted from 1."""

    name: str
    endpoints: tuple[Endpoint, ...]
    cluster: tuple[int, ...]
    local: tuple[int, ...]
    zone: str = "a"


def here(conditions: tuple[bool, bool, bool] = READY, zones: str = "") -> Endpoint:
    return _endpoint("node1", conditions, zones)


def away(conditions: tuple[bool, bool, bool] = READY, zones: str = "") -> Endpoint:
    return _endpoint("node2", conditions, zones)


def _endpoint(node: str, conditions: tuple[bool, bool, bool], zones: str) -> Endpoint:
    ready, serving, terminating = conditions
    return Endpoint(
        ip_address("10.0.0.0"), ready, serving, terminating, node=node, hint_zones=frozenset(zones)
    )


def choice(row: Row, service: Service = WEB) -> PortPlan:
    """Plan a Service with the row's endpoints, numbered by their last octet."""
    endpoints = tuple(
        structs.replace(endpoint, address=ip_address(f"10.0.0.{number}"))
        for number, endpoint in enumerate(row.endpoints, 1)
    )
    piece = EndpointSlice(
        ObjectKey("default", "web-a"), KEY, (EndpointPort("http", Protocol.TCP, 8080),), endpoints
    )
    topology = Topology("node1", zone=row.zone, node_port_addresses=(ip_address("192.0.2.1"),))
    (port,) = plan_service(service, [piece], topology).ports
    return port


def offered(port: PortPlan) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return who is offered under Cluster and under Local."""
    cluster, local = (
        [int(str(b.address).rpartition(".")[2]) for b in set_] for set_ in (port.cluster, port.local)
    )
    return tuple(cluster), tuple(local)


TOPOLOGY = [
    Row("every-one-hinted-and-some-for-this-zone",
        (away(zones="a"), away(zones="b"), away(zones="c"), away(zones="a")), (1, 4), ()),
    Row("hints-do-not-narrow-local",
        (here(zones="a"), here(zones="b"), away(zones="c"), away(zones="a")), (1, 4), (1, 2)),
    Row("local-and-close-overlap-in-part",
        (here(zones="a"), here(zones="b"), away(zones="a"), away(zones="b")), (1, 3), (1, 2)),
    Row("node-without-a-zone", (away(zones="a"), away(zones="b")), (1, 2), (), zone=""),
    Row("no-endpoint-for-this-zone", (away(zones="a"),), (1,), (), zone="b"),
    Row("an-unready-one-is-not-counted",
        (away(zones="a"), away(zones="b"), away(zones="c"), away(UNREADY, zones="a")), (1,), ()),
    Row("only-unready-ones-in-this-zone",
        (away(UNREADY, zones="a"), away(zones="b"), away(zones="c"), away(UNREADY, zones="a")), (2, 3), ()),
    Row("one-without-a-hint",
        (away(zones="a"), away(zones="b"), away(), away(zones="a")), (1, 2, 3, 4), ()),
    Row("one-hint-for-several-zones",
        (away(zones="abc"), away(zones="bc"), away(zones="bd"), away(zones="c")), (1, 2, 4), (), zone="c"),
]  # fmt: skip

POLICIES = [
    Row("no-endpoint", (), (), ()),
    Row("ready-elsewhere", (away(), away()), (1, 2), ()),
    Row("ready-here", (here(), here()), (1, 2), (1, 2)),
    Row("ready-here-and-elsewhere", (here(), away()), (1, 2), (1,)),
    Row("none-ready", (here(UNREADY), away(UNREADY)), (), ()),
    Row("some-ready", (here(UNREADY), here()), (2,), (2,)),
]

TERMINATING = [
    Row("ready-ones-first",
        (here(), here(), here(GOING), here(GONE), away()), (1, 2, 5), (1, 2)),
    Row("here-only-terminating-elsewhere-ready",
        (here(GOING), here(GOING), here(GONE), away()), (4,), (1, 2)),
    Row("here-not-ready-and-terminating-elsewhere-both",
        (away(), here(UNREADY), here(GOING), away(GOING)), (1,), (3,)),
    Row("all-terminating", (here(GOING), here(GOING), away(GONE), away(GOING)), (1, 2, 4), (1, 2)),
    Row("terminating-elsewhere-only", (away(GOING),), (1,), ()),
    Row("none-serving", (here(GONE), away(GONE)), (), ()),
]  # fmt: skip


def name_of(row: Row) -> str:
    return row.name


@pytest.mark.parametrize("row", TOPOLOGY, ids=name_of)
def test_topology_narrows_cluster_alone(row: Row) -> None:
    assert offered(choice(row)) == (row.cluster, row.local)


@pytest.mark.parametrize("row", POLICIES, ids=name_of)
def test_readiness_under_both_policies(row: Row) -> None:
    assert offered(choice(row)) == (row.cluster, row.local)


@pytest.mark.parametrize("row", TERMINATING, ids=name_of)
def test_terminating_under_both_policies(row: Row) -> None:
    assert offered(choice(row)) == (row.cluster, row.local)


@pytest.mark.parametrize("internal", [CLUSTER, LOCAL])
@pytest.mark.parametrize("external", [CLUSTER, LOCAL])
def test_internal_policy_local_and_external_policy_local_do_not_touch_the_sets(
    internal: TrafficPolicy, external: TrafficPolicy
) -> None:
    """They are the same whatever the policies; each VIP says which of them is meant."""
    service = replace(WEB, type=ServiceType.NODE_PORT, internal_policy=internal, external_policy=external)
    port = choice(TERMINATING[2], service)
    assert offered(port) == (TERMINATING[2].cluster, TERMINATING[2].local)
    assert {vip.kind: (vip.inside, vip.outside) for vip in port.vips} == {
        VipKind.CLUSTER_IP: (internal, internal),
        VipKind.NODE_PORT: (CLUSTER, external),
    }


def test_external_policy_local_means_nothing_without_an_external_address() -> None:
    port = choice(POLICIES[3], replace(WEB, external_policy=LOCAL))
    assert {(vip.inside, vip.outside) for vip in port.vips} == {(CLUSTER, CLUSTER)}
