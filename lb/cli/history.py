# SPDX-License-Identifier: Apache-2.0
"""``lbctl history SERVICE``: what was lately written for a Service, and why."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, TextIO

from lb.cli import instances, output, pods
from lb.cli.nodes import service_key
from lb.rundir import RunDir
from lb.served.ask import ask
from lb.words import short

_WORDS = {"vips": "VIP", "backends": "backend", "source_ranges": "source range", "table_rows": "table row"}
_SIGNS = {
    "added": "+",
    "changed": "~",
    "removed": "-",
    "terminating": "terminating:",
    "active": "active again:",
}


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl history``."""
    key = service_key(args.service)
    run_dir = RunDir(instances.choose(args))
    found = ask(run_dir, "/api/history", service=str(key))
    output.write(args, out, found, lambda: render(found, pods.known(run_dir, key)))
    return 0


def render(found: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """Return the text form: a line for each change, and one below it for each kind of entry.

    known: pods by ``address:port`` and by address; those of backends that are gone are not among them.
    """
    if not found["changes"]:
        return (
            f"{found['service']}: nothing was written for it that the agent remembers;"
            f" it started {found['agent_started']}\n"
        )
    lines = []
    for one in found["changes"]:
        causes = ", ".join(one["causes"]) + (f" and {one['more_causes']} more" if one["more_causes"] else "")
        after = "" if one["seconds"] is None else f", {one['seconds'] * 1000:.1f} ms after"
        lines.append(f"{one['time']}  {one['family']}{after}: {causes}")
        lines += [f"    {change(each, known)}" for each in one["changes"]]
    return "\n".join(lines) + "\n"


def change(part: Mapping[str, Any], known: Mapping[str, str]) -> str:
    """Return what became of the entries of one kind, ``+ 2 backends 10.0.0.1:80 (web-1), 10.0.0.2:80``."""
    count, names = part["count"], [_named(name, known) for name in part["names"]]
    left = f" and {count - len(names)} more" if names and count > len(names) else ""
    words = f"{_WORDS[part['what']]}{'' if count == 1 else 's'}"
    return f"{_SIGNS[part['verb']]} {count} {words} {', '.join(names)}{left}".rstrip()


def _named(place: str, known: Mapping[str, str]) -> str:
    pod = short(pods.pod_at(known, place))
    return f"{place} ({pod})" if pod else place
