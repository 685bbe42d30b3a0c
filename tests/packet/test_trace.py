# SPDX-License-Identifier: Apache-2.0
"""``lbctl trace``: it names the cause that the programs have, and leaves the live state as it was."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator
from pathlib import Path

import pytest

from lb.config import SnatPorts
from lb.datapath.kernel import bpf
from lb.datapath.maps.layouts import FAMILIES, WatchFlag
from lb.datapath.maps.map_pins import read_rows
from lb.datapath.maps.map_table import MAP_SPECS
from lb.datapath.programs import build
from lb.datapath.programs.loader import serving
from lb.datapath.programs.rehearsal import PRIVATE, Shadow
from lb.datapath.view.watch import Watch
from lb.diagnose import frames, trace
from lb.diagnose.trace import EntryPoint, Traced
from lb.diagnose.trace_story import Side, render
from lb.errors import DatapathError
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import (
    OUTSIDE_INGRESS,
    TC_POD_IN,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
)
from tests.packet.plans import BUILD, NODE_PORT, TARGET_PORT, VIPS, service

Shadows = Callable[..., Shadow]
each_protocol = pytest.mark.parametrize("protocol", list(BUILD))
NOT_COMPARED = ("notes", "scratch", "events")  # the last is no table
"""A per-CPU note and work space: nothing of them outlives a packet."""


@pytest.fixture(scope="module")
def loaded_datapath() -> Iterator[Datapath]:
    """The programs of a node without direct return: each trace has them verified anew."""
    datapath = Datapath(programs=serving(direct=False, xdp=True))
    yield datapath
    datapath.close()


@pytest.fixture
def make_shadow(datapath: Datapath) -> Iterator[Shadows]:
    """Make copies of the bench's data plane as it is then; they are closed behind the test."""
    made: list[Shadow] = []

    def make(*entries: EntryPoint) -> Shadow:
        (directory,) = datapath.pins.builds()
        programs = {program for entry in entries for program, _ in entry.hooks}
        made.append(Shadow(datapath.pins, directory, programs, {p.version()}))
        return made[-1]

    yield make
    for each in made:
        each.close()


def state(datapath: Datapath) -> dict[str, bytes]:
    """Return the bytes of all that the programs write, but locks."""
    found = {}
    for name in PRIVATE:
        if name not in NOT_COMPARED:
            with bpf.obj_get(datapath.pins.maps / name) as fd:
                keys, values = read_rows(fd, MAP_SPECS[name])
                found[name] = keys.tobytes() + values.tobytes()
    return found


def outside(datapath: Datapath, *programs: str) -> EntryPoint:
    hooks = {XDP: (XDP, "xdp-generic"), TC_UPLINK_IN: (TC_UPLINK_IN, "tc ingress")}
    here = tuple(hooks[program] for program in programs or (TC_UPLINK_IN,))
    return EntryPoint("up0", datapath.uplink, p.NODE1_MAC, Side.OUTSIDE, here)


def inside(datapath: Datapath) -> EntryPoint:
    return EntryPoint("pod0", datapath.pod, p.POD_GATEWAY_MAC, Side.INSIDE, ((TC_POD_IN, "tc ingress"),))


def traced(datapath: Datapath, make_shadow: Shadows, entry: EntryPoint, *wanted: bytes) -> list[Traced]:
    """Trace frames one after the other; the live state must be the same afterwards."""
    before = state(datapath)
    shadow = make_shadow(entry)
    with datapath.namespace.entered():
        found = [trace.run(shadow, entry, frame) for frame in wanted]
    assert state(datapath) == before
    return found


def steps(one: Traced) -> dict[str, str]:
    return {line[2:11].strip(): line[12:] for line in render(one.evidence).splitlines()[1:] if line[2] != " "}


def test_trace_of_what_is_for_no_vip(datapath: Datapath, make_shadow: Shadows) -> None:
    frame = p.tcp(p.FROM_POD, (p.POD_CLIENT, p.CLIENT_PORT), (p.NOT_A_VIP, 80))
    (one,) = traced(datapath, make_shadow, inside(datapath), frame)
    assert one.evidence.outcome.reason == "NOT_VIP"
    assert steps(one)["VIP"].startswith("no Service has ")
    assert one.after == frame


@each_protocol
def test_trace_names_the_backend_that_the_packet_then_gets(
    datapath: Datapath, make_shadow: Shadows, protocol: Protocol
) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_LOCAL_2, p.BACKEND_REMOTE, protocol=protocol))
    ends = [(p.POD_CLIENT, port) for port in range(40_000, 40_005)]
    wanted = [BUILD[protocol](p.FROM_POD, each, VIPS[VipKind.CLUSTER_IP]) for each in ends]
    for frame, one in zip(wanted, traced(datapath, make_shadow, inside(datapath), *wanted), strict=True):
        told = steps(one)
        assert "clusterIP of default/web, port http" in told["VIP"]
        assert told["flow"] == "none known: a new connection"
        assert "3 backends are offered" in told["policy"]
        assert told["hash"] == "of addresses, ports and protocol: rendezvous among 3"
        real = datapath.run(TC_POD_IN, frame)
        p.assert_same(one.after, real.packet)
        assert one.evidence.made is not None
        assert one.evidence.outcome.reason == real.reason
        sent = frames.read(real.packet)
        assert sent is not None
        assert one.evidence.made.backend.address == sent.target


