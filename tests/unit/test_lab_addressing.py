from ipaddress import IPv4Address, IPv4Network

import pytest

from lb.errors import LabError
from lb.lab.addressing import (
    AddressPool,
    LabSpec,
    node_address,
    node_mac,
    pod_cidr,
    pod_interface,
)


def test_every_node_has_addresses_of_its_own() -> None:
    nodes = LabSpec("lab", "/m", nodes=50).node_names
    assert (str(node_address("node1")), str(pod_cidr("node1"))) == ("192.168.77.11", "10.244.1.0/24")
    assert (str(node_address("node50")), str(pod_cidr("node50"))) == ("192.168.77.60", "10.244.50.0/24")
    for make in (node_address, pod_cidr, node_mac):
        assert len({str(make(node)) for node in nodes}) == 50


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
    pool = AddressPool(IPv4Network("10.244.1.0/24"))
    first, second = pool.take(), pool.take()
    pool.give_back(first)
    assert [str(first), str(second), str(pool.take())] == ["10.244.1.2", "10.244.1.3", "10.244.1.4"]


def test_a_pool_hands_out_every_address_once_and_then_says_so() -> None:
    pool = AddressPool(IPv4Network("10.244.1.0/24"))
    taken = {pool.take() for _ in range(253)}
    assert taken == {IPv4Address(f"10.244.1.{host}") for host in range(2, 255)}
    with pytest.raises(LabError, match="no free pod address"):
        pool.take()
    pool.give_back(IPv4Address("10.244.1.77"))
    assert pool.take() == IPv4Address("10.244.1.77")


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
