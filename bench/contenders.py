# SPDX-License-Identifier: Apache-2.0
"""What makes a Service of a node's pods: nothing at all, this load balancer each way, kube-proxy's rules.

Every contender serves one Service at a clusterIP, a load-balancer address and a NodePort, by TCP and by UDP,
and others, of one endpoint each, that nobody talks to.
"""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from ipaddress import IPv4Address

from bench.topology import NODE, POD_INTERFACES, PODS, TARGET_PORT, UPLINK, Topology, run
from lb.config import Config, Limits, SocketMode, Switch, UplinkMode
from lb.datapath.attach.hooks import Hooks, Selection
from lb.datapath.attach.settings import write_settings
from lb.datapath.attach.sockets import SocketHooks
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs.loader import load
from lb.datapath.sync.reconcile import Reconciler
from lb.lab import cgroups, kube_proxy
from lb.lab.topology import fill_in_checksums
from lb.model import ObjectKey, Protocol
from lb.plan.types import Backend, PortPlan, ServicePlan, Vip, VipKey, VipKind

CLUSTER_IP, LOAD_BALANCER, PORT, NODE_PORT = "10.96.0.10", "203.0.113.10", 80, 30080
PROTOCOLS = (Protocol.TCP, Protocol.UDP)
POD_NET = "10.0.1.0/24"

Enter = Callable[[Topology, contextlib.ExitStack, int], None]
"""Adds a contender to a topology's node, with so many Services; what must be undone goes on the stack."""


@dataclass(frozen=True, slots=True)
class Contender:
    """Who takes part.

    Attributes
    ----------
    target: what its ratio to the limit is held against, but for workloads with a target of their own.
    inside, outside: whether it serves clients of that side in a way of its own.
    always: with every number of Services, not with the greatest alone.
    """

    enter: Enter
    target: float | None = None
    inside: bool = True
    outside: bool = True
    always: bool = False


def _idle(services: int) -> Iterator[tuple[int, IPv4Address]]:
    """Yield number and clusterIP of the Services that nobody talks to."""
    for number in range(1, services):
        yield number, IPv4Address(int(IPv4Address("10.97.0.0")) + number)


_TC = Config(uplink_mode=UplinkMode.TC, socket_lb=SocketMode.OFF)


def ours(topology: Topology, stack: contextlib.ExitStack, services: int, config: Config) -> None:
    """Add this load balancer, with default limits."""
    instance = f"bench.{os.getpid()}-{uuid.uuid4().hex[:8]}"
    pins = Pins(instance)
    stack.callback(unload, pins)
    loaded = load(pins, Limits())
    maps = KernelMaps(pins.maps)
    stack.callback(maps.close)
    write_settings(maps, config)
    report = Reconciler(maps, time.monotonic).sync({plan.key: plan for plan in _plans(services)})
    if report.errors:
        raise next(iter(report.errors.values()))
    with topology.node.entered():
        hooks = Hooks(
            loaded.programs,
            maps,
            Selection((UPLINK,), (), (POD_INTERFACES,)),
            config.uplink_mode,
            redirect=config.redirect is Switch.ON,
        )
        stack.callback(hooks.close)
        errors = hooks.sync().errors
    if config.socket_lb is SocketMode.ALL:
        topology.cgroup = cgroups.mount_point(cgroups.MOUNTS.read_text()) / instance
        cgroups.create(topology.cgroup)
        stack.callback(cgroups.remove, topology.cgroup)
        group = str(topology.cgroup)
        errors += SocketHooks(pins, loaded.sockets, loaded.refused, group, config.socket_lb).sync().errors
    if errors:
        raise errors[0]


def in_xdp(topology: Topology, stack: contextlib.ExitStack, services: int) -> None:
    """Add this load balancer with XDP at the uplink.

    It sees packets before anybody completes their checksums, so the client has to make them itself, and may
    not leave segmentation to the wire.
    """
    with topology.outside.entered():
        fill_in_checksums(UPLINK)
    ours(topology, stack, services, replace(_TC, uplink_mode=UplinkMode.XDP_NATIVE))


def _plans(services: int) -> Iterator[ServicePlan]:
    vips = (
        (VipKind.CLUSTER_IP, CLUSTER_IP, PORT),
        (VipKind.NODE_PORT, NODE, NODE_PORT),
        (VipKind.LOAD_BALANCER, LOAD_BALANCER, PORT),
    )
    yield ServicePlan(
        ObjectKey("bench", "web"),
        "2024-01-01T00:00:00Z",
        tuple(
            _port(
                protocol,
                PODS,
                [Vip(VipKey(IPv4Address(at), port, protocol), kind) for kind, at, port in vips],
            )
            for protocol in PROTOCOLS
        ),
    )
    for number, address in _idle(services):
        vip = Vip(VipKey(address, PORT, Protocol.TCP), VipKind.CLUSTER_IP)
        ports = (_port(Protocol.TCP, PODS[:1], [vip]),)
        yield ServicePlan(ObjectKey("bench", f"idle-{number}"), "2024-01-01T00:00:00Z", ports)


def _port(protocol: Protocol, pods: tuple[str, ...], vips: list[Vip]) -> PortPlan:
    backends = tuple(Backend(IPv4Address(pod), TARGET_PORT, "node1", True) for pod in pods)
    return PortPlan(protocol.name.lower(), protocol, 4, 0, tuple(vips), backends, backends, backends)


def nftables(topology: Topology, stack: contextlib.ExitStack, services: int) -> None:  # noqa: ARG001
    """Add the table of kube-proxy's nftables mode."""
    text = "\n".join(kube_proxy.nftables(_ports(services), POD_NET))
    run(topology.node, "nft", "-f", "-", text=f"{text}\n")


def iptables(topology: Topology, stack: contextlib.ExitStack, services: int) -> None:  # noqa: ARG001
    """Add the chains of kube-proxy's iptables mode."""
    text = "\n".join(kube_proxy.iptables(_ports(services), POD_NET))
    run(topology.node, "iptables-restore", text=f"{text}\n")


def _ports(services: int) -> list[kube_proxy.NamedPort]:
    """Return all Service ports; the one that is talked to stands in the middle, as it would on average."""
    web, *idle = _plans(services)
    middle = len(idle) // 2
    return [
        kube_proxy.NamedPort(f"{plan.key.name}-{port.port_name}", port)
        for plan in (*idle[:middle], web, *idle[middle:])
        for port in plan.ports
    ]


CONTENDERS: dict[str, Contender] = {
    "ours": Contender(partial(ours, config=_TC), 0.95, always=True),
    "ours, redirect": Contender(partial(ours, config=replace(_TC, redirect=Switch.ON)), 1.05),
    "ours, sockets": Contender(
        partial(ours, config=replace(_TC, socket_lb=SocketMode.ALL)), 0.99, outside=False
    ),
    "ours, XDP": Contender(in_xdp, inside=False),
    "nftables": Contender(nftables, always=True),
    "iptables": Contender(iptables, always=True),
}
"""ours: as it is without options on a virtual device. For XDP a veth is no place: it is there to be seen."""
