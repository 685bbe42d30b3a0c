# SPDX-License-Identifier: Apache-2.0
"""Requests to try in a lab that has just come up: to Services that it really has. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from lb.lab.addressing import LabSpec
from lb.model import IPAddress, Protocol, Service, ServiceType


def requests(spec: LabSpec, services: Iterable[Service], pods: Sequence[str]) -> list[tuple[str, str]]:
    """Return places and the URLs to ask for there: at most one of each sort of address.

    Services that select pods come first, then the order is that of names. pods are the names of ready pods:
    one of them asks for cluster IPs, the outside client for all else.
    """
    known = [
        (service, port)
        for service in sorted(services, key=lambda each: (not each.selector, each.key))
        for port in service.ports
        if port.protocol is Protocol.TCP and service.proxied
    ]
    found: list[tuple[str, str]] = []
    nodes = {node.version: node for node in spec.node_addresses(spec.node_names[0])}
    for service, port in known:
        node = next((nodes[each.version] for each in service.cluster_ips if each.version in nodes), None)
        if service.type is ServiceType.NODE_PORT and port.node_port and node:
            found.append(("client", url(node, port.node_port)))
            break
    for service, port in known:
        if service.load_balancer_ips:
            found.append(("client", url(service.load_balancer_ips[0], port.port)))
            break
    for service, port in known:
        if service.cluster_ips and pods:
            found.append((pods[0], url(service.cluster_ips[0], port.port)))
            break
    return found


def url(address: IPAddress, port: int) -> str:
    """Return the URL of a server; port 80 needs no mention."""
    where = host(str(address))
    return f"http://{where}/" if port == 80 else f"http://{where}:{port}/"


def host(address: str) -> str:
    """Return an address as it stands in a URL: one of IPv6 in brackets."""
    return f"[{address}]" if ":" in address else address
