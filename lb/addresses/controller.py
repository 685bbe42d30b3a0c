# SPDX-License-Identifier: Apache-2.0
"""What the holder of the Lease knows of a cluster's Services, decides about them, and writes.

Every change goes two steps: what a Service will have is promised in the Lease (:mod:`lb.addresses.ledger`),
then its status is written, for the version of the Service that was read. A condition in the same status says
what became of the request, and an Event tells of every change.
"""

from __future__ import annotations

import datetime
import logging
import time
from collections.abc import Callable
from typing import Any

from lb.addresses.allocate import Outcome, Past, Verdict, allocate
from lb.addresses.claimant import Claimant
from lb.addresses.decode import CLAIMANTS
from lb.addresses.ledger import (
    MOST_PROMISES,
    Promise,
    addresses_of,
    new_addresses,
    promised,
    promises_of,
    resting_of,
    to_notes,
)
from lb.addresses.pool import PoolsFile
from lb.addresses.telemetry import Telemetry
from lb.kube.client import ApiError, Client
from lb.kube.convert import ADDRESSES_CONDITION
from lb.kube.events import Notice
from lb.kube.lease import Lease, LostLeaseError
from lb.model import Delete, Event, IPAddress, Namespace, Node, ObjectKey, Service, Upsert

_log = logging.getLogger(__name__)

AGAIN_SECONDS = 1.0
"""After which what failed is tried again."""
_ACTION = "GiveAddress"


