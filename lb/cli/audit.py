# SPDX-License-Identifier: Apache-2.0
"""``lbctl audit``: does the kernel hold what the source says?"""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TextIO

from lb.cli import nodes, output
from lb.cli.nodes import NodeView
from lb.datapath.maps.interface import Maps
from lb.datapath.sync.differences import Difference
from lb.diagnose import attachment, audit
from lb.diagnose.audit import Comparison
from lb.errors import LbError
from lb.plan.types import Topology
from lb.rundir import RunDir
from lb.served.liveness import Liveness, liveness
from lb.words import several

_LOOK_AGAIN_SECONDS = 0.5
_HEAL_SECONDS = 15.0
MANY = 5
"""More changes than these have their sum below them."""


def run(args: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    """Do ``lbctl audit``."""
    late = None
    with nodes.opened(args) as node:
        alive = liveness(RunDir(node.name), node.notes)
        found = look(node)
        before = found.differences
        if args.heal and before:
            try:
                heal(node, alive, lambda text: print(f"lbctl: {text}", file=err, flush=True))
            except LbError as error:
                late = error
            found = look(node)
    report = as_dict(node.name, found, [one for one in before if one not in found.differences])
    report["agent"] = _sick(alive) if alive.silent else ""
    output.write(args, out, report, lambda: render(report))
    if late and found.differences:
        raise late
    return 1 if found.differences or found.failed else 0


def _sick(alive: Liveness) -> str:
    problem = alive.problem()
    return f"{problem.text}; {problem.next}" if problem else ""


def look(node: NodeView) -> Comparison:
    """Compare until the agent has written what it was about to write."""
    maps = node.maps
    assert maps is not None

    def once() -> Comparison:
        snapshot = node.source.snapshot()
        topology = node.topology(snapshot)
        found = audit.compare(maps, snapshot.state, topology, around(node, topology))
        hooks = attachment.missing(node.config, node.notes)
        found.differences += [Difference("hooks", one.place, "", "", one.program) for one in hooks]
        return found

    if node.agent is None:
        return once()
    return audit.steady(once, lambda: time.sleep(_LOOK_AGAIN_SECONDS))


def heal(node: NodeView, alive: Liveness, tell: Callable[[str], object]) -> None:
    """Have the kernel brought in step; tell takes a line about who is waited for.

    Raises LbError: the agent does not get on, is of a version that cannot be asked, or did not do it in time.
    """
    assert node.maps is not None
    if node.agent is None:
        with RunDir(node.name).lock():
            snapshot = node.source.snapshot()
            topology = node.topology(snapshot)
            audit.heal(node.maps, snapshot.state, topology)
            around(node, topology)(node.maps)
        return
    if alive.silent:
        raise LbError(f"nothing was healed: {_sick(alive)}")
    tell(f"the agent, process {node.agent}, is asked to do it, and waited for up to {_HEAL_SECONDS:.0f} s")
    # One that starts compares everything by itself, and would not survive the signal yet.
    if node.notes.get("pid") == node.agent:
        if not node.notes.get("rereads"):
            raise LbError(
                f"the agent, process {node.agent}, is of a version that cannot be asked: restart it"
            )
        os.kill(node.agent, signal.SIGHUP)
    deadline = time.monotonic() + _HEAL_SECONDS
    while left := look(node).differences:
        if time.monotonic() >= deadline:
            raise LbError(
                f"the agent, process {node.agent}, has not healed {several(len(left), 'difference')} within"
                f" {_HEAL_SECONDS:.0f} s; its log and lbctl status say why"
            )
        time.sleep(_LOOK_AGAIN_SECONDS)


def around(node: NodeView, topology: Topology) -> Callable[[Maps], None]:
    """Return what writes to maps what the node's agent does of its configuration and interfaces."""
    return lambda maps: attachment.write_node(maps, node.config, topology.internal_addresses)


def as_dict(name: str, found: Comparison, healed: Sequence[Difference]) -> dict[str, Any]:
    """Return the report as the JSON form has it."""
    return {
        "instance": name,
        "differences": [{"sign": one.sign, **one.as_dict()} for one in found.differences],
        "healed": [{"sign": one.sign, **one.as_dict()} for one in healed],
        "conflicts": [one.as_dict() for one in found.conflicts],
        "failed": {str(key): text for key, text in sorted(found.failed.items())},
        "services": len(found.plans),
    }


def render(report: Mapping[str, Any]) -> str:
    """Return the table form."""
    text = ""
    for title, rows in (("differs", report["differences"]), ("healed", report["healed"])):
        if rows:
            text += f"{title}:\n{changes(rows)}\n"
    for one in report["conflicts"]:
        text += f"conflict: {one['text']}\n"
    for service, why in report["failed"].items():
        text += f"not in the maps: {service}: {why}\n"
    if sick := report.get("agent"):
        text += f"{sick}\n"
    left = report["differences"]
    if left:
        hooks = sum(one["map"] == "hooks" for one in left)
        parts = []
        if entries := len(left) - hooks:
            verb = "differs" if entries == 1 else "differ"
            parts.append(f"{several(entries, 'entry', 'entries')} of the maps {verb} from the source")
        if hooks:
            verb = "lacks its program" if hooks == 1 else "lack their program"
            parts.append(f"{several(hooks, 'hook')} {verb}")
        sums = f"in all: {summed(left)}\n" if len(left) > MANY else ""
        return f"{text}{sums}{' and '.join(parts)}; lbctl audit --heal mends it\n"
    services = several(report["services"], "Service")
    return f"{text}the kernel holds what the source says: {services}, no difference\n"


def summed(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return how many entries of each map would come (+), go (-) or change (~)."""
    counted = Counter((one["map"], one["sign"]) for one in rows)
    by_map: dict[str, list[str]] = {}
    for (name, sign), count in counted.items():
        by_map.setdefault(name, []).append(f"{sign}{count}")
    return ", ".join(f"{name} {' '.join(signs)}" for name, signs in by_map.items())


def changes(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return differences as lines; what is too long for a line of 100 columns goes on in the next."""
    lines = []
    for one in rows:
        lines.append(f"{one['sign']} {one['map']} {one['entry']}  {one['service'] or '-'}")
        for word, value in (("is", one["before"]), ("should be", one["after"])):
            if value:
                lines.append(f"    {word}: {value}")
    return "\n".join(lines) + "\n"
