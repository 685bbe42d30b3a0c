# SPDX-License-Identifier: Apache-2.0
"""What whoever watches is told: each event whole, from each kind of program; the packets are as ever."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

from lb.datapath.kernel import bpf
from lb.datapath.view.watch import LEASE_SECONDS
from lb.errors import ConfigError
from lb.live.events import Names, What
from lb.model import ObjectKey, Protocol, TrafficPolicy
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import (
    PASS,
    TC_POD_IN,
    TC_POD_OUT,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
)
from tests.packet.plans import TARGET_PORT, VIPS, service
from tests.packet.rows import ONE_SNAT_PORT, SNAT_PORT, play
from tests.packet.test_paths import rows
from tests.packet.watching import (
    ALL,
    BYTES,
    CLIENT,
    DROPS,
    EVENTS,
    FLOWS,
    LOCAL,
    PACKETS,
    POD,
    REMOTE,
    VIP,
    WEB,
    Socket,
    answer,
    both_uplinks,
    each_protocol,
    event,
    request,
    text,
    watching,
)

BUILD: dict[Protocol, Callable[..., bytes]] = {
    Protocol.TCP: p.tcp,
    Protocol.UDP: p.udp,
    Protocol.SCTP: p.sctp,
}


@both_uplinks
@each_protocol
def test_a_connection_from_outside_to_a_backend_here(
    datapath: Datapath, uplink_program: str, protocol: Protocol
) -> None:
    """New, an answer, a later packet: the last two are told of when every packet is wanted, and only then."""
    datapath.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    tcp = protocol is Protocol.TCP
    flags = ("S", "SA", "PA") if tcp else ("", "", "")
    ends = (
        (p.FROM_CLIENT, CLIENT, VIP),
        (p.TO_CLIENT, LOCAL, p.seen(CLIENT, protocol)),
        (p.FROM_CLIENT, CLIENT, VIP),
    )
    programs = (uplink_program, TC_UPLINK_OUT, uplink_program)
    frames = [
        (program, BUILD[protocol](*end, *([flag] if tcp else [])))
        for program, end, flag in zip(programs, ends, flags, strict=True)
    ]
    way = (CLIENT, VIP, p.seen(CLIENT, protocol), LOCAL)
    told_as = (
        (What.NEW, "NEW_LOCAL", request(*way)),
        (What.PASSED, "REPLY", answer(*way)),
        (What.PASSED, "FLOW_HIT", request(*way)),
    )
    expected = [
        event(what, program, reason, frame, protocol=protocol.name, flags=flag, **fields)
        for (program, frame), flag, (what, reason, fields) in zip(frames, flags, told_as, strict=True)
    ]
    for wanted, told_of in ((EVENTS, expected[:1]), (ALL, expected)):
        datapath.reset()
        with watching(datapath, wanted) as told:
            assert [each for program, frame in frames for each in told.of(program, frame)] == told_of


@both_uplinks
def test_a_connection_to_a_backend_elsewhere_is_told_with_its_snat(
    datapath: Datapath, uplink_program: str
) -> None:
    datapath.apply(service(p.BACKEND_REMOTE))
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    seen = (p.NODE1, SNAT_PORT)
    way = (CLIENT, VIP, seen, REMOTE)
    first = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    back = p.tcp(p.FROM_NODE2, REMOTE, seen, "SA")
    with watching(datapath, ALL) as told:
        assert told.of(uplink_program, first) == [
            event(What.NEW, uplink_program, "NEW_REMOTE", first, flags="S", **request(*way))
        ]
        assert told.of(uplink_program, back) == [
            event(What.PASSED, uplink_program, "REPLY", back, flags="SA", **answer(*way))
        ]


def test_a_pods_connection_and_its_end(datapath: Datapath) -> None:
    """Closed is told once: with the packet by which both sides have ended it, whichever side's that is."""
    datapath.apply(service(p.BACKEND_LOCAL))
    way = (POD, VIP, p.seen(POD), LOCAL)
    with watching(datapath, EVENTS) as told:
        for flags in ("S", "FA"):
            told.of(TC_POD_IN, p.tcp(p.FROM_POD, POD, VIP, flags))
        fin = p.tcp(p.TO_POD, LOCAL, p.seen(POD), "FA")
        assert told.of(TC_POD_OUT, fin) == [
            event(What.CLOSED, TC_POD_OUT, "REPLY", fin, flags="FA", **answer(*way))
        ]
        assert told.of(TC_POD_IN, p.tcp(p.FROM_POD, POD, VIP, "A")) == []
        assert told.of(TC_POD_OUT, fin) == []
    with watching(datapath, EVENTS) as told:
        told.of(TC_POD_IN, p.tcp(p.FROM_POD, POD, VIP, "S"))
        reset = p.tcp(p.FROM_POD, POD, VIP, "R")
        assert told.of(TC_POD_IN, reset) == [
            event(What.CLOSED, TC_POD_IN, "FLOW_HIT", reset, flags="R", **request(*way))
        ]


