# SPDX-License-Identifier: Apache-2.0
"""A dump of the maps as objects for programs, as tables for people, and in the form of ipvsadm."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from lb.cli.tables import table
from lb.datapath.view.dump import (
    AddressEntry,
    AffinityEntry,
    AnnouncedEntry,
    BackendEntry,
    CounterEntry,
    Dump,
    FlowEntry,
    MapEntry,
    VipEntry,
)

Cells = tuple[str, ...]

_COLUMNS: Mapping[str, Cells] = {
    "vips": ("VIP", "PROTOCOL", "KIND", "SERVICE", "PORT NAME", "AFFINITY", "BACKEND", "NODE", "STATE"),
    "addresses": ("ADDRESS", "KIND", "SERVICE", "ANSWERS PING FROM", "SOURCE RANGES"),
    "backends": ("ID", "BACKEND", "NODE", "LOCAL", "STATE", "SERVICE", "PORT NAME", "GENERATION"),
    "flows": ("PROTOCOL", "CLIENT", "VIP", "BACKEND", "SNAT", "STATE", "IDLE"),
    "affinity": ("CLIENT", "SERVICE", "PORT NAME", "BACKEND", "IDLE"),
    "counters": ("HOOK", "REASON", "PACKETS", "BYTES", "MEANING"),
    "announced": ("ADDRESS", "IFINDEX", "LINK ADDRESS", "FOR", "CLAIMED BY", "FORMER OWNER"),
}
_IPVSADM_FLAGS = {"TCP": "-t", "UDP": "-u", "SCTP": "--sctp-service"}


def as_objects(dump: Dump) -> dict[str, list[dict[str, Any]]]:
    """Return a list of objects for each section, as JSON and YAML have them."""
    return {name: [entry.as_dict() for entry in entries] for name, entries in dump.items()}


_NUMBERS = frozenset({"ID", "GENERATION", "PACKETS", "BYTES", "IFINDEX", "IDLE", "FOR"})


def as_table(dump: Dump, width: int | None = None) -> str:
    """Return a headed table for each section; a VIP has a line for each backend, so that grep finds them.

    width: the terminal's columns, None: a row has one line.
    """
    texts = []
    for name, entries in dump.items():
        rows = [[cell or "-" for cell in row] for entry in entries for row in _rows(entry)]
        texts.append(f"{name}\n{table(_COLUMNS[name], rows, _NUMBERS, width)}")
    return "\n".join(texts)


def as_ipvsadm(dump: Dump) -> str:
    """Return the VIPs as ``ipvsadm -Sn`` prints virtual services; other sections have no such form.

    The scheduler is mh: IPVS' name for Maglev hashing. A backend that takes no new connections has weight 0,
    as kube-proxy's IPVS mode has it; unequal shares are in thousandths.
    """
    return "".join(line + "\n" for vip in dump["vips"] if isinstance(vip, VipEntry) for line in _ipvsadm(vip))


def _ipvsadm(vip: VipEntry) -> Iterator[str]:
    service = f"{_IPVSADM_FLAGS[vip.protocol]} {_socket(vip.address, vip.port)}"
    persistence = f" -p {vip.affinity_seconds}" if vip.affinity_seconds else ""
    yield f"-A {service} -s mh{persistence}"
    for backend in vip.backends:
        weight = int(backend.takes_new) if backend.share is None else round(1000 * backend.share)
        yield f"-a {service} -r {_socket(backend.address, backend.port)} -m -w {weight}"


def _socket(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _rows(entry: MapEntry) -> Iterator[Cells]:
    """Yield the lines of one entry; an empty cell is shown as a dash."""
    match entry:
        case VipEntry():
            affinity = f"{entry.affinity_seconds}s" if entry.affinity_seconds else ""
            head = (
                _socket(entry.address, entry.port),
                entry.protocol,
                entry.kind,
                entry.service,
                entry.port_name,
                affinity,
            )
            for backend in entry.backends:
                share = "" if backend.share is None else f" {backend.share:.1%}"
                yield (*head, _socket(backend.address, backend.port), backend.node, backend.state + share)
            if not entry.backends:
                yield (*head, "", "", "lingering" if entry.lingering else "")
        case AddressEntry():
            ranges = ",".join(entry.source_ranges)
            yield (entry.address, entry.kind, entry.service, ",".join(entry.answers), ranges)
        case BackendEntry():
            yield (
                str(entry.id),
                _socket(entry.address, entry.port),
                entry.node,
                "yes" if entry.local else "no",
                entry.state,
                entry.service,
                entry.port_name,
                str(entry.generation),
            )
        case FlowEntry():
            idle = f"{entry.idle_seconds:.1f}s"
            yield (entry.protocol, entry.client, entry.vip, entry.backend, entry.snat, entry.state, idle)
        case AffinityEntry():
            idle = f"{entry.idle_seconds:.1f}s"
            yield (entry.client, entry.service, entry.port_name, entry.backend, idle)
        case AnnouncedEntry():
            left = f"{entry.left_seconds:.1f}s"
            yield (entry.address, str(entry.ifindex), entry.mac, left, entry.rival, entry.former)
        case CounterEntry():
            yield (entry.hook, entry.reason, str(entry.packets), str(entry.bytes), entry.meaning)
