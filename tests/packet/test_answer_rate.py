# SPDX-License-Identifier: Apache-2.0
"""How many answers of ours go out: a token bucket of each kind on each CPU (RFC 4443, section 2.4 (f)).

A test run stays on the CPU that calls it, and the tests inject rates at which no token comes back meanwhile.
"""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import DROP, OUTSIDE_INGRESS, SEND, TC_UPLINK_IN, Datapath
from tests.packet.plans import PORT, VIPS, service

VIP = VIPS[VipKind.CLUSTER_IP]
CLIENT = (p.CLIENT, p.CLIENT_PORT)
LINK = p.FROM_CLIENT
HOUR_NS = 3600 * 10**9

each_program = pytest.mark.parametrize("program", OUTSIDE_INGRESS)


@pytest.fixture(autouse=True)
def one_cpu() -> Iterator[None]:
    """Have all test runs on one CPU, so that all take from one bucket."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(before)})
    yield
    os.sched_setaffinity(0, before)


def limit(datapath: Datapath, burst: int, interval_ns: int = HOUR_NS) -> None:
    row = datapath.array("settings")[:1]
    row["answer_interval_ns"], row["answer_burst_ns"] = interval_ns, burst * interval_ns


def reset_due() -> bytes:
    return p.tcp(LINK, CLIENT, (VIP[0], PORT + 1))


def error_due() -> bytes:
    return p.udp(LINK, CLIENT, (VIP[0], PORT + 1))


def ping() -> bytes:
    return p.echo(LINK, p.CLIENT, VIP[0], b"data")


def last_hop() -> bytes:
    """Return a packet whose TTL ends where it is forwarded."""
    return p.tcp(LINK, CLIENT, VIP, ttl=1)


KINDS = {"reset": reset_due, "ICMP error": error_due, "ping": ping, "TTL": last_hop}


@pytest.fixture
def served(datapath: Datapath) -> Iterator[Datapath]:
    """A Service whose backend is on another node, and 3 answers of each kind."""
    datapath.apply(service(p.BACKEND_REMOTE, vips=[VipKind.CLUSTER_IP]))
    limit(datapath, 3)
    yield datapath
    limit(datapath, 0, 0)


@each_program
@pytest.mark.parametrize("kind", KINDS)
def test_answer_rate_takes_a_burst_and_then_no_more(served: Datapath, kind: str, program: str) -> None:
    frame = KINDS[kind]()
    results = [served.run(program, frame) for _ in range(5)]
    assert [result.verdict for result in results] == [SEND] * 3 + [DROP] * 2
    assert [result.reason for result in results[3:]] == ["RATE_LIMITED"] * 2


@each_program
def test_answer_rate_of_one_kind_leaves_the_others(served: Datapath, program: str) -> None:
    """A flood of datagrams to an unknown port must not starve path-MTU discovery, nor anything else."""
    for _ in range(5):
        served.run(program, error_due())
    others = {kind: make for kind, make in KINDS.items() if kind != "ICMP error"}
    for kind, make in others.items():
        assert served.run(program, make()).verdict == SEND, kind


def test_answer_rate_path_mtu_has_a_bucket_of_its_own(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_NARROW, vips=[VipKind.CLUSTER_IP]))
    limit(datapath, 3)
    for _ in range(5):
        datapath.run(TC_UPLINK_IN, error_due())
    large = p.tcp(LINK, CLIENT, VIP, "A", bytes(p.NARROW_MTU))
    results = [datapath.run(TC_UPLINK_IN, large) for _ in range(4)]
    assert [result.reason for result in results] == ["TOO_BIG"] * 3 + ["RATE_LIMITED"]
    limit(datapath, 0, 0)


def test_answer_rate_comes_back_with_time(served: Datapath) -> None:
    """After the burst as many as the interval says: 1 ns is over by the next packet."""
    for _ in range(4):
        served.run(TC_UPLINK_IN, error_due())
    limit(served, 3, 1)
    served.run(TC_UPLINK_IN, error_due())  # what was owed under the other rate is forgotten
    assert served.run(TC_UPLINK_IN, error_due()).verdict == SEND


def test_answer_rate_0_is_no_limit(served: Datapath) -> None:
    limit(served, 0, 0)
    assert {served.run(TC_UPLINK_IN, error_due()).verdict for _ in range(20)} == {SEND}


def test_answer_rate_spends_nothing_on_what_is_never_answered(served: Datapath) -> None:
    """A reset is not answered (RFC 9293, section 3.10.7.1), so it takes no reset from others."""
    for _ in range(5):
        assert served.run(TC_UPLINK_IN, p.tcp(LINK, CLIENT, (VIP[0], PORT + 1), "R")).verdict == DROP
    assert served.run(TC_UPLINK_IN, reset_due()).verdict == SEND
