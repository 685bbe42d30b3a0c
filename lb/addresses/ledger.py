# SPDX-License-Identifier: Apache-2.0
"""What is promised and what rests, in the notes of the Lease: written before a status is.

A process that loses the Lease while a request of its is under way may still write a status, however late. So
that no other gives the same address to another Service meanwhile, every address is promised first: in the
Lease, which only its holder can write. A promise names the version of the Service that it was made for, and
the request is good for that version alone. It is kept until the Service has the address or is another
version; the next holder goes on from it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address

from lb.addresses.allocate import Rest
from lb.addresses.claimant import Claimant
from lb.errors import LbError
from lb.model import IPAddress, ObjectKey

_log = logging.getLogger(__name__)

PROMISES, RESTING = "lbctl/promised", "lbctl/resting"
MOST_PROMISES, MOST_RESTING = 200, 500
"""Annotations of an object may have 256 KiB together."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Addresses that a Service will have: the one of this uid, in this version."""

    uid: str
    version: str
    addresses: tuple[IPAddress, ...]

    def stands(self, claimant: Claimant | None) -> bool:
        """Tell whether it is still to be kept; claimant: the Service of now, None for none."""
        if claimant is None or claimant.uid != self.uid or not claimant.balanced:
            return False
        return not set(self.addresses) <= set(claimant.standing)


Promises = Mapping[ObjectKey, Promise]


def to_notes(promises: Promises, resting: Mapping[IPAddress, Rest]) -> dict[str, str]:
    """Return the annotations; of what rests, those that rest longest."""
    promised = {
        str(key): [each.uid, each.version, [str(one) for one in each.addresses]]
        for key, each in sorted(promises.items())
    }
    newest = sorted(resting.items(), key=lambda one: (-one[1].until, str(one[0])))[:MOST_RESTING]
    rests = {str(address): [int(rest.until), str(rest.last)] for address, rest in newest}
    return {PROMISES: json.dumps(promised), RESTING: json.dumps(rests)}


def promises_of(notes: Mapping[str, str]) -> dict[ObjectKey, Promise]:
    """Return what is promised.

    Raises LbError: it cannot be read; nothing may be given then.
    """
    try:
        return {
            _key(name): Promise(uid, version, tuple(map(ip_address, addresses)))
            for name, (uid, version, addresses) in json.loads(notes.get(PROMISES) or "{}").items()
        }
    except (ValueError, TypeError, AttributeError) as error:
        raise LbError(f"annotation {PROMISES} of the Lease cannot be read, remove it: {error}") from error


def resting_of(notes: Mapping[str, str]) -> dict[IPAddress, Rest]:
    """Return what rests; what cannot be read counts as nothing, for it protects nobody's address."""
    try:
        told = json.loads(notes.get(RESTING) or "{}")
        return {ip_address(text): Rest(float(until), _key(last)) for text, (until, last) in told.items()}
    except (ValueError, TypeError, AttributeError) as error:
        _log.warning("annotation %s of the Lease cannot be read: %s", RESTING, error)
        return {}


def promised(promises: Promises, claimants: Mapping[ObjectKey, Claimant]) -> dict[ObjectKey, Promise]:
    """Return the promises that still stand."""
    return {key: each for key, each in promises.items() if each.stands(claimants.get(key))}


def addresses_of(promises: Promises) -> dict[ObjectKey, tuple[IPAddress, ...]]:
    """Return the addresses that are promised to each Service."""
    return {key: each.addresses for key, each in promises.items()}


def new_addresses(addresses: Iterable[IPAddress], claimant: Claimant) -> tuple[IPAddress, ...]:
    """Return those that the status of a Service lacks."""
    return tuple(each for each in addresses if each not in claimant.standing)


def _key(text: str) -> ObjectKey:
    namespace, _, name = text.partition("/")
    return ObjectKey(namespace, name)
