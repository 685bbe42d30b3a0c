# SPDX-License-Identifier: Apache-2.0
"""API objects to the model: fields, defaults, and what is refused."""

from __future__ import annotations

import json
from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from lb.kube.convert import ENDPOINT_SLICES, NODES, SERVICES
from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficDistribution,
    TrafficPolicy,
)
from tests.kube.objects import BACKEND_A, NAMESPACE, Object, endpoint, endpoint_slice, node, service


def body(item: Object) -> bytes:
    return json.dumps(item).encode()


def read_service(**spec: Any) -> Service:
    read = SERVICES.read(body(service(**spec)))
    assert read.resource is not None, read.error
    return read.resource


def read_slice(item: Object) -> EndpointSlice:
    read = ENDPOINT_SLICES.read(body(item))
    assert read.resource is not None, read.error
    return read.resource


def test_every_field_of_a_service() -> None:
    item = service(
        type="LoadBalancer",
        clusterIPs=["10.96.0.10", "fd00:96::a"],
        externalIPs=["203.0.113.1"],
        selector={"app": "web"},
        ports=[
            {"name": "http", "port": 80, "targetPort": "web", "nodePort": 30080, "appProtocol": "http"},
            {"name": "dns", "port": 53, "protocol": "UDP", "targetPort": 5353},
            {"name": "sig", "port": 99, "protocol": "SCTP"},
        ],
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
        publishNotReadyAddresses=True,
        internalTrafficPolicy="Local",
        externalTrafficPolicy="Local",
        loadBalancerSourceRanges=["198.51.100.0/24", " 2001:db8::/32 "],
        healthCheckNodePort=30999,
        trafficDistribution="PreferSameZone",
        loadBalancerClass="of/others",
    )
    item["metadata"] |= {"creationTimestamp": "2020-01-15T10:20:58Z", "uid": "u-1", "resourceVersion": "7"}
    item["status"] = {
        "loadBalancer": {
            "ingress": [
                {"ip": "203.0.113.10"},
                {"ip": "203.0.113.11", "ipMode": "VIP"},
                {"ip": "203.0.113.12", "ipMode": "Proxy"},
                {"hostname": "lb.example.com"},
            ]
        }
    }
    read = SERVICES.read(body(item))
    assert (read.uid, read.version) == ("u-1", "7")
    assert read.resource == Service(
        key=ObjectKey(NAMESPACE, "web"),
        type=ServiceType.LOAD_BALANCER,
        ports=(
            ServicePort("http", Protocol.TCP, 80, "web", 30080),
            ServicePort("dns", Protocol.UDP, 53, 5353),
            ServicePort("sig", Protocol.SCTP, 99, 99),
        ),
        cluster_ips=(ip_address("10.96.0.10"), ip_address("fd00:96::a")),
        external_ips=(ip_address("203.0.113.1"),),
        load_balancer_ips=(ip_address("203.0.113.10"), ip_address("203.0.113.11")),
        selector={"app": "web"},
        affinity_seconds=60,
        publish_not_ready=True,
        internal_policy=TrafficPolicy.LOCAL,
        external_policy=TrafficPolicy.LOCAL,
        source_ranges=(ip_network("198.51.100.0/24"), ip_network("2001:db8::/32")),
        health_check_node_port=30999,
        distribution=TrafficDistribution.PREFER_SAME_ZONE,
        created="2020-01-15T10:20:58Z",
    )


def test_a_service_with_nothing_set_has_the_defaults() -> None:
    empty = {"metadata": {"name": "web", "namespace": NAMESPACE}, "spec": {"ports": None, "selector": None}}
    assert SERVICES.read(body(empty)).resource == Service(key=ObjectKey(NAMESPACE, "web"))


def test_headless_and_external_name_have_no_cluster_ip() -> None:
    headless = read_service(clusterIP="None", clusterIPs=["None"])
    assert (headless.headless, headless.cluster_ips) == (True, ())
    outside = read_service(type="ExternalName", externalName="db.example.com", clusterIP="", clusterIPs=None)
    assert (outside.external_name, outside.cluster_ips) == ("db.example.com", ())


def test_an_old_object_with_cluster_ip_only() -> None:
    assert read_service(clusterIPs=None).cluster_ips == (ip_address("10.96.0.10"),)


def test_affinity_without_a_timeout_is_three_hours() -> None:
    assert read_service(sessionAffinity="ClientIP").affinity_seconds == 10_800
    assert read_service(sessionAffinity="None").affinity_seconds == 0


def test_a_traffic_distribution_of_the_future_is_none() -> None:
    assert read_service(trafficDistribution="PreferTheMoon").distribution is TrafficDistribution.NONE


