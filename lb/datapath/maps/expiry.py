# SPDX-License-Identifier: Apache-2.0
"""Flows and affinity entries whose time is not over.

The programs treat an entry whose time is over as absent, but for a segment without SYN, which revives its
flow (bpf/README.md, "A connection's life"). Nobody deletes it: it is the first to make room for another.
"""

from __future__ import annotations

import numpy as np

from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import FlowState
from lb.model import Protocol


def idle_limits(settings: Rows, keys: Rows, values: Rows) -> Rows:
    """Return each flow's idle limit in nanoseconds: ``idle_limit()`` of ``bpf/flow_state.h``."""
    limits = np.full((256, len(FlowState)), settings["tcp_closing_ns"], np.uint64)
    limits[:, FlowState.NEW] = settings["tcp_syn_ns"]
    limits[:, FlowState.ESTABLISHED] = settings["tcp_established_ns"]
    limits[Protocol.SCTP, FlowState.ESTABLISHED] = settings["sctp_ns"]
    limits[Protocol.UDP] = settings["udp_ns"]
    limits[Protocol.UDP, FlowState.NEW] = settings["udp_new_ns"]
    found: Rows = limits[keys["protocol"], values["state"]]
    return found


def live_flows(maps: Maps, version: int, now: int) -> tuple[Rows, Rows]:
    """Return the keys and values of an IP version's flows that have not been idle for longer than they may.

    now is CLOCK_MONOTONIC in nanoseconds, the clock of ``last_seen``.

    Raises BpfError: the kernel refused to read.
    """
    keys, values = maps.read(f"flows{version}")
    limits = idle_limits(maps.array(f"settings{version}")[0], keys, values)
    live = _idle(now, values["last_seen"]) <= limits
    return keys[live], values[live]


def live_affinity(maps: Maps, version: int, now: int) -> tuple[Rows, Rows]:
    """Return the keys and values of the clients that keep their backend for a while yet.

    now is CLOCK_MONOTONIC in nanoseconds, the clock of ``last_used``.

    Raises BpfError: the kernel refused to read.
    """
    keys, values = maps.read(f"affinity{version}")
    _, vips = maps.read(f"vips{version}")
    timeouts = dict(zip(vips["service"].tolist(), vips["affinity_seconds"].tolist(), strict=True))
    seconds = np.array([timeouts.get(service, 0) for service in keys["service"].tolist()], dtype=np.uint64)
    live = _idle(now, values["last_used"]) < seconds * np.uint64(1_000_000_000)
    return keys[live], values[live]


def _idle(now: int, last: Rows) -> Rows:
    """Nanoseconds since last; 0 for an entry written after now was read."""
    idle: Rows = np.maximum(np.int64(now) - last.astype(np.int64), 0).astype(np.uint64)
    return idle
