# SPDX-License-Identifier: Apache-2.0
"""What this node owns, in the maps ``announced4`` and ``announced6``: the programs answer by it.

Every entry has an end, on the clock of the programs (CLOCK_MONOTONIC). It is put off with each beat that goes
out; so an agent that is killed or hangs, and a node that cannot send, stops to answer without being told.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import ANNOUNCED, ANNOUNCED_KEY, FAMILIES, pack_address, unpack_address
from lb.model import IPAddress

SECOND_NS = 1_000_000_000


@dataclass(frozen=True, slots=True)
class Rival:
    """Another host that claims an address which is owned here; mac: its link address. ago: seconds."""

    address: IPAddress
    ifindex: int
    mac: bytes
    frames: int
    ago: float


@dataclass(frozen=True, slots=True)
class Entry:
    """What the programs are told of an address.

    until_ns: until then they answer for it, 0: they do not. former: the link address of the node which has
    handed it over, and still has connections through it until former_ns. Both by CLOCK_MONOTONIC.
    """

    until_ns: int
    former: bytes = bytes(6)
    former_ns: int = 0


def write(maps: Maps, ifindex: int, mac: bytes, entries: Mapping[IPAddress, Entry]) -> None:
    """Write entries of an interface with a link address of six bytes.

    Raises CapacityError: there are more than the map has room for.
    Raises BpfError: the kernel refused.
    """
    for version in FAMILIES:
        keys = _keys(version, ifindex, entries)
        if len(keys):
            own = (one for address, one in entries.items() if address.version == version)
            rows = [(one.until_ns, one.former_ns, mac, one.former, (0,) * 4) for one in own]
            values = np.array(rows, ANNOUNCED)
            maps.update(f"announced{version}", keys, values)


def end(maps: Maps, ifindex: int, addresses: Iterable[IPAddress]) -> None:
    """Answer for these addresses no more.

    Raises BpfError: the kernel refused.
    """
    gone = list(addresses)
    for version in FAMILIES:
        keys = _keys(version, ifindex, gone)
        if len(keys):
            maps.delete(f"announced{version}", keys)


def read(maps: Maps) -> dict[tuple[int, IPAddress], Entry]:
    """Return the entries that there are, by ifindex and address.

    Raises BpfError: the kernel refused.
    """
    found = {}
    for version in FAMILIES:
        keys, values = maps.read(f"announced{version}")
        for (address, ifindex), value in zip(keys.tolist(), values, strict=True):
            entry = Entry(int(value["until_ns"]), bytes(value["former"]), int(value["former_ns"]))
            found[ifindex, unpack_address(address)] = entry
    return found


def rivals(maps: Maps, within: float, now_ns: int | None = None) -> list[Rival]:
    """Return who else has claimed an owned address within so many seconds, in the order of addresses.

    Raises BpfError: the kernel refused.
    """
    now = time.monotonic_ns() if now_ns is None else now_ns
    found = []
    for version in FAMILIES:
        keys, values = maps.read(f"rivals{version}")
        for (address, ifindex), value in sorted(
            zip(keys.tolist(), values, strict=True), key=lambda pair: pair[0]
        ):
            ago = (now - int(value["seen_ns"])) / SECOND_NS
            if ago <= within:
                one = Rival(unpack_address(address), ifindex, bytes(value["mac"]), int(value["frames"]), ago)
                found.append(one)
    return found


def _keys(
    version: int, ifindex: int, addresses: Iterable[IPAddress]
) -> np.ndarray[tuple[int], np.dtype[np.void]]:
    rows = [(pack_address(one), ifindex) for one in addresses if one.version == version]
    return np.array(rows, ANNOUNCED_KEY[version])
