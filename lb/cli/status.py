# SPDX-License-Identifier: Apache-2.0
"""``lbctl status``: is all well on this node, and what runs there?"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, TextIO

from lb.cli import instances, nodes, output
from lb.cli.colours import painted, wanted
from lb.cli.tables import table
from lb.cli.width import MOST, text_width, wrapped
from lb.diagnose import attachment
from lb.errors import LbError
from lb.rundir import RunDir
from lb.served.problems import Problem, as_note
from lb.served.status import collect
from lb.words import several, some

_HOOKS_NEXT = "start the agent, which attaches them: systemctl start lbctl, or lbctl run"
_LABEL = 11
_MOST_PORTS = 5


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl status``."""
    name = instances.choose(args)
    run_dir = RunDir(name)
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(LbError):  # it is gone: the status says where the hooks were
            stack.enter_context(nodes.entered(name))
        status = collect(name, run_dir)
        agent = status["agent"]
        if (not agent["running"] or agent["silent_seconds"] is not None) and not status["hooks_elsewhere"]:
            status["problems"] += _missing(name, run_dir.notes())
    width, colours = text_width(out), wanted(out)
    programs = args.programs or args.output == "wide"
    output.write(args, out, status, lambda: render(status, programs=programs, width=width, colours=colours))
    return 1 if status["problems"] else 0


