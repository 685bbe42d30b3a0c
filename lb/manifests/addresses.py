# SPDX-License-Identifier: Apache-2.0
"""Load-balancer addresses of Services whose manifests name none: an object of our own kind for each Service.

::

    apiVersion: lbctl/v1
    kind: ServiceAddresses
    metadata: {namespace: shop, name: web}     # the Service's
    addresses: [203.0.113.5]
    note: 203.0.113.5 from pool edge
    resting: [{address: 203.0.113.9, until: "2026-01-15T10:20:58Z"}]

``lbctl addresses run`` writes them into one file; agents read it like any manifest. A Service with addresses
in the status of its manifest has both.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from lb.manifests.fields import Field, Fields
from lb.manifests.objects import Meta, ServiceAddresses, ServiceRequest
from lb.manifests.service import read_address
from lb.model import IPAddress, Service, ServiceType

API_VERSION, KIND = "lbctl/v1", "ServiceAddresses"
FIELDS = frozenset(("addresses", "note", "resting"))
_REST = frozenset(("address", "until"))


def read_addresses(root: Fields, meta: Meta) -> ServiceAddresses:
    """Read the addresses of one Service."""
    return ServiceAddresses(
        meta.key,
        addresses=tuple(filter(None, map(read_address, root["addresses"].items()))),
        note=root["note"].text(),
        resting=dict(filter(None, map(_rest, root["resting"].items()))),
        origin=meta.origin,
    )


def _rest(place: Field) -> tuple[IPAddress, float] | None:
    entry = place.fields(_REST)
    address, until = entry["address"].address(), entry["until"].text()
    try:
        time = datetime.fromisoformat(until).timestamp()
    except ValueError:
        entry["until"].error(f"must be a time like 2020-01-15T10:20:58Z (RFC 3339), is {until!r}")
        return None
    return None if address is None else (address, time)


def to_object(given: ServiceAddresses) -> dict[str, Any]:
    """Return the object that :func:`read_addresses` reads; times are kept to the second."""
    return {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"namespace": given.key.namespace, "name": given.key.name},
        **({"addresses": [str(each) for each in given.addresses]} if given.addresses else {}),
        **({"note": given.note} if given.note else {}),
        **({"resting": [_to_rest(*each) for each in given.resting.items()]} if given.resting else {}),
    }


def _to_rest(address: IPAddress, until: float) -> dict[str, str]:
    time = datetime.fromtimestamp(int(until), UTC)
    return {"address": str(address), "until": f"{time:%Y-%m-%dT%H:%M:%SZ}"}


def with_addresses(
    requests: Sequence[ServiceRequest], given: Iterable[ServiceAddresses]
) -> list[ServiceRequest]:
    """Return the Services with what was given to those of type LoadBalancer."""
    by_key = {each.key: each for each in given}
    return [
        dataclasses.replace(each, service=given_to(each.service, by_key.get(each.service.key)))
        for each in requests
    ]


def given_to(service: Service, given: ServiceAddresses | None) -> Service:
    """Return a Service with what was given to it; it counts for type LoadBalancer alone."""
    if given is None or service.type is not ServiceType.LOAD_BALANCER:
        return service
    addresses = tuple(dict.fromkeys((*service.load_balancer_ips, *given.addresses)))
    return dataclasses.replace(service, load_balancer_ips=addresses, balancer_note=given.note)
