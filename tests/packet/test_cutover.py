# SPDX-License-Identifier: Apache-2.0
"""Packets while Services change hands: to a VIP, of connections that netfilter has begun, and of new ones."""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import pytest

from lb.cutover import give_back, moves
from lb.cutover.adopt import Adopted, Adopter
from lb.cutover.conntrack import Conntrack, Tuple, dump
from lb.cutover.moves import Move
from lb.datapath.maps.layouts import Cutover, FlowPath, FlowSign, FlowState
from lb.datapath.programs import features
from lb.model import IPAddress, Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet import reference
from tests.packet.harness import OUTSIDE_INGRESS, PASS, SEND, TC_POD_IN, TC_UPLINK_IN, TC_UPLINK_OUT, Datapath
from tests.packet.plans import BUILD, TARGET_PORT, VIPS, service

VIP = VIPS[VipKind.LOAD_BALANCER]
CLIENT, NEWCOMER = (p.CLIENT, 40_000), (p.CLIENT_2, 40_000)
MASQUERADED = (p.NODE1, 5_000)  # outside of the ports that we give ourselves
KINDS = pytest.mark.parametrize("protocol", Protocol)
both_uplinks = pytest.mark.parametrize("program", OUTSIDE_INGRESS)


@pytest.fixture
def datapath(datapath: Datapath) -> Iterator[Datapath]:
    """The data plane, whose settings are afterwards as they were."""
    if not features.optional()["CONNTRACK"]:
        pytest.skip("programs cannot ask this kernel's conntrack: see docs/kernels.md")
    before = datapath.maps.array(f"settings{p.version()}").copy()
    yield datapath
    datapath.maps.array("cutover")[0] = Cutover.NONE
    datapath.maps.array(f"settings{p.version()}")[:] = before


def place(role: tuple[str, int]) -> tuple[IPAddress, int]:
    return ip_address(p.here(role[0])), role[1]


def tuple_of(src: tuple[str, int], dst: tuple[str, int], protocol: Protocol) -> Tuple:
    return Tuple(*place(src), *place(dst), protocol)


def frame(client: tuple[str, int], protocol: Protocol, flags: str = "A") -> bytes:
    more = {Protocol.TCP: (flags,), Protocol.UDP: (), Protocol.SCTP: ("INIT" if flags == "S" else "DATA",)}
    return BUILD[protocol](p.FROM_CLIENT, client, VIP, *more[protocol])


@both_uplinks
@KINDS
def test_cutover_what_netfilter_has_begun_is_left_to_it(
    datapath: Datapath, program: str, protocol: Protocol
) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    asked = tuple_of(CLIENT, VIP, protocol)
    with datapath.namespace.entered(), Conntrack() as table:
        assert table.create(asked, 60, destination=place((p.BACKEND_LOCAL, TARGET_PORT)))
        assert not table.create(asked, 60)
        [entry] = [one for one in dump() if one.original == asked]
        assert entry.translated
        datapath.maps.array("cutover")[0] = Cutover.TAKE
        result = datapath.run(program, frame(CLIENT, protocol))
        assert (result.verdict, result.reason) == (PASS, "OWN_CONNECTION")
        p.assert_same(result.packet, frame(CLIENT, protocol))
        assert datapath.run(program, frame(NEWCOMER, protocol, "S")).reason == "NEW_LOCAL"
        datapath.maps.array("cutover")[0] = Cutover.NONE
        assert datapath.run(program, frame(CLIENT, protocol)).reason == "NEW_LOCAL"
        assert table.delete(asked, entry.ident)
        assert not table.delete(asked)


@pytest.mark.parametrize("backend", [p.BACKEND_LOCAL, p.BACKEND_REMOTE])
@KINDS
def test_cutover_a_masqueraded_connection_becomes_a_flow(
    datapath: Datapath, protocol: Protocol, backend: str
) -> None:
    """The node stands for the client, also where the backend is a pod of it: replies are undone there."""
    datapath.apply(service(backend, protocol=protocol))
    known = moves.known(datapath.maps)
    client, there = tuple_of(CLIENT, VIP, protocol), tuple_of(MASQUERADED, (backend, TARGET_PORT), protocol)
    service_id = known.services[client.dst, client.dport, protocol]
    slot = known.slots[service_id, there.dst, there.dport]
    life = (FlowState.ESTABLISHED, FlowSign(0))
    move = Move(client, there, FlowPath.FORWARD, service_id, slot, *life)
    row = datapath.maps.array(f"settings{p.version()}")[:1]
    row["former_port_min"], row["former_port_max"] = 1024, 65_535
    with Adopter(datapath.maps) as adopter:
        assert adopter.flow(move) is Adopted.YES
        assert adopter.flow(move) is Adopted.YES
        other = Move(tuple_of(NEWCOMER, VIP, protocol), there, FlowPath.FORWARD, service_id, slot, *life)
        assert adopter.flow(other) is Adopted.TAKEN
        elsewhere = Move(
            client,
            tuple_of((p.NODE1, 5_001), (backend, TARGET_PORT), protocol),
            FlowPath.FORWARD,
            1,
            slot,
            *life,
        )
        assert adopter.flow(elsewhere) is Adopted.KNOWN
    result = datapath.run(TC_UPLINK_IN, frame(CLIENT, protocol))
    assert (result.verdict, result.reason) == (SEND, "FLOW_HIT")
    seen = reference.tuple_of(result.packet)
    assert (str(seen.src), seen.sport) == MASQUERADED
    local = backend == p.BACKEND_LOCAL
    link, hook = (p.FROM_POD, TC_POD_IN) if local else (p.FROM_NODE2, TC_UPLINK_IN)
    chunk = ("DATA",) if protocol is Protocol.SCTP else ()
    reply = BUILD[protocol](link, (backend, TARGET_PORT), MASQUERADED, *chunk)
    result = datapath.run(hook, reply)
    assert (result.verdict, result.reason) == (SEND, "REPLY")


def test_cutover_the_tags_of_an_association_are_known(datapath: Datapath) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, protocol=Protocol.SCTP))
    backend = (p.BACKEND_LOCAL, TARGET_PORT)
    datapath.run(TC_UPLINK_IN, p.sctp(p.FROM_CLIENT, CLIENT, VIP, "INIT", tag=0))
    assert give_back.flows(datapath.maps) == ([], {give_back.TAGS: 1})
    wanted = (7).to_bytes(4, "big")
    datapath.run(TC_UPLINK_OUT, p.sctp(p.TO_CLIENT, backend, CLIENT, "INIT ACK", wanted, tag=9))
    datapath.run(TC_UPLINK_IN, p.sctp(p.FROM_CLIENT, CLIENT, VIP, "COOKIE ECHO", tag=7))
    [move], left = give_back.flows(datapath.maps)
    assert (move.client, move.tags, left) == (tuple_of(CLIENT, VIP, Protocol.SCTP), (7, 9), {})


@both_uplinks
@KINDS
def test_cutover_what_begins_is_left_alone_on_the_way_back(
    datapath: Datapath, program: str, protocol: Protocol
) -> None:
    datapath.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    assert datapath.run(program, frame(CLIENT, protocol, "S")).reason == "NEW_LOCAL"
    datapath.maps.array("cutover")[0] = Cutover.LEAVE
    result = datapath.run(program, frame(NEWCOMER, protocol, "S"))
    assert (result.verdict, result.reason) == (PASS, "OWN_CONNECTION")
    p.assert_same(result.packet, frame(NEWCOMER, protocol, "S"))
    assert datapath.run(program, frame(CLIENT, protocol)).reason == "FLOW_HIT"
