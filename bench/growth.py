# SPDX-License-Identifier: Apache-2.0
"""How figures grow: a packet with Services and with flows; the agent with Services, endpoints and ports.

Each figure is one point of a curve: ``growth, WHAT, LINE: NUMBER``. A curve that bends is what to look for.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bench import control_plane, packet_cost
from bench.api_server import Size
from bench.feeder import Feeder
from bench.packet_cost import SERVICES, Case
from bench.results import Result
from lb.config import Limits

_LIMITS = Limits(vips=1 << 18, flows=1 << 22)
_SERVICES = (1, 100, 10_000, 100_000)
_FLOWS = tuple(1 << bits for bits in (0, 8, 12, 14, 16, 18))
"""Those of TCP stay while UDP's come: both take a quarter of the slots."""
_SIZES = {
    "Services of 10 endpoints": [Size(number, 10, 20) for number in (1, 100, 1_000, 10_000, 30_000, 100_000)],
    "endpoints of a Service": [Size(1, number, 20) for number in (10, 100, 1_000, 10_000)],
    "ports of a Service with 10 endpoints": [Size(1, 10, 20, ports=n) for n in (1, 10, 100, 1_000, 5_000)],
}
_AGENTS = {"CPU of that": "start", "CPU of one change": "one change", "memory after the start": "memory"}


def _cases() -> Iterator[tuple[str, int, Case]]:
    """Yield the points of the curves of packets: which curve, where on it, and what to run."""
    for hook in ("XDP", "tc"):
        by_name = {case.name: case for case in packet_cost.cases(hook)}
        for path in ("not a VIP", "established TCP, 1 flow"):
            case = by_name[f"{hook}: {path}, {SERVICES:,} Services"]
            for number in _SERVICES:
                yield f"Services, {hook}, {path}", number, replace(case, services=number, costs=[], ratios=[])
        for path in ("established TCP, 1 flow", "UDP, existing flow"):
            case = by_name[f"{hook}: {path}"]
            for number in _FLOWS:
                traffic = replace(case.traffic, clients=number)
                yield (
                    f"flows, {hook}, {path.removesuffix(', 1 flow')}",
                    number,
                    replace(case, traffic=traffic, costs=[], ratios=[]),
                )


def measure(quick: bool) -> list[Result]:
    """Measure all points in turn, round by round; quick: those of packets alone.

    Raises
    ------
    RuntimeError: packets took another path than the one that is named.
    subprocess.CalledProcessError: an agent failed.
    """
    points = list(_cases())
    with Feeder(_LIMITS) as feeder:
        for _ in range(1 if quick else 9):
            packet_cost.set_up(feeder)
            for _, _, case in points:
                packet_cost.measure_case(feeder, case, 1 << (15 if quick else 17), _LIMITS)
    found = [Result.of(f"growth, {line}: {at:,}", case.ratios, "x floor") for line, at, case in points]
    return found if quick else found + list(_of_agents())


def _of_agents() -> Iterator[Result]:
    for what, sizes in _SIZES.items():
        for size in sizes:
            at = max(size.services, size.endpoints if what.startswith("endpoints") else 1, size.ports)
            for figure in control_plane.in_a_process(size, 3.0):
                if line := _AGENTS.get(figure["name"]):
                    yield Result.of(f"growth, {what}, {line}: {at:,}", [figure["value"]], figure["unit"])
