"""The lab's network: a switch, the client and the nodes on it, and pods behind veth pairs.

Every function here enters the namespaces that it works on and returns to the caller's own; nothing is made
outside of the lab's namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Iterable, Mapping
from ctypes import addressof, create_string_buffer
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from lb.config import UplinkMode
from lb.datapath.bpf import FD, Command, ProgType, syscall
from lb.errors import LabError
from lb.lab import namespaces
from lb.lab.addressing import (
    API_SERVER,
    CLIENTS,
    MTU,
    OUTSIDE_SERVER,
    POD_GATEWAY,
    POD_GATEWAY_MAC,
    TUNNEL,
    TUNNEL_MTU,
    UPLINK,
    VXLAN_ID,
    VXLAN_PORT,
    LabSpec,
    Overlay,
    node_address,
    node_mac,
    on_segment,
    pod_cidr,
    tunnel_mac,
)
from lb.lab.store import PodRecord

_BRIDGE = "br0"
_PERMANENT = 0x80  # NUD_PERMANENT of linux/neighbour.h
_ONLINK = 0x4  # RTNH_F_ONLINK of linux/rtnetlink.h
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_XDP_FLAGS_DRV_MODE = 0x4
_XDP_PASS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit

_QUIET = {
    # IPv4 only for now; without this each interface sends router solicitations and neighbour probes.
    "ipv6/conf/all/disable_ipv6": "1",
    "ipv6/conf/default/disable_ipv6": "1",
}
_NODE_SETTINGS = {
    **_QUIET,
    "ipv4/ip_forward": "1",
    # The client reaches every node through node1, answers return directly: redirects would undo that.
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    # Strict reverse-path filtering would drop translated packets; distributions differ in their default.
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
}
_HOST_SETTINGS = {**_QUIET, "ipv4/conf/all/accept_redirects": "0", "ipv4/conf/default/accept_redirects": "0"}


def build(spec: LabSpec) -> None:
    """Make the switch, the client, the API server's host if asked for, and the nodes with their routes.

    Raises
    ------
    LabError: names the namespace and what the kernel refused.
    """
    for name in spec.namespaces:
        namespaces.create(name)
    with namespaces.netlink(spec.switch) as switch:
        _settings(_QUIET)
        switch.link("add", ifname=_BRIDGE, kind="bridge")
        switch.link("set", index=_index(switch, _BRIDGE), state="up")
        _plug(switch, "client", spec.client, "02:77:00:00:00:64")
        if spec.kubernetes:
            _plug(switch, "api", spec.api, "02:77:00:00:00:fe")
        for node in spec.node_names:
            _plug(switch, node, spec.namespace(node), node_mac(node))
            if spec.uplink_mode in (UplinkMode.XDP_NATIVE, UplinkMode.XDP_GENERIC):
                _fill_in_checksums(node)
            if spec.uplink_mode is UplinkMode.XDP_NATIVE:
                _take_back(switch, node)
    _set_up_host(spec.client, (*CLIENTS, OUTSIDE_SERVER))
    if spec.kubernetes:
        _set_up_host(spec.api, (API_SERVER,))
    for node in spec.node_names:
        _set_up_node(spec, node)


def _index(route: Any, name: str) -> int:
    found = route.link_lookup(ifname=name)
    if not found:
        raise LabError(f"there is no interface {name}")
    return int(found[0])


def _plug(switch: Any, port: str, namespace: str, mac: str) -> None:
    """Connect a namespace's uplink to the bridge by a veth pair."""
    with open(namespaces.path(namespace), "rb") as target:
        peer = {"ifname": UPLINK, "net_ns_fd": target.fileno(), "address": mac, "mtu": MTU}
        switch.link("add", ifname=port, kind="veth", mtu=MTU, peer=peer)
    switch.link("set", index=_index(switch, port), master=_index(switch, _BRIDGE), state="up")


def _fill_in_checksums(port: str) -> None:
    """Turn off a switch port's transmit checksum offload.

    XDP at the other end of the veth pair would otherwise see packets whose checksums are still to be filled
    in: a veth leaves that to a device that such packets never reach.
    """
    value = create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP", port.encode(), addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def _take_back(switch: Any, port: str) -> None:
    """Attach a program to a switch port that passes every packet.

    A veth wakes its peer for what XDP_TX sends back only if the peer has an XDP program, too; without one
    those packets wait in a ring that nobody reads. A network card has no such condition.
    """
    license_text, code = create_string_buffer(b"GPL"), create_string_buffer(_XDP_PASS)
    attributes = struct.pack(
        "=IIQQ", ProgType.XDP, len(_XDP_PASS) // 8, addressof(code), addressof(license_text)
    )
    with FD(
        syscall(Command.PROG_LOAD, bytearray(attributes), "program xdp_pass"), "program xdp_pass"
    ) as program:
        wanted = [("IFLA_XDP_FD", program.fileno()), ("IFLA_XDP_FLAGS", _XDP_FLAGS_DRV_MODE)]
        switch.link("set", index=_index(switch, port), xdp={"attrs": wanted})


