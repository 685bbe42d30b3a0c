# SPDX-License-Identifier: Apache-2.0
"""Health: what the answers depend on, and the health-check ports of Services, over loopback."""

from __future__ import annotations

import json
import logging
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest
from msgspec.structs import replace as changed

from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)
from lb.plan import HealthCheck, health_check, node_ports, plan_service
from lb.plan.types import Topology
from lb.served.health import STALE_SECONDS, HealthChecks, NodeHealth
from lb.served.http import Address, HttpServer
from tests.unit.http_bench import LOOPBACK, ask, bound, serving

WEB, DNS, LOG = (ObjectKey("default", name) for name in ("web", "dns", "log"))
SECOND_ADDRESS = "127.0.0.2"
A, B = ip_address("10.244.1.2"), ip_address("10.244.1.3")
A6 = ip_address("fd00:1::2")


class FakeVitals:
    in_service = True
    node_eligible = True
    drained = False
    busy = 0.0

    def busy_seconds(self) -> float:
        return self.busy


# /healthz and /livez -------------------------------------------------------------------------------------


class Bench:
    def __init__(self, server: HttpServer) -> None:
        self.now = 1_700_000_000.25
        self.vitals = FakeVitals()
        self.health = NodeHealth(lambda: self.now)
        self.health.watch(self.vitals)
        server.open((LOOPBACK, 0), self.health.answer(), "healthz")
        self._where = bound(server, (LOOPBACK, 0))

    def ask(self, path: str) -> tuple[int, dict[str, Any]]:
        status, headers, body = ask(self._where, path)
        assert headers["Content-Type"] == "application/json"
        assert headers["X-Content-Type-Options"] == "nosniff"
        told: dict[str, Any] = json.loads(body)
        assert told["healthy"] is (status == 200)
        return status, told


@pytest.fixture
def server() -> Iterator[HttpServer]:
    with serving() as running:
        yield running


@pytest.fixture
def bench(server: HttpServer) -> Bench:
    return Bench(server)


def test_node_health_all_is_well(bench: Bench) -> None:
    now = "2023-11-14T22:13:20.250000Z"
    told = {"lastUpdated": now, "currentTime": now, "healthy": True}
    assert bench.ask("/healthz") == (200, {**told, "nodeEligible": True})
    assert bench.ask("/livez") == (200, told)


def test_node_health_of_a_node_that_is_being_deleted(bench: Bench) -> None:
    bench.health.synced()
    bench.now += 60
    bench.vitals.node_eligible = False
    status, told = bench.ask("/healthz")
    assert (status, told["nodeEligible"]) == (503, False)
    assert (told["lastUpdated"], told["currentTime"]) == (
        "2023-11-14T22:13:20.250000Z",
        "2023-11-14T22:14:20.250000Z",
    )
    assert bench.ask("/livez")[0] == 200
    bench.vitals.node_eligible = True
    assert bench.ask("/healthz")[0] == 200


def test_node_health_of_a_node_that_is_drained(bench: Bench) -> None:
    bench.vitals.drained = True
    status, told = bench.ask("/healthz")
    assert (status, told["nodeEligible"], bench.health.drained()) == (503, False, True)
    assert bench.ask("/livez")[0] == 200
    bench.vitals.drained = False
    assert bench.ask("/healthz")[0] == 200


def test_node_health_of_a_stale_agent(bench: Bench) -> None:
    for path in ("/healthz", "/livez"):
        bench.vitals.busy = STALE_SECONDS - 0.1
        assert bench.ask(path)[0] == 200
        bench.vitals.busy = STALE_SECONDS
        assert bench.ask(path)[0] == 503


def test_node_health_of_a_node_whose_maps_are_empty_as_yet(bench: Bench) -> None:
    bench.vitals.in_service = False
    status, told = bench.ask("/healthz")
    assert (status, told["lastUpdated"], told["nodeEligible"]) == (503, None, True)
    assert bench.ask("/livez")[0] == 200


def test_node_health_is_told_at_two_paths(server: HttpServer, bench: Bench) -> None:
    assert ask(bound(server, (LOOPBACK, 0)), "/")[0] == 404


# What a Service's port is to tell ------------------------------------------------------------------------

SERVICE = Service(
    WEB,
    type=ServiceType.LOAD_BALANCER,
    ports=(ServicePort("http", Protocol.TCP, 80, 8080), ServicePort("admin", Protocol.TCP, 81, 8081)),
    cluster_ips=(ip_address("10.96.0.1"), ip_address("fd00:96::1")),
    external_policy=TrafficPolicy.LOCAL,
    health_check_node_port=30500,
)
TOPOLOGY = Topology("node1")


