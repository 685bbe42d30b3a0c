# SPDX-License-Identifier: Apache-2.0
"""What goes into the agent's inbox, and the parts that it works with as :class:`lb.agent.Agent` sees them."""

from __future__ import annotations

import queue
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from lb.datapath.attach.hooks import LostHook
from lb.datapath.sync.sync_record import SyncReport
from lb.model import Event, IPAddress, Node, ObjectKey
from lb.plan import HealthCheck
from lb.plan.types import ServicePlan, Topology, VipKey


@dataclass(frozen=True, slots=True)
class InterfacesChanged:
    """Links, addresses or default routes of these interfaces (by ifindex) have changed."""

    indexes: frozenset[int]


@dataclass(frozen=True, slots=True)
class Failed:
    """A thread ended by an exception: the agent must not go on as if nothing were."""

    what: str
    error: BaseException


@dataclass(frozen=True, slots=True)
class Settled:
    """What :class:`lb.datapath.kernel.grace.GracePeriods` waited for is over."""


@dataclass(frozen=True, slots=True)
class Reread:
    """Compare everything in the maps with the source again: somebody else may have written to them."""


@dataclass(frozen=True, slots=True)
class Stop:
    """Leave; the data plane stays."""


@dataclass(frozen=True, slots=True)
class SourceEvents:
    """What a source has told, and when it came: seconds of the agent's clock."""

    events: Sequence[Event]
    arrived: float


Message = SourceEvents | InterfacesChanged | Failed | Settled | Reread | Stop
Inbox = queue.SimpleQueue[Message]


class Surroundings(Protocol):
    """The kernel around the agent; :mod:`lb.serve` has the real one."""

    def topology(self, node: Node | None, claims: Callable[[IPAddress], bool]) -> Topology:
        """Return where the agent stands.

        node is what Kubernetes says of it, None while that is unknown. claims: see
        :func:`lb.datapath.attach.roles.standing`.
        """
        ...

    def attach(self, changed: frozenset[int] | None) -> Sequence[str]:
        """Attach programs to the interfaces (by ifindex; None: all) and return what failed.

        None also has written anew what the programs know of the node and its configuration.
        """
        ...

    def lost(self) -> Sequence[LostHook]:
        """Return the hooks that should have a program of ours and have none.

        Raises
        ------
        LbError: the kernel refused to tell.
        """
        ...

    def mend(self) -> int:
        """Pin again what somebody unpinned, and return how much that was.

        Raises
        ------
        LbError, OSError: it could not be pinned.
        """
        ...

    def drift(self) -> dict[str, int]:
        """Return by map how many entries about the node and its configuration are not as they should be."""
        ...


class Syncer(Protocol):
    """What the agent uses of :class:`lb.datapath.sync.reconcile.Reconciler`."""

    def known(self) -> set[ObjectKey]:
        """Return the Services that have something in the maps."""
        ...

    def holders(self) -> Mapping[VipKey, ObjectKey]:
        """Return which Service has each VIP in the maps."""
        ...

    def sync(self, plans: dict[ObjectKey, ServicePlan | None]) -> SyncReport:
        """Write what differs, emptying plans; a Service's failure is in the report and stops no other."""
        ...

    def reread(self) -> bool:
        """Take over what the maps hold now; False: not yet."""
        ...

    def drift(self) -> dict[str, int] | None:
        """Return by map how many entries are not as they were written; None: not now."""
        ...

    def linger(self) -> float:
        """Let go of VIPs that linger without need; return after how many seconds to call again."""
        ...

    def free(self) -> None:
        """Free what had to wait for packets on their way, as far as they have passed."""
        ...


class Checks(Protocol):
    """What the agent uses of :class:`lb.served.health.HealthChecks`."""

    def update(
        self,
        checks: Mapping[ObjectKey, HealthCheck | None],
        unwritten: Collection[ObjectKey],
        node_ports: Mapping[ObjectKey, frozenset[int]],
    ) -> None:
        """Take what Services ask for now, None: nothing; unwritten ones have in the kernel what they had.

        node_ports: the TCP ports that are the Services' own.
        """
        ...

    def move(self, addresses: Sequence[IPAddress]) -> None:
        """Listen on these addresses, and on no other."""
        ...


@dataclass(frozen=True, slots=True)
class Announcement:
    """What whoever looks at a Service should know: reason and action are CamelCase words for machines."""

    reason: str
    action: str
    text: str
