# SPDX-License-Identifier: Apache-2.0
"""From API objects to the model: pure functions.

The API server has validated what it serves and filled in defaults, so the rules of manifests are not repeated
here. What is refused is what could not be acted on. Where an old object holds what today's validation would
refuse but kube-proxy accepts (leading zeros in IPv4 addresses, host bits in source ranges), so do we.
"""

from __future__ import annotations

import datetime
import functools
import socket
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import AddressValueError, IPv4Address, IPv6Address, ip_network
from typing import Generic, TypeVar, cast

import msgspec
from msgspec import structs

from lb.annotations import SLOW_START, WEIGHTS, read_slow_start, read_weights, weight_in
from lb.errors import InputError
from lb.kube.decode import (
    UNREADABLE,
    ApiObject,
    Conditions,
    EndpointEntry,
    Hint,
    Metadata,
    NodeObject,
    ServiceObject,
    ServicePortEntry,
    SliceObject,
)
from lb.kube.refusal import refusal
from lb.model import (
    DEFAULT_WEIGHT,
    DELETION_TAINT,
    HOST_NAMES,
    UNSCHEDULABLE_TAINT,
    ZONE_LABEL,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    IPAddress,
    IPNetwork,
    Node,
    ObjectKey,
    Protocol,
    Resource,
    ResourceKind,
    Service,
    ServicePort,
    ServiceType,
    TrafficDistribution,
    TrafficPolicy,
    name_lines,
)

AFFINITY_DEFAULT = 10_800
"""Seconds of ClientIP affinity when the Service names none."""


ADDRESSES_CONDITION = "lbctl/Addresses"
"""Type of the condition in a Service's status that tells of its load-balancer addresses."""


class FieldError(ValueError):
    """A field's value cannot be acted on; field is its dotted path.

    instead: what the object counts as all the same; None when what it was before stays.
    """

    def __init__(self, field: str, message: str, instead: Resource | None = None) -> None:
        super().__init__(message)
        self.field = field
        self.instead = instead


def service(item: ServiceObject) -> Service:
    """Return the model's Service.

    The labels that give a Service to another proxy are the list's selector, so proxied is always True here.
    Labels are kept of Services with external addresses: routers may be told of these by labels. A
    trafficDistribution that is not known counts as none: the API makes it a preference that a proxy need not
    follow.

    Raises FieldError: an address or network is not valid; or an annotation of ours: then it counts
    without.
    """
    meta, spec = item.metadata, item.spec
    kind = spec.type or ServiceType.CLUSTER_IP
    claimed = spec.cluster_ips or ((spec.cluster_ip,) if spec.cluster_ip else ())
    headless = claimed[:1] == ("None",)
    addressed = not headless and kind is not ServiceType.EXTERNAL_NAME
    external = kind is ServiceType.LOAD_BALANCER or spec.external_ips
    result = Service(
        key=_key(meta),
        labels=(meta.labels or {}) if external else {},
        type=kind,
        ports=tuple(map(_service_port, spec.ports or ())),
        cluster_ips=_addresses("spec.clusterIPs", claimed) if addressed else (),
        headless=headless,
        external_ips=_addresses("spec.externalIPs", spec.external_ips or ()),
        load_balancer_ips=_load_balancer_ips(item) if kind is ServiceType.LOAD_BALANCER else (),
        external_name=(spec.external_name or "") if kind is ServiceType.EXTERNAL_NAME else "",
        selector=spec.selector or None,
        affinity_seconds=_affinity_seconds(item),
        publish_not_ready=bool(spec.publish_not_ready_addresses),
        internal_policy=spec.internal_traffic_policy or TrafficPolicy.CLUSTER,
        external_policy=spec.external_traffic_policy or TrafficPolicy.CLUSTER,
        source_ranges=tuple(
            _network(f"spec.loadBalancerSourceRanges[{i}]", text)
            for i, text in enumerate(spec.load_balancer_source_ranges or ())
        ),
        health_check_node_port=spec.health_check_node_port or 0,
        distribution=_distribution(spec.traffic_distribution or ""),
        created=meta.creation_timestamp or "",
        balancer_note=_balancer_note(item) if kind is ServiceType.LOAD_BALANCER else "",
        forward=((meta.annotations and meta.annotations.forward) or "").strip(),
    )
    slow_start = meta.annotations.slow_start if meta.annotations else None
    if slow_start is None:
        return result
    try:
        return replace(result, slow_start=read_slow_start(slow_start))
    except ValueError as error:
        raise FieldError(f"metadata.annotations[{SLOW_START}]", str(error), instead=result) from error


def _balancer_note(item: ServiceObject) -> str:
    """Return the message of the condition that ``lbctl addresses run`` writes; ``""`` without one."""
    conditions = (item.status and item.status.conditions) or ()
    return next((each.message or "" for each in conditions if each.type == ADDRESSES_CONDITION), "")


def _service_port(entry: ServicePortEntry) -> ServicePort:
    return ServicePort(
        name=sys.intern(entry.name or ""),
        protocol=Protocol[entry.protocol or "TCP"],
        port=entry.port,
        target_port=entry.target_port or entry.port,
        node_port=entry.node_port or 0,
    )


