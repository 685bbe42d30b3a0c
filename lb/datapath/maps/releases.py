# SPDX-License-Identifier: Apache-2.0
"""What an earlier release makes of the maps that this version leaves: for whoever goes back to one.

A release keeps the maps whose layout it knows, and starts the others empty. What of them it converts, it does
by what it finds on the node; only what it cannot is written down here. Releases that convert need no entry.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lb.datapath.kernel.bpf import Rows
from lb.datapath.maps.layouts import Direction, FlowPath


@dataclass(frozen=True, slots=True)
class Release:
    """A release that converts no map.

    layouts: the layouts of its maps, by their names below :attr:`lb.datapath.kernel.pins.Pins.shapes`.
    paths: the ways of flows that it knows. A flow with another way stays, but its packets go astray.
    snat_ports: its default range, ends included. It leads back no answer to another port of the node.
    """

    layouts: frozenset[str]
    paths: frozenset[FlowPath]
    snat_ports: tuple[int, int]

    def follows(self, keys: Rows, flows: Rows) -> Rows:
        """Return which of these flows it goes on with, one for each."""
        first, last = self.snat_ports
        ports = np.where(keys["direction"] == Direction.REPLY, keys["dport"], flows["sport"])
        in_nodes_name = np.isin(flows["path"], [FlowPath.FORWARD, FlowPath.HAIRPIN, FlowPath.HOST])
        known: Rows = np.isin(flows["path"], list(self.paths)) & (
            ~in_nodes_name | ((ports >= first) & (ports <= last))
        )
        return known


_LAYOUTS_0_1_0 = """
settings4-41539d3e4d68 ifaces4-47ef62d8e80c vips4-8e4bcaed3ee8 source_ranges4-d014606eda9a
backends4-0fdff8e9be15 hashing4-f48fdce39c19 flows4-a2255b745906 fragments4-93f02dff07b5
sockets4-f8f8a8e7d174 affinity4-a7722172ae62 traffic4-1036140bb218 connections4-2b90506ff49b
settings6-d64be2469ba8 ifaces6-ec4797fec49d vips6-e3192f97475c source_ranges6-b0d8693af0ea
backends6-cc72a8063cb9 hashing6-f48fdce39c19 flows6-8b01813a9d68 fragments6-0a70e07a37f7
sockets6-580296bedd63 affinity6-a36a8bd6f978 traffic6-1036140bb218 connections6-2b90506ff49b
tables-f7497486f8b0 crc32c_shifts-5f4f28473634 notes-f98a8be6bdb7 scratch-49095d44440f
reasons-9e9bf8cdd500 service_counters-2f5e726b3dc7 ended-aa5ea48ac5c6 watch-99ba58e06b88
draft-18d3d036e1de events-821bf06b4dcb services-2282e16d0610 nodes-38c5d0e19bdc
"""

RELEASES = {
    "0.1.0": Release(
        frozenset(_LAYOUTS_0_1_0.split()),
        frozenset(FlowPath) - {FlowPath.LOOPBACK, FlowPath.DIRECT},
        (61_000, 65_535),
    ),
}
