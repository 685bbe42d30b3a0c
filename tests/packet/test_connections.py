# SPDX-License-Identifier: Apache-2.0
"""The life of a connection, and ClientIP affinity. Time passes by writing older times into the maps."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from lb.config import Timeouts
from lb.datapath.maps.layouts import Direction, FlowSign, FlowState
from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import (
    OUTSIDE_INGRESS,
    PASS,
    TC_POD_IN,
    TC_POD_OUT,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
    packed,
)
from tests.packet.plans import PORT, TARGET_PORT, VIPS, service

VIP = VIPS[VipKind.CLUSTER_IP]
CLIENT = (p.CLIENT, p.CLIENT_PORT)
POD = (p.POD_CLIENT, p.CLIENT_PORT)
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
MANY = tuple(f"10.0.1.{host}" for host in range(20, 30))
SECOND = 10**9
TIMES = Timeouts(tcp_syn=60, tcp_established=86_400, tcp_closing=10, udp_new=30, udp=120)


def flow(datapath: Datapath, direction: Direction = Direction.FORWARD) -> Any:
    """Return the only flow's half of that direction."""
    keys, values = datapath.read("flows")
    assert sorted(keys["direction"]) == [Direction.FORWARD, Direction.REPLY]
    return values[keys["direction"] == direction][0]


def age(datapath: Datapath, seconds: float) -> None:
    """Let time pass for flows and affinity."""
    keys, values = datapath.read("flows")
    values = values.copy()
    values["last_seen"] -= int(seconds * SECOND)
    values["touched"][values["fins"] & FlowSign.ANSWERED == 0] = 0
    datapath.update("flows", keys, values)
    keys, values = datapath.read("affinity")
    values = values.copy()
    values["last_used"] -= int(seconds * SECOND)
    datapath.update("affinity", keys, values)


def backend_of(frame: bytes) -> str:
    """Return the destination of a translated frame."""
    return p.role(p.l3(frame).dst)


def send(datapath: Datapath, flags: str = "S", port: int = p.CLIENT_PORT, program: str = XDP) -> str:
    """Send a TCP segment of the client to the VIP; return the counted reason."""
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIP, flags)
    return datapath.run(program, frame).reason


def answer(datapath: Datapath, flags: str) -> str:
    """Send a TCP segment of the local backend to the client; return the counted reason."""
    return datapath.run(TC_UPLINK_OUT, p.tcp(p.TO_CLIENT, LOCAL, p.seen(CLIENT), flags)).reason


@pytest.fixture
def web(datapath: Datapath) -> Datapath:
    datapath.apply(service(p.BACKEND_LOCAL))
    return datapath


def test_both_halves_tell_the_same(web: Datapath) -> None:
    send(web)
    forward, reply = flow(web), flow(web, Direction.REPLY)
    for name in ("service", "backend", "generation", "state", "fins", "path"):
        assert forward[name] == reply[name]
    assert (forward["src"].tolist(), forward["dport"]) == (packed(p.CLIENT), TARGET_PORT)
    assert (reply["src"].tolist(), reply["sport"]) == (packed(VIP[0]), PORT)


@pytest.mark.parametrize(
    ("segments", "state"),
    [
        (["client S"], FlowState.NEW),
        (["client S", "backend SA"], FlowState.NEW),
        (["client S", "backend SA", "client A"], FlowState.ESTABLISHED),
        (["client S", "backend SA", "client FA"], FlowState.CLOSING),
        (["client S", "backend SA", "backend FA"], FlowState.CLOSING),
        (["client S", "backend SA", "client FA", "client FA"], FlowState.CLOSING),
        (["client S", "backend SA", "client FA", "backend FA"], FlowState.CLOSED),
        (["client S", "backend SA", "backend FA", "client FA", "backend A"], FlowState.CLOSED),
        (["client S", "backend RA"], FlowState.CLOSED),
        (["client S", "backend SA", "client R"], FlowState.CLOSED),
        (["client A"], FlowState.NEW),  # a stray segment holds its entry for a minute, not for a day
        (["client A", "backend A"], FlowState.ESTABLISHED),  # the middle of one whose flow was lost
    ],
    ids=str,
)
def test_tcp_state(web: Datapath, segments: list[str], state: FlowState) -> None:
    for segment in segments:
        who, flags = segment.split()
        (send if who == "client" else answer)(web, flags)
    assert flow(web)["state"] == state
    assert flow(web, Direction.REPLY)["state"] == state


