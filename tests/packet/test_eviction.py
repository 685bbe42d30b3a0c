# SPDX-License-Identifier: Apache-2.0
"""More flows than the table holds: somebody has to make room, and nobody who is connected may notice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lb.config import Limits, SnatPorts
from lb.datapath.maps import cache
from lb.datapath.maps.layouts import Direction
from lb.datapath.programs import loader
from tests import packets as p
from tests.packet.conversation import PATHS, Conversation, Path, each_path
from tests.packet.harness import Datapath
from tests.packet.plans import service

FLOWS = 128  # entries: room for 64 connections
ACTIVE = 4
PASSING = 120
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


def pass_by(datapath: Datapath, path: Path, port: int) -> None:
    """Open a connection that nobody looks at any more."""
    assert Conversation(datapath, path, port).try_to_send().reason.startswith("NEW_")


def established(datapath: Datapath, path: Path, port: int) -> Conversation:
    conversation = opened(datapath, path, port)
    conversation.answer("SA")
    assert conversation.send("A") == "FLOW_HIT"
    return conversation


def share_a_bucket(datapath: Datapath, port: int) -> bool:
    """Are both halves of the flow of a client's port in one bucket?"""
    keys, values = datapath.read("flows")
    (at,) = np.flatnonzero((keys["direction"] == Direction.FORWARD) & (keys["sport"] == port))
    halves = keys[[at, at]]
    halves["direction"][1] = Direction.REPLY
    for one, other in (("src", "dst"), ("dst", "src"), ("sport", "dport"), ("dport", "sport")):
        halves[one][1] = values[other][at]
    hashing = datapath.array("hashing")
    (first, second), _ = cache.places(hashing, halves, int(hashing["flow_buckets"][0]))
    return bool(first == second)


def entries(datapath: Datapath) -> int:
    return len(datapath.read("flows")[0])


@each_path
def test_eviction_takes_idle_flows_and_leaves_active_ones_whole(crowded: Datapath, path: Path) -> None:
    """An active connection keeps both of its halves, its backend and its port, however many pass by."""
    active = [established(crowded, path, 1000 + number) for number in range(ACTIVE)]
    chosen = [(conversation.backend, conversation.seen) for conversation in active]
    for number in range(PASSING):
        pass_by(crowded, path, 10_000 + number)
        if number % 20 == 0:
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
    conversation = established(crowded, path, 1000)
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
    conversation = established(crowded, path, 1000)
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


IDLE = 11
"""Connections that are idle: with two entries each, a sixth of the table."""

two_paths = pytest.mark.parametrize("path", PATHS[2:4], ids=lambda path: path.name)


def evicted(datapath: Datapath) -> int:
    return datapath.maps.fill(f"flows{p.version()}").evicted


@two_paths
@pytest.mark.parametrize("answered", [False, True], ids=["unanswered", "answered"])
def test_eviction_by_a_flood_of_first_packets_takes_no_established_connection(
    crowded: Datapath, path: Path, answered: bool
) -> None:
    """Strangers' SYNs displace one another, whether or not backends answer them. Who is connected says
    nothing meanwhile, and is still there.
    """
    idle = [established(crowded, path, 1000 + number) for number in range(IDLE)]
    before = evicted(crowded)
    for number in range(PASSING):
        if answered:
            opened(crowded, path, 10_000 + number).answer("SA", seq=7)
        else:
            pass_by(crowded, path, 10_000 + number)
    assert entries(crowded) > 0.75 * FLOWS
    assert evicted(crowded) == before
    for conversation in idle:
        assert conversation.answer("PA", payload=p.PAYLOAD) == "REPLY"
        assert conversation.send("A") == "FLOW_HIT"


@two_paths
def test_eviction_leaves_room_for_new_connections(crowded: Datapath, path: Path) -> None:
    """However many are established, a first packet finds room without displacing one: only a connection that
    becomes established may, for which the one goes that is idle for longest. A bucket keeps one slot for
    half-open flows: one whose halves share a full bucket needs a second."""
    for number in range(PASSING):
        established(crowded, path, 10_000 + number)
    before = evicted(crowded)
    assert before > 0
    needed = 0
    for number in range(50):
        pass_by(crowded, path, 1000 + number)
        needed += share_a_bucket(crowded, 1000 + number)
        assert evicted(crowded) - before <= needed


@two_paths
def test_eviction_of_what_is_over_is_none(crowded: Datapath, path: Path) -> None:
    """Entries whose time is over are overwritten: nobody counts that, and their other halves stay."""
    for number in range(PASSING):
        pass_by(crowded, path, 10_000 + number)
    keys, values = crowded.read("flows")
    crowded.delete("flows", keys)
    crowded.update("flows", keys, values)  # the time of what is written so is over: see cache.change()
    full, before = entries(crowded), evicted(crowded)
    assert crowded.maps.fill(f"flows{p.version()}").entries == 0
    for number in range(20):
        pass_by(crowded, path, 1000 + number)
    assert entries(crowded) >= full
    assert evicted(crowded) == before
