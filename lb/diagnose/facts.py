# SPDX-License-Identifier: Apache-2.0
"""What is known of a Service that is looked into, and what a finding is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from lb.datapath.attach.netns import Listener
from lb.datapath.sync.differences import Difference
from lb.diagnose.attachment import MissingHook
from lb.diagnose.probe import Outcome
from lb.model import Endpoint, EndpointSlice, IPAddress, ObjectKey, Pod, Service
from lb.plan import Conflict
from lb.plan.types import PortPlan, ServicePlan, Topology

if TYPE_CHECKING:
    from lb.diagnose.names import Naming


class Result(StrEnum):
    """How a step came out."""

    OK = "ok"
    NOTE = "note"
    """Worth knowing, and no fault; or a consequence of a cause above."""
    CAUSE = "CAUSE"


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. cause: a word for machines. next: what to do. Both are ``""`` where there is none."""

    step: str
    result: Result
    found: str
    cause: str = ""
    next: str = ""


@dataclass(slots=True)
class Facts:
    """Everything that the steps look at.

    near: where else a Service of that name is, or names like it. pods: those of the namespace; None when
    they cannot be read, pods_error says why. plan: what the Service should have in this node's maps.
    not_tried: how many endpoints outcomes leave out. evicted: by map, how many established entries made room
    for new ones. missing_nodes: those that endpoints name, and of which there is no Node object.
    health_port: why the Service cannot have its healthCheckNodePort. sick: what is wrong with an agent that
    runs and does not get on, and what to do about it. between: the same of a takeover from
    kube-proxy, or back, that is not finished.
    client: whose way is asked about. kernel: False where only the source was looked at. listeners: who
    listens in the network namespace of a pod; None where it cannot be told. naming: what is known of its
    name; None where it was not looked at. speaker: what the process says that tells routers about this node
    (``/api/bgp``); None where none runs. owners: who answers for its addresses on the node's segments, as the
    agent tells it; empty where nothing is announced.
    """

    key: ObjectKey
    service: Service | None
    near: Sequence[str] = ()
    errors: Sequence[str] = ()
    pods: Sequence[Pod] | None = ()
    pods_error: str = ""
    slices: Sequence[EndpointSlice] = ()
    plan: ServicePlan | None = None
    failed: str = ""
    conflicts: Sequence[Conflict] = ()
    topology: Topology | None = None
    clients: Mapping[int, IPAddress] = field(default_factory=dict)
    kernel: bool = True
    agent: bool = True
    differences: Sequence[Difference] = ()
    hooks: Sequence[MissingHook] = ()
    outcomes: Sequence[Outcome] = ()
    not_tried: int = 0
    evicted: Mapping[str, int] = field(default_factory=dict)
    missing_nodes: Sequence[str] = ()
    health_port: str = ""
    sick: tuple[str, str] = ("", "")
    between: tuple[str, str] = ("", "")
    listeners: Mapping[str, Sequence[Listener] | None] = field(default_factory=dict)
    naming: Naming | None = None
    speaker: Mapping[str, Any] | None = None
    owners: Sequence[Mapping[str, Any]] = ()

    def selected(self) -> list[Pod]:
        """Return the pods that the selector matches and that have not ended."""
        if self.service is None or not self.service.selector:
            return []
        wanted = self.service.selector.items()
        return [pod for pod in self.pods or () if wanted <= pod.labels.items() and not pod.finished]

    def endpoints(self) -> list[Endpoint]:
        """Return all endpoints of all slices."""
        return [each for piece in self.slices for each in piece.endpoints]

    def ports(self) -> list[PortPlan]:
        """Return what is planned for each port."""
        return list(self.plan.ports) if self.plan else []


def causes(findings: Iterable[Finding]) -> list[str]:
    """Return the causes that were found, in order."""
    return [one.cause for one in findings if one.result is Result.CAUSE]
