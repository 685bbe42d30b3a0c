# SPDX-License-Identifier: Apache-2.0
"""The lab's network: a switch, the client and the nodes on it, and pods behind veth pairs.

Every function here enters the namespaces that it works on and returns to the caller's own; nothing is made
outside of the lab's namespaces.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import struct
from collections.abc import Mapping, Sequence
from ctypes import addressof, create_string_buffer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from lb.config import UplinkMode
from lb.datapath.kernel.bpf import FD, ProgType
from lb.datapath.kernel.syscall import Command, syscall
from lb.errors import LabError
from lb.lab import namespaces
from lb.lab.addressing import (
    MTU,
    OUTER_SEGMENTS,
    POD_GATEWAY_MAC,
    POD_GATEWAYS,
    SEGMENTS,
    SERVICE_CIDRS,
    UPLINK,
    LabSpec,
    Overlay,
    api_server,
    node_address,
    node_mac,
    outside_server,
    pod_cidr,
    router,
)
from lb.lab.store import PodRecord
from lb.lab.tunnels import add_tunnels
from lb.model import IPAddress

_BRIDGE = "br0"
ROUTER_OUTER = "eth1"
"""The router's interface towards the client."""
_PERMANENT = 0x80  # NUD_PERMANENT of linux/neighbour.h
_NODAD = 0x2  # IFA_F_NODAD of linux/if_addr.h
_FOREVER = 0xFFFFFFFF  # of a lifetime, in struct ifa_cacheinfo
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_FULL = {4: 32, 6: 128}
_SIOCETHTOOL = 0x8946
_ETHTOOL_STXCSUM = 0x17
_XDP_FLAGS_DRV_MODE = 0x4
_XDP_PASS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit

_WITHOUT_IPV6 = {"ipv6/conf/all/disable_ipv6": "1", "ipv6/conf/default/disable_ipv6": "1"}
_WITH_IPV6 = {
    "ipv6/conf/all/disable_ipv6": "0",
    "ipv6/conf/default/disable_ipv6": "0",
    # Addresses can be used at once, link-local ones too: nobody else in the lab could have them.
    "ipv6/conf/all/accept_dad": "0",
    "ipv6/conf/default/accept_dad": "0",
    # Nor is there a router that one could ask.
    "ipv6/conf/all/accept_ra": "0",
    "ipv6/conf/default/accept_ra": "0",
}
_NODE_SETTINGS = {
    "ipv4/ip_forward": "1",
    "ipv6/conf/all/forwarding": "1",
    "ipv6/conf/default/forwarding": "1",
    # The client reaches every node through node1, answers return directly: redirects would undo that.
    "ipv4/conf/all/send_redirects": "0",
    "ipv4/conf/default/send_redirects": "0",
    # Strict reverse-path filtering would drop translated packets; distributions differ in their default.
    "ipv4/conf/all/rp_filter": "0",
    "ipv4/conf/default/rp_filter": "0",
}
_ROUTER_SETTINGS = {
    **_NODE_SETTINGS,
    # Equal ways are chosen by addresses and ports, so that the connections of one client spread, too.
    "ipv4/fib_multipath_hash_policy": "1",
    "ipv6/fib_multipath_hash_policy": "1",
}
_HOST_SETTINGS = {
    f"{family}/conf/{which}/accept_redirects": "0"
    for family in ("ipv4", "ipv6")
    for which in ("all", "default")
}


def build(spec: LabSpec) -> None:
    """Make the switch, the client, the nodes with their routes, and as asked for a router and the API's host.

    Raises LabError: names the namespace and what the kernel refused.
    """
    nodes = {spec.namespace(node) for node in spec.node_names}
    for name in spec.namespaces:
        namespaces.create(name)
        with namespaces.inside(name):  # an interface takes what is the default when it is made
            if name == spec.switch:
                _settings(_WITHOUT_IPV6)
            else:
                special = _ROUTER_SETTINGS if name == spec.router_namespace else _HOST_SETTINGS
                _settings(_ip_settings(spec) | (_NODE_SETTINGS if name in nodes else special))
    with namespaces.netlink(spec.switch) as switch:
        switch.link("add", ifname=_BRIDGE, kind="bridge")
        switch.link("set", index=_index(switch, _BRIDGE), state="up")
        outermost = spec.router_namespace if spec.routed else spec.client
        _plug(switch, "router" if spec.routed else "client", outermost, "02:77:00:00:00:64")
        if spec.kubernetes:
            _plug(switch, "api", spec.api, "02:77:00:00:00:fe")
        for node in spec.node_names:
            _plug(switch, node, spec.namespace(node), node_mac(node))
            if spec.uplink_mode in (UplinkMode.XDP_NATIVE, UplinkMode.XDP_GENERIC):
                fill_in_checksums(node)
            if spec.uplink_mode is UplinkMode.XDP_NATIVE:
                take_back(switch, node)
    if spec.routed:
        _set_up_router(spec)
    _set_up_host(
        spec, spec.client, {each: (*spec.clients(each), outside_server(each)) for each in spec.versions}
    )
    if spec.kubernetes:
        _set_up_host(spec, spec.api, {each: (api_server(each),) for each in spec.versions})
    for node in spec.node_names:
        _set_up_node(spec, node)


