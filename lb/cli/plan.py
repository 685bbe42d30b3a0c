# SPDX-License-Identifier: Apache-2.0
"""``lbctl plan -f FILE``: what would change?"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import Any, TextIO

from lb.cli import nodes, output
from lb.cli.audit import MANY, summed
from lb.cli.tables import table
from lb.diagnose.audit import Preview, preview
from lb.diagnose.snapshot import read_files
from lb.manifests.documents import passed_over_text
from lb.words import several


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl plan``."""
    with nodes.opened(args) as node:
        assert node.maps is not None
        content = read_files(args.file, node.config)
        now = node.source.snapshot()
        then = node.source.merged(content)
        found = preview(node.maps, now.state, then.state, node.topology(now), time.monotonic_ns())
    known = {str(error) for error in now.errors}
    report = as_dict(found, [str(error) for error in then.errors if str(error) not in known])
    report["not_read"] = dict(sorted(content.passed_over.items()))
    output.write(args, out, report, lambda: render(report))
    return 1 if report["problems"] else 0


def as_dict(found: Preview, errors: list[str]) -> dict[str, Any]:
    """Return the report as the JSON form has it; errors: what would be wrong in the source."""
    touched = {one.map for one in found.changes}
    problems = [*errors, *(f"{key}: {text}" for key, text in sorted(found.failed.items()))]
    return {
        "changes": [{"sign": one.sign, **one.as_dict()} for one in found.changes],
        "room": [
            {
                "map": now.name,
                "entries": now.entries,
                "would_be": then.entries,
                "capacity": now.capacity,
                "left": now.capacity - then.entries,
            }
            for now, then in found.fills
            if now.name in touched or now.entries != then.entries
        ],
        "flows": {"moved": found.flows, "of": found.flows_all},
        "affinity": {"moved": found.affinity, "of": found.affinity_all},
        "problems": problems + [str(one) for one in found.conflicts],
        "beforehand": found.beforehand,
    }


def render(report: Mapping[str, Any]) -> str:
    """Return the text form."""
    lines = []
    for one in report["changes"]:
        lines.append(f"{one['sign']} {one['map']} {one['entry']}  {one['service'] or '-'}")
        if one["sign"] == "~" and one["before"] != one["after"]:
            lines.append(f"    from: {one['before']}")
        lines.append(f"    {'to' if one['sign'] == '~' else 'entry'}: {one['after'] or one['before']}")
    if lines:
        many = len(report["changes"]) > MANY
        lines += ["", *([f"in all: {summed(report['changes'])}", ""] if many else [])]
    text = "\n".join(lines or ["no change in the maps"]) + "\n"
    if report["room"]:
        columns = ("map", "entries", "would_be", "capacity", "left")
        text += table(columns, [[row[name] for name in columns] for row in report["room"]]) + "\n"
    flows, clients = report["flows"], report["affinity"]
    text += f"live connections that would lose their backend: {flows['moved']} of {flows['of']}\n"
    text += f"clients with affinity that would get another: {clients['moved']} of {clients['of']}\n"
    if report["beforehand"]:
        there = several(report["beforehand"], "entry differs", "entries differ")
        text += f"{there} from the source already: lbctl audit\n"
    text += "".join(f"problem: {problem}\n" for problem in report["problems"])
    if not_read := passed_over_text(report.get("not_read", {})):
        text += f"{not_read}\n"
    return text + "nothing was applied\n"
