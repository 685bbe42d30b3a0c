# SPDX-License-Identifier: Apache-2.0
"""The source against a cluster: the double, and a real API server where KUBEBUILDER_ASSETS names one."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lb.kube.timing import Pace
from lb.model import ObjectKey, Synced
from tests.kube.harness import Cluster, running
from tests.kube.objects import (
    BACKEND_A,
    BACKEND_B,
    BACKEND_C,
    NAMESPACE,
    OTHER_NODE,
    SKIP_LABEL,
    VIP,
    endpoint,
    endpoint_slice,
    node,
    service,
)


def test_what_is_there_comes_before_synced(cluster: Cluster) -> None:
    cluster.put(service())
    cluster.put(endpoint_slice("web-1", endpoint(BACKEND_A), endpoint(BACKEND_B, OTHER_NODE)))
    cluster.put(node())
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        web = run.service()
        assert web is not None
        assert web.cluster_ips == (ip_address(VIP),)
        assert run.endpoints() == {BACKEND_A, BACKEND_B}
        own = run.node()
        assert own is not None
        assert own.zone == "zone-a"
        assert own.addresses == (ip_address("192.0.2.11"),)
        assert run.events[-1] == Synced("kubernetes")
        assert run.events.count(Synced("kubernetes")) == 1


def test_it_asks_whether_another_node_is_there(cluster: Cluster) -> None:
    cluster.put(node(OTHER_NODE))
    with running(cluster.client()) as run:
        assert [run.source.lacks_node(name) for name in (OTHER_NODE, "gone")] == [False, True]


def test_an_empty_cluster_is_synced(cluster: Cluster) -> None:
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        assert run.services() == set()
        assert all(health.listed and not health.error for health in run.source.health())


def test_changes_are_followed(cluster: Cluster) -> None:
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        cluster.put(service())
        run.wait(run.service)
        cluster.put(endpoint_slice("web-1", endpoint(BACKEND_A)))
        run.wait(lambda: run.endpoints() == {BACKEND_A})
        cluster.put(endpoint_slice("web-1", endpoint(BACKEND_A), endpoint(BACKEND_B)))
        run.wait(lambda: run.endpoints() == {BACKEND_A, BACKEND_B})
        cluster.remove(endpoint_slice("web-1"))
        run.wait(lambda: run.endpoints() == set())
        cluster.remove(service())
        run.wait(lambda: run.service() is None)


def test_a_long_list_comes_in_pages(cluster: Cluster) -> None:
    names = {f"web-{i:04}" for i in range(1100)}
    for i, name in enumerate(sorted(names)):
        cluster.put(service(name, f"10.96.{8 + i // 250}.{1 + i % 250}"))
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        assert run.services() == names


def test_services_of_other_proxies_and_headless_ones_are_left_out(cluster: Cluster) -> None:
    cluster.put(service("theirs", "10.96.0.11", labels={SKIP_LABEL: "mesh"}))
    cluster.put(endpoint_slice("theirs-1", endpoint(BACKEND_B), of="theirs", labels={SKIP_LABEL: "mesh"}))
    cluster.put(service("nobody", "None"))
    cluster.put(service())
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        assert run.services() == {"web"}
        assert run.endpoints() == set()


def test_a_service_that_gets_a_skip_label_is_deleted(cluster: Cluster) -> None:
    cluster.put(service())
    with running(cluster.client()) as run:
        run.wait(run.service)
        cluster.put(service(labels={SKIP_LABEL: "mesh"}))
        run.wait(lambda: run.service() is None)
        cluster.put(service())
        run.wait(run.service)


def test_only_the_own_node_is_read(cluster: Cluster) -> None:
    cluster.put(node())
    cluster.put(node(OTHER_NODE, "192.0.2.12", "zone-b"))
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        cluster.put(node(OTHER_NODE, "192.0.2.13", "zone-b"))
        cluster.put(node(zone="zone-c"))
        run.wait(lambda: (own := run.node()) and own.zone == "zone-c")
        assert run.node(OTHER_NODE) is None


def test_a_change_that_the_model_does_not_show_is_not_emitted(cluster: Cluster) -> None:
    cluster.put(service())
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        before = len(run.events)
        cluster.put(service(labels={"team": "a"}))
        cluster.put(service("later", "10.96.0.12"))
        run.wait(lambda: run.service("later"))
        assert len(run.events) == before + 1


def test_under_load_changes_come_together(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        monkeypatch.setattr(Pace, "wait", lambda _self: Pace.TICK_SECONDS)
        before, names = run.batches, {f"web-{i:03}" for i in range(200)}
        for i, name in enumerate(sorted(names)):
            cluster.put(service(name, f"10.96.8.{1 + i}"))
        run.wait(lambda: run.services() == names)
        assert run.batches - before < len(names) / 2


def test_an_endpoint_that_moves_between_slices_is_never_lost(cluster: Cluster) -> None:
    cluster.put(service())
    cluster.put(endpoint_slice("web-1", endpoint(BACKEND_A), endpoint(BACKEND_B)))
    cluster.put(endpoint_slice("web-2", endpoint(BACKEND_C)))
    with running(cluster.client(), hold_seconds=60.0) as run:
        run.wait(lambda: run.synced)
        run.watched = True
        cluster.put(endpoint_slice("web-1", endpoint(BACKEND_A)))
        run.wait(lambda: run.seen)
        cluster.put(endpoint_slice("web-2", endpoint(BACKEND_B), endpoint(BACKEND_C)))
        run.wait(lambda: [len(piece.endpoints) for piece in run.slices()] == [1, 2])
        assert set(run.seen) == {frozenset((BACKEND_A, BACKEND_B, BACKEND_C))}


def test_the_api_server_goes_away_and_comes_back(cluster: Cluster) -> None:
    cluster.put(service())
    cluster.put(endpoint_slice("web-1", endpoint(BACKEND_A)))
    with running(cluster.client()) as run:
        run.wait(lambda: run.synced)
        cluster.stop()
        run.wait(lambda: all(health.error for health in run.source.health()))
        assert run.deletes() == []
        assert run.endpoints() == {BACKEND_A}
        cluster.restart()
        cluster.put(endpoint_slice("web-1", endpoint(BACKEND_A), endpoint(BACKEND_B)))
        run.wait(lambda: run.endpoints() == {BACKEND_A, BACKEND_B})
        run.wait(lambda: not any(health.error for health in run.source.health()))
        assert run.deletes() == []


def test_an_event_on_a_service_names_it_by_uid(cluster: Cluster) -> None:
    stored = cluster.put(service())
    with running(cluster.client()) as run:
        run.wait(run.service)
        for _ in range(3):
            run.source.announce(
                ObjectKey(NAMESPACE, "web"),
                reason="Conflict",
                action="SkipAddress",
                note="10.96.0.10:80/TCP is taken by shop/older",
            )
        run.wait(cluster.written_events)
        (event,) = cluster.written_events()
        assert event["regarding"]["uid"] == stored["metadata"]["uid"]
        assert event["regarding"]["name"] == "web"
        assert (event["type"], event["reason"], event["action"]) == ("Warning", "Conflict", "SkipAddress")
        assert event["note"] == "10.96.0.10:80/TCP is taken by shop/older"
        assert (event["reportingController"], event["reportingInstance"]) == ("lbctl", "node1")