def _ends(source: Socket, vip: Socket) -> dict[str, Any]:
    """Return the fields of a client's packet that nothing was chosen for."""
    return {
        "source": text(source),
        "destination": text(vip),
        "client": text(source),
        "vip": text(vip),
    }


@both_uplinks
def test_what_is_dropped(datapath: Datapath, uplink_program: str) -> None:
    balanced = VIPS[VipKind.LOAD_BALANCER]
    cases = {
        "SOURCE_NOT_ALLOWED": (
            service(p.BACKEND_LOCAL, source_ranges=["203.0.113.0/24"]),
            _ends(CLIENT, balanced),
        ),
        "NO_LOCAL_ENDPOINT": (
            service(p.BACKEND_REMOTE, external=TrafficPolicy.LOCAL),
            _ends(CLIENT, balanced),
        ),
        "NO_ROUTE": (
            service(p.BACKEND_UNROUTED),
            request(CLIENT, balanced, CLIENT, (p.BACKEND_UNROUTED, TARGET_PORT)),
        ),
    }
    frame = p.tcp(p.FROM_CLIENT, CLIENT, balanced)
    for reason, (plan, fields) in cases.items():
        datapath.apply(plan)
        with watching(datapath, DROPS) as told:
            assert told.of(uplink_program, frame) == [
                event(What.DROPPED, uplink_program, reason, frame, flags="S", **fields)
            ]


@both_uplinks
def test_what_is_refused_is_a_drop_too(datapath: Datapath, uplink_program: str) -> None:
    datapath.apply(service())
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    refused = event(
        What.REFUSED, uplink_program, "REJECT_NO_ENDPOINT", frame, flags="S", **_ends(CLIENT, VIP)
    )
    for wanted, expected in ((DROPS, [refused]), (FLOWS, []), (FLOWS | PACKETS, [refused])):
        with watching(datapath, wanted) as told:
            assert told.of(uplink_program, frame) == expected
    datapath.apply(service(p.BACKEND_LOCAL))
    unknown = p.udp(p.FROM_CLIENT, CLIENT, (p.CLUSTER_VIP, 81))
    with watching(datapath, DROPS) as told:
        assert told.of(uplink_program, unknown) == [
            event(
                What.REFUSED,
                uplink_program,
                "REJECT_UNKNOWN_PORT",
                unknown,
                protocol="UDP",
                **_ends(CLIENT, (p.CLUSTER_VIP, 81)),
            )
        ]


@both_uplinks
def test_pings_and_icmp_errors_have_no_ports(datapath: Datapath, uplink_program: str) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    protocol = "ICMP" if p.version() == 4 else "ICMPv6"
    asked = p.echo(p.FROM_CLIENT, p.CLIENT, p.CLUSTER_VIP)
    first = p.udp(p.FROM_CLIENT, CLIENT, VIP)
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    with watching(datapath, ALL) as told:
        assert told.of(uplink_program, asked) == [
            event(
                What.ANSWERED,
                uplink_program,
                "PING",
                asked,
                protocol=protocol,
                source=p.here(p.CLIENT),
                destination=p.here(p.CLUSTER_VIP),
            )
        ]
        there = datapath.run(uplink_program, first).packet
        told.events()
        error = p.icmp_error(p.TO_CLIENT, p.ip(p.BACKEND_LOCAL, p.CLIENT), "port unreachable", p.quote(there))
        assert told.of(TC_UPLINK_OUT, error) == [
            event(
                What.PASSED,
                TC_UPLINK_OUT,
                "ICMP_ERROR",
                error,
                protocol=protocol,
                source=p.here(p.BACKEND_LOCAL),
                destination=p.here(p.CLIENT),
                sent_source=p.here(p.CLUSTER_VIP),
                sent_destination=p.here(p.CLIENT),
            )
        ]


@both_uplinks
def test_what_is_none_of_our_business_is_not_told(datapath: Datapath, uplink_program: str) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    other = p.tcp(p.FROM_CLIENT, CLIENT, (p.NODE1, 22))
    vlan = other[:12] + b"\x81\x00\x00\x07" + other[12:]
    with watching(datapath, ALL | BYTES) as told:
        for frame in (other, vlan):
            assert told.of(uplink_program, frame) == []
        assert told.of(TC_UPLINK_OUT, p.tcp(p.TO_CLIENT, (p.NODE1, 22), CLIENT)) == []


@both_uplinks
@each_protocol
def test_a_packet_is_the_same_whether_or_not_somebody_watches(
    datapath: Datapath, uplink_program: str, protocol: Protocol
) -> None:
    """Every way through the data plane, with all that can be asked for: bytes, verdicts and reasons."""
    for row in rows(protocol, VipKind.LOAD_BALANCER):
        datapath.reset()
        with watching(datapath, ALL | BYTES) as told:
            play(datapath, row, uplink_program)
            reasons = [step.reason for step in row.steps if step.reason != "NOT_VIP"]
            assert [one.reason for one in told.events()] == reasons, row.description


