# SPDX-License-Identifier: Apache-2.0
"""Addresses for the Services of manifests: the file with the state, restarts, what cannot be read."""

from __future__ import annotations

import itertools
import threading
from ipaddress import ip_address
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lb.addresses.folder import FolderAllocator
from lb.addresses.metrics import answers
from lb.addresses.pool import PoolsFile
from lb.addresses.telemetry import Telemetry
from lb.errors import LbError
from lb.manifests.complete import Pools as Networks
from lb.manifests.source import ManifestSource
from lb.model import ObjectKey, Service, Upsert
from lb.served.http import Request

NETWORKS = Networks.parse("10.66.0.0/16,fd00:66::/112", "30000-32767")
POOLS = (
    "pools: [{name: edge, addresses: [192.0.2.0/29, '2001:db8::/125'], avoid: [first]}]\nrest_seconds: 60\n"
)


class Bench:
    """A folder of manifests, and an allocator that can be started anew."""

    def __init__(self, tmp_path: Path) -> None:
        self.manifests = tmp_path / "manifests"
        self.given = tmp_path / "given"
        self.manifests.mkdir()
        self.given.mkdir()
        self.state = self.given / "addresses.yaml"
        self.pools = tmp_path / "pools.yaml"
        self.pools.write_text(POOLS)
        self.now = 2_000_000_000.0
        self._serial = itertools.count()
        self.start()

    def start(self) -> None:
        self.telemetry = Telemetry()
        self.allocator = FolderAllocator(
            [self.manifests],
            self.state,
            PoolsFile(self.pools),
            self.telemetry,
            networks=NETWORKS,
            clock=lambda: self.now,
        )
        self.allocator.load()

    def service(self, name: str, extra: str = "", annotations: str = "", kind: str = "LoadBalancer") -> None:
        (self.manifests / f"{name}.yaml").write_text(
            f"apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, annotations: {{{annotations}}}}}\n"
            f"spec: {{type: {kind}, ports: [{{port: 80}}], selector: {{app: a}}{extra}}}\n"
        )

    def step(self) -> None:
        self.allocator.step()

    def agents(self) -> dict[str, Service]:
        """Return the Services as an agent has them that reads both folders."""
        source = ManifestSource(
            [self.manifests, self.given],
            service_cidr="10.66.0.0/16",
            node_port_range="30000-32767",
            report=lambda error: pytest.fail(str(error)),
            clock=lambda: self.now,
        )
        resources = [event.resource for event in source.scan() if isinstance(event, Upsert)]
        return {each.key.name: each for each in resources if isinstance(each, Service)}

    def addresses(self) -> dict[str, list[str]]:
        return {name: [str(one) for one in each.load_balancer_ips] for name, each in self.agents().items()}


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def test_a_service_gets_an_address_that_agents_read(bench: Bench) -> None:
    bench.service("web", ", ipFamilyPolicy: PreferDualStack")
    bench.step()
    web = bench.agents()["web"]
    assert [str(one) for one in web.load_balancer_ips] == ["192.0.2.1", "2001:db8::1"]
    assert web.balancer_note == "192.0.2.1 from pool edge, 2001:db8::1 from pool edge"
    assert "status" not in (bench.manifests / "web.yaml").read_text()


def test_a_restart_moves_nothing_whatever_comes_meanwhile(bench: Bench) -> None:
    bench.service("web")
    bench.step()
    bench.service("a-first-one")
    bench.start()
    bench.step()
    assert bench.addresses() == {"web": ["192.0.2.1"], "a-first-one": ["192.0.2.2"]}
    written = bench.state.stat().st_ino
    bench.start()
    bench.step()
    assert bench.state.stat().st_ino == written, "what says the same is not written again"


