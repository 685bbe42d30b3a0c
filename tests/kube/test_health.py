# SPDX-License-Identifier: Apache-2.0
"""From the Kubernetes API to a load balancer's question: source, agent and health-check ports together.

The kernel's side is fake; the API server is the double, or a real one where there is one.
"""

from __future__ import annotations

import contextlib
import json
import queue
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from ipaddress import ip_address
from typing import Any

import pytest

from lb.agent import Agent
from lb.datapath.sync.reconcile import Reconciler
from lb.inbox import Inbox, SourceEvents, Stop
from lb.kube import KubernetesSource
from lb.model import Event
from lb.served.health import HealthChecks, NodeHealth
from lb.served.history import History
from lb.served.http import Address, HttpServer
from lb.state import ClusterState
from lb.stop_event import StopEvent
from tests.fake_maps import FakeMaps
from tests.kube.harness import PATIENCE, Cluster
from tests.kube.objects import BACKEND_A, BACKEND_B, NODE, OTHER_NODE, endpoint, endpoint_slice, node, service
from tests.unit.agent_bench import FakeAttachments
from tests.unit.http_bench import LOOPBACK, ask, bound, serving

HEALTHZ: Address = (LOOPBACK, 0)


def free_port() -> int:
    """Return a port number that nobody listens on, of the range that API servers give node ports from."""
    for port in range(30_000, 32_768):
        with socket.socket() as trying, contextlib.suppress(OSError):
            trying.bind((LOOPBACK, port))
            return port
    raise AssertionError("no port is free")


class World:
    """An agent that lives from a cluster."""

    def __init__(self, server: HttpServer) -> None:
        self.server = server
        self.synced = threading.Semaphore(0)
        self.inbox: Inbox = queue.SimpleQueue()
        health = NodeHealth()
        attachments = FakeAttachments()
        attachments.addresses = (ip_address(LOOPBACK),)
        self.agent = Agent(
            inbox=self.inbox,
            state=ClusterState([KubernetesSource.name]),
            node_name=NODE,
            attachments=attachments,
            reconciler=Reconciler(FakeMaps(), time.monotonic, settle=lambda: None),
            serving=True,
            checks=HealthChecks(
                server,
                fresh=health.fresh,
                drained=health.drained,
                failed=lambda _key, text: pytest.fail(text),
            ),
            history=History(),
            announce=lambda key, note: pytest.fail(f"{key}: {note}"),
            synced=lambda _agent: self.synced.release(),
            beat=lambda _agent: None,
        )
        health.watch(self.agent)
        server.open(HEALTHZ, health.answer(), "healthz")

    def tell(self, events: Sequence[Event]) -> None:
        """Put into the inbox what a source tells."""
        self.inbox.put(SourceEvents(events, time.monotonic()))

    def ask(self, address: Address, path: str = "/healthz") -> tuple[int, Any]:
        """Return status and body; 0 when nobody listens, or not long enough to answer."""
        try:
            status, _, body = ask(address, path)
        except ConnectionError:
            return 0, None
        return status, json.loads(body)

    def wait(self, address: Address, status: int) -> Any:
        """Wait for a status after the next steps of the agent; return the body."""
        waited = threading.Event()
        for _ in range(int(PATIENCE / 0.01)):
            got, told = self.ask(address)
            if got == status:
                return told
            waited.wait(0.01)
        raise AssertionError(
            f"not within {PATIENCE} s: {address} answers {status}; it answered {got}: {told}"
        )


@pytest.fixture
def world(cluster: Cluster) -> Iterator[World]:
    cluster.put(node())
    source = KubernetesSource(cluster.client(), node_name=NODE, report=lambda error: pytest.fail(str(error)))
    stop = StopEvent()
    with serving() as server:
        world = World(server)
        threads = [
            threading.Thread(target=source.run, args=(world.tell, stop)),
            threading.Thread(target=world.agent.run),
        ]
        for thread in threads:
            thread.start()
        try:
            assert world.synced.acquire(timeout=PATIENCE)
            yield world
        finally:
            stop.set()
            world.inbox.put(Stop())
            for thread in threads:
                thread.join(PATIENCE)
                assert not thread.is_alive()


def test_health_check_node_port_follows_services_and_slices(cluster: Cluster, world: World) -> None:
    port = free_port()
    where = (LOOPBACK, port)
    asking = service(type="LoadBalancer", externalTrafficPolicy="Local", healthCheckNodePort=port)
    cluster.put(asking)
    assert world.wait(where, 503)["localEndpoints"] == 0
    here, there = endpoint(BACKEND_A), endpoint(BACKEND_B, OTHER_NODE)
    cluster.put(endpoint_slice("web-1", here, there))
    assert world.wait(where, 200) == {
        "service": {"namespace": "shop", "name": "web"},
        "localEndpoints": 1,
        "serviceProxyHealthy": True,
    }
    leaving = {"ready": False, "serving": True, "terminating": True}
    cluster.put(endpoint_slice("web-1", {**here, "conditions": leaving}, there))
    world.wait(where, 503)
    cluster.put(endpoint_slice("web-1", here))
    world.wait(where, 200)
    cluster.remove(asking)
    world.wait(where, 0)


def test_node_health_follows_the_node(cluster: Cluster, world: World) -> None:
    where = bound(world.server, HEALTHZ)
    assert world.wait(where, 200)["nodeEligible"] is True
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}
    cluster.put(node() | {"spec": {"taints": [taint]}})
    assert world.wait(where, 503)["nodeEligible"] is False
    assert world.ask(where, "/livez")[0] == 200
    cluster.put(node() | {"spec": {"taints": []}})
    world.wait(where, 200)
    cluster.remove(node())
    world.wait(where, 503)
    assert world.ask(where, "/livez")[0] == 200


def test_node_health_does_not_suffer_from_an_api_server_that_is_away(cluster: Cluster, world: World) -> None:
    where = bound(world.server, HEALTHZ)
    cluster.stop()
    try:
        assert [world.ask(where, path)[0] for path in ("/healthz", "/livez")] == [200, 200]
    finally:
        cluster.restart()
