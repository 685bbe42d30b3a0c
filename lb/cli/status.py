# SPDX-License-Identifier: Apache-2.0
"""``lbctl status``: the data plane as the kernel has it."""

from __future__ import annotations

import argparse
import datetime
import time
from collections.abc import Mapping
from typing import Any, TextIO

from lb.cli import instances, output
from lb.cli.tables import table
from lb.rundir import RunDir
from lb.served.status import collect


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl status``."""
    name = instances.choose(args)
    status = collect(name, RunDir(name))
    output.write(args, out, status, lambda: render(status))
    return 0


def _source_line(one: Mapping[str, Any]) -> str:
    """Return how far one kind of object is in step with the Kubernetes API."""
    if one["contact"] is None:
        heard = "never heard of"
    else:
        ago = time.time() - datetime.datetime.fromisoformat(one["contact"]).timestamp()
        heard = f"last word {max(ago, 0):.0f} s ago"
    state = f"failed {one['failures']} times: {one['error']}" if one["error"] else "in step"
    unusable = f", {one['unusable']} unusable" if one["unusable"] else ""
    return f"{one['resource']}: {one['objects']} known{unusable}, {heard}, {state}"


def _check_line(one: Mapping[str, Any]) -> str:
    """Return where a health-check port is served, and of what."""
    where = ", ".join(one["addresses"]) or "nowhere"
    place = f"healthCheckNodePort {one['port']} of {one['service']}"
    return f"{place}: {where}; local endpoints: {one['local_endpoints']}"


def _snat_line(snat: Mapping[str, int]) -> str:
    """Return how many ports there are towards each backend, and how often there was none."""
    none = f"none was free for {snat['exhausted']} packets" if snat["exhausted"] else "never exhausted"
    elsewhere = f", {snat['elsewhere']} connections went to another backend" if snat["elsewhere"] else ""
    ports = f"{snat['first']}-{snat['last']}, {snat['ports']} for each remote backend"
    return f"SNAT ports: {ports}; {none}{elsewhere}"


def render(status: dict[str, Any]) -> str:
    """Return the table form."""
    agent = status["agent"]
    running = f"running, pid {agent['pid']}" if agent["running"] else "not running; the data plane carries on"
    lines = [f"instance {status['instance']}, agent {running}"]
    if agent["last_sync"]:
        lines.append(f"last sync {agent['last_sync']}, {agent['services']} Services")
    lines += [_source_line(one) for one in status["source"]]
    if status["healthz"]:
        lines.append(f"healthz and livez: {status['healthz']}")
    lines += [_check_line(one) for one in status["health_check_node_ports"]]
    lines.append(_snat_line(status["snat"]))
    lines += [f"problem: {problem}" for problem in agent["problems"]]
    lines.append("")
    if status["hooks_elsewhere"]:
        lines += [f"its hooks are in another network namespace: {status['hooks_elsewhere']}", ""]
    sections = (
        ("hooks", ("interface", "role", "hook", "program", "program_id", "why")),
        ("programs", ("name", "id", "tag", "loaded", "build")),
        ("maps", ("name", "entries", "capacity", "when_full")),
    )
    text = "\n".join(lines) + "\n"
    blocks = [table(columns, [[row[c] for c in columns] for row in status[key]]) for key, columns in sections]
    return text + "\n".join(blocks)
