# SPDX-License-Identifier: Apache-2.0
"""A cache of all objects of some kinds, for the lab's own controllers, and what they become.

:mod:`lb.kube.reflector` lists and watches, for the lab as for an agent; here is what it hands on to.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from lb.kube.availability import Availability
from lb.kube.convert import Item, Reader
from lb.kube.reflector import Reflector, Selection
from lb.kube.timing import Pace, Timing
from lb.lab.api import Api, Object, Resource, key_of
from lb.model import Delete, Event, Node, ObjectKey, Upsert


class Cache:
    """Objects by kind, as far as they are known. An older version never replaces a newer one.

    The answer to a write may come after the watch has told that the object is gone: it stays gone.
    """

    def __init__(self, resources: Sequence[Resource]) -> None:
        self._objects: dict[Resource, dict[ObjectKey, Object]] = {each: {} for each in resources}
        self._waiting_for = set(resources)
        self._told = dict.fromkeys(resources, 0)  # of each kind, up to which version it is known what is gone

    @property
    def complete(self) -> bool:
        """Whether every kind has been listed once."""
        return not self._waiting_for

    def of(self, resource: Resource) -> Mapping[ObjectKey, Object]:
        """Return all objects of a kind as they are now."""
        return dict(self._objects[resource])

    def take(self, resource: Resource, events: Sequence[Event], told: int) -> None:
        """Take what a reflector tells; told: the version up to which it has told everything."""
        self._waiting_for.discard(resource)
        objects = self._objects[resource]
        for event in events:
            if isinstance(event, Upsert):
                item: Any = event.resource
                known = objects.get(key_of(item))
                if known is None or version(item) > version(known):
                    objects[key_of(item)] = item
            elif isinstance(event, Delete) and event.key in objects and version(objects[event.key]) <= told:
                del objects[event.key]
        self._told[resource] = told

    def put(self, resource: Resource, item: Object) -> None:
        """Take an object from the answer to a write."""
        known = self._objects[resource].get(key_of(item))
        seen = self._told[resource] if known is None else version(known)
        if version(item) > seen:
            self._objects[resource][key_of(item)] = item

    def drop(self, resource: Resource, item: Object) -> None:
        """Forget an object that was deleted, unless another one has its name."""
        known = self._objects[resource].get(key_of(item))
        if known is not None and known["metadata"].get("uid") == item["metadata"].get("uid"):
            del self._objects[resource][key_of(item)]


def version(item: Object) -> int:
    """Return the resource version; later changes have higher ones (Kubernetes 1.35 and later promise it)."""
    return int(item["metadata"].get("resourceVersion", "0"))


class Converted:
    """What the objects of a cache become. Each version of an object is converted once: most objects stay."""

    def __init__(self, convert: Callable[[Resource, Object], Any]) -> None:
        self._convert = convert
        self._known: dict[Resource, dict[ObjectKey, tuple[int, Any]]] = {}

    def of(self, cache: Cache, resource: Resource) -> list[Any]:
        """Return what every object of a kind becomes."""
        before, now = self._known.get(resource, {}), dict[ObjectKey, tuple[int, Any]]()
        for key, item in cache.of(resource).items():
            known = before.get(key)
            if known is None or known[0] != version(item):
                known = (version(item), self._convert(resource, item))
            now[key] = known
        self._known[resource] = now
        return [became for _, became in now.values()]


Change = Callable[[Cache], None]


class _Whole(Reader[Any, Any]):
    """Reads objects as the dictionaries of their JSON."""

    def __init__(self, path: str) -> None:
        self.model, self.path = Node, path  # the model is that of any object: nobody looks at it

    def read(self, body: bytes | msgspec.Raw) -> Item[Any]:
        item = msgspec.json.decode(body)
        return Item(key_of(item), item["metadata"]["uid"], item["metadata"]["resourceVersion"], item)


def follower(
    api: Api,
    resource: Resource,
    tell: Callable[[Change], None],
    availability: Availability,
    timing: Timing | None = None,
) -> Reflector[Any]:
    """Return what follows one kind; tell takes what to do to the cache, from the thread that runs it.

    availability is shared by all followers of one API server; timing is for tests.
    """
    timing = timing or Timing()

    def deliver(events: Sequence[Event], _listed: bool) -> None:
        told = int(made.health().resource_version)
        tell(lambda cache: cache.take(resource, events, told))

    pace = Pace(timing.clock, cpu=lambda: 0.0)  # never waits
    made: Reflector[Any] = Reflector(
        api.client,
        Selection(_Whole(resource.path)),
        deliver,
        lambda *_: None,
        timing=timing,
        pace=pace,
        availability=availability,
    )
    return made
