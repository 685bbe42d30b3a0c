# SPDX-License-Identifier: Apache-2.0
"""Cluster IPs and node ports of Services that name none: the rule, and what always holds."""

from __future__ import annotations

import dataclasses
import random
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.errors import ConfigError
from lb.manifests.allocate import address_bands, place, port_bands
from lb.manifests.complete import Pools, complete, ip_families
from lb.manifests.objects import ServiceRequest
from lb.model import ObjectKey, Origin, Protocol, Service, ServicePort, ServiceType, TrafficPolicy

POOLS = Pools.parse("10.96.0.0/16", "30000-32767")
DUAL = Pools.parse("10.96.0.0/16,fd00:96::/112", "30000-32767")


def request(name: str, **changes: object) -> ServiceRequest:
    """A ClusterIP Service in file f, line 3, with one port; changes go to the Service, or to the request."""
    service = Service(
        ObjectKey("default", name), ports=(ServicePort("", Protocol.TCP, 80, 80),), origin=Origin("f", 3)
    )
    own = {field.name for field in dataclasses.fields(ServiceRequest)}
    service_changes = {key: value for key, value in changes.items() if key not in own}
    request_changes = {key: value for key, value in changes.items() if key in own}
    result = ServiceRequest(dataclasses.replace(service, **service_changes))  # type: ignore[arg-type]
    return dataclasses.replace(result, **request_changes)  # type: ignore[arg-type]


def node_port(name: str, *ports: ServicePort, **changes: object) -> ServiceRequest:
    return request(name, type=ServiceType.NODE_PORT, ports=ports, wants_node_ports=True, **changes)


def done(*requests: ServiceRequest, pools: Pools = POOLS) -> dict[str, Service]:
    services, errors = complete(requests, pools)
    assert errors == []
    return {service.key.name: service for service in services}


def test_the_rule_by_example() -> None:
    # The numbers are part of the contract: every version and every node gives the same.
    found = done(request("kubia"), node_port("web", ServicePort("", Protocol.TCP, 80, 80)))
    assert found["kubia"].cluster_ips == (ip_address("10.96.59.88"),)
    assert found["web"].ports[0].node_port == 32306


def test_nothing_is_given_to_those_that_need_nothing() -> None:
    requests = [
        request("a", cluster_ips=(ip_address("10.200.0.1"),)),
        request("b", headless=True),
        request("c", type=ServiceType.EXTERNAL_NAME, external_name="x.example"),
    ]
    services, _ = complete(requests, POOLS)
    assert [service is each.service for service, each in zip(services, requests, strict=True)] == [True] * 3


def test_families() -> None:
    both = {4, 6}
    rows: list[tuple[dict[str, object], Pools, set[int]]] = [
        ({}, DUAL, {4}),
        ({"families": (6,)}, DUAL, {6}),
        ({"families": (6, 4)}, DUAL, both),
        ({"prefers_dual": True}, DUAL, both),
        ({"prefers_dual": True}, POOLS, {4}),
        ({"requires_dual": True, "families": (6,)}, DUAL, both),
        ({}, Pools.parse("fd00:96::/112,10.96.0.0/16", "1-9"), {6}),
        ({"requires_dual": True, "families": (4,), "cluster_ips": (ip_address("10.1.1.1"),)}, DUAL, both),
    ]
    for changes, pools, versions in rows:
        addresses = done(request("a", **changes), pools=pools)["a"].cluster_ips
        assert {address.version for address in addresses} == versions, changes
    ordered = done(request("a", families=(6, 4)), pools=DUAL)["a"].cluster_ips
    assert [address.version for address in ordered] == [6, 4]
    half = request("a", requires_dual=True, families=(4,), cluster_ips=(ip_address("10.1.1.1"),))
    assert done(half, pools=DUAL)["a"].cluster_ips[0] == ip_address("10.1.1.1")


def test_a_family_that_the_cluster_lacks() -> None:
    lacks = "service_cidr has no IPv6 network to give a cluster IP from"
    for changes, words in (
        ({"families": (6,)}, f"spec.ipFamilies: {lacks}"),
        ({"families": (4, 6), "requires_dual": True}, f"spec.ipFamilies: {lacks}"),
        ({"requires_dual": True}, f"spec.ipFamilyPolicy: is RequireDualStack, but {lacks}"),
    ):
        services, (error,) = complete([request("a", **changes), request("b")], POOLS)
        assert [service.key.name for service in services] == ["b"]
        assert str(error) == f"f:3: Service default/a: {words}"


