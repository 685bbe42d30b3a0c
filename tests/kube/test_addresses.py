# SPDX-License-Identifier: Apache-2.0
"""Load-balancer addresses by way of an API server: statuses, conditions, Events, and two that take turns."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.addresses.cluster import ClusterAllocator
from lb.addresses.pool import PoolsFile
from lb.addresses.telemetry import Telemetry
from lb.kube import lease as leases
from lb.kube.lease import Lease
from lb.kube.timing import Timing
from lb.model import ObjectKey
from tests.cluster_double import ClusterDouble
from tests.kube import faults
from tests.kube.harness import PATIENCE, client_of
from tests.kube.objects import NAMESPACE, Object
from tests.kube.test_rbac import Right, rights

RBAC = Path(__file__).parents[2] / "deploy" / "addresses" / "rbac.yaml"
LEASE = ObjectKey("kube-system", "lbctl-addresses")


@pytest.fixture
def server() -> Iterator[ClusterDouble]:
    double = ClusterDouble()
    with double:
        for name in (NAMESPACE, LEASE.namespace):
            double.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        yield double


@pytest.fixture
def pools(tmp_path: Path) -> Path:
    path = tmp_path / "pools.yaml"
    path.write_text("pools: [{name: edge, addresses: [192.0.2.0/29, '2001:db8::/125'], avoid: [first]}]")
    return path


@dataclass
class Allocator:
    """One that runs in a thread."""

    telemetry: Telemetry
    stop: threading.Event = field(default_factory=threading.Event)


@contextlib.contextmanager
def running(server: ClusterDouble, pools: Path, identity: str = "one") -> Iterator[Allocator]:
    client, timing, telemetry = client_of(server), Timing(), Telemetry()
    lease = Lease(client, LEASE, identity, timing)
    allocator = ClusterAllocator(client, lease, PoolsFile(pools), telemetry, identity=identity, timing=timing)
    found = Allocator(telemetry)
    thread = threading.Thread(target=allocator.run, args=(found.stop,))
    thread.start()
    try:
        yield found
    finally:
        found.stop.set()
        thread.join(PATIENCE)


def until(done: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE
    while not done():
        assert time.monotonic() < end, f"not within {PATIENCE} s"
        time.sleep(0.02)


def make(server: ClusterDouble, name: str, **spec: Any) -> Object:
    meta = {"name": name, "namespace": NAMESPACE, "annotations": spec.pop("annotations", {})}
    body = {
        "metadata": meta,
        "spec": {"type": "LoadBalancer", "ports": [{"port": 80, "name": "http"}], **spec},
    }
    with server.changed:
        return server.registry.create("services", NAMESPACE, body, {})


def status(server: ClusterDouble, name: str) -> Object:
    with server.changed:
        found: Object = server.objects["services"][NAMESPACE, name].get("status") or {}
    return found


def addresses(server: ClusterDouble, name: str) -> list[str]:
    return [each["ip"] for each in status(server, name).get("loadBalancer", {}).get("ingress", ())]


def condition(server: ClusterDouble, name: str) -> Object:
    found = status(server, name).get("conditions") or [{}]
    return dict(found[-1])


def events(server: ClusterDouble) -> list[tuple[str, str, str]]:
    with server.changed:
        found = list(server.objects["events"].values())
    return [(each["type"], each["reason"], each["note"]) for each in found]


def test_a_service_gets_its_addresses_a_condition_and_an_event(server: ClusterDouble, pools: Path) -> None:
    make(server, "web", ipFamilyPolicy="RequireDualStack")
    with running(server, pools):
        until(lambda: addresses(server, "web"))
        note = "192.0.2.1 from pool edge, 2001:db8::1 from pool edge"
        assert status(server, "web")["loadBalancer"]["ingress"] == [
            {"ip": "192.0.2.1", "ipMode": "VIP"},
            {"ip": "2001:db8::1", "ipMode": "VIP"},
        ]
        found = condition(server, "web")
        assert found.pop("lastTransitionTime")
        assert found == {
            "type": "lbctl/Addresses",
            "status": "True",
            "reason": "AddressGiven",
            "message": note,
        }
        until(lambda: events(server) == [("Normal", "AddressGiven", note)])


def test_what_cannot_be_had_is_said_and_had_later(server: ClusterDouble, pools: Path) -> None:
    make(server, "web", annotations={"lbctl/addresses": "198.51.100.9"})
    with running(server, pools):
        until(lambda: condition(server, "web"))
        assert (condition(server, "web")["status"], condition(server, "web")["reason"]) == (
            "False",
            "OutsidePools",
        )
        until(lambda: [kind for kind, _, _ in events(server)] == ["Warning"])
        pools.write_text("pools: [{name: more, addresses: [198.51.100.0/24]}]")
        until(lambda: addresses(server, "web") == ["198.51.100.9"])


def test_a_node_s_own_address_is_passed_over_and_a_service_that_names_it_is_told(
    server: ClusterDouble, pools: Path
) -> None:
    server.put(node_of("192.0.2.1"))
    make(server, "web")
    with running(server, pools) as one:
        until(lambda: addresses(server, "web") == ["192.0.2.2"])
        make(server, "asks", annotations={"lbctl/addresses": "192.0.2.1"})
        text = "192.0.2.1, which it names, is Node node1's own"
        until(lambda: ("Warning", "AddressOfNode", text) in events(server))
        assert one.telemetry.of_nodes() == {("edge", 4): 1}
        server.put(node_of("192.0.2.7"))
        until(lambda: addresses(server, "asks") == ["192.0.2.1"])


def node_of(address: str) -> Object:
    entry = {"type": "InternalIP", "address": address}
    meta = {"name": "node1"}
    return {"apiVersion": "v1", "kind": "Node", "metadata": meta, "status": {"addresses": [entry]}}


def test_what_others_wrote_into_the_status_stays(server: ClusterDouble, pools: Path) -> None:
    mine = {"type": "example.com/Mine", "status": "True", "reason": "R", "message": "m"}
    by_hand = {"ip": "192.0.2.1", "ports": [{"port": 80, "protocol": "TCP"}]}
    stored = make(server, "web", ipFamilyPolicy="PreferDualStack")
    server.put({**stored, "status": {"loadBalancer": {"ingress": [by_hand]}, "conditions": [mine]}})
    foreign = make(server, "foreign")
    elsewhere = {"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}
    server.put({**foreign, "status": elsewhere})
    with running(server, pools):
        until(lambda: len(addresses(server, "web")) == 2)
        assert status(server, "web")["loadBalancer"]["ingress"][0] == by_hand
        assert status(server, "web")["conditions"][0] == mine
        assert status(server, "foreign") == elsewhere


def test_the_next_one_takes_over_and_moves_nothing(
    server: ClusterDouble, pools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lb.addresses.cluster.RENEW_SECONDS", 0.2)
    make(server, "web")
    with running(server, pools) as one:
        until(lambda: addresses(server, "web") and one.telemetry.leading)
        with running(server, pools, "two") as two:
            make(server, "a-second")
            until(lambda: addresses(server, "a-second"))
            assert not two.telemetry.leading
            one.stop.set()
            until(lambda: not one.telemetry.leading)
            make(server, "third")
            until(lambda: addresses(server, "third") and two.telemetry.leading)
    found = {name: addresses(server, name) for name in ("web", "a-second", "third")}
    assert found == {"web": ["192.0.2.1"], "a-second": ["192.0.2.2"], "third": ["192.0.2.3"]}


def test_one_that_ended_without_a_word_is_replaced(
    server: ClusterDouble, pools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lb.addresses.cluster.RENEW_SECONDS", 0.2)
    monkeypatch.setattr(leases, "LEASE_SECONDS", 2)
    dead = Lease(client_of(server), LEASE, "dead", Timing())
    assert dead.hold()
    make(server, "web")
    with running(server, pools):
        until(lambda: addresses(server, "web"))


def test_an_api_server_that_goes_and_comes_back_costs_nothing(server: ClusterDouble, pools: Path) -> None:
    make(server, "web")
    with running(server, pools):
        until(lambda: addresses(server, "web"))
        server.stop()
        server.restart()
        make(server, "next")
        until(lambda: addresses(server, "next"))
    assert (addresses(server, "web"), addresses(server, "next")) == (["192.0.2.1"], ["192.0.2.2"])


def test_a_status_that_is_refused_once_is_written_later(server: ClusterDouble, pools: Path) -> None:
    server.fault("patch", "services", faults.answer(500))
    make(server, "web")
    with running(server, pools) as one:
        until(lambda: addresses(server, "web"))
        assert one.telemetry.failures == 1


def test_pools_go_by_labels_of_namespaces_which_are_watched_while_one_does(
    server: ClusterDouble, pools: Path
) -> None:
    """No pool is chosen before the labels are known."""
    labelled = "{name: front, addresses: [198.51.100.0/29], namespace_labels: {tier: front}}"
    plain = pools.read_text()
    make(server, "first")
    with running(server, pools):
        until(lambda: addresses(server, "first"))
        assert not server.asked("list", "namespaces")
        rewrite(pools, plain.replace("pools: [", f"pools: [{labelled}, "))
        until(lambda: server.watching("namespaces"))
        make(server, "second")
        until(lambda: addresses(server, "second"))
        named = {"name": NAMESPACE, "labels": {"tier": "front"}}
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": named}
        server.put(namespace)
        until(lambda: next_of(server).startswith("198.51.100."))
        rewrite(pools, plain)
        # The server sees that nobody watches any more when it has something to tell.
        until(lambda: server.put(namespace) and not server.watching("namespaces"))
    assert (addresses(server, "first"), addresses(server, "second")) == (["192.0.2.1"], ["192.0.2.2"])
    rewrite(pools, plain.replace("pools: [", f"pools: [{labelled}, "))
    with running(server, pools, "two"):
        make(server, "last")
        until(lambda: addresses(server, "last"))
    assert addresses(server, "last")[0].startswith("198.51.100."), "the labels were listed first"


def rewrite(path: Path, text: str) -> None:
    draft = path.with_suffix(".draft")
    draft.write_text(text)
    draft.rename(path)


def next_of(server: ClusterDouble) -> str:
    """Return the address that a Service is given that is made now, and delete it again."""
    name = f"probe-{server.version}"  # one of the same name would get the address back
    probe = make(server, name)
    until(lambda: addresses(server, name))
    found = addresses(server, name)[0]
    server.remove(probe)
    return found


def test_the_roles_allow_exactly_the_requests_that_are_made(
    server: ClusterDouble, pools: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lb.kube.events.SERIES_SECONDS", -1.0)
    monkeypatch.setattr("lb.addresses.cluster.RENEW_SECONDS", 0.2)
    pools.write_text(
        "pools: [{name: edge, addresses: [192.0.2.0/29], namespace_labels: {tier: front}},"
        "{name: all, addresses: [192.0.2.8/29]}]"
    )
    with running(server, pools):
        until(lambda: all(map(server.watching, ("services", "nodes", "namespaces"))))
        make(server, "web")
        until(lambda: addresses(server, "web") and events(server) and server.asked("update", "leases"))
        # The Event of now is said again when a Service loses and regains its address.
        with server.changed:
            web = server.objects["services"][NAMESPACE, "web"]
        server.put({**web, "status": {}})
        until(lambda: server.asked("patch", "events"))
    asked: set[Right] = {each.right for each in server.requests}
    items = list(yaml.safe_load_all(RBAC.read_text()))
    granted: set[Right] = set()
    for item in items:
        if item["kind"] in ("Role", "ClusterRole"):
            granted |= rights(item)
    assert asked == granted
    [role] = [each for each in items if each["kind"] == "Role"]
    named = [rule for rule in role["rules"] if "create" not in rule["verbs"]]
    assert [rule["resourceNames"] for rule in named] == [[LEASE.name]]
