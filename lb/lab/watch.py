# SPDX-License-Identifier: Apache-2.0
"""List and watch for the lab's own controllers: every object of some kinds, kept at hand.

Simpler than :mod:`lb.kube.reflector`, which reads only what becomes maps: whole objects, all of them, and any
failure means the whole list again.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Mapping, Sequence

import msgspec

from lb.kube.client import ApiError, status_error
from lb.kube.presence import Presence
from lb.kube.reflector import RELIST_SECONDS, SILENCE_SECONDS, complete_lines
from lb.kube.timing import Backoff, Timing
from lb.lab.api import Api, Object, Resource, key_of
from lb.model import ObjectKey

_log = logging.getLogger(__name__)

_EVENT = msgspec.json.Decoder()
_WATCH_SECONDS = "300"


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

    def replace(self, resource: Resource, items: Sequence[Object], listed: int = 0) -> None:
        """Take a list; listed: its resource version."""
        self._told[resource] = listed
        self._objects[resource] = {key_of(item): item for item in items}
        self._waiting_for.discard(resource)

    def put(self, resource: Resource, item: Object) -> None:
        """Take an object, from a watch or an answer."""
        known = self._objects[resource].get(key_of(item))
        seen = self._told[resource] if known is None else version(known)
        if version(item) > seen:
            self._objects[resource][key_of(item)] = item

    def remove(self, resource: Resource, item: Object) -> None:
        """Forget an object that the watch tells is gone; item has the version of its end."""
        self._told[resource] = max(self._told[resource], version(item))
        self.drop(resource, item)

    def drop(self, resource: Resource, item: Object) -> None:
        """Forget an object, unless another one has its name."""
        known = self._objects[resource].get(key_of(item))
        if known is not None and known["metadata"].get("uid") == item["metadata"].get("uid"):
            del self._objects[resource][key_of(item)]


def version(item: Object) -> int:
    """Return the resource version; later changes have higher ones (Kubernetes 1.35 and later promise it)."""
    return int(item["metadata"].get("resourceVersion", "0"))


Change = Callable[[Cache], None]


class Follower:
    """Follows one kind; tell takes what to do to the cache, from a thread of the follower's own.

    presence is shared by all followers of one API server; timing is for tests.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        tell: Callable[[Change], None],
        presence: Presence,
        timing: Timing | None = None,
    ) -> None:
        self._api, self._resource, self._tell = api, resource, tell
        self._presence = presence
        self._timing = timing or Timing()
        self._backoff = Backoff(self._timing)
        self._listed_at = -RELIST_SECONDS
        self._failed = False

    def run(self, stop: threading.Event) -> None:
        """Follow until stop is set."""
        while not stop.is_set():
            self.step(stop)

    def step(self, stop: threading.Event) -> None:
        """List, then watch for as long as that goes; after a failure, wait."""
        try:
            seen = self._list()
            while not stop.is_set():
                seen = self._watch(seen)
        except ApiError as error:
            if error.expired and self._timing.clock() - self._listed_at >= RELIST_SECONDS:
                return  # the server was started anew, or has forgotten our version: an answer, no failure
            if not self._failed:
                _log.warning("%s; listing again", error)
            self._failed = True
            self._presence.pause(stop, self._backoff, error)

    def _list(self) -> str:
        answer = self._api.send("GET", self._resource.path)
        items = answer.get("items") or []
        listed = version(answer)
        self._listed_at = self._timing.clock()
        self._tell(lambda cache: cache.replace(self._resource, items, listed))
        if self._failed:
            _log.info("%s: in contact with the API server again", self._resource.name)
        self._failed = False
        return str(answer["metadata"]["resourceVersion"])

    def _watch(self, seen: str) -> str:
        """Watch from a version until the server ends the watch; return the last version."""
        query = {
            "watch": "1",
            "resourceVersion": seen,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": _WATCH_SECONDS,
        }
        path = self._resource.path
        response = self._api.client.request("GET", path, query, silence=SILENCE_SECONDS)
        try:
            for line in itertools.chain.from_iterable(complete_lines(response.chunks())):
                event = _EVENT.decode(line)
                item = event["object"]
                if event["type"] == "ERROR":
                    raise status_error(f"GET {path}: watch", msgspec.json.encode(item))
                seen = item["metadata"]["resourceVersion"]
                self._take(event["type"], item)
        except msgspec.DecodeError as error:
            raise ApiError(f"GET {path}: no watch event: {error}") from error
        finally:
            response.close()
        return seen

    def _take(self, kind: str, item: Object) -> None:
        if kind == "DELETED":
            self._tell(lambda cache: cache.remove(self._resource, item))
        elif kind in ("ADDED", "MODIFIED"):
            self._tell(lambda cache: cache.put(self._resource, item))
