# SPDX-License-Identifier: Apache-2.0
"""List and watch of one kind: keeps a store in step with the API server and tells what changed.

How it goes (Kubernetes documentation, "Kubernetes API Concepts: efficient detection of changes"; client-go's
reflector):

- List, in pages, without a resourceVersion: the most recent state. ``resourceVersion=0`` would save an API
  server before 1.31 a read from etcd, but may give a state older than the one we knew, from a server that
  lags behind, and ignores the limit; since 1.31 the consistent list comes from the server's cache as well. A
  continue token that expires between two pages (410) means the whole list again, in one piece.
- Watch from the list's resourceVersion, with bookmarks, until the server's time is over, then again from the
  last version seen, which loses nothing. Anything that breaks the stream (reset, half a line, silence) is the
  same.
- A server that was restored from a backup counts on from a version below ours. It takes a watch from our
  version without a word, and tells nothing until its versions have passed ours, bookmarks neither. So after
  a silence, after a break and after an absence the server is asked for its version first, with a list of one
  object; when it is below ours, everything is listed again.
- 410 Gone, as a status or as an ERROR event, and a version that the server calls unreadable or too large:
  list again, at once: it is an answer and no failure, and an API server that was started anew gives it to
  every watch. Only when the last list is younger than RELIST_SECONDS it counts as a failure. The new list is
  compared with the store, and only differences are told; a Delete is told for what a complete list lacks,
  never for a failure.
- Each failure is followed by a wait, see :class:`lb.kube.availability.Availability`.

An object that cannot be used is reported once; its last good version stays.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic

import msgspec

from lb.errors import InputError
from lb.kube.availability import Availability
from lb.kube.client import ANSWER_SECONDS, ApiError, Client, Response, SilenceError, status_error
from lb.kube.convert import Item, R, Reader
from lb.kube.decode import UNREADABLE, ObjectList, WatchEvent
from lb.kube.timing import Backoff, Pace, Timing
from lb.model import Delete, Event, ObjectKey, ResourceKind, Upsert

_log = logging.getLogger(__name__)

PAGE = 500
WATCH_SECONDS = (300, 600)
"""How long a watch is asked to last; at random in between, as client-go does, so that they do not all end at
once."""
SILENCE_SECONDS = 90.0
"""A watch that says nothing for so long is begun again from its last version. API servers send each watch a
bookmark about once a minute, if versions have gone on that they know of. So this is a connection that leads
nowhere, a server that was restored from a backup, or a cluster where nothing changes; a list of one object,
which is cheap, tells."""
WHOLE_SECONDS = 75.0
"""How long a list in one piece may keep silent: the API server itself gives up after 60 s (its
--request-timeout)."""
RELIST_SECONDS = 10.0
"""A version that is refused so soon after the list that gave it is a failure: listing again at once would be
a storm of lists. When the server was away in between, its age does not count."""
_QUICK_SECONDS = 1.0
_LINE_MOST = 64 * 2**20

_LIST = msgspec.json.Decoder(ObjectList)
_EVENT = msgspec.json.Decoder(WatchEvent)


@dataclass(frozen=True, slots=True)
class Selection(Generic[R]):
    """Which objects are wanted; the selectors are the API's, ``""`` for all."""

    reader: Reader[Any, R]
    labels: str = ""
    fields: str = ""

    def query(self, **more: str) -> dict[str, str]:
        """Return the query parameters."""
        return {
            **({"labelSelector": self.labels} if self.labels else {}),
            **({"fieldSelector": self.fields} if self.fields else {}),
            **more,
        }