@pytest.mark.parametrize(
    ("segments", "seconds", "reason"),
    [
        (["client S"], 0, "FLOW_HIT"),
        (["client S"], TIMES.tcp_syn - 1, "FLOW_HIT"),
        (["client S"], TIMES.tcp_syn + 1, "NEW_LOCAL"),
        (["client S", "backend SA"], TIMES.tcp_syn - 1, "FLOW_HIT"),
        (["client S", "backend SA"], TIMES.tcp_syn + 1, "NEW_LOCAL"),
        (["client S", "backend SA", "client A"], TIMES.tcp_syn + 1, "FLOW_HIT"),
        (["client S", "backend SA", "client A"], TIMES.tcp_established + 1, "NEW_LOCAL"),
        (["client S", "backend SA", "client FA"], TIMES.tcp_closing - 1, "FLOW_HIT"),
        (["client S", "backend SA", "client FA"], TIMES.tcp_closing + 1, "NEW_LOCAL"),
        (["client S", "backend RA"], 0, "NEW_LOCAL"),
        (["client S", "backend SA", "client FA", "backend FA"], 0, "NEW_LOCAL"),
    ],
    ids=str,
)
def test_another_syn_on_one_five_tuple(
    web: Datapath, segments: list[str], seconds: float, reason: str
) -> None:
    web.set_up_node(TIMES)
    for segment in segments:
        who, flags = segment.split()
        (send if who == "client" else answer)(web, flags)
    age(web, seconds)
    assert send(web, "S") == reason


@pytest.mark.parametrize(
    "closing", [["answer FA", "send FA", "answer A"], ["send R", "answer A"], ["answer RA"]], ids=str
)
def test_a_direct_connection_from_the_port_of_a_closed_one(web: Datapath, closing: list[str]) -> None:
    """The client may use its port again, for a connection to the backend itself: that one is left alone."""
    send(web)
    answer(web, "SA")
    for segment in closing:
        who, flags = segment.split()
        (send if who == "send" else answer)(web, flags)
    for flags in ("SA", "A", "FA"):
        frame = p.tcp(p.TO_CLIENT, LOCAL, p.seen(CLIENT), flags)
        result = web.run(TC_UPLINK_OUT, frame)
        assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
        p.assert_same(result.packet, frame)
    assert len(web.read("flows")[0]) == 0
    assert send(web) == "NEW_LOCAL"
    assert answer(web, "SA") == "REPLY"


def test_a_data_segment_keeps_its_backend_however_idle(web: Datapath) -> None:
    web.set_up_node(TIMES)
    send(web)
    answer(web, "SA")
    age(web, TIMES.tcp_established + 1)
    assert send(web, "A") == "FLOW_HIT"


def test_a_syn_sent_again_stays_while_the_endpoints_change(datapath: Datapath) -> None:
    """Until the backend goes, then it selects afresh; segments without SYN go on as they went."""
    datapath.apply(service(*MANY))
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    chosen = backend_of(datapath.run(XDP, frame).packet)
    others = tuple(address for address in MANY if address != chosen)

    datapath.apply(service(*others, terminating=[chosen]))
    result = datapath.run(XDP, frame)
    assert (backend_of(result.packet), result.reason) == (chosen, "FLOW_HIT")

    datapath.apply(service(*others))
    result = datapath.run(XDP, p.tcp(p.FROM_CLIENT, CLIENT, VIP, "A"))
    assert (backend_of(result.packet), result.reason) == (chosen, "FLOW_HIT")
    result = datapath.run(XDP, frame)
    assert result.reason == "NEW_LOCAL"
    assert backend_of(result.packet) in others


