# SPDX-License-Identifier: Apache-2.0
"""lb.kube.refusal: why an object is refused, in words of our own."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lb.kube.decode import UNREADABLE, NodeObject, ServiceObject, SliceObject
from lb.kube.refusal import refusal
from tests.kube.objects import endpoint, endpoint_slice, service

WHOLE: dict[type, Any] = {
    ServiceObject: service(
        externalIPs=["192.0.2.1"],
        selector={"app": "web"},
        sessionAffinity="ClientIP",
        sessionAffinityConfig={"clientIP": {"timeoutSeconds": 60}},
        ports=[{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "web", "nodePort": 30080}],
    )
    | {"status": {"loadBalancer": {"ingress": [{"ip": "192.0.2.2", "ipMode": "VIP"}]}}},
    SliceObject: endpoint_slice(
        "s", endpoint("192.0.2.3", hints={"forZones": [{"name": "a"}]}, conditions={"ready": True})
    ),
    NodeObject: {
        "metadata": {"name": "n", "labels": {"topology.kubernetes.io/zone": "a"}},
        "spec": {"taints": [{"key": "x"}]},
        "status": {"addresses": [{"type": "InternalIP", "address": "192.0.2.4"}]},
    },
}


def port(value: Any) -> bytes:
    """A Service whose only port has this number."""
    return json.dumps(service(ports=[{"port": value}])).encode()


ROWS: dict[str, tuple[bytes, str, str]] = {
    "no JSON": (b"{", "", "does not parse as JSON"),
    "nothing": (b"", "", "does not parse as JSON"),
    "not UTF-8": (b'{"metadata": "\xff"}', "", "is not UTF-8 text, from byte 14 on"),
    "very deep": (b"[" * 100_000, "", "is nested too deep"),
    "no object": (b"5", "", "must be a mapping, is a whole number"),
    "no metadata": (b"{}", "metadata", "is missing"),
    "a null for what is required": (b'{"metadata": null}', "metadata", "must be a mapping, is null"),
    "no port": (
        json.dumps(service(ports=[{"name": "x"}])).encode(),
        "spec.ports[0].port",
        "is missing",
    ),
    "text": (port("80"), "spec.ports[0].port", "must be a whole number, is a string"),
    "a fraction": (port(80.5), "spec.ports[0].port", "must be a whole number, is a number with a fraction"),
    "a boolean": (port(True), "spec.ports[0].port", "must be a whole number, is a boolean"),
    "too low": (port(0), "spec.ports[0].port", "must be from 1 to 65535, is 0"),
    "one of two": (
        json.dumps(service(ports=[{"port": 80, "targetPort": []}])).encode(),
        "spec.ports[0].targetPort",
        "must be a whole number or a string, is a list",
    ),
    "one of two, out of its range": (
        json.dumps(service(ports=[{"port": 80, "targetPort": 70_000}])).encode(),
        "spec.ports[0].targetPort",
        "must be from 0 to 65535, is 70000",
    ),
    "a long choice": (
        json.dumps(service(ports=[{"port": 80, "protocol": "X" * 100}])).encode(),
        "spec.ports[0].protocol",
        f"must be one of SCTP, TCP, UDP, is {'X' * 40!r}",
    ),
}


@pytest.mark.parametrize(("body", "field", "message"), ROWS.values(), ids=ROWS)
def test_what_is_wrong(body: bytes, field: str, message: str) -> None:
    with pytest.raises(UNREADABLE):
        msgspec.json.decode(body, type=ServiceObject)
    assert refusal(body, ServiceObject) == (field, message)


def places(tree: Any) -> Iterator[Callable[[Any, Any], None]]:
    """For every value in a tree: a function that puts another value there, in a copy."""

    def setter(way: list[Any]) -> Callable[[Any, Any], None]:
        def put(top: Any, value: Any) -> None:
            for step in way[:-1]:
                top = top[step]
            top[way[-1]] = value

        return put

    def walk(value: Any, way: list[Any]) -> Iterator[list[Any]]:
        if way:
            yield way
        if isinstance(value, (dict, list)):
            for key, entry in value.items() if isinstance(value, dict) else enumerate(value):
                yield from walk(entry, [*way, key])

    return map(setter, walk(tree, []))


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=3),
    st.sampled_from(["ClusterIP", "TCP", "IPv4", "VIP", "Local", [], {}, [{}], [None], [1], {"a": 1}]),
)


@pytest.mark.parametrize("struct", WHOLE)
@given(data=st.data())
def test_it_finds_a_fault_just_when_decoding_does(struct: type, data: st.DataObject) -> None:
    tree = copy.deepcopy(WHOLE[struct])
    data.draw(st.sampled_from(list(places(tree))), "place")(tree, data.draw(VALUES, "value"))
    body = json.dumps(tree).encode()
    try:
        msgspec.json.decode(body, type=struct)
    except UNREADABLE:
        assert refusal(body, struct) != ("", "cannot be read")
    else:
        assert refusal(body, struct) == ("", "cannot be read")
