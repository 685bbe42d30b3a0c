# SPDX-License-Identifier: Apache-2.0
"""The rules that kube-proxy would have on a node, in the shape that Kubernetes 1.36 writes them.

For the lab, to go over from them and back, for the bench, to measure beside them, and for tests/twin, to
compare with. Of what kube-proxy does there is: clusterIP, NodePort and external addresses over TCP, UDP and
SCTP, with affinity, and the rejection of a port without endpoints; in nftables mode also traffic policies
and source ranges.
"""

from __future__ import annotations

import base64
import enum
import hashlib
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lb.config import Config
from lb.cutover.netfilter import Run, remove_kube_proxy
from lb.errors import LabError
from lb.lab.addressing import POD_NETWORKS, node_address
from lb.lab.lab import Lab
from lb.manifests import ManifestSource
from lb.model import IPAddress, TrafficPolicy, socket_text
from lb.plan import plan_service
from lb.plan.types import Backend, PortPlan, Topology, Vip, VipKind
from lb.state import ClusterState


class Mode(enum.StrEnum):
    """kube-proxy's modes that are played."""

    NFTABLES = "nftables"
    IPTABLES = "iptables"


@dataclass(frozen=True, slots=True)
class NamedPort:
    """A Service port and the name that its chains get: at most 16 letters and digits for ``KUBE-SVC-…``.

    service: ``namespace/name`` of the Service.
    """

    name: str
    plan: PortPlan
    service: str = ""

    @property
    def protocol(self) -> str:
        """The protocol as both rule languages write it."""
        return self.plan.protocol.name.lower()

    def vips(self, *kinds: VipKind) -> Iterator[Vip]:
        """Yield the VIPs of these kinds, without addresses as a whole."""
        yield from (vip for vip in self.plan.vips if vip.key.port and vip.kind in kinds)

    def memory(self, backend: Backend) -> str:
        """Return the name of the nftables set of an endpoint's clients."""
        port = f"{self.service}/{self.protocol}/{self.plan.port_name}"
        address = str(backend.address).replace(":", ".")
        return f"affinity-{self.name}-{port}__{address}/{backend.port}"

    @property
    def external(self) -> bool:
        """Whether it is reached at more than a clusterIP."""
        return any(self.vips(VipKind.NODE_PORT, *_EXTERNAL))


_EXTERNAL = (VipKind.LOAD_BALANCER, VipKind.EXTERNAL_IP)


def ports_on(
    node: str, addresses: Sequence[IPAddress], directories: Sequence[Path], service_cidr: str
) -> list[NamedPort]:
    """Return the Service ports that the manifests in the directories make on a node with these addresses.

    Names are of kube-proxy's kind, a hash over Service, port and protocol. An object that cannot be used is
    left out, as the agent leaves it out.
    """
    source = ManifestSource(
        directories,
        service_cidr=service_cidr,
        node_port_range=Config().node_port_range,
        report=lambda _error: None,
    )
    state = ClusterState()
    state.apply(source.scan())
    topology = Topology(node, node_port_addresses=tuple(addresses), node_addresses=frozenset(addresses))
    found = []
    for key in sorted(state.service_keys()):
        service = state.service(key)
        if service is None:
            continue
        for plan in plan_service(service, state.slices(key), topology).ports:
            text = f"{key}:{plan.port_name}{plan.protocol.name}".encode()
            digest = base64.b32encode(hashlib.sha256(text).digest()).decode()
            found.append(NamedPort(digest[:16], plan, str(key)))
    return found


def write_in_lab(mode: Mode, lab: Lab, node: str, run: Run) -> int:
    """Write the rules of a lab's node by its manifests of now; return for how many Service ports.

    Raises LabError: the lab lives from an API server, which only its agents watch, or a command failed.
    """
    spec = lab.spec
    if spec.kubernetes:
        raise LabError(f"lab {spec.id}: kube-proxy's rules are written for a lab of manifests alone")
    directories = [Path(spec.manifests), lab.store.cluster]
    addresses = [node_address(node, version) for version in spec.versions]
    ports = ports_on(node, addresses, directories, spec.service_cidr)
    write(mode, ports, {version: str(POD_NETWORKS[version]) for version in spec.versions}, run)
    return len(ports)


