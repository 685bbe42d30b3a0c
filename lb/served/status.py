# SPDX-License-Identifier: Apache-2.0
"""What the data plane of an instance consists of: hooks, programs, how full the maps are; and its agent."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from lb.config import Limits
from lb.datapath.attach import hooks, sockets
from lb.datapath.attach.hooks import LOOPBACK_PROGRAM, XDP_PROGRAM, Role
from lb.datapath.attach.roles import written_roles
from lb.datapath.attach.snat import snat_range
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import map_table
from lb.datapath.maps.fill import MapFill, map_fill
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.map_table import MapType
from lb.datapath.programs.loader import pinned_programs
from lb.datapath.view.dump import counters
from lb.rundir import RunDir
from lb.served import takeover
from lb.served.drain import DrainMark
from lb.served.liveness import liveness
from lb.served.pressure import too_small
from lb.served.problems import Problem, as_note, read_notes, time_text

_LIMITS = Limits().as_dict()
NEARLY_FULL = 0.9
"""From which part on a map that refuses what is new, when it is full, is a problem."""


def collect(name: str, run_dir: RunDir) -> dict[str, Any]:
    """Return the status as the JSON form has it.

    The hooks are those of the calling thread's network namespace.

    Raises BpfError: the kernel refused to show a map, a program or a hook.
    """
    pins = Pins(name)
    notes = run_dir.notes()
    alive = liveness(run_dir, notes)
    running = alive.pid is not None
    programs = _programs(pins)
    with KernelMaps(pins.maps) as maps:
        fills = map_fill(maps)
        snat = _snat(maps)
        between = [*takeover.noted(maps)]
        shadow = takeover.is_shadow(maps)
        hook_rows = _hooks(programs, written_roles(maps), notes.get("uplink_modes", {})) + _socket_hooks(pins)
    sick = [one for one in (alive.problem(), *full(fills, notes)) if one]
    return {
        "instance": name,
        "node": notes.get("node"),
        "shadow": shadow,
        "problems": [*map(as_note, sick), *between, *read_notes(notes.get("problems", []))],
        "problems_left_out": notes.get("problems_left_out", 0),
        "agent": {
            "running": running,
            "silent_seconds": round(alive.silent_seconds, 1) if alive.silent else None,
            "pid": alive.pid,
            "version": notes.get("version"),
            "started": notes.get("started"),
            "last_sync": notes.get("last_sync"),
            "services": notes.get("services"),
            "repairs": notes.get("repairs"),
        },
        "healthz": notes.get("healthz") if running else None,
        "drained_since": DrainMark(run_dir).since_text(),
        "health_check_node_ports": notes.get("health_check_node_ports", []) if running else [],
        "source": notes.get("source", []),
        "hooks_elsewhere": run_dir.elsewhere() or None,
        "hooks": hook_rows,
        "programs": programs,
        "snat": snat,
        "maps": [asdict(each) for each in fills],
    }


def full(fills: Sequence[MapFill], notes: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield which maps are nearly full, and where established entries have made room lately."""
    forgets = {spec.name for spec in map_table.MAPS if spec.type in (MapType.CACHE, MapType.LRU_HASH)}
    seen = notes.get("evicted", {})
    for one in fills:
        if one.name not in forgets and one.entries > NEARLY_FULL * one.capacity:
            limit = "table_rows" if one.name == "tables" else one.name.rstrip("46")
            flag = f"raise --limits-{limit.replace('_', '-')}" if limit in _LIMITS else "its size is fixed"
            yield Problem(
                f"map {one.name} is {100 * one.entries // one.capacity} % full: what is new will be refused",
                f"{flag}: docs/operations.md, How large the maps must be",
            )
        grown = (one.evicted or 0) - seen.get(one.name, one.evicted or 0)
        if grown > 0:
            yield too_small(one.name, grown, "within the last minutes")


def _snat(maps: Maps) -> dict[str, int]:
    """Return the range of ports, how many ports towards each backend that is, and how often there was none.

    elsewhere: connections that another backend got instead; exhausted: those that were dropped.
    """
    first, last = snat_range(maps)
    packets = Counter[str]()
    for one in counters(maps):
        packets[one.reason] += one.packets
    return {
        "first": first,
        "last": last,
        "ports": last - first + 1,
        "elsewhere": packets["NEW_ELSEWHERE"],
        "exhausted": packets["SNAT_EXHAUSTED"],
    }


def _programs(pins: Pins) -> list[dict[str, Any]]:
    return [
        {
            "name": path.name,
            "id": info.id,
            "tag": info.tag,
            "loaded": _since_boot(info.load_time),
            "build": path.parent.name,
        }
        for path, info in pinned_programs(pins)
    ]


def _since_boot(nanoseconds: int) -> str:
    """Return a time of CLOCK_BOOTTIME as ISO 8601 text in UTC."""
    ago = (time.clock_gettime_ns(time.CLOCK_BOOTTIME) - nanoseconds) / 1e9
    return time_text(time.time() - ago)


def _hooks(
    programs: Sequence[dict[str, Any]], by_index: Mapping[int, Role], modes: Mapping[str, Any]
) -> list[dict[str, Any]]:
    ours = {program["id"] for program in programs}
    rows = []
    for one in hooks.attached():
        if one.program_id not in ours:
            continue
        mode, why = modes.get(one.interface, ("", ""))
        explained = one.program == XDP_PROGRAM or (mode == "tc" and one.hook == "tc ingress")
        rows.append(
            {
                "interface": one.interface,
                "role": str(
                    Role.LOOPBACK if one.program == LOOPBACK_PROGRAM else by_index.get(one.ifindex, Role.POD)
                ),
                "hook": one.hook,
                "program": one.program,
                "program_id": one.program_id,
                "why": why if explained else "",
            }
        )
    return rows


def _socket_hooks(pins: Pins) -> list[dict[str, Any]]:
    return [
        {
            "interface": str(one.cgroup or ""),
            "role": "sockets",
            "hook": one.hook,
            "program": one.program,
            "program_id": one.program_id,
            "why": "" if one.cgroup else "the control group is gone",
        }
        for one in sockets.attached(pins)
    ]
