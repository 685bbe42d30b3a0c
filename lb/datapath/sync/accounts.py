# SPDX-License-Identifier: Apache-2.0
"""Counters stay with the backend or Service port that they count, while ids change hands.

A backend's figures are those of its slot: what the programs count carries the slot's generation, so that a
new owner begins at 0. A Service port's figures are the sum over the slots that name it, also those whose
backend has gone and whose last connections go on, and over ``ended``, where the figures of a slot are put
when another backend gets it. So nothing is lost for the Service, and nothing is shown for somebody else.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import (
    CONNECTIONS,
    ENDED,
    FAMILIES,
    ID,
    SERVICE_COUNTERS,
    TRAFFIC,
    TRAFFIC_IN_LINE,
    BackendStateCode,
)

FIGURES = ENDED
"""All that is counted of a backend: seven numbers, which add up."""
OF_TRAFFIC = tuple(name for name in FIGURES.names or () if name in (TRAFFIC.names or ()))
OF_CONNECTIONS = CONNECTIONS.names or ()

CHANGES = np.zeros(1, ID)
"""The entry of ``ended`` that is no Service port's. Its packets are twice the number of changes of that map,
and odd while one is under way: who reads figures from several maps can tell that they belong together."""


def numbers(figures: Rows) -> Rows:
    """Return rows of :data:`FIGURES` as an array of shape (rows, 7), which numpy can add up; a view."""
    plain: Rows = figures.view("u8").reshape(len(figures), len(FIGURES.names or ()))
    return plain


def line_of(backends: Rows) -> tuple[Rows, Rows]:
    """Return where backends are in ``traffic4`` or ``traffic6``: the line of each, and its place there."""
    at = backends.astype("u8") + np.uint64(TRAFFIC_IN_LINE - 1)
    return (at // np.uint64(TRAFFIC_IN_LINE)).astype(ID), at % np.uint64(TRAFFIC_IN_LINE)


def counts_traffic(maps: Maps) -> bool:
    """Tell whether packets and bytes of backends are counted: setting traffic_counters."""
    return maps.capacity("traffic4") > 1


def slot_figures(maps: Maps, version: int, backends: Rows, generations: Rows) -> Rows:
    """Return what has been counted of some slots in these uses of them.

    Raises BpfError: the kernel refused.
    """
    found = np.zeros(len(backends), FIGURES)
    connections = maps.array(f"connections{version}")[backends]
    for name in OF_CONNECTIONS:
        found[name] = connections[name]
    if counts_traffic(maps):
        lines, places = line_of(backends)
        lines, of_line = np.unique(lines, return_inverse=True)  # neighbours share one: it is read once
        rows = maps.some(f"traffic{version}", lines)["cells"]
        cells = rows[of_line, :, places]
        same = cells["generation"] == generations[:, np.newaxis]
        for name in OF_TRAFFIC:
            found[name] = np.where(same, cells[name], 0).sum(axis=1)
    return found


def begin(maps: Maps, services: Sequence[int]) -> None:
    """Let nothing have been counted yet for new Service ports, whose ids others may have had.

    Raises BpfError, CapacityError: the kernel refused.
    """
    ids = np.array(services, ID)
    maps.update("service_counters", ids, np.zeros(len(ids), SERVICE_COUNTERS))
    maps.update("ended", ids, np.zeros(len(ids), ENDED))
    for version in FAMILIES:
        slots = maps.array(f"backends{version}")
        free = np.flatnonzero((slots["state"] == BackendStateCode.FREE) & (slots["service"] != 0))
        theirs = free[np.isin(slots["service"][free], ids)]
        if len(theirs):
            slots["service"][theirs] = 0


def end(maps: Maps, services: Sequence[int]) -> None:
    """Count no more for Service ports that are gone.

    Raises BpfError: the kernel refused.
    """
    maps.delete("service_counters", np.array(services, ID))


def hand_over(maps: Maps, version: int, backends: Rows) -> None:
    """Put what free slots have counted to their former Service ports; then others may have the slots.

    Raises BpfError: the kernel refused.
    """
    slots = maps.array(f"backends{version}")
    used = backends[slots["generation"][backends] != 0]
    if not len(used):
        return
    figures = slot_figures(maps, version, used, slots["generation"][used])
    if not numbers(figures).any():
        slots["service"][used] = 0
        return
    services, rows = np.unique(slots["service"][used], return_inverse=True)
    sums = maps.some("ended", services)
    np.add.at(numbers(sums), rows, numbers(figures))
    _note_change(maps)
    maps.update("ended", services[services != 0], sums[services != 0])
    maps.array(f"connections{version}")[used] = np.zeros((), CONNECTIONS)
    slots["service"][used] = 0
    _note_change(maps)


def _note_change(maps: Maps) -> None:
    row = maps.some("ended", CHANGES)
    row["packets"] += np.uint64(1)
    maps.update("ended", CHANGES, row)


def recover(maps: Maps, services: Sequence[int]) -> None:
    """Let there be counters for these Service ports and no others; a change that a crash cut short is over.

    Raises BpfError, CapacityError: the kernel refused.
    """
    wanted = np.array(services, ID)
    there = maps.read("service_counters")[0]
    missing, left = np.setdiff1d(wanted, there), np.setdiff1d(there, wanted)
    if len(missing):
        maps.update("service_counters", missing, np.zeros(len(missing), SERVICE_COUNTERS))
    if len(left):
        maps.delete("service_counters", left)
    if maps.some("ended", CHANGES)["packets"][0] % 2:
        _note_change(maps)
