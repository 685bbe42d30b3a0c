# SPDX-License-Identifier: Apache-2.0
"""Which backend clients keep (``sessionAffinity: ClientIP``), from kube-proxy's rules to our table and back.

kube-proxy remembers it in mode nftables by a set for each endpoint, whose elements are clients and end by
themselves: ``affinity-HASH-NS/NAME/PROTOCOL/PORT__ADDRESS/PORT``, with dots for the colons of IPv6. In mode
iptables it is a list of xt_recent, ``/proc/net/xt_recent/KUBE-SEP-…``, named as the endpoint's chain. Whose
endpoint that is the set's name says, and a comment of the rule.

An agent that starts beside such rules runs this module (``python -m lb.cutover.affinity INSTANCE``) when the
maps are written and no program is attached yet: the first connection that it serves is led as those before.
"""

from __future__ import annotations

import json
import re
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lb.cutover import moves
from lb.cutover.adopt import Adopter
from lb.cutover.netfilter import Run, here
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.expiry import live_affinity
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import FAMILIES, unpack_address
from lb.model import IPAddress

_RECENT = Path("/proc/net/xt_recent")
_SET = re.compile(r"affinity-[A-Z0-9]+-([^/]+/[^/]+)/[a-z]+/([^/]*?)__(.+)/([0-9]+)")
_ENDPOINT = re.compile(r"-A (KUBE-SEP-[\w-]+) .*--set .*--to-destination (\S+)")
_COMMENT = re.compile(r'--comment "?([^"\s]+)"?')
_SOURCE = re.compile(r"^src=(\S+)", re.MULTILINE)

Endpoint = tuple[str, IPAddress, int]
"""``namespace/name:port name`` of a Service port, and address and port of one of its endpoints."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where kube-proxy remembers the clients of an endpoint.

    name: of the set or the list. family: that of nftables, ``""`` for a list of xt_recent. seconds: for how
    long a client keeps the endpoint; of a list it is not known here: 0. clients: with the seconds since their
    last new connection, which a list counts in a unit that only the kernel knows: there it is 0, and their
    time begins anew.
    """

    endpoint: Endpoint
    name: str
    family: str
    seconds: int
    clients: tuple[tuple[IPAddress, float], ...]


def places(run: Run) -> Iterator[Place]:
    """Yield where kube-proxy remembers clients.

    Raises LbError: nft or iptables is not there or failed.
    """
    for family in ("ip", "ip6"):
        for one in _listed(run(["nft", "-j", "list", "sets", family], "")):
            yield from _of_set(one.get("set", {}), family)
    for program in ("iptables", "ip6tables"):
        for line in run([f"{program}-save", "-t", "nat"], "").splitlines():
            yield from _of_rule(line)


def _listed(text: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(text)["nftables"] if text.strip() else []
    return found


def _of_set(found: Mapping[str, Any], family: str) -> Iterator[Place]:
    match = _SET.fullmatch(found.get("name", ""))
    if not match or found.get("table") != "kube-proxy":
        return
    service, port_name, address, port = match.groups()
    seconds = int(found.get("timeout", 0))
    elements = [one.get("elem", {}) for one in found.get("elem", ()) if isinstance(one, dict)]
    clients = tuple(
        (ip_address(one["val"]), max(0.0, float(seconds - one.get("expires", 0))))
        for one in elements
        if "val" in one
    )
    written = address if family == "ip" else address.replace(".", ":")
    endpoint = f"{service}:{port_name}", ip_address(written), int(port)
    yield Place(endpoint, found["name"], family, seconds, clients)


def _of_rule(line: str) -> Iterator[Place]:
    match, comment = _ENDPOINT.match(line), _COMMENT.search(line)
    if not match or not comment:
        return
    chain, target = match.groups()
    address, _, port = target.rpartition(":")
    try:
        text = (_RECENT / chain).read_text()
    except OSError:
        text = ""
    service = comment[1] if ":" in comment[1] else f"{comment[1]}:"
    clients = tuple((ip_address(client), 0.0) for client in _SOURCE.findall(text))
    yield Place((service, ip_address(address.strip("[]")), int(port)), chain, "", 0, clients)


def _service_ports(maps: Maps, version: int) -> dict[str, tuple[int, int]]:
    """Return id and affinity seconds of the Service ports that have any, by ``namespace/name:port name``."""
    _, vips = maps.read(f"vips{version}")
    seconds = dict(zip(vips["service"].tolist(), vips["affinity_seconds"].tolist(), strict=True))
    found = {}
    for ident, row in zip(*(column.tolist() for column in maps.read("services")), strict=True):
        if seconds.get(ident):
            namespace, name, port_name = (text.decode() for text in row)
            found[f"{namespace}/{name}:{port_name}"] = ident, seconds[ident]
    return found


def bring(name: str, run: Run = here) -> int:
    """Let clients keep the backends that kube-proxy remembers; return how many do.

    Raises LbError: the kernel, nft or iptables refused.
    """
    every = [place for place in places(run) if place.clients]
    if not every:
        return 0
    now, count = time.monotonic_ns(), 0
    with KernelMaps(Pins(name).maps) as maps, Adopter(maps) as adopter:
        slots = moves.known(maps).slots
        ports = {version: _service_ports(maps, version) for version in FAMILIES}
        for place in every:
            service, address, port = place.endpoint
            ident, seconds = ports[address.version].get(service, (0, 0))
            slot = slots.get((ident, address, port))
            for client, idle in place.clients if slot else ():
                if slot and idle < seconds:
                    adopter.affinity(client, (ident, seconds), now - round(idle * 1e9), slot)
                    count += 1
    return count


def give(maps: Maps, run: Run = here) -> int:
    """Let kube-proxy remember the backends that clients keep here; return how many it does.

    Raises LbError: the kernel, nft or iptables refused.
    """
    there = {place.endpoint: place for place in places(run)}
    now, count = time.monotonic_ns(), 0
    lines: list[str] = []
    for version in FAMILIES:
        names = {ident: text for text, (ident, _) in _service_ports(maps, version).items()}
        backends = {
            slot: place for place, slot in moves.known(maps).slots.items() if place[1].version == version
        }
        for key, value in zip(*live_affinity(maps, version, now), strict=True):
            slot = int(value["backend"]), int(value["generation"])
            ident, address, port = backends.get(slot, (0, None, 0))
            place = there.get((names[ident], address, port)) if address and ident in names else None
            if place is None:
                continue
            client = unpack_address(key["client"].tolist())
            count += 1
            if not place.family:
                (_RECENT / place.name).write_text(f"+{client}\n")
                continue
            left = max(1, place.seconds - (now - int(value["last_used"])) // 1_000_000_000)
            element = f"{client} timeout {place.seconds}s expires {left}s"
            lines.append(f"add element {place.family} kube-proxy {place.name} {{ {element} }}\n")
    if lines:
        run(["nft", "-f", "-"], "".join(lines))
    return count


if __name__ == "__main__":
    print(f"{bring(sys.argv[1])} clients keep their backend")
