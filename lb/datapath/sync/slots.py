# SPDX-License-Identifier: Apache-2.0
"""The slots of backends, written where they are: a store is seen by the programs at once."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import BACKEND, ID, BackendStateCode
from lb.datapath.sync import accounts
from lb.datapath.sync.changes import Change


class Slots(dict[int, Rows]):
    """The live arrays of backends by IP version; that of a family without backends is not even mapped."""

    def __init__(self, maps: Maps) -> None:
        super().__init__()
        self._maps = maps

    def __missing__(self, version: int) -> Rows:
        rows = self[version] = self._maps.array(f"backends{version}")
        return rows

    def write(self, version: int, changes: Sequence[Change]) -> int:
        """Write what is new or different; return how many slots that concerns.

        Raises BpfError: the figures of a slot's former backend could not be kept.
        """
        slots = self[version]
        new = {slot: row for change in changes for slot, row in change.new.items()}
        if new:
            rows = np.array(list(new.values()), BACKEND[version])
            ids = np.array(list(new), ID)
            accounts.hand_over(self._maps, version, ids)
            rows["generation"] = slots["generation"][ids] + np.uint32(1)
            slots[ids] = rows
        edits = [edit for change in changes for edit in change.edits]
        if edits:
            ids, flags, nodes = np.array(edits, ID).T
            slots["flags"][ids] = flags
            slots["node"][ids] = nodes
        # The state comes last: a slot is in use only once the rest of its row is there.
        states = {slot: state for change in changes for slot, state in change.states.items()}
        if states:
            slots["state"][np.array(list(states), ID)] = np.array(list(states.values()), ID)
        return len(states.keys() | {slot for slot, _, _ in edits})

    def free(self, version: int, backends: Sequence[int]) -> None:
        """Mark slots as unused."""
        self[version]["state"][np.array(backends, ID)] = BackendStateCode.FREE
