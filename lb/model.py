# SPDX-License-Identifier: Apache-2.0
"""What Kubernetes says, in the project's own immutable types.

Only the fields that a Service proxy reads are here. Both sources (manifests, Kubernetes API)
convert into these types; nothing behind them knows which source it was.

Field meanings follow the Kubernetes API reference (core/v1 Service, Pod, Node and
discovery.k8s.io/v1 EndpointSlice); defaults that the API server would fill in are filled in
by the converters, so every value here is final.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from types import MappingProxyType
from typing import Self

import msgspec

IPAddress = IPv4Address | IPv6Address
IPNetwork = IPv4Network | IPv6Network


def _no_labels() -> Mapping[str, str]:
    return MappingProxyType({})


class Protocol(enum.IntEnum):
    """Transport protocols of a Service port; the values are IANA protocol numbers."""

    TCP = 6
    UDP = 17
    SCTP = 132

    __hash__ = int.__hash__  # an enum's own is in Python, and is called for each look for a port


class ServiceType(enum.StrEnum):
    """``spec.type`` of a Service."""

    CLUSTER_IP = "ClusterIP"
    NODE_PORT = "NodePort"
    LOAD_BALANCER = "LoadBalancer"
    EXTERNAL_NAME = "ExternalName"


class TrafficPolicy(enum.StrEnum):
    """``spec.internalTrafficPolicy`` and ``spec.externalTrafficPolicy``."""

    CLUSTER = "Cluster"
    LOCAL = "Local"

    __hash__ = str.__hash__  # as above


class TrafficDistribution(enum.StrEnum):
    """``spec.trafficDistribution``; NONE when it is not set."""

    NONE = ""
    PREFER_CLOSE = "PreferClose"
    PREFER_SAME_ZONE = "PreferSameZone"
    PREFER_SAME_NODE = "PreferSameNode"


DEFAULT_WEIGHT, MAX_WEIGHT = 100, 1000
"""The weight of an endpoint that nobody gives one, and the greatest: the share of new connections is in
proportion to it. With 0 it takes none."""

MAX_SLOW_START = 3600
"""The longest slow start, in seconds."""


def socket_text(address: IPAddress, port: int) -> str:
    """Return address and port as people write them: ``10.96.0.1:80``, ``[fd00::1]:80``."""
    return f"[{address}]:{port}" if address.version == 6 else f"{address}:{port}"


@dataclass(frozen=True, slots=True)
class FiveTuple:
    """The addresses, ports and protocol of the packets of one direction of a connection.

    protocol: IANA's number. Ports are 0 where the protocol has none.
    """

    src: IPAddress
    sport: int
    dst: IPAddress
    dport: int
    protocol: int

    @property
    def reverse(self) -> Self:
        """Those of the packets the other way."""
        return type(self)(self.dst, self.dport, self.src, self.sport, self.protocol)

    @property
    def version(self) -> int:
        """The IP version."""
        return self.src.version

    @property
    def client(self) -> str:
        """Where the packets come from, as text."""
        return socket_text(self.src, self.sport)

    @property
    def target(self) -> str:
        """Where the packets go, as text."""
        return socket_text(self.dst, self.dport)


# There is one of these for each endpoint of a cluster, or several: as structs they are small, and made,
# compared and hashed in C. gc=False: they never form a cycle, and the collector need not look at them.


class ObjectKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """Namespace and name; a cluster-scoped object has the namespace ``""``."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name

    def covers(self, text: str) -> bool:
        """Tell whether ``NAMESPACE/NAME`` is this object; without a name: whether it is in the namespace."""
        return text == str(self) if self.name else text.startswith(f"{self.namespace}/")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an object was read: a file with a 1-based line, or an API path with line 0."""

    path: str
    line: int = 0

    def __str__(self) -> str:
        return f"{self.path}:{self.line}" if self.line else self.path


NOWHERE = Origin("")


@dataclass(frozen=True, slots=True)
class ServicePort:
    """One entry of ``spec.ports``.

    target_port is a number (1 to 65535) or the name of a container port, resolved per endpoint.
    node_port is 0 when the port has none.
    """

    name: str
    protocol: Protocol
    port: int
    target_port: int | str
    node_port: int = 0


@dataclass(frozen=True, slots=True)
class Service:
    """A core/v1 Service.

    cluster_ips is empty for headless and ExternalName Services. load_balancer_ips holds
    ``status.loadBalancer.ingress[].ip`` whose ipMode is VIP or unset. affinity_seconds is
    ``sessionAffinityConfig.clientIP.timeoutSeconds`` (default 10800) when sessionAffinity is
    ClientIP, else 0. selector is None when the Service has none. created is
    ``metadata.creationTimestamp`` as ISO 8601 text (sorts by age), ``""`` when unknown.
    proxied is False when a skip label gives the Service to another proxy. balancer_note is what whoever
    gives load-balancer addresses (``lbctl addresses run``) says of it: the pools that they are from, or why
    it has none; ``""`` when nobody says anything. slow_start: over how many seconds a new endpoint comes to
    its whole share of connections; 0: at once.
    forward is the text of the annotation :data:`lb.annotations.FORWARD`, ``""`` without it.
    """

    key: ObjectKey
    type: ServiceType = ServiceType.CLUSTER_IP
    ports: tuple[ServicePort, ...] = ()
    cluster_ips: tuple[IPAddress, ...] = ()
    headless: bool = False
    external_ips: tuple[IPAddress, ...] = ()
    load_balancer_ips: tuple[IPAddress, ...] = ()
    external_name: str = ""
    selector: Mapping[str, str] | None = None
    affinity_seconds: int = 0
    publish_not_ready: bool = False
    internal_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    external_policy: TrafficPolicy = TrafficPolicy.CLUSTER
    source_ranges: tuple[IPNetwork, ...] = ()
    health_check_node_port: int = 0
    distribution: TrafficDistribution = TrafficDistribution.NONE
    proxied: bool = True
    created: str = ""
    balancer_note: str = ""
    slow_start: int = 0
    forward: str = ""
    labels: Mapping[str, str] = field(default_factory=_no_labels)
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class EndpointPort:
    """One entry of an EndpointSlice's ``ports``: the Service port's name and the real number."""

    name: str
    protocol: Protocol
    port: int


class Endpoint(msgspec.Struct, frozen=True, gc=False):
    """One entry of an EndpointSlice's ``endpoints``.

    ready, serving and terminating are the conditions with the API's defaults applied (ready and
    serving are true when absent, terminating false). target is ``namespace/name`` of the pod, ``""`` for an
    endpoint given by hand, or read from the API: there the slice has all names in one text. hint_zones and
    hint_nodes are the topology hints. weight: see :data:`DEFAULT_WEIGHT`.
    """

    address: IPAddress
    ready: bool = True
    serving: bool = True
    terminating: bool = False
    node: str = ""
    zone: str = ""
    target: str = ""
    hint_zones: frozenset[str] = frozenset()
    hint_nodes: frozenset[str] = frozenset()
    weight: int = DEFAULT_WEIGHT


@dataclass(frozen=True, slots=True)
class EndpointSlice:
    """A discovery.k8s.io/v1 EndpointSlice; service is the object that its label names.

    triggered is when the pod or Service changed that this state of it follows from, in seconds since the
    epoch; 0 when nobody says so. pods: the names of the endpoints' pods as the API tells them (targetRef), a
    line for each endpoint; one text takes a quarter of the memory of as many names. hostnames: their names in
    DNS, likewise; ``""`` when none has any.
    """

    key: ObjectKey
    service: ObjectKey
    ports: tuple[EndpointPort, ...] = ()
    endpoints: tuple[Endpoint, ...] = ()
    triggered: float = field(default=0.0, compare=False)
    pods: str = field(default="", compare=False)
    hostnames: str = ""
    origin: Origin = field(default=NOWHERE, compare=False)

    def named(self) -> Iterator[tuple[Endpoint, str]]:
        """Yield each endpoint with its pod's ``namespace/name``, ``""`` without one."""
        names = self.pods.split("\n") if self.pods else []
        for at, endpoint in enumerate(self.endpoints):
            name = names[at] if at < len(names) else ""
            yield endpoint, endpoint.target or (f"{self.key.namespace}/{name}" if name else "")

    def host_names(self) -> list[str]:
        """Return each endpoint's hostname, ``""`` for one without."""
        names = self.hostnames.split("\n") if self.hostnames else []
        return [*names, *[""] * len(self.endpoints)][: len(self.endpoints)]


