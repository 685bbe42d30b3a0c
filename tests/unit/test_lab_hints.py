# SPDX-License-Identifier: Apache-2.0
"""What `lab up` says one could try."""

from ipaddress import ip_address

import pytest

from lb.lab.addressing import Family, LabSpec
from lb.lab.hints import requests, url
from lb.model import ObjectKey, Protocol, Service, ServicePort, ServiceType

SPEC = LabSpec("lab", "/m")
CLUSTER = ip_address("10.66.0.9")


def service(name: str, kind: ServiceType = ServiceType.CLUSTER_IP, **more: object) -> Service:
    ports = more.pop("ports", (ServicePort("", Protocol.TCP, 80, 80, more.pop("node_port", 0)),))  # type: ignore[arg-type]
    given: dict[str, object] = {"cluster_ips": (CLUSTER,), "selector": {"a": "b"}, **more}
    return Service(ObjectKey("default", name), kind, ports=ports, **given)  # type: ignore[arg-type]


def test_there_is_a_request_for_each_sort_of_address() -> None:
    services = [
        service("by-hand", selector=None, cluster_ips=(ip_address("10.66.0.1"),)),
        service("balanced", ServiceType.LOAD_BALANCER, load_balancer_ips=(ip_address("203.0.113.1"),)),
        service("node", ServiceType.NODE_PORT, node_port=30123, cluster_ips=(ip_address("10.66.0.3"),)),
    ]
    assert requests(SPEC, services, ["a-1", "a-2"]) == [
        ("client", "http://192.168.77.11:30123/"),
        ("client", "http://203.0.113.1/"),
        ("a-1", "http://10.66.0.9/"),
    ]


def test_without_ready_pods_nobody_asks_for_a_cluster_ip() -> None:
    assert requests(SPEC, [service("web")], []) == []


@pytest.mark.parametrize(
    "useless",
    [
        service("udp", ports=(ServicePort("", Protocol.UDP, 53, 53),)),
        service("foreign", proxied=False),
        service("headless", cluster_ips=(), headless=True),
    ],
)
def test_services_that_a_request_would_not_reach_are_left_out(useless: Service) -> None:
    assert requests(SPEC, [useless], ["a"]) == []


def test_a_node_is_asked_in_the_family_of_the_service() -> None:
    six = service("six", ServiceType.NODE_PORT, node_port=30001, cluster_ips=(ip_address("fd00:66::9"),))
    expected = [("client", "http://[fd00:77::11]:30001/"), ("a", "http://[fd00:66::9]/")]
    for family in (Family.DUAL, Family.IPV6):
        assert requests(LabSpec("lab", "/m", family=family), [six], ["a"]) == expected


def test_urls() -> None:
    assert url(ip_address("10.0.0.1"), 8080) == "http://10.0.0.1:8080/"
    assert url(ip_address("fd00::1"), 80) == "http://[fd00::1]/"