def slices(*endpoints: Endpoint) -> list[EndpointSlice]:
    ports = (EndpointPort("http", Protocol.TCP, 8080), EndpointPort("admin", Protocol.TCP, 8081))
    return [
        EndpointSlice(ObjectKey("default", f"web-{version}"), WEB, ports, tuple(found))
        for version in (4, 6)
        if (found := [each for each in endpoints if each.address.version == version])
    ]


HERE = Endpoint(A, node="node1")
COUNTED: dict[str, tuple[Sequence[Endpoint], int]] = {
    "none": ((), 0),
    "one with two ports": ((HERE,), 1),
    "two": ((HERE, changed(HERE, address=B)), 2),
    "elsewhere": ((changed(HERE, node="node2"), changed(HERE, address=B, node="")), 0),
    "not ready": ((changed(HERE, ready=False, serving=False),), 0),
    "terminating alone": ((changed(HERE, ready=False, terminating=True),), 0),
    "terminating beside ready": ((HERE, changed(HERE, address=B, ready=False, terminating=True)), 1),
    "terminating, published": ((changed(HERE, terminating=True),), 1),
    "a pod of both families": ((HERE, changed(HERE, address=A6)), 1),
    "of the second family alone": ((changed(HERE, address=A6),), 1),
}


@pytest.mark.parametrize(("endpoints", "count"), COUNTED.values(), ids=COUNTED)
def test_health_check_node_port_counts_ready_endpoints_of_this_node(
    endpoints: Sequence[Endpoint], count: int
) -> None:
    found = health_check(SERVICE, plan_service(SERVICE, slices(*endpoints), TOPOLOGY))
    assert found is not None
    assert (found.port, found.count) == (30500, count)


NOT_ASKED = {
    "policy Cluster": {"external_policy": TrafficPolicy.CLUSTER},
    "NodePort": {"type": ServiceType.NODE_PORT},
    "no port": {"health_check_node_port": 0},
    "another proxy's": {"proxied": False},
}


@pytest.mark.parametrize("change", NOT_ASKED.values(), ids=NOT_ASKED)
def test_health_check_node_port_only_while_the_service_asks_for_it(change: dict[str, Any]) -> None:
    service = replace(SERVICE, **change)
    assert health_check(service, plan_service(service, slices(HERE), TOPOLOGY)) is None
    assert health_check(None, None) is None


# The ports -----------------------------------------------------------------------------------------------


class Ports:
    """Health-check ports on two loopback addresses."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.fresh, self.drained = True, False
        self.announced: list[tuple[str, str]] = []
        self.checks = HealthChecks(
            server,
            fresh=lambda: self.fresh,
            drained=lambda: self.drained,
            failed=lambda key, text: self.announced.append((str(key), text)),
        )
        self.checks.move([ip_address(LOOPBACK), ip_address(SECOND_ADDRESS)])

    def update(self, *unwritten: ObjectKey, **checks: HealthCheck | None) -> None:
        self.checks.update(
            {ObjectKey("default", name): check for name, check in checks.items()}, unwritten, {}
        )

    def ask(self, port: int, host: str = LOOPBACK) -> tuple[int, str, int]:
        """Return status, the Service's name and its number of endpoints."""
        status, headers, body = ask((host, port), "/healthz")
        told = json.loads(body)
        assert headers["X-Load-Balancing-Endpoint-Weight"] == str(told["localEndpoints"])
        return status, told["service"]["name"], told["localEndpoints"]

    def closed(self, port: int, host: str = LOOPBACK) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex((host, port)) != 0


def texts(ports: Ports) -> list[str]:
    return [one.text for one in ports.checks.problems()]


@pytest.fixture
def ports(server: HttpServer) -> Ports:
    return Ports(server)


def free(count: int = 1) -> list[int]:
    """Return port numbers that nobody listens on, and that stay apart."""
    with_port = [socket.create_server(("", 0)) for _ in range(count)]
    numbers = [each.getsockname()[1] for each in with_port]
    for each in with_port:
        each.close()
    return numbers


def check(port: int, *endpoints: Any) -> HealthCheck:
    return HealthCheck(port, frozenset(endpoints))


