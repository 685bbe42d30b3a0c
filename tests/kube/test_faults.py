# SPDX-License-Identifier: Apache-2.0
"""Everything that can go wrong between the source and the API server; the double does it on command."""

from __future__ import annotations

import json
import ssl
import threading
from pathlib import Path

import pytest

from lb.kube import reflector
from lb.kube.availability import PROBE_SECONDS
from lb.lab.certificates import issue, make_authority
from tests.kube import faults
from tests.kube.double import ApiDouble, Disturbance, Fault, Handler
from tests.kube.harness import ALL, client_of, fill, running, settle, whole_lists
from tests.kube.objects import (
    BACKEND_A,
    BACKEND_B,
    NODE,
    Object,
    endpoint,
    endpoint_slice,
    node,
    service,
)

DISTURBANCES: dict[str, Disturbance] = {
    "ends in time": faults.end,
    "is reset": faults.reset,
    "ends within a line": faults.half_line(faults.end),
    "is reset within an object": faults.half_line(faults.reset),
    "has an ERROR event 410": faults.error_event(410, "Expired"),
    "has an ERROR event 500": faults.error_event(500, "InternalError"),
}


@pytest.mark.parametrize("what", DISTURBANCES)
def test_a_watch_that(what: str, double: ApiDouble) -> None:
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        before = len(run.events)
        double.disturb("services", DISTURBANCES[what])
        run.wait(lambda: len(double.asked("watch", "services")) == 2)
        double.put(service("new", "10.96.0.11"))
        run.wait(lambda: run.service("new"))
        assert len(run.events) == before + 1, "what was known is not told again"
        run.wait(lambda: not run.source.health()[0].error)


def test_a_watch_that_falls_silent_is_begun_again(double: ApiDouble) -> None:
    fill(double)
    with running(client_of(double), silence=0.3) as run:
        settle(run, double)
        silent = set(double.watches)
        double.disturb("services", faults.silent)
        double.put(service("new", "10.96.0.11"))
        run.wait(lambda: run.service("new"))
        assert silent
        assert run.deletes() == []
        assert run.waits.seconds == [], "silence is no failure of the server"


ANSWERS: dict[str, Fault] = {
    "500": faults.answer(500),
    "503 with Retry-After": faults.answer(503, "ServiceUnavailable", retry_after="7"),
    "429 with Retry-After": faults.answer(429, "TooManyRequests", retry_after="7"),
    "403": faults.answer(403, "Forbidden"),
    "a page of a proxy": faults.garbage(b"<html>Bad gateway</html>"),
    "nothing in 200": faults.garbage(b""),
    "an object that is no list": faults.garbage(b'{"kind": "Status", "metadata": {}}'),
    "no answer": faults.drop,
    "half a list": faults.truncated,
}


@pytest.mark.parametrize("what", ANSWERS)
def test_a_list_that_fails_with(what: str, double: ApiDouble) -> None:
    fill(double)
    double.fault("list", "services", ANSWERS[what], times=3)
    with running(client_of(double)) as run:
        run.wait(lambda: run.synced)
        assert run.services() == {"web"}
        assert len(double.asked("list", "services")) == 4
        assert len(run.waits.seconds) == 3


@pytest.mark.parametrize("what", ANSWERS)
def test_a_relist_that_fails_deletes_nothing(what: str, double: ApiDouble) -> None:
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        double.fault("list", "services", ANSWERS[what], times=3)
        double.put(service("new", "10.96.0.11"))
        run.wait(lambda: run.service("new"))
        double.compact()
        double.disturb("services", faults.error_event(410, "Expired"))
        run.wait(lambda: len(double.asked("list", "services")) == 5)
        run.wait(lambda: double.watching("services"))
        assert run.deletes() == []
        assert run.services() == {"web", "new"}


def test_waits_grow_and_retry_after_is_kept(double: ApiDouble) -> None:
    double.fault("list", "services", faults.answer(500), times=3)
    double.fault("list", "services", faults.answer(429, "TooManyRequests", retry_after="7"))
    double.fault("list", "services", faults.answer(429, "TooManyRequests", retry_after="86400"))
    with running(client_of(double)) as run:
        run.wait(lambda: run.synced)
        # 0.5 s, doubled each time, stretched by half of it (random is 0.5 here)
        assert run.waits.seconds == [0.75, 1.5, 3.0, 7.0 + 2.0, 60.0 + 4.0]


def test_410_as_a_status_means_a_new_list_of_which_only_differences_are_told(double: ApiDouble) -> None:
    fill(double)
    double.put(service("gone", "10.96.0.11"))
    double.put(service("other", "10.96.0.12"))
    with running(client_of(double)) as run:
        settle(run, double)
        before = len(run.events)
        double.fault("watch", "services", faults.drop, times=50)
        double.disturb("services", faults.reset)
        run.wait(lambda: len(double.asked("watch", "services")) > 1)
        double.remove(service("gone"))
        double.put(service("new", "10.96.0.13"))
        double.put(service("other", "10.96.0.14"))
        double.compact()
        run.wait(lambda: run.service("new") and not run.service("gone"))
        told = [str(event) for event in run.events[before:]]
        assert len(told) == 3, told
        assert run.services() == {"web", "new", "other"}
        assert whole_lists(double) == 2


