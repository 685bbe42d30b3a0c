"""The control plane at scale: an agent fed by the API double, in a network namespace of its own.

``python -m bench.control_plane [--services N] [--endpoints N] [--changes N] [--seconds N]``

Measured, of the real agent process and with the real maps:

- from its start (programs in place) to complete maps,
- one endpoint changed: from the moment the API server hands the event's bytes to the socket until the map
  has the new address,
- CPU and resident memory, idle and under 100 changes a second.

Results go to stdout as a table and to ``bench/results/control_plane.json``.
"""

from __future__ import annotations

import argparse
import gc
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.cluster import fill, slice_of
from lb.config import Limits
from lb.datapath.kernel_maps import KernelMaps
from lb.datapath.layouts import BackendStateCode
from lb.datapath.loader import load
from lb.datapath.pins import Pins, unload
from lb.rundir import RunDir
from tests.kube.double import ApiDouble

RESULTS = Path(__file__).parent / "results" / "control_plane.json"
RATE = 100  # changes a second under load
_INSIDE = "LBCTL_BENCH_NAMESPACE"
_NODE = "node1"


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; low and high are its spread where it was measured several times."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None


def api_server(pipe: Connection, services: int, endpoints: int) -> None:
    """Be the API server: N changes an endpoint of Service N, ``("rate", seconds)`` 100 a second."""
    with ApiDouble() as double:
        fill(double, services, endpoints)
        gc.freeze()  # the pauses of the double's own collections are not what is measured
        pipe.send(double.url)
        generation = 0
        while (word := pipe.recv()) is not None:
            generation += 1
            if isinstance(word, int):
                item = slice_of(word, endpoints, generation)
                pipe.send((item["endpoints"][0]["addresses"][0], time.monotonic()))
                double.put(item)
                continue
            begun = time.monotonic()
            for number in range(int(word[1] * RATE)):
                time.sleep(max(0.0, begun + number / RATE - time.monotonic()))
                double.put(slice_of(number % services, endpoints, generation))
            pipe.send(time.monotonic() - begun)


class AgentProcess:
    """The agent, and what the kernel accounts to it."""

    def __init__(self, instance: str, kubeconfig: Path, directory: Path, limits: Limits) -> None:
        self._ready = directory / "ready"
        argv = [sys.executable, "-m", "lb", "run", "--source=kubernetes", f"--kubeconfig={kubeconfig}"]
        argv += [
            f"--node-name={_NODE}",
            f"--instance={instance}",
            "--uplink=up0",
            f"--ready-file={self._ready}",
        ]
        argv += [f"--limits-{name.replace('_', '-')}={value}" for name, value in limits.as_dict().items()]
        self._log = (directory / "log").open("w")
        self.begun = time.monotonic()
        self.process = subprocess.Popen(argv, stderr=self._log)

    def wait_ready(self) -> float:
        """Return the seconds from the start until the first sync was in the kernel."""
        while not self._ready.exists():
            if self.process.poll() is not None:
                raise RuntimeError(f"the agent ended: {Path(self._log.name).read_text()}")
            time.sleep(0.005)
        return time.monotonic() - self.begun

    def cpu_seconds(self) -> float:
        """Return the CPU time used so far, user and system."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory_mb(self, field: str) -> float:
        """Return VmRSS, VmHWM or RssAnon in MB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise KeyError(field)

    def stop(self) -> None:
        """End the agent."""
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


def wait_for(done: Callable[[], bool], seconds: float = 60.0) -> float:
    """Spin until done; return the time of that."""
    deadline = time.monotonic() + seconds
    while not done():
        if time.monotonic() > deadline:
            raise TimeoutError("the map does not follow")
    return time.monotonic()


def measure(services: int, endpoints: int, changes: int, seconds: float) -> list[Figure]:
    """Run it all; the caller has made the network namespace."""
    rows = 1 << max(16, (services * max(251, 128 * endpoints)).bit_length())
    backends = 1 << (services * (endpoints + 1) + changes).bit_length()
    limits = Limits(
        vips=max(2 * services, 1024), backends=backends, table_rows=rows, services=max(services, 1024)
    )
    pins = Pins(f"bench.{os.getpid()}")
    pipe, other = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(
        target=api_server, args=(other, services, endpoints), daemon=True
    )
    server.start()
    url = pipe.recv()
    agent: AgentProcess | None = None
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_for(url)))
        try:
            load(pins, limits)
            agent = AgentProcess(pins.instance, kubeconfig, directory, limits)
            figures = [Figure("start to complete maps", agent.wait_ready(), "s")]
            figures.append(Figure("CPU of that", agent.cpu_seconds(), "s"))
            maps = KernelMaps(pins.maps)
            slots = maps.array("backends4")
            in_use = slots["state"] != BackendStateCode.FREE
            assert len(maps.read("vips4")[0]) == 2 * services  # and each address as a whole
            assert int(np.count_nonzero(in_use)) == services * endpoints
            figures.append(Figure("memory after the start", agent.memory_mb("VmRSS"), "MB"))
            figures.append(Figure("of it anonymous", agent.memory_mb("RssAnon"), "MB"))
            figures += [*idle(agent, seconds), *single_changes(pipe, slots, services, changes)]
            figures += under_load(pipe, agent, seconds)
            figures.append(Figure("memory, peak", agent.memory_mb("VmHWM"), "MB"))
            maps.close()
        finally:
            if agent is not None:
                agent.stop()
            pipe.send(None)
            server.join(10)
            unload(pins)
            RunDir(pins.instance).remove()
    return figures


