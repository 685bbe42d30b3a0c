# SPDX-License-Identifier: Apache-2.0
"""The variables of a pod: names and values are those that the kubelet gives."""

from ipaddress import ip_address

import pytest

from lb.lab.environment import EnvVar, expand, pod_environment, service_variables
from lb.model import ObjectKey, Protocol, Service, ServicePort, ServiceType

TCP, UDP = Protocol.TCP, Protocol.UDP


def service(name: str, *ports: ServicePort, namespace: str = "shop", ip: str = "10.0.0.11") -> Service:
    return Service(
        ObjectKey(namespace, name),
        ports=ports or (ServicePort("", TCP, 80, 80),),
        cluster_ips=(ip_address(ip),) if ip else (),
    )


def test_env_discovery_names_are_those_of_the_documentation() -> None:
    """The example of Kubernetes' documentation, "Service", Environment variables."""
    redis = service("redis-primary", ServicePort("", TCP, 6379, 6379))
    assert service_variables([redis], "shop", links=True) == {
        "REDIS_PRIMARY_SERVICE_HOST": "10.0.0.11",
        "REDIS_PRIMARY_SERVICE_PORT": "6379",
        "REDIS_PRIMARY_PORT": "tcp://10.0.0.11:6379",
        "REDIS_PRIMARY_PORT_6379_TCP": "tcp://10.0.0.11:6379",
        "REDIS_PRIMARY_PORT_6379_TCP_PROTO": "tcp",
        "REDIS_PRIMARY_PORT_6379_TCP_PORT": "6379",
        "REDIS_PRIMARY_PORT_6379_TCP_ADDR": "10.0.0.11",
    }


def test_env_discovery_of_several_ports_and_of_ipv6() -> None:
    ports = (ServicePort("http-web", TCP, 80, "http"), ServicePort("dns", UDP, 53, 5353))
    dual = Service(
        ObjectKey("shop", "web"), ports=ports, cluster_ips=(ip_address("fd00::9"), ip_address("10.0.0.9"))
    )
    found = service_variables([dual], "shop", links=True)
    assert found == {
        "WEB_SERVICE_HOST": "fd00::9",
        "WEB_SERVICE_PORT": "80",
        "WEB_SERVICE_PORT_HTTP_WEB": "80",
        "WEB_SERVICE_PORT_DNS": "53",
        "WEB_PORT": "tcp://[fd00::9]:80",
        "WEB_PORT_80_TCP": "tcp://[fd00::9]:80",
        "WEB_PORT_80_TCP_PROTO": "tcp",
        "WEB_PORT_80_TCP_PORT": "80",
        "WEB_PORT_80_TCP_ADDR": "fd00::9",
        "WEB_PORT_53_UDP": "udp://[fd00::9]:53",
        "WEB_PORT_53_UDP_PROTO": "udp",
        "WEB_PORT_53_UDP_PORT": "53",
        "WEB_PORT_53_UDP_ADDR": "fd00::9",
    }


MASTER = service("kubernetes", namespace="default", ip="10.0.0.1")
OWN_MASTER = service("kubernetes", ip="10.0.0.2")


@pytest.mark.parametrize(
    ("services", "links", "hosts"),
    [
        ([service("web"), service("other", namespace="else")], True, {"WEB": "10.0.0.11"}),
        ([service("web"), MASTER], True, {"WEB": "10.0.0.11", "KUBERNETES": "10.0.0.1"}),
        ([service("web"), MASTER], False, {"KUBERNETES": "10.0.0.1"}),
        ([MASTER, OWN_MASTER], True, {"KUBERNETES": "10.0.0.2"}),
        ([OWN_MASTER, MASTER], True, {"KUBERNETES": "10.0.0.2"}),
        ([OWN_MASTER, MASTER], False, {"KUBERNETES": "10.0.0.1"}),
        ([service("headless", ip="")], True, {}),
    ],
)
def test_env_discovery_tells_of_the_namespace_and_of_kubernetes(
    services: list[Service], links: bool, hosts: dict[str, str]
) -> None:
    found = service_variables(services, "shop", links=links)
    given = {name: value for name, value in found.items() if name.endswith("_SERVICE_HOST")}
    assert given == {f"{name}_SERVICE_HOST": host for name, host in hosts.items()}


def test_env_discovery_has_nothing_of_external_names() -> None:
    external = Service(ObjectKey("shop", "db"), ServiceType.EXTERNAL_NAME, external_name="db.example")
    assert service_variables([external], "shop", links=True) == {}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("$(A)/$(B)", "1/$(B)"),
        ("$$(A) $$$(A) $$", "$(A) $1 $"),
        ("$(A", "$(A"),
        ("$A ${A} a$", "$A ${A} a$"),
        ("$($(A))", "$($(A))"),
        ("$()", "$()"),
    ],
)
def test_references(text: str, result: str) -> None:
    assert expand(text, {"A": "1"}) == result


def test_env_discovery_gives_way_to_the_containers_own_variables() -> None:
    own = [
        EnvVar("URL", "http://$(WEB_SERVICE_HOST):$(WEB_SERVICE_PORT)/$(LATER)"),
        EnvVar("WEB_SERVICE_HOST", "override"),
        EnvVar("SECOND", "$(WEB_SERVICE_HOST)"),
        EnvVar("LATER", "x"),
        EnvVar("NODE", field="spec.nodeName"),
        EnvVar("SECRET", unplayed="secretKeyRef"),
        EnvVar("LABEL", field="metadata.labels['a']"),
    ]
    found = pod_environment(own, [service("web")], "shop", {"spec.nodeName": "node1"}, links=True)
    assert found["URL"] == "http://10.0.0.11:80/$(LATER)"
    assert (found["WEB_SERVICE_HOST"], found["SECOND"], found["NODE"]) == ("override", "override", "node1")
    assert found["WEB_PORT_80_TCP_ADDR"] == "10.0.0.11"
    assert not {"SECRET", "LABEL"} & found.keys()
