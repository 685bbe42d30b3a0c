# SPDX-License-Identifier: Apache-2.0
"""Selectors, readiness, named ports and hand-made endpoints to EndpointSlices."""

from __future__ import annotations

import dataclasses
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.manifests.endpoints import endpoint_slices
from lb.manifests.objects import Endpoints, HandAddress, Subset
from lb.model import (
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectKey,
    Pod,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficDistribution,
)

WEB = ObjectKey("default", "web")
VIP4 = ip_address("10.96.0.10")
VIP6 = ip_address("fd00:96::10")
HTTP = ServicePort("http", Protocol.TCP, 80, "http")
NUMBER = ServicePort("http", Protocol.TCP, 80, 8080)

SERVICE = Service(WEB, ports=(NUMBER,), cluster_ips=(VIP4,), selector={"app": "web"})
READY = Pod(
    ObjectKey("default", "web-1"),
    labels={"app": "web", "extra": "1"},
    node="node1",
    addresses=(ip_address("10.0.1.1"), ip_address("fd00:1::1")),
    container_ports=(ContainerPort("http", Protocol.TCP, 8080),),
    ready=True,
)
SECOND = dataclasses.replace(
    READY, key=ObjectKey("default", "web-2"), node="node2", addresses=(ip_address("10.0.2.1"),)
)


def of(service: Service, *pods: Pod, zones: dict[str, str] | None = None) -> list[EndpointSlice]:
    return endpoint_slices([service], pods, [], [], zones or {})


def only(service: Service, *pods: Pod) -> EndpointSlice:
    (found,) = of(service, *pods)
    return found


def change(service: Service, **changes: object) -> Service:
    return dataclasses.replace(service, **changes)  # type: ignore[arg-type]


def pod(**changes: object) -> Pod:
    return dataclasses.replace(READY, **changes)  # type: ignore[arg-type]


def test_a_pod_becomes_an_endpoint_with_its_node_and_zone() -> None:
    (found,) = of(SERVICE, READY, zones={"node1": "z1"})
    assert found == EndpointSlice(
        key=found.key,
        service=WEB,
        ports=(EndpointPort("http", Protocol.TCP, 8080),),
        endpoints=(
            Endpoint(
                ip_address("10.0.1.1"),
                ready=True,
                serving=True,
                node="node1",
                zone="z1",
                target="default/web-1",
            ),
        ),
    )
    assert found.key.namespace == "default"
    assert found.key.name.startswith("web-ipv4-")


SELECTORS = [
    ({"app": "web"}, True),
    ({"app": "web", "extra": "1"}, True),
    ({"app": "web", "extra": "2"}, False),
    ({"app": "web", "missing": "1"}, False),
    ({"other": "web"}, False),
    ({}, False),
    (None, False),
]


@pytest.mark.parametrize(("selector", "matches"), SELECTORS)
def test_a_selector_wants_all_its_labels(selector: dict[str, str] | None, *, matches: bool) -> None:
    assert bool(of(change(SERVICE, selector=selector), READY)) is matches


def test_a_selector_stays_within_its_namespace() -> None:
    assert of(SERVICE, pod(key=ObjectKey("other", "web-1"))) == []


# Rows: the pod, publishNotReadyAddresses, then (ready, serving, terminating), or None for no endpoint.
READINESS = [
    ("ready", {}, False, (True, True, False)),
    ("not ready", {"ready": False}, False, (False, False, False)),
    ("terminating and ready", {"terminating": True}, False, (False, True, True)),
    ("terminating, not ready", {"terminating": True, "ready": False}, False, (False, False, True)),
    ("finished", {"finished": True}, False, None),
    ("no address yet", {"addresses": ()}, False, None),
    ("not ready, published", {"ready": False}, True, (True, False, False)),
    ("terminating, published", {"terminating": True, "ready": False}, True, (True, False, True)),
    ("finished, published", {"finished": True}, True, None),
    ("no node yet", {"node": ""}, False, (True, True, False)),
]


