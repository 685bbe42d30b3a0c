# SPDX-License-Identifier: Apache-2.0
"""What a Service's healthCheckNodePort is to tell: pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass

from lb.model import IPAddress, ObjectKey, Protocol, Service, ServiceType, TrafficPolicy
from lb.plan.services import HAVE_NODE_PORTS
from lb.plan.types import BackendState, ServicePlan


@dataclass(frozen=True, slots=True)
class HealthCheck:
    """A port that a load balancer asks, and the ready endpoints of this node of which it is to tell."""

    port: int
    endpoints: frozenset[IPAddress]

    @property
    def count(self) -> int:
        """How many endpoints there are: a pod with an address of each family is one."""
        return max(Counter(address.version for address in self.endpoints).values(), default=0)

    def count_of(self, version: int) -> int:
        """Return how many there are of a family: what is told at the node's addresses of that family."""
        return sum(address.version == version for address in self.endpoints)


def node_ports(service: Service | None) -> frozenset[int]:
    """Return the TCP ports of the node's addresses that are the Service's own: nobody can listen on them."""
    if service is None or not service.proxied or service.type not in HAVE_NODE_PORTS:
        return frozenset()
    return frozenset(
        port.node_port for port in service.ports if port.node_port and port.protocol is Protocol.TCP
    )


def health_port_taken(services: Collection[Service]) -> dict[ObjectKey, str]:
    """Return, for each Service that cannot have its ``healthCheckNodePort``, which Service has that number.

    A nodePort goes before a health-check port, whose packets would never reach the agent's socket; of two
    health-check ports that of the first name is named. No API server lets either happen.
    """
    owners = {port: one.key for one in services for port in sorted(node_ports(one))}
    checks: dict[int, ObjectKey] = {}
    found = {}
    for one in sorted(services, key=lambda each: each.key):
        port = one.health_check_node_port
        if not port or not one.proxied or one.type is not ServiceType.LOAD_BALANCER:
            continue
        first = checks.setdefault(port, one.key)
        if port in owners:
            found[one.key] = f"spec.healthCheckNodePort {port}: service {owners[port]} has it as a nodePort"
        elif first != one.key:
            found[one.key] = f"spec.healthCheckNodePort {port}: service {first} has it"
    return found


def health_check(service: Service | None, plan: ServicePlan | None) -> HealthCheck | None:
    """Return what a Service's health-check port is to tell; None when it asks for none.

    Only type LoadBalancer with externalTrafficPolicy Local has one. As with kube-proxy, an endpoint is an
    address, however many ports it has, and only ready ones count: a terminating one may still serve, but a
    load balancer is to send its new connections elsewhere (KEP-1669). So it is with one of weight 0.
    """
    if service is None or plan is None or not service.proxied or not service.health_check_node_port:
        return None
    if service.type is not ServiceType.LOAD_BALANCER or service.external_policy is not TrafficPolicy.LOCAL:
        return None
    ready = (
        backend.address
        for port in plan.ports
        for backend in port.backends
        if backend.local and backend.state is BackendState.ACTIVE and backend.weight
    )
    return HealthCheck(service.health_check_node_port, frozenset(ready))
