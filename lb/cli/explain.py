# SPDX-License-Identifier: Apache-2.0
"""``lbctl explain``: why does this Service not answer?"""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from dataclasses import asdict
from ipaddress import ip_address
from typing import TextIO

from lb.cli import nodes, output
from lb.cli.audit import look
from lb.cli.colours import painted, wanted
from lb.cli.width import MOST, text_width, wrapped
from lb.diagnose.explain import explain
from lb.diagnose.facts import Finding, Result, causes
from lb.diagnose.gather import Vantage, gather
from lb.errors import LbError, UsageError
from lb.model import ObjectKey
from lb.rundir import RunDir
from lb.served import takeover
from lb.served.api import OWNERS
from lb.served.ask import ask
from lb.served.liveness import liveness
from lb.served.servable import spoken

_LEAST = 30  # columns of what was found
_COLOURS = {Result.OK: "32", Result.NOTE: "33", Result.CAUSE: "1;31"}


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl explain``."""
    key = nodes.service_key(args.service)
    try:
        client = ip_address(args.client) if args.client else None
    except ValueError as error:
        raise UsageError(f"--from {args.client}: {error}") from error
    with nodes.opened(args, needs_maps=False) as view:
        snapshot = view.source.snapshot()
        topology = view.topology(snapshot)
        compared = look(view) if view.maps else None
        node = Vantage(view.config, view.maps, view.notes, view.agent is not None, view.source)
        facts = gather(
            node,
            key,
            snapshot,
            topology,
            compared,
            client=client,
            probing=not args.no_probes,
            every=args.every,
        )
        where = view.name or view.source.name
        with contextlib.suppress(LbError):  # of an agent that does not run nothing is told
            if view.name:
                facts.owners = ask(RunDir(view.name), OWNERS, seconds=2.0)["addresses"]
        facts.speaker = spoken(RunDir(view.name)) if view.name else None
        if view.name and (alive := liveness(RunDir(view.name), view.notes)).silent:
            problem = alive.problem()
            facts.sick = (problem.text, problem.next) if problem else facts.sick
        for one in takeover.problems(view.maps) if view.maps else ():
            facts.between = (one.text, one.next)
    findings = explain(facts)
    report = {
        "service": str(key),
        "node": where,
        "causes": causes(findings),
        "findings": [asdict(one) for one in findings],
    }
    output.write(
        args, out, report, lambda: render(key, where, findings, text_width(out), colours=wanted(out))
    )
    return 1 if causes(findings) else 0


def render(
    key: ObjectKey, where: str, findings: Sequence[Finding], width: int = MOST, *, colours: bool = False
) -> str:
    """Return the text form: a line or more for each finding, what to do below it, and the sum."""
    lines = [f"{key}, seen from {where}", ""]
    wide = max((len(one.step) for one in findings), default=0)
    for one in findings:
        word = one.result.value.ljust(5)
        if colours:
            word = painted(word, _COLOURS[one.result])
        indent = " " * (wide + 9)
        room = max(width - len(indent), _LEAST)
        text = wrapped(one.found, room)
        lines.append(f"{one.step.ljust(wide)}  {word}  {text[0]}")
        lines += [indent + line for line in text[1:]]
        if one.next:
            told = wrapped(f"→ {one.next}", room, below="  ")
            lines += [indent + line for line in told]
    found = causes(findings)
    lines.append("")
    if found:
        lines.append(f"cause: {', '.join(dict.fromkeys(found))}")
    else:
        lines.append("no cause found: what was looked at is as it should be")
    return "\n".join(lines) + "\n"
