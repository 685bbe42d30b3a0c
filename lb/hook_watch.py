# SPDX-License-Identifier: Apache-2.0
"""Keeps programs attached: what fails is tried again, what somebody takes away is put back; both are told."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator, Sequence

from lb.attachments import Attachments
from lb.datapath.attach.hooks import NO_UPLINK, LostHook
from lb.errors import LbError
from lb.retries import Retries
from lb.served.problems import NEXT
from lb.served.repairs import Repairs
from lb.words import some

_log = logging.getLogger(__name__)


def _failure(look: Callable[[], None]) -> LbError | OSError | None:
    try:
        look()
    except (LbError, OSError) as error:
        return error
    return None


class HookWatch:
    """Works in the agent's thread; what it has found may be asked for from any.

    clock: seconds, monotonic. repairs: the hooks and pins that somebody else had taken away and that were put
    back.
    """

    def __init__(self, attachments: Attachments, clock: Callable[[], float]) -> None:
        self._attachments = attachments
        self._clock = clock
        self._failed = Retries[str]()
        self._lost: Sequence[LostHook] = ()
        self._unseen = ""
        self.repairs = Repairs(clock)

    def attach(self, changed: frozenset[int] | None) -> None:
        """Bring the hooks of interfaces (by ifindex; None: all) in step.

        What fails is logged once and tried again later.
        """
        now = self._clock()
        problems = self._attachments.attach(changed)
        for problem in problems:
            if self._failed.failed(problem, problem, now):
                _log.error("%s", problem)
        if changed is None:  # only then everything was tried
            for problem in set(self._failed.messages()) - set(problems):
                self._failed.succeeded(problem)
                _log.info("no longer so: %s", problem)

    def interfaces_changed(self, indexes: frozenset[int]) -> None:
        """Bring them in step; what has failed may be right now, whatever it was."""
        self.attach(None if len(self._failed) else indexes)

    def retry(self, now: float) -> None:
        """Try again what has failed, if it is time."""
        if self._failed.due(now):
            self.attach(None)

    def next_due(self) -> float:
        """Return when something is to be tried again, by clock."""
        return self._failed.next_due()

    def look_after(self) -> None:
        """Put back what somebody else detached or unpinned, and tell; neither stops the other."""
        failures = [str(error) for look in (self._pin_again, self._attach_again) if (error := _failure(look))]
        if failures and failures[0] != self._unseen:
            _log.error("cannot look after hooks and pins: %s", failures[0])
        self._unseen = failures[0] if failures else ""

    def _pin_again(self) -> None:
        if unpinned := self._attachments.mend():
            _log.error("somebody removed %d pins of this instance: pinned again", unpinned)
            self.repairs.note(unpinned, f"{unpinned} pins")

    def _attach_again(self) -> None:
        lost = self._attachments.lost()
        if lost and not len(self._failed):  # else it is known, and tried again in time
            for one in lost:
                _log.error("%s: somebody detached it; attaching it again", one.place)
            self.attach(None)
            missing, places = len(lost), some(one.place for one in lost)
            lost = self._attachments.lost()
            self.repairs.note(missing - len(lost), places)
        self._lost = lost

    def outward_lost(self) -> bool:
        """Tell whether an uplink or a tunnel has lost a program, and does not get it back."""
        return any(one.outward for one in self._lost)

    def count(self) -> int:
        """Return how many hooks are not as they should be."""
        return max(len(self._failed), len(self._lost))

    def wrong(self) -> Iterator[tuple[Iterable[str], str]]:
        """Yield what is wrong with hooks and pins, by what is to be done about it."""
        failed = dict.fromkeys(self._failed.messages()).keys()
        absent = {one for one in failed if one.endswith(NO_UPLINK)}
        yield failed - absent, NEXT["hook"]
        yield absent, NEXT["uplink"]
        yield [f"{one.place}: detached" for one in self._lost], NEXT["lost"]
        yield [f"cannot look after hooks and pins: {self._unseen}"] if self._unseen else [], NEXT["unseen"]