def name_lines(names: Iterable[str]) -> str:
    """Return names as a slice has them: a line for each endpoint, none at the end for those without."""
    return "\n".join(names).rstrip("\n")


@dataclass(frozen=True, slots=True)
class ContainerPort:
    """A named or unnamed port that a container of a pod declares."""

    name: str
    protocol: Protocol
    port: int


@dataclass(frozen=True, slots=True)
class Pod:
    """A core/v1 Pod, as far as Services select it.

    ready is the pod's Ready condition; terminating is true once deletionTimestamp is set;
    finished is true in the phases Succeeded and Failed. hostname and subdomain are those of its spec: with
    both, it has a name of its own in the headless Service that the subdomain names. trouble says why it is
    not ready, in the words of its status, for people alone; ``""`` when it is, or nothing is said. weight:
    that of its endpoints.
    """

    key: ObjectKey
    labels: Mapping[str, str] = field(default_factory=_no_labels)
    node: str = ""
    addresses: tuple[IPAddress, ...] = ()
    container_ports: tuple[ContainerPort, ...] = ()
    ready: bool = False
    terminating: bool = False
    finished: bool = False
    hostname: str = ""
    subdomain: str = ""
    weight: int = DEFAULT_WEIGHT
    trouble: str = field(default="", compare=False)
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Overlaps:
    """Addresses of one Service that are something else, too.

    pods: those of its externalIPs that are the address of an endpoint of any Service, if that names a node.
    cluster_ips: those of its endpoints' addresses that are a clusterIP of any Service.
    nodes: those of its external and load-balancer addresses that are an InternalIP of a Node that is known.
    """

    pods: frozenset[IPAddress] = frozenset()
    cluster_ips: frozenset[IPAddress] = frozenset()
    nodes: frozenset[IPAddress] = frozenset()


