# SPDX-License-Identifier: Apache-2.0
"""From the API's Services to claimants. Whatever an object is like, the addresses in its status are read."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from typing import Any

import msgspec

from lb.addresses.claimant import Claimant
from lb.addresses.request import NO_REQUEST, read_request
from lb.kube.convert import Reader, parse_address
from lb.kube.decode import ApiObject, Metadata
from lb.model import (
    IPAddress,
    Namespace,
    ObjectKey,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficPolicy,
)


class _Struct(msgspec.Struct, rename="camel"):
    """Base of these."""


class ClaimantMetadata(Metadata):
    """``metadata`` of a Service."""

    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class PortEntry(_Struct):
    """``spec.ports[]``."""

    port: int = 0
    protocol: str | None = None


class ClaimantSpec(_Struct):
    """``spec`` of a Service."""

    type: str | None = None
    ports: tuple[PortEntry, ...] | None = None
    selector: dict[str, str] | None = None
    cluster_ips: tuple[str, ...] | None = msgspec.field(name="clusterIPs", default=None)
    external_ips: tuple[str, ...] | None = msgspec.field(name="externalIPs", default=None)
    external_traffic_policy: str | None = None
    ip_families: tuple[str, ...] | None = None
    ip_family_policy: str | None = None
    load_balancer_class: str | None = None
    load_balancer_ip: str | None = msgspec.field(name="loadBalancerIP", default=None)


class BalancerStatus(_Struct):
    """``status.loadBalancer``."""

    ingress: tuple[dict[str, Any], ...] | None = None


class ClaimantStatus(_Struct):
    """``status`` of a Service."""

    load_balancer: BalancerStatus | None = None
    conditions: tuple[dict[str, Any], ...] | None = None


class ClaimantObject(ApiObject):
    """A core/v1 Service."""

    metadata: ClaimantMetadata
    spec: ClaimantSpec
    status: ClaimantStatus | None = None


def claimant(item: ClaimantObject) -> Claimant:
    """Return the claimant that a Service is; what is no address counts as none."""
    meta, spec = item.metadata, item.spec
    kind = _kind(spec.type)
    status = item.status or ClaimantStatus()
    ingress = (status.load_balancer and status.load_balancer.ingress) or ()
    cluster_ips = _addresses(spec.cluster_ips or ())
    families = tuple(4 if each == "IPv4" else 6 for each in spec.ip_families or ())
    balanced = kind is ServiceType.LOAD_BALANCER
    return Claimant(
        key=ObjectKey(sys.intern(meta.namespace), meta.name),
        type=kind,
        ports=tuple(ServicePort("", _protocol(one), one.port, one.port) for one in spec.ports or ()),
        selector=spec.selector or None,
        external_policy=TrafficPolicy.LOCAL
        if spec.external_traffic_policy == TrafficPolicy.LOCAL
        else TrafficPolicy.CLUSTER,
        cluster_ips=cluster_ips,
        external_ips=_addresses(spec.external_ips or ()),
        load_balancer_ips=_addresses(str(each.get("ip") or "") for each in ingress),
        labels=(meta.labels or {}) if balanced else {},
        created=meta.creation_timestamp or "",
        families=families or tuple(each.version for each in cluster_ips) or (4,),
        requires_all=spec.ip_family_policy == "RequireDualStack",
        load_balancer_class=spec.load_balancer_class or "",
        request=read_request(meta.annotations or {}, spec.load_balancer_ip or "") if balanced else NO_REQUEST,
        elsewhere=any(not each.get("ip") or each.get("ipMode") == "Proxy" for each in ingress),
        uid=meta.uid,
        version=meta.resource_version,
        ingress=ingress,
        conditions=status.conditions or (),
    )


def _kind(text: str | None) -> ServiceType:
    with contextlib.suppress(ValueError):
        return ServiceType(text or ServiceType.CLUSTER_IP)
    return ServiceType.CLUSTER_IP


def _protocol(entry: PortEntry) -> Protocol:
    return Protocol.__members__.get(entry.protocol or "TCP", Protocol.TCP)


def _addresses(texts: Iterable[str]) -> tuple[IPAddress, ...]:
    found = []
    for text in texts:
        with contextlib.suppress(ValueError):
            found.append(parse_address(text))
    return tuple(found)


class NamespaceObject(ApiObject):
    """A core/v1 Namespace."""

    metadata: ClaimantMetadata


def namespace(item: NamespaceObject) -> Namespace:
    """Return what is read of a Namespace."""
    return Namespace(sys.intern(item.metadata.name), item.metadata.labels or {})


NAMESPACES = Reader(Namespace, "/api/v1/namespaces", NamespaceObject, namespace)
CLAIMANTS = Reader(Service, "/api/v1/services", ClaimantObject, claimant)
