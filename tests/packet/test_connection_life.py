# SPDX-License-Identifier: Apache-2.0
"""A connection from its first SYN to its last segment: what is sent again, resets, ends, and begins anew."""

from __future__ import annotations

import numpy as np
import pytest

from lb.config import SnatPorts, Timeouts
from tests import packets as p
from tests.packet.conversation import Conversation, Path, each_path
from tests.packet.harness import Datapath
from tests.packet.plans import service


@each_path
def test_connection_life_a_syn_sent_again_goes_where_the_first_went(datapath: Datapath, path: Path) -> None:
    """Also when the SYN-ACK was lost and while endpoints come: else the client talks to two backends."""
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_999))
    for port in range(40_000, 40_020):
        datapath.apply(service(*path.backends(20, 10)))
        connection = Conversation(datapath, path, port)
        assert connection.send("S").startswith("NEW_")
        first = connection.backend, connection.seen
        connection.answer("SA")
        assert connection.send("S") == "FLOW_HIT"
        datapath.apply(service(*path.backends(20, 15)))
        assert connection.send("S") == "FLOW_HIT"
        assert (connection.backend, connection.seen) == first


@each_path
@pytest.mark.parametrize("who", ["client", "backend"])
@pytest.mark.parametrize("flags", ["R", "RA"])
def test_connection_life_a_reset_passes_and_ends_the_connection(
    datapath: Datapath, path: Path, who: str, flags: str
) -> None:
    """Only then may a SYN on the same 5-tuple go to another backend: the one that took over meanwhile."""
    first, second = path.backends(20, 2)
    datapath.apply(service(first))
    connection = Conversation(datapath, path)
    connection.send("S")
    connection.answer("SA")
    connection.send("A")
    datapath.apply(service(second, terminating=[first]))
    assert connection.send("S") == "FLOW_HIT"
    assert connection.backend == first
    if who == "client":
        connection.send(flags)
    else:
        connection.answer(flags)
    assert connection.send("S").startswith("NEW_")
    assert connection.backend == second
    connection.answer("SA")


@each_path
@pytest.mark.parametrize("first_to_close", ["client", "backend"])
def test_connection_life_an_orderly_end(datapath: Datapath, path: Path, first_to_close: str) -> None:
    """The last acknowledgements pass, sent again too; then a SYN of the same client port chooses afresh."""
    first, second = path.backends(20, 2)
    datapath.apply(service(first))
    connection = Conversation(datapath, path)
    connection.send("S")
    connection.answer("SA")
    close = [connection.send, connection.answer]
    if first_to_close == "backend":
        close.reverse()
    close[0]("FA")
    close[1]("A")
    datapath.apply(service(second, terminating=[first]))
    close[1]("PA", payload=p.PAYLOAD)  # the other side may still send
    assert connection.backend == first
    close[1]("FA")
    close[0]("A")
    close[1]("FA")  # the last acknowledgement was lost
    close[0]("A")
    assert connection.backend == first
    assert connection.send("S").startswith("NEW_")
    assert connection.backend == second


@each_path
def test_connection_life_a_half_closed_connection_keeps_its_backend(datapath: Datapath, path: Path) -> None:
    first, second = path.backends(20, 2)
    datapath.apply(service(first))
    connection = Conversation(datapath, path)
    connection.send("S")
    connection.answer("SA")
    connection.send("FA")
    datapath.apply(service(second, terminating=[first]))
    for _ in range(3):
        connection.answer("PA", payload=p.PAYLOAD)
        assert connection.send("A") == "FLOW_HIT"
    assert connection.backend == first


@each_path
@pytest.mark.parametrize("seq", [0, 1, 0x7FFFFFFF, 0xFFFFFFFF])
def test_connection_life_a_reply_out_of_window_is_never_sent_untranslated(
    datapath: Datapath, path: Path, seq: int
) -> None:
    """A client that gets one from the backend's own address resets the connection."""
    datapath.apply(service(*path.backends(20, 1)))
    connection = Conversation(datapath, path)
    connection.send("S")
    connection.answer("SA", seq=500, ack=1001)
    connection.send("A", seq=1001, ack=501)
    assert connection.answer("A", seq=seq, ack=seq) == "REPLY"
    assert connection.answer("PA", seq=501, ack=1001, payload=p.PAYLOAD) == "REPLY"


