"""``lbctl service list``: every Service port with its VIPs and backends, and who lost a VIP to whom."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from ipaddress import ip_address
from typing import Any, TextIO

from lb.cli import instances
from lb.cli.tables import table
from lb.datapath import dump
from lb.datapath.kernel_maps import KernelMaps
from lb.datapath.maps import Maps
from lb.datapath.pins import Pins
from lb.model import socket_text
from lb.rundir import RunDir

_DESCRIPTION = """\
List the Service ports in the kernel's maps, one row for each port and IP family: its backends, how many of
them are local (on this node), and its VIPs. Below, who has a VIP that several Services claim: that is the
agent's own note, at most five seconds old.
"""


def register(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the commands."""
    parser = commands.add_parser("service", help="show Services")
    verbs = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    listing = verbs.add_parser(
        "list",
        help="list Service ports, their VIPs and backends, and conflicts",
        description=_DESCRIPTION,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    instances.add_flags(listing)
    listing.add_argument("-o", "--output", choices=["table", "json"], default="table", help="default: table")
    listing.set_defaults(handler=_list)


def _list(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    name = instances.choose(args)
    run_dir = RunDir(name)
    maps = KernelMaps(Pins(name).maps)
    try:
        found = collect(maps, run_dir.notes(), running=run_dir.holder() is not None)
    finally:
        maps.close()
    if args.output == "json":
        json.dump(found, out, indent=2)
        out.write("\n")
    else:
        out.write(render(found))
    return 0


def collect(maps: Maps, notes: Mapping[str, Any], *, running: bool) -> dict[str, Any]:
    """Return the list as the JSON form has it.

    notes are the agent's, see :mod:`lb.observe.notes`; running: it lives. Of backends, ``local`` ones are on
    this node, ``terminating`` ones on their way out. A port without VIPs, all lost to others, is in no map.

    Raises
    ------
    BpfError: a map could not be read.
    """
    read = dump.dump(maps, 0, ("vips", "backends"))
    rows: dict[tuple[str, str, int], dict[str, Any]] = {}
    for vip in read["vips"]:
        assert isinstance(vip, dump.VipEntry)
        version = ip_address(vip.address).version
        empty = {
            "service": vip.service,
            "port_name": vip.port_name,
            "family": f"IPv{version}",
            "protocol": vip.protocol,
            "backends": 0,
            "local": 0,
            "terminating": 0,
            "affinity_seconds": vip.affinity_seconds,
            "vips": [],
        }
        one = rows.setdefault((vip.service, vip.port_name, version), empty)
        one["vips"].append({"kind": vip.kind, "address": vip.address, "port": vip.port})
    for backend in read["backends"]:
        assert isinstance(backend, dump.BackendEntry)
        version = ip_address(backend.address).version
        if found := rows.get((backend.service, backend.port_name, version)):
            found["backends"] += 1
            found["local"] += backend.local
            found["terminating"] += backend.state == "terminating"
    return {
        "services": [one for _, one in sorted(rows.items())],
        "conflicts": notes.get("conflicts", []),
        "conflicts_left_out": notes.get("conflicts_left_out", 0),
        "agent_running": running,
    }


def render(found: Mapping[str, Any]) -> str:
    """Return the table form."""
    columns = ("service", "port", "family", "protocol", "backends", "local", "affinity", "vips")
    text = table(columns, [_cells(one) for one in found["services"]])
    if not found["conflicts"]:
        return text
    lines = [f"conflict: {one['text']}" for one in found["conflicts"]]
    if found["conflicts_left_out"]:
        lines.append(f"conflict: {found['conflicts_left_out']} more, see the agent's log")
    if not found["agent_running"]:
        lines.append("the agent does not run: the conflicts are those of which it last knew")
    return text + "\n" + "\n".join(lines) + "\n"


def _cells(one: Mapping[str, Any]) -> tuple[Any, ...]:
    affinity = f"{one['affinity_seconds']} s" if one["affinity_seconds"] else "-"
    vips = (f"{vip['kind']} {socket_text(ip_address(vip['address']), vip['port'])}" for vip in one["vips"])
    return (
        one["service"],
        one["port_name"] or "-",
        one["family"],
        one["protocol"],
        one["backends"],
        one["local"],
        affinity,
        ", ".join(vips),
    )
