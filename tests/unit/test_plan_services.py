# SPDX-License-Identifier: Apache-2.0
"""plan_service against the rows of the Service contract that the plan decides."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
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
from lb.plan import concerned, plan_service
from lb.plan.types import Backend, BackendState, PortPlan, ServicePlan, Topology, VipKind

TCP, UDP = Protocol.TCP, Protocol.UDP
KEY = ObjectKey("default", "web")
CLUSTER_IP = ip_address("10.96.0.10")
CLUSTER_IP6 = ip_address("fd00::10")
NODE_ADDRESS = ip_address("192.0.2.1")
EXTERNAL = ip_address("203.0.113.7")
NODE_ADDRESS6 = ip_address("2001:db8::1")
TOPOLOGY = Topology(
    "node1",
    node_port_addresses=(NODE_ADDRESS, NODE_ADDRESS6),
    node_addresses=frozenset({NODE_ADDRESS, NODE_ADDRESS6}),
)
HTTP = ServicePort("http", TCP, 80, 8080, node_port=30080)
WEB = Service(KEY, ports=(HTTP,), cluster_ips=(CLUSTER_IP,))

READY_LOCAL = Endpoint(ip_address("10.0.1.1"), node="node1")
READY_REMOTE = Endpoint(ip_address("10.0.2.1"), node="node2")
UNREADY = Endpoint(ip_address("10.0.1.2"), ready=False, serving=False)
SERVING = Endpoint(ip_address("10.0.1.3"), ready=False, serving=True, terminating=True)
DYING = Endpoint(ip_address("10.0.1.4"), ready=False, serving=False, terminating=True)


def piece(
    *endpoints: Endpoint,
    ports: tuple[EndpointPort, ...] = (EndpointPort("http", TCP, 8080),),
    name: str = "a",
) -> EndpointSlice:
    return EndpointSlice(ObjectKey("default", f"web-{name}"), KEY, ports, endpoints)


def only(plan: ServicePlan) -> PortPlan:
    assert len(plan.ports) == 1
    return plan.ports[0]


def vips(port: PortPlan) -> list[tuple[str, VipKind]]:
    return [(f"{vip.key.address}:{vip.key.port}", vip.kind) for vip in port.vips if vip.key.port]


def addresses(plan: ServicePlan) -> list[tuple[int, str, VipKind]]:
    """Return the addresses as a whole, each with the index of the port that has it."""
    return [
        (index, str(vip.key), vip.kind)
        for index, port in enumerate(plan.ports)
        for vip in port.vips
        if not vip.key.port
    ]


def sockets(backends: tuple[Backend, ...]) -> list[str]:
    return [f"{b.address}:{b.port}" for b in backends]


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


def offers(port: PortPlan) -> tuple[list[str], list[str]]:
    """Return the addresses offered under Cluster and under Local."""
    return [str(b.address) for b in port.cluster], [str(b.address) for b in port.local]


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
