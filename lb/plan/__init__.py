# SPDX-License-Identifier: Apache-2.0
"""The desired state of the data plane, as pure functions of what Kubernetes says."""

from lb.plan.claims import Claims, Conflict, Decision
from lb.plan.health import HealthCheck, health_check, health_port_taken, node_ports
from lb.plan.maglev import lookup_table, table_size
from lb.plan.rendezvous import SMALL_SET, divisors, seeds, weights_of
from lb.plan.services import concerned, plan_service

__all__ = [
    "SMALL_SET",
    "Claims",
    "Conflict",
    "Decision",
    "HealthCheck",
    "concerned",
    "divisors",
    "health_check",
    "health_port_taken",
    "lookup_table",
    "node_ports",
    "plan_service",
    "seeds",
    "table_size",
    "weights_of",
]