class AddressController:
    """For one thread, and for as long as the Lease is held; publish tells of a change, and never waits.

    Raises LbError: the promises in the Lease cannot be read.
    """

    def __init__(
        self,
        client: Client,
        lease: Lease,
        pools: PoolsFile,
        telemetry: Telemetry,
        *,
        publish: Callable[[Notice], None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._lease = lease
        self._pools = pools
        self._telemetry = telemetry
        self._publish = publish
        self._wall = wall
        self._claimants: dict[ObjectKey, Claimant] = {}
        self._namespaces: dict[str, Namespace] = {}
        self._nodes: dict[str, tuple[IPAddress, ...]] = {}
        self._promises = promises_of(lease.notes)
        self._past = Past(resting=resting_of(lease.notes))
        self._complaints: set[str] = set()

    def learn(self, event: Event) -> bool:
        """Take in what the API tells of a Service, a Namespace or a Node; return whether to look at it.

        A kubelet reports again and again what nothing here goes by.
        """
        match event:
            case Upsert(resource=Node(name, found)):
                before, self._nodes[name] = self._nodes.get(name), found
                return found != before
            case Delete(kind=kind, key=key) if kind is Node:
                return self._nodes.pop(key.name, None) is not None
            case Upsert(resource=Namespace() as found):
                self._namespaces[found.name] = found
            case Delete(kind=kind, key=key) if kind is Namespace:
                self._namespaces.pop(key.name, None)
            case Delete(key=key):
                self._claimants.pop(key, None)
            case Upsert(resource=Claimant() as found):
                known = self._claimants.get(found.key)
                # Our own write may be known before the watch tells of it, and of what was before.
                if known is None or known.uid != found.uid or not _older(found.version, known.version):
                    self._claimants[found.key] = found
        return True

    def look(self) -> float | None:
        """Decide about all Services and write what is to change; return after how long to look again.

        None: when something changes.

        Raises LostLeaseError: the Lease is another's.
        """
        self._promises = promised(self._promises, self._claimants)
        nodes = {address: name for name, addresses in self._nodes.items() for address in addresses}
        outcome = allocate(
            self._pools.pools,
            self._claimants.values(),
            self._wall(),
            promised=addresses_of(self._promises),
            past=self._past,
            namespaces=self._namespaces,
            nodes=nodes,
        )
        self._past, self._telemetry.outcome, self._telemetry.leading = outcome.past, outcome, True
        self._telemetry.nodes = nodes
        changes = [each for each in outcome.verdicts.values() if differs(each)]
        now, later = changes[:MOST_PROMISES], changes[MOST_PROMISES:]
        try:
            self._promise(now, outcome)
        except LostLeaseError:
            raise
        except ApiError as error:
            self._complain(error)
            return AGAIN_SECONDS
        written = [self._write(each) for each in now]
        if not all(written):
            return AGAIN_SECONDS
        if later:
            return 0.0
        return self._until_rested(outcome)

    def _until_rested(self, outcome: Outcome) -> float | None:
        ends = [rest.until for rest in outcome.past.resting.values()]
        return max(0.0, min(ends) - self._wall()) + AGAIN_SECONDS if ends else None

    def _promise(self, changes: list[Verdict], outcome: Outcome) -> None:
        """Write into the Lease what is going to be written into statuses.

        Raises ApiError: it is not written, or it is not known whether it is.
        """
        promises = {
            key: each
            for key, each in self._promises.items()
            if self._claimants[key].version == each.version or _upholds(outcome.verdicts.get(key), each)
        }
        for each in changes:
            if new := new_addresses(each.addresses, each.claimant):
                promises[each.claimant.key] = Promise(each.claimant.uid, each.claimant.version, new)
        notes = to_notes(promises, outcome.past.resting)
        if any(self._lease.notes.get(name) != text for name, text in notes.items()):
            self._lease.write(notes)
        self._promises = promises

    def _write(self, verdict: Verdict) -> bool:
        """Write a Service's status; return whether that succeeded."""
        each = verdict.claimant
        path = f"/api/v1/namespaces/{each.key.namespace}/services/{each.key.name}/status"
        body = {
            "metadata": {"uid": each.uid, "resourceVersion": each.version},
            "status": status_of(verdict, datetime.datetime.fromtimestamp(self._wall(), datetime.UTC)),
        }
        try:
            answer = self._client.request(
                "PATCH", path, body=body, content_type="application/merge-patch+json"
            ).body()
        except ApiError as error:
            if error.status not in (404, 409, 422):  # it is gone, or another: the watch tells
                self._complain(error)
            return False
        found = CLAIMANTS.read(answer)
        if found.resource is not None:
            self.learn(Upsert(found.resource))
        tell = _log.warning if verdict.fault else _log.info
        tell("Service %s: %s", each.key, verdict.note)
        reason, note = verdict.reason.value, verdict.note
        self._publish(Notice(Service, each.key, each.uid, reason, _ACTION, note, normal=not verdict.fault))
        return True

    def _complain(self, error: ApiError) -> None:
        self._telemetry.failures += 1
        if str(error) not in self._complaints:
            _log.warning("%s; trying again", error)
        self._complaints.add(str(error))


def _upholds(verdict: Verdict | None, promise: Promise) -> bool:
    """Tell whether a Service is still to have what was promised to it in an earlier version."""
    return verdict is not None and set(promise.addresses) <= set(verdict.addresses)


def _older(one: str, other: str) -> bool:
    """Tell whether a version is older than another; versions are numbers and go up."""
    return one.isdecimal() and other.isdecimal() and int(one) < int(other)


def differs(verdict: Verdict) -> bool:
    """Tell whether a Service's status is to be written."""
    each = verdict.claimant
    known = next((one for one in each.conditions if one.get("type") == ADDRESSES_CONDITION), {})
    wanted = _condition(verdict)
    return set(verdict.addresses) != set(each.standing) or any(
        known.get(name) != wanted[name] for name in wanted
    )


def _condition(verdict: Verdict) -> dict[str, str]:
    return {
        "type": ADDRESSES_CONDITION,
        "status": "True" if verdict.satisfied else "False",
        "reason": verdict.reason.value,
        "message": verdict.note,
    }


def status_of(verdict: Verdict, now: datetime.datetime) -> dict[str, Any]:
    """Return the part of a status that is ours to write; other conditions stay, as do entries of ingress."""
    each, wanted = verdict.claimant, _condition(verdict)
    others = [one for one in each.conditions if one.get("type") != ADDRESSES_CONDITION]
    known = next((one for one in each.conditions if one.get("type") == ADDRESSES_CONDITION), {})
    since = known.get("lastTransitionTime") if known.get("status") == wanted["status"] else None
    entries = {str(one.get("ip")): one for one in each.ingress}
    ingress = [entries.get(str(one), {"ip": str(one), "ipMode": "VIP"}) for one in verdict.addresses]
    return {
        "loadBalancer": {"ingress": ingress},
        "conditions": [*others, {**wanted, "lastTransitionTime": since or f"{now:%Y-%m-%dT%H:%M:%SZ}"}],
    }
