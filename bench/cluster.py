"""A cluster of any size in the API double: Services with one slice each."""

from __future__ import annotations

from tests.kube.double import ApiDouble
from tests.kube.objects import Object, endpoint, endpoint_slice, node, service

NODES, ZONES = 100, 3


def fill(double: ApiDouble, services: int, endpoints: int) -> None:
    """Put Services there, each with so many endpoints on a hundred nodes of three zones."""
    for number in range(services):
        double.put(service(f"service-{number}", _address(10, 96 << 16 | number)))
        double.put(slice_of(number, endpoints))
    double.put(node())


def slice_of(number: int, endpoints: int, generation: int = 0) -> Object:
    """Return the slice of a Service; each generation has another address for its first endpoint."""
    entries = []
    for index in range(endpoints):
        host = number * endpoints + index
        if generation and not index:
            host = 0x7FFFFF - generation
        entries.append(
            endpoint(
                _address(10, 128 << 16 | host),
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
    return endpoint_slice(f"service-{number}-abcde", *entries, of=f"service-{number}")


def _address(first: int, rest: int) -> str:
    return f"{first}.{rest >> 16 & 255}.{rest >> 8 & 255}.{rest & 255}"
