# SPDX-License-Identifier: Apache-2.0
"""Traffic through a node in network namespaces: this load balancer, none at all, and kube-proxy's rules.

The limit is the direct path to the pods, with no load balancer and no netfilter hook in that node's
namespace. Each contender has a node, clients and servers of its own; they take turns, workload by workload
and round by round, and every ratio is one to the limit of its own round. The load and the servers (traffic.c)
share the machine's CPUs with what is measured, so CPU time for each operation, of the whole machine, stands
beside the rates.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.contenders import CLUSTER_IP, CONTENDERS, LOAD_BALANCER, NODE_PORT, PORT, Contender
from bench.results import Result
from bench.topology import NODE, PODS, TARGET_PORT, Topology
from lb.lab import cgroups

SERVICES = (1, 1_000, 10_000)
_LIMIT = "direct"
_WARM_UP_MS = 50
_SERVERS_TURN = 5.0  # seconds in which some datagram must have been read


@dataclass(frozen=True, slots=True)
class Workload:
    """A workload of traffic.c: processes that generate it, and a target in place of the contender's own.

    unit is that of its rate: per operations of them a second make one.
    """

    name: str
    mode: str
    processes: int
    unit: str = "1/s"
    per: float = 1
    target: float | None = None
    latency: bool = False


WORKLOADS = (
    Workload("connect latency", "connect", 1, latency=True),
    Workload("new connections", "connect", 4),
    Workload("requests on kept connections", "requests", 4),
    Workload("UDP echo", "echo", 4),
    Workload("small UDP one way", "datagrams", 2),
    Workload("bulk TCP, one stream", "bulk", 1, "MB/s", 1e6, 0.97),
)


@dataclass(frozen=True, slots=True)
class Way:
    """Who talks to what: inside is a client in a pod of the node, outside one on its uplink's segment."""

    name: str
    inside: bool
    vip: str


WAYS = (
    Way("pod to clusterIP", True, f"{CLUSTER_IP}:{PORT}"),
    Way("outside to NodePort", False, f"{NODE}:{NODE_PORT}"),
    Way("outside to load balancer", False, f"{LOAD_BALANCER}:{PORT}"),
)


@dataclass(frozen=True, slots=True)
class Round:
    """What one run of a workload gave; the latencies are those of connections, and else 0."""

    rate: float
    cpu_us: float
    p50_us: float
    p99_us: float


Found = dict[tuple[str, str, str], list[Round]]
"""The rounds by way, workload and contender."""


def build(directory: Path) -> Path:
    """Compile traffic.c; RuntimeError with the compiler's words."""
    program = directory / "traffic"
    source = Path(__file__).with_name("traffic.c")
    done = subprocess.run(["cc", "-O2", "-o", program, source], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cc refused {source}:\n{done.stderr}")
    return program


def _busy_us() -> float:
    """Return the CPU time that the machine has spent on anything, in microseconds."""
    user, nice, system, _idle, _wait, irq, softirq = map(
        int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:8]
    )
    return (user + nice + system + irq + softirq) * 1e6 / os.sysconf("SC_CLK_TCK")


