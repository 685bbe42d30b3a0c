# SPDX-License-Identifier: Apache-2.0
"""The file of pools, and what Services may ask for."""

from __future__ import annotations

import os
from ipaddress import ip_address
from itertools import islice
from pathlib import Path

import pytest

from lb.addresses import pool
from lb.addresses.pool import PoolsFile, parse, without
from lb.addresses.request import read_request
from lb.errors import ConfigError
from lb.model import Namespace

WHOLE = """\
pools:
  - name: edge
    addresses: [203.0.113.0/30, 203.0.113.8-203.0.113.10, "2001:db8::/126"]
    avoid: [first, last, 203.0.113.9]
    automatic: false
    namespaces: [shop, blog]
    namespace_labels: {tier: front, team: a}
    labels: {exposed: "yes"}
  - name: rest
    addresses: [198.51.100.7, 198.51.100.8/31]
    avoid: [first]
load_balancer_class: example.com/lbctl
without_class: false
rest_seconds: 5
"""


def test_a_whole_file() -> None:
    pools = parse(WHOLE, "pools.yaml")
    edge, rest = pools.pools
    assert [str(one) for version in (4, 6) for one in edge.addresses(version)] == [
        "203.0.113.1",
        "203.0.113.2",
        "2001:db8::1",
        "2001:db8::2",
    ]
    assert (edge.size(4), edge.size(6), rest.size(6)) == (2, 2, 0)
    assert [str(one) for one in rest.addresses(4)] == ["198.51.100.7", "198.51.100.8", "198.51.100.9"]
    assert (edge.automatic, rest.automatic) == (False, True)
    assert edge.serves(Namespace("shop"), {"exposed": "yes", "more": ""})
    assert not edge.serves(Namespace("shop"), {"exposed": "no"})
    assert not edge.serves(Namespace("other"), {"exposed": "yes"})
    labelled = Namespace("other", {"tier": "front", "team": "a", "more": ""})
    assert edge.serves(labelled, {"exposed": "yes"})
    assert not edge.serves(labelled, {})
    assert not edge.serves(Namespace("other", {"tier": "front"}), {"exposed": "yes"})
    assert rest.serves(Namespace("other"), {})
    assert pools.need_namespaces
    assert not parse("pools: [{name: a, addresses: [192.0.2.1]}]", "f").need_namespaces
    assert edge.holds(ip_address("203.0.113.2"))
    assert not edge.holds(ip_address("203.0.113.8"))
    assert pools.of(ip_address("198.51.100.8")) is rest
    assert pools.of(ip_address("2001:db8::3")) is None
    assert pools.ours("example.com/lbctl")
    assert not pools.ours("")
    assert not pools.ours("another")
    assert pools.rest_seconds == 5


def test_defaults() -> None:
    pools = parse("pools: [{name: a, addresses: [192.0.2.0/24]}]", "f")
    assert (pools.ours(""), pools.ours("lbctl"), pools.ours("other")) == (True, True, False)
    assert (pools.pools[0].automatic, pools.rest_seconds) == (True, pool.REST_SECONDS)


def test_a_pool_of_a_whole_ipv6_network_costs_nothing() -> None:
    [found] = parse("pools: [{name: a, addresses: ['2001:db8::/32'], avoid: [first]}]", "f").pools
    assert found.size(6) == 2**96 - 1
    assert [str(each) for each in islice(found.addresses(6), 2)] == ["2001:db8::1", "2001:db8::2"]


def test_ranges_are_joined_and_cut() -> None:
    assert without([range(8, 12), range(5), range(4, 9)], [range(2, 3), range(11, 20)]) == (
        range(2),
        range(3, 11),
    )


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "f: must hold one YAML document"),
        ("rest_seconds: 1", "pools: must hold one pool"),
        ("pool: []", "f:1: pool: unknown field; did you mean pools?"),
        ("pools: [{addresses: [192.0.2.1]}]", "pools[0].name: is missing"),
        ("pools:\n- name: a\n  addresses: [192.0.2.1/24]", "f:3: pools[0].addresses[0]: must be a network"),
        ("pools: [{name: a, addresses: [192.0.2.9-192.0.2.1]}]", "must not be above the last"),
        ("pools: [{name: a, addresses: [192.0.2.1-2001:db8::1]}]", "is no range"),
        ("pools: [{name: a, addresses: [127.0.0.0/8]}]", "loopback"),
        ("pools: [{name: a, addresses: []}]", "must name a network"),
        ("pools: [{name: a, addresses: [192.0.2.1], avoid: [192.0.2.1]}]", "leaves no address"),
        ("pools: [{name: a, addresses: [192.0.2.1], avoid: [some]}]", "pools[0].avoid[0]"),
        ("pools: [{name: a, addresses: [192.0.2.1]}, {name: a, addresses: [192.0.2.2]}]", "earlier pool"),
        ("pools: [{name: a, addresses: [192.0.2.1]}]\nrest_seconds: -1", "rest_seconds: must be from 0"),
        ("a: [", "f:"),
    ],
)
def test_what_is_wrong_is_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, "f")
    assert words in str(caught.value)


def test_a_file_that_breaks_leaves_what_was_good(tmp_path: Path) -> None:
    path = tmp_path / "pools.yaml"
    path.write_text(WHOLE)
    file = PoolsFile(path)
    assert not file.refresh()
    _rewrite(path, "pools: []")
    assert not file.refresh()
    assert str(path) in file.error
    assert len(file.pools.pools) == 2
    _rewrite(path, "pools: [{name: a, addresses: [192.0.2.1]}]")
    assert file.refresh()
    assert (file.error, len(file.pools.pools)) == ("", 1)
    path.unlink()
    assert not file.refresh()
    assert file.error


def _rewrite(path: Path, text: str) -> None:
    aside = path.with_suffix(".new")
    aside.write_text(text)
    os.replace(aside, path)


def test_requests_are_read_from_whoever_s_annotations() -> None:
    ours = read_request(
        {"lbctl/addresses": "192.0.2.1, 2001:db8::1", "metallb.io/loadBalancerIPs": "192.0.2.9"}
    )
    assert ours.addresses == {4: ip_address("192.0.2.1"), 6: ip_address("2001:db8::1")}
    for name in ("metallb.universe.tf/loadBalancerIPs", "lbipam.cilium.io/ips", "io.cilium/lb-ipam-ips"):
        assert read_request({name: "192.0.2.9"}, "192.0.2.1").addresses == {4: ip_address("192.0.2.9")}
    assert read_request({}, "192.0.2.1").addresses == {4: ip_address("192.0.2.1")}
    assert read_request({"metallb.io/address-pool": "edge"}).pools == ("edge",)
    assert read_request({"lbctl/pools": "edge, rest"}).pools == ("edge", "rest")
    cilium = read_request(
        {"lbipam.cilium.io/sharing-key": "k", "lbipam.cilium.io/sharing-cross-namespace": "a,b"}
    )
    assert (cilium.sharing_key, cilium.sharing_namespaces) == ("k", frozenset(("a", "b")))
    metallb = read_request({"metallb.universe.tf/allow-shared-ip": "k"})
    assert (metallb.sharing_key, metallb.sharing_namespaces) == ("k", frozenset("*"))
    assert read_request({}).addresses == {}


@pytest.mark.parametrize("text", ["192.0.2.1,192.0.2.2", "web", "192.0.2.0/24"])
def test_a_request_that_cannot_be_read_says_where(text: str) -> None:
    assert read_request({"lbctl/addresses": text}).error.startswith("lbctl/addresses: ")
    assert read_request({}, "web").error.startswith("spec.loadBalancerIP: ")