def test_udp_goes_to_a_live_backend_with_its_next_packet(datapath: Datapath) -> None:
    datapath.apply(service(*MANY, protocol=Protocol.UDP))
    frame = p.udp(p.FROM_CLIENT, CLIENT, VIP)
    chosen = backend_of(datapath.run(XDP, frame).packet)
    assert datapath.run(XDP, frame).reason == "FLOW_HIT"
    datapath.apply(service(*(set(MANY) - {chosen}), protocol=Protocol.UDP))
    result = datapath.run(XDP, frame)
    assert (result.verdict, result.reason) == (PASS, "NEW_LOCAL")
    assert backend_of(result.packet) != chosen
    datapath.apply(service(protocol=Protocol.UDP))
    assert datapath.run(XDP, frame).reason == "REJECT_NO_ENDPOINT"


@pytest.mark.parametrize(
    ("datagrams", "seconds", "reason"),
    [
        ("client", TIMES.udp_new - 1, "FLOW_HIT"),
        ("client", TIMES.udp_new + 1, "NEW_LOCAL"),
        ("client backend", TIMES.udp_new - 1, "FLOW_HIT"),
        ("client backend", TIMES.udp_new + 1, "NEW_LOCAL"),
        ("client backend client", TIMES.udp_new + 1, "FLOW_HIT"),
        ("client backend client", TIMES.udp + 1, "NEW_LOCAL"),
    ],
)
def test_udp_idle_times(datapath: Datapath, datagrams: str, seconds: float, reason: str) -> None:
    datapath.set_up_node(TIMES)
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    frame = p.udp(p.FROM_CLIENT, CLIENT, VIP)
    for sender in datagrams.split():
        if sender == "client":
            datapath.run(XDP, frame)
        else:
            datapath.run(TC_UPLINK_OUT, p.udp(p.TO_CLIENT, LOCAL, p.seen(CLIENT)))
    age(datapath, seconds)
    assert datapath.run(XDP, frame).reason == reason


def test_a_used_flow_is_refreshed_on_both_sides(web: Datapath) -> None:
    """At most once a second: both halves always carry one time, so the LRU never sees one of them idler."""
    send(web)
    answer(web, "SA")
    age(web, 5)
    before = flow(web)["last_seen"]
    send(web, "A")
    after = flow(web)["last_seen"]
    assert after - before >= 5 * SECOND
    assert flow(web, Direction.REPLY)["last_seen"] == after
    send(web, "A")
    assert flow(web)["last_seen"] == after


@pytest.mark.parametrize("half", list(Direction))
def test_a_lost_half_comes_back(web: Datapath, half: Direction) -> None:
    """A flow without its forward half selects by the same hash; one without its reply half gets it again."""
    send(web)
    answer(web, "SA")
    keys, _ = web.read("flows")
    web.delete("flows", keys[keys["direction"] == half])
    age(web, 2)
    assert send(web, "A") == ("NEW_LOCAL" if half is Direction.FORWARD else "FLOW_HIT")
    assert answer(web, "A") == "REPLY"
    assert flow(web)["state"] == FlowState.ESTABLISHED


def test_a_flow_that_was_lost_keeps_its_backend(datapath: Datapath) -> None:
    datapath.apply(service(*MANY))
    chosen = {}
    for port in range(1000, 1050):
        frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIP)
        chosen[port] = backend_of(datapath.run(XDP, frame).packet)
    datapath.reset()
    for port, before in chosen.items():
        frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIP, "A")
        assert backend_of(datapath.run(TC_UPLINK_IN, frame).packet) == before


def test_connections_spread_over_all_backends(datapath: Datapath) -> None:
    datapath.apply(service(*MANY))
    seen = Counter(
        backend_of(datapath.run(XDP, p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIP)).packet)
        for port in range(2000, 2500)
    )
    assert set(seen) == set(MANY)
    assert min(seen.values()) > 20  # 50 expected


