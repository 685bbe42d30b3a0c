# SPDX-License-Identifier: Apache-2.0
"""A VIP without endpoint answers for itself; what cannot be forwarded is dropped under its own name."""

from __future__ import annotations

import pytest

from lb.config import SnatPorts
from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import source
from tests.packet.harness import (
    DROP,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_POD_IN,
    TC_UPLINK_IN,
    XDP,
    Datapath,
)
from tests.packet.plans import TARGET_PORT, VIPS, service
from tests.packet.rows import (
    ONE_SNAT_PORT,
    POD_IN,
    SNAT_PORT,
    UPLINK_IN,
    Row,
    Step,
    dropped,
    passed,
    play,
    sent,
    too_big,
    untouched,
)

VIP = VIPS[VipKind.CLUSTER_IP]
CLIENT = (p.CLIENT, p.CLIENT_PORT)
POD = (p.POD_CLIENT, p.CLIENT_PORT)
SNATED = (p.NODE1, SNAT_PORT)
BY_HOOK = {UPLINK_IN: (p.FROM_CLIENT, CLIENT), POD_IN: (p.FROM_POD, POD)}

SEGMENTS = {
    "SYN": {"flags": "S", "seq": 1000},
    "SYN with data": {"flags": "S", "seq": 1000, "payload": p.PAYLOAD},
    "SYN, sequence number about to wrap": {"flags": "S", "seq": 0xFFFFFFFF},
    "SYN with options": {"flags": "S", "seq": 1, "options": [("MSS", 1460), ("WScale", 7)]},
    "ACK": {"flags": "A", "seq": 5, "ack": 77, "payload": p.PAYLOAD},
    "FIN": {"flags": "F", "seq": 5},
    "FIN and ACK": {"flags": "FA", "seq": 5, "ack": 78},
}


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
@pytest.mark.parametrize("hook", BY_HOOK)
@pytest.mark.parametrize("fields", SEGMENTS.values(), ids=SEGMENTS)
def test_tcp_is_reset(datapath: Datapath, uplink_program: str, hook: str, fields: dict[str, object]) -> None:
    link, source = BY_HOOK[hook]
    frame = p.tcp(link, source, VIP, **fields)  # type: ignore[arg-type]
    step = sent(hook, frame, p.reset_for(frame), "REJECT_NO_ENDPOINT")
    play(datapath, Row("no endpoint", (service(),), (step,)), uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
@pytest.mark.parametrize("hook", BY_HOOK)
def test_a_reset_is_not_answered(datapath: Datapath, uplink_program: str, hook: str) -> None:
    link, source = BY_HOOK[hook]
    steps = tuple(
        dropped(hook, p.tcp(link, source, VIP, flags), "REJECT_UNANSWERED") for flags in ("R", "RA")
    )
    play(datapath, Row("RST", (service(),), steps), uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
@pytest.mark.parametrize("hook", BY_HOOK)
@pytest.mark.parametrize("checksum", [True, False])
@pytest.mark.parametrize("payload", [b"", b"x", p.PAYLOAD], ids=len)
def test_udp_is_unreachable(
    datapath: Datapath, uplink_program: str, hook: str, checksum: bool, payload: bytes
) -> None:
    link, source = BY_HOOK[hook]
    frame = p.udp(link, source, VIP, payload, checksum=checksum)
    step = sent(hook, frame, p.port_unreachable_for(frame), "REJECT_NO_ENDPOINT")
    play(datapath, Row("no endpoint", (service(protocol=Protocol.UDP),), (step,)), uplink_program)


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
def test_what_was_sent_to_many_is_not_answered(datapath: Datapath, protocol: Protocol) -> None:
    """Else one broadcast would be answered by every node. At an uplink it is left alone."""
    make = p.tcp if protocol is Protocol.TCP else p.udp
    frame = make(p.ether(p.CLIENT_MAC, "ff:ff:ff:ff:ff:ff"), POD, VIP)
    step = dropped(POD_IN, frame, "REJECT_UNANSWERED")
    play(datapath, Row("broadcast", (service(protocol=protocol),), (step,)), POD_IN)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_first_endpoint_after_none(datapath: Datapath, uplink_program: str) -> None:
    """A client that keeps trying with one source port gets through with its next SYN."""
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    refused = sent(UPLINK_IN, frame, p.reset_for(frame), "REJECT_NO_ENDPOINT")
    taken = passed(UPLINK_IN, frame, p.rebuilt(frame, dst=(p.BACKEND_LOCAL, TARGET_PORT)), "NEW_LOCAL")
    play(datapath, Row("none", (service(),), (refused,)), uplink_program)
    play(datapath, Row("one", (service(p.BACKEND_LOCAL),), (taken,)), uplink_program)
    play(datapath, Row("none again", (service(),), (refused,)), uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_ttl_runs_out_where_we_forward(datapath: Datapath, uplink_program: str) -> None:
    remote, local = service(p.BACKEND_REMOTE), service(p.BACKEND_LOCAL)
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP, ttl=1)
    itself = p.tcp(p.FROM_POD, (p.BACKEND_LOCAL, 1), VIP, ttl=1)
    stack = p.rebuilt(frame, dst=(p.BACKEND_LOCAL, TARGET_PORT))
    play(
        datapath,
        Row(
            "remote", (remote,), (sent(UPLINK_IN, frame, p.time_exceeded_for(frame, p.NODE1), "TTL_EXPIRED"),)
        ),
        uplink_program,
    )
    datapath.reset()
    play(
        datapath,
        Row(
            "hairpin", (local,), (sent(POD_IN, itself, p.time_exceeded_for(itself, p.NODE1), "TTL_EXPIRED"),)
        ),
        uplink_program,
    )
    datapath.reset()
    play(datapath, Row("local", (local,), (passed(UPLINK_IN, frame, stack, "NEW_LOCAL"),)), uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_no_route_to_the_backend(datapath: Datapath, uplink_program: str) -> None:
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    row = Row("black hole", (service(p.BACKEND_UNROUTED),), (dropped(UPLINK_IN, frame, "NO_ROUTE"),))
    play(datapath, row, uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_backend_on_an_address_of_the_node(datapath: Datapath, uplink_program: str) -> None:
    """An endpoint given by hand may be the node itself without saying so: the stack takes it."""
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    out = p.rebuilt(frame, dst=(p.POD_GATEWAY, TARGET_PORT))
    plan = service(p.POD_GATEWAY)
    row = Row("own address", (plan,), (passed(UPLINK_IN, frame, out, "NEW_LOCAL"),))
    play(datapath, row, uplink_program)


def test_unknown_neighbour_is_left_to_tc(datapath: Datapath) -> None:
    """XDP cannot make the kernel ask for a MAC address; tc's redirect can."""
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    backend = (p.SILENT_NEIGHBOUR, TARGET_PORT)
    out = p.rebuilt(frame, src=SNATED, dst=backend, ttl=63)
    row = Row(
        "no neighbour",
        (service(p.SILENT_NEIGHBOUR),),
        (untouched(XDP, frame, "TO_TC"), sent(TC_UPLINK_IN, frame, out, "NEW_REMOTE")),
    )
    play(datapath, row, XDP)


def test_another_interface_is_left_to_tc(datapath: Datapath) -> None:
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    backend = (p.BEHIND_UPLINK_2, TARGET_PORT)
    link = p.ether(p.UPLINK_2_MAC, p.UPLINK_2_PEER_MAC)
    out = p.rebuilt(frame, link=link, src=(p.UPLINK_2_ADDRESS, SNAT_PORT), dst=backend, ttl=63)
    row = Row(
        "out of another uplink, from its address",
        (service(p.BEHIND_UPLINK_2),),
        (untouched(XDP, frame, "TO_TC"), sent(TC_UPLINK_IN, frame, out, "NEW_REMOTE")),
    )
    play(datapath, row, XDP)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_icmp_errors_tell_what_is_too_big_for_the_next_link(datapath: Datapath, uplink_program: str) -> None:
    headers = 40 if p.version() == 4 else 60
    whole = p.tcp(p.FROM_CLIENT, CLIENT, VIP, "S", bytes(1500 - headers))
    frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, 2), VIP, "S", bytes(1501 - headers))
    to_node2 = {"link": p.TO_NODE2, "src": SNATED, "dst": (p.BACKEND_REMOTE, TARGET_PORT), "ttl": 63}
    row = Row(
        "MTU 1500",
        (service(p.BACKEND_REMOTE),),
        (
            too_big(frame, 1500, uplink_program),
            sent(UPLINK_IN, whole, p.rebuilt(whole, **to_node2), "NEW_REMOTE"),
        ),
    )
    play(datapath, row, uplink_program)


@pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
def test_snat_ports_stay_in_their_range_and_apart(datapath: Datapath, uplink_program: str) -> None:
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_199))
    datapath.apply(service(p.BACKEND_REMOTE))
    ports = set()
    for port in range(1000, 1100):
        frame = p.tcp(p.FROM_CLIENT, (p.CLIENT, port), VIP)
        result = datapath.run(uplink_program, frame)
        assert (result.verdict, result.reason) == (SEND, "NEW_REMOTE")
        _, chosen = source(result)
        out = p.rebuilt(
            frame, link=p.TO_NODE2, src=(p.NODE1, chosen), dst=(p.BACKEND_REMOTE, TARGET_PORT), ttl=63
        )
        p.assert_same(result.packet, out)
        ports.add(chosen)
    assert len(ports) == 100
    assert ports <= set(range(62_000, 62_200))