@pytest.mark.parametrize(
    ("changes", "publish", "expected"), [row[1:] for row in READINESS], ids=[row[0] for row in READINESS]
)
def test_readiness(
    changes: dict[str, object], publish: bool, expected: tuple[bool, bool, bool] | None
) -> None:
    found = of(change(SERVICE, publish_not_ready=publish), pod(**changes))
    conditions = [(each.ready, each.serving, each.terminating) for one in found for each in one.endpoints]
    assert conditions == ([] if expected is None else [expected])


def test_pods_share_a_slice_in_the_order_of_their_addresses() -> None:
    found = only(SERVICE, SECOND, READY)
    assert [each.target for each in found.endpoints] == ["default/web-1", "default/web-2"]
    assert found == only(SERVICE, READY, SECOND)


def test_a_named_port_may_be_another_number_in_each_pod() -> None:
    service = change(SERVICE, ports=(HTTP,))
    other = dataclasses.replace(SECOND, container_ports=(ContainerPort("http", Protocol.TCP, 9090),))
    found = of(service, READY, other)
    assert {each.ports[0].port: [end.target for end in each.endpoints] for each in found} == {
        8080: ["default/web-1"],
        9090: ["default/web-2"],
    }
    assert len({each.key for each in found}) == 2


def test_a_pod_without_the_named_port_is_no_endpoint_of_it() -> None:
    service = change(SERVICE, ports=(HTTP, ServicePort("dns", Protocol.UDP, 53, 53)))
    unnamed = dataclasses.replace(SECOND, container_ports=())
    found = of(service, READY, unnamed)
    assert {tuple(port.name for port in each.ports): each.endpoints[0].target for each in found} == {
        ("http", "dns"): "default/web-1",
        ("dns",): "default/web-2",
    }
    assert of(change(SERVICE, ports=(HTTP,)), unnamed) == []


def test_a_named_port_is_of_its_protocol_and_the_first_counts() -> None:
    service = change(SERVICE, ports=(HTTP,))
    ports = (
        ContainerPort("http", Protocol.UDP, 1),
        ContainerPort("http", Protocol.TCP, 2),
        ContainerPort("http", Protocol.TCP, 3),
    )
    assert only(service, pod(container_ports=ports)).ports == (EndpointPort("http", Protocol.TCP, 2),)


def test_families_follow_the_cluster_ips() -> None:
    def versions(service: Service) -> list[int]:
        return sorted(each.endpoints[0].address.version for each in of(service, READY))

    assert versions(SERVICE) == [4]
    assert versions(change(SERVICE, cluster_ips=(VIP6,))) == [6]
    assert versions(change(SERVICE, cluster_ips=(VIP4, VIP6))) == [4, 6]
    assert versions(change(SERVICE, cluster_ips=(), headless=True)) == [4, 6]
    both = of(change(SERVICE, cluster_ips=(VIP4, VIP6)), READY, SECOND)
    assert [len(each.endpoints) for each in both] == [2, 1]


def test_a_headless_service_without_ports_has_endpoints() -> None:
    found = of(change(SERVICE, cluster_ips=(), headless=True, ports=()), SECOND)
    assert [(each.ports, each.endpoints[0].target) for each in found] == [((), "default/web-2")]


def test_an_external_name_has_no_endpoints() -> None:
    assert of(change(SERVICE, type=ServiceType.EXTERNAL_NAME, cluster_ips=()), READY) == []


def test_a_slice_keeps_its_name_while_pods_come_and_go() -> None:
    assert only(SERVICE, READY).key == only(SERVICE, SECOND).key == only(SERVICE, READY, SECOND).key


HAND = Endpoints(
    WEB,
    (
        Subset(
            (
                HandAddress(ip_address("198.51.100.2"), ready=True),
                HandAddress(ip_address("198.51.100.1"), ready=True, node="node1", target="default/p"),
                HandAddress(ip_address("198.51.100.3"), ready=False),
                HandAddress(ip_address("2001:db8::1"), ready=True),
            ),
            (EndpointPort("http", Protocol.TCP, 8080),),
        ),
        Subset(
            (HandAddress(ip_address("198.51.100.4"), ready=True),), (EndpointPort("http", Protocol.TCP, 81),)
        ),
        Subset(
            (HandAddress(ip_address("198.51.100.5"), ready=True),),
            (EndpointPort("http", Protocol.TCP, 8080),),
        ),
    ),
)