def write(mode: Mode, ports: Sequence[NamedPort], pod_networks: dict[int, str], run: Run) -> None:
    """Write the rules of a node for all families, in place of those that :func:`write` wrote before.

    pod_networks: the network of all pods by IP version; what comes from elsewhere is masqueraded.
    """
    remove(run)
    for version, network in pod_networks.items():
        mine = [port for port in ports if port.plan.version == version]
        if mode is Mode.NFTABLES:
            run(["nft", "-f", "-"], "\n".join(nftables(mine, network, version)) + "\n")
        else:
            run([_restore(version), "--noflush"], "\n".join(iptables(mine, network)) + "\n")


def remove(run: Run) -> None:
    """Remove what :func:`write` wrote; as ``kube-proxy --cleanup`` does."""
    if not shutil.which("nft") or not shutil.which("iptables-save"):
        raise LabError("kube-proxy's rules take the Debian packages nftables and iptables")
    remove_kube_proxy(run)


def _restore(version: int) -> str:
    return "iptables-restore" if version == 4 else "ip6tables-restore"


def run_with(command: Callable[[Sequence[str]], Sequence[str]]) -> Run:
    """Return what runs commands at a place; command: turns a command line into one that enters it.

    What it returns raises LabError with the command's words when that fails.
    """

    def run(argv: Sequence[str], text: str) -> str:
        done = subprocess.run(command(argv), input=text, capture_output=True, text=True, check=False)
        if done.returncode:
            raise LabError(f"{argv[0]}: {done.stderr.strip()}")
        return done.stdout

    return run


def nftables(ports: Sequence[NamedPort], pod_network: str, version: int = 4) -> Iterator[str]:
    """Yield the table of kube-proxy's nftables mode: verdict maps, and chains for Services and endpoints."""
    family, kind = ("ip", "ipv4_addr") if version == 4 else ("ip6", "ipv6_addr")
    yield _NFT_FRAME.replace("$ip", family).replace("$addr", kind)
    elements: dict[str, set[str]] = {name: set() for name in _NFT_SETS}
    for port in ports:
        if port.plan.cluster:
            yield from _nft_service(port, pod_network, family)
        if port.plan.source_ranges:
            admitted = ", ".join(map(str, port.plan.source_ranges))
            yield f" chain firewall-{port.name} {{ {family} saddr != {{ {admitted} }} drop; }}"
        for vip in port.vips(VipKind.CLUSTER_IP, VipKind.NODE_PORT, *_EXTERNAL):
            place = f"{vip.key.address} . {port.protocol} . {vip.key.port}"
            internal, node_port = vip.kind is VipKind.CLUSTER_IP, vip.kind is VipKind.NODE_PORT
            kind = "nodeport" if node_port else "service"
            if node_port:
                place = f"{port.protocol} . {vip.key.port}"
                elements["nodeport-ips"].add(str(vip.key.address))
            elif internal:
                elements["cluster-ips"].add(str(vip.key.address))
            none_here = _is_local(vip) and not port.plan.local
            if vip.kind is VipKind.LOAD_BALANCER and port.plan.source_ranges:
                elements["firewall-ips"].add(f"{place} : goto firewall-{port.name}")
            if port.plan.cluster and not (internal and none_here):
                chain = f"{_choice(vip) if internal else 'external'}-{port.name}"
                elements["service-nodeports" if node_port else "service-ips"].add(f"{place} : goto {chain}")
            if not port.plan.cluster or none_here:
                verdict = "drop" if port.plan.cluster else "goto reject-chain"
                elements[f"no-endpoint-{kind}s"].add(f"{place} : {verdict}")
    yield "}"
    for name, found in elements.items():
        if found:
            yield f"add element {family} kube-proxy {name} {{ {', '.join(sorted(found))} }}"


