# SPDX-License-Identifier: Apache-2.0
"""``python -m tests.soak.shadow [SECONDS]``: how many new connections a second shadow mode compares.

Beside kube-proxy's rules of mode nftables a client begins connections of UDP at one rate after the other,
each rate for so many seconds, each connection from an address and port of its own. Prints for each rate how
many were compared and why others were not, and the CPU time of the agent. Ends with 1 if one of them is in no
count, or if one that was compared differs otherwise than it is meant to.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from lb.lab import kube_proxy
from lb.lab.addressing import LabSpec, clients, node_address
from lb.lab.lab import Lab
from tests.netns.conftest import fresh_id, remove, silent
from tests.netns.test_shadow import NODE, STAYS, WEB, compared, manifests, report, run

RATES = (500, 1000, 2000, 4000, 8000)
SETTLE_SECONDS = 10.0  # longer than a decision waits until it is too old to be asked about
SEND = r"""
import socket, sys, time
host, port, rate, seconds, first, *sources = sys.argv[1:]
begun, sent, place = time.monotonic(), 0, int(first)
while (now := time.monotonic() - begun) < float(seconds):
    while sent < now * int(rate):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
            one.bind((sources[place // 60000], 5000 + place % 60000))
            one.sendto(b"who?", (host, int(port)))
        place, sent = place + 1, sent + 1
    time.sleep(0.001)
print(sent)
"""


def cpu_seconds(pid: int) -> float:
    """Return the CPU time that a process has taken: proc(5), utime and stime."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")


def main(seconds: float = 5.0) -> int:
    """Do it; return the exit code."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "all.yaml").write_text(manifests(*STAYS))
        spec = LabSpec(id=fresh_id(), manifests=str(folder), agents=False)
        stack.callback(remove, spec.id)
        lab = Lab.up(spec, silent)
        run(lab, "lab", "kube-proxy", "--id", spec.id, kube_proxy.Mode.NFTABLES, NODE)
        lab.start_agent(NODE, shadow=True)
        lab.wait_agent(NODE, 120)
        process = lab.store.process(NODE)
        assert process is not None
        begun, bad = 0, 0
        where = [str(node_address(NODE)), str(30400 + WEB)]
        for rate in RATES:
            before, busy = report(lab), cpu_seconds(process.pid)
            words = [*where, str(rate), str(seconds), str(begun), *map(str, clients())]
            done = lab.run("client", [sys.executable, "-S", "-c", SEND, *words])
            assert done.returncode == 0, done.stderr
            sent = int(done.stdout)
            begun += sent
            time.sleep(SETTLE_SECONDS)
            after, busy = report(lab), cpu_seconds(process.pid) - busy
            count = compared(after) - compared(before)
            why = {
                name: number - before["not_compared"][name]
                for name, number in after["not_compared"].items()
                if number != before["not_compared"][name]
            }
            print(
                f"{sent / seconds:8.0f} a second: {100 * count / sent:5.1f} % compared, not: {why or 'none'};"
                f" agent: {busy:.1f} s of CPU",
                flush=True,
            )
            bad += count + sum(why.values()) != sent or bool(after["different"])
        print(f"different: {after['different']}, as meant: {after['meant']}")
        return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main(*map(float, sys.argv[1:])))
