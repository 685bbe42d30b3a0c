# SPDX-License-Identifier: Apache-2.0
"""``lbctl service list`` and ``show``: Service ports with their VIPs and backends, and who lost a VIP."""

from __future__ import annotations

import argparse
import contextlib
import time
from collections.abc import Mapping, Sequence
from ipaddress import ip_address
from typing import Any, TextIO

import numpy as np

from lb.announce.reach import answerer, balanced, reached
from lb.cli import instances, output, pods
from lb.cli.nodes import service_key
from lb.cli.tables import table
from lb.cli.width import terminal_width
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.sync import accounts
from lb.datapath.view import catalogue, dump
from lb.datapath.view.figures import Figures
from lb.errors import LbError
from lb.model import ObjectKey, socket_text
from lb.rundir import RunDir
from lb.served.api import OWNERS
from lb.served.ask import ask
from lb.served.servable import spoken
from lb.words import several, short

_MOST_UNSERVED = 20


def run_list(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl service list``."""
    name = instances.choose(args)
    run_dir = RunDir(name)
    with KernelMaps(Pins(name).maps) as maps:
        found = collect(maps, run_dir.notes(), running=run_dir.holder() is not None)
    with contextlib.suppress(LbError):  # of an agent that does not run, or is older, nothing more is told
        found["unserved"] = ask(run_dir, "/api/unserved", seconds=2.0)["services"]
        found["balanced"] = ask(run_dir, "/api/balanced", seconds=2.0)["services"]
        found["owners"] = ask(run_dir, OWNERS, seconds=2.0)["addresses"]
    speaker = spoken(run_dir)
    found["announced"] = speaker["addresses"] if speaker else []
    if args.namespace:
        chosen = ObjectKey(args.namespace, "")
        for part in ("services", "unserved", "balanced"):
            found[part] = [one for one in found[part] if chosen.covers(one["service"])]
        found["announced"] = [one for one in found["announced"] if any(map(chosen.covers, one["services"]))]
    output.write(args, out, found, lambda: render(found, terminal_width(out), wide=args.output == "wide"))
    return 0


def run_show(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl service show``."""
    key = service_key(args.service)
    name = instances.choose(args)
    with KernelMaps(Pins(name).maps) as maps:
        found = shown(maps, key, time.monotonic_ns())
    known = pods.known(RunDir(name), key)
    for backend in (each for port in found["ports"] for each in port["backends"]):
        place = socket_text(ip_address(backend["address"]), backend["port"])
        if pod := pods.pod_at(known, place):
            backend["pod"] = pod
    if not found["ports"]:
        raise LbError(f"Service {key} has nothing in the maps; lbctl explain {key} says why")
    found |= _balanced(RunDir(name), key)
    output.write(args, out, found, lambda: render_one(found))
    return 0


def _balanced(run_dir: RunDir, key: ObjectKey) -> dict[str, Any]:
    """Return what a Service's load-balancer addresses are, and how the network finds each."""
    found: dict[str, Any] = {"balanced": [], "found_by": []}
    with contextlib.suppress(LbError):  # of an agent that does not run, or is older, nothing more is told
        found["balanced"] = ask(run_dir, "/api/balanced", seconds=2.0, service=str(key))["services"]
        addresses = [address for one in found["balanced"] for address in one["addresses"]]
        if addresses:
            told = ask(run_dir, OWNERS, seconds=2.0)
            owners = None if told["announce"] == "off" else told["addresses"]
            speaker = spoken(run_dir)
            if owners is not None or speaker is not None:  # else the network finds them by other means
                ways = reached(addresses, owners, speaker)
                found["found_by"] = [one if speaker else {**one, "routers": []} for one in ways]
    return found


def shown(maps: Maps, key: ObjectKey, now_ns: int) -> dict[str, Any]:
    """Return one Service as the JSON form has it; now_ns: CLOCK_MONOTONIC.

    Raises BpfError: a map could not be read.
    """
    read = dump.dump(maps, now_ns, ("vips", "backends", "flows", "affinity"), key)
    ports: dict[tuple[str, int], dict[str, Any]] = {}
    parts: dict[tuple[str, str, int], float] = {}
    for vip in read["vips"]:
        assert isinstance(vip, dump.VipEntry)
        version = ip_address(vip.address).version
        empty = {
            "port_name": vip.port_name,
            "family": f"IPv{version}",
            "protocol": vip.protocol,
            "affinity_seconds": vip.affinity_seconds,
            "vips": [],
            "backends": [],
        }
        one = ports.setdefault((vip.port_name, version), empty)
        for each in vip.backends:
            if each.share is not None:
                parts[(vip.port_name, each.address, each.port)] = each.share
        one["vips"].append(
            {
                "kind": vip.kind,
                "address": vip.address,
                "port": vip.port,
                "local_only": list(vip.local_only),
                "source_ranges": list(vip.source_ranges),
                "direct": vip.direct,
                "offered": sum(backend.takes_new for backend in vip.backends),
            }
        )
    for backend in read["backends"]:
        assert isinstance(backend, dump.BackendEntry)
        if port := ports.get((backend.port_name, ip_address(backend.address).version)):
            fields = backend.as_dict()
            one = {n: fields[n] for n in ("id", "address", "port", "node", "local", "state")}
            part = parts.get((backend.port_name, backend.address, backend.port))
            share = {} if part is None else {"share": part}
            port["backends"].append(one | share | _counted(maps, backend))
    live, closed = dump.live_and_closed(read["flows"])
    return {
        "service": str(key),
        "ports": [port for _, port in sorted(ports.items())],
        "flows": live,
        "closed": closed,
        "affinity": len(read["affinity"]),
    }


def _counted(maps: Maps, backend: dump.BackendEntry) -> dict[str, int]:
    """Return the connections of a backend by what became of them, and its packets if they are counted."""
    version = ip_address(backend.address).version
    at = (np.array([number], "u4") for number in (backend.id, backend.generation))
    found = Figures(*accounts.slot_figures(maps, version, *at)[0].item())._asdict()
    wanted = accounts.FIGURES.names if accounts.counts_traffic(maps) else accounts.OF_CONNECTIONS
    return {name: found[name] for name in wanted or ()}


def render_one(found: Mapping[str, Any]) -> str:
    """Return one Service in lines."""
    text = (
        f"{found['service']}: {several(found['flows'], 'live connection')}, {found['closed']} closed,"
        f" {several(found['affinity'], 'client')} with affinity\n"
    )
    for one in found.get("balanced", ()):
        text += f"load balancer: {balanced(one)}\n"
    for one in found.get("found_by", ()):
        text += "".join(f"  {one['address']}: {way}\n" for way in (*one["segment"], *one["routers"]))
    for port in found["ports"]:
        name = f"port {port['port_name']}, " if port["port_name"] else ""
        affinity = f", affinity {port['affinity_seconds']} s" if port["affinity_seconds"] else ""
        text += f"\n{name}{port['protocol']}, {port['family']}{affinity}\n"
        for vip in port["vips"]:
            limits = [f"Local for clients {side}" for side in vip["local_only"]]
            limits += ["direct return"] if vip["direct"] else []
            limits += [f"only from {', '.join(vip['source_ranges'])}"] if vip["source_ranges"] else []
            place = socket_text(ip_address(vip["address"]), vip["port"])
            told = "; ".join([f"{vip['offered']} offered", *limits])
            text += f"  {vip['kind']} {place}: {told}\n"
        for one in port["backends"]:
            place = socket_text(ip_address(one["address"]), one["port"])
            pod = f", pod {short(one['pod'])}," if one.get("pod") else ""
            where = "this node" if one["local"] else one["node"] or "unknown node"
            failed = [f"{one[name]} {name}" for name in ("refused", "unanswered") if one[name]]
            counted = ", ".join([f"{one['opened']} connections", *failed])
            part = f", {one['share']:.1%} of new connections" if "share" in one else ""
            text += f"    → {place}{pod} on {where}, {one['state']}{part}; so far {counted}\n"
        if not port["backends"]:
            text += "    → no backend: connections are rejected\n"
    return text


def collect(maps: Maps, notes: Mapping[str, Any], *, running: bool) -> dict[str, Any]:
    """Return the list as the JSON form has it.

    notes are the agent's, see :mod:`lb.served.notes`; running: it lives. Of backends, ``local`` ones are on
    this node, ``terminating`` ones on their way out. A port without VIPs, all lost to others, is in no map.

    Raises BpfError: a map could not be read.
    """
    services = [
        {
            "service": one.service,
            "port_name": one.port_name,
            "family": f"IPv{one.version}",
            "protocol": one.protocol,
            "backends": one.backends,
            "local": one.local,
            "terminating": one.terminating,
            "affinity_seconds": one.affinity_seconds,
            "vips": [
                {"kind": kind, "address": str(address), "port": port} for kind, address, port in one.vips
            ],
        }
        for one in catalogue.summary(maps)
    ]
    return {
        "services": services,
        "conflicts": notes.get("conflicts", []),
        "conflicts_left_out": notes.get("conflicts_left_out", 0),
        "refusals": notes.get("refusals", []),
        "unserved": [],
        "balanced": [],
        "announced": [],
        "owners": [],
        "headless_unread": notes.get("settings", {}).get("sources") == ["kubernetes"],
        "agent_running": running,
    }


_COLUMNS = ("service", "port", "family", "protocol", "backends", "local", "affinity", "terminating", "vips")


def _some_lines(title: str, every: Sequence[str]) -> str:
    """Return the first lines below a title, and how many more there are; nothing for none."""
    if not every:
        return ""
    left = len(every) - _MOST_UNSERVED
    lines = [*every[:_MOST_UNSERVED], *([f"and {left} more: -o json"] if left > 0 else [])]
    return f"\n{title}:\n" + "".join(f"  {line}\n" for line in lines)


def render(found: Mapping[str, Any], width: int | None = None, *, wide: bool = False) -> str:
    """Return the table form; width: the terminal's. wide: with how many backends are on their way out."""
    columns = [name for name in _COLUMNS if wide or name != "terminating"]
    rows = map(_cells, found["services"])
    text = table(columns, [[cells[name] for name in columns] for cells in rows], width=width)
    unserved = [f"{one['service']}  {one['why']}" for one in found["unserved"]]
    text += _some_lines("without a VIP, as asked for", unserved)
    told = [one for one in found["balanced"] if one["note"] or not one["addresses"]]
    text += _some_lines("load-balancer addresses", [f"{one['service']}  {balanced(one)}" for one in told])
    who = [f"{one['address']}  {answerer(one)}" for one in found.get("owners", ())]
    text += _some_lines("who answers for them on the segment", who)
    text += _announced(found.get("announced", ()), wide=wide)
    if found["headless_unread"]:
        text += "\nheadless Services, which have no VIP, are not read from the API: "
        text += "kubectl get services -A --field-selector spec.clusterIP=None\n"
    if not found["conflicts"] and not found["refusals"]:
        return text
    lines = [f"conflict: {one['text']}" for one in found["conflicts"]]
    if found["conflicts_left_out"]:
        lines.append(f"conflict: {found['conflicts_left_out']} more, see the agent's log")
    lines += [f"refused: {one}" for one in found["refusals"]]
    if not found["agent_running"]:
        lines.append("the agent does not run: the above is what it last knew")
    return text + "\n" + "\n".join(lines) + "\n"


def _announced(addresses: Sequence[Mapping[str, Any]], *, wide: bool) -> str:
    """Return which addresses this node has told routers, and why not; in short only those it has not."""
    title = "told to routers by this node" if wide else "not told to routers by this node, or with reserve"
    lines = [
        f"{one['address']}  {', '.join(one['peers']) or 'nobody'}{': ' if one['why'] else ''}{one['why']}"
        for one in addresses
        if wide or not one["peers"] or one["why"]
    ]
    return _some_lines(title, lines)


def _cells(one: Mapping[str, Any]) -> dict[str, Any]:
    affinity = f"{one['affinity_seconds']} s" if one["affinity_seconds"] else "-"
    vips = (f"{vip['kind']} {socket_text(ip_address(vip['address']), vip['port'])}" for vip in one["vips"])
    return {
        **one,
        "port": one["port_name"] or "-",
        "affinity": affinity,
        "vips": ", ".join(vips),
    }
