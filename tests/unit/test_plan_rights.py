# SPDX-License-Identifier: Apache-2.0
"""What a Service may claim on a node, and which endpoints it may have."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest

from lb.datapath.attach.netns import Listener
from lb.datapath.attach.roles import external_networks, own_sockets
from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectKey,
    Overlaps,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
)
from lb.plan import concerned, plan_service
from lb.plan.rights import special_address
from lb.plan.types import ServicePlan, Topology, VipKey

WEB = Service(
    ObjectKey("default", "web"),
    type=ServiceType.LOAD_BALANCER,
    ports=(ServicePort("http", Protocol.TCP, 80, 8080),),
    cluster_ips=(ip_address("10.96.0.1"),),
)
NODE, OTHER, POD = ip_address("192.0.2.1"), ip_address("203.0.113.9"), ip_address("10.0.1.1")
HERE = Topology("node1", node_addresses=frozenset([NODE]))


def vips(plan: ServicePlan) -> list[str]:
    return [
        str(vip.key) for port in plan.ports for vip in port.vips if vip.key.port and vip.kind != "clusterIP"
    ]


def claiming(*addresses: str) -> Service:
    return replace(WEB, external_ips=tuple(map(ip_address, addresses)))


@pytest.mark.parametrize(
    ("address", "is_special"),
    [
        ("0.0.0.0", True),
        ("0.0.0.1", False),
        ("127.0.0.1", True),
        ("127.255.0.9", True),
        ("128.0.0.1", False),
        ("169.254.169.254", True),
        ("169.253.0.1", False),
        ("223.255.255.255", False),
        ("224.0.0.1", True),
        ("239.255.255.255", True),
        ("240.0.0.1", False),
        ("255.255.255.255", True),
        ("10.0.0.255", False),
        ("::", True),
        ("::1", True),
        ("::2", False),
        ("::ffff:10.0.0.1", True),
        ("fe80::1", True),
        ("febf::1", True),
        ("fec0::1", False),
        ("ff02::1", True),
        ("ff0e::1", True),
        ("fd00::1", False),
        ("2001:db8::1", False),
    ],
)
def test_special_addresses(address: str, is_special: bool) -> None:
    assert bool(special_address(ip_address(address))) is is_special
    taken = replace(WEB, cluster_ips=(ip_address(address),), load_balancer_ips=(ip_address(address),))
    assert bool(plan_service(taken, [], HERE).ports) is not is_special


@pytest.mark.parametrize(
    ("setting", "admitted"),
    [
        ("all", ["192.0.2.1:80/TCP", "203.0.113.9:80/TCP"]),
        ("none", []),
        ("203.0.113.0/24,2001:db8::/64", ["203.0.113.9:80/TCP"]),
    ],
)
def test_the_setting_limits_external_ips_alone(setting: str, admitted: list[str]) -> None:
    topology = replace(HERE, external_networks=external_networks(setting))
    plan = plan_service(claiming(str(NODE), str(OTHER)), [], topology)
    assert sorted(vips(plan)) == admitted
    assert len(plan.refusals) == 2 - len(admitted)
    assert all("the setting external_ips does not admit it" in str(one) for one in plan.refusals)
    balanced = replace(WEB, load_balancer_ips=(OTHER,))
    assert vips(plan_service(balanced, [], topology)) == ["203.0.113.9:80/TCP"]


def test_an_endpoints_address_is_not_to_be_claimed_but_the_nodes_own_is() -> None:
    overlaps = Overlaps(pods=frozenset([POD, NODE]))
    plan = plan_service(claiming(str(POD), str(NODE)), [], HERE, overlaps)
    assert vips(plan) == ["192.0.2.1:80/TCP"]
    assert list(map(str, plan.refusals)) == [
        "externalIP 10.0.1.1 is refused: it is the address of an endpoint"
    ]


def test_a_nodes_own_address_is_a_services_in_its_ports_alone() -> None:
    balanced = replace(WEB, load_balancer_ips=(NODE, OTHER))
    plan = plan_service(balanced, [], HERE, Overlaps(nodes=frozenset([OTHER])))
    assert vips(plan) == ["192.0.2.1:80/TCP", "203.0.113.9:80/TCP"]
    whole = [str(vip.key) for port in plan.ports for vip in port.vips if not vip.key.port]
    assert whole == [str(address) for address in WEB.cluster_ips]


@pytest.mark.parametrize(
    ("name", "protocol", "ready", "why"),
    [
        ("", Protocol.TCP, True, "endpoint port unnamed/TCP is refused: the Service has http/TCP; name and"),
        ("http", Protocol.UDP, True, "endpoint port http/UDP is refused: the Service has http/TCP; name and"),
        ("", Protocol.TCP, False, ""),
        ("http", Protocol.TCP, True, ""),
    ],
)
def test_endpoints_of_other_ports_than_the_services_are_told(
    name: str, protocol: Protocol, ready: bool, why: str
) -> None:
    """A Service with a named port beside Endpoints without names was refused without a word."""
    piece = EndpointSlice(
        ObjectKey("default", "web-1"),
        WEB.key,
        (EndpointPort(name, protocol, 8080),),
        (Endpoint(POD, ready=ready, node="node2"),),
    )
    plan = plan_service(claiming("203.0.113.9"), [piece], HERE)
    assert [str(one)[: len(why)] for one in plan.refusals] == ([why] if why else [])
    several = replace(
        piece, key=ObjectKey("default", "web-2"), ports=(EndpointPort("http", Protocol.TCP, 1),)
    )
    assert plan_service(claiming("203.0.113.9"), [piece, several], HERE).refusals == ()


def on_the_node(port: int, *, ready: bool = True) -> EndpointSlice:
    return EndpointSlice(
        ObjectKey("default", "web-1"),
        WEB.key,
        (EndpointPort("http", Protocol.TCP, port),),
        (Endpoint(NODE, ready=ready, node="node1"),),
    )


@pytest.mark.parametrize(
    ("listening", "slices", "admitted"),
    [
        ((), [], True),
        ((VipKey(NODE, 80, Protocol.TCP),), [], False),
        ((VipKey(NODE, 80, Protocol.UDP), VipKey(NODE, 81, Protocol.TCP)), [], True),
        ((VipKey(NODE, 80, Protocol.TCP),), [on_the_node(8080)], False),
        ((VipKey(NODE, 80, Protocol.TCP),), [on_the_node(80)], True),
        ((VipKey(NODE, 80, Protocol.TCP),), [on_the_node(80, ready=False)], True),
    ],
)
def test_a_port_on_which_the_node_listens(
    listening: tuple[VipKey, ...], slices: list[EndpointSlice], admitted: bool
) -> None:
    topology = replace(HERE, sockets=frozenset(listening))
    for service in (claiming(str(NODE)), replace(WEB, load_balancer_ips=(NODE,))):
        plan = plan_service(service, slices, topology)
        assert vips(plan) == (["192.0.2.1:80/TCP"] if admitted else [])
        assert bool(plan.refusals) is not admitted
        assert concerned(service, HERE, topology) is bool(listening)
    assert not concerned(WEB, HERE, topology)


def test_an_endpoint_that_is_a_cluster_ip_is_none() -> None:
    plan = plan_service(WEB, [on_the_node(80)], HERE, Overlaps(cluster_ips=frozenset([NODE])))
    assert [port.backends for port in plan.ports] == [()]
    assert list(map(str, plan.refusals)) == [
        "endpoint 192.0.2.1 is refused: it is a clusterIP, which is no endpoint"
    ]


SIX = ip_address("2001:db8::1")


@pytest.mark.parametrize(
    ("listener", "found"),
    [
        (Listener(Protocol.TCP, ip_address("0.0.0.0"), 22), [NODE]),
        (Listener(Protocol.TCP, ip_address("::"), 22), [NODE, SIX]),
        (Listener(Protocol.TCP, NODE, 22), [NODE]),
        (Listener(Protocol.TCP, ip_address("::ffff:192.0.2.1"), 22), [NODE]),
        (Listener(Protocol.TCP, ip_address("127.0.0.1"), 22), []),
        (Listener(Protocol.UDP, SIX, 10250), [SIX]),
        (Listener(Protocol.TCP, NODE, 443, uid=1000), [NODE]),
        (Listener(Protocol.TCP, NODE, 8443, uid=1000), []),
    ],
)
def test_which_sockets_are_the_nodes_own(listener: Listener, found: list[object]) -> None:
    """What any user could open does not count: else any user could take a Service's connections."""
    keys = own_sockets([listener], [NODE, SIX])
    assert keys == {VipKey(address, listener.port, listener.protocol) for address in found}  # type: ignore[arg-type]


def test_the_setting_as_networks() -> None:
    assert external_networks("all") is None
    assert external_networks("none") == ()
    assert external_networks("10.0.0.0/8") == (ip_network("10.0.0.0/8"),)
