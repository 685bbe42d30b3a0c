# SPDX-License-Identifier: Apache-2.0
"""Hand-made endpoints: discovery.k8s.io/v1 EndpointSlice and core/v1 Endpoints manifests to model objects."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping

from lb.annotations import WEIGHTS, read_weights, weight_in
from lb.manifests import syntax
from lb.manifests.fields import Field, Fields
from lb.manifests.objects import Endpoints, HandAddress, Meta, Subset, read_annotation
from lb.manifests.service import read_address, read_protocol, required_port
from lb.model import (
    DEFAULT_WEIGHT,
    HOST_NAMES,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    IPAddress,
    ObjectKey,
    name_lines,
)

SERVICE_LABEL = "kubernetes.io/service-name"
SKIP_MIRROR_LABEL = "endpointslice.kubernetes.io/skip-mirror"
LEADER_ANNOTATION = "control-plane.alpha.kubernetes.io/leader"

_TARGET = frozenset(["apiVersion", "fieldPath", "kind", "name", "namespace", "resourceVersion", "uid"])
_SLICE_PORT = frozenset(["appProtocol", "name", "port", "protocol"])
_ENDPOINT = frozenset(
    ["addresses", "conditions", "deprecatedTopology", "hints", "hostname", "nodeName", "targetRef", "zone"]
)
_HINT = frozenset(("name",))


_EVEN: Mapping[str, int] = {}


class _AddressType(enum.StrEnum):
    UNSET = ""
    V4 = "IPv4"
    V6 = "IPv6"
    FQDN = "FQDN"


def read_slice(root: Fields, meta: Meta) -> EndpointSlice:
    """Read an EndpointSlice.

    Of an endpoint's addresses the first counts, as for kube-proxy: the API gives the others no meaning. A
    slice of host names (addressType FQDN) is valid to the API, but of no use to any proxy. A port without
    number means every port, which no proxy can serve; it is left out.
    """
    service = meta.labels.get(SERVICE_LABEL, "")
    if not service:
        root["metadata"].fields()["labels"].error(
            f"needs {SERVICE_LABEL}: without it the slice belongs to no Service"
        )
    kind = root["addressType"].choice(_AddressType, _AddressType.UNSET)
    if not kind:
        root["addressType"].error("is missing; it must be IPv4, IPv6 or FQDN")
    elif kind is _AddressType.FQDN:
        root["addressType"].error(HOST_NAMES)
    weights = read_annotation(root, WEIGHTS, read_weights, _EVEN)
    entries = (place.fields(_ENDPOINT) for place in root["endpoints"].items())
    read = (
        (_endpoint(entry, kind, weights), _checked(entry["hostname"], syntax.dns_label)) for entry in entries
    )
    endpoints = [(endpoint, hostname) for endpoint, hostname in read if endpoint is not None]
    return EndpointSlice(
        key=meta.key,
        service=ObjectKey(meta.key.namespace, service),
        ports=_ports(root["ports"], without_number=True),
        endpoints=tuple(endpoint for endpoint, _ in endpoints),
        hostnames=name_lines(hostname for _, hostname in endpoints),
        origin=meta.origin,
    )


def _ports(ports: Field, *, without_number: bool) -> tuple[EndpointPort, ...]:
    """Read ports; without_number: one may lack its number, and is left out then."""
    result: list[EndpointPort] = []
    names: set[str] = set()
    for place in ports.items():
        entry = place.fields(_SLICE_PORT)
        name = _distinct_name(entry["name"], names)
        protocol = read_protocol(entry["protocol"])
        if entry["port"].present or not without_number:
            result.append(EndpointPort(name, protocol, required_port(entry["port"])))
    return tuple(result)


def _distinct_name(place: Field, names: set[str]) -> str:
    name = place.text()
    if name:
        place.check(syntax.dns_label(name))
    if name in names:
        place.error(
            f"{name!r} is the name of an earlier port, too" if name else "is required for several ports"
        )
    names.add(name)
    return name


def _endpoint(entry: Fields, kind: _AddressType, weights: Mapping[str, int]) -> Endpoint | None:
    conditions = entry["conditions"].fields(frozenset(("ready", "serving", "terminating")))
    hints = entry["hints"].fields(frozenset(("forNodes", "forZones")))
    addresses = _endpoint_addresses(entry["addresses"], kind)
    if not addresses:
        return None
    target = _target(entry)
    return Endpoint(
        address=addresses[0],
        ready=conditions["ready"].flag() or not conditions["ready"].present,
        serving=conditions["serving"].flag() or not conditions["serving"].present,
        terminating=conditions["terminating"].flag(),
        node=_checked(entry["nodeName"], syntax.dns_subdomain),
        zone=_checked(entry["zone"], syntax.label_value),
        target=target,
        hint_zones=_hint_names(hints["forZones"], syntax.label_value),
        hint_nodes=_hint_names(hints["forNodes"], syntax.dns_subdomain),
        weight=weight_in(weights, target.rpartition("/")[2], str(addresses[0]), DEFAULT_WEIGHT),
    )


def _endpoint_addresses(places: Field, kind: _AddressType) -> list[IPAddress]:
    items = places.items()
    if not items:
        places.error("needs an address")
    result = []
    for place in items:
        if kind is _AddressType.FQDN:
            place.check(syntax.dns_subdomain(place.text().removesuffix(".")))
        elif (address := read_address(place)) is not None:
            if kind and address.version != (4 if kind is _AddressType.V4 else 6):
                place.error(f"must be of the addressType {kind}, is {address}")
            result.append(address)
    return result


def _checked(place: Field, check: Callable[[str], str | None]) -> str:
    """Return a string that has to be of a syntax unless it is empty."""
    text = place.text()
    return text if not text or place.check(check(text)) else ""


def _hint_names(hints: Field, check: Callable[[str], str | None]) -> frozenset[str]:
    return frozenset(_checked(place.fields(_HINT)["name"], check) for place in hints.items())


def _target(entry: Fields) -> str:
    target = entry["targetRef"].fields(_TARGET)
    if target["kind"].text() != "Pod":
        return ""
    namespace = _checked(target["namespace"], syntax.dns_label)
    return f"{namespace}/{_checked(target['name'], syntax.dns_subdomain)}"


def read_endpoints(root: Fields, meta: Meta) -> Endpoints:
    """Read an Endpoints object; it belongs to the Service of its own name."""
    subsets = []
    for place in root["subsets"].items():
        subset = place.fields(frozenset(("addresses", "notReadyAddresses", "ports")))
        if not subset["addresses"].items() and not subset["notReadyAddresses"].items():
            place.error("needs addresses or notReadyAddresses")
        addresses = (
            *_hand_addresses(subset["addresses"], ready=True),
            *_hand_addresses(subset["notReadyAddresses"], ready=False),
        )
        subsets.append(Subset(addresses, _ports(subset["ports"], without_number=False)))
    skipped = meta.labels.get(SKIP_MIRROR_LABEL) == "true" or LEADER_ANNOTATION in meta.annotations
    return Endpoints(meta.key, tuple(subsets), mirrored=not skipped, origin=meta.origin)


def _hand_addresses(places: Field, *, ready: bool) -> tuple[HandAddress, ...]:
    result = []
    for place in places.items():
        entry = place.fields(frozenset(("hostname", "ip", "nodeName", "targetRef")))
        address = read_address(entry["ip"])
        if address is not None:
            node = _checked(entry["nodeName"], syntax.dns_subdomain)
            hostname = _checked(entry["hostname"], syntax.dns_label)
            result.append(HandAddress(address, ready, node, _target(entry), hostname))
    return tuple(result)
