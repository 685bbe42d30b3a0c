# SPDX-License-Identifier: Apache-2.0
"""``lbctl maps``: the kernel's maps, read from the kernel."""

from __future__ import annotations

import argparse
import time
from typing import TextIO

from lb.cli import forms, instances, output
from lb.cli.nodes import selected
from lb.cli.tables import table
from lb.cli.width import terminal_width
from lb.config import Limits
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import layouts, map_table
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view import dump
from lb.errors import UsageError


def run_dump(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl maps dump``."""
    known = ("vips",) if args.output == "ipvsadm" else dump.SECTIONS
    unknown = [section for section in args.sections if section not in known]
    if unknown:
        form = " with -o ipvsadm" if args.output == "ipvsadm" else ""
        raise UsageError(f"maps dump: no section {unknown[0]}{form}; there are: {', '.join(known)}")
    service = selected(args)
    with KernelMaps(Pins(instances.choose(args)).maps) as maps:
        found = dump.dump(maps, time.monotonic_ns(), args.sections or known, service)
    if args.output == "ipvsadm":
        out.write(forms.as_ipvsadm(found))
    else:
        output.write(args, out, forms.as_objects(found), lambda: forms.as_table(found, terminal_width(out)))
    return 0


def run_list(_args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl maps list``."""
    columns = ("map", "kind", "key", "value", "entries", "written by", "when full", "purpose")
    names = {
        id(dtype): name for version in layouts.FAMILIES for name, dtype in layouts.structs(version).items()
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
    out.write(table(columns, rows, width=terminal_width(out)))
    return 0
