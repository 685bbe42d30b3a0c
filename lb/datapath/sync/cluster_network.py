# SPDX-License-Identifier: Apache-2.0
"""The smallest network that holds every clusterIP: packets for unknown ports are looked up only inside it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import ADDRESS, FAMILIES
from lb.model import IPAddress

_BITS = {version: 8 * dtype.itemsize for version, dtype in ADDRESS.items()}


class ClusterNetworks:
    """Keeps ``cluster_net`` and ``cluster_mask`` in ``settings4`` and ``settings6``.

    A program asks whether ``(address ^ net) & mask`` is 0. Without any clusterIP net is 0 and the mask all
    ones. A network only grows, until the maps are read anew: a clusterIP that goes leaves an address where a
    second lookup finds nothing.
    """

    def __init__(self, maps: Maps) -> None:
        self._maps = maps
        self._ranges: dict[int, tuple[int, int]] = {}  # the lowest and the highest clusterIP, by IP version

    def start(self, addresses: Iterable[IPAddress]) -> None:
        """Write the networks of these clusterIPs, whatever was there before."""
        by_version: dict[int, list[int]] = {version: [] for version in FAMILIES}
        for address in addresses:
            by_version[address.version].append(int(address))
        self._ranges = {version: (min(found), max(found)) for version, found in by_version.items() if found}
        for version in FAMILIES:
            self._write(version)

    def cover(self, version: int, addresses: Iterable[IPAddress]) -> None:
        """Make room for more clusterIPs of one family, before they are in the maps."""
        found = [int(address) for address in addresses]
        if not found:
            return
        before = self._ranges.get(version)
        if before is not None:
            found += before
        self._ranges[version] = (min(found), max(found))
        if self._ranges[version] != before:
            self._write(version)

    def _write(self, version: int) -> None:
        """Store the network, so that meanwhile no address of both the old and the new one is left out."""
        bits = _BITS[version]
        ones = (1 << bits) - 1
        net, mask = 0, ones
        if version in self._ranges:
            low, high = self._ranges[version]
            mask = ones ^ ((1 << (low ^ high).bit_length()) - 1)
            net = low & mask
        self._store(version, "cluster_mask", mask & self._number(version, "cluster_mask"))
        self._store(version, "cluster_net", net)
        self._store(version, "cluster_mask", mask)

    def _number(self, version: int, field: str) -> int:
        return int.from_bytes(self._maps.array(f"settings{version}")[field][:1].tobytes(), "big")

    def _store(self, version: int, field: str, number: int) -> None:
        if number != self._number(version, field):
            octets = number.to_bytes(_BITS[version] // 8, "big")
            self._maps.array(f"settings{version}")[field][:1] = np.frombuffer(octets, ADDRESS[version])
