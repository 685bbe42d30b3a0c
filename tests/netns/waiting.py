# SPDX-License-Identifier: Apache-2.0
"""Looking at a lab: what its maps hold, and waiting for what it does."""

from __future__ import annotations

import contextlib
import io
import json
import os
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from lb.cli import main
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import WatchFlag
from lb.datapath.view.watch import Watch
from lb.lab.lab import Lab
from lb.live.events import Names, PacketEvent, describe


@contextlib.contextmanager
def held_agent(lab: Lab, node: str) -> Iterator[None]:
    """Stop a node's agent meanwhile by SIGSTOP: it mends nothing of its own accord."""
    process = lab.store.process(node)
    assert process is not None
    os.kill(process.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(process.pid, signal.SIGCONT)


def eventually(done: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Wait until done() is true; fail with what was waited for."""
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline, f"waited {seconds} s in vain: {what}"
        time.sleep(0.02)


def dumped(lab: Lab, node: str, *options: str) -> dict[str, Any]:
    """Return a node's ``lbctl maps dump -o json``."""
    out, err = io.StringIO(), io.StringIO()
    argv = ["maps", "dump", "-o", "json", "--instance", lab.spec.instance(node), *options]
    assert main(argv, out=out, err=err) == 0, err.getvalue()
    found: dict[str, Any] = json.loads(out.getvalue())
    return found


@contextlib.contextmanager
def calls_told(lab: Lab, node: str, what: WatchFlag) -> Iterator[Callable[[], list[PacketEvent]]]:
    """Watch the calls of processes on a node meanwhile; what is yielded returns those of since it was asked.

    It is watched for an hour or until the end: on a slow machine a lease would be over.
    """
    maps = KernelMaps(Pins(lab.spec.instance(node)).maps)
    names = Names(maps)
    try:
        with Watch(maps, what, clock=lambda: time.monotonic_ns() + 3600 * 10**9) as watch:
            yield lambda: [
                event
                for record in watch.events()
                if (event := describe(record, names, 0)).hook.startswith("SOCK")
            ]
    finally:
        maps.close()


METRICS = "http://127.0.0.1:10249/metrics"


def scrape(lab: Lab, node: str) -> dict[tuple[str, ...], float]:
    """Return the metrics of a node's agent: values by the sample's name and the values of its labels."""
    done = lab.run(node, ["curl", "-sSf", "-m", "10", METRICS])
    assert done.returncode == 0, done.stderr
    return {
        (one.name, *one.labels.values()): one.value
        for family in text_string_to_metric_families(done.stdout)
        for one in family.samples
    }
