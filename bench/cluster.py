# SPDX-License-Identifier: Apache-2.0
"""A cluster of any size in the API double: Services with one slice for each family."""

from __future__ import annotations

from tests.kube.double import ApiDouble
from tests.kube.objects import Object, endpoint, endpoint_slice, node, service

NODES, ZONES = 100, 3


def fill(double: ApiDouble, services: int, endpoints: int, *, dual: bool = False, ports: int = 1) -> None:
    """Put Services there, each with so many endpoints on a hundred nodes of three zones.

    dual: so many of each family. ports: of each Service.
    """
    versions = (4, 6) if dual else (4,)
    for number in range(services):
        addresses = [_address(version, 96 << 16 | number) for version in versions]
        named = _ports(ports)
        double.put(service(f"service-{number}", addresses[0], clusterIPs=addresses, ports=named))
        for version in versions:
            double.put(slice_of(number, endpoints, version=version, ports=ports))
    double.put(node())


def slice_of(number: int, endpoints: int, generation: int = 0, *, version: int = 4, ports: int = 1) -> Object:
    """Return a Service's slice; each generation has another address for its first endpoint."""
    entries = []
    for index in range(endpoints):
        host = number * endpoints + index
        if generation and not index:
            host = 0x7FFFFF - generation
        entries.append(
            endpoint(
                _address(version, 128 << 16 | host),
                f"node{(number + index) % NODES}",
                zone=f"zone-{index % ZONES}",
                targetRef={
                    "kind": "Pod",
                    "namespace": "shop",
                    "name": f"service-{number}-7d4b9c6f5-{index:05}",
                    "uid": "8f1c3d1e-3f0a-4f9b-9a51-0c5b8d7e6f00",
                },
                hints={"forZones": [{"name": f"zone-{index % ZONES}"}]},
            )
        )
    name = f"service-{number}-{'abcde' if version == 4 else 'fghij'}"
    return {
        **endpoint_slice(name, *entries, of=f"service-{number}"),
        "addressType": f"IPv{version}",
        "ports": _ports(ports),
    }


def _ports(count: int) -> list[Object]:
    """Return the ports of a Service, which are those of its endpoints."""
    return [{"name": f"port-{at}", "protocol": "TCP", "port": 1024 + at} for at in range(count)]


def _address(version: int, rest: int) -> str:
    """Return an address of 10.0.0.0/8, or its namesake in fd10::/96."""
    if version == 6:
        return f"fd10::{rest >> 16:x}:{rest & 0xFFFF:x}"
    return f"10.{rest >> 16 & 255}.{rest >> 8 & 255}.{rest & 255}"
