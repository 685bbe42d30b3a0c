# SPDX-License-Identifier: Apache-2.0
"""IPv4 options and IPv6 extension headers: packets with them are translated and answered like any other.

Tests of other files, about packets without, are played again here with options on every packet.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lb.model import Protocol, TrafficPolicy
from lb.plan.types import VipKind
from tests import options
from tests import packets as p
from tests.options import Options
from tests.packet.conversation import PATHS, Conversation, Path, each_path
from tests.packet.harness import (
    HOOK_OF,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_POD_IN,
    TC_UPLINK_IN,
    XDP,
    Datapath,
)
from tests.packet.optioned import with_options
from tests.packet.plans import BUILD, PORT, TARGET_PORT, VIPS, service
from tests.packet.rows import ONE_SNAT_PORT, POD_IN, UPLINK_IN
from tests.packet.test_fragments import test_fragments_begin_a_flow as begin_in_pieces
from tests.packet.test_fragments import test_fragments_both_ways as in_pieces
from tests.packet.test_fragments import test_fragments_of_what_is_refused as refused_in_pieces
from tests.packet.test_fragments_any_order import CLIENTS, CUTS, LONG, ORDERS, goes_through
from tests.packet.test_hairpin import test_hairpin_at_every_address_and_policy as hairpin
from tests.packet.test_icmp_errors import test_icmp_errors_about_the_backends_packets as errors_about_replies
from tests.packet.test_icmp_errors import test_icmp_errors_about_the_clients_packets as errors_about_requests
from tests.packet.test_ping import test_ping_is_answered as ping
from tests.packet.test_redirect import test_redirect_both_ways_for_clients_outside_and_in_pods as redirect
from tests.packet.test_reject import test_tcp_is_reset as reset
from tests.packet.test_reject import test_ttl_runs_out_where_we_forward as ttl_runs_out
from tests.packet.test_reject import test_udp_is_unreachable as unreachable
from tests.packet.test_sctp import test_cluster_ip_sctp_checksums_at_every_length as sctp

EVERYWHERE = {
    4: options.TRANSLATED[4]["record route"],
    6: Options(headers=(options.ROUTER_ALERT, options.FOR_THE_END)),
}
"""What the tests of other files get."""
IN_ORDER = (0, 1, 2)
KIND = VipKind.LOAD_BALANCER
VIP = VIPS[KIND]
NODE_PORT = VIPS[VipKind.NODE_PORT]
LINK, CLIENT = CLIENTS[TC_UPLINK_IN]
GRE = 47
IN_THE_DATAGRAM = Options(headers=(options.FOR_THE_END,))
"""Behind the fragment header of IPv6, where the first piece alone has them."""

each_program = pytest.mark.parametrize("program", HOOK_OF)
only_ipv6 = pytest.mark.parametrize("family", [6], indirect=True, ids=["ipv6"])
each_order = pytest.mark.parametrize(
    "order", [(0, 1, 2), *ORDERS], ids=lambda order: "".join(map(str, order))
)


@pytest.fixture
def bare(loaded_datapath: Datapath, family: int) -> Datapath:
    """The programs as they are."""
    assert family
    loaded_datapath.apply()
    loaded_datapath.reset()
    return loaded_datapath


def shapes(of: dict[int, dict[str, Options]]) -> Iterator[tuple[str, Options]]:
    """Yield the rows of the family under test."""
    yield from of[p.version()].items()


SEGMENT = {"flags": "A", "seq": 5, "ack": 77, "payload": p.PAYLOAD}
AGAIN: list[tuple[Callable[..., None], tuple[Any, ...]]] = [
    *((in_pieces, (path, Protocol.UDP)) for path in PATHS),
    *((begin_in_pieces, (path, Protocol.UDP)) for path in PATHS[2:4]),
    *((refused_in_pieces, (XDP, side, PORT)) for side in (UPLINK_IN, POD_IN)),
    *((hairpin, (protocol, KIND, TrafficPolicy.CLUSTER)) for protocol in Protocol),
    *((errors_about_requests, (path, protocol, "too big")) for path in PATHS[1:4] for protocol in Protocol),
    *(
        (errors_about_replies, (path, protocol, "port unreachable"))
        for path in PATHS[1:4]
        for protocol in Protocol
    ),
    *((ping, (program, UPLINK_IN, KIND, p.BACKEND_LOCAL)) for program in OUTSIDE_INGRESS),
    (ping, (XDP, POD_IN, KIND, p.BACKEND_LOCAL)),
    *((redirect, (protocol, KIND)) for protocol in Protocol),
    *((reset, (program, UPLINK_IN, SEGMENT)) for program in OUTSIDE_INGRESS),
    (reset, (XDP, POD_IN, {"flags": "S", "seq": 1000})),
    *((unreachable, (program, UPLINK_IN, True, p.PAYLOAD)) for program in OUTSIDE_INGRESS),
    (unreachable, (XDP, POD_IN, False, b"x")),
    *((ttl_runs_out, (program,)) for program in OUTSIDE_INGRESS),
    (sctp, (PATHS[3],)),
]
"""Tests of other files and, behind the datapath, their arguments."""


def test_options_on_packets_of_other_tests(bare: Datapath, family: int) -> None:
    for test, arguments in AGAIN:
        bare.apply()
        bare.reset()
        test(with_options(bare, EVERYWHERE[family]), *arguments)


@each_path
@pytest.mark.parametrize("protocol", BUILD)
def test_options_of_every_shape(bare: Datapath, path: Path, protocol: Protocol) -> None:
    bare.set_up_node(snat_ports=ONE_SNAT_PORT)
    for _, extra in shapes(options.TRANSLATED):
        bare.apply(service(*path.backends(5, 1), protocol=protocol))
        talk = Conversation(with_options(bare, extra), path, protocol=protocol, kind=KIND)
        assert talk.send().startswith("NEW_")
        assert talk.answer() == "REPLY"
        assert [talk.send("A"), talk.answer("A"), talk.send("A")] == ["FLOW_HIT", "REPLY", "FLOW_HIT"]
        bare.apply()
        bare.reset()
        bare.set_up_node(snat_ports=ONE_SNAT_PORT)


@each_path
def test_options_on_some_packets_alone(bare: Datapath, path: Path) -> None:
    """It is one connection, with options or without."""
    bare.set_up_node(snat_ports=ONE_SNAT_PORT)
    bare.apply(service(*path.backends(5, 1)))
    talks = [
        Conversation(each, path, kind=KIND) for each in (with_options(bare, EVERYWHERE[p.version()]), bare)
    ]
    assert talks[0].send().startswith("NEW_")
    talks[1].backend, talks[1].seen = talks[0].backend, talks[0].seen
    assert [talks[1].answer(), talks[1].send("A"), talks[0].send("A"), talks[0].answer("A")] == [
        *("REPLY", "FLOW_HIT"),
        *("FLOW_HIT", "REPLY"),
    ]


@each_program
@pytest.mark.parametrize(
    ("rows", "reason"),
    [(options.LEFT_ALONE, "IP_OPTIONS"), (options.MALFORMED, "MALFORMED")],
    ids=["", "bad"],
)
def test_options_that_are_left_alone(
    bare: Datapath, program: str, rows: dict[int, dict[str, Options]], reason: str
) -> None:
    """Source routes, AH, more headers than are walked, lengths that lie: whole, in pieces, or quoted."""
    bare.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    for name, extra in shapes(rows):
        frame = p.udp(LINK, CLIENT, VIP, bytes(32))
        for each in (frame, *p.pieces(frame, 16)):
            sent = options.into(each, extra)
            result = bare.run(program, sent)
            assert (result.verdict, dict(result.reasons)) == (PASS, {(HOOK_OF[program], reason): 1}), name
            p.assert_same(result.packet, sent)
    assert len(bare.read("flows")[0]) == 0
    assert len(bare.read("fragments")[0]) == 0


@pytest.mark.parametrize("program", OUTSIDE_INGRESS)
@only_ipv6
def test_options_of_a_quoted_packet_that_are_left_alone(bare: Datapath, program: str) -> None:
    bare.set_up_node(snat_ports=ONE_SNAT_PORT)
    bare.apply(service(p.BACKEND_REMOTE))
    there = bare.run(program, p.tcp(LINK, CLIENT, VIP)).packet
    for name, extra in (*shapes(options.LEFT_ALONE), *shapes(options.MALFORMED)):
        if name == "208 bytes":
            continue  # behind a link header that is too far for a byte, in a quote it is not
        quoted = options.into_packet(p.quote(there), extra)
        error = p.icmp_error(p.FROM_NODE2, p.ip(p.ROUTER, p.NODE1), "too big", quoted, 1400)
        result = bare.run(program, error)
        assert (result.verdict, result.reason) == (PASS, "IP_OPTIONS"), name
        p.assert_same(result.packet, error)


@only_ipv6
@pytest.mark.parametrize("program", CLIENTS)
@pytest.mark.parametrize("vip", [VIP, NODE_PORT], ids=["vip", "node-port"])
def test_options_behind_the_fragment_header(bare: Datapath, program: str, vip: tuple[str, int]) -> None:
    """All pieces name the destination options, but the first alone has them, and the protocol."""
    bare.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    link, client = CLIENTS[program]
    both = (Options(), Options(headers=(options.ROUTER_ALERT, options.USED_UP)))
    for before, order in itertools.product(both, (IN_ORDER, *ORDERS)):
        frame = p.udp(link, client, vip, LONG)
        wanted = p.rebuilt(frame, dst=(p.BACKEND_LOCAL, TARGET_PORT))
        pieces, results = (
            [options.into(each, before) for each in p.pieces(options.into(whole, IN_THE_DATAGRAM), *CUTS)]
            for whole in (frame, wanted)
        )
        if order == IN_ORDER:
            for piece, result in zip(pieces, results, strict=True):
                p.assert_same(bare.run(program, piece).packet, result)
        else:
            goes_through(bare, program, pieces, results, order)
        assert len(bare.read("fragments")[0]) == 0


@only_ipv6
@pytest.mark.parametrize("program", [*OUTSIDE_INGRESS, TC_POD_IN])
def test_options_behind_the_fragment_header_of_a_ping(bare: Datapath, program: str) -> None:
    bare.apply(service(p.BACKEND_LOCAL))
    link, client = CLIENTS[TC_UPLINK_IN if program == XDP else program]
    frame = p.echo(link, client[0], VIP[0], LONG)
    pieces, answers = (
        p.pieces(options.into(each, IN_THE_DATAGRAM), *CUTS) for each in (frame, p.echo_reply_for(frame))
    )
    for piece, answer in zip(pieces, answers, strict=True):
        result = bare.run(program, piece)
        assert (result.verdict, result.reason) == (SEND, "PING")
        p.assert_same(result.packet, answer)


@only_ipv6
@pytest.mark.parametrize("order", [IN_ORDER, *ORDERS], ids=lambda order: "".join(map(str, order)))
@pytest.mark.parametrize("what", ["ping", "GRE", "AH", "UDP"])
def test_options_behind_the_fragment_header_not_for_a_vip(
    bare: Datapath, what: str, order: tuple[int, ...]
) -> None:
    """To the node itself: whatever the first piece tells, the others are not kept for ever."""
    bare.apply(service(p.BACKEND_LOCAL, protocol=Protocol.UDP))
    frame = p.udp(LINK, CLIENT, (p.NODE1, PORT), LONG)
    if what == "ping":
        frame = p.echo(LINK, p.CLIENT, p.NODE1, LONG)
    extra = IN_THE_DATAGRAM
    if what == "GRE":
        frame = frame[:20] + bytes([GRE]) + frame[21:]
    if what == "AH":
        extra = Options(headers=(*extra.headers, options.SIGNED))
    pieces = p.pieces(options.into(frame, extra), *CUTS)
    if order == IN_ORDER:
        assert bare.run(TC_UPLINK_IN, pieces[0]).packet == pieces[0]
        pieces = pieces[1:]
        for piece in pieces:
            assert bare.run(TC_UPLINK_IN, piece).packet == piece
    else:
        goes_through(bare, TC_UPLINK_IN, pieces, pieces, order)


@pytest.mark.parametrize("program", [*OUTSIDE_INGRESS, TC_POD_IN])
def test_options_pieces_of_other_protocols_are_left_alone(bare: Datapath, program: str) -> None:
    """To the node itself, in any order: no piece of ours waits for them."""
    bare.apply(service(p.BACKEND_LOCAL))
    link, client = CLIENTS[TC_UPLINK_IN if program == XDP else program]
    frame = bytearray(p.udp(link, client, (p.NODE1, PORT), LONG))
    frame[23 if p.version() == 4 else 20] = GRE
    pieces = p.pieces(bytes(frame), *CUTS)
    for piece in (*pieces[1:], *pieces):
        result = bare.run(program, piece)
        assert (result.verdict, result.reason) == (PASS, "OTHER_PROTOCOL")
        p.assert_same(result.packet, piece)


@pytest.mark.parametrize("family", [4], indirect=True, ids=["ipv4"])
def test_options_where_a_program_is_missing(bare: Datapath) -> None:
    """A packet to a node port is known for one by its ports, which are behind the options."""
    bare.apply(service(p.BACKEND_LOCAL))
    frame = options.into(p.tcp(LINK, CLIENT, NODE_PORT), EVERYWHERE[4])
    with bare.without_programs(lambda number, _: number >= len(HOOK_OF) + 2):
        assert bare.run(TC_UPLINK_IN, frame).reason == "STEP_MISSING_VIP"
