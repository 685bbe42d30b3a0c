# SPDX-License-Identifier: Apache-2.0
"""Tunnels without link header, and frames whose VLAN tag is in their metadata: on real interfaces."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from scapy.layers.l2 import Dot1Q, Ether

from lb.model import Protocol
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet import wire
from tests.packet.harness import Datapath
from tests.packet.plans import BUILD, NODE_PORT, PORT, TARGET_PORT, VIPS, service
from tests.packet.rows import ONE_SNAT_PORT, SNAT_PORT
from tests.packet.wire import BEHIND_TUNNEL, TUNNEL_ADDRESS, Wire

VIP = VIPS[VipKind.LOAD_BALANCER]
LINK = p.FROM_CLIENT  # of frames whose link header is then taken off
FAR = (BEHIND_TUNNEL, p.CLIENT_PORT)
CLIENT = (p.CLIENT, p.CLIENT_PORT)

each_protocol = pytest.mark.parametrize("protocol", BUILD)


def bare(frame: bytes) -> bytes:
    return frame[14:]


@pytest.fixture(scope="module")
def attached() -> Iterator[tuple[Datapath, int, dict[str, Wire]]]:
    """A bench with a tunnel, its programs attached; the far ends of its interfaces, by name."""
    datapath = Datapath()
    try:
        with wire.tunnel(datapath) as (index, tun):
            wire.attach(datapath)
            with datapath.namespace.entered():
                ends = {"tun0": tun, **{name: wire.peer(name) for name in ("up0", "pod0")}}
            yield datapath, index, ends
            for name in ("up0", "pod0"):
                ends[name].close()
    finally:
        datapath.close()


@pytest.fixture
def ends(attached: tuple[Datapath, int, dict[str, Wire]], family: int) -> dict[str, Wire]:
    assert family
    datapath, index, ends = attached
    datapath.apply()
    datapath.reset()
    datapath.set_up_node(snat_ports=ONE_SNAT_PORT)
    wire.know_tunnel(datapath, index)
    return ends


@pytest.fixture
def bench(attached: tuple[Datapath, int, dict[str, Wire]], ends: dict[str, Wire]) -> Datapath:
    assert ends
    return attached[0]


@each_protocol
def test_overlay_client_outside_backend_behind_the_tunnel(
    bench: Datapath, ends: dict[str, Wire], protocol: Protocol
) -> None:
    """Out through the tunnel in the node's name there, and the answer back to the uplink."""
    bench.apply(service(BEHIND_TUNNEL, protocol=protocol))
    seen, backend = (TUNNEL_ADDRESS, SNAT_PORT), (BEHIND_TUNNEL, TARGET_PORT)
    for _ in range(2):
        request = BUILD[protocol](p.FROM_CLIENT, CLIENT, VIP)
        ends["up0"].send(request)
        ends["tun0"].expect(bare(p.rebuilt(request, src=seen, dst=backend, ttl=63)))
        reply = BUILD[protocol](LINK, backend, seen)
        ends["tun0"].send(bare(reply))
        ends["up0"].expect(p.rebuilt(reply, link=p.TO_CLIENT, src=VIP, dst=CLIENT, ttl=63))


@each_protocol
def test_overlay_client_behind_the_tunnel_backend_here(
    bench: Datapath, ends: dict[str, Wire], protocol: Protocol
) -> None:
    bench.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    backend = (p.BACKEND_LOCAL, TARGET_PORT)
    for _ in range(2):
        request = BUILD[protocol](LINK, FAR, VIP)
        ends["tun0"].send(bare(request))
        ends["pod0"].expect(p.rebuilt(request, link=p.TO_POD, dst=backend, ttl=63))
        reply = BUILD[protocol](p.FROM_POD, backend, p.seen(FAR, protocol))
        ends["pod0"].send(reply)
        ends["tun0"].expect(bare(p.rebuilt(reply, src=VIP, ttl=63)))


@each_protocol
def test_overlay_client_behind_the_tunnel_backend_behind_the_uplink(
    bench: Datapath, ends: dict[str, Wire], protocol: Protocol
) -> None:
    """What had no link header leaves with one."""
    bench.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    seen, backend = (p.NODE1, SNAT_PORT), (p.BACKEND_REMOTE, TARGET_PORT)
    for _ in range(2):
        request = BUILD[protocol](LINK, FAR, VIP)
        ends["tun0"].send(bare(request))
        ends["up0"].expect(p.rebuilt(request, link=p.TO_NODE2, src=seen, dst=backend, ttl=63))
        reply = BUILD[protocol](p.FROM_NODE2, backend, seen)
        ends["up0"].send(reply)
        ends["tun0"].expect(bare(p.rebuilt(reply, src=VIP, dst=FAR, ttl=63)))