def test_a_status_in_a_manifest_is_the_truth(bench: Bench) -> None:
    (bench.manifests / "hand.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: hand}\n"
        "spec: {type: LoadBalancer, ports: [{port: 80}]}\n"
        "status: {loadBalancer: {ingress: [{ip: 192.0.2.1}]}}\n"
    )
    bench.service("web")
    bench.step()
    assert bench.addresses() == {"hand": ["192.0.2.1"], "web": ["192.0.2.2"]}
    (bench.manifests / "hand.yaml").unlink()
    bench.service("next")
    bench.step()
    assert bench.addresses() == {"web": ["192.0.2.2"], "next": ["192.0.2.3"]}, "it rests"


def test_an_address_goes_back_rests_over_a_restart_and_is_given_again(bench: Bench) -> None:
    for name in ("one", "two"):
        bench.service(name)
    bench.step()
    (bench.manifests / "one.yaml").unlink()
    bench.step()
    bench.start()
    bench.service("three")
    bench.step()
    assert bench.addresses() == {"two": ["192.0.2.2"], "three": ["192.0.2.3"]}
    bench.now += 61
    bench.service("four")
    bench.step()
    assert bench.addresses()["four"] == ["192.0.2.1"]
    assert "one" not in bench.state.read_text()


def test_a_service_that_comes_back_has_its_address_back(bench: Bench) -> None:
    bench.service("web")
    bench.step()
    (bench.manifests / "web.yaml").unlink()
    bench.step()
    bench.service("web")
    bench.step()
    assert bench.addresses() == {"web": ["192.0.2.1"]}


def test_what_cannot_be_read_loses_nothing(bench: Bench) -> None:
    bench.service("web")
    bench.step()
    (bench.manifests / "web.yaml").write_text("kind: [")
    bench.start()
    bench.service("next")
    bench.step()
    bench.service("web")
    bench.step()
    assert bench.addresses() == {"web": ["192.0.2.1"], "next": ["192.0.2.2"]}


def test_a_state_that_cannot_be_read_ends_it(bench: Bench) -> None:
    bench.state.write_text(
        "apiVersion: lbctl/v1\nkind: ServiceAddresses\nmetadata: {name: a}\naddresses: [x]\n"
    )
    with pytest.raises(LbError, match=r"addresses\.yaml:4: ServiceAddresses default/a: addresses\[0\]"):
        bench.start()


def test_a_changed_file_of_pools_is_followed_and_moves_nothing(bench: Bench) -> None:
    bench.service("web")
    bench.step()
    bench.pools.write_text("pools: [{name: other, addresses: [198.51.100.0/24]}]")
    bench.service("next")
    bench.step()
    assert bench.addresses() == {"web": ["192.0.2.1"], "next": ["198.51.100.0"]}
    assert bench.agents()["web"].balancer_note == "192.0.2.1 is in no pool, and stays all the same"


def test_a_request_and_a_class_are_read(bench: Bench) -> None:
    bench.service("web", annotations='lbctl/addresses: "192.0.2.5"')
    bench.service("by-field", ", loadBalancerIP: 192.0.2.4")
    bench.service("foreign", ", loadBalancerClass: example.com/other")
    bench.step()
    assert bench.addresses() == {"web": ["192.0.2.5"], "by-field": ["192.0.2.4"], "foreign": []}


def test_a_service_of_another_type_gives_its_address_back(bench: Bench) -> None:
    bench.service("web")
    bench.step()
    bench.service("web", kind="ClusterIP")
    bench.step()
    assert bench.addresses() == {"web": []}
    assert ip_address("192.0.2.1") in bench.telemetry.outcome.past.resting


def test_a_node_s_own_address_is_passed_over(bench: Bench) -> None:
    (bench.manifests / "node.yaml").write_text(
        "{apiVersion: v1, kind: Node, metadata: {name: node1},"
        " status: {addresses: [{type: InternalIP, address: 192.0.2.1}]}}"
    )
    bench.service("web")
    bench.step()
    assert bench.addresses() == {"web": ["192.0.2.2"]}
    assert bench.telemetry.of_nodes() == {("edge", 4): 1}


