# SPDX-License-Identifier: Apache-2.0
"""plan_service against the rows of the Service contract that the plan decides."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from lb.model import (
    Endpoint,
    EndpointPort,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)
from lb.plan import concerned, plan_service
from lb.plan.types import Backend, BackendState, ServicePlan, Topology, VipKind
from tests.unit.plan_bench import (
    CLUSTER_IP,
    CLUSTER_IP6,
    DYING,
    EXTERNAL,
    HTTP,
    KEY,
    NODE_ADDRESS,
    NODE_ADDRESS6,
    READY_LOCAL,
    READY_REMOTE,
    SERVING,
    TCP,
    TOPOLOGY,
    UDP,
    UNREADY,
    WEB,
    addresses,
    only,
    piece,
    sockets,
    vips,
)


def test_cluster_ip() -> None:
    plan = plan_service(replace(WEB, created="2024"), [piece(READY_REMOTE, READY_LOCAL)], TOPOLOGY)
    port = only(plan)
    assert (plan.key, plan.created) == (KEY, "2024")
    assert (port.port_name, port.protocol, port.version, port.affinity_seconds) == ("http", TCP, 4, 0)
    assert vips(port) == [("10.96.0.10:80", VipKind.CLUSTER_IP)]
    local = Backend(READY_LOCAL.address, 8080, "node1", local=True)
    remote = Backend(READY_REMOTE.address, 8080, "node2", local=False)
    assert port.backends == port.cluster == (local, remote)
    assert port.local == (local,)


def test_multi_port_same_number_for_tcp_and_udp() -> None:
    dns = replace(WEB, ports=(ServicePort("dns", UDP, 53, 5353), ServicePort("dns-tcp", TCP, 53, 5300)))
    ports = (EndpointPort("dns", UDP, 5353), EndpointPort("dns-tcp", TCP, 5300))
    plan = plan_service(dns, [piece(READY_LOCAL, ports=ports)], TOPOLOGY)
    assert [(p.protocol, vips(p), sockets(p.cluster)) for p in plan.ports] == [
        (UDP, [("10.96.0.10:53", VipKind.CLUSTER_IP)], ["10.0.1.1:5353"]),
        (TCP, [("10.96.0.10:53", VipKind.CLUSTER_IP)], ["10.0.1.1:5300"]),
    ]


def test_a_port_of_the_same_name_but_another_protocol_is_another_port() -> None:
    assert (
        only(
            plan_service(WEB, [piece(READY_LOCAL, ports=(EndpointPort("http", UDP, 1),))], TOPOLOGY)
        ).backends
        == ()
    )


def test_named_target_port_differs_between_endpoints() -> None:
    other = piece(READY_REMOTE, ports=(EndpointPort("http", TCP, 9090),), name="b")
    assert sockets(only(plan_service(WEB, [piece(READY_LOCAL), other], TOPOLOGY)).cluster) == [
        "10.0.1.1:8080",
        "10.0.2.1:9090",
    ]


@pytest.mark.parametrize("kind", [ServiceType.NODE_PORT, ServiceType.LOAD_BALANCER])
def test_node_port(kind: ServiceType) -> None:
    assert vips(only(plan_service(replace(WEB, type=kind), [], TOPOLOGY))) == [
        ("10.96.0.10:80", VipKind.CLUSTER_IP),
        ("192.0.2.1:30080", VipKind.NODE_PORT),
    ]


def test_node_port_only_when_there_is_one() -> None:
    without = replace(WEB, type=ServiceType.LOAD_BALANCER, ports=(replace(HTTP, node_port=0),))
    assert vips(only(plan_service(without, [], TOPOLOGY))) == [("10.96.0.10:80", VipKind.CLUSTER_IP)]
    assert vips(only(plan_service(WEB, [], TOPOLOGY))) == [("10.96.0.10:80", VipKind.CLUSTER_IP)]


def test_load_balancer_and_external_ips() -> None:
    service = replace(
        WEB,
        load_balancer_ips=(ip_address("198.51.100.1"), EXTERNAL),
        external_ips=(EXTERNAL, ip_address("203.0.113.8")),
    )
    assert vips(only(plan_service(service, [], TOPOLOGY))) == [
        ("10.96.0.10:80", VipKind.CLUSTER_IP),
        ("198.51.100.1:80", VipKind.LOAD_BALANCER),
        ("203.0.113.7:80", VipKind.LOAD_BALANCER),
        ("203.0.113.8:80", VipKind.EXTERNAL_IP),
    ]


def test_two_ports_of_a_service_never_share_a_vip() -> None:
    """externalIP of the node, with a port number that is another port's node port."""
    service = replace(
        WEB,
        type=ServiceType.NODE_PORT,
        external_ips=(NODE_ADDRESS,),
        ports=(HTTP, ServicePort("alt", TCP, 30080, 8081, node_port=30081)),
    )
    plan = plan_service(service, [], TOPOLOGY)
    keys = [vip.key for port in plan.ports for vip in port.vips]
    assert len(keys) == len(set(keys))
    assert ("192.0.2.1:30080", VipKind.EXTERNAL_IP) in vips(plan.ports[1])