def test_trace_of_a_known_flow(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_LOCAL_2))
    ends = (p.POD_CLIENT, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP]
    real = datapath.run(TC_POD_IN, p.tcp(p.FROM_POD, *ends))
    (one,) = traced(datapath, make_shadow, inside(datapath), p.tcp(p.FROM_POD, *ends, "A"))
    assert one.evidence.outcome.reason == "FLOW_HIT"
    assert steps(one)["flow"].startswith("known, new, idle for ")
    sent = frames.read(real.packet)
    assert sent is not None
    assert steps(one)["backend"].startswith(sent.target)


def test_trace_of_a_capture_goes_on_where_its_last_packet_was(
    datapath: Datapath, make_shadow: Shadows
) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_LOCAL_2))
    ends = (p.POD_CLIENT, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP]
    wanted = [p.tcp(p.FROM_POD, *ends, flags) for flags in ("S", "A", "FA")]
    found = traced(datapath, make_shadow, inside(datapath), *wanted)
    assert [one.evidence.outcome.reason for one in found] == ["NEW_LOCAL", "FLOW_HIT", "FLOW_HIT"]


def test_trace_of_affinity(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, p.BACKEND_LOCAL_2, affinity_seconds=100))

    def frame(port: int) -> bytes:
        return p.tcp(p.FROM_POD, (p.POD_CLIENT, port), VIPS[VipKind.CLUSTER_IP])

    (fresh,) = traced(datapath, make_shadow, inside(datapath), frame(1000))
    assert "has none yet" in steps(fresh)["affinity"]
    assert steps(fresh)["hash"] == "of the client's address alone: rendezvous among 2"
    datapath.run(TC_POD_IN, frame(1000))
    (kept,) = traced(datapath, make_shadow, inside(datapath), frame(1001))
    assert fresh.evidence.made is not None
    assert f" keeps {fresh.evidence.made.backend.address}, as " in steps(kept)["affinity"]
    assert "hash" not in steps(kept)
    (other,) = {p.BACKEND_LOCAL, p.BACKEND_LOCAL_2} - {p.role(_host(fresh.evidence.made.backend.address))}
    datapath.apply(service(other, affinity_seconds=100))
    (lost,) = traced(datapath, make_shadow, inside(datapath), frame(1002))
    assert "but that backend is gone" in steps(lost)["affinity"]


def _host(socket: str) -> str:
    return socket.rpartition(":")[0].strip("[]")


def test_trace_of_a_source_that_is_not_allowed(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, source_ranges=["203.0.113.0/24"]))
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), VIPS[VipKind.LOAD_BALANCER])
    (one,) = traced(datapath, make_shadow, outside(datapath), frame)
    network = p.here_net("203.0.113.0/24")
    assert steps(one)["source"] == f"{p.here(p.CLIENT)} is not among loadBalancerSourceRanges {network}"
    assert steps(one)["verdict"].startswith("dropped: SOURCE_NOT_ALLOWED")
    assert one.after == b""


def test_trace_of_no_endpoints(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service())
    frame = p.tcp(p.FROM_POD, (p.POD_CLIENT, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP])
    (one,) = traced(datapath, make_shadow, inside(datapath), frame)
    assert steps(one)["policy"].endswith("the Service has no endpoint to offer, on any node")
    assert steps(one)["verdict"].startswith("answered by the program, back out of pod0: REJECT_NO_ENDPOINT")
    p.assert_same(one.after, p.reset_for(frame))


def test_trace_of_policy_local_without_local_endpoint(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_REMOTE, external=TrafficPolicy.LOCAL))
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), VIPS[VipKind.NODE_PORT])
    (one,) = traced(datapath, make_shadow, outside(datapath), frame)
    assert steps(one)["policy"] == (
        "from outside, externalTrafficPolicy Local: no endpoint on this node, though there are some on others"
    )
    assert steps(one)["verdict"].startswith("dropped: NO_LOCAL_ENDPOINT")


