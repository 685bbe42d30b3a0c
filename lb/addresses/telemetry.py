# SPDX-License-Identifier: Apache-2.0
"""What the process tells of itself: written by the thread that allocates, read by whoever asks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from lb.addresses.allocate import Outcome, Past
from lb.addresses.pool import Pools
from lb.model import IPAddress

Place = tuple[str, int]
"""A pool's name and an IP version."""


@dataclass(slots=True)
class Telemetry:
    """The last outcome, and whether this process is the one that writes. Single attributes are replaced."""

    pools: Pools = field(default_factory=Pools)
    outcome: Outcome = field(default_factory=lambda: Outcome({}, Past()))
    leading: bool = False
    pools_error: str = ""
    nodes: Mapping[IPAddress, str] = field(default_factory=dict)
    """The names of Nodes by their addresses."""
    failures: int = 0
    """Writes that failed."""

    def sizes(self) -> dict[Place, int]:
        """Return how many addresses each pool has."""
        return {
            (pool.name, version): pool.size(version) for pool in self.pools.pools for version in pool.ranges
        }

    def used(self) -> Counter[Place]:
        """Return how many addresses of each pool Services have."""
        return self._count(self.outcome.past.holders)

    def resting(self) -> Counter[Place]:
        """Return how many addresses of each pool rest."""
        return self._count(self.outcome.past.resting)

    def of_nodes(self) -> Counter[Place]:
        """Return how many addresses of each pool are Nodes' own, and so are given to no Service."""
        return self._count(self.nodes)

    def reasons(self) -> Counter[tuple[str, bool]]:
        """Return how many Services there are of each reason, with an address and without."""
        return Counter((each.reason.value, each.satisfied) for each in self.outcome.verdicts.values())

    def _count(self, addresses: Iterable[IPAddress]) -> Counter[Place]:
        found: Counter[Place] = Counter()
        for address in addresses:
            if (pool := self.pools.of(address)) is not None:
                found[pool.name, address.version] += 1
        return found
