# SPDX-License-Identifier: Apache-2.0
"""Flap damping: what the network is told follows what the agent says, but not each flap of a probe.

- An address that is new is told at once; so is one that serves better or worse than before, short of not at
  all.
- One that cannot be served any more is withdrawn when that has held for ``withdraw_seconds``.
- One that was withdrawn comes back when it could be served for ``announce_seconds``; each time that it was
  withdrawn again soon after, twice as long, up to MOST_SECONDS. FORGET_SECONDS without a withdrawal forgive.
- One that is to be left is told as such for ``drain_seconds``, then withdrawn.
- An agent that says nothing changes nothing: the programs serve on without it. After ``silent_seconds``
  the node is the last resort for what it serves, since nobody knows whether its maps are still right. The
  same while an agent that has just started has not listed everything.
- An address that no Service has any more is withdrawn like one that cannot be served.

Time is given with every call (seconds, monotonic), so that all of this is tested without waiting.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from lb.announce.report import Report
from lb.announce.servable import Standing, Verdict
from lb.model import IPAddress

MOST_SECONDS = 60.0
FORGET_SECONDS = 300.0
GONE = "no Service has it any more"


@dataclass(frozen=True, slots=True)
class Hold:
    """For how long something must hold, in seconds; see the module."""

    withdraw_seconds: float = 1.0
    announce_seconds: float = 3.0
    drain_seconds: float = 10.0
    silent_seconds: float = 60.0


@dataclass(slots=True)
class _Track:
    """An address: what the agent says and since when, and what the network is told.

    said_since: since when the agent says it, as far as the choice between serving and not is concerned;
    leaving_since: since when it is to be left, infinity if it is not. flaps: withdrawals that came soon.
    """

    said: Verdict
    said_since: float
    told: Standing
    leaving_since: float = math.inf
    flaps: int = 0
    withdrawn_at: float = -math.inf


class Damping:
    """Remembers what was said. told: what an earlier process had told, which holds until an agent speaks."""

    def __init__(self, hold: Hold, told: Iterable[Verdict] = (), now: float = 0.0) -> None:
        self.hold = hold
        self._tracks = {one.address: _Track(one, now, one.standing) for one in told}
        self._heard = now

    def hear(self, report: Report | None, now: float) -> None:
        """Take in what the agent says; None: it does not answer."""
        if report is None or not report.ready:
            return
        self._heard = now
        for address, verdict in report.verdicts.items():
            self._say(address, verdict, now)
        for address in self._tracks.keys() - report.verdicts.keys():
            said = self._tracks[address].said
            self._say(address, replace(said, standing=Standing.CANNOT, why=GONE), now)

    def _say(self, address: IPAddress, verdict: Verdict, now: float) -> None:
        track = self._tracks.get(address)
        if track is None:
            self._tracks[address] = track = _Track(verdict, now, verdict.standing)
        leaving = verdict.standing is Standing.LEAVING
        stays = track.said.standing is Standing.LEAVING and not leaving
        if stays or _serves(track.said.standing) != _serves(verdict.standing):
            track.said_since = now
        track.said = verdict
        track.leaving_since = min(track.leaving_since, now) if leaving else math.inf

    def silent(self, now: float) -> bool:
        """Tell whether the agent has said nothing for too long."""
        return now - self._heard >= self.hold.silent_seconds

    def told(self, now: float) -> Mapping[IPAddress, Verdict]:
        """Return what the network is to be told of each address, in ascending order, and why not."""
        silent = self.silent(now)
        found: dict[IPAddress, Verdict] = {}
        for address, track in sorted(self._tracks.items(), key=lambda one: (one[0].version, int(one[0]))):
            standing, why = self._decide(track, now)
            if standing is Standing.CANNOT and track.told is not Standing.CANNOT:
                soon = now - track.withdrawn_at < FORGET_SECONDS
                track.flaps = track.flaps + 1 if soon else 0
                track.withdrawn_at = now
            track.told = standing
            if standing is Standing.CANNOT and track.said.why == GONE:
                if now - track.withdrawn_at >= FORGET_SECONDS:
                    del self._tracks[address]
                continue
            if silent and standing is Standing.SERVES:
                standing, why = Standing.LAST, f"its agent has said nothing for {now - self._heard:.0f} s"
            found[address] = replace(track.said, standing=standing, why=why)
        return found

    def _decide(self, track: _Track, now: float) -> tuple[Standing, str]:
        said, held = track.said, now - track.said_since
        if said.standing is Standing.LEAVING and now - track.leaving_since >= self.hold.drain_seconds:
            return Standing.CANNOT, said.why
        if _serves(said.standing):
            wait = self._wait(track)
            if _serves(track.told) or held >= wait:
                return said.standing, said.why
            return Standing.CANNOT, f"it can be served again, and is told when that has held for {wait:g} s"
        if _serves(track.told) and held < self.hold.withdraw_seconds:
            return (
                track.told,
                f"{said.why}; withdrawn when that has held for {self.hold.withdraw_seconds:g} s",
            )
        return Standing.CANNOT, said.why

    def _wait(self, track: _Track) -> float:
        """Return for how long an address that was withdrawn must be served before it is told again."""
        if track.withdrawn_at == -math.inf:
            return 0.0
        return min(MOST_SECONDS, self.hold.announce_seconds * 2.0 ** min(track.flaps, 10))


def _serves(standing: Standing) -> bool:
    return standing is not Standing.CANNOT