@pytest.mark.parametrize(
    "service",
    [
        replace(WEB, headless=True, cluster_ips=()),
        Service(KEY, type=ServiceType.EXTERNAL_NAME, external_name="example.org", ports=(HTTP,)),
        replace(WEB, proxied=False),
        replace(WEB, cluster_ips=(), external_ips=(EXTERNAL,)),
        replace(WEB, ports=()),
    ],
    ids=["headless", "external-name", "skip-labels", "no-cluster-ip", "no-port"],
)
def test_nothing_of_it_belongs_in_the_maps(service: Service) -> None:
    assert plan_service(service, [piece(READY_LOCAL)], TOPOLOGY) == ServicePlan(KEY, "", ())


def test_selectorless_endpoint_without_a_node_is_not_local() -> None:
    plan = plan_service(WEB, [piece(Endpoint(ip_address("192.0.2.50")))], Topology(""))
    assert only(plan).cluster == (Backend(ip_address("192.0.2.50"), 8080, "", local=False),)


def test_readiness() -> None:
    port = only(plan_service(WEB, [piece(READY_LOCAL, UNREADY)], TOPOLOGY))
    assert sockets(port.backends) == sockets(port.cluster) == ["10.0.1.1:8080"]


def test_no_endpoint_leaves_a_vip_to_reject_with() -> None:
    port = only(plan_service(WEB, [piece(UNREADY)], TOPOLOGY))
    assert vips(port) == [("10.96.0.10:80", VipKind.CLUSTER_IP)]
    assert port.backends == port.cluster == port.local == ()


def test_terminating_keeps_its_connections_only() -> None:
    port = only(plan_service(WEB, [piece(SERVING, DYING, READY_LOCAL)], TOPOLOGY))
    assert sockets(port.cluster) == ["10.0.1.1:8080"]
    assert [(str(b.address), b.state) for b in port.backends] == [
        ("10.0.1.1", BackendState.ACTIVE),
        ("10.0.1.3", BackendState.TERMINATING),
        ("10.0.1.4", BackendState.TERMINATING),
    ]


def test_terminating_carries_new_connections_when_no_endpoint_is_ready() -> None:
    port = only(plan_service(WEB, [piece(SERVING, DYING, UNREADY)], TOPOLOGY))
    assert sockets(port.cluster) == ["10.0.1.3:8080"]
    assert port.cluster[0].state is BackendState.TERMINATING
    assert sockets(port.backends) == ["10.0.1.3:8080", "10.0.1.4:8080"]


def test_source_ranges_are_those_of_the_family_and_need_a_load_balancer_address() -> None:
    ranges = (ip_network("203.0.113.0/24"), ip_network("2001:db8::/32"), ip_network("10.0.0.0/8"))
    service = replace(
        WEB,
        type=ServiceType.LOAD_BALANCER,
        cluster_ips=(CLUSTER_IP, CLUSTER_IP6),
        load_balancer_ips=(EXTERNAL, ip_address("2001:db8::7")),
        source_ranges=ranges,
    )
    four, six = plan_service(service, [], TOPOLOGY).ports
    assert (four.version, four.source_ranges) == (4, (ranges[2], ranges[0]))
    assert (six.version, six.source_ranges) == (6, (ranges[1],))
    waiting = replace(service, load_balancer_ips=())
    assert [port.source_ranges for port in plan_service(waiting, [], TOPOLOGY).ports] == [(), ()]


@pytest.mark.parametrize("worse", [UNREADY, SERVING, DYING])
@pytest.mark.parametrize("flip", [False, True])
def test_an_endpoint_in_two_slices_counts_once_as_the_readier(worse: Endpoint, flip: bool) -> None:
    slices = [piece(READY_LOCAL), piece(structs.replace(worse, address=READY_LOCAL.address), name="b")]
    port = only(plan_service(WEB, slices[::-1] if flip else slices, TOPOLOGY))
    assert port.backends == (Backend(READY_LOCAL.address, 8080, "node1", local=True),)


