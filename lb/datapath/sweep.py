"""Forgetting: flows and affinity entries whose time is over are deleted.

The programs never need it: they treat an entry that has run out as absent, and an LRU map makes its own room.
It keeps dumps true and the maps no fuller than the traffic.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lb.datapath.layouts import FAMILIES, FlowState
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
    return Swept(
        flows=sum(_sweep_flows(maps, version, now) for version in FAMILIES),
        affinity=sum(_sweep_affinity(maps, version, now) for version in FAMILIES),
    )


def idle_limits(settings: Rows, keys: Rows, values: Rows) -> Rows:
    """Return each flow's idle limit in nanoseconds: ``idle_limit()`` of ``bpf/conntrack.h``."""
    limits = np.full((256, len(FlowState)), settings["tcp_closing_ns"], np.uint64)
    limits[:, FlowState.NEW] = settings["tcp_syn_ns"]
    limits[:, FlowState.ESTABLISHED] = settings["tcp_established_ns"]
    limits[Protocol.SCTP, FlowState.ESTABLISHED] = settings["sctp_ns"]
    limits[Protocol.UDP] = settings["udp_ns"]
    limits[Protocol.UDP, FlowState.NEW] = settings["udp_new_ns"]
    found: Rows = limits[keys["protocol"], values["state"]]
    return found


def _idle(now: int, last: Rows) -> Rows:
    """Nanoseconds since last; 0 for an entry written after now was read."""
    idle: Rows = np.maximum(np.int64(now) - last.astype(np.int64), 0).astype(np.uint64)
    return idle


def _sweep_flows(maps: Maps, version: int, now: int) -> int:
    keys, values = maps.read(f"flows{version}")
    over = _idle(now, values["last_seen"]) > idle_limits(maps.array(f"settings{version}")[0], keys, values)
    maps.delete(f"flows{version}", keys[over])
    return int(over.sum())


def _sweep_affinity(maps: Maps, version: int, now: int) -> int:
    keys, values = maps.read(f"affinity{version}")
    _, vips = maps.read(f"vips{version}")
    timeouts = dict(zip(vips["service"].tolist(), vips["affinity_seconds"].tolist(), strict=True))
    seconds = np.array([timeouts.get(service, 0) for service in keys["service"].tolist()], dtype=np.uint64)
    over = _idle(now, values["last_used"]) >= seconds * np.uint64(1_000_000_000)
    maps.delete(f"affinity{version}", keys[over])
    return int(over.sum())
