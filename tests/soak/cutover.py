# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.cutover [CONNECTIONS [ROUNDS]]``: over from kube-proxy and back, under load.

Connections of all kinds stay open and are used all the time, while a node of a lab goes over and back, so
many times from kube-proxy's nftables rules, then so many times from its iptables rules. Ends with 1 if one
breaks, if a new request fails, or if a datagram is lost; prints what was moved and how long each step took.
"""

from __future__ import annotations

import itertools
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lb.lab import kube_proxy
from lb.lab.addressing import Family, LabSpec
from lb.lab.lab import Lab
from tests.netns.conftest import fresh_id, remove, silent
from tests.netns.test_cutover import MANIFEST, NODE, Traffic, count, run, there_and_back

KINDS = 14
"""Addresses that are asked, by place and family: see targets() of tests/netns/test_cutover.py."""


def parts(report: Mapping[str, Any]) -> str:
    """Return what was moved, by protocol and path."""
    return ", ".join(f"{row['protocol']} {row['path']} {row['connections']}" for row in report["moved"])


def main(connections: int = 1000, rounds: int = 3) -> int:
    """Do it; return the exit code."""
    with ExitStack() as stack:
        manifests = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (manifests / "all.yaml").write_text(MANIFEST)
        spec = LabSpec(id=fresh_id(), manifests=str(manifests), family=Family.DUAL, agents=False)
        stack.callback(remove, spec.id)
        lab = Lab.up(spec, silent)
        modes = [mode for mode in kube_proxy.Mode for _ in range(rounds)]
        for node in spec.node_names:
            run(lab, NODE, "lab", "kube-proxy", "--id", spec.id, modes[0], node)
        # To each address: TCP, half as many of UDP, a quarter of SCTP, one that is half closed, and beside
        # them one that asks anew.
        each = max(1, math.ceil((connections / KINDS - 1) / 1.75))
        traffic = Traffic(lab, each, stack, pause=1.0)
        print(f"{sum(h.wanted for h in traffic.holders)} connections are open")
        for number, (mode, then) in enumerate(
            itertools.zip_longest(modes, modes[1:], fillvalue=modes[-1]), 1
        ):
            begun = time.monotonic()
            over, back = there_and_back(lab, then, traffic)
            asked = sum(sum(h.told()["asked"].values()) for h in traffic.holders)
            print(
                f"round {number}, from {mode}, back to {then}: {time.monotonic() - begun:.0f} s, moved"
                f" {count(over)} and {count(back)} back, {asked} requests so far,"
                f" {traffic.lost()} datagrams lost",
                flush=True,
            )
            print(f"  over: {parts(over)}\n  back: {parts(back)}", flush=True)
        return 1 if traffic.lost() else 0


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