def _ip_settings(spec: LabSpec) -> dict[str, str]:
    return _WITH_IPV6 if 6 in spec.versions else _WITHOUT_IPV6


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


def fill_in_checksums(port: str) -> None:
    """Turn off a switch port's transmit checksum offload.

    XDP at the other end of the veth pair would otherwise see packets whose checksums are still to be filled
    in: a veth leaves that to a device that such packets never reach.
    """
    value = create_string_buffer(struct.pack("=II", _ETHTOOL_STXCSUM, 0))
    request = struct.pack("16sP", port.encode(), addressof(value))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, _SIOCETHTOOL, request)


def needs_other_wires(spec: LabSpec, node: str) -> UplinkMode | None:
    """Return the uplink mode that a node's uplink is in, if its wire is not prepared for that; else None.

    :func:`build` prepares the wires for the mode that the lab is brought up with, since it costs the others
    speed. A node that is gone needs nothing.
    """
    if spec.uplink_mode is UplinkMode.XDP_NATIVE:
        return None  # prepared for everything
    with contextlib.suppress(LabError), namespaces.netlink(spec.namespace(node)) as route:
        [link] = route.get_links(ifname=UPLINK)
        attached = link.get_attr("IFLA_XDP").get_attr("IFLA_XDP_ATTACHED")
        if attached == "xdp":
            return UplinkMode.XDP_NATIVE
        if attached == "xdpgeneric" and spec.uplink_mode is not UplinkMode.XDP_GENERIC:
            return UplinkMode.XDP_GENERIC
    return None