def measure_one(
    program: Path,
    topology: Topology,
    workload: Workload,
    targets: Sequence[str],
    *,
    inside: bool,
    millis: int,
) -> Round:
    """Run a workload once, for so many milliseconds, from a pod of the node or from outside.

    Raises
    ------
    RuntimeError: it failed, or nothing came through.
    """
    argv = [str(program), workload.mode, str(millis), str(workload.processes), *targets]
    received, busy = topology.datagrams_received(), _busy_us()
    command = cgroups.command(topology.cgroup, argv) if topology.cgroup else argv
    with (topology.pod if inside else topology.outside).entered():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    busy = _busy_us() - busy
    if done.returncode:
        raise RuntimeError(f"{' '.join(argv)}: {done.stderr.strip()}")
    lines = done.stdout.splitlines()
    operations, nanoseconds = map(int, lines[0].split())
    if workload.mode == "datagrams":
        # Where rounds are short and the machine is busy, the servers may not have had the CPU yet.
        deadline = time.monotonic() + _SERVERS_TURN
        while not (operations := topology.datagrams_received() - received) and time.monotonic() < deadline:
            time.sleep(0.01)
    if not operations:
        raise RuntimeError(f"{' '.join(argv)}: nothing came through")
    times = sorted(map(int, lines[1:])) or [0]
    return Round(
        rate=operations / workload.per / nanoseconds * 1e9,
        cpu_us=busy / operations * workload.per,
        p50_us=times[len(times) // 2] / 1e3,
        p99_us=times[len(times) * 99 // 100] / 1e3,
    )


def measure(
    quick: bool = False,
    *,
    rounds: int = 0,
    millis: int = 0,
    services: Sequence[int] = (),
    ways: Sequence[Way] = (),
) -> list[Result]:
    """Measure every way, workload and contender; how often, long and much as quick says, unless told.

    Raises
    ------
    RuntimeError: a contender, the load or a server failed.
    """
    rounds, millis = rounds or (3 if quick else 7), millis or (150 if quick else 600)
    services = services or ((1,) if quick else SERVICES)
    ways = ways or (WAYS[:2] if quick else WAYS)
    found: Found = {}
    with contextlib.ExitStack() as stack:
        program = build(Path(stack.enter_context(tempfile.TemporaryDirectory())))
        nodes = list(_entrants(program, services, stack))
        for number, way, workload in itertools.product(range(rounds + 1), ways, WORKLOADS):
            for entrant in nodes:
                if not entrant.serves(way):
                    continue
                name, topology = entrant.name, entrant.topology
                targets = [f"{pod}:{TARGET_PORT}" for pod in PODS] if name == _LIMIT else [way.vip]
                # The first round is there to warm up.
                took = millis if number else _WARM_UP_MS
                one = measure_one(program, topology, workload, targets, inside=way.inside, millis=took)
                if number:
                    found.setdefault((way.name, workload.name, name), []).append(one)
        return list(_results(found, nodes, ways, services))


@dataclass(frozen=True, slots=True)
class _Entrant:
    """A contender with so many Services, on its node."""

    name: str
    contender: Contender
    topology: Topology

    def serves(self, way: Way) -> bool:
        return self.contender.inside if way.inside else self.contender.outside


def _entrants(program: Path, services: Sequence[int], stack: contextlib.ExitStack) -> Iterator[_Entrant]:
    """Yield the limit, then the others."""
    nobody = Contender(lambda _topology, _stack, _services: None)
    yield _Entrant(_LIMIT, nobody, stack.enter_context(Topology(program)))
    for name, contender in CONTENDERS.items():
        for count in services if contender.always else services[-1:]:
            topology = stack.enter_context(Topology(program))
            begun = time.monotonic()
            contender.enter(topology, stack, count)
            print(f"  {_named(name, count)}: set up in {time.monotonic() - begun:.1f} s", flush=True)
            yield _Entrant(_named(name, count), contender, topology)


def _named(contender: str, services: int) -> str:
    return f"{contender}, {services:,} Service{'s' if services > 1 else ''}"


def _results(
    found: Found, entrants: Sequence[_Entrant], ways: Sequence[Way], services: Sequence[int]
) -> Iterator[Result]:
    targets = {entrant.name: entrant.contender.target for entrant in entrants}
    for way, workload in itertools.product(ways, WORKLOADS):
        series = {
            entrant.name: found[way.name, workload.name, entrant.name]
            for entrant in entrants
            if entrant.serves(way)
        }
        where = f"traffic, {way.name}, {workload.name}"
        each = workload.unit.removesuffix("/s").replace("1", "operation")
        for name, rounds in series.items():
            if workload.latency:
                yield Result.of(f"{where}, p50: {name}", [one.p50_us for one in rounds], "µs")
            else:
                yield Result.of(f"{where}, rate: {name}", [one.rate for one in rounds], workload.unit)
        for name, rounds in series.items():
            if workload.latency:
                yield Result.of(f"{where}, p99: {name}", [one.p99_us for one in rounds], "µs")
            else:
                yield Result.of(f"{where}, CPU for each {each}: {name}", [one.cpu_us for one in rounds], "µs")
        yield from _ratios(where, workload, series, targets, services)


def _ratios(
    where: str,
    workload: Workload,
    series: Mapping[str, Sequence[Round]],
    targets: Mapping[str, float | None],
    services: Sequence[int],
) -> Iterator[Result]:
    """Yield what is held against targets: more is better; of a latency the inverse is taken."""

    def ratios(name: str, to: str) -> list[float]:
        pairs = zip(series[name], series[to], strict=True)
        return [b.p50_us / a.p50_us if workload.latency else a.rate / b.rate for a, b in pairs]

    for name in series:
        if name != _LIMIT:
            target = targets[name] and (workload.target or targets[name])
            yield Result.of(
                f"{where}, to the limit: {name}", ratios(name, _LIMIT), "x limit", at_least=target
            )
    for count in services:
        both = ratios(_named("ours", count), _named("nftables", count))
        yield Result.of(f"{where}, to nftables: {_named('ours', count)}", both, "x nftables", at_least=1)
    if len(services) > 1:
        most, one = _named("ours", services[-1]), _named("ours", services[0])
        yield Result.of(f"{where}, to one Service: {most}", ratios(most, one), "x one", at_least=0.98)