def _load_balancer_ips(item: ServiceObject) -> tuple[IPAddress, ...]:
    """Return the addresses whose ipMode is VIP or unset; those of a Proxy are not for us to take."""
    balancer = item.status.load_balancer if item.status else None
    return tuple(
        _address(f"status.loadBalancer.ingress[{i}].ip", entry.ip)
        for i, entry in enumerate((balancer and balancer.ingress) or ())
        if entry.ip and entry.ip_mode != "Proxy"
    )


def _affinity_seconds(item: ServiceObject) -> int:
    if item.spec.session_affinity != "ClientIP":
        return 0
    config = item.spec.session_affinity_config
    return (config and config.client_ip and config.client_ip.timeout_seconds) or AFFINITY_DEFAULT


def _distribution(text: str) -> TrafficDistribution:
    try:
        return TrafficDistribution(text)
    except ValueError:
        return TrafficDistribution.NONE


def endpoint_slice(item: SliceObject) -> EndpointSlice:
    """Return the model's EndpointSlice; which pod an endpoint is stays empty, since nothing reads it.

    Of an endpoint's addresses the first counts, the API gives the others no meaning. A port without number,
    which would mean every port, is left out. Conditions that are absent have the API's defaults: ready,
    serving, not terminating.

    Raises FieldError: an address is not valid, the slice names no Service, or its endpoints are host names
    (addressType FQDN), which no proxy resolves; it counts as a slice without endpoints then. Or its weights
    cannot be read; all are equal then.
    """
    label = item.metadata.labels and item.metadata.labels.service
    if not label:
        raise FieldError("metadata.labels", "kubernetes.io/service-name is missing: whose slice is it?")
    key = _key(item.metadata)
    named = item.address_type == "FQDN"
    result = EndpointSlice(
        key=key,
        service=ObjectKey(key.namespace, label),
        ports=_ports(
            tuple([(port.name or "", port.protocol, port.port) for port in item.ports or () if port.port])
        ),
        endpoints=() if named else tuple([_endpoint(i, e) for i, e in enumerate(item.endpoints or ())]),
        triggered=_triggered(item),
        pods=_pods(item.endpoints or ()),
        hostnames="" if named else name_lines(each.hostname or "" for each in item.endpoints or ()),
    )
    if named:
        raise FieldError("addressType", HOST_NAMES, instead=result)
    notes = item.metadata.annotations
    if notes is None or notes.weights is None:
        return result
    try:
        return _weighted(result, read_weights(notes.weights))
    except ValueError as error:
        raise FieldError(f"metadata.annotations[{WEIGHTS}]", str(error), instead=result) from error


def _weighted(piece: EndpointSlice, weights: Mapping[str, int]) -> EndpointSlice:
    """Return a slice whose endpoints have the weights that its annotation gives them."""
    endpoints = [
        structs.replace(
            one, weight=weight_in(weights, pod.rpartition("/")[2], str(one.address), DEFAULT_WEIGHT)
        )
        for one, pod in piece.named()
    ]
    return replace(piece, endpoints=tuple(endpoints))


def _pods(entries: Sequence[EndpointEntry]) -> str:
    """Return the names of the pods behind endpoints, one a line; ``""`` when there are none."""
    refs = [entry.target_ref for entry in entries]
    return name_lines(ref.name if ref and ref.kind == "Pod" else "" for ref in refs)


def _triggered(item: SliceObject) -> float:
    """Return the time of the annotation in seconds since the epoch; 0 without one: it only measures."""
    notes = item.metadata.annotations
    text = notes.triggered if notes else None
    try:
        return datetime.datetime.fromisoformat(text).timestamp() if text else 0.0
    except ValueError:
        return 0.0


@functools.lru_cache(maxsize=1024)
def _ports(ports: tuple[tuple[str, str | None, int], ...]) -> tuple[EndpointPort, ...]:
    """Return one tuple for all slices with the same ports: they are few."""
    return tuple(EndpointPort(sys.intern(name), Protocol[kind or "TCP"], port) for name, kind, port in ports)


_NO_CONDITIONS = Conditions()
_NOBODY: frozenset[str] = frozenset()


def _endpoint(index: int, entry: EndpointEntry) -> Endpoint:
    conditions, hints = entry.conditions or _NO_CONDITIONS, entry.hints
    try:
        address = parse_address(entry.addresses[0])
    except AddressValueError as error:
        raise FieldError(f"endpoints[{index}].addresses[0]", f"must be an IP address: {error}") from error
    return Endpoint(
        address,
        conditions.ready is not False,
        conditions.serving is not False,
        conditions.terminating is True,
        sys.intern(entry.node_name or ""),
        sys.intern(entry.zone or ""),
        "",
        _names(hints.for_zones) if hints and hints.for_zones else _NOBODY,
        _names(hints.for_nodes) if hints and hints.for_nodes else _NOBODY,
    )


