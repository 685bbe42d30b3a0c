# SPDX-License-Identifier: Apache-2.0
"""``lbctl cutover``: Services change hands, with the connections that are open."""

from __future__ import annotations

import argparse
import shutil
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from typing import Any, TextIO

from lb.cli import instances, output
from lb.cutover import conntrack, give_back, moves, take_over
from lb.cutover.moves import Move
from lb.datapath.attach import hooks
from lb.datapath.attach.netlink import Netlink
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import Cutover
from lb.datapath.programs import features
from lb.diagnose import kube_proxy
from lb.errors import LbError
from lb.model import IPAddress
from lb.rundir import RunDir
from lb.served import takeover
from lb.words import several

_PATHS = {
    "stack": "the client keeps its address",
    "redirect": "the client keeps its address",
    "forward": "the node stands for the client",
    "hairpin": "a pod that is its own backend",
    "host": "of the node's processes",
    "loopback": "of the node's processes, to an address of the node",
}


def run(args: argparse.Namespace, out: TextIO, err: TextIO) -> int:
    """Do ``lbctl cutover``."""
    name = instances.choose(args)
    elsewhere = RunDir(name).elsewhere()
    if elsewhere:
        raise LbError(f"instance {name} serves another network namespace: call this there ({elsewhere})")
    report = _back(name, args, err) if args.back else _over(name, args, err)
    output.write(args, out, {"instance": name, **report}, lambda: render(report, dry=args.dry_run))
    return 1 if report["not_moved"] or report["errors"] else 0


def _over(name: str, args: argparse.Namespace, err: TextIO) -> dict[str, Any]:
    """Take over, or say what would be; return the report."""
    if not hooks.attached():
        raise LbError(f"instance {name} has attached no program yet: start its agent, and wait until it has")
    with KernelMaps(Pins(name).maps) as maps:
        shadow = takeover.is_shadow(maps)
        if shadow and not args.dry_run:
            raise LbError(
                f"instance {name} is in shadow mode: its programs touch no packet, so kube-proxy's rules must"
                " stay; start its agent without --shadow, wait until it is ready, then call this again"
            )
        modes = {trace.mode for trace in kube_proxy.find()}
        warnings = [*_missing_commands(modes)]
        if not features.optional()["CONNTRACK"]:
            warnings.append(
                "programs may not ask conntrack (Linux 6.0; CAP_SYS_ADMIN where it is a module): connections"
                " that are open break when an agent without shadow mode attaches its programs"
                if shadow
                else "this kernel's conntrack cannot be asked by programs: what came since they were attached"
                " was taken from open connections"
            )
        elif not shadow and int(maps.array("cutover")[0]) != Cutover.TAKE:
            warnings.append(
                "the programs have not left open connections to netfilter: kube-proxy's rules were not there"
                " when they were attached first, or a cutover is done already"
            )
        if "ipvs" in modes:
            warnings.append("kube-proxy's mode ipvs has connections of its own, which are not moved")
        if args.dry_run:
            found = moves.plan(conntrack.dump(), moves.known(maps), own_addresses(), take_over.there(maps))
            moved = _counted(move for _, move in found.moves)
            return _report(moved, found.left, warnings=warnings)
        done = take_over.take_over(maps, own_addresses(), teller(err))
    return _report(done.moved, done.left, not_moved=done.not_moved, warnings=warnings)


def _missing_commands(modes: Collection[str]) -> Iterator[str]:
    """Yield which commands a cutover takes that are not here; modes: those of kube-proxy that left rules."""
    wanted = ["nft"]
    if "iptables" in modes:
        wanted += ["iptables-save", "iptables-restore"]
    for command in wanted:
        if not shutil.which(command):
            yield f"{command} is not installed: a cutover takes the Debian packages nftables and iptables"


def _back(name: str, args: argparse.Namespace, err: TextIO) -> dict[str, Any]:
    """Give back, or say what would be; return the report."""
    with KernelMaps(Pins(name).maps) as maps:
        if takeover.is_shadow(maps):
            raise LbError(
                f"instance {name} is in shadow mode and has nothing to give back: lbctl unload removes it"
            )
        if args.dry_run:
            every, left = give_back.flows(maps)
            return _report(_counted(every), left)
    if not kube_proxy.find():
        raise LbError("kube-proxy has no rules here: start it first, or nobody would serve Services")
    run_dir = RunDir(name)
    with run_dir.lock():
        done = give_back.give_back(name, teller(err))
        run_dir.remove()
    return _report(done.moved, done.left, errors=done.errors) | {"clients": done.clients}


def teller(err: TextIO) -> Callable[[str], object]:
    """Return what tells of each step."""
    return lambda text: print(f"lbctl: {text}", file=err, flush=True)


def own_addresses() -> frozenset[IPAddress]:
    """Return the addresses of this network namespace's interfaces."""
    with Netlink() as net:
        return frozenset(address.ip for one in net.interfaces() for address in one.addresses)


def _counted(every: Iterable[Move]) -> Counter[tuple[str, str]]:
    return Counter((move.client.protocol.name, move.path.name.lower()) for move in every)


def _report(
    moved: Mapping[tuple[str, str], int],
    left: Mapping[str, int],
    *,
    not_moved: Mapping[str, int] | None = None,
    warnings: Iterable[str] = (),
    errors: Iterable[str] = (),
) -> dict[str, Any]:
    rows = [
        {"protocol": protocol, "path": path, "connections": count}
        for (protocol, path), count in sorted(moved.items())
    ]
    return {
        "moved": rows,
        "left": dict(left),
        "not_moved": dict(not_moved or {}),
        "warnings": list(warnings),
        "errors": list(errors),
    }


def render(report: Mapping[str, Any], *, dry: bool) -> str:
    """Return the form for people."""
    rows = report["moved"]
    count = sum(row["connections"] for row in rows)
    lines = [f"warning: {text}" for text in report["warnings"]]
    lines.append(f"{several(count, 'connection')} {'would be moved' if dry else 'moved'}")
    lines += [f"{row['connections']:8}  {row['protocol']}, {_PATHS[row['path']]}" for row in rows]
    if report.get("clients"):
        lines.append(f"{several(report['clients'], 'client')} keep their backend (affinity)")
    for title, key in (("stay with netfilter", "left"), ("could not be moved", "not_moved")):
        if report[key]:
            lines.append(f"{several(sum(report[key].values()), 'connection')} {title}")
            lines += [f"{number:8}  {why}" for why, number in report[key].items()]
    return "\n".join([*lines, *(f"error: {text}" for text in report["errors"])]) + "\n"