_NFT_SETS = (
    "firewall-ips",
    "service-ips",
    "service-nodeports",
    "cluster-ips",
    "nodeport-ips",
    "no-endpoint-services",
    "no-endpoint-nodeports",
)
_NFT_FRAME = """
table $ip kube-proxy {
 map no-endpoint-services { type $addr . inet_proto . inet_service : verdict; }
 map no-endpoint-nodeports { type inet_proto . inet_service : verdict; }
 map firewall-ips { type $addr . inet_proto . inet_service : verdict; }
 map service-ips { type $addr . inet_proto . inet_service : verdict; }
 map service-nodeports { type inet_proto . inet_service : verdict; }
 set cluster-ips { type $addr; }
 set nodeport-ips { type $addr; }
 chain reject-chain { reject; }
 chain mark-for-masquerade { mark set mark or 0x4000; }
 chain masquerading {
  mark and 0x4000 == 0 return
  mark set mark xor 0x4000
  masquerade fully-random
 }
 chain service-endpoints-check { $ip daddr . meta l4proto . th dport vmap @no-endpoint-services; }
 chain nodeport-endpoints-check {
  $ip daddr @nodeport-ips meta l4proto . th dport vmap @no-endpoint-nodeports
 }
 chain firewall-check { $ip daddr . meta l4proto . th dport vmap @firewall-ips; }
 chain cluster-ips-check { $ip daddr @cluster-ips reject; }
 chain services {
  $ip daddr . meta l4proto . th dport vmap @service-ips
  $ip daddr @nodeport-ips meta l4proto . th dport vmap @service-nodeports
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
"""


def _is_local(vip: Vip) -> bool:
    return vip.outside is TrafficPolicy.LOCAL


def _choice(vip: Vip) -> str:
    """Return the kind of chain that chooses for a VIP's clients from outside."""
    return "local" if _is_local(vip) else "service"


def _nft_service(port: NamedPort, pod_network: str, family: str) -> Iterator[str]:
    """Yield the chains of one port: one for each endpoint, one to choose, one for what comes from outside."""
    plan, seconds = port.plan, port.plan.affinity_seconds
    numbers = {backend: at for at, backend in enumerate(dict.fromkeys((*plan.cluster, *plan.local)))}
    for backend, at in numbers.items():
        if seconds:
            kind = "ipv4_addr" if family == "ip" else "ipv6_addr"
            yield f" set {port.memory(backend)} {{"
            yield f"  type {kind}; flags dynamic,timeout; timeout {seconds}s;"
            yield " }"
        yield f" chain endpoint-{port.name}-{at} {{"
        yield f"  {family} saddr {backend.address} jump mark-for-masquerade"
        if seconds:
            yield f"  update @{port.memory(backend)} {{ {family} saddr }}"
        yield f"  meta l4proto {port.protocol} dnat to {socket_text(backend.address, backend.port)}"
        yield " }"
    for chain, backends in (("service", plan.cluster), ("local", plan.local)):
        yield f" chain {chain}-{port.name} {{"
        for vip in port.vips(VipKind.CLUSTER_IP):
            to = f"{family} daddr {vip.key.address} {port.protocol} dport {vip.key.port}"
            yield f"  {to} {family} saddr != {pod_network} jump mark-for-masquerade"
        for backend in backends if seconds else ():
            yield f"  {family} saddr @{port.memory(backend)} goto endpoint-{port.name}-{numbers[backend]}"
        if backends:
            choice = (f"{at} : goto endpoint-{port.name}-{numbers[each]}" for at, each in enumerate(backends))
            yield f"  numgen random mod {len(backends)} vmap {{ {', '.join(choice)} }}"
        yield " }"
    if port.external:
        yield from _nft_external(port, pod_network, family)


def _nft_external(port: NamedPort, pod_network: str, family: str) -> Iterator[str]:
    """Yield the chain of what is for other addresses than a clusterIP; pods and the node are inside."""
    yield f" chain external-{port.name} {{"
    if any(map(_is_local, port.vips(VipKind.NODE_PORT, *_EXTERNAL))):
        yield f"  {family} saddr {pod_network} goto service-{port.name}"
        yield "  fib saddr type local jump mark-for-masquerade"
        yield f"  fib saddr type local goto service-{port.name}"
        yield f"  goto local-{port.name}"
    else:
        yield f"  jump mark-for-masquerade; goto service-{port.name};"
    yield " }"


