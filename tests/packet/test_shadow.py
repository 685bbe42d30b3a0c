# SPDX-License-Identifier: Apache-2.0
"""Shadow mode's programs: every packet passes as it came, what is written down is what would be done."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import ICMP, TCP, UDP
from scapy.packet import Raw

from lb.datapath.kernel.ringbuf import RingBuffer
from lb.datapath.maps import layouts
from lb.datapath.maps.layouts import ShadowKind, Side
from lb.datapath.programs import build
from lb.datapath.programs.loader import PROGRAMS, SHADOW_PROGRAMS, sources
from lb.datapath.programs.loops import INSN
from lb.model import Protocol
from lb.plan.types import VipKind
from lb.shadow.judge import Outcome
from lb.shadow.watcher import Record, records
from tests import packets as p
from tests.packet.harness import (
    HOOK_OF,
    PASS,
    TC_LOOPBACK,
    TC_POD_IN,
    TC_POD_OUT,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    XDP,
    Datapath,
)
from tests.packet.plans import VIPS, service
from tests.packet.test_selection import weighted
from tests.packet.test_untouched import every_packet

VIP, PORT = VIPS[VipKind.CLUSTER_IP]
CLIENT = (p.CLIENT, p.CLIENT_PORT)
BACKENDS = ("10.0.1.101", "10.0.1.102", "10.0.1.103")
HOOKS = tuple(program for program in HOOK_OF if program != XDP)
_CALL = 0x85
_READS_ALONE = {
    "map_lookup_elem": 1, "map_update_elem": 2, "map_delete_elem": 3, "ktime_get_ns": 5, "tail_call": 12,
    "skb_load_bytes": 26, "skb_pull_data": 39, "get_socket_cookie": 46, "fib_lookup": 69,
    "sk_lookup_udp": 85, "sk_release": 86, "spin_lock": 93, "spin_unlock": 94, "skc_lookup_tcp": 99,
    "jiffies64": 118, "get_netns_cookie": 122, "ringbuf_reserve": 131, "ringbuf_submit": 132,
}  # fmt: skip
"""The helpers that shadow mode may call, by their numbers (linux/bpf.h): none changes a packet."""


@pytest.fixture(scope="module")
def shadow_datapath() -> Iterator[Datapath]:
    """The programs of shadow mode, loaded once."""
    datapath = Datapath(programs=SHADOW_PROGRAMS)
    yield datapath
    datapath.close()


@pytest.fixture
def shadow(shadow_datapath: Datapath, family: int) -> Datapath:
    """The programs of shadow mode with empty tables and one Service."""
    assert family
    shadow_datapath.apply(service(p.BACKEND_LOCAL))
    shadow_datapath.reset()
    return shadow_datapath


@pytest.fixture
def written(shadow: Datapath) -> Iterator[Any]:
    """What was written down since the test began, as a function."""
    ring = RingBuffer(shadow.maps.fd("events"))
    yield lambda: [*records(b"".join(ring.read()))]
    ring.close()


def helpers(code: bytes) -> set[int]:
    """Return the numbers of the kernel's helpers that instructions call."""
    rows = np.frombuffer(code, INSN)
    return set(rows["imm"][(rows["opcode"] == _CALL) & (rows["registers"] == 0)].tolist())


def test_shadow_no_program_can_change_a_packet() -> None:
    """Those that serve call helpers that do: so the numbers are looked for where they are."""
    ours = build.instructions(layouts.BPF_DIR, sources(SHADOW_PROGRAMS))[p.version()]
    called = {name: helpers(ours[name]) for name in SHADOW_PROGRAMS if name in ours}
    functions = {build.FUNCTION_MARK + at for at in range(16)}
    assert called
    assert {name: found - set(_READS_ALONE.values()) - functions for name, found in called.items()} == {
        name: set() for name in called
    }
    serving = build.instructions(layouts.BPF_DIR, sources(PROGRAMS))[p.version()]
    redirect, store = 23, 9
    assert {redirect, store} <= helpers(serving["lb_tc_connect"])


def frames() -> Iterator[bytes]:
    """Yield what programs that serve would translate, answer, drop or refuse, and what nobody knows."""
    yield from (frame for _, frame, _ in every_packet())
    link, reply = p.FROM_CLIENT, p.TO_CLIENT
    request, answer = p.ip(p.CLIENT, VIP), p.ip(VIP, p.CLIENT)
    for flags in ("S", "A", "FA", "R"):
        yield p.tcp(link, CLIENT, (VIP, PORT), flags, b"x")
        yield p.tcp(link, CLIENT, (VIP, PORT + 1), flags, b"x")
        yield p.tcp(reply, (VIP, PORT), CLIENT, flags, b"x")
    yield p.udp(link, CLIENT, (VIP, PORT), b"x")
    yield bytes(link / request / UDP(sport=9, dport=PORT) / Raw(b"x" * 2000))
    quoted = p.ip(p.CLIENT, VIP) / TCP(sport=p.CLIENT_PORT, dport=PORT, flags="S")
    if p.version() == 4:
        yield bytes(reply / answer / ICMP(type=3, code=3) / quoted)
        yield bytes(link / request / ICMP(type=8) / b"ping")
        yield bytes(link / p.ip(p.CLIENT, VIP, flags="MF") / UDP(sport=9, dport=PORT) / Raw(b"x" * 32))
        yield bytes(link / p.ip(p.CLIENT, VIP, frag=3, proto=17) / Raw(b"x" * 32))