def test_ports_are_planned_as_each_would_be_alone() -> None:
    """Slices differ in which ports they have and in their numbers, and share an endpoint."""
    names = ("http", "metrics", "admin", "none")
    ports = tuple(ServicePort(name, TCP, 80 + at, 8080) for at, name in enumerate(names))
    slices = [
        piece(
            READY_LOCAL,
            UNREADY,
            SERVING,
            ports=(EndpointPort("http", TCP, 8080), EndpointPort("metrics", TCP, 9090)),
        ),
        piece(
            READY_REMOTE,
            DYING,
            SERVING,
            ports=(EndpointPort("http", TCP, 8080), EndpointPort("metrics", TCP, 9091)),
            name="b",
        ),
        piece(READY_REMOTE, ports=(EndpointPort("admin", TCP, 7), EndpointPort("http", UDP, 7)), name="c"),
    ]
    together = plan_service(replace(WEB, ports=ports), slices, TOPOLOGY).ports
    alone = [only(plan_service(replace(WEB, ports=(port,)), slices, TOPOLOGY)) for port in ports]
    assert [(one.backends, one.cluster, one.local) for one in together] == [
        (one.backends, one.cluster, one.local) for one in alone
    ]
    assert [sockets(one.cluster) for one in together] == [
        ["10.0.1.1:8080", "10.0.2.1:8080"],
        ["10.0.1.1:9090", "10.0.2.1:9091"],
        ["10.0.2.1:7"],
        [],
    ]


def test_affinity() -> None:
    assert only(plan_service(replace(WEB, affinity_seconds=10800), [], TOPOLOGY)).affinity_seconds == 10800


def test_each_family_has_its_own_plan() -> None:
    dual = replace(WEB, type=ServiceType.NODE_PORT, cluster_ips=(CLUSTER_IP6, CLUSTER_IP))
    six = Endpoint(ip_address("fd00::1:1"))
    plan = plan_service(dual, [piece(READY_LOCAL), piece(six, name="six")], TOPOLOGY)
    assert [(p.version, vips(p), sockets(p.cluster)) for p in plan.ports] == [
        (
            4,
            [("10.96.0.10:80", VipKind.CLUSTER_IP), ("192.0.2.1:30080", VipKind.NODE_PORT)],
            ["10.0.1.1:8080"],
        ),
        (
            6,
            [("2001:db8::1:30080", VipKind.NODE_PORT), ("fd00::10:80", VipKind.CLUSTER_IP)],
            ["fd00::1:1:8080"],
        ),
    ]


def test_dual_stack_names_and_policies_are_shared_and_source_ranges_are_not() -> None:
    ranges = (ip_network("10.0.0.0/8"), ip_network("2001:db8:1::/48"))
    balancers = (ip_address("198.51.100.1"), ip_address("2001:db8::a"))
    dual = replace(
        WEB,
        type=ServiceType.LOAD_BALANCER,
        cluster_ips=(CLUSTER_IP6, CLUSTER_IP),
        load_balancer_ips=balancers,
        source_ranges=ranges,
        external_policy=TrafficPolicy.LOCAL,
    )
    six = Endpoint(ip_address("fd00::1:1"), node="node1")
    four, sixth = plan_service(dual, [piece(READY_REMOTE), piece(six, name="six")], TOPOLOGY).ports
    assert (four.version, four.source_ranges, sockets(four.local)) == (4, ranges[:1], [])
    assert (sixth.version, sixth.source_ranges, sockets(sixth.local)) == (6, ranges[1:], ["fd00::1:1:8080"])
    assert (four.port_name, four.protocol) == (sixth.port_name, sixth.protocol)


def test_cluster_ip_serves_sctp_like_tcp() -> None:
    signalling = replace(WEB, ports=(ServicePort("s7", Protocol.SCTP, 2905, 2905),))
    ports = (EndpointPort("s7", Protocol.SCTP, 2906),)
    port = only(plan_service(signalling, [piece(READY_LOCAL, ports=ports)], TOPOLOGY))
    assert [str(vip.key) for vip in port.vips] == ["10.96.0.10", "10.96.0.10:2905/SCTP"]
    assert sockets(port.cluster) == ["10.0.1.1:2906"]


WHOLE = replace(
    WEB,
    type=ServiceType.LOAD_BALANCER,
    load_balancer_ips=(EXTERNAL, CLUSTER_IP),
    external_ips=(EXTERNAL, NODE_ADDRESS, ip_address("2001:db8::7")),
)


