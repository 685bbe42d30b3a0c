# SPDX-License-Identifier: Apache-2.0
"""What Services claim and do not get. Each refusal is logged once, and announced at its Service."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping

from lb.inbox import Announcement
from lb.model import ObjectKey
from lb.plan import Conflict
from lb.plan.types import ServicePlan
from lb.words import some

_log = logging.getLogger(__name__)

MOST_CONFLICTS = 20
"""How many new conflicts are logged, and announced at their Services, at a time."""


class RefusedClaims:
    """The conflicts and refusals of now.

    Attributes
    ----------
    conflicts: the VIPs that several Services claim.
    refusals: by Service, what it asks for and cannot have on this node, in words.
    """

    def __init__(self, announce: Callable[[ObjectKey, Announcement], None]) -> None:
        self._announce = announce
        self.conflicts: set[Conflict] = set()
        self.refusals: dict[ObjectKey, str] = {}

    def settle(self, conflicts: Iterable[Conflict]) -> None:
        """Take all conflicts that there are now."""
        present = set(conflicts)
        new = sorted(present - self.conflicts, key=str)
        for conflict in new[:MOST_CONFLICTS]:
            _log.warning("%s", conflict)
            self._announce(conflict.loser, Announcement("VIPConflict", "Refuse", str(conflict)))
        if more := len(new[MOST_CONFLICTS:]):
            _log.warning("%d more conflicts at once; lbctl service list has them", more)
        for conflict in sorted(self.conflicts - present, key=str)[:MOST_CONFLICTS]:
            _log.info("no longer: %s", conflict)
        self.conflicts = present

    def planned(self, plans: Mapping[ObjectKey, ServicePlan | None]) -> None:
        """Take what some Services are refused, whatever others claim; None: the Service is gone."""
        for key, plan in plans.items():
            words = some(plan.refusals if plan else ())
            text = f"service {key}: {words}" if words else ""
            before = self.refusals.pop(key, "")
            if text:
                self.refusals[key] = text
            if text and text != before:
                _log.warning("%s", text)
                self._announce(key, Announcement("PartRefused", "Refuse", words))
            elif before and not text:
                _log.info("no longer: %s", before)
