# SPDX-License-Identifier: Apache-2.0
"""The overlays between a lab's nodes: VXLAN, whose packets have an Ethernet header, and IP in IP, without.

Each function works in the namespace that the calling thread is in.
"""

from __future__ import annotations

from typing import Any

from lb.errors import LabError
from lb.lab.addressing import LabSpec, Overlay, node_address, node_number, pod_cidr, tunnel_address

TUNNELS = {Overlay.VXLAN: "vxlan*", Overlay.IPIP: "ipip*"}
"""The names of the nodes' ends, as the agents' setting ``tunnel`` takes them."""

VXLAN = "vxlan0"
_VXLAN_ID = 77
_VXLAN_PORT = 4789
_PERMANENT = 0x80  # NUD_PERMANENT of linux/neighbour.h
_ONLINK = 0x4  # RTNH_F_ONLINK of linux/rtnetlink.h
_NODAD = 0x2  # IFA_F_NODAD of linux/if_addr.h
_FAMILIES = {4: 2, 6: 10}  # AF_INET, AF_INET6
_LINKS = {4: ("ipip4", "ipip"), 6: ("ipip6", "sit")}  # name and kind by what is carried


def add_tunnels(spec: LabSpec, route: Any, node: str, uplink: int) -> None:
    """Make a node's end of the overlay, with its addresses and the routes to the pods of other nodes.

    Raises LabError: the kernel has no such device.
    """
    others = [other for other in spec.node_names if other != node]
    if spec.overlay is Overlay.VXLAN:
        _add_vxlan(spec, route, node, uplink, others)
    else:
        _add_ipip(spec, route, node, uplink, others)


def tunnel_mac(node: str) -> str:
    """Return the MAC address of the node's VXLAN device."""
    return f"02:77:00:00:01:{node_number(node):02x}"


def _add_vxlan(spec: LabSpec, route: Any, node: str, uplink: int, others: list[str]) -> None:
    """Add the device with a fixed neighbour, forwarding entry and routes for each other node."""
    under = spec.versions[0]
    local = {4: "vxlan_local", 6: "vxlan_local6"}[under]
    route.link(
        "add",
        ifname=VXLAN,
        kind="vxlan",
        vxlan_id=_VXLAN_ID,
        vxlan_port=_VXLAN_PORT,
        vxlan_link=uplink,
        vxlan_learning=False,
        address=tunnel_mac(node),
        mtu=spec.pod_mtu,
        **{local: str(node_address(node, under))},
    )
    [tunnel] = route.link_lookup(ifname=VXLAN)
    route.link("set", index=tunnel, state="up")
    for other in others:
        route.fdb("append", lladdr=tunnel_mac(other), dst=str(node_address(other, under)), ifindex=tunnel)
    for version in spec.versions:
        _add_address(route, tunnel, node, version)
        for other in others:
            far_end = str(tunnel_address(other, version))
            route.neigh(
                "add",
                family=_FAMILIES[version],
                dst=far_end,
                lladdr=tunnel_mac(other),
                ifindex=tunnel,
                state=_PERMANENT,
            )
            _add_route(route, tunnel, other, version, far_end)


def _add_ipip(spec: LabSpec, route: Any, node: str, uplink: int, others: list[str]) -> None:
    """Add the devices; a route's gateway is the address of the node that the packets are wrapped for."""
    for version, tunnel in make_ipip(spec, route, node, uplink).items():
        _add_address(route, tunnel, node, version)
        for other in others:
            outer = str(node_address(other))
            _add_route(route, tunnel, other, version, outer if version == 4 else f"::{outer}")


def make_ipip(spec: LabSpec, route: Any, node: str, uplink: int) -> dict[int, int]:
    """Make the devices that carry each IP version in IPv4, up; return their indexes by the version.

    IPv4 goes through a device of kind ipip (RFC 2003), IPv6 through one of kind sit (RFC 4213), as Linux has
    them. Neither has one fixed far end: that is the gateway of the route, for IPv6 as ``::192.168.77.12``.

    Raises LabError: the kernel lacks one of the kinds.
    """
    from pyroute2.netlink.exceptions import NetlinkError  # noqa: PLC0415 - see namespaces.netlink

    made = {}
    for version in spec.versions:
        name, kind = _LINKS[version]
        own = {f"{kind}_local": str(node_address(node)), f"{kind}_link": uplink}
        try:
            route.link("add", ifname=name, kind=kind, **own)
        except NetlinkError as error:
            raise LabError(
                f"--overlay ipip: the kernel makes no device of kind {kind}"
                f" (module {kind}, CONFIG_{'NET_IPIP' if kind == 'ipip' else 'IPV6_SIT'}): {error}"
            ) from error
        [made[version]] = route.link_lookup(ifname=name)
        route.link("set", index=made[version], mtu=spec.pod_mtu, state="up")
    return made


def _add_address(route: Any, tunnel: int, node: str, version: int) -> None:
    address, length = str(tunnel_address(node, version)), {4: 32, 6: 128}[version]
    flags = {"flags": _NODAD} if version == 6 else {}
    route.addr("add", index=tunnel, address=address, prefixlen=length, **flags)


def _add_route(route: Any, tunnel: int, other: str, version: int, gateway: str) -> None:
    destination = str(pod_cidr(other, version))
    family = _FAMILIES[version]
    route.route("add", family=family, dst=destination, gateway=gateway, oif=tunnel, flags=_ONLINK)
