# SPDX-License-Identifier: Apache-2.0
"""Where a node stands: its interfaces, their roles, the addresses on which NodePorts answer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from ipaddress import ip_network
from pathlib import Path

from lb.config import Config
from lb.datapath.attach.hooks import Role, Selection, primary_address
from lb.datapath.attach.netlink import Interface, Netlink
from lb.datapath.attach.netns import Listener, listening
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import FAMILIES, IfaceFlag
from lb.model import IPAddress, IPNetwork, Node
from lb.plan.types import Topology, VipKey
from lb.setting_forms import ALL, NONE, PRIMARY

FIRST_UNPRIVILEGED = 1024
"""The first port that any user may listen on, as Linux has it by default (ip_unprivileged_port_start)."""


def selection(config: Config) -> Selection:
    """Return which interfaces the settings choose."""
    return Selection(config.uplinks, config.tunnels, config.pod_interfaces)


def interfaces_and_roles(config: Config) -> tuple[list[Interface], dict[int, Role]]:
    """Return the interfaces of the calling thread's network namespace, and the roles of some, by ifindex.

    Raises AttachError: the kernel refused to list interfaces.
    """
    with Netlink() as net:
        interfaces = net.interfaces()
        return interfaces, selection(config).roles(interfaces, net.default_route_interfaces())


def written_roles(maps: Maps) -> dict[int, Role]:
    """Return the role of each uplink and tunnel, by ifindex, as the programs see it; all others are pods'.

    Raises BpfError: the kernel refused to show a map.
    """
    found = {}
    for version in FAMILIES:
        keys, values = maps.read(f"ifaces{version}")
        for index, flags in zip(keys.tolist(), values["flags"].tolist(), strict=True):
            if flags & (IfaceFlag.UPLINK | IfaceFlag.TUNNEL):
                found[index] = Role.UPLINK if flags & IfaceFlag.UPLINK else Role.TUNNEL
    return found


def standing(
    config: Config, node: Node | None, claims: Callable[[IPAddress], bool] = lambda _address: False
) -> Topology:
    """Return where the node stands whose network namespace the calling thread is in.

    node is what Kubernetes says of it, None while that is unknown. claims tells whether a Service has an
    address as an external or load-balancer address; only at such addresses are sockets looked for.

    Raises AttachError: the kernel refused to list interfaces.
    """
    interfaces, roles = interfaces_and_roles(config)
    uplinks = [one for one in interfaces if roles.get(one.index) is Role.UPLINK]
    internal = node.addresses if node else ()
    own = frozenset(
        address.ip
        for interface in interfaces
        for address in interface.addresses
        if not (address.ip.is_loopback or address.ip.is_link_local)
    )
    claimed = [address for address in own if claims(address)]
    return Topology(
        node_name=config.node_name,
        zone=node.zone if node else "",
        node_port_addresses=node_port_addresses(interfaces, uplinks, config.node_port_addresses, internal),
        internal_addresses=internal,
        node_addresses=own,
        sockets=own_sockets(listening(Path("/proc/thread-self/net")), claimed) if claimed else frozenset(),
        external_networks=external_networks(config.external_ips),
        forward=config.forward,
    )


def external_networks(text: str) -> tuple[IPNetwork, ...] | None:
    """Return the networks that the setting external_ips admits, None: all."""
    if text == ALL:
        return None
    return tuple(map(ip_network, text.split(","))) if text != NONE else ()


def own_sockets(listeners: Iterable[Listener], addresses: Iterable[IPAddress]) -> frozenset[VipKey]:
    """Return on which ports of these addresses the node's own processes listen.

    What an unprivileged user could open does not count, or any user of the node could take a Service's
    connections by listening: a socket has to be root's, or its port privileged.
    """
    addresses = tuple(addresses)
    return frozenset(
        VipKey(address, one.port, one.protocol)
        for one in listeners
        if one.uid == 0 or one.port < FIRST_UNPRIVILEGED
        for address in addresses
        if one.takes(address)
    )


_NOWHERE = tuple(map(ip_network, ("127.0.0.0/8", "::1/128", "169.254.0.0/16", "fe80::/10")))
"""Loopback and link-local networks: no packet from outside reaches their addresses."""


def without_effect(wanted: Sequence[str]) -> list[str]:
    """Return those of the networks for NodePorts on whose addresses none ever answers."""
    networks = {text: ip_network(text) for text in wanted if text != PRIMARY}
    return [
        text
        for text, network in networks.items()
        if any(network.version == one.version and network.subnet_of(one) for one in _NOWHERE)  # type: ignore[arg-type]
    ]


def node_port_addresses(
    interfaces: Sequence[Interface],
    uplinks: Sequence[Interface],
    wanted: Sequence[str],
    own: Sequence[IPAddress] = (),
) -> tuple[IPAddress, ...]:
    """Return the node's addresses on which NodePorts answer, sorted.

    The forms of wanted are those of kube-proxy's ``--nodeport-addresses``. By default, and for the word
    ``primary``, it is the primary address of each family by the Node object: the first of own, its
    InternalIPs, that an interface of the node has. Without such a one (there is no Node, or it names
    addresses that lie before a NAT) it is the first address of the uplinks. For each network in wanted it
    is all addresses of any interface in it. Loopback and link-local addresses never count: no packet from
    outside reaches them.
    """
    networks = [ip_network(text) for text in wanted if text != PRIMARY]
    found = {
        address.ip
        for interface in interfaces
        for address in interface.addresses
        if not (address.ip.is_loopback or address.ip.is_link_local)
        and any(address.ip in network for network in networks)
    }
    if not wanted or PRIMARY in wanted:
        primaries = (primary_address(version, interfaces, own, uplinks) for version in FAMILIES)
        found |= {address for address in primaries if address}
    return tuple(sorted(found, key=lambda ip: (ip.version, int(ip))))
