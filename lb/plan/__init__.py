"""The desired state of the data plane, as pure functions of what Kubernetes says."""

from lb.plan.claims import Claims, Conflict, Decision
from lb.plan.maglev import lookup_table, table_size
from lb.plan.services import plan_service
from lb.plan.support import unsupported

__all__ = ["Claims", "Conflict", "Decision", "lookup_table", "plan_service", "table_size", "unsupported"]
