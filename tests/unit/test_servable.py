# SPDX-License-Identifier: Apache-2.0
"""Which addresses a node can serve, and the agent's answer about them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

import pytest

from lb.announce.report import Report, from_dict
from lb.announce.servable import EXCLUDED, AddressKind, NodeNow, Standing, Verdict, servable
from lb.errors import LbError
from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    IPAddress,
    Node,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
    Upsert,
)
from lb.served.http import Request
from lb.served.servable import PATH, Servables
from lb.state import ClusterState

HERE, THERE = "node1", "node2"
VIP, VIP6 = ip_address("203.0.113.5"), ip_address("2001:db8:203::5")
NODE = NodeNow(HERE, Node(HERE))


def service(name: str = "web", *, local: bool = False, **fields: object) -> Service:
    made = Service(
        ObjectKey("shop", name),
        type=ServiceType.LOAD_BALANCER,
        ports=(ServicePort("http", Protocol.TCP, 80, 8080),),
        cluster_ips=(ip_address("10.96.0.1"), ip_address("fd00:96::1")),
        load_balancer_ips=(VIP, VIP6),
        external_policy=TrafficPolicy.LOCAL if local else TrafficPolicy.CLUSTER,
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def ready(node: str, address: str = "10.244.1.2") -> Endpoint:
    return Endpoint(ip_address(address), node=node)


def dying(node: str, address: str = "10.244.1.3") -> Endpoint:
    return Endpoint(ip_address(address), ready=False, serving=True, terminating=True, node=node)


def piece(*endpoints: Endpoint, name: str = "web", port: str = "http") -> EndpointSlice:
    return EndpointSlice(
        ObjectKey("shop", f"{name}-1"),
        ObjectKey("shop", name),
        (EndpointPort(port, Protocol.TCP, 8080),),
        endpoints,
    )


def standing(*objects: Service | EndpointSlice, node: NodeNow = NODE, address: IPAddress = VIP) -> Standing:
    services = [one for one in objects if isinstance(one, Service)]
    slices = [one for one in objects if isinstance(one, EndpointSlice)]
    return servable(node, services, slices)[address].standing


@pytest.mark.parametrize(
    ("local", "endpoints", "expected"),
    [
        (False, (), Standing.CANNOT),
        (False, (ready(THERE),), Standing.SERVES),
        (False, (ready(HERE),), Standing.SERVES),
        (False, (dying(THERE),), Standing.SERVES),
        (True, (ready(THERE),), Standing.CANNOT),
        (True, (ready(HERE),), Standing.SERVES),
        # The one here ends, and there is a better place: routers are to go there while it still serves.
        (True, (dying(HERE), ready(THERE)), Standing.CANNOT),
        # It is the last one of all: better here than nowhere.
        (True, (dying(HERE),), Standing.SERVES),
        (True, (Endpoint(ip_address("10.244.1.2"), ready=False, serving=False, node=HERE),), Standing.CANNOT),
        # An endpoint without a node is nobody's.
        (True, (ready(""),), Standing.CANNOT),
    ],
)
def test_it_takes_an_endpoint_that_the_policy_offers(
    *, local: bool, endpoints: tuple[Endpoint, ...], expected: Standing
) -> None:
    assert standing(service(local=local), piece(*endpoints)) is expected


def test_an_address_needs_endpoints_of_its_own_family() -> None:
    assert standing(service(), piece(ready(HERE)), address=VIP6) is Standing.CANNOT
    assert standing(service(), piece(ready(HERE, "fd00:244::2")), address=VIP6) is Standing.SERVES
    single = service(cluster_ips=(ip_address("10.96.0.1"),))
    assert standing(single, piece(ready(HERE, "fd00:244::2")), address=VIP6) is Standing.CANNOT


def test_endpoints_of_another_port_do_not_count() -> None:
    assert standing(service(), piece(ready(HERE), port="metrics")) is Standing.CANNOT


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # One of them has no endpoint anywhere: no node could serve it.
        ((False, (ready(THERE),)), (False, ()), Standing.SERVES),
        ((True, (ready(HERE),)), (True, ()), Standing.SERVES),
        # A node must have both, as there is one that has.
        ((True, (ready(HERE), ready(THERE, "10.244.2.2"))), (True, (ready(THERE),)), Standing.CANNOT),
        ((True, (ready(HERE), ready(THERE, "10.244.2.2"))), (True, (ready(HERE),)), Standing.SERVES),
        # No node has both: the one that has one of them is better than none.
        ((True, (ready(HERE),)), (True, (ready(THERE),)), Standing.SERVES),
        # One is served everywhere, the other one only where its endpoint is.
        ((False, (ready(HERE),)), (True, (ready(THERE),)), Standing.CANNOT),
        ((False, (ready(THERE),)), (True, (ready(HERE),)), Standing.SERVES),
    ],
)
def test_services_that_share_an_address(
    first: tuple[bool, tuple[Endpoint, ...]],
    second: tuple[bool, tuple[Endpoint, ...]],
    expected: Standing,
) -> None:
    objects: list[Service | EndpointSlice] = []
    for name, (local, endpoints) in (("one", first), ("two", second)):
        objects += [service(name, local=local), piece(*endpoints, name=name)]
    assert standing(*objects) is expected


@pytest.mark.parametrize(
    ("node", "expected", "word"),
    [
        (NODE, Standing.SERVES, ""),
        (NodeNow(HERE), Standing.SERVES, ""),  # no Node object yet, as before the first listing
        (replace(NODE, node=Node(HERE, cordoned=True)), Standing.LAST, "cordoned"),
        (replace(NODE, node=Node(HERE, labels={EXCLUDED: ""})), Standing.LEAVING, EXCLUDED),
        (replace(NODE, eligible=False), Standing.LEAVING, "deleted"),
        (replace(NODE, drained=True), Standing.LEAVING, "lbctl node drain"),
        (replace(NODE, fresh=False), Standing.LAST, "minute"),
        (replace(NODE, in_service=False), Standing.CANNOT, "programs"),
    ],
)
def test_what_the_node_as_a_whole_is(node: NodeNow, expected: Standing, word: str) -> None:
    found = servable(node, [service()], [piece(ready(THERE))])[VIP]
    assert found.standing is expected
    assert word in found.why
    assert bool(found.why) is (expected is not Standing.SERVES)
    none = servable(node, [service()], [])[VIP]
    assert none.standing is Standing.CANNOT
    assert "shop/web" in none.why


def test_some_addresses_are_for_nobody_to_announce() -> None:
    own, others = ip_address("192.0.2.11"), ip_address("192.0.2.12")
    special = ip_address("127.0.0.9")
    found = servable(
        replace(NODE, own=frozenset((own,)), others={others: THERE}),
        [service(load_balancer_ips=(own, others, special), external_ips=(VIP,))],
        [piece(ready(HERE))],
    )
    assert [(str(one.address), one.standing, one.kind) for one in found.values()] == [
        ("127.0.0.9", Standing.CANNOT, AddressKind.LOAD_BALANCER),
        ("192.0.2.11", Standing.CANNOT, AddressKind.LOAD_BALANCER),
        ("192.0.2.12", Standing.CANNOT, AddressKind.LOAD_BALANCER),
        ("203.0.113.5", Standing.SERVES, AddressKind.EXTERNAL_IP),
    ]
    assert [found[one].why for one in (own, others)] == [
        "it is an address of node node1",
        "it is an address of node node2",
    ]


@pytest.mark.parametrize(
    "other",
    [service(proxied=False), service(headless=True), service(type=ServiceType.EXTERNAL_NAME)],
)
def test_services_that_are_not_served_here_have_no_address(other: Service) -> None:
    assert servable(NODE, [other], [piece(ready(HERE))]) == {}


@dataclass
class FakeAgent:
    in_step: bool = True
    in_service: bool = True
    node_eligible: bool = True
    drained: bool = False
    own_addresses: frozenset[IPAddress] = field(default_factory=frozenset)

    def busy_seconds(self) -> float:
        return 0.0


def ask(served: Servables, query: str = "") -> dict[str, object]:
    response = served.answer()(Request("GET", PATH, query, {}))
    assert response.status == 200
    found: dict[str, object] = json.loads(response.body)
    return found


def test_the_agent_answers_shortly_while_nothing_changes() -> None:
    state, agent = ClusterState(), FakeAgent()
    node = Node(HERE, (ip_address("192.0.2.11"),), labels={"rack": "a"})
    state.apply([Upsert(service(labels={"tier": "front"})), Upsert(piece(ready(HERE))), Upsert(node)])
    served = Servables(state, agent, HERE)
    first = ask(served)
    report = from_dict(first)
    assert report == served.report()
    assert report.ready
    assert (report.node_addresses, report.labels) == (node.addresses, {"rack": "a"})
    verdict = report.verdicts[VIP]
    services = (ObjectKey("shop", "web"),)
    assert verdict == Verdict(VIP, Standing.SERVES, services=services, labels=({"tier": "front"},))
    known = f"known={first['version']}"
    assert ask(served, known) == {"version": first["version"]}
    state.apply([Upsert(service("another", load_balancer_ips=()))])  # concerns no address
    assert ask(served, known) == {"version": first["version"]}
    state.apply([Upsert(piece(dying(HERE), ready(THERE)))])
    assert ask(served, known) == {"version": first["version"]}
    agent.in_service = False
    changed = ask(served, known)
    assert changed["version"] != first["version"]
    assert from_dict(changed).verdicts[VIP].standing is Standing.CANNOT


def test_an_agent_that_starts_says_that_nothing_follows_from_what_is_missing() -> None:
    assert not from_dict(ask(Servables(ClusterState(), FakeAgent(in_step=False), HERE))).ready


def test_an_answer_of_another_version_is_one_error() -> None:
    told = Report("1", True, HERE).as_dict()
    assert from_dict(told) == Report("1", True, HERE)
    with pytest.raises(LbError, match="of another version"):
        from_dict({**told, "addresses": [{"address": "203.0.113.5", "standing": "sideways"}]})