def take_back(switch: Any, port: str) -> None:
    """Attach a program to an interface, here a switch port, that passes every packet.

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


def _add_address(
    route: Any, index: int, address: IPAddress, length: int, *, deprecated: bool = False
) -> None:
    """Add an address; a deprecated one is never chosen as source of what does not ask for it (RFC 6724)."""
    more: dict[str, Any] = {}
    if address.version == 6:
        more = {"flags": _NODAD, "preferred_lft": 0 if deprecated else _FOREVER, "valid_lft": _FOREVER}
    route.addr("add", index=index, address=str(address), prefixlen=length, **more)


def _add_default(route: Any, gateway: IPAddress, interface: int) -> None:
    anywhere = "0.0.0.0/0" if gateway.version == 4 else "::/0"
    route.route("add", family=_FAMILIES[gateway.version], dst=anywhere, gateway=str(gateway), oif=interface)


def _host_route(address: IPAddress) -> str:
    return f"{address}/{_FULL[address.version]}"


def _set_up_host(spec: LabSpec, namespace: str, addresses: Mapping[int, Sequence[IPAddress]]) -> None:
    """Make a namespace a host outside of the cluster: all that it knows is its router, node1 where none is.

    addresses are by IP version, the primary one first: Linux prefers the first in IPv4 and the last in IPv6,
    where the others are therefore deprecated.
    """
    outer = spec.routed and namespace == spec.client
    segments = OUTER_SEGMENTS if outer else SEGMENTS
    with namespaces.netlink(namespace) as route:
        _up(route, "lo")
        uplink = _up(route, UPLINK)
        for version in spec.versions:
            for number, address in enumerate(addresses[version]):
                segment = segments[version]
                length = segment.prefixlen if address in segment else _FULL[version]
                _add_address(route, uplink, address, length, deprecated=number > 0)
            first = router(version, outer=True) if outer else node_address("node1", version)
            _add_default(route, first, uplink)


def _set_up_router(spec: LabSpec) -> None:
    """Make the router: the nodes at its one interface, the client at the other."""
    with (
        namespaces.netlink(spec.router_namespace) as route,
        open(namespaces.path(spec.client), "rb") as target,
    ):
        _up(route, "lo")
        peer = {"ifname": UPLINK, "net_ns_fd": target.fileno(), "mtu": MTU}
        route.link("add", ifname=ROUTER_OUTER, kind="veth", mtu=MTU, peer=peer)
        for interface, segments in (
            (_up(route, UPLINK), SEGMENTS),
            (_up(route, ROUTER_OUTER), OUTER_SEGMENTS),
        ):
            for version in spec.versions:
                own = router(version, outer=segments is OUTER_SEGMENTS)
                _add_address(route, interface, own, segments[version].prefixlen)
        for version in spec.versions:
            ways: dict[str, IPAddress] = {
                str(pod_cidr(node, version)): node_address(node, version) for node in spec.node_names
            }
            ways[str(SERVICE_CIDRS[version])] = node_address("node1", version)
            ways[_host_route(outside_server(version))] = spec.clients(version)[0]
            for destination, gateway in ways.items():
                route.route("add", family=_FAMILIES[version], dst=destination, gateway=str(gateway))


def _set_up_node(spec: LabSpec, node: str) -> None:
    with namespaces.netlink(spec.namespace(node)) as route:
        _up(route, "lo")
        uplink = _up(route, UPLINK)
        for version in spec.versions:
            _add_address(route, uplink, node_address(node, version), SEGMENTS[version].prefixlen)
            _add_default(route, router(version) if spec.routed else spec.clients(version)[0], uplink)
            if spec.routed:
                outside, via = _host_route(outside_server(version)), str(router(version))
                route.route("add", family=_FAMILIES[version], dst=outside, gateway=via)
        if spec.overlay is not Overlay.NONE:
            add_tunnels(spec, route, node, uplink)
            return
        for version in spec.versions:
            for other in spec.node_names:
                if other != node:
                    destination, gateway = str(pod_cidr(other, version)), str(node_address(other, version))
                    route.route("add", family=_FAMILIES[version], dst=destination, gateway=gateway)


def add_pod(spec: LabSpec, pod: PodRecord) -> None:
    """Make the pod's namespace and connect it to its node; one with the node's network needs nothing.

    The pod has addresses without a network (/32, /128) and reaches everything through
    :data:`~lb.lab.addressing.POD_GATEWAYS`, whose fixed neighbour entries are the host end; the node has a
    route to each of its addresses.

    Raises LabError: names the namespace and what the kernel refused.
    """
    if pod.host_network:
        return
    mtu = spec.pod_mtu
    namespaces.create(pod.netns)
    with namespaces.inside(pod.netns):
        _settings(_ip_settings(spec) | _HOST_SETTINGS)
    with (
        namespaces.netlink(spec.namespace(pod.node)) as node,
        open(namespaces.path(pod.netns), "rb") as target,
    ):
        peer = {"ifname": UPLINK, "net_ns_fd": target.fileno(), "mtu": mtu}
        node.link("add", ifname=pod.interface, kind="veth", address=POD_GATEWAY_MAC, mtu=mtu, peer=peer)
        host_end = _up(node, pod.interface)
    addresses = [ip_address(address) for address in pod.addresses]
    with namespaces.netlink(pod.netns) as route:
        _up(route, "lo")
        uplink = _up(route, UPLINK)
        for address in addresses:
            gateway, family = POD_GATEWAYS[address.version], _FAMILIES[address.version]
            _add_address(route, uplink, address, _FULL[address.version])
            route.neigh(
                "add",
                family=family,
                dst=str(gateway),
                lladdr=POD_GATEWAY_MAC,
                ifindex=uplink,
                state=_PERMANENT,
            )
            if address.version == 4:
                route.route("add", dst=f"{gateway}/32", oif=uplink, scope="link")
            _add_default(route, gateway, uplink)
    with namespaces.netlink(spec.namespace(pod.node)) as node:
        for address in addresses:
            node.route(
                "add",
                family=_FAMILIES[address.version],
                dst=f"{address}/{_FULL[address.version]}",
                oif=host_end,
                prefsrc=str(node_address(pod.node, address.version)),
                **({"scope": "link"} if address.version == 4 else {}),
            )


def remove_pod(spec: LabSpec, pod: PodRecord) -> None:
    """Remove the pod's interface and namespace, as far as they exist; the node's own stay."""
    if pod.host_network:
        return
    with (
        contextlib.suppress(LabError),  # the node is gone, or the interface was never made
        namespaces.netlink(spec.namespace(pod.node)) as node,
    ):
        node.link("del", index=_index(node, pod.interface))
    namespaces.delete(pod.netns)
