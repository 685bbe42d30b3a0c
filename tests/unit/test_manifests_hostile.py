# SPDX-License-Identifier: Apache-2.0
"""Manifests of whatever kind: they are right or an error, and reading them takes work in proportion."""

from __future__ import annotations

import copy
import json
import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from lb.manifests.documents import read
from lb.manifests.fields import MOST_PROBLEMS
from tests.unit.manifest_bench import (
    ENDPOINTS,
    PATH,
    POD,
    SLICE,
    objects,
)

SERVICE = """
apiVersion: v1
kind: Service
metadata: {name: edge, namespace: shop, creationTimestamp: "2020-01-15T10:20:58Z", labels: {app: edge}}
spec:
  type: LoadBalancer
  clusterIP: 10.96.7.7
  clusterIPs: [10.96.7.7, "fd00:96::7"]
  ipFamilies: [IPv4, IPv6]
  ipFamilyPolicy: RequireDualStack
  externalIPs: [192.0.2.9]
  loadBalancerSourceRanges: [10.0.0.0/8]
  externalTrafficPolicy: Local
  healthCheckNodePort: 30999
  trafficDistribution: PreferClose
  sessionAffinity: ClientIP
  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
  selector: {app: edge}
  ports: [{name: a, port: 53, protocol: UDP, targetPort: dns, nodePort: 30053}, {name: b, port: 80}]
status: {loadBalancer: {ingress: [{ip: 203.0.113.5, ipMode: VIP}, {hostname: edge.example.net}]}}
"""


WHOLE = [
    yaml.safe_load(text.replace("2021-03-26T03:15:18Z", "null")) for text in (POD, SLICE, ENDPOINTS, SERVICE)
]


ANYTHING: st.SearchStrategy[Any] = st.sampled_from(
    [
        None,
        True,
        False,
        0,
        -1,
        65536,
        10**30,
        1.5,
        "",
        "x",
        "80",
        "None",
        "10.0.0.1",
        "::1",
        "A_b",
        [],
        {},
        [[]],
        [{}],
    ]
) | st.recursive(
    st.text(max_size=3), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(), inner)
)


def places(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    found = [path]
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for name, inner in entries:
        found += places(inner, (*path, name))
    return found


@given(st.data())
def test_whatever_is_in_a_field_it_is_an_error_or_it_is_right(data: st.DataObject) -> None:
    document = copy.deepcopy(data.draw(st.sampled_from(WHOLE)))
    for _ in range(data.draw(st.integers(1, 3))):
        *path, last = data.draw(st.sampled_from(places(document)[1:]))
        holder = document
        for name in path:
            holder = holder[name]
        holder[last] = copy.deepcopy(data.draw(ANYTHING))
    content = read(PATH, json.dumps(document), range(30000, 32768))
    assert all(error.line == 1 and error.message for error in content.errors)
    assert not (content.objects and content.errors)


def test_those_documents_are_right_before_they_are_changed() -> None:
    for document in WHOLE:
        assert len(objects(json.dumps(document))) == 1


def service_with(lines: Iterable[str]) -> str:
    return "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\n" + "".join(lines)


HOSTILE: dict[str, Callable[[int], str]] = {
    "unknown fields": lambda n: service_with(f"  f{i}: 1\n" for i in range(n)),
    "fields twice": lambda n: service_with(["  ports: []\n"] * n),
    "ports out of range": lambda n: service_with(
        ["  ports:\n", *(f"  - port: {70_000 + i}\n" for i in range(n))]
    ),
    "ports": lambda n: service_with(
        ["  ports:\n", *(f"  - {{name: p{i}, port: {i + 1}}}\n" for i in range(n))]
    ),
    "faults in a list": lambda n: (
        "apiVersion: v1\nkind: List\nitems:\n"
        + "".join(
            f"- {{apiVersion: v1, kind: Service, metadata: {{name: a{i}}}, spec: 1, spec: 2}}\n"
            for i in range(n)
        )
    ),
    "labels": lambda n: (
        "apiVersion: v1\nkind: Service\nmetadata: {name: web, labels: {"
        + ", ".join(f"k{i}: '!'" for i in range(n))
        + "}}\n"
    ),
}


def calls(text: str) -> int:
    """Return how many times a function or generator was entered to read a text."""
    entered = 0

    def count(_frame: object, event: str, _argument: object) -> None:
        nonlocal entered
        entered += event == "call"

    sys.setprofile(count)
    try:
        read(PATH, text, range(30000, 32768))
    finally:
        sys.setprofile(None)
    return entered


@pytest.mark.parametrize("kind", HOSTILE)
def test_reading_takes_work_in_proportion_to_the_text(kind: str) -> None:
    assert calls(HOSTILE[kind](1200)) < 6 * calls(HOSTILE[kind](300))


def test_the_errors_of_one_object_are_told_up_to_a_number() -> None:
    content = read(PATH, HOSTILE["unknown fields"](100), range(30000, 32768))
    told = [str(error) for error in content.errors]
    assert len(told) == MOST_PROBLEMS + 1
    assert told[0] == f"{PATH}:5: Service default/web: spec.f0: unknown field"
    assert told[-1] == f"{PATH}:24: Service default/web: has 81 more errors, which are not listed"