def test_metrics_tell_of_pools_and_services(bench: Bench) -> None:
    bench.telemetry.leading = True
    bench.service("web", ", ipFamilyPolicy: PreferDualStack")
    bench.service("refused", annotations='lbctl/addresses: "198.51.100.9"')
    bench.service("gone")
    bench.step()
    (bench.manifests / "gone.yaml").unlink()
    bench.step()
    told = answers(bench.telemetry)["/metrics"](Request("GET", "/metrics", "", {})).body.decode()
    found = {
        (one.name, *(text for _, text in sorted(one.labels.items()))): one.value
        for family in text_string_to_metric_families(told)
        for one in family.samples
        if one.name.startswith("lbctl_")
    }
    assert found == {
        ("lbctl_addresses_leader",): 1,
        ("lbctl_addresses_pools_file_ok",): 1,
        ("lbctl_addresses_write_failures_total",): 0,
        ("lbctl_pool_addresses", "IPv4", "edge"): 7,
        ("lbctl_pool_addresses", "IPv6", "edge"): 7,
        ("lbctl_pool_used_addresses", "IPv4", "edge"): 1,
        ("lbctl_pool_used_addresses", "IPv6", "edge"): 1,
        ("lbctl_pool_resting_addresses", "IPv4", "edge"): 1,
        ("lbctl_pool_resting_addresses", "IPv6", "edge"): 0,
        ("lbctl_pool_node_addresses", "IPv4", "edge"): 0,
        ("lbctl_pool_node_addresses", "IPv6", "edge"): 0,
        ("lbctl_balanced_services", "AddressGiven", "true"): 1,
        ("lbctl_balanced_services", "OutsidePools", "false"): 1,
    }
    bench.pools.write_text("pools: []")
    bench.step()
    assert (
        b"lbctl_addresses_pools_file_ok 0.0"
        in answers(bench.telemetry)["/metrics"](Request("GET", "/", "", {})).body
    )


def test_one_process_at_a_time_writes_the_state(bench: Bench) -> None:
    bench.service("web")
    stop, waiting = threading.Event(), threading.Event()
    threads = [threading.Thread(target=bench.allocator.run, args=(stop,))]
    other = FolderAllocator(
        [bench.manifests], bench.state, PoolsFile(bench.pools), Telemetry(), networks=NETWORKS
    )
    threads.append(threading.Thread(target=other.run, args=(waiting,)))
    try:
        threads[0].start()
        _until(lambda: bench.telemetry.leading and bench.state.exists())
        threads[1].start()
        waiting.wait(1.0)
        assert not other._telemetry.leading
        stop.set()
        threads[0].join(20)
        _until(lambda: other._telemetry.leading)
    finally:
        stop.set()
        waiting.set()
        for thread in threads:
            if thread.ident:
                thread.join(20)
    assert bench.addresses() == {"web": ["192.0.2.1"]}
    assert ObjectKey("default", "web") in other._state


def _until(done: object) -> None:
    for _ in range(600):
        if done():  # type: ignore[operator]
            return
        threading.Event().wait(0.05)
    pytest.fail("not within 30 s")


def test_a_pool_goes_by_labels_of_namespace_objects_in_the_folder(bench: Bench) -> None:
    bench.pools.write_text(
        "pools: [{name: front, addresses: [198.51.100.1], namespace_labels: {tier: front}},"
        "{name: all, addresses: [192.0.2.1]}]"
    )
    bench.start()
    bench.service("web")
    (bench.manifests / "namespace.yaml").write_text(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: default, labels: {tier: front}}\n"
    )
    bench.step()
    assert [str(one) for one in bench.agents()["web"].load_balancer_ips] == ["198.51.100.1"]
    (bench.manifests / "namespace.yaml").unlink()
    bench.service("other")
    bench.step()
    found = bench.agents()
    assert [str(one) for one in found["web"].load_balancer_ips] == ["198.51.100.1"], "it stays"
    assert [str(one) for one in found["other"].load_balancer_ips] == ["192.0.2.1"]
