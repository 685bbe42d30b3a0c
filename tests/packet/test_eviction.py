# SPDX-License-Identifier: Apache-2.0
"""More flows than the table holds: the kernel's LRU makes room, and nobody who is talking may notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lb.config import Limits, SnatPorts
from lb.datapath.maps.layouts import Direction
from lb.datapath.programs import loader
from tests.packet.conversation import Conversation, Path, each_path
from tests.packet.harness import Datapath
from tests.packet.plans import service

FLOWS = 512  # entries: room for 256 connections
ACTIVE = 10
PASSING = 450
"""Connections that are opened and never heard of again: far more than the table holds."""


@pytest.fixture(scope="module")
def small() -> Iterator[Datapath]:
    """The programs with a small flow table."""

    def load(pins: Any, limits: Limits, *rest: Any, **more: Any) -> Any:
        return loader.load(pins, replace(limits, flows=FLOWS), *rest, **more)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tests.packet.harness.load", load)
        datapath = Datapath()
    yield datapath
    datapath.close()


@pytest.fixture
def crowded(small: Datapath, path: Path) -> Datapath:
    """Ten backends on the path, and nothing remembered."""
    small.apply()
    small.reset()
    small.set_up_node(snat_ports=SnatPorts(50_000, 65_535))
    small.apply(service(*path.backends(20, 10)))
    return small


def opened(datapath: Datapath, path: Path, port: int) -> Conversation:
    conversation = Conversation(datapath, path, port)
    assert conversation.send("S").startswith("NEW_")
    return conversation


def entries(datapath: Datapath) -> int:
    return len(datapath.read("flows")[0])


@each_path
def test_eviction_takes_idle_flows_and_leaves_active_ones_whole(crowded: Datapath, path: Path) -> None:
    """An active connection keeps both of its halves, its backend and its port, however many pass by."""
    active = [opened(crowded, path, 1000 + number) for number in range(ACTIVE)]
    chosen = [(conversation.backend, conversation.seen) for conversation in active]
    for number in range(PASSING):
        opened(crowded, path, 10_000 + number)
        if number % 50 == 0:
            for conversation in active:
                assert conversation.send("A") == "FLOW_HIT"
                assert conversation.answer("A") == "REPLY"
    assert [(conversation.backend, conversation.seen) for conversation in active] == chosen
    assert entries(crowded) <= FLOWS


@each_path
def test_eviction_of_a_flow_costs_it_nothing(crowded: Datapath, path: Path) -> None:
    """Whatever is left of it, both halves, one or none: its next segment goes where the others went, and the
    backend's answer is the VIP's."""
    passing = [opened(crowded, path, 10_000 + number) for number in range(PASSING)]
    assert 2 * PASSING > FLOWS >= entries(crowded)
    for conversation in passing:
        before = conversation.backend, conversation.seen
        conversation.send("A")
        assert conversation.backend == before[0]
        if not path.forwarded:  # else another flow may have its SNAT port by now
            assert conversation.seen == before[1]
        assert conversation.answer("A") == "REPLY"


@each_path
def test_eviction_of_the_clients_half_alone_leaves_replies_as_they_were(
    crowded: Datapath, path: Path
) -> None:
    conversation = opened(crowded, path, 1000)
    conversation.answer("SA")
    before = conversation.backend, conversation.seen
    keys, _ = crowded.read("flows")
    crowded.delete("flows", keys[keys["direction"] == Direction.FORWARD])
    assert conversation.answer("A") == "REPLY"
    assert conversation.send("A").startswith("NEW_")
    assert (conversation.backend, conversation.seen) == before
    assert conversation.answer("A") == "REPLY"
    assert entries(crowded) == 2


@each_path
def test_eviction_of_the_backends_half_alone_is_mended_by_the_client(crowded: Datapath, path: Path) -> None:
    """By its first packet after FLOW_REFRESH_NS, when both halves are written."""
    conversation = opened(crowded, path, 1000)
    conversation.answer("SA")
    keys, values = crowded.read("flows")
    reply = keys["direction"] == Direction.REPLY
    crowded.delete("flows", keys[reply])
    older = values[~reply].copy()
    older["last_seen"] -= np.uint64(2 * 10**9)
    older["touched"] = 0
    crowded.update("flows", keys[~reply], older)
    assert conversation.send("A") == "FLOW_HIT"
    assert conversation.answer("A") == "REPLY"
    assert entries(crowded) == 2