def idle(agent: AgentProcess, seconds: float) -> list[Figure]:
    """Measure the CPU of an agent that nothing happens to."""
    time.sleep(2.0)
    before = agent.cpu_seconds()
    time.sleep(seconds)
    return [Figure("CPU idle", (agent.cpu_seconds() - before) / seconds * 100, "% of a core")]


def single_changes(pipe: Connection, slots: NDArray[Any], services: int, changes: int) -> list[Figure]:
    """Measure one change at a time, from the event's bytes to the map."""
    latencies = []
    for number in range(changes):
        pipe.send(number * 7919 % services)
        address, sent = pipe.recv()
        wanted = int(IPv4Address(address))
        # Only slots that were free can take it; looking at the whole array each time is a fraction of a ms.
        seen = wait_for(lambda wanted=wanted: bool((slots["address"] == wanted).any()))  # type: ignore[misc]
        latencies.append((seen - sent) * 1e3)
        time.sleep(0.02)
    latencies.sort()
    low, high = latencies[len(latencies) // 20], latencies[-len(latencies) // 20 - 1]
    return [
        Figure("one change, event to map, p50", statistics.median(latencies), "ms", low, high),
        Figure(
            "one change, event to map, p99",
            latencies[min(len(latencies) - 1, len(latencies) * 99 // 100)],
            "ms",
        ),
    ]


def under_load(pipe: Connection, agent: AgentProcess, seconds: float) -> list[Figure]:
    """Measure CPU and memory under 100 changes a second."""
    before = agent.cpu_seconds()
    pipe.send(("rate", seconds))
    took = pipe.recv()
    used = agent.cpu_seconds() - before
    return [
        Figure(f"CPU under {RATE} changes a second", used / took * 100, "% of a core"),
        Figure(f"memory under {RATE} changes a second", agent.memory_mb("VmRSS"), "MB"),
    ]


def kubeconfig_for(url: str) -> dict[str, object]:
    """Return a kubeconfig for an API server without authentication."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "bench",
        "clusters": [{"name": "bench", "cluster": {"server": url}}],
        "users": [{"name": "bench", "user": {}}],
        "contexts": [{"name": "bench", "context": {"cluster": "bench", "user": "bench"}}],
    }


def in_own_namespace() -> None:
    """Go on in a new network namespace with a veth pair as the uplink: the machine's own stays as it is."""
    if _INSIDE not in os.environ:
        argv = ["unshare", "--net", sys.executable, "-m", "bench.control_plane", *sys.argv[1:]]
        os.execvpe("unshare", argv, {**os.environ, _INSIDE: "1"})
    for command in (
        "link set lo up",
        "link add up0 type veth peer name up1",
        "link set up0 up",
        "link set up1 up",
        "addr add 192.0.2.1/24 dev up0",
    ):
        subprocess.run(["ip", *command.split()], check=True)


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--services", type=int, default=10_000)
    parser.add_argument("--endpoints", type=int, default=10, help="of each Service")
    parser.add_argument("--changes", type=int, default=100, help="single changes to time")
    parser.add_argument("--seconds", type=float, default=10.0, help="of idling, and of load")
    parser.add_argument("--output", type=Path, default=RESULTS)
    args = parser.parse_args()
    in_own_namespace()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    figures = measure(args.services, args.endpoints, args.changes, args.seconds)
    print(f"{args.services} Services x {args.endpoints} endpoints")
    for figure in figures:
        spread = "" if figure.low is None else f"  ({figure.low:.2f} to {figure.high:.2f})"
        print(f"  {figure.name:<40} {figure.value:9.2f} {figure.unit}{spread}")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(
        json.dumps(
            {
                "services": args.services,
                "endpoints": args.endpoints,
                "figures": [asdict(figure) for figure in figures],
            },
            indent=1,
        )
        + "\n"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
