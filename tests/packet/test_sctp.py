# SPDX-License-Identifier: Apache-2.0
"""SCTP to a VIP: its ports are rewritten, and its CRC32c with them, which is made from scratch here."""

from __future__ import annotations

import random

import pytest

from lb.config import SnatPorts, Timeouts
from lb.datapath.maps.layouts import Direction, FlowState
from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path, each_path
from tests.packet.harness import OUTSIDE_INGRESS, PASS, Datapath
from tests.packet.plans import VIPS, retargeted, service
from tests.packet.rows import POD_IN, UPLINK_IN, Row, play, sent
from tests.sctp import crc32c

SIDES = {UPLINK_IN: (p.FROM_CLIENT, p.CLIENT), POD_IN: (p.FROM_POD, p.POD_CLIENT)}
SECOND = 10**9
TIMES = Timeouts(tcp_syn=60, tcp_closing=10, sctp=1000)

both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
each_side = pytest.mark.parametrize("side", SIDES)


def talk(datapath: Datapath, path: Path) -> Conversation:
    datapath.set_up_node(TIMES, SnatPorts(62_000, 62_999))
    datapath.apply(service(*path.backends(5, 1), protocol=Protocol.SCTP))
    return Conversation(datapath, path, protocol=Protocol.SCTP)


def test_the_checksum_of_these_tests() -> None:
    """The check value of CRC-32C: RFC 3720, appendix B.4, and the catalogue of CRCs."""
    assert crc32c(b"123456789") == 0xE3069283
    assert crc32c(bytes(32)) == 0x8A9136AA


@each_path
def test_cluster_ip_sctp_checksums_at_every_length(datapath: Datapath, path: Path) -> None:
    """Both tables of powers, their first and last rows, and whatever is between."""
    conversation = talk(datapath, path)
    conversation.send()
    conversation.answer()
    rng = random.Random(5)
    lengths = [0, 4, 224, 228, 232, 236, 240, 244, 480, 484, 488, 1400]
    for length in (*lengths, *(4 * rng.randrange(360) for _ in range(20))):
        payload = rng.randbytes(length)
        assert conversation.send("A", payload=payload) == "FLOW_HIT"
        assert conversation.answer("A", payload=payload) == "REPLY"


@each_path
def test_cluster_ip_sctp_keeps_a_wrong_checksum_wrong(datapath: Datapath, path: Path) -> None:
    """What was broken on the way is found by who gets it, not mended by us."""
    conversation = talk(datapath, path)
    conversation.send()
    request = conversation.request("A", payload=p.PAYLOAD)
    broken = request[:-1] + bytes([request[-1] ^ 1])
    result = datapath.run(path.ingress, broken)
    assert result.reason == "FLOW_HIT"
    sent_on = bytes(p.l3(result.packet).payload)
    assert sent_on[8:12] != crc32c(sent_on[:8] + bytes(4) + sent_on[12:]).to_bytes(4, "little")


@pytest.mark.parametrize("path", [path for path in PATHS if not path.forwarded], ids=lambda path: path.name)
def test_cluster_ip_sctp_whose_ports_stay_keeps_its_checksum(datapath: Datapath, path: Path) -> None:
    """It covers no addresses."""
    plan = retargeted(service(*path.backends(5, 1), protocol=Protocol.SCTP), 80)
    datapath.apply(plan)
    frame = p.sctp(path.link, (path.client, p.CLIENT_PORT), VIPS[VipKind.CLUSTER_IP])
    result = datapath.run(path.ingress, frame)
    assert result.verdict == PASS
    p.assert_same(result.packet, p.rebuilt(frame, dst=(path.backends(5, 1)[0], 80)))


