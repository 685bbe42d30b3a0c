# SPDX-License-Identifier: Apache-2.0
"""What the random test sends, and what of the plans its model knows."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address, ip_network
from typing import Any

from scapy.packet import Packet

from lb.model import ObjectKey, Protocol, TrafficPolicy
from lb.plan import SMALL_SET
from lb.plan.types import Backend, BackendState, PortPlan, ServicePlan, Vip, VipKey, VipKind
from tests import options
from tests import packets as p
from tests.packet import harness
from tests.packet.model_types import MASK, ModelBackend, Tuple5

AFFINITY_SECONDS = 45
VIP_PORT = 80
SCTP_WORDS = {
    "S": "INIT",
    "SA": "INIT ACK",
    "A": "DATA",
    "PA": "HEARTBEAT",
    "FA": "SHUTDOWN",
    "R": "ABORT",
    "RA": "SHUTDOWN COMPLETE",
}


def with_extra(frame: bytes, extra: int) -> bytes:
    """Return the frame with one of the shapes of options, by number; 0: with none."""
    shapes = [options.Options(), *options.TRANSLATED[p.version()].values()]
    return options.into(frame, shapes[extra])


def frame_of(
    link: Packet,
    t: Tuple5,
    flags: str,
    payload: bytes,
    *,
    ttl: int = 64,
    checksum: bool = True,
    number: int = 0,
) -> bytes:
    """Return a frame of the tuple; flags are TCP's, or stand for chunks.

    number: of a backend's packet what the client has to show later; of the client's what it shows.
    """
    src, dst = (str(t.src), t.sport), (str(t.dst), t.dport)
    if t.protocol is Protocol.TCP:
        return p.tcp(link, src, dst, flags, payload, ttl=ttl, seq=number - 1 & MASK, ack=number)
    if t.protocol is Protocol.SCTP:
        if flags == "SA":
            payload = number.to_bytes(4, "big") + payload
        return p.sctp(link, src, dst, SCTP_WORDS[flags], payload, ttl=ttl, tag=number)
    return p.udp(link, src, dst, payload, ttl=ttl, checksum=checksum)


def side_of(program: str) -> str:
    """Return the model's word for where a program sees packets."""
    if program in harness.OUTSIDE_INGRESS:
        return "outside"
    return "inside" if program == harness.TC_POD_IN else "out"


def key_of(t: Tuple5) -> tuple[str, int, str, int, int]:
    return (str(t.src), t.sport, str(t.dst), t.dport, int(t.protocol))


def taking_new(backends: list[Backend]) -> list[Backend]:
    """Return the active ones; without any, those that are on their way out."""
    return [one for one in backends if one.state is BackendState.ACTIVE] or backends


def model_backend(backend: Backend) -> ModelBackend:
    return ModelBackend(IPv4Address(p.role(str(backend.address))), backend.port, backend.local)


def model_rows(backends: list[Backend]) -> tuple[ModelBackend, ...]:
    """Return what each row of a set leads to; here all sets are small."""
    assert len(backends) <= SMALL_SET
    return tuple(map(model_backend, backends))


def plan(
    name: str,
    address: str,
    spec: dict[str, Any],
    backends: list[Backend],
    sets: dict[TrafficPolicy, list[Backend]],
) -> ServicePlan:
    """Return a Service of one port and one VIP."""
    own = ip_address(p.here(address))
    vips = (VipKey(own, VIP_PORT, spec["protocol"]), VipKey(own))
    port = PortPlan(
        port_name="port",
        protocol=spec["protocol"],
        version=p.version(),
        affinity_seconds=spec["affinity"],
        vips=tuple(Vip(key, spec["kind"], **spec["policies"]) for key in vips),
        backends=tuple(backends),
        cluster=tuple(sets[TrafficPolicy.CLUSTER]),
        local=tuple(sets[TrafficPolicy.LOCAL]),
        source_ranges=tuple(ip_network(p.here_net(str(each))) for each in spec["ranges"])
        if spec["kind"] is VipKind.LOAD_BALANCER
        else (),
    )
    return ServicePlan(ObjectKey("default", name), "", (port,))
