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
from lb.config import Config, Limits, Redirect, SocketMode, UplinkMode
from lb.datapath.hooks import Hooks, Selection
from lb.datapath.kernel_maps import KernelMaps
from lb.datapath.loader import load
from lb.datapath.pins import Pins, unload
from lb.datapath.reconcile import Reconciler
from lb.datapath.sockets import SocketHooks
from lb.lab import cgroups
from lb.lab.topology import fill_in_checksums
from lb.model import ObjectKey, Protocol
from lb.plan.types import Backend, PortPlan, ServicePlan, Vip, VipKey, VipKind
from lb.serve import write_settings

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
            redirect=config.redirect is Redirect.ON,
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
    """Add the table of kube-proxy's nftables mode: verdict maps, and chains for Services and endpoints."""
    run(topology.node, "nft", "-f", "-", text="\n".join(_nft_lines(services)))


def _nft_lines(services: int) -> Iterator[str]:
    yield from """
table ip kube-proxy {
 map no-endpoint-services { type ipv4_addr . inet_proto . inet_service : verdict; }
 map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
 map firewall-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
 map service-ips { type ipv4_addr . inet_proto . inet_service : verdict; }
 map service-nodeports { type inet_proto . inet_service : verdict; }
 set cluster-ips { type ipv4_addr; }
 set nodeport-ips { type ipv4_addr; }
 chain mark-for-masquerade { mark set mark or 0x4000; }
 chain masquerading {
  mark and 0x4000 == 0 return
  mark set mark xor 0x4000
  masquerade fully-random
 }
 chain service-endpoints-check { ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
 chain nodeport-endpoints-check {
  ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
 }
 chain firewall-check { ip daddr . meta l4proto . th dport vmap @firewall-ips; }
 chain cluster-ips-check { ip daddr @cluster-ips reject; }
 chain services {
  ip daddr . meta l4proto . th dport vmap @service-ips
  ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
 }
 chain filter-prerouting { type filter hook prerouting priority -110; ct state new jump firewall-check; }
 chain filter-input {
  type filter hook input priority -110
  ct state new jump nodeport-endpoints-check
  ct state new jump service-endpoints-check
 }
 chain filter-forward {
  type filter hook forward priority -110
  ct state new jump service-endpoints-check
  ct state new jump cluster-ips-check
 }
 chain filter-output {
  type filter hook output priority -110
  ct state new jump service-endpoints-check
  ct state new jump firewall-check
 }
 chain filter-output-post-dnat { type filter hook output priority -90; ct state new jump cluster-ips-check; }
 chain nat-prerouting { type nat hook prerouting priority dstnat; jump services; }
 chain nat-output { type nat hook output priority -100; jump services; }
 chain nat-postrouting { type nat hook postrouting priority srcnat; jump masquerading; }
""".splitlines()
    vips: list[str] = []
    cluster_ips, node_ports = [CLUSTER_IP], []
    for protocol in (each.name.lower() for each in PROTOCOLS):
        service = f"web-{protocol}"
        yield from _nft_service(service, protocol, CLUSTER_IP, PODS)
        yield f" chain external-{service} {{ jump mark-for-masquerade; goto service-{service}; }}"
        vips += [f"{CLUSTER_IP} . {protocol} . {PORT} : goto service-{service}"]
        vips += [f"{LOAD_BALANCER} . {protocol} . {PORT} : goto external-{service}"]
        node_ports.append(f"{protocol} . {NODE_PORT} : goto external-{service}")
    for number, address in _idle(services):
        yield from _nft_service(f"idle-{number}", "tcp", str(address), PODS[:1])
        vips.append(f"{address} . tcp . {PORT} : goto service-idle-{number}")
        cluster_ips.append(str(address))
    yield "}"
    for name, elements in (
        ("service-ips", vips),
        ("service-nodeports", node_ports),
        ("cluster-ips", cluster_ips),
        ("nodeport-ips", [NODE]),
    ):
        yield f"add element ip kube-proxy {name} {{ {', '.join(elements)} }}"


def _nft_service(name: str, protocol: str, address: str, pods: tuple[str, ...]) -> Iterator[str]:
    for at, pod in enumerate(pods):
        yield f" chain endpoint-{name}-{at} {{"
        yield f"  ip saddr {pod} jump mark-for-masquerade"
        yield f"  meta l4proto {protocol} dnat to {pod}:{TARGET_PORT}"
        yield " }"
    choice = ", ".join(f"{at} : goto endpoint-{name}-{at}" for at in range(len(pods)))
    yield f" chain service-{name} {{"
    yield f"  ip daddr {address} {protocol} dport {PORT} ip saddr != {POD_NET} jump mark-for-masquerade"
    yield f"  numgen random mod {len(pods)} vmap {{ {choice} }}"
    yield " }"


