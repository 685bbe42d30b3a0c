# SPDX-License-Identifier: Apache-2.0
"""How long an address has no owner: kills, pulled cables, walls, hand-overs, again and again in one lab.

``python -m tests.soak.owners [ROUNDS [WORD…]]``, as root; words choose kinds of events. A client asks every
20 ms who has the address, by ARP, and others ask a Service behind it for pages without pause: four that keep
their connection, two that open one for each page. For each kind of event it prints, as a row of
docs/segment.md: how long it took until another node answered, and until the owner did again (median, most),
for how long two nodes answered at once (most), the longest pause of a client, and how many of the requests
failed.
"""

from __future__ import annotations

import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lb.lab.addressing import Announce, LabSpec
from lb.lab.lab import Lab
from lb.lab.objects import node_object, to_yaml
from lb.lab.removal import down
from tests.netns.segments import MANIFESTS, WEB, Asker, Load, asker, set_bridged, set_port

ASK_SECONDS = 0.02
SETTLE_SECONDS = 6.0
MOST_SECONDS = 30.0


@dataclass
class Kind:
    """A kind of event: what is done to the owner, and how that is undone; and what came of it."""

    name: str
    do: Callable[[Lab, str], None]
    undo: Callable[[Lab, str], None]
    replaced: list[float] = field(default_factory=list)
    returned: list[float] = field(default_factory=list)
    both: list[float] = field(default_factory=list)
    paused: list[float] = field(default_factory=list)
    failed: int = 0
    answered: int = 0

    def row(self) -> str:
        """Return the figures as a row of a table."""
        cells = [
            self.name,
            f"{statistics.median(self.replaced):.2f} s, {max(self.replaced):.2f} s",
            f"{statistics.median(self.returned):.2f} s, {max(self.returned):.2f} s",
            f"{1000 * max(self.both):.0f} ms",
            f"{max(self.paused):.2f} s",
            f"{self.failed} of {self.answered}",
        ]
        return f"| {' | '.join(cells)} |"


def _cordon(lab: Lab, node: str, wanted: bool) -> None:
    item = node_object(lab.spec, node, "2024-01-01T00:00:00Z")
    item["spec"]["unschedulable"] = wanted
    lab.store.write_object(f"node.{node}.yaml", to_yaml(item))


def _kill(lab: Lab, node: str) -> None:
    lab.stop_agent(node, signal.SIGKILL)


def _die(lab: Lab, node: str) -> None:
    set_bridged(lab, node, bridged=False)
    lab.stop_agent(node, signal.SIGKILL)


def _revive(lab: Lab, node: str) -> None:
    set_bridged(lab, node, bridged=True)
    lab.start_agent(node)


def kinds() -> list[Kind]:
    """Return the kinds of events."""
    return [
        Kind("agent ends (SIGTERM)", lambda lab, node: lab.stop_agent(node), Lab.start_agent),
        Kind(
            "node is cordoned",
            lambda lab, node: _cordon(lab, node, True),
            lambda lab, node: _cordon(lab, node, False),
        ),
        Kind("agent is killed (SIGKILL)", _kill, Lab.start_agent),
        Kind("node dies: unreachable, agent killed", _die, _revive),
        Kind(
            "cable is pulled",
            lambda lab, node: set_port(lab, node, up=False),
            lambda lab, node: set_port(lab, node, up=True),
        ),
        Kind(
            "node is cut off, its carrier stays",
            lambda lab, node: set_bridged(lab, node, bridged=False),
            lambda lab, node: set_bridged(lab, node, bridged=True),
        ),
    ]


def until(asking: Asker, wanted: Callable[[set[str]], bool], since: float) -> tuple[float, float]:
    """Ask until those who answer are as wanted; return how long that took, and how long two answered."""
    both = 0.0
    while time.monotonic() - since < MOST_SECONDS:
        asked = time.monotonic()
        found = asking.owners(WEB, ASK_SECONDS)
        if len(found) > 1:
            both += time.monotonic() - asked
        if wanted(found):
            return asked - since, both
    raise SystemExit(f"not within {MOST_SECONDS:.0f} s")


def play(lab: Lab, asking: Asker, kind: Kind) -> None:
    """Do one event and undo it; note the figures."""
    owner = asking.owner(WEB)
    with Load(lab, WEB) as load:
        time.sleep(1.0)
        begun = time.monotonic()
        kind.do(lab, owner)
        took, both = until(asking, lambda found: bool(found) and owner not in found, begun)
        kind.replaced.append(took)
        time.sleep(SETTLE_SECONDS)
        begun = time.monotonic()
        kind.undo(lab, owner)
        took, again = until(asking, lambda found: found == {owner}, begun)
        kind.returned.append(took)
        kind.both.append(max(both, again))
        time.sleep(SETTLE_SECONDS)
    kind.paused.append(load.longest)
    kind.failed += len(load.failed)
    kind.answered += sum(load.answered.values())
    for text in sorted(set(load.failed)):
        print(f"{kind.name}: {load.failed.count(text)} times {text}", file=sys.stderr)


def main() -> None:
    """Bring the lab up, play, print, take it down."""
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 5
    every = [one for one in kinds() if not sys.argv[2:] or any(word in one.name for word in sys.argv[2:])]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "web.yaml").write_text(MANIFESTS)
        lab = Lab.up(LabSpec("owners", folder, nodes=3, announce=Announce.ARP), print)
        try:
            with asker(lab) as asking:
                asking.owner(WEB)
                time.sleep(SETTLE_SECONDS)
                for kind in every:
                    for _ in range(rounds):
                        play(lab, asking, kind)
                    print(kind.row(), flush=True)
        finally:
            down("owners", lambda _line: None)


if __name__ == "__main__":
    main()
