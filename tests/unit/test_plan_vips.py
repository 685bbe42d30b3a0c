# SPDX-License-Identifier: Apache-2.0
"""Which addresses a Service gets and keeps, by the fields that say so."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

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
from lb.plan.types import PortPlan, ServicePlan, Topology, Vip, VipKind
from tests.unit.plan_builders import RememberedClaims

TCP, UDP = Protocol.TCP, Protocol.UDP
PRIMARY, SECOND = ip_address("192.0.2.1"), ip_address("192.0.3.1")
CLUSTER_IP = ip_address("10.96.0.10")
EXTERNAL = ip_address("203.0.113.7")
BALANCED = ip_address("198.51.100.1")
HTTP = ServicePort("http", TCP, 80, 8080, node_port=30080)
WEB = Service(
    ObjectKey("default", "web"), ports=(HTTP,), cluster_ips=(CLUSTER_IP,), type=ServiceType.NODE_PORT
)
OTHER = replace(
    WEB,
    key=ObjectKey("default", "other"),
    cluster_ips=(ip_address("10.96.0.11"),),
    ports=(replace(HTTP, node_port=30081),),
)
OLD, NEW = "2024-01-01T00:00:00Z", "2024-02-01T00:00:00Z"


def plan(service: Service, *node_addresses: str) -> ServicePlan:
    addresses = tuple(map(ip_address, node_addresses)) or (PRIMARY,)
    return plan_service(service, [], Topology("node1", node_port_addresses=addresses))


def served(port: PortPlan) -> list[Vip]:
    """Return a port's own VIPs: what stands for an address as a whole has no port number."""
    return [vip for vip in port.vips if vip.key.port]


def shown(result: ServicePlan | None, kind: VipKind) -> list[str]:
    """Return the VIPs of a kind, as text."""
    assert result is not None
    return [str(vip.key) for port in result.ports for vip in served(port) if vip.kind is kind]


def settled(*services: Service) -> dict[str, ServicePlan | None]:
    """Return what each Service keeps, by its name, when all are there."""
    decision = RememberedClaims().update({service.key: plan(service) for service in services})
    return {key.name: kept for key, kept in decision.plans.items()}


@pytest.mark.parametrize(
    "addresses", [["192.0.2.1"], ["192.0.2.1", "192.0.3.1"], ["192.0.3.1"]], ids=["primary", "both", "second"]
)
def test_node_port_on_the_admitted_addresses_alone(addresses: list[str]) -> None:
    result = plan(WEB, *addresses)
    assert shown(result, VipKind.NODE_PORT) == [f"{address}:30080/TCP" for address in addresses]


def test_node_port_by_type() -> None:
    """A ClusterIP Service has none, though the object still names the number that it had before."""
    assert shown(plan(replace(WEB, type=ServiceType.CLUSTER_IP)), VipKind.NODE_PORT) == []
    assert shown(plan(replace(WEB, type=ServiceType.LOAD_BALANCER)), VipKind.NODE_PORT) != []


def test_external_ips_each_with_every_port() -> None:
    service = replace(
        WEB,
        type=ServiceType.CLUSTER_IP,
        external_ips=(EXTERNAL, ip_address("203.0.113.8")),
        ports=(HTTP, ServicePort("dns", UDP, 53, 53)),
    )
    assert shown(plan(service), VipKind.EXTERNAL_IP) == [
        "203.0.113.7:80/TCP",
        "203.0.113.8:80/TCP",
        "203.0.113.7:53/UDP",
        "203.0.113.8:53/UDP",
    ]


def test_external_ips_may_be_an_address_of_the_node() -> None:
    result = plan(replace(WEB, external_ips=(PRIMARY,)))
    assert shown(result, VipKind.EXTERNAL_IP) == ["192.0.2.1:80/TCP"]
    assert shown(result, VipKind.NODE_PORT) == ["192.0.2.1:30080/TCP"]


@pytest.mark.parametrize("affinity", [0, 100])
def test_external_ips_that_are_an_endpoint_of_the_node_lead_to_it_with_affinity(affinity: int) -> None:
    """Nodes that each keep to another one's endpoint would send a client round for ever."""
    service = replace(WEB, external_ips=(PRIMARY, EXTERNAL), affinity_seconds=affinity)
    endpoints = Endpoint(PRIMARY, node="node1"), Endpoint(EXTERNAL, node="node2")
    piece = EndpointSlice(ObjectKey("default", "web-a"), WEB.key, (EndpointPort("http", TCP, 80),), endpoints)
    (port,) = plan_service(service, [piece], Topology("node1")).ports
    assert {str(vip.key) for vip in served(port) if vip.outside is TrafficPolicy.LOCAL} == (
        {"192.0.2.1:80/TCP"} if affinity else set()
    )
    assert {vip.inside for vip in port.vips} == {TrafficPolicy.CLUSTER}