@each_path
@pytest.mark.parametrize(
    ("chunks", "state"),
    [
        (["client INIT"], FlowState.NEW),
        (["client INIT", "backend INIT ACK"], FlowState.NEW),
        (
            ["client INIT", "backend INIT ACK", "client COOKIE ECHO", "backend COOKIE ACK"],
            FlowState.ESTABLISHED,
        ),
        (["client INIT", "backend INIT ACK", "client HEARTBEAT"], FlowState.ESTABLISHED),
        (["client INIT", "backend ABORT"], FlowState.CLOSED),
        (["client INIT", "backend INIT ACK", "client ABORT"], FlowState.CLOSED),
        (["client INIT", "backend INIT ACK", "client ABORT", "client DATA"], FlowState.ESTABLISHED),
        (["client INIT", "backend INIT ACK", "client SHUTDOWN"], FlowState.ESTABLISHED),
        (
            [
                "client INIT",
                "backend INIT ACK",
                "client SHUTDOWN",
                "backend SHUTDOWN ACK",
                "client SHUTDOWN COMPLETE",
            ],
            FlowState.CLOSED,
        ),
        (["client DATA"], FlowState.NEW),
    ],
    ids=str,
)
def test_connection_life_sctp(datapath: Datapath, path: Path, chunks: list[str], state: FlowState) -> None:
    conversation = talk(datapath, path)
    for who, chunk in (words.split(maxsplit=1) for words in chunks):
        (conversation.send if who == "client" else conversation.answer)(chunk)
    keys, values = datapath.read("flows")
    assert sorted(keys["direction"]) == [Direction.FORWARD, Direction.REPLY]
    assert values["state"].tolist() == [state] * 2


@each_path
@pytest.mark.parametrize(
    ("answers", "seconds", "fresh"),
    [
        ([], TIMES.tcp_syn - 1, False),
        ([], TIMES.tcp_syn + 1, True),
        (["INIT ACK"], TIMES.tcp_syn - 1, False),
        (["INIT ACK"], TIMES.tcp_syn + 1, True),
        (["INIT ACK", "COOKIE ACK"], TIMES.tcp_syn + 1, False),
        (["INIT ACK", "COOKIE ACK"], TIMES.sctp - 1, False),
        (["INIT ACK", "COOKIE ACK"], TIMES.sctp + 1, True),
        (["INIT ACK", "ABORT"], 0, True),
    ],
)
def test_connection_life_sctp_another_init(
    datapath: Datapath, path: Path, answers: list[str], seconds: float, fresh: bool
) -> None:
    conversation = talk(datapath, path)
    conversation.send("INIT")
    for chunk in answers:
        conversation.answer(chunk)
    keys, values = datapath.read("flows")
    values["last_seen"] -= int(seconds * SECOND)
    datapath.update("flows", keys, values)
    assert conversation.send("INIT").startswith("NEW_" if fresh else "FLOW_HIT")


@both_uplinks
@each_side
@pytest.mark.parametrize("chunk", ["INIT", "DATA", "SHUTDOWN ACK"])
def test_reject_sctp(datapath: Datapath, uplink_program: str, side: str, chunk: str) -> None:
    """By ICMP port unreachable, which quotes up to the checksum: RFC 9260, section 10, wants the tag."""
    link, client = SIDES[side]
    frame = p.sctp(link, (client, 1), VIPS[VipKind.CLUSTER_IP], chunk, p.PAYLOAD)
    step = sent(side, frame, p.port_unreachable_for(frame), "REJECT_NO_ENDPOINT")
    play(datapath, Row("SCTP", (service(protocol=Protocol.SCTP),), (step,)), uplink_program)


@each_path
def test_cluster_ip_sctp_an_end_may_begin_while_the_other_does(datapath: Datapath, path: Path) -> None:
    """kubernetes#102128: the server's own INIT beside the client's comes from the VIP as well."""
    conversation = talk(datapath, path)
    conversation.send()
    for _ in range(2):
        assert conversation.answer("S") == "REPLY"
        assert conversation.send("S") == "FLOW_HIT"
    assert conversation.answer("SA") == "REPLY"
    assert conversation.send("A") == "FLOW_HIT"
