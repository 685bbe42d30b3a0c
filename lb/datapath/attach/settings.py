# SPDX-License-Identifier: Apache-2.0
"""What of the configuration the programs read: the maps ``settings4`` and ``settings6``."""

from __future__ import annotations

import time

from lb.config import Config, Forward, SocketMode, Switch
from lb.datapath.attach.snat import write_snat_ports
from lb.datapath.attach.sockets import netns_cookie
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import FAMILIES

_SECOND_NS = 1_000_000_000
_STEP_NS = _SECOND_NS
"""By how much the time of day has to have been set for the programs to be told."""


def write_settings(maps: Maps, config: Config) -> None:
    """Write timeouts (nanoseconds), SNAT ports, whose sockets are served, and which way packets go.

    The network namespace is that of the calling thread.

    Raises BpfError: a map could not be mapped into memory.
    """
    for version in FAMILIES:
        row = maps.array(f"settings{version}")[:1]
        for name in config.timeouts.__slots__:
            row[f"{name}_ns"] = round(getattr(config.timeouts, name) * 1e9)
        row["answer_interval_ns"] = _SECOND_NS // config.answer_rate if config.answer_rate else 0
        row["answer_burst_ns"] = _SECOND_NS
        write_snat_ports(row, config.snat_ports)
        row["netns"] = netns_cookie()
        row["all_sockets"] = config.socket_lb is SocketMode.ALL
        row["redirect"] = config.redirect is Switch.ON
        direct = config.forward is not Forward.SNAT and config.shadow is Switch.OFF
        row["direct_port"] = config.direct_port if direct else 0
    write_time(maps)


def write_time(maps: Maps, wall_ns: int | None = None) -> None:
    """Write how far the time of day is ahead of the programs' clock, unless what is there is right.

    wall_ns: CLOCK_REALTIME less CLOCK_MONOTONIC, in nanoseconds; None: as it is now. Both clocks are slewed
    alike, so the difference changes only when somebody sets the time of day.

    Raises BpfError: a map could not be mapped into memory.
    """
    right = time.time_ns() - time.monotonic_ns() if wall_ns is None else wall_ns
    for version in FAMILIES:
        row = maps.array(f"settings{version}")[:1]
        if abs(int(row["wall_ns"][0]) - right) > _STEP_NS:
            row["wall_ns"] = right
