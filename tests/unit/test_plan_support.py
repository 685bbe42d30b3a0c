"""What a Service asks for and does not get is named."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest

from lb.model import ObjectKey, Protocol, Service, ServicePort, TrafficDistribution, TrafficPolicy
from lb.plan import unsupported

WEB = ObjectKey("default", "web")
HTTP = ServicePort("http", Protocol.TCP, 80, 8080)
SCTP = ServicePort("s", Protocol.SCTP, 81, 81)
V4, V6 = ip_address("10.96.0.1"), ip_address("fd00::1")


def service(**fields: Any) -> Service:
    return Service(WEB, **{"ports": (HTTP,), "cluster_ips": (V4,), **fields})


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"ports": (HTTP, SCTP)}, "spec.ports[1].protocol"),
        ({"cluster_ips": (V4, V6)}, "IPv6 addresses"),
        ({"external_ips": (V6,)}, "IPv6 addresses"),
    ],
)
def test_each_field_is_named(fields: dict[str, Any], path: str) -> None:
    (found,) = unsupported(service(**fields))
    assert found.startswith(f"{path}: ")


def test_nothing_is_said_of_a_service_that_is_served_whole_or_not_at_all() -> None:
    assert unsupported(service()) == ()
    assert unsupported(service(internal_policy=TrafficPolicy.LOCAL)) == ()
    assert unsupported(service(source_ranges=(ip_network("10.0.0.0/8"),))) == ()
    assert unsupported(service(distribution=TrafficDistribution.PREFER_CLOSE)) == ()
    assert unsupported(service(proxied=False, cluster_ips=(V6,))) == ()
    headless = service(cluster_ips=(), headless=True, ports=(SCTP,))
    assert unsupported(headless) == ()
