# SPDX-License-Identifier: Apache-2.0
"""Networks in a Service from the API: what older API servers let in still means what it says."""

from __future__ import annotations

import json
from ipaddress import ip_network

import pytest

from lb.kube.convert import SERVICES
from tests.kube.objects import service


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("203.0.113.0/25", "203.0.113.0/25"),
        (" 203.0.113.0/25", "203.0.113.0/25"),
        ("203.0.113.0/25 ", "203.0.113.0/25"),
        ("203.0.113.77/25", "203.0.113.0/25"),
        ("0.0.0.0/0", "0.0.0.0/0"),
        (" 2001:db8::1/32", "2001:db8::/32"),
    ],
)
def test_source_ranges_may_have_blanks_and_host_bits(text: str, network: str) -> None:
    item = service(type="LoadBalancer", loadBalancerSourceRanges=[text])
    read = SERVICES.read(json.dumps(item).encode())
    assert read.resource is not None, read.error
    assert read.resource.source_ranges == (ip_network(network),)


@pytest.mark.parametrize("text", ["203.0.113.0", "203.0.113.0/33", "", "/24", "example.org/24"])
def test_source_ranges_that_are_none_name_the_field(text: str) -> None:
    item = service(type="LoadBalancer", loadBalancerSourceRanges=[text])
    read = SERVICES.read(json.dumps(item).encode())
    assert read.resource is None
    assert "spec.loadBalancerSourceRanges[0]" in str(read.error)
