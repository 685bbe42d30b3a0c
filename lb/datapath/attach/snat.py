# SPDX-License-Identifier: Apache-2.0
"""Which ports and addresses of the node stand for clients (SNAT), as the settings tell the programs.

A flow keeps its port and address for as long as it lives, so what was used before is remembered.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lb.config import SnatPorts
from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import ADDRESS, FAMILIES, SNAT_SOURCES, pack_address
from lb.model import IPAddress

_FIRST_RANGE = (61_000, 65_535)
"""The default of versions whose settings had no former range."""


def write_snat_ports(row: Rows, ports: SnatPorts) -> None:
    """Write the range; that of before, with what was former then, is the former one from now on."""
    before = int(row["snat_port_min"][0]), int(row["snat_port_max"][0])
    former = int(row["former_port_min"][0]), int(row["former_port_max"][0])
    if before == (0, 0):
        former = _FIRST_RANGE
    elif before != (ports.first, ports.last):
        former = min(before[0], former[0] or before[0]), max(before[1], former[1])
    row["former_port_min"], row["former_port_max"] = former
    row["snat_port_min"], row["snat_port_max"] = ports.first, ports.last


def add_snat_sources(maps: Maps, version: int, addresses: Iterable[IPAddress]) -> None:
    """Note the node's addresses that SNAT is about to use, beside those that it has used: their flows go on.

    Raises BpfError: a map could not be mapped into memory.
    """
    row = maps.array(f"settings{version}")[:1]
    count = int(row["sources"][0])
    if count > SNAT_SOURCES:
        return
    known = row["snat_sources"][0][:count].tolist()
    new = [one for one in dict.fromkeys(map(pack_address, addresses)) if one not in known]
    if not new:
        return
    found = known + new
    if len(found) <= SNAT_SOURCES:
        padded = found + found[:1] * (SNAT_SOURCES - len(found))
        row["snat_sources"][0] = np.array(padded, ADDRESS[version])
    row["sources"] = min(len(found), SNAT_SOURCES + 1)


def snat_range(maps: Maps) -> tuple[int, int]:
    """Return the first and the last port that SNAT may use, of either family.

    Raises BpfError: a map could not be mapped into memory.
    """
    row = maps.array(f"settings{FAMILIES[0]}")[0]
    return int(row["snat_port_min"]), int(row["snat_port_max"])