@pytest.mark.parametrize("program", HOOKS)
def test_shadow_every_packet_passes_as_it_came(shadow: Datapath, program: str) -> None:
    for frame in frames():
        for _ in range(2):
            for from_host in (False, True):
                result = shadow.run(program, frame, from_host=from_host)
                assert (result.verdict, result.packet) == (PASS, frame)


def one(found: list[Record]) -> Record:
    """Return the only record."""
    assert len(found) == 1, found
    return found[0]


@pytest.mark.parametrize(("program", "side"), [(TC_UPLINK_IN, Side.OUTSIDE), (TC_POD_IN, Side.INSIDE)])
def test_shadow_writes_a_connection_down_once(
    shadow: Datapath, written: Any, program: str, side: Side
) -> None:
    shadow.run(program, p.tcp(p.FROM_CLIENT, CLIENT, (VIP, PORT), "S"))
    found = one(written())
    assert (found.kind, found.outcome, found.reason, found.side) == (
        ShadowKind.DECIDED,
        Outcome.SERVED,
        "NEW_LOCAL",
        side,
    )
    assert (str(found.asked.src), found.asked.sport) == (p.here(p.CLIENT), p.CLIENT_PORT)
    assert (str(found.asked.dst), found.asked.dport) == (p.here(VIP), PORT)
    assert str(found.backend[0]) == p.here(p.BACKEND_LOCAL)
    for flags in ("S", "A", "PA", "FA"):
        shadow.run(program, p.tcp(p.FROM_CLIENT, CLIENT, (VIP, PORT), flags))
    assert written() == []
    shadow.run(program, p.tcp(p.FROM_CLIENT, CLIENT, (VIP, PORT), "S"))
    assert one(written()).outcome is Outcome.SERVED  # the client had closed the one before


def test_shadow_what_would_be_refused_or_dropped(shadow: Datapath, written: Any) -> None:
    shadow.apply(service(p.BACKEND_LOCAL, source_ranges=["198.51.100.0/24"]))
    balancer = VIPS[VipKind.LOAD_BALANCER]
    shadow.run(TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, balancer, "S"))
    assert (one(found := written()).outcome, found[0].reason) == (Outcome.DROPPED, "SOURCE_NOT_ALLOWED")
    shadow.apply(service())
    shadow.run(TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, CLIENT, (VIP, PORT), "S"))
    assert (one(found := written()).outcome, found[0].reason) == (Outcome.REFUSED, "REJECT_NO_ENDPOINT")


def test_shadow_a_refusal_on_its_way_out(shadow: Datapath, written: Any) -> None:
    for program in (TC_UPLINK_OUT, TC_POD_OUT, TC_LOOPBACK):
        shadow.run(program, p.tcp(p.TO_CLIENT, (VIP, PORT), CLIENT, "RA"))
        found = one(written())
        assert found.kind is ShadowKind.ANSWERED
        assert (str(found.asked.dst), found.asked.dport) == (p.here(VIP), PORT)
        shadow.run(program, p.tcp(p.TO_CLIENT, (VIP, PORT + 1), CLIENT, "RA"))
        shadow.run(program, p.tcp(p.TO_CLIENT, (VIP, PORT), CLIENT, "A"))
        shadow.run(program, p.tcp(p.TO_CLIENT, (p.NOT_A_VIP, PORT), CLIENT, "RA"))
        assert written() == []


def test_shadow_an_association_of_sctp(shadow: Datapath, written: Any) -> None:
    shadow.apply(service(p.BACKEND_LOCAL, protocol=Protocol.SCTP))
    shadow.run(TC_UPLINK_IN, p.sctp(p.FROM_CLIENT, CLIENT, (VIP, PORT), "INIT"))
    assert one(written()).asked.protocol is Protocol.SCTP


def test_shadow_the_backend_is_the_one_that_serving_programs_choose(
    shadow: Datapath, written: Any, datapath: Datapath
) -> None:
    """Of unequal weights, too: the choice among them is a step of its own."""
    found, wanted = [], []
    for plan in (service(*BACKENDS), weighted(service(*BACKENDS), (1, 3, 5))):
        for each in (shadow, datapath):
            each.apply(plan)
            each.reset()
        for port in range(20_000, 20_016):
            syn = p.tcp(p.FROM_CLIENT, (p.CLIENT, port), (VIP, PORT), "S")
            shadow.run(TC_UPLINK_IN, syn)
            found.append(str(one(written()).backend[0]))
            wanted.append(p.addresses(datapath.run(TC_UPLINK_IN, syn).packet)[1])
    assert found == wanted
    assert {*found[16:]} == {*map(p.here, BACKENDS)}
    assert found[16:] != found[:16]


def test_shadow_a_full_ring_loses_records_and_counts_them(shadow: Datapath) -> None:
    room = shadow.maps.capacity("events")
    before = int(shadow.maps.array("watch")["lost"][0])
    each = layouts.SHADOWED.itemsize + 8
    for number in range(room // each + 10):
        client = (p.CLIENT, 1024 + number)
        shadow.run(TC_UPLINK_IN, p.tcp(p.FROM_CLIENT, client, (VIP, PORT), "S"))
    assert int(shadow.maps.array("watch")["lost"][0]) - before >= 9
