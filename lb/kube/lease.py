# SPDX-License-Identifier: Apache-2.0
"""One process of several: a Lease (coordination.k8s.io/v1), with notes that only its holder can write.

As client-go's leader election does it: the holder renews the time in the Lease; another takes it once it has
seen it unchanged for leaseDurationSeconds, by its own clock, so that clocks need not agree. Every write names
the version that it was made from, so of two that write, one is refused (409). The notes are annotations of
the same object: a process that has lost the Lease, and does not know it yet, cannot write them.
"""

from __future__ import annotations

import datetime
import logging
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from lb.kube.client import ApiError, Client
from lb.kube.timing import Timing, micro_time, utc_now
from lb.model import ObjectKey

_log = logging.getLogger(__name__)

LEASE_SECONDS = 15
RENEW_SECONDS = 4.0
"""How often the holder renews, and others look."""
GIVE_UP_SECONDS = 10.0
"""A holder that could not renew for so long takes itself for none: before others may."""

Object = dict[str, Any]


class LostLeaseError(ApiError):
    """Somebody else has written the Lease since."""


class Lease:
    """A Lease as one candidate for it sees it; for one thread.

    identity: the candidate, unlike all others. now gives the time of day, with its zone.

    Attributes
    ----------
    held: whether it is ours, as far as we know.
    renewed: clock seconds of the last time when it surely was.
    """

    def __init__(
        self,
        client: Client,
        key: ObjectKey,
        identity: str,
        timing: Timing,
        now: Callable[[], datetime.datetime] = utc_now,
    ) -> None:
        self._client = client
        self._key = key
        self._identity = identity
        self._timing = timing
        self._now = now
        self._item: Object = {}
        self._seen_at = timing.clock()
        self.held = False
        self.renewed = 0.0

    @property
    def notes(self) -> Mapping[str, str]:
        """The annotations, as they were read or written last."""
        return self._item.get("metadata", {}).get("annotations") or {}

    def hold(self) -> bool:
        """Take the Lease if it is free or has run out, renew it if it is ours; return whether it is ours.

        Who held it and finds another in it has lost it, though that one's time may be over as well: notes may
        have been written meanwhile. It may be taken anew with the next call.

        Raises ApiError: the server does not answer, or refuses.
        """
        try:
            self._look()
            if self._held_by_another() or (self.held and not self._is_ours()):
                self._lost()
                return False
            self._write(self.notes)
        except LostLeaseError as error:
            self._lost()
            _log.debug("%s", error)
            return False
        return True

    def write(self, notes: Mapping[str, str]) -> None:
        """Replace those notes that are named, and renew; only while it is held.

        Raises LostLeaseError: it is not ours any more, or somebody has changed it. ApiError: no answer.
        """
        try:
            self._write({**self.notes, **notes})
        except LostLeaseError:
            self._lost()
            raise

    def release(self) -> None:
        """Let another have it at once; nothing if it is not ours.

        Raises ApiError: the server does not take it.
        """
        if self.held:
            self.held = False
            spec = {**self._item["spec"], "holderIdentity": "", "leaseDurationSeconds": 1}
            self._send("PUT", self._path(self._key.name), {**self._item, "spec": spec})

    def _lost(self) -> None:
        self.held = False

    def _path(self, name: str = "") -> str:
        place = f"/apis/coordination.k8s.io/v1/namespaces/{self._key.namespace}/leases"
        return f"{place}/{name}" if name else place

    def _look(self) -> None:
        """Read the Lease; a change of it is noted with its time."""
        before = self._item
        try:
            body = self._client.request("GET", self._path(self._key.name)).body()
            self._item = _decoded(body)
        except ApiError as error:
            if error.status != 404:
                raise
            self._item = {}
        if _version(before) != _version(self._item):
            self._seen_at = self._timing.clock()

    def _held_by_another(self) -> bool:
        spec = self._item.get("spec") or {}
        holder = spec.get("holderIdentity")
        if not holder or holder == self._identity:
            return False
        lasts = float(spec.get("leaseDurationSeconds") or LEASE_SECONDS)
        return self._timing.clock() - self._seen_at < lasts

    def _is_ours(self) -> bool:
        return (self._item.get("spec") or {}).get("holderIdentity") == self._identity

    def _write(self, notes: Mapping[str, str]) -> None:
        begun = self._timing.clock()
        spec = self._item.get("spec") or {}
        time = micro_time(self._now())
        mine = self._is_ours()
        written = {
            **spec,
            "holderIdentity": self._identity,
            "leaseDurationSeconds": LEASE_SECONDS,
            "acquireTime": spec["acquireTime"] if mine else time,
            "renewTime": time,
            "leaseTransitions": spec.get("leaseTransitions", 0) + (not mine),
        }
        new = not self._item
        meta = {"name": self._key.name, "namespace": self._key.namespace, **self._item.get("metadata", {})}
        item = {
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {**meta, "annotations": dict(notes)},
            "spec": written,
        }
        self._send("POST" if new else "PUT", self._path("" if new else self._key.name), item)
        self.held, self.renewed = True, begun

    def _send(self, method: str, path: str, item: Object) -> None:
        """Write; what is known of the Lease changes only with the answer."""
        try:
            self._item = _decoded(self._client.request(method, path, body=item).body())
        except ApiError as error:
            if error.status == 409:
                raise LostLeaseError(str(error), status=409) from error
            raise


def _decoded(body: bytes) -> Object:
    try:
        found: Object = msgspec.json.decode(body)
    except msgspec.DecodeError as error:
        raise ApiError(f"Lease: no JSON but {body[:40]!r}") from error
    return found


def _version(item: Object) -> str:
    return str(item.get("metadata", {}).get("resourceVersion", ""))
