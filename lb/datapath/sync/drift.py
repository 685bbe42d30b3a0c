# SPDX-License-Identifier: Apache-2.0
"""Whether the maps still hold what was written: compares the ledger with the kernel, plans nothing.

This is cheap enough for the agent to repeat all the time. ``lbctl audit`` also compares with the source, and
it compares the tables row by row.
"""

from __future__ import annotations

import numpy as np

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import BackendStateCode, unpack_address
from lb.datapath.sync.ledger import Ledger, Socket, read_ranges, read_vips


def drift(ledger: Ledger, maps: Maps) -> dict[str, int]:
    """Return by map how many VIPs, source ranges and backends are not as the ledger has them.

    Raises
    ------
    BpfError: a map could not be read.
    """
    found: dict[str, int] = {}
    live = read_vips(maps)
    held = {vip: port.row(vip) for vip, port in ledger.owners.items()}
    wrong = [vip for vip in live.keys() | held.keys() if live.get(vip) != held.get(vip)]
    ranges = set(read_ranges(maps))
    for version, services in ledger.services.items():
        ports = [port for by_port in services.values() for port in by_port.values()]
        found[f"vips{version}"] = sum(vip.address.version == version for vip in wrong)
        wanted = {(port.id, network) for port in ports for network in port.ranges}
        there = {each for each in ranges if each[1].version == version}
        found[f"source_ranges{version}"] = len(wanted ^ there)
        slots = {(slot, socket, port.id) for port in ports for socket, slot in port.backends.items()}
        found[f"backends{version}"] = len({slot for slot, _, _ in slots ^ _backends(maps, version)})
    return found


def _backends(maps: Maps, version: int) -> set[tuple[int, Socket, int]]:
    """Return the slots in use: their number, socket and Service port."""
    slots = maps.array(f"backends{version}")
    used = np.flatnonzero(slots["state"] != BackendStateCode.FREE)
    rows = slots[used]
    addresses = [int(unpack_address(address)) for address in rows["address"].tolist()]
    sockets = [address << 16 | port for address, port in zip(addresses, rows["port"].tolist(), strict=True)]
    return set(zip(used.tolist(), sockets, rows["service"].tolist(), strict=True))
