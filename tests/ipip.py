# SPDX-License-Identifier: Apache-2.0
"""IP in IP between the nodes of a lab, for kernels that have no such device.

``python ipip.py DEVICE OWN NETWORK=NODE…`` runs on a node. It makes a TUN device, which like ipip and sit has
no Ethernet header, and carries what is sent into it to the node that has the packet's destination, by raw
sockets of protocol 4 (IPv4 in IPv4, RFC 2003) and 41 (IPv6 in IPv4, RFC 4213): on the wire it is what the
kernel's devices would send.
"""

from __future__ import annotations

import fcntl
import os
import select
import socket
import struct
import sys
from ipaddress import IPv4Network, IPv6Network, ip_address, ip_network
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

DEVICE = "ipip0"
_TUNSETIFF = 0x400454CA  # of linux/if_tun.h
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_MOST = 65535
_INNER = {4: socket.IPPROTO_IPIP, 6: socket.IPPROTO_IPV6}


def destination(packet: bytes) -> tuple[int, Any]:
    """Return the IP version of a packet and its destination address."""
    version = packet[0] >> 4
    return version, ip_address(packet[16:20] if version == 4 else packet[24:40])


def carry(tun: int, wires: dict[int, socket.socket], nodes: dict[IPv4Network | IPv6Network, str]) -> None:
    """Carry one packet in each direction in which there is one."""
    ends: list[int | socket.socket] = [tun, *wires.values()]
    for ready in select.select(ends, [], [])[0]:
        if isinstance(ready, socket.socket):
            outer = ready.recv(_MOST)
            os.write(tun, outer[(outer[0] & 0x0F) * 4 :])
            continue
        packet = os.read(tun, _MOST)
        version, where = destination(packet)
        node = next((node for network, node in nodes.items() if where in network), None)
        if node is not None:
            wires[version].sendto(packet, (node, 0))


def main(device: str, own: str, networks: list[str]) -> None:
    """Run on a node until killed; the device appears when everything is ready."""
    wires = {}
    for version, protocol in _INNER.items():
        wires[version] = socket.socket(socket.AF_INET, socket.SOCK_RAW, protocol)
        wires[version].bind((own, 0))
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH22x", device.encode(), _IFF_TUN | _IFF_NO_PI))
    nodes = {ip_network(network): node for network, _, node in (each.partition("=") for each in networks)}
    while True:
        carry(tun, wires, nodes)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    """Have labs that are brought up with ``--overlay ipip`` use this instead of the kernel's devices."""
    from lb.lab import namespaces, tunnels  # noqa: PLC0415 - not for the process on the node
    from lb.lab.addressing import LabSpec, node_address  # noqa: PLC0415
    from lb.lab.processes import spawn, wait_for  # noqa: PLC0415
    from lb.lab.store import Store  # noqa: PLC0415

    def make_ipip(spec: LabSpec, route: Any, node: str, _uplink: int) -> dict[int, int]:
        networks = [
            f"{network}={node_address(other)}"
            for other in spec.node_names
            if other != node
            for network in spec.pod_cidrs(other)
        ]
        argv = [sys.executable, "-I", __file__, DEVICE, str(node_address(node)), *networks]
        log = Store(spec.id).log(f"ipip.{node}")
        process = spawn(namespaces.command(spec.namespace(node), argv), log)
        Store(spec.id).write_process(f"ipip.{node}", process)
        wait_for("the tunnel", lambda: bool(route.link_lookup(ifname=DEVICE)), process, log)
        [index] = route.link_lookup(ifname=DEVICE)
        route.link("set", index=index, mtu=spec.pod_mtu, state="up")
        return dict.fromkeys(spec.versions, index)

    patch.setattr(tunnels, "make_ipip", make_ipip)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3:])