def test_a_service_that_names_all_its_addresses_needs_no_network_of_theirs() -> None:
    addresses = (ip_address("10.1.1.1"), ip_address("fd00:9::1"))
    made = request("a", cluster_ips=addresses, families=(4, 6), requires_dual=True)
    assert done(made)["a"].cluster_ips == addresses


def test_the_families_of_endpoints() -> None:
    rows: list[tuple[dict[str, object], Pools, tuple[int, ...]]] = [
        ({}, DUAL, (4,)),
        ({"prefers_dual": True}, DUAL, (4, 6)),
        ({"families": (6,), "requires_dual": True}, DUAL, (6, 4)),
        ({"headless": True, "selector": {"a": "b"}}, DUAL, (4,)),
        ({"headless": True, "families": (6,), "selector": {"a": "b"}}, DUAL, (6,)),
        ({"headless": True, "requires_dual": True}, POOLS, (4, 6)),
        ({"type": ServiceType.EXTERNAL_NAME}, DUAL, ()),
    ]
    for changes, pools, versions in rows:
        assert ip_families(request("a", **changes), pools) == versions, changes


def test_a_full_network_is_an_error_for_those_that_came_too_late() -> None:
    pools = Pools.parse("10.0.0.0/29", "1-9")
    requests = [request(f"s{i}") for i in range(7)]
    services, errors = complete(requests, pools)
    assert len({service.cluster_ips for service in services}) == len(services) == 5
    assert [error.object for error in errors] == ["Service default/s5", "Service default/s6"]
    assert {error.field for error in errors} == {"spec.clusterIP"}


def test_full_node_ports() -> None:
    pools = Pools.parse("10.0.0.0/16", "100-100")
    port = ServicePort("", Protocol.TCP, 80, 80)
    services, (error,) = complete([node_port("a", port), node_port("b", port)], pools)
    assert [service.ports[0].node_port for service in services] == [100]
    assert (error.object, error.field) == ("Service default/b", "spec.ports[0].nodePort")
    local = request(
        "c", type=ServiceType.LOAD_BALANCER, external_policy=TrafficPolicy.LOCAL, wants_node_ports=False
    )
    _, (error,) = complete([node_port("a", port), local], pools)
    assert (error.object, error.field) == ("Service default/c", "spec.healthCheckNodePort")


def test_one_port_of_two_protocols_gets_one_number() -> None:
    ports = (ServicePort("u", Protocol.UDP, 53, 53), ServicePort("t", Protocol.TCP, 53, 53))
    numbers = [port.node_port for port in done(node_port("dns", *ports))["dns"].ports]
    assert numbers[0] == numbers[1]


def test_a_node_port_is_given_only_where_it_is_wanted() -> None:
    assert done(request("a"))["a"].ports[0].node_port == 0
    balancer = request("a", type=ServiceType.LOAD_BALANCER, wants_node_ports=False)
    assert done(balancer)["a"].ports[0].node_port == 0


def test_health_check_port() -> None:
    local = request("a", type=ServiceType.LOAD_BALANCER, external_policy=TrafficPolicy.LOCAL)
    assert done(local)["a"].health_check_node_port in POOLS.node_ports
    assert done(request("a", type=ServiceType.LOAD_BALANCER))["a"].health_check_node_port == 0
    taken = dataclasses.replace(local.service, health_check_node_port=31000)
    assert done(ServiceRequest(taken))["a"].health_check_node_port == 31000


def test_bands() -> None:
    base = int(ip_address("10.96.0.0"))
    assert address_bands(ip_network("10.96.0.0/16")) == [
        range(base + 256, base + 65535),
        range(base + 2, base + 256),
    ]
    assert address_bands(ip_network("10.96.0.0/28")) == [range(base + 2, base + 15)]
    assert address_bands(ip_network("10.96.0.0/31")) == []
    six = int(ip_address("fd00::"))
    assert address_bands(ip_network("fd00::/64"))[0] == range(six + 256, six + 2**64)
    assert port_bands(range(30000, 32768)) == [range(30086, 32768), range(30000, 30086)]
    assert port_bands(range(5, 6)) == [range(5, 6)]


