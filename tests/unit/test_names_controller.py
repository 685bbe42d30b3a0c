# SPDX-License-Identifier: Apache-2.0
"""Which servers are kept, and what they are told when something changes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from ipaddress import ip_address

from lb.model import (
    Delete,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Event,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    Synced,
    Upsert,
)
from lb.names import DNS
from lb.names.controller import Controller, Zones
from lb.names.records import Records

WEB = ObjectKey("default", "web")
PORTS = (ServicePort("dns", Protocol.UDP, 53, 53), ServicePort("dns-tcp", Protocol.TCP, 53, 53))
ZONES = Zones(reverse=("66.10.in-addr.arpa",))


class Kept:
    """A server that only remembers."""

    def __init__(self) -> None:
        self.running = False
        self.wanted: list[Mapping[str, Records]] = []

    def start(self) -> None:
        assert self.wanted, "it knows what to do before it begins"
        self.running = True

    def stop(self) -> None:
        self.running = False

    def want(self, zones: Mapping[str, Records]) -> None:
        self.wanted.append(zones)

    def addresses(self, name: str) -> frozenset[str]:
        """Return what the server should answer."""
        return self.wanted[-1]["cluster.local"].get((f"{name}.svc.cluster.local.", "A"), frozenset())


class Cluster:
    """A controller, and its servers by address and port."""

    def __init__(self) -> None:
        self.kept: dict[tuple[str, int], Kept] = {}
        self.controller = Controller(["s"], ZONES, self._keep)

    def _keep(self, address: str, port: int) -> Kept:
        self.kept[address, port] = found = Kept()
        return found

    def apply(self, *events: Event) -> None:
        self.controller.apply(events)


def dns() -> Upsert:
    return Upsert(Service(DNS, ports=PORTS, cluster_ips=(ip_address("10.66.0.10"),)))


def servers(*pods: tuple[str, str], name: str = "v4", target: int = 53) -> Upsert:
    """Return the slice of servers that these pods are, with their addresses."""
    ports = tuple(EndpointPort(port.name, port.protocol, target) for port in PORTS)
    endpoints = tuple(Endpoint(ip_address(address), False, target=pod) for pod, address in pods)
    return Upsert(EndpointSlice(ObjectKey(DNS.namespace, name), DNS, ports, endpoints))


def web(address: str) -> Upsert:
    return Upsert(Service(WEB, cluster_ips=(ip_address(address),)))


def listed(cluster: Cluster, events: Iterable[Event]) -> None:
    cluster.apply(*events, Synced("s"))


def test_nothing_is_told_before_everything_is_known() -> None:
    cluster = Cluster()
    cluster.apply(dns(), servers(("kube-system/a", "10.244.1.2")))
    assert not cluster.kept
    listed(cluster, [web("10.66.1.1")])
    [kept] = cluster.kept.values()
    assert kept.running
    assert len(kept.wanted) == 1
    assert kept.addresses("web.default") == {"10.66.1.1"}
    zone = kept.wanted[0]["cluster.local"]
    assert zone["ns.dns.cluster.local.", "A"] == {"10.66.0.10"}
    assert ("1.1.66.10.in-addr.arpa.", "PTR") in kept.wanted[0]["66.10.in-addr.arpa"]


def test_changes_reach_every_server_and_no_change_none() -> None:
    cluster = Cluster()
    listed(cluster, [dns(), servers(("p/a", "10.244.1.2"), ("p/b", "10.244.2.2")), web("10.66.1.1")])
    cluster.apply(web("10.66.1.2"))
    assert [each.addresses("web.default") for each in cluster.kept.values()] == [{"10.66.1.2"}] * 2
    cluster.apply(web("10.66.1.2"))
    cluster.apply(Upsert(EndpointSlice(ObjectKey("default", "web-1"), WEB)))
    assert [len(each.wanted) for each in cluster.kept.values()] == [2, 2]
    cluster.apply(Delete(Service, WEB))
    assert [each.addresses("web.default") for each in cluster.kept.values()] == [frozenset()] * 2


def test_servers_come_and_go_and_a_pod_of_two_families_is_one() -> None:
    cluster = Cluster()
    listed(cluster, [dns(), servers(("p/a", "10.244.1.2")), servers(("p/a", "fd00::2"), name="v6")])
    assert cluster.kept.keys() == {("10.244.1.2", 53)}
    cluster.apply(servers(("p/a", "10.244.1.2"), ("p/b", "10.244.2.2")))
    assert cluster.kept.keys() == {("10.244.1.2", 53), ("10.244.2.2", 53)}
    cluster.apply(servers(("p/b", "10.244.2.2")), servers(name="v6"))
    assert [each.running for each in cluster.kept.values()] == [False, True]


def test_the_port_is_the_endpoints() -> None:
    cluster = Cluster()
    listed(cluster, [dns(), servers(("p/a", "10.244.1.2"), target=5353)])
    assert cluster.kept.keys() == {("10.244.1.2", 5353)}


def test_what_was_listed_before_counts_when_the_listing_ends() -> None:
    """Synced may come alone, after all Services."""
    cluster = Cluster()
    cluster.apply(dns(), servers(("kube-system/a", "10.244.1.2")))
    cluster.apply(Upsert(Service(WEB, ports=PORTS, cluster_ips=(ip_address("10.66.0.11"),))))
    assert not cluster.kept
    cluster.apply(Synced("s"))
    (kept,) = cluster.kept.values()
    assert kept.addresses("web.default") == {"10.66.0.11"}