def test_ping_addresses_as_a_whole_are_those_of_the_service_that_are_not_the_nodes() -> None:
    plan = plan_service(WHOLE, [piece(READY_LOCAL)], TOPOLOGY)
    assert addresses(plan) == [
        (0, "10.96.0.10", VipKind.CLUSTER_IP),
        (0, "203.0.113.7", VipKind.LOAD_BALANCER),
    ]
    dual = replace(WHOLE, cluster_ips=(CLUSTER_IP, CLUSTER_IP6))
    assert addresses(plan_service(dual, [], TOPOLOGY)) == [
        (0, "10.96.0.10", VipKind.CLUSTER_IP),
        (0, "203.0.113.7", VipKind.LOAD_BALANCER),
        (1, "2001:db8::7", VipKind.EXTERNAL_IP),
        (1, "fd00::10", VipKind.CLUSTER_IP),
    ]


def test_ping_addresses_as_a_whole_have_the_policies_of_their_kind() -> None:
    local = replace(WHOLE, internal_policy=TrafficPolicy.LOCAL)
    found = {str(vip.key): (vip.inside, vip.outside) for vip in only(plan_service(local, [], TOPOLOGY)).vips}
    assert found["10.96.0.10"] == (TrafficPolicy.LOCAL, TrafficPolicy.LOCAL)
    assert found["203.0.113.7"] == (TrafficPolicy.CLUSTER, TrafficPolicy.CLUSTER)


@pytest.mark.parametrize(
    ("endpoints", "chosen"),
    [
        ({}, 0),
        ({"a": READY_REMOTE}, 0),
        ({"b": READY_REMOTE}, 1),
        ({"a": READY_REMOTE, "b": READY_LOCAL}, 1),
        ({"a": READY_REMOTE, "b": READY_REMOTE, "c": READY_LOCAL}, 2),
        ({"a": READY_LOCAL, "c": READY_LOCAL}, 0),
    ],
)
def test_ping_addresses_as_a_whole_are_with_a_port_that_offers_most(
    endpoints: dict[str, Endpoint], chosen: int
) -> None:
    service = replace(WEB, ports=tuple(ServicePort(name, TCP, at, at) for at, name in enumerate("abc", 1)))
    slices = [
        piece(endpoint, ports=(EndpointPort(name, TCP, 8080),), name=name)
        for name, endpoint in endpoints.items()
    ]
    assert addresses(plan_service(service, slices, TOPOLOGY)) == [(chosen, "10.96.0.10", VipKind.CLUSTER_IP)]


@pytest.mark.parametrize(
    ("after", "every", "claimants"),
    [
        (TOPOLOGY, False, False),
        (replace(TOPOLOGY, zone="east"), True, True),
        (replace(TOPOLOGY, node_port_addresses=()), True, True),
        (replace(TOPOLOGY, node_addresses=TOPOLOGY.node_addresses | {EXTERNAL}), False, True),
        (replace(TOPOLOGY, node_addresses=frozenset({NODE_ADDRESS6})), False, True),
        (replace(TOPOLOGY, node_addresses=frozenset({NODE_ADDRESS})), False, False),
    ],
)
def test_whom_a_move_of_the_node_concerns(after: Topology, every: bool, claimants: bool) -> None:
    assert concerned(WEB, TOPOLOGY, after) == every
    assert concerned(WHOLE, TOPOLOGY, after) == claimants
    assert concerned(WEB, None, after)


def test_a_family_without_cluster_ip_is_not_served() -> None:
    service = replace(WEB, type=ServiceType.NODE_PORT, external_ips=(ip_address("2001:db8::7"),))
    assert {vip.key.address.version for vip in only(plan_service(service, [], TOPOLOGY)).vips} == {4}


endpoints = st.builds(
    lambda last, ready, serving, terminating, node: Endpoint(
        ip_address(f"10.0.0.{last}"), ready=ready, serving=serving, terminating=terminating, node=node
    ),
    st.integers(1, 6),
    st.booleans(),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "node1", "node2"]),
)


@given(st.lists(st.lists(endpoints, max_size=5), max_size=3))
def test_sets_are_sorted_subsets_without_duplicates(groups: list[list[Endpoint]]) -> None:
    slices = [piece(*group, name=str(index)) for index, group in enumerate(groups)]
    port = only(plan_service(WEB, slices, TOPOLOGY))
    identities = [b.identity for b in port.backends]
    assert identities == sorted(set(identities))
    assert set(port.cluster) | set(port.local) <= set(port.backends)
    ready = {e.address for group in groups for e in group if e.ready}
    fallback = {e.address for group in groups for e in group if e.serving and e.terminating}
    assert {b.address for b in port.cluster} == (ready or fallback)
    assert list(port.cluster) == [b for b in port.backends if b in port.cluster]