def test_trace_of_hairpin_and_its_answer(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    frame = p.tcp(p.FROM_POD, (p.BACKEND_LOCAL, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP])
    before, entry = state(datapath), inside(datapath)
    shadow = make_shadow(entry)
    with datapath.namespace.entered():
        one = trace.run(shadow, entry, frame)
        answer = frames.answer(one.after, p.POD_GATEWAY_MAC)
        assert answer is not None
        back = trace.run(shadow, entry, answer)
    assert state(datapath) == before
    assert steps(one)["verdict"].startswith("back out of pod0, to the pod itself: NEW_HAIRPIN")
    assert steps(back)["verdict"].startswith("back out of pod0, to the pod itself: REPLY")
    packet = frames.read(frame)
    assert back.evidence.sent is not None
    assert back.evidence.sent.reverse == packet


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_trace_of_a_node_port_whose_backend_is_elsewhere(
    datapath: Datapath, make_shadow: Shadows, uplink_program: str
) -> None:
    datapath.set_up_node(snat_ports=SnatPorts(61_000, 61_000))
    datapath.apply(service(p.BACKEND_REMOTE))
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), (p.NODE1, NODE_PORT))
    (one,) = traced(datapath, make_shadow, outside(datapath, uplink_program), frame)
    told = steps(one)
    assert told["backend"].endswith("on node2, another node, active")
    assert told["verdict"].startswith("sent along the route by the program: NEW_REMOTE")
    assert told["NAT"].split("; ")[1].endswith(frames.read(one.after).client)  # type: ignore[union-attr]
    want = p.rebuilt(
        frame, link=p.TO_NODE2, src=(p.NODE1, 61_000), dst=(p.BACKEND_REMOTE, TARGET_PORT), ttl=63
    )
    p.assert_same(one.after, want)


def test_trace_goes_on_in_tc_where_xdp_cannot_send(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.SILENT_NEIGHBOUR))
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), (p.NODE1, NODE_PORT))
    (one,) = traced(datapath, make_shadow, outside(datapath, *OUTSIDE_INGRESS), frame)
    assert [hop.outcome.reason for hop in one.evidence.hops] == ["TO_TC", "NEW_REMOTE"]
    assert one.evidence.hops[0].outcome.frame == frame


def test_trace_of_the_answer_of_a_local_backend(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), VIPS[VipKind.LOAD_BALANCER])
    entry, at = outside(datapath), ((TC_UPLINK_OUT, "tc egress"),)
    leaving = EntryPoint("up0", datapath.uplink, p.NODE1_MAC, Side.LEAVING, at, datapath.pod)
    shadow = make_shadow(entry, leaving)
    with datapath.namespace.entered():
        one = trace.run(shadow, entry, frame)
        answer = frames.answer(one.after, p.NODE1_MAC)
        assert answer is not None
        back = trace.run(shadow, leaving, answer)
    assert steps(back)["verdict"].startswith("leaves by up0: REPLY")
    assert back.evidence.sent is not None
    assert back.evidence.sent.reverse == frames.read(frame)
    assert datapath.counters() == {}


def test_trace_of_ping(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    frame = p.echo(p.FROM_POD, p.POD_CLIENT, p.CLUSTER_VIP)
    (one,) = traced(datapath, make_shadow, inside(datapath), frame)
    assert steps(one)["VIP"] == f"{p.here(p.CLUSTER_VIP)} is a clusterIP of default/web"
    assert steps(one)["verdict"].startswith("answered by the program, back out of pod0: PING")
    p.assert_same(one.after, p.echo_reply_for(frame))


def test_trace_of_a_port_that_the_service_has_not(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    frame = p.tcp(p.FROM_POD, (p.POD_CLIENT, p.CLIENT_PORT), (p.CLUSTER_VIP, 81))
    (one,) = traced(datapath, make_shadow, inside(datapath), frame)
    assert steps(one)["VIP"].endswith("is a clusterIP of default/web, which has no port 81/TCP")


def test_a_private_copy_has_no_live_map_among_those_that_programs_write() -> None:
    of_families = (
        "flows",
        "fragments",
        "pieces",
        "sockets",
        "affinity",
        "traffic",
        "connections",
        "rivals",
        "tags",
    )
    each = {f"{name}{version}" for name in of_families for version in FAMILIES}
    own = {
        "notes",
        "scratch",
        "reasons",
        "rates",
        "piece_room",
        "service_counters",
        "watch",
        "draft",
        "events",
    }
    assert set(PRIVATE) == each | own


def _in_an_hour() -> int:
    """Be a watcher's clock: a slow machine takes longer for a trace than one lease."""
    return time.monotonic_ns() + 3600 * 10**9


def test_nobody_who_watches_is_told_of_a_trace(datapath: Datapath, make_shadow: Shadows) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    with Watch(datapath.maps, WatchFlag.FLOWS | WatchFlag.PACKETS, clock=_in_an_hour) as watch:
        frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), (p.CLUSTER_VIP, 80))
        traced(datapath, make_shadow, outside(datapath), frame)
        assert list(watch.events()) == []
        watch.renew()  # on a slow machine its time is over by now
        datapath.run(TC_UPLINK_IN, frame)
        assert len(list(watch.events())) == 1


def test_programs_of_another_build_are_refused(
    datapath: Datapath, make_shadow: Shadows, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = build.instructions

    def other(bpf_dir: Path, files: Collection[str]) -> build.Code:
        code = real(bpf_dir, files)
        return {version: {**each, TC_POD_IN: each[TC_UPLINK_IN]} for version, each in code.items()}

    monkeypatch.setattr(build, "instructions", other)
    with pytest.raises(DatapathError, match=r"lb_tc_pod_in.*: the program that runs is not that of"):
        make_shadow(inside(datapath))