def test_load_balancer_addresses_need_no_node_port() -> None:
    """allocateLoadBalancerNodePorts: false leaves nodePort unset."""
    service = replace(
        WEB,
        type=ServiceType.LOAD_BALANCER,
        load_balancer_ips=(BALANCED,),
        ports=(replace(HTTP, node_port=0),),
    )
    assert shown(plan(service), VipKind.LOAD_BALANCER) == ["198.51.100.1:80/TCP"]
    assert shown(plan(service), VipKind.NODE_PORT) == []


def test_conflicts_one_external_ip_two_services() -> None:
    older, newer = (
        replace(service, external_ips=(EXTERNAL,), created=created)
        for service, created in ((OTHER, OLD), (WEB, NEW))
    )
    kept = settled(newer, older)
    assert shown(kept["other"], VipKind.EXTERNAL_IP) == ["203.0.113.7:80/TCP"]
    assert shown(kept["web"], VipKind.EXTERNAL_IP) == []
    assert shown(kept["web"], VipKind.CLUSTER_IP) == ["10.96.0.10:80/TCP"]


def test_conflicts_are_about_address_port_and_protocol_together() -> None:
    """Two Services share one address for two ports, or for one port over TCP and UDP."""
    udp = replace(OTHER, external_ips=(EXTERNAL,), ports=(replace(HTTP, protocol=UDP),))
    other_port = replace(OTHER, external_ips=(EXTERNAL,), ports=(replace(HTTP, port=81),))
    for other in (udp, other_port):
        kept = settled(replace(WEB, external_ips=(EXTERNAL,)), other)
        assert all(len(shown(each, VipKind.EXTERNAL_IP)) == 1 for each in kept.values())


def test_conflicts_across_fields() -> None:
    """A load-balancer address of one Service is another's external address."""
    balanced = replace(WEB, type=ServiceType.LOAD_BALANCER, load_balancer_ips=(EXTERNAL,), created=NEW)
    kept = settled(balanced, replace(OTHER, external_ips=(EXTERNAL,), created=OLD))
    assert shown(kept["other"], VipKind.EXTERNAL_IP) == ["203.0.113.7:80/TCP"]
    assert shown(kept["web"], VipKind.LOAD_BALANCER) == []


@pytest.mark.parametrize("type_", [ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER])
def test_external_name_and_back(type_: ServiceType) -> None:
    """A Service that becomes a name keeps nothing in the maps, whatever its other fields still say."""
    service = replace(WEB, type=type_, external_ips=(EXTERNAL,), load_balancer_ips=(BALANCED,))
    named = replace(service, type=ServiceType.EXTERNAL_NAME, external_name="db.example.org")
    claims = RememberedClaims()
    before = claims.update({WEB.key: plan(service)}).plans[WEB.key]
    during = claims.update({WEB.key: plan(named)}).plans[WEB.key]
    after = claims.update({WEB.key: plan(service)}).plans[WEB.key]
    assert during == ServicePlan(WEB.key, "", ())
    assert before == after
    assert shown(after, VipKind.CLUSTER_IP) == ["10.96.0.10:80/TCP"]


def test_headless_is_never_proxied_whatever_else_it_asks_for() -> None:
    service = replace(WEB, headless=True, cluster_ips=(), external_ips=(EXTERNAL,))
    assert plan(service).ports == ()


def test_skip_labels_leave_every_address_to_the_other_proxy() -> None:
    service = replace(
        WEB,
        type=ServiceType.LOAD_BALANCER,
        proxied=False,
        external_ips=(EXTERNAL,),
        load_balancer_ips=(BALANCED,),
    )
    assert plan(service).ports == ()


def test_multi_port_changes_leave_the_other_ports_as_they_were() -> None:
    """Ports may be added, removed and swapped for another protocol."""
    udp = ServicePort("udp", UDP, 80, 8080, node_port=30080)
    tcp_only, both, udp_only = (plan(replace(WEB, ports=ports)) for ports in ((HTTP,), (HTTP, udp), (udp,)))
    assert served(tcp_only.ports[0]) == served(both.ports[0])
    assert served(both.ports[1]) == served(udp_only.ports[0])
    assert shown(both, VipKind.NODE_PORT) == ["192.0.2.1:30080/TCP", "192.0.2.1:30080/UDP"]


def test_cluster_ip_of_two_services_with_one_port() -> None:
    kept = settled(WEB, OTHER)
    assert {name: shown(each, VipKind.CLUSTER_IP) for name, each in kept.items()} == {
        "other": ["10.96.0.11:80/TCP"],
        "web": ["10.96.0.10:80/TCP"],
    }