def iptables(every: Sequence[NamedPort], pod_network: str) -> Iterator[str]:
    """Yield the chains of kube-proxy's iptables mode: rule after rule, endpoints by `statistic`."""
    ports = [port for port in every if port.plan.cluster]
    yield "*filter"
    yield from _iptables_rejects([port for port in every if not port.plan.cluster])
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
    for port in ports:
        chains += _iptables_chains(port)
        rules += _iptables_service(port, pod_network)
    rules.append("-A KUBE-SERVICES -m addrtype --dst-type LOCAL -j KUBE-NODEPORTS")
    yield from (f":{name} - [0:0]" for name in chains)
    yield from rules
    yield "COMMIT"


def _iptables_rejects(ports: Sequence[NamedPort]) -> Iterator[str]:
    """Yield what refuses ports without endpoints, in table filter; nothing without any."""
    if not ports:
        return
    yield ":KUBE-SERVICES - [0:0]"
    for chain in ("INPUT", "FORWARD", "OUTPUT"):
        yield f"-A {chain} -m conntrack --ctstate NEW -j KUBE-SERVICES"
    for port in ports:
        to = f"-m {port.protocol} -p {port.protocol} --dport"
        for vip in port.vips(VipKind.CLUSTER_IP, *_EXTERNAL):
            yield f"-A KUBE-SERVICES -d {vip.key.address} {to} {vip.key.port} -j REJECT"
        for number in sorted({vip.key.port for vip in port.vips(VipKind.NODE_PORT)}):
            yield f"-A KUBE-SERVICES -m addrtype --dst-type LOCAL {to} {number} -j REJECT"


def _iptables_chains(port: NamedPort) -> Iterator[str]:
    yield f"KUBE-SVC-{port.name}"
    if port.external:
        yield f"KUBE-EXT-{port.name}"
    yield from (f"KUBE-SEP-{port.name}-{at}" for at in range(len(port.plan.cluster)))


def _iptables_service(port: NamedPort, pod_network: str) -> Iterator[str]:
    """Yield the rules of one port."""
    name, backends = port.name, port.plan.cluster
    to = f"-m {port.protocol} -p {port.protocol} --dport"
    for vip in port.vips(VipKind.CLUSTER_IP):
        there = f"-d {vip.key.address} {to} {vip.key.port}"
        yield f"-A KUBE-SERVICES {there} -j KUBE-SVC-{name}"
        yield f"-A KUBE-SVC-{name} ! -s {pod_network} {there} -j KUBE-MARK-MASQ"
    for vip in port.vips(*_EXTERNAL):
        yield f"-A KUBE-SERVICES -d {vip.key.address} {to} {vip.key.port} -j KUBE-EXT-{name}"
    for number in sorted({vip.key.port for vip in port.vips(VipKind.NODE_PORT)}):
        yield f"-A KUBE-NODEPORTS {to} {number} -j KUBE-EXT-{name}"
    if port.external:
        yield f"-A KUBE-EXT-{name} -j KUBE-MARK-MASQ"
        yield f"-A KUBE-EXT-{name} -j KUBE-SVC-{name}"
    seconds = port.plan.affinity_seconds
    for at in range(len(backends) if seconds else 0):
        known = f"-m recent --name KUBE-SEP-{name}-{at} --rcheck --seconds {seconds} --reap --rsource"
        yield f"-A KUBE-SVC-{name} {known} -j KUBE-SEP-{name}-{at}"
    for at, backend in enumerate(backends):
        left = len(backends) - at
        chance = f"-m statistic --mode random --probability {1 / left:.10f} " if left > 1 else ""
        yield f"-A KUBE-SVC-{name} {chance}-j KUBE-SEP-{name}-{at}"
        yield f"-A KUBE-SEP-{name}-{at} -s {backend.address} -j KUBE-MARK-MASQ"
        dnat = f"-j DNAT --to-destination {socket_text(backend.address, backend.port)}"
        comment = f'-m comment --comment "{port.service}:{port.plan.port_name}"'
        known = f"-m recent --name KUBE-SEP-{name}-{at} --set --rsource " if seconds else ""
        yield f"-A KUBE-SEP-{name}-{at} {comment} {known}-p {port.protocol} -m {port.protocol} {dnat}"
