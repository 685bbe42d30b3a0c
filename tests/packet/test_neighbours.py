# SPDX-License-Identifier: Apache-2.0
"""Who has an announced address? ARP requests and neighbour solicitations, answered by its owner alone."""

from __future__ import annotations

import time
from collections.abc import Iterator
from ipaddress import IPv6Address
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet6 import (
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet

from lb.config import Timeouts
from lb.datapath.maps import layouts
from tests import packets as p
from tests.packet.harness import (
    DROP,
    HOOK_OF,
    OUTSIDE_INGRESS,
    PASS,
    SEND,
    TC_POD_IN,
    TC_UPLINK_IN,
    TC_UPLINK_OUT,
    Datapath,
    packed,
)
from tests.packet.plans import PORT, service

VIP = p.LOAD_BALANCER_VIP
TO_ALL = "ff:ff:ff:ff:ff:ff"
RIVAL_MAC = "02:00:00:00:00:66"
SECOND_NS = 10**9

each_program = pytest.mark.parametrize("program", OUTSIDE_INGRESS)


def mac_bytes(mac: str) -> bytes:
    return bytes.fromhex(mac.replace(":", ""))


def solicited_node(address: str) -> str:
    """Return the multicast address at which whoever has the address is asked: RFC 4291, section 2.7.1."""
    return str(IPv6Address(int(IPv6Address("ff02::1:ff00:0")) | int(IPv6Address(address)) & 0xFFFFFF))


def multicast_mac(address: str) -> str:
    return "33:33:" + ":".join(f"{byte:02x}" for byte in IPv6Address(address).packed[-4:])


def announce(
    datapath: Datapath, *, seconds: float = 60, ifindex: int | None = None, former_seconds: float = -1
) -> None:
    """Let the node own the address at an interface, by default its uplink, for so long.

    former_seconds: for so long NODE2, which owned it before, gets what is of its connections.
    """
    key = np.array(
        [(packed(VIP), datapath.uplink if ifindex is None else ifindex)], layouts.ANNOUNCED_KEY[p.version()]
    )
    until, former_until = (time.monotonic_ns() + int(each * SECOND_NS) for each in (seconds, former_seconds))
    row = (until, former_until, mac_bytes(p.NODE1_MAC), mac_bytes(p.NODE2_MAC), (0,) * 4)
    datapath.update("announced", key, np.array([row], layouts.ANNOUNCED))


@pytest.fixture
def owner(datapath: Datapath) -> Iterator[Datapath]:
    """The node that owns the address."""
    announce(datapath)
    yield datapath
    for name in ("announced", "rivals"):
        datapath.delete(name, datapath.read(name)[0])


def question(
    target: str = VIP, *, source: str = p.CLIENT, mac: str = p.CLIENT_MAC, to: str = "", options: bool = True
) -> bytes:
    """Return what asks for the link address of target: to all, or to one link address."""
    if p.version() == 4:
        arp = ARP(op=1, hwsrc=mac, psrc=source, pdst=target)
        return bytes(p.ether(mac, to or TO_ALL) / arp)
    group = solicited_node(p.here(target))
    link = p.ether(mac, to or multicast_mac(group))
    ip = IPv6(src=p.here(source), dst=p.here(target) if to else group, hlim=255)
    asks = ICMPv6ND_NS(tgt=p.here(target))
    return bytes(link / ip / asks / ICMPv6NDOptSrcLLAddr(lladdr=mac) if options else link / ip / asks)


def answer(*, to: str = p.CLIENT, mac: str = p.CLIENT_MAC) -> bytes:
    """Return what the owner says to whoever asked."""
    link = p.ether(p.NODE1_MAC, mac)
    if p.version() == 4:
        return bytes(link / ARP(op=2, hwsrc=p.NODE1_MAC, psrc=VIP, hwdst=mac, pdst=to))
    says = ICMPv6ND_NA(tgt=p.here(VIP), R=0, S=1, O=1) / ICMPv6NDOptDstLLAddr(lladdr=p.NODE1_MAC)
    return bytes(link / IPv6(src=p.here(VIP), dst=p.here(to), hlim=255) / says)


def claim(mac: str = RIVAL_MAC) -> bytes:
    """Return what announces the address at another link address."""
    if p.version() == 4:
        return bytes(p.ether(mac, TO_ALL) / ARP(op=1, hwsrc=mac, psrc=VIP, pdst=VIP))
    says = ICMPv6ND_NA(tgt=p.here(VIP), R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=mac)
    return bytes(p.ether(mac, "33:33:00:00:00:01") / IPv6(src=p.here(VIP), dst="ff02::1", hlim=255) / says)


def check_answered(datapath: Datapath, program: str, frame: bytes, want: bytes) -> None:
    __tracebackhide__ = True
    result = datapath.run(program, frame)
    assert (result.verdict, dict(result.reasons)) == (SEND, {(HOOK_OF[program], "NEIGHBOUR"): 1})
    p.assert_same(result.packet, want)


def check_left_alone(datapath: Datapath, program: str, frame: bytes, *reasons: str) -> None:
    __tracebackhide__ = True
    result = datapath.run(program, frame)
    assert result.verdict == PASS
    p.assert_same(result.packet, frame)
    assert result.reason in reasons or not reasons


def rival_frames(datapath: Datapath) -> dict[bytes, int]:
    _, values = datapath.read("rivals")
    return {bytes(one["mac"]): int(one["frames"]) for one in values}


@each_program
def test_neighbours_of_an_owned_address_are_answered(owner: Datapath, program: str) -> None:
    """Whether all were asked or this node alone, as to find out that it is still there."""
    check_answered(owner, program, question(), answer())
    check_answered(owner, program, question(to=p.NODE1_MAC), answer())


@each_program
@pytest.mark.parametrize("family", [6], indirect=True, ids=["ipv6"])
def test_neighbours_ask_from_link_local_addresses_and_without_options(owner: Datapath, program: str) -> None:
    check_answered(owner, program, question(source="fe80::50"), answer(to="fe80::50"))
    check_answered(owner, program, question(source="fe80::50", to=p.NODE1_MAC), answer(to="fe80::50"))
    check_answered(owner, program, question(to=p.NODE1_MAC, options=False), answer())


@each_program
def test_neighbours_that_probe_before_they_take_the_address_are_told(owner: Datapath, program: str) -> None:
    """RFC 5227, section 2.1.1; RFC 4862, section 5.4, where the answer is for all nodes."""
    if p.version() == 4:
        check_answered(owner, program, question(source="0.0.0.0"), answer(to="0.0.0.0"))
        return
    says = ICMPv6ND_NA(tgt=p.here(VIP), R=0, S=0, O=1) / ICMPv6NDOptDstLLAddr(lladdr=p.NODE1_MAC)
    link = p.ether(p.NODE1_MAC, "33:33:00:00:00:01")
    told = bytes(link / IPv6(src=p.here(VIP), dst="ff02::1", hlim=255) / says)
    check_answered(owner, program, question(source="::", options=False), told)
    assert not rival_frames(owner)


@each_program
def test_neighbours_of_other_addresses_are_left_to_the_stack(owner: Datapath, program: str) -> None:
    for target in (p.NODE1, p.NODE2, p.EXTERNAL_VIP, p.NOT_A_VIP):
        check_left_alone(owner, program, question(target), "NOT_FOR_US")
        check_left_alone(owner, program, question(target, to=p.NODE1_MAC), "NOT_IP", "OTHER_PROTOCOL")


@each_program
def test_neighbours_elsewhere_get_no_answer(owner: Datapath, program: str) -> None:
    """On another segment than the address's, and when a switch shows what was meant for another host."""
    result = owner.run(program, question(), ifindex=owner.uplink_2)
    assert (result.verdict, result.reason) == (PASS, "NOT_FOR_US")
    check_left_alone(owner, program, question(to=p.NODE2_MAC), "NOT_FOR_US")


@each_program
def test_neighbours_get_no_answer_once_the_agent_is_silent(owner: Datapath, program: str) -> None:
    """The agent puts off the end of its ownership; nothing else has to happen for it to end."""
    announce(owner, seconds=-0.001)
    check_left_alone(owner, program, question(), "NOT_FOR_US")


def test_neighbours_that_pods_ask_for_are_their_gateways_affair(owner: Datapath) -> None:
    announce(owner, ifindex=owner.pod)
    check_left_alone(owner, TC_POD_IN, question(mac=p.POD_MAC), "NOT_IP", "OTHER_PROTOCOL")


def test_neighbours_of_the_node_s_own_processes_are_answered(owner: Datapath) -> None:
    """Nobody else would: the node does not hear its own frames. The answer enters by the uplink."""
    asked = question(source=p.NODE1, mac=p.NODE1_MAC)
    result = owner.run(TC_UPLINK_OUT, asked, from_host=True)
    assert (result.verdict, result.reason) == (SEND, "NEIGHBOUR")
    reply = answer(to=p.NODE1, mac=p.NODE1_MAC)
    p.assert_same(result.packet, reply)
    check_left_alone(owner, TC_UPLINK_IN, reply, "NOT_IP", "OTHER_PROTOCOL")
    assert not rival_frames(owner)


def test_neighbours_are_told_by_the_agent_past_our_own_programs(owner: Datapath) -> None:
    """What announces the address leaves as it is, and is no rival's if a switch brings it back."""
    own = claim(p.NODE1_MAC)
    check_left_alone(owner, TC_UPLINK_OUT, own, "NOT_IP", "OTHER_PROTOCOL")
    for program in OUTSIDE_INGRESS:
        check_left_alone(owner, program, own, "NOT_FOR_US")
    assert not rival_frames(owner)


@each_program
def test_neighbours_that_claim_the_address_are_noted(owner: Datapath, program: str) -> None:
    """They announce it, or ask or answer in its name. All of it goes on to the stack."""
    frames = [claim(), question(p.NODE1, source=VIP, mac=RIVAL_MAC)]
    if p.version() == 4:
        frames.append(
            bytes(
                p.ether(RIVAL_MAC, p.NODE1_MAC)
                / ARP(op=2, hwsrc=RIVAL_MAC, psrc=VIP, hwdst=p.NODE1_MAC, pdst=p.NODE1)
            )
        )
    for frame in frames:
        check_left_alone(owner, program, frame, "RIVAL")
    assert rival_frames(owner) == {mac_bytes(RIVAL_MAC): len(frames)}


@each_program
def test_neighbours_of_an_address_that_another_node_owns_are_no_rivals(
    datapath: Datapath, program: str
) -> None:
    check_left_alone(datapath, program, claim(), "NOT_FOR_US")
    assert not rival_frames(datapath)


def _malformed4() -> Iterator[tuple[str, Packet]]:
    good = {"op": 1, "hwsrc": p.CLIENT_MAC, "psrc": p.CLIENT, "pdst": VIP}
    wrong: dict[str, dict[str, Any]] = {
        "hardware": {"hwtype": 6},
        "protocol": {"ptype": 0x86DD},
        "hardware length": {"hwlen": 8},
        "protocol length": {"plen": 16},
        "operation": {"op": 3},
        "a sender that is many": {"hwsrc": TO_ALL},
    }
    for name, fields in wrong.items():
        yield name, p.ether(p.CLIENT_MAC, TO_ALL) / ARP(**{**good, **fields})
    yield "tagged", p.ether(p.CLIENT_MAC, TO_ALL) / Dot1Q(vlan=5) / ARP(**good)


def _malformed6() -> Iterator[tuple[str, Packet]]:
    group = solicited_node(p.here(VIP))
    link = p.ether(p.CLIENT_MAC, multicast_mac(group))
    ip = IPv6(src=p.here(p.CLIENT), dst=group, hlim=255)
    nobody = IPv6(src="::", dst=group, hlim=255)
    asks, option = ICMPv6ND_NS(tgt=p.here(VIP)), ICMPv6NDOptSrcLLAddr(lladdr=p.CLIENT_MAC)
    yield "from beyond a router", link / IPv6(src=p.here(p.CLIENT), dst=group, hlim=254) / asks / option
    yield "code", link / ip / ICMPv6ND_NS(tgt=p.here(VIP), code=1) / option
    yield "checksum", link / ip / ICMPv6ND_NS(tgt=p.here(VIP), cksum=0x1234) / option
    yield "an option without length", link / ip / asks / ICMPv6NDOptSrcLLAddr(len=0, lladdr=p.CLIENT_MAC)
    yield "an option too long", link / ip / asks / ICMPv6NDOptSrcLLAddr(len=2, lladdr=p.CLIENT_MAC)
    yield "a link address of nobody", link / nobody / asks / option
    yield (
        "of nobody, to one",
        p.ether(p.CLIENT_MAC, p.NODE1_MAC) / IPv6(src="::", dst=p.here(VIP), hlim=255) / asks,
    )
    yield "tagged", link / Dot1Q(vlan=5) / ip / asks / option


@each_program
def test_neighbours_that_ask_wrongly_are_left_alone(owner: Datapath, program: str) -> None:
    for name, packet in _malformed4() if p.version() == 4 else _malformed6():
        frame = bytes(packet)
        result = owner.run(program, frame)
        assert (result.verdict, name) == (PASS, name)
        p.assert_same(result.packet, frame)
    whole = question()
    # A test run of tc takes no frame that is cut off within IPv6's header.
    for length in range(54 if p.version() == 6 and program == TC_UPLINK_IN else 14, len(whole)):
        result = owner.run(program, whole[:length])
        assert (result.verdict, length) == (PASS, length)
    assert not rival_frames(owner)


@each_program
def test_neighbours_that_flood_are_answered_at_a_rate(owner: Datapath, program: str) -> None:
    """Out of a bucket of its own: pings are none of its business."""
    row = owner.array("settings")[:1]
    row["answer_interval_ns"], row["answer_burst_ns"] = 3600 * SECOND_NS, 3 * 3600 * SECOND_NS
    results = [owner.run(program, question()) for _ in range(5)]
    row["answer_interval_ns"], row["answer_burst_ns"] = 0, 0
    assert sum(result.verdict == SEND for result in results) >= 3
    assert {(result.verdict, result.reason) for result in results} <= {
        (SEND, "NEIGHBOUR"),
        (DROP, "RATE_LIMITED"),
    }
    assert results[0].verdict == SEND


def onward(frame: bytes) -> bytes:
    """Return the frame as a router sends it on to NODE2."""
    packet = Ether(frame)
    packet.src, packet.dst = p.NODE1_MAC, p.NODE2_MAC
    ip = packet.getlayer(1)
    if p.version() == 6:
        ip.hlim -= 1
    else:
        ip.ttl -= 1
        del ip.chksum
    return bytes(packet)


@each_program
@pytest.mark.parametrize("backend", [p.BACKEND_LOCAL, p.BACKEND_REMOTE])
def test_neighbours_get_their_connections_after_they_handed_the_address_over(
    owner: Datapath, program: str, backend: str
) -> None:
    """What begins is the new owner's, and what goes on with that; the rest is its former owner's."""
    owner.apply(service(backend))
    announce(owner, former_seconds=60)
    client, vip = (p.CLIENT, p.CLIENT_PORT), (VIP, PORT)
    for flags in ("A", "PA", "FA", "R", "RA"):
        frame = p.tcp(p.FROM_CLIENT, client, vip, flags, b"data" if flags == "PA" else b"")
        result = owner.run(program, frame)
        assert (result.verdict, result.reason) == (SEND, "TO_FORMER_OWNER"), flags
        p.assert_same(result.packet, onward(frame))
    assert owner.run(program, p.udp(p.FROM_CLIENT, client, vip)).reason != "TO_FORMER_OWNER"
    new = (p.CLIENT, p.CLIENT_PORT + 1)
    assert owner.run(program, p.tcp(p.FROM_CLIENT, new, vip)).reason.startswith("NEW_")
    assert owner.run(program, p.tcp(p.FROM_CLIENT, new, vip, "A")).reason == "FLOW_HIT"


@each_program
def test_neighbours_get_connections_from_ports_that_were_used_here_before(
    owner: Datapath, program: str
) -> None:
    """A flow that is over is no reason to take another node's connection for ours."""
    owner.apply(service(p.BACKEND_LOCAL))
    client, vip = (p.CLIENT, p.CLIENT_PORT), (VIP, PORT)
    assert owner.run(program, p.tcp(p.FROM_CLIENT, client, vip)).reason == "NEW_LOCAL"
    announce(owner, former_seconds=60)
    frame = p.tcp(p.FROM_CLIENT, client, vip, "A")
    assert owner.run(program, frame).reason == "FLOW_HIT"
    owner.set_up_node(Timeouts(tcp_syn=1e-9, tcp_established=1e-9, tcp_closing=1e-9))
    keys, values = owner.read("flows")
    values = values.copy()
    values["touched"] -= 1_000_000  # ticks: the short way looks at nothing else
    owner.update("flows", keys, values)
    result = owner.run(program, frame)
    assert result.reason == "TO_FORMER_OWNER"
    p.assert_same(result.packet, onward(frame))
    announce(owner, former_seconds=-0.001)
    assert owner.run(program, frame).reason == "FLOW_HIT"


@each_program
def test_neighbours_get_no_connection_back_that_they_do_not_know(owner: Datapath, program: str) -> None:
    """Nor one of another address, nor after a while, nor what has come too far."""
    owner.apply(service(p.BACKEND_LOCAL))
    announce(owner, former_seconds=60)
    client = (p.CLIENT, p.CLIENT_PORT)
    ours = [
        p.tcp(p.FROM_NODE2, client, (VIP, PORT), "A"),
        p.tcp(p.FROM_CLIENT, client, (p.EXTERNAL_VIP, PORT), "A"),
        p.tcp(p.FROM_CLIENT, (p.CLIENT_2, p.CLIENT_PORT), (VIP, PORT), "A", ttl=1),
    ]
    for frame in ours:
        assert owner.run(program, frame).reason == "NEW_LOCAL"
    announce(owner, former_seconds=-0.001)
    late = p.tcp(p.FROM_CLIENT, (p.CLIENT, p.CLIENT_PORT + 1), (VIP, PORT), "A")
    assert owner.run(program, late).reason == "NEW_LOCAL"
