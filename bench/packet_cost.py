# SPDX-License-Identifier: Apache-2.0
"""What a packet costs in the programs: BPF_PROG_TEST_RUN on each path, beside the least that one could do.

Every figure is the CPU time of one run as the kernel's test run would have it if the packet stayed what it
is: an empty program's, plus what this path takes more than an empty program behind the same feeder, which
restores the packet (cost.h). The floor parses, looks up one hash map, and sends. Each ratio is one
of four measurements within a tenth of a second: the machines at hand flip between two speeds. The counters
prove that every single run took the path that is named; a run that did not is an error.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from ipaddress import IPv4Address, ip_address

from bench.feeder import Feeder, Traffic
from bench.results import Result
from lb.config import Limits
from lb.datapath.kernel.ringbuf import RingBuffer
from lb.datapath.maps import layouts
from lb.datapath.programs.loader import SHADOW_PROGRAMS
from lb.model import Protocol
from lb.plan.types import ServicePlan, VipKind
from tests import packets as p
from tests.packet.harness import TC_UPLINK_IN, TC_UPLINK_OUT, XDP
from tests.packet.plans import TARGET_PORT, VIPS, service

SERVICES = 30_000
LIMITS = Limits()  # of a node that nobody has tuned

_HOOKS = {"XDP": XDP, "tc": TC_UPLINK_IN}
# Many clients, and clients that are seen but once: nothing is set in the bits that number them.
_CLIENTS, _NEWCOMERS = "10.64.0.0", "10.128.0.0"
_NEWCOMERS_PREFIX = 10
_ELSEWHERE, _ELSEWHERE_PORT = "192.0.2.99", 443
_CLUSTER_NET = "10.96.0.0"
_HERE, _AFFINITY, _AWAY = VipKind.LOAD_BALANCER, VipKind.EXTERNAL_IP, VipKind.CLUSTER_IP
_PAYLOAD = b"x" * 32
_CROWD = 65_536
_IN_RING = 8192 // 2  # records of shadow mode that the ring has room for, by far


@dataclass(slots=True)
class Case:
    """One path.

    Attributes
    ----------
    reason: what is counted for each of its packets.
    target: as a multiple of the floor.
    after: packets that must have passed before, such as those that replies answer.
    newcomers: each packet creates a flow; they are forgotten afterwards.
    full: the flow table is full, so that each new flow evicts another.
    services: how many there are; beside: the case that differs from this one in having one.
    costs, ratios: of each round, in ns and as a multiple of the floor.
    """

    name: str
    traffic: Traffic
    reason: str
    target: float | None = None
    after: Traffic | None = None
    newcomers: bool = False
    full: bool = False
    services: int = 1
    beside: str = ""
    costs: list[float] = field(default_factory=list)
    ratios: list[float] = field(default_factory=list)


def _request(
    program: str, vip: tuple[str, int], clients: int = 1, *, udp: bool = False, syn: bool = False
) -> Traffic:
    client = (_NEWCOMERS if syn else _CLIENTS, p.CLIENT_PORT)
    if udp:
        frame = p.udp(p.FROM_CLIENT, client, vip, _PAYLOAD)
    else:
        frame = p.tcp(p.FROM_CLIENT, client, vip, "S" if syn else "A", _PAYLOAD)
    return Traffic(program, frame, clients, version=p.version())


def _reply(source: str, clients: int) -> Traffic:
    client = (_CLIENTS, p.moved(p.CLIENT_PORT))
    frame = p.tcp(p.TO_CLIENT, (source, TARGET_PORT), client, "A", _PAYLOAD)
    return Traffic(TC_UPLINK_OUT, frame, clients, to_clients=True)


def _flows(count: int) -> str:
    return f"{count:,} flow{'s' if count > 1 else ''}"


def cases(hook: str) -> Iterator[Case]:
    """Yield what both hooks do."""
    program, here = _HOOKS[hook], VIPS[_HERE]
    stranger, known = _request(program, (_ELSEWHERE, _ELSEWHERE_PORT)), _request(program, here)
    others = f"{SERVICES:,} Services"
    yield (one := Case(f"{hook}: not a VIP", stranger, "NOT_VIP", 1.1))
    yield Case(f"{one.name}, {others}", stranger, "NOT_VIP", services=SERVICES, beside=one.name)
    for clients, target in ((1024, 1.9), (_CROWD, 4.0), (1, 1.8)):
        name = f"{hook}: established TCP, {_flows(clients)}"
        yield (one := Case(name, _request(program, here, clients), "FLOW_HIT", target))
    yield Case(f"{one.name}, {others}", known, "FLOW_HIT", services=SERVICES, beside=one.name)
    yield Case(f"{hook}: UDP, existing flow", _request(program, here, udp=True), "FLOW_HIT", 1.8)
    with p.family(6):
        yield Case(f"{hook}: IPv6, established TCP", _request(program, here), "FLOW_HIT", 2.2)
    yield Case(f"{hook}: established TCP, sent to another node", _request(program, VIPS[_AWAY]), "FLOW_HIT")
    if hook == "tc":
        goals: tuple[tuple[int, float | None], ...] = ((1, 1.6), (1024, None), (_CROWD, None))
        for clients, goal in goals:
            before = _request(program, here, clients)
            reply = _reply(p.BACKEND_LOCAL, clients)
            yield Case(f"{hook}: reply, revNAT, {_flows(clients)}", reply, "REPLY", goal, after=before)
        yield Case(f"{hook}: not a reply", _reply(p.POD_CLIENT, 1), "NOT_VIP")
    many = 1 << (32 - _NEWCOMERS_PREFIX)
    first = _request(program, here, many, syn=True)
    sticky = _request(program, VIPS[_AFFINITY], many, syn=True)
    yield Case(f"{hook}: first packet", first, "NEW_LOCAL", 7, newcomers=True)
    yield Case(f"{hook}: first packet, ClientIP affinity", sticky, "NEW_LOCAL", 8, newcomers=True)
    yield Case(f"{hook}: first packet, flow table full", first, "NEW_LOCAL", newcomers=True, full=True)


def shadow_cases() -> Iterator[Case]:
    """Yield what shadow mode's programs do: what they decide is written down while the ring has room."""
    here, many = VIPS[_HERE], 1 << (32 - _NEWCOMERS_PREFIX)
    program = TC_UPLINK_IN
    yield Case("shadow: not a VIP", _request(program, (_ELSEWHERE, _ELSEWHERE_PORT)), "NOT_VIP")
    yield Case("shadow: established TCP", _request(program, here, 1024), "NOT_VIP")
    yield Case("shadow: UDP, existing flow", _request(program, here, udp=True), "NOT_VIP")
    yield Case("shadow: reply", _reply(p.BACKEND_LOCAL, 1024), "NOT_VIP")
    first = _request(program, here, many, syn=True)
    yield Case("shadow: first packet", first, "NEW_LOCAL", newcomers=True)