def test_what_kube_proxy_accepts_of_old_objects() -> None:
    web = read_service(
        externalIPs=["010.1.02.3", "::ffff:192.0.2.1"],
        loadBalancerSourceRanges=["10.1.2.3/8"],
    )
    assert web.external_ips == (ip_address("10.1.2.3"), ip_address("192.0.2.1"))
    assert web.source_ranges == (ip_network("10.0.0.0/8"),)


CONDITIONS: dict[str, tuple[Any, tuple[bool, bool, bool]]] = {
    "absent": (None, (True, True, False)),
    "empty": ({}, (True, True, False)),
    "null": ({"ready": None, "serving": None, "terminating": None}, (True, True, False)),
    "not ready": ({"ready": False}, (False, True, False)),
    "terminating": ({"ready": False, "serving": True, "terminating": True}, (False, True, True)),
    "gone": ({"ready": False, "serving": False, "terminating": True}, (False, False, True)),
}


@pytest.mark.parametrize("what", CONDITIONS)
def test_conditions_that_are(what: str) -> None:
    given, expected = CONDITIONS[what]
    (read,) = read_slice(endpoint_slice("web-1", endpoint(BACKEND_A, conditions=given))).endpoints
    assert (read.ready, read.serving, read.terminating) == expected


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2026-11-22T10:00:00Z", 1795341600.0),
        ("2026-11-22T10:00:00.250000000Z", 1795341600.25),
        ("2026-11-22T12:00:00+02:00", 1795341600.0),
        ("yesterday", 0.0),
        ("", 0.0),
    ],
)
def test_when_the_change_was_that_a_slice_follows(text: str, seconds: float) -> None:
    item = endpoint_slice("web-1")
    item["metadata"]["annotations"] = {"endpoints.kubernetes.io/last-change-trigger-time": text, "other": "x"}
    assert read_slice(item).triggered == seconds
    assert read_slice(endpoint_slice("web-1")).triggered == 0.0


def test_every_field_of_a_slice() -> None:
    item = endpoint_slice(
        "web-1",
        endpoint(
            BACKEND_A,
            zone="zone-a",
            hostname="web-0",
            targetRef={"kind": "Pod", "namespace": NAMESPACE, "name": "web-0", "uid": "u"},
            hints={"forZones": [{"name": "zone-a"}, {"name": "zone-b"}], "forNodes": [{"name": "node1"}]},
        ),
    )
    item["ports"] = [
        {"name": "http", "port": 8080},
        {"name": None, "port": 53, "protocol": "UDP"},
        {"name": "all"},
    ]
    assert read_slice(item) == EndpointSlice(
        key=ObjectKey(NAMESPACE, "web-1"),
        service=ObjectKey(NAMESPACE, "web"),
        ports=(EndpointPort("http", Protocol.TCP, 8080), EndpointPort("", Protocol.UDP, 53)),
        endpoints=(
            Endpoint(
                ip_address(BACKEND_A),
                node="node1",
                zone="zone-a",
                hint_zones=frozenset(("zone-a", "zone-b")),
                hint_nodes=frozenset(("node1",)),
            ),
        ),
        hostnames="web-0",
    )


def test_a_slice_of_nothing() -> None:
    empty = endpoint_slice("web-1")
    empty |= {"endpoints": None, "ports": None}
    assert read_slice(empty).endpoints == ()


def test_a_slice_of_host_names_is_empty_and_says_why() -> None:
    names = endpoint_slice("web-2", endpoint("db.example.com"))
    names["addressType"] = "FQDN"
    read = ENDPOINT_SLICES.read(body(names))
    assert read.resource == read_slice(endpoint_slice("web-2"))
    assert str(read.error) == (
        f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/web-2:"
        f" EndpointSlice {NAMESPACE}/web-2:"
        " addressType: is FQDN: no Service proxy resolves host names, so none of these endpoints is served"
    )


def test_weights_of_a_slice() -> None:
    item = endpoint_slice("web-1", endpoint(BACKEND_A), endpoint("10.0.0.9"), endpoint("10.0.0.10"))
    item["endpoints"][1]["targetRef"] = {"kind": "Pod", "name": "web-0"}
    item["metadata"]["annotations"] = {"lbctl/weights": f"{BACKEND_A}=50, web-0=0,*=1000"}
    assert [one.weight for one in read_slice(item).endpoints] == [50, 0, 1000]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("web-0", "must be a list such as web-0=50, *=100; 'web-0' is no NAME=WEIGHT"),
        ("a=1001", "a: must be a whole number from 0 to 1000, is '1001'"),
        ("a=1, a=2", "names a twice"),
        ("a=-1", "a: must be a whole number from 0 to 1000, is '-1'"),
        ("a=\u0663", "a: must be a whole number from 0 to 1000, is '\u0663'"),
    ],
)
def test_weights_that_cannot_be_read_count_for_nothing_and_are_named(text: str, why: str) -> None:
    item = endpoint_slice("web-1", endpoint(BACKEND_A))
    plain = read_slice(item)
    item["metadata"]["annotations"] = {"lbctl/weights": text}
    read = ENDPOINT_SLICES.read(body(item))
    assert read.resource == plain
    assert str(read.error) == (
        f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices/web-1:"
        f" EndpointSlice {NAMESPACE}/web-1: metadata.annotations[lbctl/weights]: {why}"
    )