def test_endpoints_are_mirrored_by_family_and_ports() -> None:
    found = endpoint_slices([change(SERVICE, selector=None)], [], [], [HAND], {})
    assert all(each.service == WEB for each in found)
    assert len({each.key for each in found}) == len(found) == 3
    by_port = {(each.ports[0].port, each.endpoints[0].address.version): each.endpoints for each in found}
    assert by_port == {
        (8080, 4): (
            Endpoint(ip_address("198.51.100.1"), node="node1", target="default/p"),
            Endpoint(ip_address("198.51.100.2")),
            Endpoint(ip_address("198.51.100.3"), ready=False, serving=False),
            Endpoint(ip_address("198.51.100.5")),
        ),
        (8080, 6): (Endpoint(ip_address("2001:db8::1")),),
        (81, 4): (Endpoint(ip_address("198.51.100.4")),),
    }


def test_endpoints_are_mirrored_only_beside_a_service_without_selector() -> None:
    assert endpoint_slices([], [], [], [HAND], {}) == []
    assert endpoint_slices([SERVICE], [], [], [HAND], {}) == []
    assert len(endpoint_slices([change(SERVICE, selector={})], [], [], [HAND], {})) == 3
    unmarked = dataclasses.replace(HAND, mirrored=False)
    assert endpoint_slices([change(SERVICE, selector=None)], [], [], [unmarked], {}) == []


def test_hand_made_slices_pass_through() -> None:
    custom = EndpointSlice(
        ObjectKey("default", "mine"), WEB, endpoints=(Endpoint(ip_address("198.51.100.1")),)
    )
    assert endpoint_slices([], [], [custom], [], {}) == [custom]
    found = endpoint_slices([SERVICE], [READY], [custom], [], {})
    assert found[0] is custom
    assert len(found) == 2


LABELS = st.dictionaries(st.sampled_from("abc"), st.sampled_from("12"), max_size=3)


@given(LABELS, st.lists(LABELS, max_size=6))
def test_selection_is_what_its_definition_says(
    selector: dict[str, str], pod_labels: list[dict[str, str]]
) -> None:
    pods = [
        pod(key=ObjectKey("default", f"p{i}"), labels=labels, addresses=(ip_address(f"10.0.0.{i + 1}"),))
        for i, labels in enumerate(pod_labels)
    ]
    expected = {
        str(each.key)
        for each in pods
        if selector and all(each.labels.get(name) == value for name, value in selector.items())
    }
    found = of(change(SERVICE, selector=selector), *pods)
    assert {end.target for each in found for end in each.endpoints} == expected


@pytest.mark.parametrize(
    ("distribution", "zones", "nodes"),
    [
        (TrafficDistribution.NONE, frozenset(), frozenset()),
        (TrafficDistribution.PREFER_CLOSE, frozenset("a"), frozenset()),
        (TrafficDistribution.PREFER_SAME_ZONE, frozenset("a"), frozenset()),
        (TrafficDistribution.PREFER_SAME_NODE, frozenset("a"), frozenset({"node1"})),
    ],
)
def test_a_traffic_distribution_gives_ready_endpoints_hints(
    distribution: TrafficDistribution, zones: frozenset[str], nodes: frozenset[str]
) -> None:
    service = change(SERVICE, distribution=distribution)
    going = dataclasses.replace(SECOND, terminating=True)
    (found,) = of(service, READY, going, zones={"node1": "a", "node2": "b"})
    assert [(each.hint_zones, each.hint_nodes) for each in found.endpoints] == [
        (zones, nodes),
        (frozenset(), frozenset()),
    ]
    (found,) = of(service, READY)
    assert [each.hint_zones for each in found.endpoints] == [frozenset()]