@dataclass(frozen=True, slots=True)
class Health:
    """How far one kind is in step.

    resource: ``services``, ``endpointslices`` or ``nodes``.
    listed: a complete list has been read once.
    contact: clock seconds of the last word of the API server about it; None before the first. A working watch
        hears something (a bookmark) about once a minute and is renewed after SILENCE_SECONDS without.
    resource_version: how far the stream was read, ``""`` while a list is due.
    error: what is wrong at present, ``""`` when nothing is.
    failures: attempts in a row that failed.
    errors: attempts that failed since the start.
    objects: how many are known.
    broken: how many are known to be unusable.
    """

    resource: str
    listed: bool
    contact: float | None
    resource_version: str
    error: str
    failures: int
    errors: int
    objects: int
    broken: int


class Reflector(Generic[R]):
    """Follows one kind in a thread of its own.

    deliver takes what changed, in order, and whether a list is complete with it. report is called with each
    error of an object once for as long as it stands, and with the object's uid.
    """

    def __init__(
        self,
        client: Client,
        selection: Selection[R],
        deliver: Callable[[Sequence[Event], bool], None],
        report: Callable[[InputError, ObjectKey, str], None],
        *,
        timing: Timing,
        pace: Pace,
        availability: Availability,
        silence: float = SILENCE_SECONDS,
    ) -> None:
        self._client = client
        self._selection = selection
        self._reader = selection.reader
        self._deliver = deliver
        self._report = report
        self._timing = timing
        self._pace = pace
        self._availability = availability
        self._silence = silence
        self._backoff = Backoff(timing)
        self._store: dict[ObjectKey, tuple[R, str]] = {}
        self._broken: dict[ObjectKey, str] = {}
        self._version = ""
        self._in_doubt = False
        self._listed = False
        self._listed_at = -RELIST_SECONDS
        self._contact: float | None = None
        self._error = ""
        self._silence_told = ""
        self._failures = 0
        self._errors = 0
        self._response: Response | None = None

    @property
    def kind(self) -> ResourceKind:
        """What its objects become."""
        return self._reader.model

    @property
    def resource(self) -> str:
        """The kind as the API's paths name it: ``services``."""
        return self._reader.path.rpartition("/")[2]

    def refused(self) -> list[str]:
        """Return what is wrong with objects that cannot be used; may be called from any thread."""
        return sorted(self._broken.values())

    def health(self) -> Health:
        """Return how far this kind is in step; may be called from any thread."""
        return Health(
            resource=self.resource,
            listed=self._listed,
            contact=self._contact,
            resource_version=self._version,
            error=self._error,
            failures=self._failures,
            errors=self._errors,
            objects=len(self._store),
            broken=len(self._broken),
        )

    def uid(self, key: ObjectKey) -> str:
        """Return an object's uid, ``""`` when it is not known; may be called from any thread."""
        known = self._store.get(key)
        return known[1] if known else ""

    def run(self, stop: threading.Event) -> None:
        """Follow until stop is set and :meth:`interrupt` was called."""
        while not stop.is_set():
            self.step(stop)

    def interrupt(self) -> None:
        """Wake :meth:`run` when it waits for the server; called after stop was set."""
        response = self._response
        if response is not None:
            response.abort()

    def hang_up(self, why: str) -> None:
        """Break off what waits for a server that says nothing; called from another thread."""
        self._silence_told = self._error = why
        self.interrupt()

    def step(self, stop: threading.Event) -> None:
        """List if that is due, then watch until the watch ends; after a failure, wait."""
        try:
            if self._version and self._in_doubt:
                self._compare(stop)
            if not self._version:
                self._list(stop)
            self._watch(stop)
        except ApiError as error:
            if stop.is_set():
                return
            if error.expired and self._forget_version():
                _log.info("%s; listing again", error)
                return
            self._failed(self._silence_told or str(error))
            away = self._availability.pause(stop, self._backoff, error)
            if away or error.status == 0:  # with no answer, the server may have gone and come unseen
                self._in_doubt = True
            if away:
                self._listed_at = self._timing.clock() - RELIST_SECONDS

    def _compare(self, stop: threading.Event) -> None:
        """Make a list due if the server's version is below ours; versions are numbers and go up."""
        theirs = self._page(stop, self._selection.query(limit="1")).metadata.resource_version
        self._in_doubt = False
        if not (theirs.isdecimal() and self._version.isdecimal() and int(theirs) >= int(self._version)):
            _log.warning(
                "%s: the API server is at version %s, below our %s: was it restored from a backup? "
                "Listing again",
                self.resource,
                theirs,
                self._version,
            )
            self._version = ""

    def _forget_version(self) -> bool:
        """Make a list due; return whether it may be asked for at once."""
        had, self._version = self._version, ""
        return bool(had) and self._timing.clock() - self._listed_at >= RELIST_SECONDS

    def _list(self, stop: threading.Event) -> None:
        try:
            listed, news, version = self._pages(stop, PAGE)
        except _ContinueExpiredError:
            listed, news, version = self._pages(stop, 0)
        events: list[Event] = []
        for item in news.values():
            self._take(item, events)
        for key in self._store.keys() - listed:
            self._drop(key, events)
        for key in self._broken.keys() - listed:
            del self._broken[key]
        self._version, self._listed, self._listed_at = version, True, self._timing.clock()
        self._in_doubt = False
        _log.debug("%s: listed %d at version %s", self.resource, len(listed), version)
        self._deliver(events, True)

    def _pages(
        self, stop: threading.Event, limit: int
    ) -> tuple[set[ObjectKey], dict[ObjectKey, Item[R]], str]:
        """Return the keys of a whole list, those of its objects that are news, and its resourceVersion.

        limit is the size of a page, 0 for no limit. What is as it was known is let go page by page: a list
        after a restart of the API server holds a large cluster only once in memory.
        """
        listed: set[ObjectKey] = set()
        news: dict[ObjectKey, Item[R]] = {}
        query = self._selection.query(**({"limit": str(limit)} if limit else {}))
        while True:
            try:
                page = self._page(stop, query)
            except ApiError as error:
                if error.expired and "continue" in query:
                    raise _ContinueExpiredError from error
                raise
            for raw in page.items or ():
                item: Item[R] = self._reader.read(raw)
                listed.add(item.key)
                if self._is_known(item):
                    news.pop(item.key, None)
                else:
                    news[item.key] = item
            if not page.metadata.continue_:
                return listed, news, page.metadata.resource_version
            query["continue"] = page.metadata.continue_

    def _page(self, stop: threading.Event, query: dict[str, str]) -> ObjectList:
        path = self._reader.path
        silence = ANSWER_SECONDS if "limit" in query else WHOLE_SECONDS
        with self._request(stop, query, silence, compress=True) as response:
            body = response.body()
        self._contact = self._timing.clock()
        try:
            page = _LIST.decode(body)
        except UNREADABLE as error:
            raise ApiError(f"GET {path}: no list but {body[:40]!r}: {error}") from error
        if not page.metadata.resource_version:
            raise ApiError(f"GET {path}: a list without resourceVersion")
        return page

    def _watch(self, stop: threading.Event) -> None:
        least, most = WATCH_SECONDS
        query = self._selection.query(
            watch="1",
            allowWatchBookmarks="true",
            resourceVersion=self._version,
            timeoutSeconds=str(round(least + (most - least) * self._timing.random())),
        )
        begun, idle = self._timing.clock(), True
        with self._request(stop, query, min(self._silence, ANSWER_SECONDS)) as response:
            response.allow_silence(self._silence)
            self._heard()
            try:
                for lines in complete_lines(response.chunks()):
                    self._heard()
                    idle = idle and not lines
                    self._tell(lines)
                    if lines and not response.waiting() and (seconds := self._pace.wait()):
                        stop.wait(seconds)
            except SilenceError as error:
                _log.debug("%s; watching again from version %s", error, self._version)
                self._in_doubt = True
                return
        if idle and self._timing.clock() - begun < _QUICK_SECONDS and not stop.is_set():
            raise ApiError(f"GET {self._reader.path}: the server ended a watch at once")

    def _request(
        self, stop: threading.Event, query: dict[str, str], silence: float, *, compress: bool = False
    ) -> contextlib.closing[Response]:
        """Send a GET; its response can be interrupted."""
        response = self._client.request("GET", self._reader.path, query, silence=silence, compress=compress)
        self._response = response
        if stop.is_set():  # set between the request and the line above: interrupt() saw no response
            response.abort()
        return contextlib.closing(response)

    def _tell(self, lines: Iterable[bytes]) -> None:
        """Take events in; what came before a failure is delivered all the same."""
        events: list[Event] = []
        try:
            for line in lines:
                self._event(line, events)
        finally:
            if events:
                self._deliver(events, False)

    def _event(self, line: bytes, events: list[Event]) -> None:
        try:
            event = _EVENT.decode(line)
            if event.type == "BOOKMARK":
                self._version = self._reader.version(event.object) or self._version
                return
        except UNREADABLE as error:
            raise ApiError(
                f"GET {self._reader.path}: no watch event but {line[:40]!r}", expired=True
            ) from error
        if event.type == "ERROR":
            raise status_error(f"GET {self._reader.path}: watch", event.object)
        item: Item[R] = self._reader.read(event.object)
        if event.type == "DELETED":
            self._drop(item.key, events)
            self._broken.pop(item.key, None)
        elif event.type in ("ADDED", "MODIFIED"):
            self._take(item, events)
        else:
            _log.debug("%s: event of unknown type %r", self.resource, event.type)
        self._version = item.version or self._version

    def _is_known(self, item: Item[R]) -> bool:
        """Tell whether an object is as it is known, and nothing is wrong with it."""
        as_now = (item.resource, item.uid)
        return item.error is None and item.key not in self._broken and self._store.get(item.key) == as_now

    def _take(self, item: Item[R], events: list[Event]) -> None:
        key = item.key
        if item.error is None:
            self._broken.pop(key, None)
        elif self._broken.get(key) != str(item.error):
            self._broken[key] = str(item.error)
            self._report(item.error, key, item.uid)
        if item.resource is None:
            return
        known = self._store.get(key)
        if known is not None and known[0] == item.resource:
            # The very object that was told stays: whoever was told holds it, and another would be a copy.
            self._store[key] = (known[0], item.uid)
            return
        self._store[key] = (item.resource, item.uid)
        events.append(Upsert(item.resource))

    def _drop(self, key: ObjectKey, events: list[Event]) -> None:
        if self._store.pop(key, None) is not None:
            events.append(Delete(self._reader.model, key))

    def _heard(self) -> None:
        self._contact = self._timing.clock()
        if self._error:
            _log.info("%s: in contact with the API server again", self.resource)
        self._error = self._silence_told = ""
        self._failures = 0

    def _failed(self, message: str) -> None:
        self._failures += 1
        self._errors += 1
        if message not in (self._error, self._silence_told):
            _log.warning("%s; what is known stays, trying again", message)
        self._error, self._silence_told = message, ""


class _ContinueExpiredError(Exception):
    """The server has forgotten the state whose pages were being read."""


def complete_lines(chunks: Iterable[bytes]) -> Iterator[list[bytes]]:
    """Yield the lines that each chunk completes.

    Raises ApiError: the stream ends in the middle of a line, or a line has no end.
    """
    begun: list[bytes] = []
    size = 0
    for chunk in chunks:
        *complete, rest = chunk.split(b"\n")
        if complete:
            complete[0] = b"".join((*begun, complete[0]))
            begun, size = [], 0
        begun.append(rest)
        size += len(rest)
        if size > _LINE_MOST:
            raise ApiError("watch: a line without end")
        yield [line for line in complete if line]
    if size:
        raise ApiError("watch: the stream ended in the middle of an object")
