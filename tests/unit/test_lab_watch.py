# SPDX-License-Identifier: Apache-2.0
"""Following the API server over a real socket; every failure leads back to what is there."""

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lb.kube.availability import Availability
from lb.kube.timing import Timing
from lb.lab.api import PODS, Api, Object
from lb.lab.watch import Cache, Change, follower
from lb.model import Delete, Node, ObjectKey
from tests.cluster_double import ClusterDouble
from tests.kube import faults
from tests.kube.harness import Waits, client_of

PATIENCE = 20.0


def pod(name: str, version: int = 0, uid: str = "") -> Object:
    meta: Object = {"name": name, "namespace": "default"}
    if version:
        meta |= {"resourceVersion": str(version), "uid": uid or name}
    spec = {"containers": [{"name": "main", "image": "any"}]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec}


def key(name: str) -> ObjectKey:
    return ObjectKey("default", name)


def test_an_older_version_never_replaces_a_newer_one() -> None:
    cache = Cache([PODS])
    cache.put(PODS, pod("a", 9))
    cache.put(PODS, pod("a", 10))
    cache.put(PODS, pod("a", 9))
    assert cache.of(PODS)[key("a")]["metadata"]["resourceVersion"] == "10"


def test_only_the_very_object_is_dropped() -> None:
    cache = Cache([PODS])
    cache.put(PODS, pod("a", 10, uid="second"))
    cache.drop(PODS, pod("a", 11, uid="first"))
    assert key("a") in cache.of(PODS)
    cache.drop(PODS, pod("a", 11, uid="second"))
    cache.drop(PODS, pod("a", 12, uid="second"))
    assert cache.of(PODS) == {}


def test_what_is_gone_does_not_come_back_with_a_late_answer() -> None:
    """A status is sent, the object deleted and seen to be gone, and only then the answer read."""
    cache = Cache([PODS])
    cache.put(PODS, pod("a", 9, uid="first"))
    cache.take(PODS, [Delete(Node, key("a"))], 11)
    cache.put(PODS, pod("a", 10, uid="first"))
    assert cache.of(PODS) == {}
    cache.put(PODS, pod("a", 12, uid="second"))
    cache.take(PODS, [Delete(Node, key("a"))], 20)
    cache.put(PODS, pod("a", 19, uid="second"))
    assert cache.of(PODS) == {}
    cache.put(PODS, pod("a", 21, uid="third"))
    assert list(cache.of(PODS)) == [key("a")]


def test_what_we_deleted_and_lives_on_comes_back() -> None:
    """A finalizer keeps an object: the watch tells of a change, not of an end."""
    cache = Cache([PODS])
    cache.put(PODS, pod("a", 9))
    cache.drop(PODS, pod("a", 9))
    cache.put(PODS, pod("a", 10))
    assert list(cache.of(PODS)) == [key("a")]


def test_a_cache_is_complete_when_everything_was_listed() -> None:
    cache = Cache([PODS])
    assert not cache.complete
    cache.take(PODS, [], 1)
    assert cache.complete


class Following:
    """A follower at work and the cache that follows from it."""

    def __init__(self) -> None:
        self.cache = Cache([PODS])
        self._changed = threading.Condition()

    def tell(self, change: Change) -> None:
        with self._changed:
            change(self.cache)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], object]) -> None:
        with self._changed:
            assert self._changed.wait_for(condition, PATIENCE)

    def names(self) -> set[str]:
        return {each.name for each in self.cache.of(PODS)}


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterDouble]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ClusterDouble()
    with server:
        yield server


@contextlib.contextmanager
def following(double: ClusterDouble) -> Iterator[Following]:
    run = Following()
    timing = Timing(random=lambda: 0.0, wait=Waits())
    client = client_of(double)
    availability = Availability(client.probe, timing)
    follows = follower(Api(client), PODS, run.tell, availability, timing)
    stop = threading.Event()
    thread = threading.Thread(target=follows.run, args=(stop,))
    thread.start()
    try:
        yield run
    finally:
        stop.set()
        availability.wake()
        double.stop()
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_lists_then_watches(double: ClusterDouble) -> None:
    stored = double.put(pod("a"))
    with following(double) as run:
        run.wait(lambda: run.names() == {"a"})
        double.put(pod("b"))
        double.remove(stored)
        run.wait(lambda: run.names() == {"b"})
    assert len(double.asked("list", "pods")) == 1


@pytest.mark.parametrize(
    "disturbance",
    [faults.end, faults.reset, faults.error_event(410, "Expired"), faults.half_line(faults.reset)],
)
def test_any_end_of_a_watch_is_survived(double: ClusterDouble, disturbance: Any) -> None:
    double.put(pod("a"))
    with following(double) as run:
        run.wait(lambda: run.names() == {"a"})
        with double.changed:
            assert double.changed.wait_for(lambda: double.watching("pods"), PATIENCE)
        double.disturb("pods", disturbance)
        double.put(pod("b"))
        run.wait(lambda: run.names() == {"a", "b"})


@pytest.mark.parametrize(
    "fault", [faults.answer(500), faults.answer(429), faults.drop, faults.garbage(b"no")]
)
def test_a_failed_list_is_tried_again(double: ClusterDouble, fault: Any) -> None:
    double.put(pod("a"))
    double.fault("list", "pods", fault, times=3)
    with following(double) as run:
        run.wait(lambda: run.names() == {"a"})


def test_what_was_deleted_unseen_is_gone_after_the_next_list(double: ClusterDouble) -> None:
    stored = double.put(pod("a"))
    double.put(pod("b"))
    with following(double) as run:
        run.wait(lambda: run.names() == {"a", "b"})
        double.stop()
        double.remove(stored)
        double.compact()
        double.restart()
        run.wait(lambda: run.names() == {"b"})
