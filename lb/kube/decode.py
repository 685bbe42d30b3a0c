# SPDX-License-Identifier: Apache-2.0
"""The fields of API objects that a Service proxy reads, for msgspec; everything else is skipped unread.

Names and meanings are those of the Kubernetes API reference: core/v1 Service and Node, discovery.k8s.io/v1
EndpointSlice. The API server writes an absent list or map as null, so everything optional may be None.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec

from lb.annotations import FORWARD, SLOW_START, WEIGHTS
from lb.model import ServiceType, TrafficPolicy

UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""What decoding raises: wrong JSON or a wrong type, bytes that are no UTF-8, a depth that nobody needs."""

Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]
PortOrNone = Annotated[int, msgspec.Meta(ge=0, le=65535)]
"""0 is how the API says "not set"."""
ProtocolName = Literal["TCP", "UDP", "SCTP"]


class _Object(msgspec.Struct, gc=False, rename="camel"):
    """Base of all of them. gc=False: they never form a cycle, and the collector need not look at them."""


class Metadata(_Object):
    """``metadata`` of any object."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None


class ApiObject(_Object):
    """Any object; used itself where only the name is wanted, because something else is wrong."""

    metadata: Metadata


class ServicePortEntry(_Object):
    """``spec.ports[]``."""

    port: Port
    name: str | None = None
    protocol: ProtocolName | None = None
    target_port: PortOrNone | str | None = None
    node_port: PortOrNone | None = None


class ClientIpConfig(_Object):
    """``spec.sessionAffinityConfig.clientIP``."""

    timeout_seconds: Annotated[int, msgspec.Meta(ge=1, le=86_400)] | None = None


class AffinityConfig(_Object):
    """``spec.sessionAffinityConfig``."""

    client_ip: ClientIpConfig | None = msgspec.field(name="clientIP", default=None)


class ServiceSpec(_Object):
    """``spec`` of a Service."""

    type: ServiceType | None = None
    ports: tuple[ServicePortEntry, ...] | None = None
    cluster_ip: str | None = msgspec.field(name="clusterIP", default=None)
    cluster_ips: tuple[str, ...] | None = msgspec.field(name="clusterIPs", default=None)
    external_ips: tuple[str, ...] | None = msgspec.field(name="externalIPs", default=None)
    external_name: str | None = None
    selector: dict[str, str] | None = None
    session_affinity: Literal["", "None", "ClientIP"] | None = None
    session_affinity_config: AffinityConfig | None = None
    publish_not_ready_addresses: bool | None = None
    internal_traffic_policy: TrafficPolicy | None = None
    external_traffic_policy: TrafficPolicy | None = None
    load_balancer_source_ranges: tuple[str, ...] | None = None
    health_check_node_port: PortOrNone | None = None
    traffic_distribution: str | None = None


class Ingress(_Object):
    """``status.loadBalancer.ingress[]``."""

    ip: str | None = None
    ip_mode: Literal["VIP", "Proxy"] | None = None


class LoadBalancerStatus(_Object):
    """``status.loadBalancer``."""

    ingress: tuple[Ingress, ...] | None = None


class Condition(_Object):
    """``status.conditions[]``."""

    type: str = ""
    message: str | None = None


class ServiceStatus(_Object):
    """``status`` of a Service."""

    load_balancer: LoadBalancerStatus | None = None
    conditions: tuple[Condition, ...] | None = None


class ServiceAnnotations(_Object):
    """Those annotations of a Service that are about connections."""

    slow_start: str | None = msgspec.field(name=SLOW_START, default=None)
    forward: str | None = msgspec.field(name=FORWARD, default=None)


class ServiceMetadata(Metadata):
    """``metadata`` of a Service."""

    labels: dict[str, str] | None = None
    annotations: ServiceAnnotations | None = None


class ServiceObject(ApiObject):
    """A core/v1 Service."""

    metadata: ServiceMetadata
    spec: ServiceSpec
    status: ServiceStatus | None = None


class SliceLabels(_Object):
    """The label of an EndpointSlice that says whose it is."""

    service: str | None = msgspec.field(name="kubernetes.io/service-name", default=None)


class SliceAnnotations(_Object):
    """Annotations of an EndpointSlice: when what its controller has followed was, and weights."""

    triggered: str | None = msgspec.field(
        name="endpoints.kubernetes.io/last-change-trigger-time", default=None
    )
    weights: str | None = msgspec.field(name=WEIGHTS, default=None)


class SliceMetadata(Metadata):
    """``metadata`` of an EndpointSlice."""

    labels: SliceLabels | None = None
    annotations: SliceAnnotations | None = None


class SlicePort(_Object):
    """``ports[]`` of an EndpointSlice; without a number it means every port."""

    name: str | None = None
    protocol: ProtocolName | None = None
    port: Port | None = None


class Conditions(_Object):
    """``endpoints[].conditions``."""

    ready: bool | None = None
    serving: bool | None = None
    terminating: bool | None = None


class Hint(msgspec.Struct, frozen=True, gc=False):
    """``endpoints[].hints.forZones[]`` and ``forNodes[]``."""

    name: str


class Hints(_Object):
    """``endpoints[].hints``."""

    for_zones: tuple[Hint, ...] | None = None
    for_nodes: tuple[Hint, ...] | None = None


class TargetRef(_Object):
    """``endpoints[].targetRef``."""

    kind: str = ""
    name: str = ""


class EndpointEntry(_Object):
    """``endpoints[]`` of an EndpointSlice."""

    addresses: Annotated[tuple[str, ...], msgspec.Meta(min_length=1)]
    conditions: Conditions | None = None
    node_name: str | None = None
    zone: str | None = None
    hints: Hints | None = None
    target_ref: TargetRef | None = None
    hostname: str | None = None


class SliceObject(ApiObject):
    """A discovery.k8s.io/v1 EndpointSlice."""

    metadata: SliceMetadata
    address_type: Literal["IPv4", "IPv6", "FQDN"]
    endpoints: tuple[EndpointEntry, ...] | None = None
    ports: tuple[SlicePort, ...] | None = None


class NodeMetadata(Metadata):
    """``metadata`` of a Node."""

    labels: dict[str, str] | None = None


class NodeAddress(_Object):
    """``status.addresses[]``."""

    type: str
    address: str


class NodeStatus(_Object):
    """``status`` of a Node."""

    addresses: tuple[NodeAddress, ...] | None = None


class Taint(_Object):
    """``spec.taints[]``."""

    key: str


class NodeSpec(_Object):
    """``spec`` of a Node."""

    taints: tuple[Taint, ...] | None = None
    unschedulable: bool | None = None


class NodeObject(ApiObject):
    """A core/v1 Node."""

    metadata: NodeMetadata
    spec: NodeSpec | None = None
    status: NodeStatus | None = None


class ListMetadata(_Object):
    """``metadata`` of a list; continue is the token of its next page."""

    resource_version: str = ""
    continue_: str | None = msgspec.field(name="continue", default=None)


class ObjectList(_Object):
    """One page of a list; the items are decoded one by one, so that a broken one costs no other."""

    metadata: ListMetadata
    items: list[msgspec.Raw] | None = None


class WatchEvent(_Object):
    """One line of a watch."""

    type: str
    object: msgspec.Raw
