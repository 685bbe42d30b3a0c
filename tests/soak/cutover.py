# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.cutover [CONNECTIONS [ROUNDS]]``: over from kube-proxy and back, under load.

Connections of all kinds stay open and are used all the time, while a node of a lab goes over and back so many
times, from kube-proxy's nftables rules and its iptables rules in turn. Ends with 1 if one breaks, if a new
request fails, or if a datagram is lost; prints what was moved and how long each step took.
"""

from __future__ import annotations

import itertools
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from lb.lab import kube_proxy
from lb.lab.addressing import Family, LabSpec
from lb.lab.lab import Lab
from tests.netns.conftest import fresh_id, remove, silent
from tests.netns.test_cutover import MANIFEST, NODE, Traffic, run, there_and_back

KINDS = 14
"""Addresses that are asked, by place and family: see targets() of tests/netns/test_cutover.py."""


def main(connections: int = 1000, rounds: int = 3) -> int:
    """Do it; return the exit code."""
    with ExitStack() as stack:
        manifests = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (manifests / "all.yaml").write_text(MANIFEST)
        spec = LabSpec(id=fresh_id(), manifests=str(manifests), family=Family.DUAL, agents=False)
        stack.callback(remove, spec.id)
        lab = Lab.up(spec, silent)
        modes = itertools.islice(itertools.cycle(kube_proxy.Mode), rounds)
        first = next(iter(kube_proxy.Mode))
        for node in spec.node_names:
            run(lab, NODE, "lab", "kube-proxy", "--id", spec.id, first, node)
        # to each address: TCP, half as many of UDP, one that is half closed, and one that asks anew
        each = max(1, (connections // KINDS - 2) * 2 // 3)
        traffic = Traffic(lab, each, stack, pause=1.0)
        print(f"{sum(h.wanted for h in traffic.holders)} connections are open")
        for number, mode in enumerate(modes, 1):
            begun = time.monotonic()
            there_and_back(lab, mode, traffic)
            asked = sum(sum(h.told()["asked"].values()) for h in traffic.holders)
            print(
                f"round {number}, back to {mode}: {time.monotonic() - begun:.0f} s,"
                f" {asked} requests so far, {traffic.lost()} datagrams lost",
                flush=True,
            )
        return 1 if traffic.lost() else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
