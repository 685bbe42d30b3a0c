# SPDX-License-Identifier: Apache-2.0
"""What goes into the agent's inbox, and the parts that it works with as :class:`lb.agent.Agent` sees them."""

from __future__ import annotations

import queue
from collections.abc import Sequence
from dataclasses import dataclass

from lb.model import Event


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


@dataclass(frozen=True, slots=True)
class Announcement:
    """What whoever looks at a Service should know: reason and action are CamelCase words for machines."""

    reason: str
    action: str
    text: str