@each_path
def test_connection_life_the_middle_of_an_unknown_connection_goes_where_it_went(
    datapath: Datapath, path: Path
) -> None:
    """Its flow was lost, or it began through another node: the consistent hash finds its backend."""
    datapath.set_up_node(snat_ports=SnatPorts(62_000, 62_999))
    datapath.apply(service(*path.backends(20, 10)))
    before = {}
    for port in range(41_000, 41_020):
        connection = Conversation(datapath, path, port)
        connection.send("S")
        before[port] = connection.backend, connection.seen
    datapath.delete("flows", datapath.read("flows")[0])
    for port, was in before.items():
        connection = Conversation(datapath, path, port)
        assert connection.send("PA", payload=p.PAYLOAD).startswith("NEW_")
        assert (connection.backend, connection.seen) == was
        assert connection.answer("A") == "REPLY"
    assert len({backend for backend, _ in before.values()}) > 3


def age(datapath: Datapath, seconds: float) -> None:
    keys, values = datapath.read("flows")
    values["last_seen"] -= np.uint64(seconds * 10**9)
    datapath.update("flows", keys, values)


CLOSING = Timeouts(tcp_closing=10, tcp_established=1000)
STRANGERS = pytest.mark.parametrize("flags", ["R", "RA"])


@each_path
@pytest.mark.parametrize("who", ["client", "backend"])
@STRANGERS
def test_connection_life_a_strangers_reset_ends_nothing(
    datapath: Datapath, path: Path, who: str, flags: str
) -> None:
    """Out of the window, in the name of one side: that side goes on, and the flow lives as long as before."""
    datapath.set_up_node(CLOSING, SnatPorts(62_000, 62_000))
    first, second = path.backends(20, 2)
    datapath.apply(service(first))
    connection = Conversation(datapath, path)
    connection.send("S")
    connection.answer("SA")
    connection.send("A")
    speak = connection.send if who == "client" else connection.answer
    speak(flags, seq=0x7FFF_0000)
    speak("PA", payload=p.PAYLOAD)
    datapath.apply(service(second, terminating=[first]))
    age(datapath, CLOSING.tcp_closing + 1)
    if path.forwarded:  # its port is still its own
        other = Conversation(datapath, path, 41_000)
        datapath.apply(service(first))
        assert other.try_to_send().reason == "SNAT_EXHAUSTED"
        datapath.apply(service(second, terminating=[first]))
    assert connection.send("S") == "FLOW_HIT"
    assert connection.backend == first
    connection.answer("A")


@each_path
@pytest.mark.parametrize("who", ["client", "backend"])
@STRANGERS
def test_connection_life_the_other_side_does_not_revive_a_reset_connection(
    datapath: Datapath, path: Path, who: str, flags: str
) -> None:
    """What was on its way when the reset was sent still passes, and the flow ages fast."""
    datapath.set_up_node(CLOSING, SnatPorts(62_000, 62_000))
    datapath.apply(service(*path.backends(20, 1)))
    connection = Conversation(datapath, path)
    connection.send("S")
    connection.answer("SA")
    connection.send("A")
    reset, late = connection.send, connection.answer
    if who == "backend":
        reset, late = late, reset
    reset(flags)
    late("PA", payload=p.PAYLOAD)
    late("FA")
    if path.forwarded:
        other = Conversation(datapath, path, 41_000)
        assert other.try_to_send().reason == "SNAT_EXHAUSTED"
        age(datapath, CLOSING.tcp_closing + 1)
        assert other.send() == "NEW_REMOTE"
        assert other.seen == connection.seen
    else:
        assert connection.send("S").startswith("NEW_")
