# SPDX-License-Identifier: Apache-2.0
"""A running KubernetesSource whose world can be awaited, and the clusters it runs against."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from kubernetes.client import Configuration

from lb.errors import InputError
from lb.kube import Access, Client, KubernetesSource
from lb.kube.timing import Timing
from lb.model import (
    Delete,
    EndpointSlice,
    Event,
    Namespace,
    Node,
    ObjectKey,
    Resource,
    Service,
    Synced,
    Upsert,
)
from lb.stop_event import StopEvent
from tests.kube.double import ApiDouble
from tests.kube.objects import (
    BACKEND_A,
    NAMESPACE,
    NODE,
    Object,
    endpoint,
    endpoint_slice,
    node,
    service,
)

PATIENCE = 20.0
"""Seconds after which something that should happen has not; it normally takes milliseconds."""


class Waits:
    """Waits as they were asked for; each is cut to a moment."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.threads: set[str] = set()
        """Who has waited, by thread's name."""

    def __call__(self, stop: threading.Event, seconds: float) -> None:
        self.seconds.append(seconds)
        self.threads.add(threading.current_thread().name)
        stop.wait(min(seconds, 0.005))


class Cluster(Protocol):
    """What tests do to a cluster; the double and a real API server can both do it."""

    def client(self) -> Client:
        """Return a client with the rights of deploy/base/rbac.yaml."""
        ...

    def put(self, item: Object) -> Object:
        """Add or change an object, its status included; return it as stored."""
        ...

    def remove(self, item: Object) -> None:
        """Delete an object."""
        ...

    def written_events(self) -> Sequence[Object]:
        """Return our Events (events.k8s.io) in the tests' namespace; API servers write some, too."""
        ...

    def stop(self) -> None:
        """Stop the API server; its objects stay."""
        ...

    def restart(self) -> None:
        """Start it again."""
        ...


class DoubleCluster:
    """The double as a cluster."""

    def __init__(self, double: ApiDouble) -> None:
        self._double = double
        self.put, self.remove = double.put, double.remove
        self.stop, self.restart = double.stop, double.restart

    def client(self) -> Client:
        """See Cluster."""
        return client_of(self._double)

    def written_events(self) -> Sequence[Object]:
        """See Cluster."""
        with self._double.changed:
            return list(self._double.objects["events"].values())


def client_of(double: ApiDouble, **more: Any) -> Client:
    """Return a client of the double; more sets attributes of its configuration."""

    def load() -> Access:
        configuration = Configuration(host=double.url)
        for name, value in more.items():
            setattr(configuration, name, value)
        return Access(configuration)

    return Client(load)


class Running:
    """A source at work: every event that it emitted, and the world that follows from them."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.batches = 0
        self.errors: list[InputError] = []
        self.waits = Waits()
        self.timing = Timing(random=lambda: 0.5, wait=self.waits)
        self.resources: dict[tuple[type, ObjectKey], Resource] = {}
        self.watched = False
        """Set by a test to have seen filled."""
        self.seen: list[frozenset[str]] = []
        """The addresses of all endpoints after each event."""
        self.source: KubernetesSource
        self._changed = threading.Condition()

    def emit(self, events: Sequence[Event]) -> None:
        """Take events as the agent would."""
        with self._changed:
            self.batches += 1
            for event in events:
                self.events.append(event)
                if isinstance(event, Upsert):
                    resource = event.resource
                    key = (
                        ObjectKey("", resource.name)
                        if isinstance(resource, Node | Namespace)
                        else resource.key
                    )
                    self.resources[type(resource), key] = resource
                elif isinstance(event, Delete):
                    del self.resources[event.kind, event.key]  # a Delete of the unknown is an error
                if self.watched:
                    self.seen.append(frozenset(self.endpoints()))
            self._changed.notify_all()

    def report(self, error: InputError) -> None:
        """Take an error of an object."""
        with self._changed:
            self.errors.append(error)
            self._changed.notify_all()

    def wait(self, condition: Callable[[], object], what: str = "") -> None:
        """Wait until a condition holds; it is looked at after every batch, and now and then."""
        with self._changed:
            for _ in range(int(PATIENCE / 0.01)):
                if condition():
                    return
                self._changed.wait(0.01)
        raise AssertionError(f"not within {PATIENCE} s: {what or condition}; {self.source.health()}")

    @property
    def synced(self) -> bool:
        """Whether Synced was emitted."""
        return Synced("kubernetes") in self.events

    def service(self, name: str = "web") -> Service | None:
        """Return a Service of the tests' namespace."""
        found = self.resources.get((Service, ObjectKey(NAMESPACE, name)))
        assert found is None or isinstance(found, Service)
        return found

    def services(self) -> set[str]:
        """Return the names of the Services of the tests' namespace."""
        return {k.name for kind, k in self.resources if kind is Service and k.namespace == NAMESPACE}

    def slices(self) -> list[EndpointSlice]:
        """Return the EndpointSlices of the tests' namespace."""
        return [
            resource
            for (kind, key), resource in self.resources.items()
            if isinstance(resource, EndpointSlice) and key.namespace == NAMESPACE
        ]

    def endpoints(self) -> set[str]:
        """Return the addresses of all endpoints of the tests' namespace."""
        return {str(endpoint.address) for piece in self.slices() for endpoint in piece.endpoints}

    def node(self, name: str = NODE) -> Node | None:
        """Return a Node."""
        found = self.resources.get((Node, ObjectKey("", name)))
        assert found is None or isinstance(found, Node)
        return found

    def deletes(self) -> list[Delete]:
        """Return every Delete so far."""
        return [event for event in self.events if isinstance(event, Delete)]


@contextmanager
def running(client: Client, **more: Any) -> Iterator[Running]:
    """Run a source for node1 until the context ends; it must then stop by itself, without an error."""
    run = Running()
    run.source = KubernetesSource(client, node_name=NODE, report=run.report, timing=run.timing, **more)
    stop = StopEvent()
    failures: list[BaseException] = []

    def body() -> None:
        try:
            run.source.run(run.emit, stop)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=body)
    thread.start()
    try:
        yield run
    finally:
        stop.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert not failures, failures


ALL = ("services", "endpointslices", "nodes")


def fill(double: ApiDouble) -> None:
    """Put a Service with an endpoint and the node there."""
    double.put(service())
    double.put(endpoint_slice("web-1", endpoint(BACKEND_A)))
    double.put(node())


def settle(run: Running, double: ApiDouble) -> None:
    """Wait until the source is synced and watches everything."""
    run.wait(lambda: run.synced and double.watching(*ALL))


def whole_lists(double: ApiDouble, resource: str = "services") -> int:
    """Return how many lists were asked for, those of one object left out."""
    return sum(asked.query.get("limit") != "1" for asked in double.asked("list", resource))