def test_hairpin_needs_an_address_of_the_node(datapath: Datapath) -> None:
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    datapath.apply(service(p.BACKEND_LOCAL))
    datapath.delete("ifaces", datapath.read("ifaces")[0])
    frame = p.tcp(p.FROM_POD, (p.BACKEND_LOCAL, p.CLIENT_PORT), VIP)
    result = datapath.run(TC_POD_IN, frame)
    assert (result.verdict, result.reason) == (DROP, "NO_ROUTE")


@pytest.mark.parametrize("program", [*OUTSIDE_INGRESS, TC_POD_IN])
def test_a_table_that_names_a_freed_backend(datapath: Datapath, program: str) -> None:
    """It cannot come from the reconciler; if it comes, the packet must not go to whoever has the slot."""
    datapath.apply(service(p.BACKEND_LOCAL))
    slots = datapath.array("backends")
    states = slots["state"].copy()
    slots["state"] = 0
    try:
        result = datapath.run(program, p.tcp(p.FROM_CLIENT, CLIENT, VIP))
    finally:
        slots["state"] = states
    assert (result.verdict, result.reason) == (DROP, "NO_BACKEND")


def test_steps_compare_everything(datapath: Datapath) -> None:
    """The rows above can fail: a wrong verdict, byte, counter or length is told."""
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    right = p.rebuilt(frame, dst=(p.BACKEND_LOCAL, TARGET_PORT))
    wrong = {
        "verdict": Step(UPLINK_IN, frame, SEND, right, "NEW_LOCAL"),
        "reason": Step(UPLINK_IN, frame, PASS, right, "NEW_REMOTE"),
        "byte": Step(UPLINK_IN, frame, PASS, right[:-1] + b"\x01", "NEW_LOCAL"),
        "length": Step(UPLINK_IN, frame, PASS, right + b"\0", "NEW_LOCAL"),
    }
    for step in wrong.values():
        datapath.reset()
        with pytest.raises(AssertionError):
            play(datapath, Row("wrong", (service(p.BACKEND_LOCAL),), (step,)), XDP)
