# SPDX-License-Identifier: Apache-2.0
"""What one manifest object becomes, and the parts that every kind has: apiVersion, metadata."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TypeVar

from lb.manifests import syntax
from lb.manifests.fields import Field, Fields
from lb.model import (
    EndpointPort,
    EndpointSlice,
    IPAddress,
    Namespace,
    Node,
    ObjectKey,
    Origin,
    Pod,
    Service,
)

PORT_MIN, PORT_MAX = 1, 65535
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ServiceRequest:
    """A Service as written, before the cluster would have given it addresses and node ports.

    service: what is written; its cluster_ips, node ports and health_check_node_port may be missing.
    families: IP versions (4, 6) that it asks for, in order; empty: the cluster's first.
    prefers_dual: the other family too, if the cluster has one.
    requires_dual: the other family too, and it is an error if the cluster has none.
    wants_node_ports: ports without nodePort get one.
    annotations, load_balancer_class, load_balancer_ip: of type LoadBalancer, what it says about its address.
    """

    service: Service
    families: tuple[int, ...] = ()
    prefers_dual: bool = False
    requires_dual: bool = False
    wants_node_ports: bool = False
    annotations: Mapping[str, str] = field(default_factory=dict)
    load_balancer_class: str = ""
    load_balancer_ip: str = ""


@dataclass(frozen=True, slots=True)
class Subset:
    """One entry of an Endpoints object's ``subsets``; every address has every port."""

    addresses: tuple[HandAddress, ...]
    ports: tuple[EndpointPort, ...]


@dataclass(frozen=True, slots=True)
class HandAddress:
    """One address of a subset; ready tells ``addresses`` from ``notReadyAddresses``."""

    address: IPAddress
    ready: bool
    node: str = ""
    target: str = ""
    hostname: str = ""


@dataclass(frozen=True, slots=True)
class Endpoints:
    """A core/v1 Endpoints object; mirrored is False when it is marked as not for Services."""

    key: ObjectKey
    subsets: tuple[Subset, ...] = ()
    mirrored: bool = True
    origin: Origin = field(default=Origin(""), compare=False)


@dataclass(frozen=True, slots=True)
class ServiceAddresses:
    """The load-balancer addresses of a Service whose manifest names none; ``lbctl addresses run`` writes it.

    note says where they are from, or why there are none. resting are those that it had, each with until when
    it is kept from other Services, in seconds since the epoch; a Service that is gone has nothing else.
    """

    key: ObjectKey
    addresses: tuple[IPAddress, ...] = ()
    note: str = ""
    resting: Mapping[IPAddress, float] = field(default_factory=dict)
    origin: Origin = field(default=Origin(""), compare=False)


Parsed = ServiceRequest | Pod | Node | Namespace | EndpointSlice | Endpoints | ServiceAddresses
ObjectId = tuple[str, ObjectKey]
"""Kind and key."""


def origin_of(parsed: Parsed) -> Origin:
    """Return where an object was read."""
    return parsed.service.origin if isinstance(parsed, ServiceRequest) else parsed.origin


@dataclass(frozen=True, slots=True)
class Meta:
    """The metadata that some kind reads; created is UTC as ``2020-01-15T10:20:58Z``, ``""`` when absent."""

    key: ObjectKey
    origin: Origin
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    created: str
    deleting: bool


def read_annotation(root: Fields, name: str, read: Callable[[str], T], otherwise: T) -> T:
    """Read one of our annotations; what it cannot be is an error at its place."""
    place = root["metadata"].fields()["annotations"].fields()[name]
    if not place.present:
        return otherwise
    try:
        return read(place.text())
    except ValueError as error:
        place.error(str(error))
        return otherwise


def read_key(metadata: Fields, *, namespaced: bool) -> ObjectKey:
    """Read name and namespace, unchecked; a missing namespace of a namespaced kind is ``default``."""
    namespace = (metadata["namespace"].text() or "default") if namespaced else ""
    return ObjectKey(namespace, metadata["name"].text())


def read_meta(metadata: Fields, key: ObjectKey, line: int, *, dns_label: bool) -> Meta:
    """Read metadata.

    line is where the object begins. dns_label names the syntax of the kind's names (else DNS subdomain).
    """
    name = metadata["name"]
    if key.name:
        name.check(syntax.dns_label(key.name) if dns_label else syntax.dns_subdomain(key.name))
    else:
        generated = "; generateName needs an API server" if metadata["generateName"].present else ""
        name.error(f"is missing{generated}")
    if key.namespace:
        metadata["namespace"].check(syntax.dns_label(key.namespace))
    return Meta(
        key=key,
        origin=Origin(metadata.place.problems.path, line),
        labels=metadata["labels"].string_map(syntax.label_key, syntax.label_value),
        annotations={name: place.node.text for name, place in metadata["annotations"].fields() if place.node},
        created=_timestamp(metadata["creationTimestamp"]),
        deleting=bool(_timestamp(metadata["deletionTimestamp"])),
    )


def _timestamp(place: Field) -> str:
    text = place.text()
    if not text:
        return ""
    try:
        when = datetime.fromisoformat(text)
        if when.tzinfo is not None:
            return when.astimezone(UTC).isoformat().replace("+00:00", "Z")
    except (ValueError, OverflowError):
        pass
    place.error(f"must be a time like 2020-01-15T10:20:58Z (RFC 3339), is {text!r}")
    return ""
