# SPDX-License-Identifier: Apache-2.0
"""``lbctl node drain``: new connections are to come in elsewhere, and when the last one here is over."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Mapping
from typing import Any, TextIO

from lb.cli import instances, output
from lb.cli.tables import table
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view.outside import answered, remaining
from lb.errors import LbError, UsageError
from lb.rundir import RunDir
from lb.served.drain import DrainMark
from lb.served.servable import spoken
from lb.words import several

_LOOK_SECONDS = 1.0
_STILL = 3
"""How many looks in a row must find nothing: what is told to the network takes a moment to be heard."""
_TELL_SECONDS = 10.0


def run_drain(args: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    """Do ``lbctl node drain``.

    Raises UsageError: flags that do not go together.
    Raises LbError: there is no such instance, or it cannot be marked.
    """
    if args.undo and args.wait:
        raise UsageError("--wait is of a drain, --undo ends it: only one of them")
    if args.timeout is not None and not args.wait:
        raise UsageError("--timeout is that of --wait")
    name = instances.choose(args)
    look(name)  # of an instance that is not there nothing is marked
    mark = DrainMark(RunDir(name))
    try:
        if args.undo:
            mark.take_away()
        else:
            mark.put()
    except OSError as error:
        raise LbError(f"instance {name}: {mark.run_dir.drain_path}: {error.strerror}") from error
    found = look(name)
    ended = True
    if args.wait:
        until = time.monotonic() + args.timeout if args.timeout is not None else None
        found, ended = wait(lambda: look(name), until, lambda text: print(text, file=err, flush=True))
    output.write(args, out, found, lambda: render(found))
    return 0 if ended else 1


def look(name: str) -> dict[str, Any]:
    """Return how far an instance is drained.

    drained_since: ISO 8601; None: it is not. told: the addresses that this node answers for on the segment,
    or tells routers of; None: whoever tells routers runs and does not say what.

    Raises LbError: its maps cannot be read.
    """
    run_dir = RunDir(name)
    with KernelMaps(Pins(name).maps) as maps:
        now_ns = time.monotonic_ns()
        left, told = remaining(maps, now_ns), answered(maps, now_ns)
    speaker = spoken(run_dir)
    if speaker:
        told |= {one["address"] for one in speaker["addresses"] if one["peers"]}
    known = speaker is not None or run_dir.speaker.holder() is None
    return {
        "instance": name,
        "drained_since": DrainMark(run_dir).since_text(),
        "told": sorted(told) if known else None,
        "connections": sum(one.connections for one in left),
        "services": [one.as_dict() for one in left],
    }


def wait(
    look_again: Callable[[], dict[str, Any]],
    until: float | None,
    tell: Callable[[str], None],
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> tuple[dict[str, Any], bool]:
    """Look until nothing comes in here any more; return the last look, and whether that is so.

    until: when to give up, by clock; None: never. tell: is called when the numbers have changed, at most
    every _TELL_SECONDS.
    """
    still, told, last = 0, -_TELL_SECONDS, ""
    while True:
        found = look_again()
        still = still + 1 if not found["connections"] and found["told"] == [] else 0
        if still == _STILL:
            return found, True
        now = clock()
        line = status_line(found)
        if line != last and now - told >= _TELL_SECONDS:
            tell(line)
            told, last = now, line
        if until is not None and now >= until:
            return found, False
        sleep(_LOOK_SECONDS)


def status_line(found: Mapping[str, Any]) -> str:
    """Return what is left, in a line."""
    told = ""
    if found["told"] is None:
        told = "; what routers are told is not known: lbctl announce bgp does not answer"
    elif found["told"]:
        told = f"; the network is still told of {several(len(found['told']), 'address', 'addresses')}"
    return f"{several(found['connections'], 'connection')} left{told}"


def render(found: Mapping[str, Any]) -> str:
    """Return the text form."""
    state = "drained" if found["drained_since"] else "in service"
    text = f"{found['instance']}: {state}; {status_line(found)}\n"
    rows = [
        [one["service"], one["connections"], f"{one['quiet_seconds']:.0f} s"] for one in found["services"]
    ]
    columns = ("service", "connections", "last_packet")
    return text + (table(columns, rows, right=columns[1:]) if rows else "")
