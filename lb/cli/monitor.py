# SPDX-License-Identifier: Apache-2.0
"""``lbctl monitor``: what the data plane does, live."""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TextIO

from lb.cli import instances, output
from lb.cli.colours import painted
from lb.cli.colours import wanted as colours_wanted
from lb.cli.nodes import entered, selected
from lb.cli.pods import Lookup, known
from lb.cli.width import terminal_width
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import WatchFlag
from lb.datapath.view.watch import Watch
from lb.errors import UsageError
from lb.live.events import Names, PacketEvent, What
from lb.live.monitor import Monitor
from lb.rundir import RunDir
from lb.stop_event import on_signals

Tell = Callable[[Any, PacketEvent], None]

_COLOURS = {What.NEW: "32", What.CLOSED: "36", What.ANSWERED: "36", What.REFUSED: "33", What.DROPPED: "31"}
"""Green, cyan, yellow, red."""


def run(args: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    """Do ``lbctl monitor``."""
    service, _, port = (args.service or "").partition(":")
    key = selected(argparse.Namespace(service=service, namespace=args.namespace))
    if service and args.service.endswith(":"):
        raise UsageError(f"--service {args.service}: a port's name or number is missing behind the colon")
    instance = instances.choose(args)
    with contextlib.ExitStack() as stack:
        stack.enter_context(entered(instance))
        stack.enter_context(RunDir(instance).watching())
        maps = stack.enter_context(KernelMaps(Pins(instance).maps))
        names = Names(maps, Lookup(lambda: known(RunDir(instance), key)))
        ports = partial(names.ports, key, port) if key else None
        services = ports() if ports else ()
        tell = [_printer(args, out), *_capture(args.pcap, stack)]
        watch = stack.enter_context(Watch(maps, wanted(args), one_in=args.sample, services=services))
        complain = partial(print, "lbctl:", file=err, flush=True)
        monitor = Monitor(watch, names, services=ports, tell=tell, told=out.flush, complain=complain)
        with _ended_by_signals(monitor):
            complain(f"watching {instance}; Ctrl-C ends it")
            monitor.run(args.count, args.duration)
        complain(f"{monitor.count} events, {watch.lost} lost")
    return 0


def wanted(args: argparse.Namespace) -> WatchFlag:
    """Return what the programs are to tell."""
    what = WatchFlag.DROPS if args.drops else WatchFlag.DROPS | WatchFlag.FLOWS
    if args.packets or (args.pcap and not args.drops):
        what |= WatchFlag.PACKETS
    if args.pcap:
        what |= WatchFlag.BYTES
    return what


def _capture(path: Path | None, stack: contextlib.ExitStack) -> Iterator[Tell]:
    if path is not None:
        from lb.live.capture import Capture  # noqa: PLC0415 - Scapy is for this alone

        capture = Capture(path)
        stack.callback(capture.close)
        yield capture.write


def _printer(args: argparse.Namespace, out: TextIO) -> Tell:
    if args.output == "json":
        return lambda _, event: print(json.dumps(event.as_dict()), file=out)
    if args.output == "yaml":
        return lambda _, event: print("---\n" + output.formatted("yaml", event.as_dict()), end="", file=out)
    colours = _COLOURS if colours_wanted(out) else {}
    return lambda _, event: print(_line(event, colours.get(event.what, ""), terminal_width(out)), file=out)


def _line(event: PacketEvent, colour: str, width: int | None = None) -> str:
    """Return an event as a line, or lines, whose word for what it is about has a colour."""
    line, word = event.line(width), event.what.value
    return line.replace(word, painted(word, colour), 1) if colour else line


def _ended_by_signals(monitor: Monitor) -> contextlib.AbstractContextManager[None]:
    """Let Ctrl-C and SIGTERM end what is inside, as an end and not as a failure."""
    if threading.current_thread() is not threading.main_thread():  # signals are not for this one
        return contextlib.nullcontext()
    return on_signals(lambda *_: monitor.end(), signal.SIGINT, signal.SIGTERM)
