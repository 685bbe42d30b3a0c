# SPDX-License-Identifier: Apache-2.0
"""``lbctl maps``: the kernel's maps, read from the kernel."""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from typing import TextIO

from lb.cli import instances
from lb.cli.nodes import service_key
from lb.cli.tables import table
from lb.config import Limits
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import layouts, map_table
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view import dump, render
from lb.errors import UsageError

_DUMP = """\
Print what the kernel's maps hold. It is read from the kernel: it is what packets meet, also when the agent is
dead.

sections:
  vips      Service addresses and ports, and the backends behind them
  addresses Service addresses as a whole: who answers a ping there
  backends  every slot in use: one for each Service port and endpoint
  flows     translated connections
  affinity  clients that keep their backend (sessionAffinity: ClientIP)
  counters  packets and bytes by hook and by the reason they left with
"""

_EXAMPLES = """\
examples:
  lbctl maps dump vips --service default/web
  lbctl maps dump -o json | jq '.flows[] | select(.state == "established")'
  lbctl maps dump -o ipvsadm | grep 10.96.0.10
"""

_FORMS = {"table": render.as_table, "json": render.as_json, "ipvsadm": render.as_ipvsadm}


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    parser = commands.add_parser("maps", help="show the kernel's maps")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    dumping = verbs.add_parser(
        "dump",
        help="print what the maps hold",
        description=_DUMP,
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # No choices: argparse before Python 3.12 checks the empty list against them.
    dumping.add_argument("sections", nargs="*", metavar="SECTION", help="default: all of them")
    dumping.add_argument(
        "-o",
        "--output",
        choices=list(_FORMS),
        default="table",
        help="default: table; ipvsadm is what 'ipvsadm -Sn' would print, and has vips only",
    )
    dumping.add_argument("--service", metavar="NS/NAME", help="only what belongs to this Service")
    instances.add_flags(dumping)
    dumping.set_defaults(handler=_dump)
    listing = verbs.add_parser(
        "list", help="explain every map: key, value, writer, size, what happens when full"
    )
    listing.set_defaults(handler=_list)


def _dump(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    known = ("vips",) if args.output == "ipvsadm" else dump.SECTIONS
    unknown = [section for section in args.sections if section not in known]
    if unknown:
        form = " with -o ipvsadm" if args.output == "ipvsadm" else ""
        raise UsageError(f"maps dump: no section {unknown[0]}{form}; there are: {', '.join(known)}")
    service = service_key(args.service) if args.service else None
    maps = KernelMaps(Pins(instances.choose(args)).maps)
    try:
        found = dump.dump(maps, time.monotonic_ns(), args.sections or known, service)
    finally:
        maps.close()
    out.write(_FORMS[args.output](found))
    return 0


def _list(_args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    columns = ("map", "kind", "key", "value", "entries", "written by", "when full", "purpose")
    names = {
        id(dtype): name
        for name, shape in layouts.STRUCTS.items()
        for dtype in (shape.values() if isinstance(shape, Mapping) else (shape,))
    }
    defaults = Limits().as_dict()
    rows = [
        (
            spec.name,
            spec.type.name.lower().replace("_", " "),
            names.get(id(spec.key), "u32"),
            names.get(id(spec.value), "u32"),
            spec.max_entries(defaults),
            spec.writer,
            spec.when_full,
            spec.purpose,
        )
        for spec in map_table.MAPS
    ]
    out.write(table(columns, rows))
    return 0
