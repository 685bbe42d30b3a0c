# SPDX-License-Identifier: Apache-2.0
"""What users of other Service proxies have reported, as objects of the API and what must become of them.

Each docstring names the reports. Those that packets show are in tests/packet and tests/netns.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from lb.kube.convert import ENDPOINT_SLICES, SERVICES, Reader
from lb.model import EndpointSlice, Service, TrafficPolicy
from lb.plan import plan_service
from lb.plan.types import PortPlan, ServicePlan, Topology, VipKey, VipKind
from tests.unit.plan_builders import RememberedClaims

HERE, AWAY = "node1", "node2"
NODE_ADDRESS = ip_address("192.0.2.1")
READY = {"ready": True, "serving": True, "terminating": False}
GOING = {"ready": False, "serving": True, "terminating": True}
GONE = {"ready": False, "serving": False, "terminating": True}
UNREADY = {"ready": False, "serving": False, "terminating": False}


def read(reader: Reader[Any, Any], what: dict[str, Any], name: str) -> Any:
    """Read an object as the API server would send it."""
    labels = {"kubernetes.io/service-name": "web"}
    meta = {"name": name, "namespace": "default", "uid": name, "resourceVersion": "1", "labels": labels}
    item = reader.read(json.dumps({"metadata": meta, **what}).encode())
    assert item.error is None
    return item.resource


def service(name: str = "web", **spec: Any) -> Service:
    found: Service = read(
        SERVICES,
        {
            "spec": {
                "type": "NodePort",
                "clusterIP": "10.96.0.10",
                "clusterIPs": ["10.96.0.10"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80, "nodePort": 30080}],
                **spec,
            }
        },
        name,
    )
    return found


def entry(address: str, node: str | None = None, **more: Any) -> dict[str, Any]:
    return {"addresses": [address], **({"nodeName": node} if node else {}), **more}


def piece(name: str, *endpoints: dict[str, Any]) -> EndpointSlice:
    ports = [{"name": "http", "protocol": "TCP", "port": 8080}]
    what = {"addressType": "IPv4", "ports": ports, "endpoints": list(endpoints)}
    found: EndpointSlice = read(ENDPOINT_SLICES, what, name)
    return found


def plan(slices: Sequence[EndpointSlice], one: Service | None = None, **topology: Any) -> PortPlan:
    where = Topology(HERE, node_port_addresses=(NODE_ADDRESS,), **topology)
    (port,) = plan_service(one or service(), slices, where).ports
    return port


def offered(port: PortPlan) -> tuple[list[str], list[str]]:
    cluster, local = ([str(each.address) for each in set_] for set_ in (port.cluster, port.local))
    return cluster, local


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("leaving", [GOING, GONE])
def test_an_address_that_two_pods_have_is_that_of_the_ready_one(leaving: dict[str, bool], flip: bool) -> None:
    """kubernetes#135266, #135334: the pod before it, on another node, still terminates."""
    both = [
        entry("10.0.0.7", HERE, conditions=leaving, targetRef={"kind": "Pod", "name": "old"}),
        entry("10.0.0.7", AWAY, conditions=READY, targetRef={"kind": "Pod", "name": "new"}),
    ]
    port = plan([piece("web-a", *(both[::-1] if flip else both))])
    assert offered(port) == (["10.0.0.7"], [])
    assert [(each.node, each.local) for each in port.backends] == [(AWAY, False)]


def test_hints_of_endpoints_that_are_not_ready_lead_nobody() -> None:
    """kubernetes#106507: the only endpoint that is hinted for the zone is not ready."""
    zone = {"hints": {"forZones": [{"name": "a"}]}}
    other = {"hints": {"forZones": [{"name": "b"}]}}
    slices = [
        piece(
            "web-a",
            entry("10.0.0.1", HERE, conditions=UNREADY, **zone),
            entry("10.0.0.2", AWAY, conditions=READY, **other),
            entry("10.0.0.3", AWAY, conditions=READY, **other),
        )
    ]
    assert offered(plan(slices, zone="a")) == (["10.0.0.2", "10.0.0.3"], [])