@functools.lru_cache(maxsize=4096)
def _names(hints: tuple[Hint, ...]) -> frozenset[str]:
    """Return one set for all endpoints with the same hints: there are as many sets as zones or nodes."""
    return frozenset(sys.intern(hint.name) for hint in hints)


def node(item: NodeObject) -> Node:
    """Return the model's Node.

    Raises FieldError: an InternalIP is no address.
    """
    listed = (item.status and item.status.addresses) or ()
    taints = {taint.key for taint in (item.spec and item.spec.taints) or ()}
    labels = item.metadata.labels or {}
    return Node(
        name=item.metadata.name,
        addresses=tuple(
            _address(f"status.addresses[{i}].address", entry.address)
            for i, entry in enumerate(listed)
            if entry.type == "InternalIP"
        ),
        zone=labels.get(ZONE_LABEL, ""),
        terminating=item.metadata.deletion_timestamp is not None or DELETION_TAINT in taints,
        cordoned=bool(item.spec and item.spec.unschedulable) or UNSCHEDULABLE_TAINT in taints,
        labels=labels,
    )


def _key(meta: Metadata) -> ObjectKey:
    return ObjectKey(sys.intern(meta.namespace), meta.name)


def _addresses(field: str, texts: Iterable[str]) -> tuple[IPAddress, ...]:
    return tuple(_address(f"{field}[{i}]", text) for i, text in enumerate(texts))


def _address(field: str, text: str) -> IPAddress:
    try:
        return parse_address(text)
    except AddressValueError as error:
        raise FieldError(field, f"must be an IP address: {error}") from error


def parse_address(text: str) -> IPAddress:
    """Return an address as kube-proxy reads it: zeros may lead, and a mapped one is of IPv4.

    Raises AddressValueError: the text is no address.
    """
    if ":" in text:
        address = IPv6Address(text)
        return address.ipv4_mapped or address
    try:
        return IPv4Address(int.from_bytes(socket.inet_pton(socket.AF_INET, text), "big"))  # most of it in C
    except (OSError, ValueError):
        return IPv4Address(".".join(part.lstrip("0") or "0" for part in text.split(".")))


def _network(field: str, text: str) -> IPNetwork:
    host, slash, length = text.strip().partition("/")
    try:
        if not slash:
            raise ValueError(f"{text!r} has no prefix length")
        return ip_network(f"{parse_address(host)}/{length}", strict=False)
    except ValueError as error:
        raise FieldError(field, f"must be a network such as 10.0.0.0/8: {error}") from error


S = TypeVar("S", bound=ApiObject)
R = TypeVar("R", bound=Resource)


@dataclass(frozen=True, slots=True)
class Item(Generic[R]):
    """One object as read. error says what is wrong with it; resource is what is usable, None for nothing."""

    key: ObjectKey
    uid: str
    version: str
    resource: R | None
    error: InputError | None = None


class Reader(Generic[S, R]):
    """Reads the objects of one kind.

    Attributes
    ----------
    model: what they become; its name is the kind's.
    path: the path of all of them, ``/api/v1/services``.
    """

    def __init__(self, model: ResourceKind, path: str, struct: type[S], convert: Callable[[S], R]) -> None:
        self.model = model
        self.path = path
        self._struct = struct
        self._decoder = msgspec.json.Decoder(struct)
        self._convert = convert

    def read(self, body: bytes | msgspec.Raw) -> Item[R]:
        """Read one object, whatever it is like; what has not even a name has an empty one."""
        meta: Metadata
        try:
            decoded = self._decoder.decode(body)
        except UNREADABLE:
            try:
                meta = _ANY.decode(body).metadata
            except UNREADABLE:
                meta = Metadata()
            return self._refused(meta, *refusal(body, self._struct))
        meta = decoded.metadata
        try:
            resource = self._convert(decoded)
        except FieldError as error:
            # What a reader's own function gives instead is of the reader's kind.
            return self._refused(meta, error.field, str(error), cast("R | None", error.instead))
        return Item(_key(meta), meta.uid, meta.resource_version, resource)

    def version(self, body: bytes | msgspec.Raw) -> str:
        """Return an object's resourceVersion.

        Raises one of UNREADABLE: the object has none.
        """
        return _ANY.decode(body).metadata.resource_version

    def path_of(self, meta: Metadata) -> str:
        """Return the API path of an object."""
        group, _, plural = self.path.rpartition("/")
        namespace = f"/namespaces/{meta.namespace}" if meta.namespace else ""
        return f"{group}{namespace}/{plural}/{meta.name}"

    def _refused(self, meta: Metadata, field: str, message: str, instead: R | None = None) -> Item[R]:
        key = _key(meta)
        error = InputError(self.path_of(meta), 0, f"{self.model.__name__} {key}", field, message)
        return Item(key, meta.uid, meta.resource_version, instead, error)


_ANY = msgspec.json.Decoder(ApiObject)

SERVICES = Reader(Service, "/api/v1/services", ServiceObject, service)
ENDPOINT_SLICES = Reader(
    EndpointSlice, "/apis/discovery.k8s.io/v1/endpointslices", SliceObject, endpoint_slice
)
NODES = Reader(Node, "/api/v1/nodes", NodeObject, node)
