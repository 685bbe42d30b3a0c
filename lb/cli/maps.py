"""``lbctl maps``: the kernel's maps, read from the kernel."""

from __future__ import annotations

import argparse
from typing import TextIO

from lb.cli.tables import table
from lb.config import Limits
from lb.datapath import layouts


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    parser = commands.add_parser("maps", help="show the kernel's maps")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = verbs.add_parser(
        "list", help="explain every map: key, value, writer, size, what happens when full"
    )
    listing.set_defaults(handler=_list)


def _list(_args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    columns = ("map", "kind", "key", "value", "entries", "written by", "when full", "purpose")
    names = {id(dtype): name for name, dtype in layouts.STRUCTS.items()}
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
        for spec in layouts.MAPS
    ]
    out.write(table(columns, rows))
    return 0