def test_slow_start_of_a_service() -> None:
    item = service()
    item["metadata"]["annotations"] = {"lbctl/slow-start": "30"}
    assert SERVICES.read(body(item)).resource.slow_start == 30  # type: ignore[union-attr]
    item["metadata"]["annotations"] = {"lbctl/slow-start": "30s"}
    read = SERVICES.read(body(item))
    assert read.resource == read_service()
    assert read.error is not None
    assert read.error.field == "metadata.annotations[lbctl/slow-start]"


def test_a_node_that_is_being_deleted() -> None:
    item = node()
    item["metadata"]["deletionTimestamp"] = "2020-01-15T10:20:58Z"
    assert NODES.read(body(item)).resource == Node(
        "node1",
        addresses=(ip_address("192.0.2.11"),),
        zone="zone-a",
        terminating=True,
        labels=item["metadata"]["labels"],
    )


def test_a_node_that_is_cordoned() -> None:
    item = node()
    item["spec"] = {"unschedulable": True}
    read = NODES.read(body(item)).resource
    assert isinstance(read, Node)
    assert read.cordoned


@pytest.mark.parametrize(
    ("key", "terminating", "cordoned"),
    [
        ("ToBeDeletedByClusterAutoscaler", True, False),
        ("node.kubernetes.io/unschedulable", False, True),
        ("node.kubernetes.io/not-ready", False, False),
    ],
)
def test_node_health_a_node_with_the_autoscalers_taint_is_leaving(
    key: str, *, terminating: bool, cordoned: bool
) -> None:
    item = node()
    item["spec"] = {"podCIDR": "10.244.1.0/24", "taints": [{"key": key, "effect": "NoSchedule"}]}
    read = NODES.read(body(item)).resource
    assert isinstance(read, Node)
    assert (read.terminating, read.cordoned) == (terminating, cordoned)


def test_a_node_without_labels_and_status() -> None:
    assert NODES.read(b'{"metadata": {"name": "node1", "labels": null}}').resource == Node("node1")


REFUSED: dict[str, tuple[Object, str, str]] = {
    "slice of nobody": (
        {"metadata": {"name": "s", "namespace": "d"}, "addressType": "IPv4", "endpoints": []},
        "metadata.labels",
        "kubernetes.io/service-name is missing",
    ),
    "address type": (
        endpoint_slice("s") | {"addressType": "IPX"},
        "addressType",
        "must be one of FQDN, IPv4, IPv6, is 'IPX'",
    ),
    "endpoint without address": (
        endpoint_slice("s", endpoint(BACKEND_A), {"addresses": []}),
        "endpoints[1].addresses",
        "must have 1 or more entries, has 0",
    ),
    "nested list": (
        endpoint_slice(
            "s", endpoint(BACKEND_A), endpoint(BACKEND_A, hints={"forZones": [{"name": "a"}, {"name": 1}]})
        ),
        "endpoints[1].hints.forZones[1].name",
        "must be a string, is a whole number",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_slice_is_refused_for_its(what: str) -> None:
    item, field, message = REFUSED[what]
    read = ENDPOINT_SLICES.read(body(item))
    assert read.resource is None
    assert read.error is not None
    assert (read.error.field, read.error.message.startswith(message)) == (field, True), read.error


def test_a_map_is_refused_by_its_key() -> None:
    read = SERVICES.read(body(service(selector={"app": "web", "tier": 1})))
    assert read.error is not None
    assert read.error.field == "spec.selector[tier]"


@pytest.mark.parametrize(
    ("spec", "kept"),
    [({"type": "LoadBalancer"}, True), ({"externalIPs": ["203.0.113.1"]}, True), ({}, False)],
)
def test_labels_are_kept_of_services_that_the_network_is_told_of(spec: Object, *, kept: bool) -> None:
    item = service(**spec)
    item["metadata"]["labels"] = {"tier": "front"}
    read = SERVICES.read(body(item)).resource
    assert read is not None
    assert read.labels == ({"tier": "front"} if kept else {})
