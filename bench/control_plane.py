# SPDX-License-Identifier: Apache-2.0
"""The control plane at scale: an agent fed by the API double, in a network namespace of its own.

``python -m bench control``, or alone for one size:
``python -m bench.control_plane [--services N] [--ports N] [--endpoints N] [--dual-stack] [--changes N]
[--seconds N]``

Measured, of the real agent process and with the real maps:

- cold start: nothing pinned, the compiler's cache empty, until the first sync is in the maps; and the same
  with the instructions in the cache,
- from its first request, and from its start with programs in place, to complete maps,
- one endpoint changed: from the moment the API server hands the event's bytes to the socket until the map
  has the new address,
- CPU and resident memory, idle and under 100 changes a second,
- a restart with everything pinned, until ready.

The API double runs beside it and has its lists ready beforehand, compressed as an API server sends them. CPU
times are the kernel's account of the agent's threads; what the clock shows suffers from whatever else runs.
The map is looked at every 0.1 ms, not without end: a busy neighbour would keep the agent from its CPU for the
scheduler's slice, 3 ms.
"""

from __future__ import annotations

import argparse
import compileall
import json
import multiprocessing
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from ipaddress import IPv4Address
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import lb
from bench.api_server import RATE, Size, api_server, wait_for
from bench.results import DIRECTORY, Result
from lb.config import Limits
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import BackendStateCode
from lb.datapath.programs.build import CACHE
from lb.datapath.programs.loader import load
from lb.rundir import RunDir

PAUSE = 0.2  # seconds between single changes: longer than an endpoint is held over a move
_INSIDE = "LBCTL_BENCH_NAMESPACE"
_NODE = "node1"

TARGETS = {
    (10_000, "first request to complete maps"): 2.0,
    (10_000, "one change, event to map, p50"): 2.0,
    (10_000, "one change, event to map, p99"): 5.0,
    (10_000, "CPU under 100 changes a second"): 5.0,
    (10_000, "memory after the start"): 120.0,
    (10_000, "CPU idle"): 0.2,
    (10_000, "restart to ready, everything pinned"): 1.5,
    (1, "cold start, compile included"): 1.5,
}
"""At most so much, by number of Services, of ten endpoints each; units as below."""
TARGET_OF_PORTS = 200.0
"""Milliseconds of CPU for one endpoint of a Service with 5,000 ports."""

