# SPDX-License-Identifier: Apache-2.0
"""The map ``source_ranges``: which clients may open connections to a Service port."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence

import numpy as np

from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import ID
from lb.datapath.sync.changes import Change
from lb.datapath.sync.ledger import Port, range_keys
from lb.errors import LbError
from lb.model import IPNetwork

_LOG = logging.getLogger(__name__)


class SourceRanges:
    """Writes and deletes the source ranges of changes in one family, and notes them in their ports.

    settle: returns when no packet can still hold what it read before the call.
    """

    def __init__(self, maps: Maps, settle: Callable[[], None]) -> None:
        self._maps = maps
        self._settle = settle

    def write(self, changes: Sequence[Change]) -> int:
        """Write the new ranges of changes; return how many they are.

        Raises BpfError, CapacityError: the kernel refused, or the map is full.
        """
        ranges = [each for change in changes for each in change.new_ranges]
        if ranges:
            version = changes[0].version
            keys = range_keys(version, ((port.id, network) for port, network in ranges))
            for port, network in ranges:
                port.ranges[network] = False
            self._maps.update(f"source_ranges{version}", keys, np.ones(len(keys), ID))
            for port, network in ranges:
                port.ranges[network] = True
        return len(ranges)

    def undo(self, change: Change) -> None:
        """Delete what a failed write of a Service's ranges may have left."""
        try:
            written = [(port, network) for port, network in change.new_ranges if network in port.ranges]
            self._forget(change.version, written)
        except LbError as error:
            _LOG.warning("Service %s: source ranges are in an unknown state: %s", change.key, error)

    def delete(self, changes: Sequence[Change]) -> int:
        """Delete the ranges of changes that are not wanted any more; return how many they are.

        A packet on its way may have read that its VIP has ranges: it gets to look them up first.

        Raises BpfError: the kernel refused.
        """
        ranges = [each for change in changes for each in change.old_ranges]
        if ranges:
            if any(port.vips for port, _ in ranges):
                self._settle()
            self._forget(changes[0].version, ranges)
        return len(ranges)

    def _forget(self, version: int, ranges: Sequence[tuple[Port, IPNetwork]]) -> None:
        keys = range_keys(version, ((port.id, network) for port, network in ranges))
        self._maps.delete(f"source_ranges{version}", keys)
        for port, network in ranges:
            port.ranges.pop(network, None)