@pytest.mark.parametrize("order", [1, -1])
def test_endpoints_of_many_slices_are_put_together_and_count_once(order: int) -> None:
    """kubernetes#114144, #121556: more than a thousand, each in two slices, in any order of slices."""
    addresses = [f"10.{number // 250}.0.{number % 250 + 1}" for number in range(1250)]
    ready = [entry(address, AWAY, conditions=READY) for address in addresses]
    slices = [piece(f"web-{at}", *ready[at : at + 100]) for at in range(0, 1250, 50)]
    port = plan(slices[::order])
    assert offered(port)[0] == sorted(addresses, key=lambda text: int(ip_address(text)))


def test_an_endpoint_by_hand_without_node_and_conditions_is_served_at_node_ports() -> None:
    """cilium#26519: a host outside of the cluster, beside pods."""
    slices = [piece("web-a", entry("10.0.0.1", HERE, conditions=READY)), piece("mine", entry("192.0.2.77"))]
    port = plan(slices)
    assert offered(port) == (["10.0.0.1", "192.0.2.77"], ["10.0.0.1"])
    assert VipKey(NODE_ADDRESS, 30080, port.protocol) in {vip.key for vip in port.vips}


def test_policy_local_without_endpoint_here_leaves_the_nodes_pods_the_whole_set() -> None:
    """kubernetes#131765, #93456: a pod asks the load balancer's address on a node without an endpoint."""
    one = read(
        SERVICES,
        {
            "spec": {
                "type": "LoadBalancer",
                "externalTrafficPolicy": "Local",
                "clusterIPs": ["10.96.0.10"],
                "ports": [{"name": "http", "protocol": "TCP", "port": 80}],
            },
            "status": {"loadBalancer": {"ingress": [{"ip": "203.0.113.7"}, {"hostname": "lb.example"}]}},
        },
        "web",
    )
    port = plan([piece("web-a", entry("10.0.2.1", AWAY, conditions=READY))], one)
    assert offered(port) == (["10.0.2.1"], [])
    (vip,) = [vip for vip in port.vips if vip.kind is VipKind.LOAD_BALANCER and vip.key.port]
    assert (vip.inside, vip.outside) == (TrafficPolicy.CLUSTER, TrafficPolicy.LOCAL)


def sharing(name: str, number: int, protocol: str, port: int = 53) -> ServicePlan:
    one = service(
        name,
        type="ClusterIP",
        clusterIP=f"10.96.0.{number}",
        clusterIPs=[f"10.96.0.{number}"],
        externalIPs=["198.51.100.53"],
        ports=[{"name": "http", "protocol": protocol, "port": port}],
    )
    return plan_service(one, [], Topology(HERE))


SHARED = VipKey(ip_address("198.51.100.53"))


@pytest.mark.parametrize(
    "second", [sharing("second", 2, "UDP"), sharing("second", 2, "TCP", 853)], ids=["protocol", "port"]
)
@pytest.mark.parametrize("order", list(itertools.permutations((0, 1))))
def test_an_address_that_services_share_stays_while_one_of_them_has_it(
    second: ServicePlan, order: tuple[int, int]
) -> None:
    """kube-router#828, metallb#121, cilium#39172: TCP and UDP of one address by two Services; one goes."""
    both = (sharing("first", 1, "TCP"), second)
    claims = RememberedClaims()
    decision = claims.update({one.key: one for one in both})
    assert not decision.conflicts
    stays, goes = (both[at] for at in order)
    left = {goes.key: None, stays.key: stays} | claims.update({goes.key: None}).plans
    kept = left[stays.key]
    assert kept is not None
    keys = {vip.key for vip in kept.ports[0].vips}
    assert {SHARED, stays.ports[0].vips[-1].key} <= keys
