# SPDX-License-Identifier: Apache-2.0
"""Where a node stands: its interfaces, their roles, the addresses on which NodePorts answer."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_network

from lb.config import PRIMARY, Config
from lb.datapath.attach.hooks import Role, Selection
from lb.datapath.attach.netlink import Interface, Netlink
from lb.datapath.maps.layouts import FAMILIES
from lb.model import IPAddress, Node
from lb.plan.types import Topology


def selection(config: Config) -> Selection:
    """Return which interfaces the settings choose."""
    return Selection(config.uplinks, config.tunnels, config.pod_interfaces)


def interfaces_and_roles(config: Config) -> tuple[list[Interface], dict[int, Role]]:
    """Return the interfaces of the calling thread's network namespace, and the roles of some, by ifindex.

    Raises
    ------
    AttachError: the kernel refused to list interfaces.
    """
    with Netlink() as net:
        interfaces = net.interfaces()
        return interfaces, selection(config).roles(interfaces, net.default_route_interfaces())


def standing(config: Config, node: Node | None) -> Topology:
    """Return where the node stands whose network namespace the calling thread is in.

    node is what Kubernetes says of it, None while that is unknown.

    Raises
    ------
    AttachError: the kernel refused to list interfaces.
    """
    interfaces, roles = interfaces_and_roles(config)
    uplinks = [one.name for one in interfaces if roles.get(one.index) is Role.UPLINK]
    return Topology(
        node_name=config.node_name,
        zone=node.zone if node else "",
        node_port_addresses=node_port_addresses(interfaces, uplinks, config.node_port_addresses),
        node_addresses=frozenset(
            address.ip
            for interface in interfaces
            for address in interface.addresses
            if not (address.ip.is_loopback or address.ip.is_link_local)
        ),
    )


def node_port_addresses(
    interfaces: Sequence[Interface], uplinks: Sequence[str], wanted: Sequence[str]
) -> tuple[IPAddress, ...]:
    """Return the node's addresses on which NodePorts answer, sorted.

    By default, and for the word ``primary``, the first address of each family on the uplinks; for each
    network in wanted all addresses of any interface in it. Loopback and link-local addresses never count:
    no packet from outside reaches them. (kube-proxy's ``--nodeport-addresses`` has the same forms.)
    """
    networks = [ip_network(text) for text in wanted if text != PRIMARY]
    found: set[IPAddress] = set()
    primaries: dict[int, IPAddress] = {}
    for interface in sorted(
        interfaces, key=lambda one: uplinks.index(one.name) if one.name in uplinks else -1
    ):
        if interface.name in uplinks:
            for version in FAMILIES:
                if primary := interface.source(version):
                    primaries.setdefault(version, primary)
        for address in interface.addresses:
            if address.ip.is_loopback or address.ip.is_link_local:
                continue
            if any(address.ip in network for network in networks):
                found.add(address.ip)
    if not wanted or PRIMARY in wanted:
        found |= set(primaries.values())
    return tuple(sorted(found, key=lambda ip: (ip.version, int(ip))))
