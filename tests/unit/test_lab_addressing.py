# SPDX-License-Identifier: Apache-2.0
from ipaddress import IPv4Network, IPv6Network, ip_address

import pytest

from lb.errors import LabError
from lb.lab.addressing import (
    AddressPool,
    Family,
    LabSpec,
    Overlay,
    node_address,
    node_mac,
    pod_cidr,
    pod_interface,
    tunnel_address,
)


def test_every_node_has_addresses_of_its_own() -> None:
    nodes = LabSpec("lab", "/m", nodes=50).node_names
    assert (str(node_address("node1")), str(pod_cidr("node1"))) == ("192.168.77.11", "10.244.1.0/24")
    assert (str(node_address("node50")), str(pod_cidr("node50"))) == ("192.168.77.60", "10.244.50.0/24")
    assert (str(node_address("node1", 6)), str(pod_cidr("node1", 6))) == ("fd00:77::11", "fd00:244:0:1::/64")
    assert (str(node_address("node50", 6)), str(pod_cidr("node50", 6))) == (
        "fd00:77::60",
        "fd00:244:0:50::/64",
    )
    assert [str(tunnel_address("node2", version)) for version in (4, 6)] == ["10.244.2.0", "fd00:244:0:2::1"]
    assert len({node_mac(node) for node in nodes}) == 50
    for version in (4, 6):
        for make in (node_address, pod_cidr):
            assert len({str(make(node, version)) for node in nodes}) == 50


@pytest.mark.parametrize(
    ("family", "versions", "services"),
    [
        (Family.DUAL, (4, 6), "10.66.0.0/16,fd00:66::/112"),
        (Family.IPV4, (4,), "10.66.0.0/16"),
        (Family.IPV6, (6,), "fd00:66::/112"),
    ],
)
def test_a_lab_has_one_family_or_both_ipv4_first(
    family: Family, versions: tuple[int, ...], services: str
) -> None:
    spec = LabSpec("lab", "/m", family=family)
    assert (spec.versions, spec.service_cidr) == (versions, services)
    assert tuple(address.version for address in spec.node_addresses("node1")) == versions
    assert tuple(network.version for network in spec.pod_cidrs("node1")) == versions


def test_what_fits_through_an_overlay() -> None:
    found = {
        (overlay, family): LabSpec("lab", "/m", overlay=overlay, family=family).pod_mtu
        for overlay in Overlay
        for family in Family
        if (overlay, family) != (Overlay.IPIP, Family.IPV6)
    }
    assert found[Overlay.NONE, Family.IPV6] == 1500
    assert found[Overlay.VXLAN, Family.DUAL] == 1450  # IPv4 20, UDP 8, VXLAN 8, Ethernet 14 (RFC 7348)
    assert found[Overlay.VXLAN, Family.IPV6] == 1430
    assert found[Overlay.IPIP, Family.IPV4] == found[Overlay.IPIP, Family.DUAL] == 1480
    with pytest.raises(LabError, match="--overlay ipip: its tunnels run over IPv4"):
        LabSpec("lab", "/m", overlay=Overlay.IPIP, family=Family.IPV6)


def test_zones_are_given_in_turn() -> None:
    spec = LabSpec("lab", "/m", nodes=3, zones=("east", "west"))
    assert [spec.zone(node) for node in spec.node_names] == ["east", "west", "east"]
    for zones in ((), ("",), ("-a",), ("a" * 64,)):
        with pytest.raises(LabError, match="--zones"):
            LabSpec("lab", "/m", zones=zones)


def test_names_of_two_labs_and_of_pods_never_meet() -> None:
    one, other = LabSpec("a", "/m"), LabSpec("ab", "/m")
    assert one.namespaces == ("a-switch", "a-client", "a-node1", "a-node2")
    assert not set(one.namespaces) & set(other.namespaces)
    assert one.instance("node1") == "a.node1"
    odd = ("client", "switch", "node1")
    assert not set(one.namespaces) & {one.pod_namespace("default", name) for name in odd}
    assert one.pod_namespace("x", "p") != one.pod_namespace("default", "p")


@pytest.mark.parametrize("lab", ["", "a-b", "A", "1a", "a.b", "x" * 17, "../up"])
def test_an_id_that_would_be_ambiguous_is_refused(lab: str) -> None:
    with pytest.raises(LabError, match="--id"):
        LabSpec(lab, "/m")


@pytest.mark.parametrize(
    ("field", "value"), [("nodes", 0), ("nodes", 51), ("replicas", -1), ("replicas", 251)]
)
def test_numbers_out_of_bounds_are_refused(field: str, value: int) -> None:
    with pytest.raises(LabError, match=f"--{field} {value}"):
        LabSpec("lab", "/m", **{field: value})  # type: ignore[arg-type]


def test_a_fresh_pod_does_not_get_a_recent_address() -> None:
    pool = AddressPool([IPv4Network("10.244.1.0/24")])
    [first], [second] = pool.take(), pool.take()
    pool.give_back((first,))
    assert [str(first), str(second), str(*pool.take())] == ["10.244.1.2", "10.244.1.3", "10.244.1.4"]


def test_the_addresses_of_a_pod_have_the_same_digits() -> None:
    pool = AddressPool([IPv4Network("10.244.1.0/24"), IPv6Network("fd00:244:0:1::/64")])
    taken = [pool.take() for _ in range(10)]
    assert taken[-1] == (ip_address("10.244.1.11"), ip_address("fd00:244:0:1::11"))


def test_a_pool_hands_out_every_address_once_and_then_says_so() -> None:
    pool = AddressPool([IPv4Network("10.244.1.0/24")])
    taken = {pool.take() for _ in range(253)}
    assert taken == {(ip_address(f"10.244.1.{host}"),) for host in range(2, 255)}
    with pytest.raises(LabError, match="no free pod address"):
        pool.take()
    pool.give_back((ip_address("10.244.1.77"),))
    assert pool.take() == (ip_address("10.244.1.77"),)


@pytest.mark.parametrize(
    ("namespace", "pod"),
    [
        ("default", "kubia-4bv25"),
        ("default", "a-long-name-4bv25"),
        ("other", "kubia-4bv25"),
        ("default", "x.y.z.a.b.c.d"),
    ],
)
def test_interface_names_fit_and_match_the_agents_glob(namespace: str, pod: str) -> None:
    name = pod_interface(namespace, pod)
    assert name.startswith("pod-")
    assert len(name) <= 15


def test_interface_names_tell_pods_apart() -> None:
    pods = [
        ("default", "kubia-4bv25"),
        ("other", "kubia-4bv25"),
        ("default", "kubia-one-4bv25"),
        ("b", "kubia-4bv25"),
    ]
    assert len({pod_interface(*pod) for pod in pods}) == 4
    assert pod_interface(*pods[0]) == "pod-kubia-4bv25"