def _plans() -> Iterator[ServicePlan]:
    """Yield Services with one backend each: which one is chosen does not matter, that one is does."""
    for version in layouts.FAMILIES:
        with p.family(version):
            for name, backend, kind, protocol, seconds in (
                ("here", p.BACKEND_LOCAL, _HERE, Protocol.TCP, 0),
                ("udp", p.BACKEND_LOCAL, _HERE, Protocol.UDP, 0),
                ("affinity", p.BACKEND_LOCAL, _AFFINITY, Protocol.TCP, 10_800),
                ("away", p.BACKEND_REMOTE, _AWAY, Protocol.TCP, 0),
            ):
                yield service(
                    backend,
                    name=f"{name}-{version}",
                    protocol=protocol,
                    affinity_seconds=seconds,
                    vips=[kind],
                    whole=False,
                )


def set_up(feeder: Feeder) -> None:
    """Let there be the Services of the cases, and no flow."""
    with p.family(6):
        wide = ip_address(p.here(_CLUSTER_NET)).packed
    nets = {
        4: (int(ip_address(_CLUSTER_NET)), 0xFFF0_0000),
        6: (wide[:6] + bytes(10), b"\xff" * 6 + bytes(10)),
    }
    feeder.set_up(list(_plans()), nets)


def measure_case(feeder: Feeder, case: Case, repeat: int, limits: Limits = LIMITS) -> None:
    """Take one round of a case: the floor, the empty programs and the path within a moment."""
    traffic = case.traffic
    floor_of = _request(_HOOKS["XDP" if traffic.kind == "xdp" else "tc"], VIPS[_HERE])
    runs = repeat
    if case.services > 1:
        feeder.add_idle_services(case.services - 1)
    if case.after:
        feeder.run(case.after, traffic.clients)
    if not case.newcomers:
        feeder.run(traffic, max(traffic.clients, 64))
    elif not case.full:
        runs = min(repeat, limits.flows // 16)  # two entries each, and far from full
    floor = feeder.run_alone("floor", floor_of, repeat)
    empty = feeder.run_alone("empty", floor_of, repeat)
    feed = feeder.run(traffic, repeat, instead="empty")
    if case.full:
        feeder.run(traffic, limits.flows)
    strays = max(8, runs // 100) if traffic.clients > 1 else 0  # of a few full buckets
    path = feeder.proved(traffic, case.reason, runs, strays=strays, go_on=case.full)
    case.costs.append(empty + path - feed)
    case.ratios.append(case.costs[-1] / floor)
    if case.newcomers:
        feeder.forget(int(IPv4Address(_NEWCOMERS)), _NEWCOMERS_PREFIX)
    if case.services > 1:
        feeder.remove_idle_services()


def measure(quick: bool = False, *, rounds: int = 0, repeat: int = 0, only: str = "") -> list[Result]:
    """Measure every path; rounds and runs of each as quick says, unless told.

    only: those whose names hold this.

    Raises
    ------
    RuntimeError: packets took another path than the one that is named.
    """
    rounds = rounds or (5 if quick else 21)
    repeat = repeat or (1 << 15 if quick else 1 << 17)
    chosen = [case for hook in _HOOKS for case in cases(hook) if only in case.name]
    beside = [case for case in shadow_cases() if only in case.name]
    fixed: dict[str, list[float]] = {}
    with Feeder(LIMITS) as feeder:
        for _ in range(rounds):
            set_up(feeder)
            for hook, program in _HOOKS.items():
                web = _request(program, VIPS[_HERE])
                floor, empty = (feeder.run_alone(name, web, repeat) for name in ("floor", "empty"))
                fed = feeder.run(web, repeat, instead="floor") - feeder.run(web, repeat, instead="empty")
                fixed.setdefault(f"{hook}: empty program", []).append(empty)
                fixed.setdefault(f"{hook}: floor", []).append(floor)
                fixed.setdefault(f"{hook}: floor, measured as the paths are", []).append(empty + fed)
            for case in chosen:
                measure_case(feeder, case, repeat)
    if beside:
        with Feeder(LIMITS, SHADOW_PROGRAMS) as feeder:
            for _ in range(rounds):
                set_up(feeder)
                for case in beside:
                    RingBuffer(feeder.datapath.maps.fd("events")).close()  # nobody has read it: there is room
                    measure_case(feeder, case, min(repeat, _IN_RING) if case.newcomers else repeat)
    return _results(fixed, [*chosen, *beside])


def _results(fixed: dict[str, list[float]], cases: list[Case]) -> list[Result]:
    cases = sorted(cases, key=lambda case: case.name.startswith("tc"))
    results = [Result.of(f"packet, ns, {name}", values, "ns") for name, values in fixed.items()]
    results += [Result.of(f"packet, ns, {case.name}", case.costs, "ns") for case in cases]
    results += [
        Result.of(f"packet, {case.name}", case.ratios, "x floor", at_most=case.target) for case in cases
    ]
    by_name = {case.name: case for case in cases}
    for case in cases:
        if case.beside in by_name:
            pairs = zip(case.ratios, by_name[case.beside].ratios, strict=True)
            more = [100 * (many / few - 1) for many, few in pairs]
            results.append(Result.of(f"packet, {case.name} instead of 1", more, "% more", at_most=5))
    return results
