# SPDX-License-Identifier: Apache-2.0
"""Which connections come through this node from outside: what a drain waits for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from lb.datapath.maps.expiry import live_flows
from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import FAMILIES, Direction, FlowPath, FlowState, VipKindCode, unpack_address
from lb.datapath.sync.ledger import read_names

_OF_THE_NODE = (FlowPath.HAIRPIN, FlowPath.HOST, FlowPath.LOOPBACK)
"""Ways of connections whose client is the pod itself or a process of the node."""


@dataclass(frozen=True, slots=True)
class Remaining:
    """Connections of a Service. quiet_seconds: since the last packet of any of them."""

    service: str
    connections: int
    quiet_seconds: float

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def remaining(maps: Maps, now_ns: int) -> Sequence[Remaining]:
    """Return the live connections through node ports, load-balancer and external addresses, by Service.

    Those of processes of the node itself do not count, nor do connections that both sides have ended. Those
    of the node's pods through such addresses do, and those that other nodes hand to its pods by direct
    return: no flow tells them from others. A flow whose client has vanished counts until its idle time is
    over. now_ns: CLOCK_MONOTONIC.

    Raises BpfError: a map could not be read.
    """
    found: dict[int, tuple[int, int]] = {}
    for version in FAMILIES:
        keys, values = live_flows(maps, version, now_ns)
        live = (keys["direction"] == Direction.FORWARD) & (values["state"] != FlowState.CLOSED)
        live &= ~np.isin(values["path"], _OF_THE_NODE)
        outer = _outer(maps, version)
        for dst, dport, protocol, service, last in zip(
            *(keys[live][name].tolist() for name in ("dst", "dport", "protocol")),
            *(values[live][name].tolist() for name in ("service", "last_seen")),
            strict=True,
        ):
            if (dst, dport, protocol) in outer:
                count, latest = found.get(service, (0, 0))
                found[service] = count + 1, max(latest, last)
    names = read_names(maps)
    by_name: dict[str, tuple[int, int]] = {}
    for ident, (count, latest) in found.items():
        name = names.get(ident, ("unknown", ""))[0]
        before, when = by_name.get(name, (0, 0))
        by_name[name] = before + count, max(when, latest)
    return [
        Remaining(name, count, round(max(0, now_ns - latest) / 1e9, 1))
        for name, (count, latest) in sorted(by_name.items())
    ]


def answered(maps: Maps, now_ns: int) -> set[str]:
    """Return the addresses that the programs answer for on the segment. now_ns: CLOCK_MONOTONIC.

    Raises BpfError: a map could not be read.
    """
    found = set()
    for version in FAMILIES:
        keys, values = maps.read(f"announced{version}")
        ours = keys[values["until_ns"] > now_ns]
        found |= {str(unpack_address(address)) for address in ours["address"].tolist()}
    return found


def _outer(maps: Maps, version: int) -> set[tuple[Any, int, int]]:
    """Return the VIPs that clients outside use, as the keys of flows name them; those that linger, too."""
    keys, values = maps.read(f"vips{version}")
    chosen: Rows = keys[(values["kind"] != VipKindCode.CLUSTER_IP) & (keys["protocol"] != 0)]
    return set(zip(*(chosen[name].tolist() for name in ("address", "port", "protocol")), strict=True))