@pytest.mark.parametrize(
    ("cidr", "ports", "words"),
    [
        ("10.96.0.1/16", "1-2", "host bits"),
        ("x", "1-2", "service_cidr 'x'"),
        ("10.0.0.0/8,10.96.0.0/16", "1-2", "one network of each family"),
        ("10.0.0.0/31", "1-2", "too small"),
        ("10.0.0.0/16", "2-1", "node_port_range '2-1'"),
        ("10.0.0.0/16", "30000", "FIRST-LAST"),
        ("10.0.0.0/16", "0-5", "FIRST-LAST"),
        ("10.0.0.0/16", "1-65536", "FIRST-LAST"),
    ],
)
def test_wrong_settings(cidr: str, ports: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        Pools.parse(cidr, ports)


NAMES = st.sets(st.text("abcdef", min_size=1, max_size=4), max_size=30)
NUMBERS = st.sets(st.integers(0, 60), max_size=40)
BANDS = [range(20, 50), range(2, 20)]


@given(NAMES, NUMBERS, st.randoms(use_true_random=False))
def test_no_number_twice_none_taken_and_no_order(
    names: set[str], taken: set[int], rng: random.Random
) -> None:
    result = place(names, taken, BANDS)
    given_out = list(result.values())
    assert len(set(given_out)) == len(given_out)
    assert not taken & set(given_out)
    assert all(any(number in band for band in BANDS) for number in given_out)
    shuffled = list(names)
    rng.shuffle(shuffled)
    assert place(shuffled, list(taken), BANDS) == result


@given(NAMES, NUMBERS)
def test_all_are_served_while_there_is_room(names: set[str], taken: set[int]) -> None:
    room = sum(1 for band in BANDS for number in band if number not in taken)
    result = place(names, taken, BANDS)
    assert result.keys() == set(sorted(names)[:room])
    low = [number for number in result.values() if number in BANDS[1]]
    if low:
        assert all(number in taken or number in result.values() for number in BANDS[0])


def test_few_move_when_one_comes() -> None:
    names = [f"default/service-{i}" for i in range(2000)]
    bands = address_bands(ip_network("10.96.0.0/16"))
    before = place(names, (), bands)
    after = place([*names, "aaa/first-in-order"], (), bands)
    assert sum(1 for name in names if before[name] != after[name]) <= 1


REQUESTS = st.lists(
    st.tuples(
        st.text("abc", min_size=1, max_size=3),
        st.none() | st.integers(0, 63),
        st.none() | st.integers(30000, 30031),
        st.sampled_from(list(Protocol)),
    ),
    unique_by=lambda row: row[0],
    max_size=25,
)


@given(REQUESTS, st.randoms(use_true_random=False))
def test_completed_services(
    rows: list[tuple[str, int | None, int | None, Protocol]], rng: random.Random
) -> None:
    pools = Pools.parse("10.96.0.0/26", "30000-30031")
    base = int(ip_address("10.96.0.0"))
    requests = [
        node_port(
            name,
            ServicePort("", protocol, 80, 80, port or 0),
            cluster_ips=() if host is None else (ip_address(base + host),),
        )
        for name, host, port, protocol in rows
    ]
    services, errors = complete(requests, pools)
    assert errors == []
    by_name = {service.key.name: service for service in services}
    claimed = {base + host for _, host, _, _ in rows if host is not None}
    claimed_ports = {(protocol, port) for _, _, port, protocol in rows if port is not None}
    addresses: list[int] = []
    ports: list[tuple[Protocol, int]] = []
    for name, host, port, protocol in rows:
        (address,) = by_name[name].cluster_ips
        number = by_name[name].ports[0].node_port
        if host is not None:
            assert int(address) == base + host
        else:
            addresses.append(int(address))
        if port is not None:
            assert number == port
        else:
            ports.append((protocol, number))
    assert len(set(addresses)) == len(addresses)
    assert not claimed & set(addresses)
    assert len(set(ports)) == len(ports)
    assert not claimed_ports & set(ports)
    rng.shuffle(requests)
    again, _ = complete(requests, pools)
    assert {service.key.name: service for service in again} == by_name
