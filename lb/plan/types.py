# SPDX-License-Identifier: Apache-2.0
"""What a plan is made of: the desired state of one Service, free of ids and of kernel layouts."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import msgspec

from lb.model import IPAddress, IPNetwork, ObjectKey, Protocol, TrafficPolicy, socket_text


class VipKind(enum.StrEnum):
    """Which field of the Service a VIP comes from."""

    CLUSTER_IP = "clusterIP"
    NODE_PORT = "nodePort"
    LOAD_BALANCER = "loadBalancer"
    EXTERNAL_IP = "externalIP"


class BackendState(enum.StrEnum):
    """Whether a backend takes new connections."""

    ACTIVE = "active"
    TERMINATING = "terminating"


@dataclass(frozen=True, slots=True)
class Topology:
    """Where the agent stands: everything about the node that a plan depends on.

    node_port_addresses are the addresses on which NodePorts answer, already filtered. node_addresses are all
    that the node's own stack answers for, whatever a Service claims. internal_addresses are those of type
    InternalIP of the Node object, in its order.
    """

    node_name: str
    zone: str = ""
    node_port_addresses: tuple[IPAddress, ...] = ()
    node_addresses: frozenset[IPAddress] = frozenset()
    internal_addresses: tuple[IPAddress, ...] = ()


class VipKey(msgspec.Struct, frozen=True, gc=False, cache_hash=True):
    """A Service address. port is in the CPU's order, 1 to 65535.

    Port 0 and no protocol is the address as a whole: it is about packets for none of its ports.
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

    host: it is a process of this node itself, with the node's address (host network).
    """

    address: IPAddress
    port: int
    node: str
    local: bool
    state: BackendState = BackendState.ACTIVE
    host: bool = False

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
    source_ranges are the only clients whose new connections the load-balancer VIPs take; empty: all.

    One port of a Service has its addresses as a whole among its vips: one that has endpoints where any has.
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


@dataclass(frozen=True, slots=True)
class ServicePlan:
    """The desired state of one Service; no ports when nothing of it belongs in the maps.

    created orders claims on one VIP: the older Service wins (ISO 8601 text, ``""`` sorts last).
    """

    key: ObjectKey
    created: str
    ports: tuple[PortPlan, ...]
