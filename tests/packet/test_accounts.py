# SPDX-License-Identifier: Apache-2.0
"""What the programs count of each backend and Service port, packet by packet."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lb.datapath.maps import layouts
from lb.datapath.view import figures
from lb.datapath.view.figures import HANDSHAKE_BOUNDS, Figures, PortName
from lb.model import Protocol, TrafficPolicy
from lb.plan.types import ServicePlan, VipKind
from tests import packets as p
from tests.packet.conversation import Conversation, Path, each_path
from tests.packet.harness import OUTSIDE_INGRESS, Datapath
from tests.packet.plans import PORT, service

NOTHING = Figures(0, 0, 0, 0, 0, 0, 0)
US = 1000  # nanoseconds


def row(found: figures.Sample, protocol: Protocol = Protocol.TCP) -> int:
    return found.ports[PortName("default", "web", "http", protocol.name)]


def of_port(datapath: Datapath, protocol: Protocol = Protocol.TCP) -> Figures:
    found = figures.sample(datapath.maps)
    return found.of_port(row(found, protocol))


def of_backends(datapath: Datapath) -> dict[str, Figures]:
    """Return the figures of each backend of the family under test, by its role."""
    one = figures.sample(datapath.maps).backends[p.version()]
    return {
        p.role(str(layouts.unpack_address(address))): Figures(*counted)
        for address, counted in zip(one.slots["address"].tolist(), one.figures.tolist(), strict=True)
    }


def handshakes(datapath: Datapath) -> tuple[list[int], int]:
    found = figures.sample(datapath.maps)
    return found.handshakes[row(found)].tolist(), int(found.handshake_ns[row(found)])


def dropped(datapath: Datapath) -> dict[str, int]:
    found = figures.sample(datapath.maps)
    return found.dropped_of(row(found))


@each_path
def test_every_translated_packet_is_counted_once(datapath: Datapath, path: Path) -> None:
    """The first ones, which take the long way, and the common ones, which do not."""
    (backend,) = path.backends(20, 1)
    datapath.apply(service(backend))
    assert of_port(datapath) == NOTHING
    connection = Conversation(datapath, path)
    sent: list[bytes] = []
    back: list[bytes] = []
    for flags, payload in (("S", b""), ("A", b""), ("PA", p.PAYLOAD), ("A", b""), ("FA", b"")):
        connection.send(flags, payload=payload)
        sent.append(connection.request(flags, payload=payload))
        answer = {"S": "SA", "FA": "FA"}.get(flags, "A")
        connection.answer(answer)
        back.append(connection.reply(answer))
    wanted = Figures(len(sent), sum(map(len, sent)), len(back), sum(map(len, back)), 1, 0, 0)
    assert of_port(datapath) == wanted
    assert of_backends(datapath) == {backend: wanted}
    assert sum(handshakes(datapath)[0]) == 1
    assert dropped(datapath) == {}


@each_path
def test_datagrams_are_counted(datapath: Datapath, path: Path) -> None:
    (backend,) = path.backends(20, 1)
    datapath.apply(service(backend, protocol=Protocol.UDP))
    connection = Conversation(datapath, path, protocol=Protocol.UDP)
    for _ in range(3):
        connection.send(payload=p.PAYLOAD)
        connection.answer(payload=p.PAYLOAD)
    size = len(connection.request(payload=p.PAYLOAD))
    wanted = Figures(3, 3 * size, 3, 3 * len(connection.reply(payload=p.PAYLOAD)), 1, 0, 0)
    assert of_port(datapath, Protocol.UDP) == wanted


@each_path
@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.SCTP])
def test_a_backend_that_resets_has_refused(datapath: Datapath, path: Path, protocol: Protocol) -> None:
    datapath.apply(service(*path.backends(20, 1), protocol=protocol))
    connection = Conversation(datapath, path, protocol=protocol)
    connection.send("S")
    connection.answer("RA")
    connection.answer("RA")
    found = of_port(datapath, protocol)
    assert (found.opened, found.refused, found.unanswered) == (1, 1, 0)


@each_path
def test_a_reset_later_on_is_no_refusal(datapath: Datapath, path: Path) -> None:
    datapath.apply(service(*path.backends(20, 1)))
    connection = Conversation(datapath, path)
    connection.send("S")
    connection.answer("SA")
    connection.answer("RA")
    assert of_port(datapath).refused == 0


@each_path
def test_a_connection_whose_flow_was_lost_is_not_opened_anew(datapath: Datapath, path: Path) -> None:
    """Nor refused, when the backend that the hash names knows nothing of it."""
    datapath.apply(service(*path.backends(20, 1)))
    connection = Conversation(datapath, path)
    assert connection.send("PA", payload=p.PAYLOAD).startswith("NEW_")
    connection.answer("R")
    found = of_port(datapath)
    assert (found.packets, found.reply_packets) == (1, 1)
    assert (found.opened, found.refused, found.unanswered) == (0, 0, 0)
    assert sum(handshakes(datapath)[0]) == 0


@each_path
def test_a_connection_without_answer_counts_once(datapath: Datapath, path: Path) -> None:
    """However often the client sends its SYN again; an answer then is a handshake all the same."""
    datapath.apply(service(*path.backends(20, 1)))
    connection = Conversation(datapath, path)
    for again in range(4):
        connection.send("S")
        assert of_port(datapath).unanswered == min(again, 1)
    connection.answer("SA")
    connection.send("A")
    connection.send("S")
    found = of_port(datapath)
    assert (found.packets, found.opened, found.refused, found.unanswered) == (6, 1, 0, 1)
    assert sum(handshakes(datapath)[0]) == 1
    (state,) = set(datapath.read("flows")[1]["state"].tolist())
    assert state == layouts.FlowState.ESTABLISHED


@pytest.mark.parametrize("who_closes", ["client", "backend"])
def test_a_syn_sent_again_leaves_the_connection_its_life(datapath: Datapath, who_closes: str) -> None:
    """What is noted of it in the flow is not taken for an end."""
    path = next(iter(each_path.args[1]))
    datapath.apply(service(*path.backends(20, 1)))
    connection = Conversation(datapath, path)
    for flags in ("S", "S"):
        connection.send(flags)
    states = set(datapath.read("flows")[1]["state"].tolist())
    assert states == {layouts.FlowState.NEW}
    connection.answer("SA")
    connection.send("A")
    (connection.send if who_closes == "client" else connection.answer)("FA")
    assert set(datapath.read("flows")[1]["state"].tolist()) == {layouts.FlowState.CLOSING}
    assert not (datapath.read("flows")[1]["fins"] & layouts.FlowSign.SYN_AGAIN).any()


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_handshake_times_fall_into_their_buckets(datapath: Datapath, program: str) -> None:
    """Whatever it took here: the bucket is the one that the time which was added up belongs to."""
    path = next(one for one in each_path.args[1] if one.ingress == program and not one.forwarded)
    datapath.apply(service(*path.backends(20, 1)))
    ago = [0, *(15 * US << n for n in range(22)), 17 * US, 100_000_000 * US]
    for number, late in enumerate(ago):
        connection = Conversation(datapath, path, 42_000 + number)
        connection.send("S")
        keys, values = datapath.read("flows")
        values["last_seen"][values["state"] == layouts.FlowState.NEW] -= np.uint64(late)
        datapath.update("flows", keys, values)
        counts, total = handshakes(datapath)
        connection.answer("SA")
        after, its_end = handshakes(datapath)
        took = its_end - total
        assert took >= late
        moved = [one - before for one, before in zip(after, counts, strict=True)]
        bucket = sum(took / 1e9 > bound for bound in HANDSHAKE_BOUNDS)
        assert moved == [int(at == bucket) for at in range(len(moved))], took
    assert sum(after) == len(ago)
    assert after[-1] >= 2


@pytest.mark.parametrize(
    ("plan", "reason"),
    [
        pytest.param(service, "REJECT_NO_ENDPOINT", id="no endpoint"),
        pytest.param(
            lambda: service(p.BACKEND_REMOTE, external=TrafficPolicy.LOCAL), "NO_LOCAL_ENDPOINT", id="local"
        ),
        pytest.param(
            lambda: service(p.BACKEND_LOCAL, source_ranges=["198.51.100.0/24"]),
            "SOURCE_NOT_ALLOWED",
            id="source ranges",
        ),
    ],
)
@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
def test_what_goes_nowhere_is_counted_by_reason(
    datapath: Datapath, program: str, plan: Any, reason: str
) -> None:
    wanted: ServicePlan = plan()
    datapath.apply(wanted)
    vip = (p.LOAD_BALANCER_VIP, PORT)
    syn = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), vip, "S")
    for _ in range(3):
        datapath.run(program, syn)
    assert dropped(datapath) == {reason: 3}
    datapath.run(program, p.echo(p.FROM_CLIENT, p.CLIENT, p.LOAD_BALANCER_VIP))
    assert dropped(datapath) == {reason: 4}
    assert of_port(datapath) == NOTHING


def test_a_port_that_a_cluster_ip_does_not_have_is_counted_for_its_service(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, vips=[VipKind.CLUSTER_IP]))
    syn = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT), (p.CLUSTER_VIP, PORT + 1), "S")
    assert datapath.run(OUTSIDE_INGRESS[0], syn).reason == "REJECT_UNKNOWN_PORT"
    assert dropped(datapath) == {"REJECT_UNKNOWN_PORT": 1}
    assert datapath.run(OUTSIDE_INGRESS[0], p.echo(p.FROM_CLIENT, p.CLIENT, p.CLUSTER_VIP)).reason == "PING"
    assert dropped(datapath) == {"REJECT_UNKNOWN_PORT": 1}


@each_path
def test_an_ended_backend_counts_for_its_service_alone(datapath: Datapath, path: Path) -> None:
    """Its last connections go on: they are the Service's, and nothing of them is the new backend's."""
    old, new = path.backends(20, 2)
    datapath.apply(service(old))
    connection = Conversation(datapath, path)
    connection.send("S")
    connection.answer("SA")
    datapath.apply(service(new))
    assert of_backends(datapath) == {new: NOTHING}
    connection.send("A")
    connection.answer("A")
    found = of_port(datapath)
    assert (found.packets, found.reply_packets, found.opened) == (2, 2, 1)
    assert of_backends(datapath) == {new: NOTHING}


@each_path
def test_a_slot_in_another_use_counts_from_the_beginning(datapath: Datapath, path: Path) -> None:
    """A connection of the use before is counted as before until the slot is used, then no more."""
    datapath.apply(service(*path.backends(20, 1)))
    first, second = Conversation(datapath, path), Conversation(datapath, path, p.CLIENT_PORT + 1)
    first.send("S")
    first.answer("SA")
    backends = datapath.array("backends")
    (slot,) = backends["state"].nonzero()[0].tolist()
    backends["generation"][slot] += 1
    try:
        assert of_port(datapath).packets == 0
        first.send("A")
        assert of_port(datapath).packets == 0
        second.send("S")
        first.send("A")
        first.answer("A")
        found = of_port(datapath)
        assert (found.packets, found.reply_packets) == (1, 0)
        second.answer("SA")
        assert of_port(datapath).reply_packets == 1
    finally:
        backends["generation"][slot] -= 1


def test_a_service_that_comes_again_begins_anew(datapath: Datapath) -> None:
    path = next(iter(each_path.args[1]))
    for _ in range(2):
        datapath.apply(service(*path.backends(20, 1)))
        assert of_port(datapath) == NOTHING
        Conversation(datapath, path).send("S")
        assert of_port(datapath).opened == 1
        datapath.apply()
        datapath.reset()
    assert figures.sample(datapath.maps).ports == {}