def test_health_check_node_port_answers_as_kube_proxy(ports: Ports) -> None:
    [port] = free()
    ports.update(web=check(port, A, B))
    status, headers, body = ask((LOOPBACK, port))
    assert status == 200
    assert json.loads(body) == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": 2,
        "serviceProxyHealthy": True,
    }
    assert headers["Content-Type"] == "application/json"
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["X-Load-Balancing-Endpoint-Weight"] == "2"
    assert ports.ask(port, SECOND_ADDRESS) == (200, "web", 2)


def test_health_check_node_port_without_endpoints_or_with_a_stale_agent_is_503(ports: Ports) -> None:
    [port] = free()
    ports.update(web=check(port))
    assert ports.ask(port) == (503, "web", 0)
    ports.update(web=check(port, A))
    assert ports.ask(port) == (200, "web", 1)
    ports.fresh = False
    status, _, body = ask((LOOPBACK, port))
    assert (status, json.loads(body)["serviceProxyHealthy"]) == (503, False)


def test_health_check_node_port_of_a_node_that_is_drained_is_503(ports: Ports) -> None:
    [port] = free()
    ports.update(web=check(port, A))
    ports.drained = True
    assert ports.ask(port) == (503, "web", 1)
    ports.drained = False
    assert ports.ask(port) == (200, "web", 1)


def test_health_check_node_port_closes_with_the_service(ports: Ports) -> None:
    [port] = free()
    ports.update(web=check(port, A), dns=None)
    ports.update(web=None)
    assert ports.closed(port)
    assert (ports.checks.served(), texts(ports)) == ([], [])
    ports.update(web=check(port, A))
    assert ports.ask(port) == (200, "web", 1)


def test_health_check_node_port_changes_its_number(ports: Ports) -> None:
    old, new = free(2)
    ports.update(web=check(old, A))
    ports.update(web=check(new, A))
    assert ports.closed(old)
    assert ports.ask(new) == (200, "web", 1)


@pytest.mark.parametrize("order", [("web", "dns"), ("dns", "web")])
def test_health_check_node_port_moves_between_services(ports: Ports, order: tuple[str, str]) -> None:
    """Two Services swap their ports in one burst, in whichever order they are told of."""
    one, two = free(2)
    ports.update(web=check(one, A), dns=check(two))
    after = {"web": check(two, A), "dns": check(one)}
    ports.update(**{name: after[name] for name in order})
    assert (ports.ask(one), ports.ask(two)) == ((503, "dns", 0), (200, "web", 1))
    assert (texts(ports), ports.announced) == ([], [])


def test_health_check_node_port_that_two_ask_for_is_the_ones_who_has_it(
    ports: Ports, caplog: pytest.LogCaptureFixture
) -> None:
    [port] = free()
    ports.update(web=check(port, A))
    ports.update(dns=check(port, A, B))
    assert ports.ask(port) == (200, "web", 1)
    text = "service default/web has it"
    assert [one.getMessage() for one in caplog.records] == [
        f"service default/dns: spec.healthCheckNodePort {port}: {text}"
    ]
    assert ports.announced == [("default/dns", text)]
    assert texts(ports) == [f"service default/dns: spec.healthCheckNodePort {port}: {text}"]
    ports.update(web=None)
    assert ports.ask(port) == (200, "dns", 2)
    assert texts(ports) == []


def test_health_check_node_port_that_another_process_has(
    ports: Ports, caplog: pytest.LogCaptureFixture
) -> None:
    with socket.create_server((SECOND_ADDRESS, 0)) as taken:
        port = taken.getsockname()[1]
        ports.update(web=check(port, A))
        text = f"cannot listen on {SECOND_ADDRESS}:{port}: Address already in use"
        place = f"service default/web: spec.healthCheckNodePort {port}"
        assert texts(ports) == [f"{place}: {text}"]
        assert ports.announced == [("default/web", text)]
        assert ports.ask(port) == (200, "web", 1), "its other address is served"
        [served] = [one.as_dict() for one in ports.checks.served()]
        assert served == {
            "service": "default/web",
            "port": port,
            "local_endpoints": 1,
            "addresses": [f"{LOOPBACK}:{port}"],
            "errors": [text],
        }
    ports.checks.move([ip_address(LOOPBACK)])
    ports.checks.move([ip_address(LOOPBACK), ip_address(SECOND_ADDRESS)])
    assert ports.ask(port, SECOND_ADDRESS) == (200, "web", 1)
    assert texts(ports) == []
    errors = [one.getMessage() for one in caplog.records if one.levelno == logging.ERROR]
    assert errors == [f"{place}: {text}; all else works, trying again every 0.01 s"]