def _missing(name: str, notes: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the hooks without a program, which an agent that gets on would tell of itself."""
    if not notes.get("settings"):
        return
    try:
        config = nodes.noted_config(name, notes, str(RunDir(name).notes_path))
        missing = attachment.missing(config, notes)
    except LbError as error:
        yield as_note(Problem(f"hooks cannot be looked for: {error}", _HOOKS_NEXT))
        return
    for one in missing:
        yield as_note(Problem(str(one), _HOOKS_NEXT))


def render(
    status: Mapping[str, Any], *, programs: bool = False, width: int = MOST, colours: bool = False
) -> str:
    """Return the table form; programs: with every hook, program and map."""
    lines = [_first_line(status, colours=colours)]
    for one in status["problems"]:
        lines += _problem_lines(one, width)
    if left := status["problems_left_out"]:
        lines.append(f"- and {left} more: the agent's log has them")
    lines.append("")
    for label, text in _summary(status):
        lines += wrapped(text, width, label.ljust(_LABEL), " " * _LABEL)
    blocks = ["\n".join(lines) + "\n"]
    if programs:
        sections = (
            ("hooks", ("interface", "role", "hook", "program", "program_id", "why")),
            ("programs", ("name", "id", "tag", "loaded", "build")),
            ("maps", ("name", "entries", "capacity", "when_full")),
        )
        blocks += [
            table(columns, [[row[c] for c in columns] for row in status[key]]) for key, columns in sections
        ]
    else:
        blocks.append(_maps(status["maps"]))
    return "\n".join(blocks)


def _first_line(status: Mapping[str, Any], *, colours: bool) -> str:
    """Return the line that decides."""
    count = len(status["problems"]) + status["problems_left_out"]
    word, code = (several(count, "problem"), "1;31") if count else ("ok", "32")
    where = status["node"] or status["instance"]
    instance = "" if where == status["instance"] else f" (instance {status['instance']})"
    return f"{painted(word, code) if colours else word}: {where}{instance}"


def _problem_lines(one: Mapping[str, Any], width: int) -> list[str]:
    since = f" (since {moment(one['since'])})" if one["since"] else ""
    lines = wrapped(one["text"] + since, width, "- ", "  ")
    return lines + (wrapped(f"→ {one['next']}", width, "  ", "    ") if one["next"] else [])


def _summary(status: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield a label and a text for each part of the node."""
    agent = status["agent"]
    if status.get("shadow"):
        yield (
            "mode",
            "shadow: the programs decide and touch no packet, kube-proxy serves; lbctl shadow tells what"
            " differs, counters and flows are of decisions alone",
        )
    version = f", version {agent['version']}" if agent.get("version") else ""
    if agent["running"]:
        quiet = agent["silent_seconds"]
        gets_on = "runs" if quiet is None else "does not get on"
        started = f", started {moment(agent['started'])}" if agent.get("started") else ""
        yield "agent", f"{gets_on}, process {agent['pid']}{version}{started}"
    else:
        yield "agent", f"does not run; the data plane carries on{version}"
    if agent["last_sync"]:
        yield "Services", f"{agent['services']}; the maps were last written {moment(agent['last_sync'])}"
    if status["source"]:
        yield "source", "; ".join(map(_source_text, status["source"]))
    if status["healthz"]:
        yield "health", f"healthz and livez: {status['healthz']}"
    if since := status.get("drained_since"):
        then = "lbctl node drain --wait tells when the last connection from outside is over, --undo ends it"
        yield "drained", f"{moment(since)}; {then}"
    checks = status["health_check_node_ports"]
    for one in checks[:_MOST_PORTS]:
        yield "", _check_text(one)
    if len(checks) > _MOST_PORTS:
        yield "", f"and {len(checks) - _MOST_PORTS} more health-check ports: -o json"
    yield "SNAT", _snat_text(status["snat"])
    repairs = agent.get("repairs")
    if repairs and repairs["count"]:
        places = several(repairs["count"], "hook or pin", "hooks and pins")
        yield (
            "repaired",
            f"{places} that somebody took away, last {moment(repairs['last'])}: {repairs['what']};"
            " find what does it: bpftool net, the log of other agents on this node",
        )
    if status["hooks_elsewhere"]:
        yield "hooks", f"in another network namespace: {status['hooks_elsewhere']}"
    yield from _hooks(status["hooks"])


def _hooks(rows: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield each uplink, tunnel and control group with its hooks, and pods' interfaces together."""
    by_place: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for one in rows:
        by_place.setdefault((one["role"], one["interface"]), []).append(one)
    pods = [each for (role, _), each in by_place.items() if role == "pod"]
    for (role, interface), each in by_place.items():
        if role != "pod":
            why = next((one["why"] for one in each if one["why"]), "")
            hooks = ", ".join(dict.fromkeys(one["hook"] for one in each))
            yield role, f"{interface}: {hooks}{f' ({why})' if why else ''}".removeprefix(": ")
    if pods:
        hooks = some(dict.fromkeys(one["hook"] for each in pods for one in each))
        yield "pods", f"{several(len(pods), 'interface')}: {hooks}"


def _maps(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the maps that hold anything, with how full they are and what had to make room."""
    columns = ("map", "entries", "capacity", "used", "evicted")
    used = [one for one in rows if one["entries"] or one.get("evicted")]
    return table(
        columns,
        [
            (
                one["name"],
                one["entries"],
                one["capacity"],
                f"{100 * one['entries'] / one['capacity']:.1f} %",
                "-" if one.get("evicted") is None else one["evicted"],
            )
            for one in used
        ],
        right=columns[1:],
    )


def moment(text: str, now: float | None = None) -> str:
    """Return a time, ISO 8601, with how long ago that was; now: seconds since the epoch."""
    then = datetime.datetime.fromisoformat(text)
    ago = max((time.time() if now is None else now) - then.timestamp(), 0)
    clock = then.astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S")
    return f"{clock} UTC, {span(ago)} ago"


def span(seconds: float) -> str:
    """Return a duration in its largest unit: 12 s, 7 min, 3 h, 5 d."""
    for most, unit, size in ((100, "s", 1), (5400, "min", 60), (129_600, "h", 3600)):
        if seconds < most:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds / 86400:.0f} d"


def _source_text(one: Mapping[str, Any]) -> str:
    """Return how far one kind of object is in step with the Kubernetes API."""
    unusable = f", {one['unusable']} unusable" if one["unusable"] else ""
    if one["contact"] is None:
        heard = "never heard of"
    else:
        ago = time.time() - datetime.datetime.fromisoformat(one["contact"]).timestamp()
        heard = f"last word {span(max(ago, 0))} ago"
    failing = f", failed {several(one['failures'], 'time')}" if one["error"] else ""
    return f"{one['objects']} {one['resource']}{unusable}, {heard}{failing}"


def _check_text(one: Mapping[str, Any]) -> str:
    """Return where a health-check port is served, and of what."""
    where = ", ".join(one["addresses"]) or "nowhere"
    place = f"healthCheckNodePort {one['port']} of {one['service']}"
    return f"{place}: {where}; local endpoints: {one['local_endpoints']}"


def _snat_text(snat: Mapping[str, int]) -> str:
    """Return how many ports there are towards each backend, and how often there was none."""
    none = f"none was free for {snat['exhausted']} packets" if snat["exhausted"] else "never exhausted"
    elsewhere = f", {snat['elsewhere']} connections went to another backend" if snat["elsewhere"] else ""
    ports = f"ports {snat['first']}-{snat['last']}, {snat['ports']} for each remote backend"
    return f"{ports}; {none}{elsewhere}"
