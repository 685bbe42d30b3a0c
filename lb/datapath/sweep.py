"""Forgetting: flows and affinity entries whose time is over are deleted.

The programs never need it: they treat an entry that has run out as absent, and an LRU map makes its own room.
It keeps dumps true and the maps no fuller than the traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lb.datapath.layouts import FlowState
from lb.datapath.maps import Maps, Rows
from lb.model import Protocol


@dataclass(frozen=True, slots=True)
class Swept:
    """How many entries a sweep deleted; flows count each direction."""

    flows: int
    affinity: int


def sweep(maps: Maps, now: int) -> Swept:
    """Delete what has been idle for longer than its timeout.

    now is CLOCK_MONOTONIC in nanoseconds, the clock of ``last_seen`` and ``last_used``.

    Raises
    ------
    BpfError: the kernel refused to read or delete.
    """
    return Swept(flows=_sweep_flows(maps, now), affinity=_sweep_affinity(maps, now))


def idle_limits(settings: Rows, keys: Rows, values: Rows) -> Rows:
    """Return each flow's idle limit in nanoseconds: ``idle_limit()`` of ``bpf/conntrack.h``."""
    tcp = np.full(len(FlowState), settings["tcp_closing_ns"], dtype=np.uint64)
    tcp[FlowState.NEW] = settings["tcp_syn_ns"]
    tcp[FlowState.ESTABLISHED] = settings["tcp_established_ns"]
    udp = np.full(len(FlowState), settings["udp_ns"], dtype=np.uint64)
    udp[FlowState.NEW] = settings["udp_new_ns"]
    limits: Rows = np.where(keys["protocol"] == Protocol.UDP, udp[values["state"]], tcp[values["state"]])
    return limits


def _idle(now: int, last: Rows) -> Rows:
    """Nanoseconds since last; 0 for an entry written after now was read."""
    idle: Rows = np.maximum(np.int64(now) - last.astype(np.int64), 0).astype(np.uint64)
    return idle


def _sweep_flows(maps: Maps, now: int) -> int:
    keys, values = maps.read("flows4")
    over = _idle(now, values["last_seen"]) > idle_limits(maps.array("settings")[0], keys, values)
    maps.delete("flows4", keys[over])
    return int(over.sum())


def _sweep_affinity(maps: Maps, now: int) -> int:
    keys, values = maps.read("affinity4")
    _, vips = maps.read("vips4")
    timeouts = dict(zip(vips["service"].tolist(), vips["affinity_seconds"].tolist(), strict=True))
    seconds = np.array([timeouts.get(service, 0) for service in keys["service"].tolist()], dtype=np.uint64)
    over = _idle(now, values["last_used"]) >= seconds * np.uint64(1_000_000_000)
    maps.delete("affinity4", keys[over])
    return int(over.sum())