KNOWN: dict[int, Sequence[tuple[str, float, str]]] = {
    1: [("first sync", 0.6, "s"), ("one change", 18.0, "ms"), ("memory", 59.0, "MB")],
    1_000: [("first sync", 0.83, "s"), ("one change", 210.0, "ms"), ("memory", 82.0, "MB")],
    10_000: [("first sync", 24.0, "s"), ("one change", 4500.0, "ms"), ("memory", 265.0, "MB")],
}
"""kube-proxy 1.36 with nftables, as measured on a machine of this kind: for comparison, not run here."""


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured value; low and high are its spread where it was measured several times."""

    name: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None


class AgentProcess:
    """The agent, and what the kernel accounts to it."""

    def __init__(
        self, instance: str, kubeconfig: Path, directory: Path, limits: Limits, *, cold: bool = False
    ) -> None:
        self._ready = directory / "ready"
        self._ready.unlink(missing_ok=True)
        # An empty directory in the place of the compiler's cache, for this process alone.
        cover = f'mkdir -p {CACHE} && mount -t tmpfs none {CACHE} && exec "$@"'
        argv = ["unshare", "--mount", "sh", "-c", cover, "sh"] if cold else []
        argv += [sys.executable, "-m", "lb", "run", "--source=kubernetes", f"--kubeconfig={kubeconfig}"]
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
        return time.clock_gettime(~self.process.pid << 3 | 2)  # clock_getcpuclockid(3), which Python lacks

    def memory_mb(self, field: str) -> float:
        """Return VmRSS, VmHWM or RssAnon in MB."""
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) * 1024 / 1e6
        raise KeyError(field)

    def stop(self) -> None:
        """End the agent; done already is no error."""
        self.process.terminate()
        self.process.wait(30)
        self._log.close()


def serving(agent: AgentProcess, pins: Pins, pipe: Connection, size: Size, seconds: float) -> list[Figure]:
    """Measure an agent that has just written its first sync."""
    maps = KernelMaps(pins.maps)
    for version in size.versions:
        in_use = maps.array(f"backends{version}")["state"] != BackendStateCode.FREE
        vips = size.services * (size.ports + 1)  # each address as a whole, too
        assert len(maps.read(f"vips{version}")[0]) == vips
        assert int(np.count_nonzero(in_use)) == size.services * size.ports * size.endpoints
    figures = [Figure("memory after the start", agent.memory_mb("VmRSS"), "MB")]
    figures.append(Figure("of it anonymous", agent.memory_mb("RssAnon"), "MB"))
    figures += idle(agent, seconds)
    before = agent.cpu_seconds()
    figures += single_changes(pipe, maps.array("backends4"), size)
    figures.append(Figure("CPU of one change", (agent.cpu_seconds() - before) / size.changes * 1e3, "ms"))
    if size.ports == 1:
        figures += under_load(pipe, agent, seconds)
    before = agent.cpu_seconds()
    pipe.send("relist")
    pipe.recv()
    time.sleep(1.0)  # until what was read has been compared
    figures.append(Figure("CPU of a relist", agent.cpu_seconds() - before, "s"))
    figures.append(Figure("memory after a relist", agent.memory_mb("VmRSS"), "MB"))
    figures.append(Figure("memory, peak", agent.memory_mb("VmHWM"), "MB"))
    maps.close()
    return figures


def cold_starts(start: Callable[[bool], AgentProcess], pins: Pins, limits: Limits) -> list[Figure]:
    """Measure starts of an agent that finds nothing pinned; nothing is afterwards."""
    figures = []
    for cold, name in ((True, "compile included"), (False, "instructions in the cache")):
        if not cold:
            load(pins, limits)  # fills the cache
            unload(pins)
        agent = start(cold)
        try:
            figures.append(Figure(f"cold start, {name}", agent.wait_ready(), "s"))
        finally:
            agent.stop()
            unload(pins)
    return figures


def measure_size(size: Size, seconds: float) -> list[Figure]:
    """Measure one size of a cluster; the caller has made the network namespace."""
    compileall.compile_dir(Path(lb.__file__).parent, quiet=1)  # as an installation does
    limits = size.limits()
    pins = Pins(f"bench.{os.getpid()}")
    pipe, other = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=api_server, args=(other, size), daemon=True)
    server.start()
    url = pipe.recv()
    agent: AgentProcess | None = None

    def start(cold: bool = False) -> AgentProcess:
        pipe.send("lists")
        pipe.recv()
        return AgentProcess(pins.instance, kubeconfig, directory, limits, cold=cold)

    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        kubeconfig = directory / "kubeconfig"
        kubeconfig.write_text(json.dumps(kubeconfig_for(url)))
        figures = []
        try:
            figures += cold_starts(start, pins, limits)
            load(pins, limits)
            agent = start()
            took = agent.wait_ready()
            now = time.monotonic()
            pipe.send("begun")
            figures.append(Figure("first request to complete maps", now - pipe.recv(), "s"))
            figures.append(Figure("start to complete maps", took, "s"))
            figures.append(Figure("CPU of that", agent.cpu_seconds(), "s"))
            figures += serving(agent, pins, pipe, size, seconds)
            agent.stop()
            agent = start()
            figures.append(Figure("restart to ready, everything pinned", agent.wait_ready(), "s"))
            figures.append(Figure("CPU of the restart", agent.cpu_seconds(), "s"))
            figures.append(Figure("memory after the restart", agent.memory_mb("VmRSS"), "MB"))
            agent.stop()
            most = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
            figures.append(Figure("largest process, compiler included", most, "MB"))
        finally:
            if agent is not None:
                agent.stop()
            pipe.send(None)
            server.join(10)
            unload(pins)
            RunDir(pins.instance).remove()
    return figures


def measure(quick: bool) -> list[Result]:
    """Measure several sizes, one also dual-stack, each in a process and a network namespace of its own.

    Raises
    ------
    subprocess.CalledProcessError: one of them failed.
    """
    rounds_of: dict[Size, int] = {Size(1, 10, 30): 1, Size(1_000, 10, 30): 1}
    if not quick:
        rounds_of = {
            Size(1, 10, 100): 3,
            Size(1_000, 10, 100): 3,
            Size(10_000, 10, 100): 5,
            Size(10_000, 10, 100, dual=True): 1,
            Size(30_000, 10, 100): 1,
            Size(1, 10, 20, ports=5_000): 3,
        }
    found: list[Result] = []
    for size, rounds in rounds_of.items():
        values: dict[tuple[str, str], list[float]] = {}
        for _ in range(rounds):
            for figure in in_a_process(size, 3.0 if quick else 10.0):
                values.setdefault((figure["name"], figure["unit"]), []).append(figure["value"])
        section = f"control plane, {size.services:,} Services" + (", dual-stack" if size.dual else "")
        section += f" of {size.ports:,} ports" if size.ports > 1 else ""
        for (name, unit), of_rounds in values.items():
            target = target_of(size, name)
            found.append(Result.of(f"{section}: {name}", of_rounds, unit, at_most=target))
        for name, value, unit in () if size.dual or size.ports > 1 else KNOWN.get(size.services, ()):
            found.append(Result.of(f"{section}: kube-proxy with nftables, known: {name}", [value], unit))
    return found


def target_of(size: Size, name: str) -> float | None:
    """Return what a figure is to be at most, None where nothing is said."""
    if size.ports > 1:
        return TARGET_OF_PORTS if (size.ports, name) == (5_000, "CPU of one change") else None
    return None if size.dual or size.endpoints != 10 else TARGETS.get((size.services, name))


def in_a_process(size: Size, seconds: float) -> list[dict[str, Any]]:
    """Measure one size in a process and a network namespace of its own; return the figures as in JSON."""
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "figures.json"
        argv = [sys.executable, "-m", "bench.control_plane", "--output", str(output)]
        argv += [f"--services={size.services}", f"--endpoints={size.endpoints}", f"--ports={size.ports}"]
        argv += [f"--changes={size.changes}", f"--seconds={seconds}"]
        argv += ["--dual-stack"] if size.dual else []
        subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)
        figures: list[dict[str, Any]] = json.loads(output.read_text())["figures"]
        return figures


def idle(agent: AgentProcess, seconds: float) -> list[Figure]:
    """Measure the CPU of an agent that nothing happens to."""
    time.sleep(2.0)
    before = agent.cpu_seconds()
    time.sleep(seconds)
    used = (agent.cpu_seconds() - before) / seconds * 100
    return [Figure("CPU idle", used, "% of a core")]


def single_changes(pipe: Connection, slots: NDArray[Any], size: Size) -> list[Figure]:
    """Measure one change at a time, from the event's bytes to the map."""
    latencies = []
    # New backends get the slots that have never been used, one after the other.
    first = int(np.flatnonzero(slots["state"])[-1])
    room = slots["address"][first : first + (size.changes + 2) * size.ports]
    for number in range(size.changes):
        pipe.send(number * 7919 % size.services)
        wanted = int(IPv4Address(pipe.recv()))
        seen = wait_for(lambda wanted=wanted: bool((room == wanted).any()))  # type: ignore[misc]
        latencies.append((seen - pipe.recv()) * 1e3)
        time.sleep(PAUSE)
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
    parser.add_argument("--ports", type=int, default=1, help="of each Service")
    parser.add_argument("--dual-stack", action="store_true", help="Services and endpoints of both families")
    parser.add_argument("--changes", type=int, default=100, help="single changes to time")
    parser.add_argument("--seconds", type=float, default=10.0, help="of idling, and of load")
    parser.add_argument("--output", type=Path, default=DIRECTORY / "control_plane.json")
    args = parser.parse_args()
    in_own_namespace()
    resource.setrlimit(resource.RLIMIT_NOFILE, (4096, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    size = Size(args.services, args.endpoints, args.changes, args.dual_stack, args.ports)
    figures = measure_size(size, args.seconds)
    print(
        f"{args.services} Services x {args.ports} ports x {args.endpoints} endpoints"
        f"{', dual-stack' if size.dual else ''}"
    )
    for figure in figures:
        spread = "" if figure.low is None else f"  ({figure.low:.2f} to {figure.high:.2f})"
        target = target_of(size, figure.name)
        verdict = "met" if target is not None and figure.value <= target else "MISSED"
        goal = "" if target is None else f"  at most {target:g}: {verdict}"
        print(f"  {figure.name:<40} {figure.value:9.2f} {figure.unit}{spread}{goal}")
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
