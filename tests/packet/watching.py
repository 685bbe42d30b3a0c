# SPDX-License-Identifier: Apache-2.0
"""What is told to `lbctl monitor` while packets go through the programs."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address
from typing import Any

import pytest

from lb.datapath.maps.layouts import REASONS, WatchFlag
from lb.datapath.view.watch import Watch
from lb.live.events import Names, PacketEvent, What, describe
from lb.model import Protocol, socket_text
from lb.plan.types import VipKind
from tests import packets as p
from tests.packet.harness import (
    HOOK_OF,
    OUTSIDE_INGRESS,
    TC_POD_IN,
    TC_POD_OUT,
    Datapath,
)
from tests.packet.plans import TARGET_PORT, VIPS

Socket = tuple[str, int]
FLOWS, DROPS, PACKETS, BYTES = WatchFlag
VIP = VIPS[VipKind.CLUSTER_IP]
CLIENT = (p.CLIENT, p.CLIENT_PORT)
POD = (p.POD_CLIENT, p.CLIENT_PORT)
LOCAL = (p.BACKEND_LOCAL, TARGET_PORT)
REMOTE = (p.BACKEND_REMOTE, TARGET_PORT)
WEB = "default/web:http"
EVENTS = FLOWS | DROPS
ALL = EVENTS | PACKETS
both_uplinks = pytest.mark.parametrize("uplink_program", OUTSIDE_INGRESS)
each_protocol = pytest.mark.parametrize("protocol", list(Protocol))


class Told:
    """Somebody who watches, and what became of the packets that were run meanwhile."""

    def __init__(self, datapath: Datapath, watch: Watch) -> None:
        self.datapath, self.watch = datapath, watch
        self.names = Names(datapath.maps)

    def records(self) -> list[Any]:
        """Return the records that have come."""
        return list(self.watch.events())

    def events(self) -> list[PacketEvent]:
        """Return what has come in words, with a time of 0."""
        with self.datapath.namespace.entered():
            return [replace(describe(one, self.names, 0), time_ns=0) for one in self.records()]

    def of(self, program: str, frame: bytes, **how: Any) -> list[PacketEvent]:
        """Run a program on a frame, and return what was told."""
        self.datapath.run(program, frame, **how)
        return self.events()


@contextlib.contextmanager
def watching(datapath: Datapath, what: WatchFlag, **how: Any) -> Iterator[Told]:
    """Watch for an hour, or until the end: on a slow machine a lease would be over."""
    how = {"clock": lambda: time.monotonic_ns() + 3600 * 10**9, **how}
    with Watch(datapath.maps, what, **how) as watch:
        yield Told(datapath, watch)


def text(there: Socket) -> str:
    """Return an address and port in the family under test, as events have them."""
    address = ip_address(p.here(there[0]))
    return socket_text(address, there[1]) if there[1] else str(address)


def event(what: What, program: str, reason: str, frame: bytes, **fields: Any) -> PacketEvent:
    """Return the event of a frame; fields are those that are not as in most."""
    meaning = next(words for name, words in REASONS if name == reason)
    known = {"sent_source": "", "sent_destination": "", "client": "", "vip": "", "backend": "", "snat": ""}
    usual = {
        "time_ns": 0,
        "what": what,
        "hook": HOOK_OF[program],
        "interface": "pod0" if program in (TC_POD_IN, TC_POD_OUT) else "up0",
        "reason": reason,
        "meaning": meaning,
        "service": WEB,
        "protocol": "TCP",
        "reply": False,
        "flags": "",
        "length": len(frame),
    }
    return PacketEvent(**{**known, **usual, **fields})


def request(source: Socket, vip: Socket, seen: Socket, backend: Socket) -> dict[str, Any]:
    """Return the fields of a client's packet that reaches a backend as if it came from seen."""
    return {
        "source": text(source),
        "destination": text(vip),
        "sent_source": text(seen),
        "sent_destination": text(backend),
        "client": text(source),
        "vip": text(vip),
        "backend": text(backend),
        "snat": text(seen) if seen != source else "",
    }


def answer(source: Socket, vip: Socket, seen: Socket, backend: Socket) -> dict[str, Any]:
    """Return the fields of the backend's packets of the same connection."""
    return request(source, vip, seen, backend) | {
        "reply": True,
        "source": text(backend),
        "destination": text(seen),
        "sent_source": text(vip),
        "sent_destination": text(source),
    }