def test_health_check_node_port_follows_the_node_port_addresses(ports: Ports) -> None:
    [port] = free()
    ports.update(web=check(port, A, A6))
    ports.checks.move([ip_address(SECOND_ADDRESS), ip_address("::1")])
    assert ports.closed(port)
    assert [ports.ask(port, host) for host in (SECOND_ADDRESS, "::1")] == [(200, "web", 1)] * 2
    ports.checks.move([])
    assert ports.closed(port, SECOND_ADDRESS)


@pytest.mark.parametrize(("endpoints", "four", "six"), [((A, B), 2, 0), ((A6,), 0, 1), ((A, A6), 1, 1)])
def test_health_check_node_port_tells_of_the_family_that_is_asked(
    endpoints: Sequence[Any], four: int, six: int, ports: Ports
) -> None:
    """A load balancer that asks by IPv6 would send its connections where they are dropped."""
    [port] = free()
    ports.checks.move([ip_address(LOOPBACK), ip_address("::1")])
    ports.update(web=check(port, *endpoints))
    assert ports.ask(port) == (200 if four else 503, "web", four)
    assert ports.ask(port, "::1") == (200 if six else 503, "web", six)


def test_health_check_node_port_that_is_a_node_port_as_well_is_named(
    ports: Ports, caplog: pytest.LogCaptureFixture
) -> None:
    """Its packets are led to the NodePort's Service: nobody would ever reach the socket."""
    port, other = free(2)
    ports.update(web=check(port, A))
    assert ports.ask(port) == (200, "web", 1)
    ports.checks.update({DNS: None}, (), {DNS: frozenset((port, other))})
    text = "service default/dns has it as a nodePort"
    place = f"service default/web: spec.healthCheckNodePort {port}: {text}"
    assert texts(ports) == [place]
    assert ports.announced == [("default/web", text)]
    assert [one.getMessage() for one in caplog.records] == [place]
    assert ports.closed(port)
    ports.update(web=check(other, A))
    assert ports.announced[1:] == [("default/web", text)]
    ports.checks.update({DNS: None}, (), {DNS: frozenset((port,))})
    assert ports.ask(other) == (200, "web", 1)
    ports.checks.update({WEB: check(port, A)}, (), {DNS: frozenset(), WEB: frozenset((other,))})
    assert ports.ask(port) == (200, "web", 1)
    assert (texts(ports), len(ports.announced)) == ([], 2)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, {30080}),
        ({"type": ServiceType.CLUSTER_IP}, set()),
        ({"proxied": False}, set()),
    ],
)
def test_node_ports_of_tcp_are_nobody_elses(change: dict[str, Any], expected: set[int]) -> None:
    named = (
        ServicePort("http", Protocol.TCP, 80, 8080, 30080),
        ServicePort("dns", Protocol.UDP, 53, 53, 30053),
        ServicePort("none", Protocol.TCP, 81, 8081),
    )
    assert node_ports(replace(SERVICE, ports=named, **change)) == expected
    assert node_ports(None) == set()


def test_health_check_node_port_of_a_service_that_could_not_be_written(ports: Ports) -> None:
    """Only what the kernel has, and what is still wanted, counts."""
    one, two = free(2)
    ports.update(WEB, DNS, web=check(one, A), dns=check(two, A))
    assert (ports.ask(one), ports.ask(two)) == ((503, "web", 0), (503, "dns", 0))
    ports.update(DNS, web=check(one, A))
    assert ports.ask(one) == (200, "web", 1)
    ports.update(WEB, web=check(one, A, B))
    assert ports.ask(one) == (200, "web", 1)
    ports.update(WEB, web=check(one, B))
    assert ports.ask(one) == (503, "web", 0)


def test_health_check_node_port_costs_nothing_for_services_that_have_none(ports: Ports) -> None:
    opened: list[Address] = []
    ports.server.open = lambda address, *_: opened.append(address)  # type: ignore[method-assign]
    many = {ObjectKey("default", f"s{number}"): None for number in range(10_000)}
    ports.checks.update(many, (), {})
    assert (opened, ports.checks.served()) == ([], [])
    ports.checks.update({**many, LOG: check(30500, A)}, (), {})
    assert opened == [(LOOPBACK, 30500), (SECOND_ADDRESS, 30500)]