def _settings(values: Mapping[str, str]) -> None:
    """Write settings below /proc/sys/net of the namespace that the thread is in; a kernel may lack IPv6."""
    for name, value in values.items():
        with contextlib.suppress(FileNotFoundError):
            Path("/proc/sys/net", name).write_text(value)


def _up(route: Any, interface: str) -> int:
    index = _index(route, interface)
    route.link("set", index=index, state="up")
    return index


def _add_address(route: Any, index: int, address: IPv4Address, length: int) -> None:
    route.addr("add", index=index, address=str(address), prefixlen=length)


def _set_up_host(namespace: str, addresses: Iterable[IPv4Address]) -> None:
    """Make a namespace a host outside of the cluster: all that it knows is that node1 is its router."""
    with namespaces.netlink(namespace) as route:
        _settings(_HOST_SETTINGS)
        _up(route, "lo")
        uplink = _up(route, UPLINK)
        for address in addresses:
            _add_address(route, uplink, address, on_segment(address).network.prefixlen)
        route.route("add", dst="default", gateway=str(node_address("node1")))


def _set_up_node(spec: LabSpec, node: str) -> None:
    with namespaces.netlink(spec.namespace(node)) as route:
        _settings(_NODE_SETTINGS)
        _up(route, "lo")
        uplink = _up(route, UPLINK)
        own = node_address(node)
        _add_address(route, uplink, own, on_segment(own).network.prefixlen)
        route.route("add", dst="default", gateway=str(CLIENTS[0]))
        others = [other for other in spec.node_names if other != node]
        if spec.overlay is Overlay.VXLAN:
            _add_tunnel(route, node, uplink, others)
        else:
            for other in others:
                route.route("add", dst=str(pod_cidr(other)), gateway=str(node_address(other)))


def _add_tunnel(route: Any, node: str, uplink: int, others: list[str]) -> None:
    """Add the VXLAN device with one fixed neighbour, forwarding entry and route for each other node."""
    route.link(
        "add",
        ifname=TUNNEL,
        kind="vxlan",
        vxlan_id=VXLAN_ID,
        vxlan_port=VXLAN_PORT,
        vxlan_local=str(node_address(node)),
        vxlan_link=uplink,
        vxlan_learning=False,
        address=tunnel_mac(node),
        mtu=TUNNEL_MTU,
    )
    tunnel = _up(route, TUNNEL)
    _add_address(route, tunnel, pod_cidr(node)[0], 32)
    for other in others:
        far_end, mac = str(pod_cidr(other)[0]), tunnel_mac(other)
        route.neigh("add", dst=far_end, lladdr=mac, ifindex=tunnel, state=_PERMANENT)
        route.fdb("append", lladdr=mac, dst=str(node_address(other)), ifindex=tunnel)
        route.route("add", dst=str(pod_cidr(other)), gateway=far_end, oif=tunnel, flags=_ONLINK)


def add_pod(spec: LabSpec, pod: PodRecord) -> None:
    """Make the pod's namespace and connect it to its node.

    The pod has a /32 address and reaches everything through :data:`~lb.lab.addressing.POD_GATEWAY`, whose
    fixed neighbour entry is the host end; the node has a host route to the pod.

    Raises
    ------
    LabError: names the namespace and what the kernel refused.
    """
    mtu = TUNNEL_MTU if spec.overlay is Overlay.VXLAN else MTU
    namespaces.create(pod.netns)
    with (
        namespaces.netlink(spec.namespace(pod.node)) as node,
        open(namespaces.path(pod.netns), "rb") as target,
    ):
        peer = {"ifname": UPLINK, "net_ns_fd": target.fileno(), "mtu": mtu}
        node.link("add", ifname=pod.interface, kind="veth", address=POD_GATEWAY_MAC, mtu=mtu, peer=peer)
        host_end = _up(node, pod.interface)
    with namespaces.netlink(pod.netns) as route:
        _settings(_HOST_SETTINGS)
        _up(route, "lo")
        uplink = _up(route, UPLINK)
        _add_address(route, uplink, IPv4Address(pod.address), 32)
        gateway = str(POD_GATEWAY)
        route.neigh("add", dst=gateway, lladdr=POD_GATEWAY_MAC, ifindex=uplink, state=_PERMANENT)
        route.route("add", dst=f"{gateway}/32", oif=uplink, scope="link")
        route.route("add", dst="default", gateway=gateway, oif=uplink)
    with namespaces.netlink(spec.namespace(pod.node)) as node:
        source = str(node_address(pod.node))
        node.route("add", dst=f"{pod.address}/32", oif=host_end, scope="link", prefsrc=source)


def remove_pod(spec: LabSpec, pod: PodRecord) -> None:
    """Remove the pod's interface and namespace, as far as they exist."""
    with (
        contextlib.suppress(LabError),  # the node is gone, or the interface was never made
        namespaces.netlink(spec.namespace(pod.node)) as node,
    ):
        node.link("del", index=_index(node, pod.interface))
    namespaces.delete(pod.netns)
