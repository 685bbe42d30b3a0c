# SPDX-License-Identifier: Apache-2.0
"""What a plan is made of: the desired state of one Service, free of ids and of kernel layouts."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

import msgspec

from lb.config import Forward
from lb.model import (
    DEFAULT_WEIGHT,
    IPAddress,
    IPNetwork,
    ObjectKey,
    Protocol,
    TrafficPolicy,
    socket_text,
)


class VipKind(enum.StrEnum):
    """Which field of the Service a VIP comes from."""

    CLUSTER_IP = "clusterIP"
    NODE_PORT = "nodePort"
    LOAD_BALANCER = "loadBalancer"
    EXTERNAL_IP = "externalIP"

    __hash__ = str.__hash__  # an enum's own is in Python


class BackendState(enum.StrEnum):
    """Whether a backend takes new connections."""

    ACTIVE = "active"
    TERMINATING = "terminating"


@dataclass(frozen=True, slots=True)
class Topology:
    """Where the agent stands: everything about the node that a plan depends on.

    node_port_addresses are the addresses on which NodePorts answer, already filtered. node_addresses are all
    that the node's own stack answers for, whatever a Service claims. internal_addresses are those of type
    InternalIP of the Node object, in its order. sockets are those of node_addresses, with a port,
    on which processes of the node listen; only of such addresses as some Service claims. external_networks
    are the only ones that externalIPs may come from; None: all. forward: the setting of that name.
    """

    node_name: str
    zone: str = ""
    node_port_addresses: tuple[IPAddress, ...] = ()
    node_addresses: frozenset[IPAddress] = frozenset()
    internal_addresses: tuple[IPAddress, ...] = ()
    sockets: frozenset[VipKey] = frozenset()
    external_networks: tuple[IPNetwork, ...] | None = None
    forward: Forward = Forward.SNAT

    def same_place(self, other: Topology) -> bool:
        """Tell whether they differ in nothing but the node's own addresses and sockets."""
        own = replace(
            self,
            node_addresses=other.node_addresses,
            internal_addresses=other.internal_addresses,
            sockets=other.sockets,
        )
        return own == other


class VipKey(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """A Service address. port: a number from 1 to 65535.

    Port 0 without a protocol stands for the address as a whole: for packets to none of its Services' ports.
    """

    address: IPAddress
    port: int = 0
    protocol: Protocol | None = None

    def __str__(self) -> str:
        if self.protocol is None:
            return str(self.address)
        return f"{socket_text(self.address, self.port)}/{self.protocol.name}"


class Vip(msgspec.Struct, frozen=True, gc=False):
    """One VIP of a Service port and the field that it comes from.

    inside and outside are the traffic policies for new connections from this node's pods and from
    elsewhere: they say which of the port's two sets of backends is offered.
    """

    key: VipKey
    kind: VipKind
    inside: TrafficPolicy = TrafficPolicy.CLUSTER
    outside: TrafficPolicy = TrafficPolicy.CLUSTER


class Backend(msgspec.Struct, frozen=True, gc=False):
    """One endpoint of a Service port. node is ``""`` when the endpoint names none.

    weight: new connections are shared out by it; with 0 it takes none, and is in no set.
    """

    address: IPAddress
    port: int
    node: str
    local: bool
    state: BackendState = BackendState.ACTIVE
    weight: int = DEFAULT_WEIGHT

    @property
    def identity(self) -> tuple[int, int, int]:
        """What the consistent hash sees: (IP version, address as a number, port); equal on every node."""
        return (self.address.version, int(self.address), self.port)


@dataclass(frozen=True, slots=True)
class PortPlan:
    """The desired state of one port of a Service in one address family.

    vips and backends all belong to the family ``version`` (4 or 6) and are sorted. cluster and local are
    the backends offered to new connections under the traffic policies Cluster and Local: subsets of
    backends, sorted by identity. A backend in neither keeps its established connections only. local is
    empty when cluster is; when local alone is empty, the policy Local drops instead of rejecting.
    source_ranges are the only clients whose new connections the load-balancer VIPs take; empty: all. direct:
    packets from outside go encapsulated to backends on other nodes, which answer by themselves. udp_stays:
    and a datagram that no flow is known of may belong to a conversation that another node knows.

    The Service's addresses as a whole (port 0) are among the vips of one of its ports: of a port that has
    endpoints, if any has.
    """

    port_name: str
    protocol: Protocol
    version: int
    affinity_seconds: int
    vips: tuple[Vip, ...]
    backends: tuple[Backend, ...]
    cluster: tuple[Backend, ...]
    local: tuple[Backend, ...]
    source_ranges: tuple[IPNetwork, ...] = ()
    direct: bool = False
    udp_stays: bool = False


@dataclass(frozen=True, slots=True)
class Refusal:
    """What a Service asks for and does not get on this node: ``externalIP 127.0.0.1``, and why."""

    subject: str
    why: str

    def __str__(self) -> str:
        return f"{self.subject} is refused: {self.why}"


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The desired state of one Service; no ports when nothing of it belongs in the maps.

    created orders claims on one VIP: the older Service wins (ISO 8601 text, ``""`` sorts last). refusals say
    what the Service asks for and cannot have, whatever other Services claim.
    """

    key: ObjectKey
    created: str
    ports: tuple[PortPlan, ...]
    refusals: tuple[Refusal, ...] = ()
