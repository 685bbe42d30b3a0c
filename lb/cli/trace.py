# SPDX-License-Identifier: Apache-2.0
"""``lbctl trace``: what the data plane would do with a packet, and why."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import replace
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any, TextIO

from lb.cli import instances, nodes, output, pods
from lb.cli.width import folded, terminal_width
from lb.datapath.kernel.pins import Pins
from lb.errors import ConfigError, UsageError
from lb.folders import entries
from lb.model import FiveTuple, IPAddress, Protocol
from lb.rundir import RunDir

if TYPE_CHECKING:
    from lb.diagnose.entries import Entries
    from lb.diagnose.trace import EntryPoint, Traced
    from lb.diagnose.trace_story import Evidence

_CLIENT_PORT = 50_000
_TRANSLATED = frozenset({"NEW_LOCAL", "NEW_REMOTE", "NEW_HAIRPIN", "FLOW_HIT"})

_PROTOCOLS = (*(each.name.lower() for each in Protocol), "icmp")


def run(args: argparse.Namespace, out: TextIO, _err: TextIO) -> int:
    """Do ``lbctl trace``."""
    packet = _packet(args)
    name = instances.choose(args)
    with nodes.entered(name):
        stories = list(_stories(args, name, packet))
    if any(_backends(one.evidence) for story in stories for one in story):
        known = pods.known(RunDir(name))
        stories = [[_with_pods(one, known) for one in story] for story in stories]
    if args.pcap:
        from lb.diagnose import frames  # noqa: PLC0415

        each = [one for story in stories for one in story]
        frames.write_capture(args.pcap, [frame for one in each for frame in (one.before, one.after) if frame])
    if args.output in ("json", "yaml"):
        out.write(output.formatted(args.output, _found(stories)))
    else:
        _print_text(stories, out)
    return 0


def _packet(args: argparse.Namespace) -> FiveTuple | None:
    """Return the packet of the command line; None with --read.

    Raises UsageError: an address, a port or the flags are wrong, or two ways of saying are mixed.
    """
    from lb.diagnose import frames  # noqa: PLC0415

    if args.read:
        if args.src:
            raise UsageError("trace: give SRC and DST, or --read FILE, not both")
        return None
    if not args.src or not args.dst:
        raise UsageError("trace: give SRC and DST, or --read FILE")
    src, sport = _socket("SRC", args.src)
    dst, dport = _socket("DST", args.dst)
    if src.version != dst.version:
        raise UsageError(f"trace: SRC {src} is IPv{src.version}, DST {dst} is IPv{dst.version}")
    if args.proto == "icmp":
        if sport or dport:
            raise UsageError("trace: --proto icmp has no ports")
        return FiveTuple(src, 0, dst, 0, frames.ECHO[src.version])
    if not dport:
        raise UsageError(f"DST {args.dst}: give a port, as {_example(dst)}, or --proto icmp")
    if not args.flags or set(args.flags) - set(frames.TCP_FLAGS):
        raise UsageError(f"--flags {args.flags}: some of {', '.join(frames.TCP_FLAGS)}")
    return FiveTuple(src, sport or _CLIENT_PORT, dst, dport, Protocol[args.proto.upper()])


def _example(address: IPAddress) -> str:
    return f"[{address}]:80" if address.version == 6 else f"{address}:80"


def _socket(what: str, text: str) -> tuple[IPAddress, int]:
    """Return address and port, 0 for none.

    Raises UsageError: the text is no address.
    """
    host, port = text, ""
    if text.startswith("["):
        host, _, port = text[1:].partition("]")
        port = port.removeprefix(":")
    elif text.count(":") == 1:
        host, _, port = text.partition(":")
    try:
        number = int(port) if port else 0
        if port and not 0 < number < 1 << 16:
            raise ValueError
        return ip_address(host), number
    except ValueError:
        raise UsageError(f"{what} {text}: must be ADDRESS or ADDRESS:PORT, IPv6 as [ADDRESS]:PORT") from None


def _stories(args: argparse.Namespace, instance: str, packet: FiveTuple | None) -> Iterator[list[Traced]]:
    """Yield what became of each packet, and of its answer if there is one."""
    from lb.datapath.maps.layouts import FAMILIES  # noqa: PLC0415
    from lb.datapath.programs.rehearsal import Shadow  # noqa: PLC0415
    from lb.diagnose import frames, trace  # noqa: PLC0415
    from lb.diagnose.entries import Entries  # noqa: PLC0415

    pins = Pins(instance)
    entries = Entries(pins)
    where = args.where
    if where.startswith("pod:"):
        where = entries.behind(_pod_address(args, packet.version if packet else 4), where)
    entry = entries.find(where, packet)
    notes = _notes(pins, entry.side)
    if args.read:
        wanted = frames.read_capture(args.read, entry.mac)
    else:
        assert packet is not None
        wanted = iter(
            (frames.build(packet, mac=entry.mac, flags=args.flags if args.proto == "tcp" else "S"),)
        )
    versions = {packet.version} if packet else set(FAMILIES)
    programs = entries.programs if args.reply else {program for program, _ in entry.hooks}
    with Shadow(pins, entries.directory, programs, versions) as shadow:
        for frame in wanted:
            traced = trace.run(shadow, entry, frame, notes)
            answer = _answer(entries, entry, traced) if args.reply else None
            yield [traced, *([trace.run(shadow, *answer)] if answer else [])]


def _answer(entries: Entries, entry: EntryPoint, traced: Traced) -> tuple[EntryPoint, bytes] | None:
    """Return where the backend's answer comes to be translated back, and its frame.

    None without a flow, and with direct return: the backend's node answers.
    """
    from lb.diagnose import frames  # noqa: PLC0415

    flow, sent = traced.evidence.made, traced.evidence.sent
    if flow is None or sent is None or flow.path == "direct":
        return None
    if traced.evidence.outcome.reason not in _TRANSLATED:
        return None
    there = entries.facing(entry, flow, sent.reverse)
    frame = frames.answer(traced.after, there.mac)
    return None if frame is None else (there, frame)


def _pod_address(args: argparse.Namespace, version: int) -> IPAddress:
    """Return a pod's address, from where the node's agent has its Services from.

    Raises ConfigError: there is no such pod, or it has no address of this IP version.
    """
    key = nodes.service_key(args.where.removeprefix("pod:"))
    with nodes.opened(args) as view:
        there = {pod.key: pod for pod in view.source.pods(key.namespace)}
    if key not in there:
        raise ConfigError(f"--in {args.where}: there is no such pod in {view.source.name}")
    for address in there[key].addresses:
        if address.version == version:
            return address
    raise ConfigError(f"--in {args.where}: the pod has no IPv{version} address")


def _notes(pins: Pins, side: str) -> list[str]:
    """Return what the programs at interfaces do not see: connections that the socket hooks have led away."""
    served = bool(entries(pins.links))
    if side != "host" or not served:
        return []
    return [
        "socket hooks serve this node's processes: their TCP connections and unconnected datagrams are led to"
        " a backend before there is a packet; this is of one that they left alone"
    ]


def _backends(evidence: Evidence) -> list[str]:
    """Return the backends that the story may name, as ``address:port``."""
    return [flow.backend.address for flow in (evidence.flow, evidence.made) if flow]


def _with_pods(traced: Traced, known: Mapping[str, str]) -> Traced:
    """Name the pods of the backends that the evidence has; known: pods by ``address:port`` and by address."""
    found = {place: pod for place in _backends(traced.evidence) if (pod := pods.pod_at(known, place))}
    return replace(traced, evidence=replace(traced.evidence, pods=found))


def _found(stories: list[list[Traced]]) -> dict[str, Any]:
    from lb.diagnose.trace_story import as_dict  # noqa: PLC0415

    return {"packets": [as_dict(*(one.evidence for one in story)) for story in stories]}


def _print_text(stories: list[list[Traced]], out: TextIO) -> None:
    from lb.diagnose.trace_story import render  # noqa: PLC0415

    for number, story in enumerate(stories, 1):
        if len(stories) > 1:
            out.write(f"{'' if number == 1 else chr(10)}packet {number}: ")
        for at, one in enumerate(story):
            text = f"\nanswer: {render(one.evidence)}" if at else render(one.evidence)
            out.write(folded(text, terminal_width(out)))
