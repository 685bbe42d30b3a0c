# SPDX-License-Identifier: Apache-2.0
"""Only a completed handshake makes an established flow: strangers' first packets, and what answers them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from lb.datapath.maps.layouts import Direction, FlowSign, FlowState
from lb.model import Protocol
from tests import packets as p
from tests.packet.conversation import Conversation, Path, each_path
from tests.packet.harness import Datapath
from tests.packet.plans import service

HALF_OPEN, ESTABLISHED = "half open", "established"


def standing(datapath: Datapath) -> set[str]:
    """Return what both halves of the only flow say."""
    keys, values = datapath.read("flows")
    assert sorted(keys["direction"]) == [Direction.FORWARD, Direction.REPLY]
    half_open = values["fins"] & FlowSign.HALF_OPEN != 0
    assert (values["state"][~half_open] != FlowState.NEW).all()
    return set(np.where(half_open, HALF_OPEN, ESTABLISHED).tolist())


def play(datapath: Datapath, path: Path, protocol: Protocol, steps: str) -> Conversation:
    """Play packets: ``client A ack=5`` or ``backend SA``, one after the other, separated by commas."""
    datapath.apply(service(*path.backends(20, 1), protocol=protocol))
    conversation = Conversation(datapath, path, protocol=protocol)
    for step in steps.split(", "):
        who, flags, *fields = step.split()
        named: dict[str, Any] = {name: int(value) for name, value in (each.split("=") for each in fields)}
        if named.pop("data", 0):
            named["payload"] = p.PAYLOAD
        if protocol is Protocol.UDP:
            named.pop("ack", None)
        (conversation.send if who == "client" else conversation.answer)(flags, **named)
    return conversation


@each_path
@pytest.mark.parametrize(
    ("protocol", "steps", "after"),
    [
        (Protocol.TCP, "client S, backend SA seq=70", HALF_OPEN),
        (Protocol.TCP, "client S, backend SA seq=70, client A ack=71", ESTABLISHED),
        (Protocol.TCP, "client S, backend SA seq=4294967295, client PA ack=0 data=1", ESTABLISHED),
        # a stranger does not know what the backend has sent to somebody else
        (Protocol.TCP, "client S, backend SA seq=70, client A ack=72", HALF_OPEN),
        (Protocol.TCP, "client S, backend SA seq=70, client A ack=0", HALF_OPEN),
        (Protocol.TCP, "client S, backend SA seq=70, client PA ack=70 data=1", HALF_OPEN),
        (Protocol.TCP, "client S, backend SA seq=70, client FA ack=5", HALF_OPEN),
        (Protocol.TCP, "client S, client A ack=1001", HALF_OPEN),
        # nor does the backend's "that is not what I expect" tell of anybody
        (Protocol.TCP, "client S, backend SA seq=70, client A ack=5, backend A", HALF_OPEN),
        # a reset believed, and taken back
        (Protocol.TCP, "client S, backend SA seq=70, client R, client A ack=5", HALF_OPEN),
        (Protocol.TCP, "client S, backend SA seq=70, client R, client A ack=71", ESTABLISHED),
        # with another sequence number: of a SYN cookie
        (Protocol.TCP, "client S, backend SA seq=70, backend SA seq=80, client A ack=81", ESTABLISHED),
        # the ACK went through another node; data shows that it has come
        (Protocol.TCP, "client S, backend SA seq=70, backend PA data=1", ESTABLISHED),
        # met in the middle
        (Protocol.TCP, "client A ack=5", HALF_OPEN),
        (Protocol.TCP, "client A ack=5, backend R", HALF_OPEN),
        (Protocol.TCP, "client A ack=5, backend A", ESTABLISHED),
        (Protocol.SCTP, "client INIT, backend SA", HALF_OPEN),
        (Protocol.SCTP, "client INIT, backend SA, client COOKIE_ECHO tag=5", HALF_OPEN),
        (Protocol.SCTP, "client INIT, backend SA, client COOKIE_ECHO", ESTABLISHED),
        (Protocol.SCTP, "client INIT, backend SA, backend COOKIE_ACK", ESTABLISHED),
        (Protocol.UDP, "client -, backend -", HALF_OPEN),
        (Protocol.UDP, "client -, client -", HALF_OPEN),
        (Protocol.UDP, "client -, backend -, backend -", HALF_OPEN),
        (Protocol.UDP, "client -, backend -, client -", ESTABLISHED),
    ],
    ids=str,
)
def test_handshake_only_what_the_client_cannot_guess_completes_it(
    datapath: Datapath, path: Path, protocol: Protocol, steps: str, after: str
) -> None:
    play(datapath, path, protocol, steps)
    assert standing(datapath) == {after}


@each_path
def test_handshake_answers_that_go_on_are_a_conversation(datapath: Datapath, path: Path) -> None:
    """One datagram asked for a stream: its answers come for longer than two seconds."""
    stream = play(datapath, path, Protocol.UDP, "client -, backend -")
    keys, values = datapath.read("flows")
    values["last_seen"] -= np.uint64(3 * 10**9)
    datapath.update("flows", keys, values)
    stream.answer()
    assert standing(datapath) == {ESTABLISHED}
