# SPDX-License-Identifier: Apache-2.0
"""What the agent's thread does beside its own work: after each sync, and every few seconds."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence

from lb import memory
from lb.agent import Agent
from lb.attachments import Attachments
from lb.datapath.attach.netns import packets_in
from lb.datapath.attach.settings import write_time
from lb.datapath.maps.interface import Maps
from lb.errors import BpfError
from lb.host_watch import HostWatch
from lb.served.health import Health
from lb.served.losses import Losses
from lb.served.notes import Notes
from lb.served.supervisor import Supervisor
from lb.served.watch import Watch

_log = logging.getLogger(__name__)


def build_watches(maps: Maps, attachments: Attachments) -> dict[str, Watch]:
    """Return what is looked at with each beat, by the kind of its problems."""
    return {
        "loss": Losses(maps, lambda: packets_in(attachments.uplinks())),
        "host": HostWatch(attachments.host_checks),
    }


class Upkeep:
    """What is done beside the agent's own work: after each sync, and every BEAT_SECONDS.

    after_sync: called after each sync, in this order; others may add to it.
    """

    def __init__(
        self, maps: Maps, health: Health, notes: Notes, watches: Sequence[Watch], tell: Supervisor
    ) -> None:
        self._maps, self._notes, self._watches, self._tell = maps, notes, watches, tell
        spare_once = functools.cache(memory.spare)
        self.after_sync: list[Callable[[Agent], None]] = [
            lambda _agent: health.node.synced(),
            notes.synced,
            tell.synced,
            lambda _agent: spare_once(),
        ]

    def synced(self, agent: Agent) -> None:
        """Call everybody who waits for a sync."""
        for each in self.after_sync:
            each(agent)

    def beat(self, agent: Agent) -> None:
        """Write the programs' time, look at what may be wrong, write the notes, tell the supervisor."""
        try:
            write_time(self._maps)
        except BpfError as error:
            _log.warning("the programs keep the time of day that they have: %s", error)
        for one in self._watches:
            one.look()
        self._notes.write(agent)
        self._tell.beat(agent)