@each_protocol
def test_overlay_pod_to_a_backend_behind_the_tunnel(
    bench: Datapath, ends: dict[str, Wire], protocol: Protocol
) -> None:
    bench.apply(service(BEHIND_TUNNEL, protocol=protocol))
    pod, backend = (p.POD_CLIENT, p.CLIENT_PORT), (BEHIND_TUNNEL, TARGET_PORT)
    request = BUILD[protocol](p.FROM_POD, pod, VIP)
    ends["pod0"].send(request)
    ends["tun0"].expect(bare(p.rebuilt(request, dst=backend, ttl=63)))
    reply = BUILD[protocol](LINK, backend, p.seen(pod, protocol))
    ends["tun0"].send(bare(reply))
    ends["pod0"].expect(p.rebuilt(reply, link=p.TO_POD, src=VIP, ttl=63))


@each_protocol
def test_overlay_what_is_answered_to_a_client_behind_the_tunnel(
    bench: Datapath, ends: dict[str, Wire], protocol: Protocol
) -> None:
    """Refusals and pings go back where they came from, without a link header."""
    tun = ends["tun0"]

    def refusal(frame: bytes) -> bytes:
        return p.reset_for(frame) if protocol is Protocol.TCP else p.port_unreachable_for(frame)

    bench.apply(service(protocol=protocol))
    unknown = BUILD[protocol](LINK, FAR, (p.CLUSTER_VIP, PORT + 1))
    for frame in (BUILD[protocol](LINK, FAR, VIP), unknown):
        tun.send(bare(frame))
        tun.expect(bare(refusal(frame)))
    ping = p.echo(LINK, BEHIND_TUNNEL, VIP[0])
    tun.send(bare(ping))
    tun.expect(bare(p.icmp_error_for(ping, VIP[0], "host unreachable")))
    bench.apply(service(p.BACKEND_LOCAL, protocol=protocol))
    tun.send(bare(ping))
    tun.expect(bare(p.echo_reply_for(ping)))
    bench.apply(service(p.BACKEND_REMOTE, protocol=protocol))
    last = BUILD[protocol](LINK, FAR, VIP, ttl=1)
    tun.send(bare(last))
    tun.expect(bare(p.time_exceeded_for(last, TUNNEL_ADDRESS)))


def test_overlay_icmp_errors_and_fragments_through_the_tunnel(bench: Datapath, ends: dict[str, Wire]) -> None:
    bench.apply(service(BEHIND_TUNNEL, protocol=Protocol.UDP))
    seen, backend = (TUNNEL_ADDRESS, SNAT_PORT), (BEHIND_TUNNEL, TARGET_PORT)
    request = p.udp(p.FROM_CLIENT, CLIENT, VIP, bytes(range(256)) * 4)
    there = p.rebuilt(request, src=seen, dst=backend, ttl=63)
    for piece, want in zip(p.pieces(request, 504), p.pieces(there, 504), strict=True):
        ends["up0"].send(piece)
        ends["tun0"].expect(bare(want))
    error = p.icmp_error(LINK, p.ip(backend[0], seen[0]), "port unreachable", p.quote(there))
    ends["tun0"].send(bare(error))
    known = p.quote(p.rebuilt(request, ttl=63))
    ends["up0"].expect(p.icmp_error(p.TO_CLIENT, p.ip(VIP[0], p.CLIENT, ttl=63), "port unreachable", known))


def test_odd_packets_with_a_vlan_tag_in_their_metadata(bench: Datapath, ends: dict[str, Wire]) -> None:
    """The kernel takes the tag off before tc sees the frame: it is none of ours all the same."""
    bench.apply(service(p.BACKEND_LOCAL))
    frame = p.tcp(p.FROM_CLIENT, CLIENT, VIP)
    link = Ether(frame)
    ends["up0"].send(bytes(p.FROM_CLIENT / Dot1Q(vlan=5) / link.payload))
    ends["up0"].send(frame)
    ends["pod0"].expect(p.rebuilt(frame, link=p.TO_POD, dst=(p.BACKEND_LOCAL, TARGET_PORT), ttl=63))
    counted = bench.counters()
    assert counted["TC_UPLINK_IN", "VLAN"] == 1
    assert counted["TC_UPLINK_IN", "NEW_LOCAL"] == 1


def test_overlay_the_nodes_own_address_on_the_tunnel_is_left_to_its_stack(
    bench: Datapath, ends: dict[str, Wire]
) -> None:
    bench.apply(service(p.BACKEND_LOCAL))
    ping = p.echo(LINK, BEHIND_TUNNEL, TUNNEL_ADDRESS)
    ends["tun0"].send(bare(ping))
    closed = p.udp(LINK, FAR, (TUNNEL_ADDRESS, NODE_PORT))
    ends["tun0"].send(bare(closed))
    vip = p.echo(LINK, BEHIND_TUNNEL, VIP[0])
    ends["tun0"].send(bare(vip))
    ends["tun0"].expect(bare(p.echo_reply_for(vip)))
    assert bench.counters()["TC_L3_IN", "NOT_VIP"] >= 2
