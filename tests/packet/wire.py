# SPDX-License-Identifier: Apache-2.0
"""The programs at work: attached in the bench's namespace, frames come and go by real interfaces.

A test run (:meth:`Datapath.run`) gives every packet an Ethernet header and no metadata. What depends on
either is seen here: a tunnel without link header, and a VLAN tag that the kernel took off.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Iterator
from ipaddress import ip_address, ip_network

import numpy as np
from pyroute2 import IPRoute

from lb.datapath.attach.hooks import TC_PROGRAMS_L3
from lb.datapath.attach.netlink import Netlink
from lb.datapath.attach.snat import add_snat_sources
from lb.datapath.kernel.rtnl import Direction
from lb.datapath.maps import layouts
from tests import packets as p
from tests.packet.harness import TC_POD_IN, TC_POD_OUT, TC_UPLINK_IN, TC_UPLINK_OUT, Datapath, own, packed

PATIENCE = 5  # seconds; nothing takes so long but what does not come
TUNNEL_NET = "10.0.4.0/24"
TUNNEL_ADDRESS = "10.0.4.1"  # of the node, on its tunnel
BEHIND_TUNNEL = "10.0.4.9"

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 1, 0x1000
_ETH_P_ALL = 3
_PACKET_OUTGOING = 4


class Wire:
    """One end where frames go in and come out."""

    def __init__(
        self,
        fd: int,
        receive: Callable[[], bytes | None],
        send: Callable[[bytes], object],
        close: Callable[[], None],
    ) -> None:
        self._fd, self._receive, self.send, self.close = fd, receive, send, close

    def expect(self, want: bytes) -> None:
        """Wait until this frame comes out; what the kernel says by itself meanwhile does not count."""
        __tracebackhide__ = True
        others, end = [], time.monotonic() + PATIENCE
        while (left := end - time.monotonic()) > 0:
            if select.select([self._fd], [], [], left)[0] and (frame := self._receive()) is not None:
                if frame == want:
                    return
                others.append(frame.hex(" ", 4))
        raise AssertionError("\n".join(["it did not come out:", want.hex(" ", 4), "these did:", *others]))


def peer(name: str) -> Wire:
    """Return the other end of one of the bench's veth pairs; call it in the bench's namespace."""
    link = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(_ETH_P_ALL))
    link.bind((f"{name}-peer", _ETH_P_ALL))

    def receive() -> bytes | None:
        frame, (*_, kind, _, _) = link.recvfrom(1 << 16)
        return None if kind == _PACKET_OUTGOING else frame

    return Wire(link.fileno(), receive, link.sendall, link.close)


@contextlib.contextmanager
def tunnel(datapath: Datapath) -> Iterator[tuple[int, Wire]]:
    """Make a TUN device in the bench's namespace; yield its ifindex and its far end."""
    with datapath.namespace.entered():
        fd = os.open("/dev/net/tun", os.O_RDWR)
    end = Wire(fd, lambda: os.read(fd, 1 << 16), lambda packet: os.write(fd, packet), lambda: os.close(fd))
    try:
        with datapath.namespace.entered():
            fcntl.ioctl(fd, _TUNSETIFF, struct.pack("16sH22x", b"tun0", _IFF_TUN | _IFF_NO_PI))
            index = socket.if_nametoindex("tun0")
            with IPRoute() as route:
                route.link("set", index=index, state="up", mtu=1480)
                for version in layouts.FAMILIES:
                    with p.family(version):
                        network = ip_network(p.here_net(TUNNEL_NET))
                        family = socket.AF_INET if version == 4 else socket.AF_INET6
                        route.addr(
                            "add",
                            index=index,
                            address=p.here(TUNNEL_ADDRESS),
                            prefixlen=network.prefixlen,
                            family=family,
                        )
        yield index, end
    finally:
        end.close()


def know_tunnel(datapath: Datapath, index: int) -> None:
    """Tell the programs the node's address on the tunnel."""
    row = np.zeros(1, dtype=layouts.IFACE[p.version()])
    row["source"], row["flags"] = packed(TUNNEL_ADDRESS), layouts.IfaceFlag.TUNNEL
    add_snat_sources(datapath.maps, p.version(), [ip_address(p.here(TUNNEL_ADDRESS))])
    datapath.maps.update(own("ifaces"), np.array([index], dtype=layouts.ID), row)


def attach(datapath: Datapath) -> None:
    """Attach the tc programs to the bench's interfaces, and those for bare IP to its tunnel."""
    programs = {
        "up0": {Direction.INGRESS: TC_UPLINK_IN, Direction.EGRESS: TC_UPLINK_OUT},
        "pod0": {Direction.INGRESS: TC_POD_IN, Direction.EGRESS: TC_POD_OUT},
        "tun0": TC_PROGRAMS_L3,
    }
    with datapath.namespace.entered(), Netlink() as net:
        for interface in net.interfaces():
            for direction, program in programs.get(interface.name, {}).items():
                net.attach_tc(interface, direction, program, datapath.program(program))