def iptables(topology: Topology, stack: contextlib.ExitStack, services: int) -> None:  # noqa: ARG001
    """Add the chains of kube-proxy's iptables mode: one rule after the other, endpoints by `statistic`."""
    run(topology.node, "iptables-restore", text="\n".join(_iptables_lines(services)) + "\n")


def _iptables_lines(services: int) -> Iterator[str]:
    yield "*filter"
    yield ":KUBE-FORWARD - [0:0]"
    yield "-A FORWARD -j KUBE-FORWARD"
    yield "-A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP"
    yield "-A KUBE-FORWARD -m mark --mark 0x4000/0x4000 -j ACCEPT"
    yield "-A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
    yield "COMMIT"
    yield "*nat"
    chains = ["KUBE-SERVICES", "KUBE-NODEPORTS", "KUBE-MARK-MASQ", "KUBE-POSTROUTING"]
    rules = [
        "-A PREROUTING -j KUBE-SERVICES",
        "-A OUTPUT -j KUBE-SERVICES",
        "-A POSTROUTING -j KUBE-POSTROUTING",
        "-A KUBE-POSTROUTING -m mark ! --mark 0x4000/0x4000 -j RETURN",
        "-A KUBE-POSTROUTING -j MARK --xor-mark 0x4000",
        "-A KUBE-POSTROUTING -j MASQUERADE --random-fully",
        "-A KUBE-MARK-MASQ -j MARK --or-mark 0x4000",
    ]
    # The one that is talked to stands in the middle, as it would on average.
    idle = [(f"IDLE{number}", "tcp", str(address), PODS[:1]) for number, address in _idle(services)]
    web = [(f"WEB{each.name}", each.name.lower(), CLUSTER_IP, PODS) for each in PROTOCOLS]
    for name, protocol, address, pods in (*idle[: len(idle) // 2], *web, *idle[len(idle) // 2 :]):
        chains += [f"KUBE-SVC-{name}", *(f"KUBE-SEP-{name}-{at}" for at in range(len(pods)))]
        to = f"-m {protocol} -p {protocol} --dport"
        rules.append(f"-A KUBE-SERVICES -d {address}/32 {to} {PORT} -j KUBE-SVC-{name}")
        if pods is PODS:
            chains.append(f"KUBE-EXT-{name}")
            rules.append(f"-A KUBE-SERVICES -d {LOAD_BALANCER}/32 {to} {PORT} -j KUBE-EXT-{name}")
            rules.append(f"-A KUBE-NODEPORTS {to} {NODE_PORT} -j KUBE-EXT-{name}")
            rules += [f"-A KUBE-EXT-{name} -j KUBE-MARK-MASQ", f"-A KUBE-EXT-{name} -j KUBE-SVC-{name}"]
        rules.append(f"-A KUBE-SVC-{name} ! -s {POD_NET} -d {address}/32 {to} {PORT} -j KUBE-MARK-MASQ")
        for at, pod in enumerate(pods):
            left = len(pods) - at
            chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
            rules.append(f"-A KUBE-SVC-{name} {chance}-j KUBE-SEP-{name}-{at}")
            rules.append(f"-A KUBE-SEP-{name}-{at} -s {pod}/32 -j KUBE-MARK-MASQ")
            dnat = f"-j DNAT --to-destination {pod}:{TARGET_PORT}"
            rules.append(f"-A KUBE-SEP-{name}-{at} -p {protocol} -m {protocol} {dnat}")
    rules.append("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    yield from (f":{name} - [0:0]" for name in chains)
    yield from rules
    yield "COMMIT"


CONTENDERS: dict[str, Contender] = {
    "ours": Contender(partial(ours, config=_TC), 0.95, always=True),
    "ours, redirect": Contender(partial(ours, config=replace(_TC, redirect=Redirect.ON)), 1.05),
    "ours, sockets": Contender(
        partial(ours, config=replace(_TC, socket_lb=SocketMode.ALL)), 0.99, outside=False
    ),
    "ours, XDP": Contender(in_xdp, inside=False),
    "nftables": Contender(nftables, always=True),
    "iptables": Contender(iptables, always=True),
}
"""ours: as it is without options on a virtual device. For XDP a veth is no place: it is there to be seen."""