@pytest.mark.parametrize("program", [*OUTSIDE_INGRESS, TC_POD_IN])
def test_affinity_keeps_the_backend(datapath: Datapath, program: str) -> None:
    datapath.apply(service(*MANY, affinity_seconds=100))
    seen = {
        backend_of(datapath.run(program, p.tcp(p.FROM_CLIENT, (p.CLIENT, port), vip)).packet)
        for port in range(3000, 3020)
        for vip in VIPS.values()
    }
    assert len(seen) == 1


def test_affinity_is_by_client(datapath: Datapath) -> None:
    datapath.apply(service(*MANY, affinity_seconds=100))
    clients = [f"192.0.2.{host}" for host in range(100, 140)]
    chosen = {
        client: backend_of(datapath.run(XDP, p.tcp(p.FROM_CLIENT, (client, 1), VIP)).packet)
        for client in clients
    }
    assert len(set(chosen.values())) > 5
    keys, _ = datapath.read("affinity")
    assert {p.role(client) for client in keys["client"].tolist()} == set(clients)


def affinity_connect(datapath: Datapath, port: int) -> str:
    return backend_of(datapath.run(XDP, p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIP)).packet)


def test_affinity_lasts_until_its_timeout_after_the_last_connection(datapath: Datapath) -> None:
    """While it lasts the backend stays, though the hash names another one since the endpoints changed."""
    datapath.apply(service(p.BACKEND_LOCAL, affinity_seconds=100))
    assert affinity_connect(datapath, 1) == p.BACKEND_LOCAL
    datapath.apply(service(*MANY, p.BACKEND_LOCAL, affinity_seconds=100))
    for port in (2, 3):
        age(datapath, 90)
        assert affinity_connect(datapath, port) == p.BACKEND_LOCAL  # and the time starts anew
    datapath.delete("affinity", datapath.read("affinity")[0])
    by_hash = affinity_connect(datapath, 4)
    assert by_hash != p.BACKEND_LOCAL  # else this test shows nothing: choose other addresses
    datapath.reset()
    datapath.apply(service(p.BACKEND_LOCAL, affinity_seconds=100))
    assert affinity_connect(datapath, 5) == p.BACKEND_LOCAL
    datapath.apply(service(*MANY, p.BACKEND_LOCAL, affinity_seconds=100))
    age(datapath, 101)
    assert affinity_connect(datapath, 6) == by_hash


@pytest.mark.parametrize("how", ["gone", "terminating"])
def test_affinity_to_a_vanished_backend_is_replaced_at_once(datapath: Datapath, how: str) -> None:
    datapath.apply(service(*MANY, affinity_seconds=100))
    chosen = affinity_connect(datapath, 1)
    others = [address for address in MANY if address != chosen]
    terminating = [chosen] if how == "terminating" else []
    datapath.apply(service(*others, affinity_seconds=100, terminating=terminating))
    replaced = affinity_connect(datapath, 2)
    assert replaced in others
    datapath.apply(service(*MANY, affinity_seconds=100))
    assert affinity_connect(datapath, 3) == replaced


def test_affinity_agrees_across_nodes_before_any_state(datapath: Datapath) -> None:
    datapath.apply(service(*MANY, affinity_seconds=100))
    first = affinity_connect(datapath, 1)
    datapath.reset()
    assert affinity_connect(datapath, 2) == first


def test_replies_meet_their_connection_at_the_pod(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_LOCAL))
    datapath.run(TC_POD_IN, p.tcp(p.FROM_POD, POD, VIP))
    stray = p.tcp(p.TO_POD, LOCAL, (p.POD_CLIENT, p.CLIENT_PORT + 1), "SA")
    result = datapath.run(TC_POD_OUT, stray)
    assert (result.verdict, result.reason) == (PASS, "NOT_VIP")
    p.assert_same(result.packet, stray)