NO_OVERLAPS = Overlaps()


ZONE_LABEL = "topology.kubernetes.io/zone"
"""Of a Node: the zone that it is in."""

DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"
"""The cluster autoscaler gives a Node a taint of this key before it drains and deletes it."""


UNSCHEDULABLE_TAINT = "node.kubernetes.io/unschedulable"
"""The node controller gives a cordoned Node a taint of this key; others may, too."""


HOST_NAMES = "is FQDN: no Service proxy resolves host names, so none of these endpoints is served"
"""What is wrong with an EndpointSlice of addressType FQDN, whichever source it comes from."""


@dataclass(frozen=True, slots=True)
class Node:
    """A core/v1 Node: its InternalIP addresses, its labels, and the zone that one of them names.

    terminating: it has a deletionTimestamp, or the taint :data:`DELETION_TAINT`. cordoned: it takes no new
    pods (``spec.unschedulable``, or the taint :data:`UNSCHEDULABLE_TAINT`).
    """

    name: str
    addresses: tuple[IPAddress, ...] = ()
    zone: str = ""
    terminating: bool = False
    cordoned: bool = False
    labels: Mapping[str, str] = field(default_factory=_no_labels)
    origin: Origin = field(default=NOWHERE, compare=False)


@dataclass(frozen=True, slots=True)
class Namespace:
    """A core/v1 Namespace: its labels, by which pools of load-balancer addresses may choose Services."""

    name: str
    labels: Mapping[str, str] = field(default_factory=_no_labels)
    origin: Origin = field(default=NOWHERE, compare=False)


Resource = Service | EndpointSlice | Node | Namespace
"""What a source hands on; pods and Endpoints objects have become EndpointSlices by then. Namespaces are for
who gives addresses alone."""
ResourceKind = type[Service] | type[EndpointSlice] | type[Node] | type[Namespace]


@dataclass(frozen=True, slots=True)
class Upsert:
    """A resource was added or changed."""

    resource: Resource


@dataclass(frozen=True, slots=True)
class Delete:
    """A resource is gone; a Node's key and a Namespace's have the namespace ``""``."""

    kind: ResourceKind
    key: ObjectKey


@dataclass(frozen=True, slots=True)
class Synced:
    """The source has listed everything once; only now may maps be written."""

    source: str


Event = Upsert | Delete | Synced