@both_uplinks
def test_only_the_services_that_are_asked_for(datapath: Datapath, uplink_program: str) -> None:
    udp = service(p.BACKEND_LOCAL, name="dns", protocol=Protocol.UDP, whole=False)
    datapath.apply(service(p.BACKEND_LOCAL), udp)
    frames = [p.tcp(p.FROM_CLIENT, CLIENT, VIP), p.udp(p.FROM_CLIENT, CLIENT, VIP)]
    names = Names(datapath.maps)
    for name in ("web", "dns"):
        datapath.reset()
        (ident,) = names.ports(ObjectKey("default", name))
        with watching(datapath, ALL, services=[ident]) as told:
            found = [each.service for frame in frames for each in told.of(uplink_program, frame)]
            assert found == [f"default/{name}:http"]
            # an address that no Service has, and so no Service's
            assert told.of(uplink_program, p.pieces(frames[0], 24)[1]) == []


def test_the_ports_of_a_service(datapath: Datapath) -> None:
    datapath.apply(
        service(p.BACKEND_LOCAL), service(p.BACKEND_LOCAL, name="dns", protocol=Protocol.UDP, whole=False)
    )
    names, web = Names(datapath.maps), ObjectKey("default", "web")
    (ident,) = names.ports(web)
    assert names.service(ident) == WEB
    assert names.ports(web, "http") == names.ports(web, "80") == names.ports(web, "30080") == [ident]
    for port in ("https", "8080"):
        with pytest.raises(ConfigError, match=f"default/web:{port}: the Service has no port of that name"):
            names.ports(web, port)
    with pytest.raises(ConfigError, match="--service default/none: this node has nothing of such a Service"):
        names.ports(ObjectKey("default", "none"))
    assert names.service(0) == names.service(4000) == ""


def test_one_of_so_many_connections_and_all_of_each(datapath: Datapath) -> None:
    """In both directions and of every backend: what is drawn must not depend on what the hash chose."""
    backends = [f"10.0.1.{number}" for number in range(10, 14)]
    datapath.apply(service(*backends))
    told_of: dict[str, list[str]] = {}
    with watching(datapath, ALL, one_in=4) as told:
        for port in range(40_000, 40_400):
            client = (p.CLIENT, port)
            sent = datapath.run(TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, client, VIP)).packet
            backend = p.role(p.l3(sent).dst)
            datapath.run(TC_UPLINK_OUT, p.tcp(p.TO_CLIENT, (backend, TARGET_PORT), p.seen(client), "SA"))
            datapath.run(TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, client, VIP, "A"))
            for one in told.events():
                told_of.setdefault(one.client, []).append(f"{one.reason} {one.backend}")
    assert 60 <= len(told_of) <= 140
    for reasons in told_of.values():
        assert [one.split()[0] for one in reasons] == ["NEW_LOCAL", "REPLY", "FLOW_HIT"]
    assert len({one.split()[1] for reasons in told_of.values() for one in reasons}) == len(backends)


def test_what_there_is_no_room_for_is_counted(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, source_ranges=["203.0.113.0/24"]))
    frame, times = p.tcp(p.FROM_POD, POD, VIPS[VipKind.LOAD_BALANCER]), 3000
    with watching(datapath, DROPS | BYTES) as told, datapath.namespace.entered():
        assert told.watch.lost == 0
        bpf.prog_test_run(datapath.program(TC_POD_IN), frame, repeat=times)
        records = told.records()
        assert 1000 < len(records) < times
        assert told.watch.lost == times - len(records)
        assert {one["before"][: one["captured"]].tobytes() for one in records} == {frame}
        datapath.run(TC_POD_IN, frame)
        assert len(told.records()) == 1  # there is room again
    with watching(datapath, DROPS) as told:
        assert told.watch.lost == 0


def test_what_was_told_to_another_is_not_told_again(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    with watching(datapath, ALL):
        datapath.run(XDP, p.tcp(p.FROM_CLIENT, CLIENT, VIP))
    with watching(datapath, ALL) as told:
        assert told.records() == []


def test_nobody_is_told_after_the_end_and_programs_clear_what_was_wanted(datapath: Datapath) -> None:
    """A watcher that was killed: its lease runs out, and the next packet takes the short way again."""
    datapath.apply(service(p.BACKEND_LOCAL))
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    asked = datapath.maps.array("watch")["what"]
    past = time.monotonic_ns() - int(LEASE_SECONDS * 1e9) - 1
    with watching(datapath, ALL, clock=lambda: past) as told:
        assert asked[0] == ALL
        assert told.of(XDP, frame) == []
        assert asked[0] == 0
        result = datapath.run(XDP, p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A"))
        assert (result.verdict, result.reason) == (PASS, "FLOW_HIT")
    with watching(datapath, ALL):
        assert asked[0] == ALL
    assert asked[0] == 0


def test_every_field_is_in_the_json(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_REMOTE))
    with watching(datapath, ALL) as told:
        (one,) = told.of(XDP, p.tcp(p.FROM_CLIENT, CLIENT, VIP))
    assert not one.pod, "no agent has told whose address it is"
    assert one.as_dict().keys() == (asdict(one).keys() - {"time_ns", "pod"}) | {"time"}
    assert one.as_dict()["time"].startswith("1970-01-01T")
