# SPDX-License-Identifier: Apache-2.0
"""The files by which a pod finds names, for every policy, and what is wrong in a manifest."""

from __future__ import annotations

from dataclasses import replace

import pytest

from lb.lab.resolver import CLUSTER_FIRST, PodDns, hosts, read_dns, resolv_conf
from lb.manifests.fields import Field, Problems
from lb.manifests.yamldoc import load

CLUSTER, NODE = ("10.66.0.10", "fd00:66::10"), ("192.168.77.200",)
IN_CLUSTER = """\
nameserver 10.66.0.10
nameserver fd00:66::10
search shop.svc.cluster.local svc.cluster.local cluster.local
options ndots:5
"""
OF_THE_NODE = "nameserver 192.168.77.200\n"


@pytest.mark.parametrize(
    ("policy", "host_network", "expected"),
    [
        ("ClusterFirst", False, IN_CLUSTER),
        ("ClusterFirst", True, OF_THE_NODE),
        ("ClusterFirstWithHostNet", False, IN_CLUSTER),
        ("ClusterFirstWithHostNet", True, IN_CLUSTER),
        ("Default", False, OF_THE_NODE),
        ("None", False, ""),
    ],
)
def test_policies(policy: str, host_network: bool, expected: str) -> None:
    dns = replace(CLUSTER_FIRST, policy=policy)
    assert resolv_conf(dns, "shop", CLUSTER, NODE, host_network=host_network) == expected


def test_the_config_adds_and_its_options_win() -> None:
    dns = PodDns(servers=("10.66.0.10", "1.1.1.1"), searches=("example.org",), options=("ndots:2", "edns0"))
    assert resolv_conf(dns, "shop", CLUSTER[:1], NODE, host_network=False).splitlines() == [
        "nameserver 10.66.0.10",
        "nameserver 1.1.1.1",
        "search shop.svc.cluster.local svc.cluster.local cluster.local example.org",
        "options ndots:2 edns0",
    ]


def test_at_most_three_servers() -> None:
    dns = PodDns(servers=("1.1.1.1", "1.0.0.1"))
    text = resolv_conf(dns, "shop", CLUSTER, NODE, host_network=False)
    assert text.count("nameserver") == 3


def test_a_pod_knows_its_own_name() -> None:
    assert hosts(CLUSTER_FIRST, "shop", "web-1", ["10.244.1.2", "fd00::2"]).splitlines()[2:] == [
        "10.244.1.2 web-1",
        "fd00::2 web-1",
    ]
    own = PodDns(hostname="web-1", subdomain="web")
    line = hosts(own, "shop", "web-1", ["10.244.1.2"]).splitlines()[-1]
    assert line == "10.244.1.2 web-1.web.shop.svc.cluster.local web-1"


def read(text: str) -> tuple[PodDns, list[str]]:
    [document] = load(text)
    assert document.root is not None
    problems = Problems("pod.yaml")
    found = read_dns(Field(problems, "", 1, document.root).fields())
    return found, [f"{error.field}: {error.message}" for error in problems.errors()]


def test_a_spec_is_read() -> None:
    found, errors = read(
        "{dnsPolicy: None, hostname: a, subdomain: b, dnsConfig:"
        " {nameservers: [1.1.1.1], searches: [x.y], options: [{name: ndots, value: '2'}, {name: edns0}]}}"
    )
    assert errors == []
    assert found == PodDns("None", ("1.1.1.1",), ("x.y",), ("ndots:2", "edns0"), "a", "b")
    assert read("{}") == (CLUSTER_FIRST, [])


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ("dnsPolicy: Cluster", "dnsPolicy"),
        ("dnsPolicy: None", "dnsConfig.nameservers"),
        ("dnsConfig: {nameservers: [1.1.1.1, 1.1.1.2, 1.1.1.3, 1.1.1.4]}", "dnsConfig.nameservers"),
        ("dnsConfig: {nameservers: [here]}", "dnsConfig.nameservers[0]"),
        ("dnsConfig: {options: [{value: '1'}]}", "dnsConfig.options[0].name"),
        ("hostname: Not.A.Label", "hostname"),
        ("subdomain: -x", "subdomain"),
    ],
)
def test_what_is_wrong_is_named(text: str, field: str) -> None:
    _, errors = read(text)
    assert [each.partition(": ")[0] for each in errors] == [field]