def test_410_is_an_answer_and_no_failure(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> None:
    """An API server that was started anew gives it to every watch."""
    monkeypatch.setattr(reflector, "RELIST_SECONDS", 0.0)
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        double.put(service("new", "10.96.0.11"))  # a watch that ends without an event is a failure
        run.wait(lambda: run.service("new"))
        double.put(node("node2"))  # versions go on without this kind
        double.compact()
        double.disturb("services", faults.end)
        run.wait(lambda: len(double.asked("list", "services")) == 2)
        run.wait(lambda: double.watching("services"))
        double.disturb("services", faults.error_event(410, "Expired"))
        run.wait(lambda: len(double.asked("list", "services")) == 3)
        run.wait(lambda: double.watching("services"))
        assert run.waits.seconds == []
        assert double.probes == 0
        health = run.source.health()[0]
        assert (health.failures, health.errors, health.error) == (0, 0, "")
        assert run.deletes() == []


def test_a_server_that_forgets_at_once_what_it_has_listed_is_not_stormed(double: ApiDouble) -> None:
    fill(double)
    double.fault("watch", "services", faults.answer(410, "Expired"), times=5)
    with running(client_of(double)) as run:
        settle(run, double)
        assert run.waits.seconds == [0.75, 1.5, 3.0, 6.0, 12.0]
        assert len(double.asked("list", "services")) == 6


def test_after_an_outage_nothing_waits_longer_than_a_probe(double: ApiDouble) -> None:
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        double.stop()
        run.wait(lambda: all(health.error for health in run.source.health()))
        run.wait(lambda: len(run.waits.seconds) > 20)
        double.ready = False
        double.restart()
        double.put(endpoint_slice("web-1", endpoint(BACKEND_B)))
        before = double.probes
        run.wait(lambda: double.probes > before + 3)
        double.ready = True
        run.wait(lambda: run.endpoints() == {BACKEND_B})
        run.wait(lambda: double.watching(*ALL))
        run.wait(lambda: not any(health.error for health in run.source.health()))
        assert max(run.waits.seconds) <= PROBE_SECONDS
        assert run.deletes() == []


def test_a_new_list_leaves_each_object_once_in_memory(double: ApiDouble) -> None:
    """A copy of everything that has not changed took a third of the agent's memory."""
    for i in range(1200):
        double.put(service(f"web-{i:04}", f"10.96.{i // 250}.{1 + i % 250}"))
        double.put(endpoint_slice(f"web-{i:04}", endpoint(BACKEND_A), of=f"web-{i:04}"))
    with running(client_of(double)) as run:
        settle(run, double)
        told = {key: id(resource) for key, resource in run.resources.items()}
        double.put(endpoint_slice("web-0007", endpoint(BACKEND_B), of="web-0007"))
        run.wait(lambda: BACKEND_B in run.endpoints())
        double.compact()
        for kind in ALL:
            double.disturb(kind, faults.error_event(410, "Expired"))
        run.wait(lambda: len(double.asked("list", "services")) == 6)
        run.wait(lambda: double.watching(*ALL))
        run.wait(lambda: len(double.asked("list", "endpointslices")) == 6)
        stores = (run.source._services._store, run.source._slices._store)
        held = {id(resource) for store in stores for resource, _ in store.values()}
        assert held == {id(resource) for resource in run.resources.values()}
        changed = [key for key, ident in told.items() if id(run.resources[key]) != ident]
        assert [key.name for _, key in changed] == ["web-0007"]


def test_a_watch_goes_on_from_the_version_of_the_last_bookmark(double: ApiDouble) -> None:
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        double.put(node("node2"))  # versions are the cluster's, and go on without this resource
        double.disturb("services", faults.bookmark)
        run.wait(lambda: run.source.health()[0].resource_version == str(double.version))
        double.compact()
        double.disturb("services", faults.end)
        run.wait(lambda: len(double.asked("watch", "services")) == 2)
        assert double.asked("watch", "services")[1].query["resourceVersion"] == str(double.version)
        assert len(double.asked("list", "services")) == 1


def test_a_continue_token_that_expires_means_the_whole_list_in_one_piece(double: ApiDouble) -> None:
    for i in range(1100):
        double.put(service(f"web-{i:04}", f"10.96.{i // 250}.{1 + i % 250}"))

    def expire_then(answer: Fault) -> Fault:
        def fault(handler: Handler) -> None:
            answer(handler)
            double.remove(service("web-0000"))
            double.compact()

        return fault

    def page(handler: Handler) -> None:
        handler.send_json(200, double.page(handler.request_))

    double.fault("list", "services", expire_then(page))
    with running(client_of(double)) as run:
        run.wait(lambda: run.synced)
        first, second, last = double.asked("list", "services")
        assert "continue" not in first.query
        assert "continue" in second.query
        assert "limit" not in last.query
        assert "continue" not in last.query
        assert run.services() == {f"web-{i:04}" for i in range(1, 1100)}
        assert run.deletes() == []


def test_the_lists_and_watches_that_are_asked_for(double: ApiDouble) -> None:
    with running(client_of(double)) as run:
        settle(run, double)
    (listed,) = double.asked("list", "endpointslices")
    assert listed.query == {
        "limit": "500",
        "labelSelector": "kubernetes.io/service-name,"
        "!service.kubernetes.io/service-proxy-name,!service.kubernetes.io/headless",
    }
    assert listed.headers["User-Agent"].startswith("lbctl/")
    (watched,) = double.asked("watch", "nodes")
    assert watched.query == {
        "watch": "1",
        "allowWatchBookmarks": "true",
        "resourceVersion": "1000",
        "timeoutSeconds": "450",
        "fieldSelector": f"metadata.name={NODE}",
    }


def test_a_server_that_ends_watches_at_once_is_not_stormed(double: ApiDouble) -> None:
    double.fault("watch", "services", faults.stream(), times=5)
    with running(client_of(double)) as run:
        settle(run, double)
        run.wait(lambda: len(double.asked("watch", "services")) == 6)
        assert run.waits.seconds == [0.75, 1.5, 3.0, 6.0, 12.0]
        assert whole_lists(double) == 1


def test_a_line_that_is_no_event_means_a_new_list(double: ApiDouble) -> None:
    fill(double)
    double.fault("watch", "services", faults.stream(b"<html>\n"))
    with running(client_of(double)) as run:
        run.wait(lambda: len(double.asked("list", "services")) == 2)
        settle(run, double)
        assert run.deletes() == []


def test_events_before_a_failure_in_one_chunk_are_kept(double: ApiDouble) -> None:
    item: Object = service("early", "10.96.0.11")
    item["metadata"]["resourceVersion"] = "1000"
    line = json.dumps({"type": "ADDED", "object": item}).encode()
    double.fault("watch", "services", faults.stream(line + b'\n{"type":"ERR'))
    double.fault("watch", "services", faults.hang)
    with running(client_of(double)) as run:
        run.wait(lambda: run.service("early"))
        double.released.set()


def test_an_event_in_many_chunks_is_one_event(double: ApiDouble) -> None:
    item: Object = service("slow", "10.96.0.11")
    item["metadata"]["resourceVersion"] = "1000"
    line = json.dumps({"type": "ADDED", "object": item}).encode() + b"\n"
    double.fault("watch", "services", faults.stream(*(line[i : i + 7] for i in range(0, len(line), 7))))
    with running(client_of(double)) as run:
        run.wait(lambda: run.service("slow"))


def test_a_server_that_does_not_answer_shows_in_health_and_harms_nothing(
    double: ApiDouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reflector, "ANSWER_SECONDS", 0.2)
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        contact = run.source.health()[0].contact
        double.fault("list", "services", faults.hang, times=3)
        double.compact()
        double.disturb("services", faults.error_event(410, "Expired"))
        run.wait(lambda: run.source.health()[0].failures == 3)
        health = run.source.health()[0]
        assert "silent" in health.error
        assert (health.resource, health.objects, health.resource_version) == ("services", 1, "")
        assert contact is not None
        assert health.contact is not None
        assert run.deletes() == []
        assert health.errors >= 3
        run.wait(lambda: not run.source.health()[0].error)
        recovered = run.source.health()[0]
        assert recovered.failures == 0
        assert recovered.errors >= health.errors, "it only grows"
        assert run.services() == {"web"}


def test_stopping_does_not_wait_for_the_server(double: ApiDouble) -> None:
    before = set(threading.enumerate())
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        double.disturb("services", faults.silent)
    assert source_threads(before) == set()


def test_stopping_does_not_wait_for_the_server_behind_tls(tmp_path: Path) -> None:
    make_authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*issue(tmp_path, "apiserver"))
    before = set(threading.enumerate())
    with ApiDouble(context) as double:
        with running(client_of(double, ssl_ca_cert=str(tmp_path / "ca.crt"))) as run:
            settle(run, double)
        assert source_threads(before) == set()


def source_threads(before: set[threading.Thread]) -> set[str]:
    """Return the names of the source's threads that began since and still run."""
    names = {thread.name for thread in set(threading.enumerate()) - before}
    return {name for name in names if name.startswith("kubernetes ")}


def test_a_burst_is_a_handful_of_batches(double: ApiDouble) -> None:
    fill(double)
    with running(client_of(double)) as run:
        settle(run, double)
        before = run.batches
        pieces = [
            endpoint_slice(f"burst-{i}", endpoint(f"10.0.{i >> 8}.{i & 255}"), of=f"web-{i}")
            for i in range(5000)
        ]
        with double.changed:  # the watch sees them all at once
            for piece in pieces:
                double.put(piece)
        run.wait(lambda: len(run.resources) == 5000 + 3)
        assert run.batches - before < 500
