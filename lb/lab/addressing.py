# SPDX-License-Identifier: Apache-2.0
"""What a lab consists of and which names and addresses it has: pure, the same for every lab.

::

      client .100 … .109, outside server .200          (namespace <id>-client, interface eth0)
        │
   ─────┴──── 192.168.77.0/24, a bridge in <id>-switch ────┬──────────────┐
                                                          │ .11           │ .12
                                              <id>-node1: eth0   <id>-node2: eth0
                                                │ pod-…  │ pod-…          │ pod-…
                                             10.244.1.2  10.244.1.3    10.244.2.2  (namespaces <id>-pod-<pod>)

With a router (``--announce``) the client is behind it, on 192.168.78.0/24 with the same last digits, and the
outside server, at its old address; the router is .1 on both segments, and the nodes' way to all that they do
not know. It learns the addresses of Services from the nodes.

Every address has its like in IPv6, written with the same digits: the node at 192.168.77.11 is fd00:77::11,
the pod 10.244.1.3 is fd00:244:0:1::3. With an API server, ``<id>-api`` is one more host on the segment, at
.2. Labs never share a namespace or a pin, so all of them use these same addresses.
"""

from __future__ import annotations

import enum
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network

from lb.config import Forward, Switch, UplinkMode
from lb.errors import LabError
from lb.model import IPAddress, IPNetwork

SEGMENTS: dict[int, IPNetwork] = {4: IPv4Network("192.168.77.0/24"), 6: IPv6Network("fd00:77::/64")}
"""By IP version, as everything below that comes in two."""

OUTER_SEGMENTS: dict[int, IPNetwork] = {4: IPv4Network("192.168.78.0/24"), 6: IPv6Network("fd00:78::/64")}
"""Behind the router, in a lab that has one: the client's."""

SERVICE_CIDRS: dict[int, IPNetwork] = {4: IPv4Network("10.66.0.0/16"), 6: IPv6Network("fd00:66::/112")}
POD_NETWORKS: dict[int, IPNetwork] = {4: IPv4Network("10.244.0.0/16"), 6: IPv6Network("fd00:244::/48")}
"""What all pods' addresses are in; each node has a share, :func:`pod_cidr`."""

BALANCED: dict[int, IPNetwork] = {4: IPv4Network("203.0.113.0/24"), 6: IPv6Network("2001:db8:203::/112")}
"""The pool of load-balancer addresses: networks for documentation (RFC 5737, RFC 3849), on no interface.
Without a router the client sends to node1 what it knows no other way to."""

EXTERNAL: dict[int, IPNetwork] = {4: IPv4Network("198.51.100.0/24"), 6: IPv6Network("2001:db8:198::/112")}
"""Of the examples' externalIPs: networks for documentation, too."""

ANNOUNCED: dict[int, IPNetwork] = {
    4: IPv4Network("192.168.77.224/28"),
    6: IPv6Network("fd00:77::e000/120"),
}
"""The pool in place of that where nodes answer for addresses on the segment itself. The other one's are then
given on request alone."""

POD_GATEWAYS: dict[int, IPAddress] = {4: IPv4Address("169.254.1.1"), 6: IPv6Address("fe80::1")}
"""Every pod's default gateway: exists nowhere, a fixed neighbour entry leads to the host end of the veth."""

POD_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"
API_PORT = 6443
UPLINK = "eth0"
POD_INTERFACES = "pod-*"
MTU = 1500
DEFAULT_ID = "lab"
MAX_NODES = 50
ZONES = ("zone-a", "zone-b")

_ID = re.compile(r"[a-z][a-z0-9]{0,15}")
_ZONE = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def on_segment(number: int, version: int = 4, *, outer: bool = False) -> IPAddress:
    """Return the address on the segment that ends in these digits: ``.100`` or ``::100``.

    outer: on the one behind the router.
    """
    return (OUTER_SEGMENTS if outer else SEGMENTS)[version][_digits(number, version)]


def _digits(number: int, version: int) -> int:
    """Return what is written as these decimal digits in an address of the version."""
    return number if version == 4 else int(str(number), 16)


def clients(version: int = 4, *, outer: bool = False) -> tuple[IPAddress, ...]:
    """Return the client's addresses; the first is its primary one, ``curl --interface`` takes any of them."""
    return tuple(on_segment(100 + number, version, outer=outer) for number in range(10))


def outside_server(version: int = 4) -> IPAddress:
    """Return the address of an HTTP server on port 80 and a UDP echo on port 9000 outside the cluster.

    It is the same behind a router, which has a route for it.
    """
    return on_segment(200, version)


def router(version: int = 4, *, outer: bool = False) -> IPAddress:
    """Return the router's address on the nodes' segment, or on the one behind it."""
    return on_segment(1, version, outer=outer)


def api_server(version: int = 4) -> IPAddress:
    """Return the address of the API server's host."""
    return on_segment(2, version)


def dns_service(version: int = 4) -> IPAddress:
    """Return the clusterIP of the Service kube-dns, unless manifests give it another."""
    return SERVICE_CIDRS[version][_digits(10, version)]


def like(address: str, version: int) -> IPAddress:
    """Return what stands for one of the lab's IPv4 addresses in an IP version: it ends in the same digits.

    The manifests of examples-ipv6 are those of examples/ with such addresses.

    Raises LabError: it is in none of the lab's networks.
    """
    given = IPv4Address(address)
    for networks in (SEGMENTS, SERVICE_CIDRS, BALANCED, EXTERNAL):
        if given in networks[4]:
            return given if version == 4 else networks[version][_digits(given.packed[-1], version)]
    raise LabError(f"{address} is no address of a lab")


CLIENTS = clients()


class Overlay(enum.StrEnum):
    """How pods of different nodes reach each other: by routes, or through tunnels between the nodes."""

    NONE = "none"
    VXLAN = "vxlan"
    IPIP = "ipip"


class Announce(enum.StrEnum):
    """How the network comes to know which nodes serve an address of a Service."""

    NONE = "none"
    """Not at all: the client sends everything to node1."""
    ARP = "arp"
    """The client asks for it on the segment, in IPv6 by neighbour discovery."""
    BGP = "bgp"
    """A router between the client and the nodes learns it from them."""


class RouterKind(enum.StrEnum):
    """The program that speaks BGP at the lab's router."""

    BIRD = "bird"
    FRR = "frr"


class Family(enum.StrEnum):
    """The IP versions of a lab."""

    IPV4 = "ipv4"
    IPV6 = "ipv6"
    DUAL = "dual"

    @property
    def versions(self) -> tuple[int, ...]:
        """4, 6 or both; the first is the primary one."""
        return {Family.IPV4: (4,), Family.IPV6: (6,), Family.DUAL: (4, 6)}[self]


@dataclass(frozen=True, slots=True)
class LabSpec:
    """What ``lab up`` was asked for.

    id: 1 to 16 lower-case letters and digits, a letter first; no hyphen, so that ``<id>-`` is never the
        beginning of another lab's names.
    nodes: how many, 1 to 50.
    manifests: absolute path of the directory of manifests.
    replicas: replaces ``spec.replicas`` of every ReplicaSet and Deployment; None leaves them.
    agents: whether each node runs an agent.
    kubernetes: absolute path of the folder of an API server's binaries, which then is what the lab lives
        from; ``""``: it lives from the manifests themselves.
    family: of the client, the nodes, the pods and the Services.
    zones: given to the nodes in turn.
    pools: whether Services of type LoadBalancer are given addresses.
    dns: whether the lab answers for the names of Services (:mod:`lb.lab.dns`).
    announce: how the network learns of load-balancer addresses; for BGP there is a router before the client.
    router: what the router runs.

    Raises LabError: a value is out of bounds, or two do not go together.
    """

    id: str
    manifests: str
    nodes: int = 2
    replicas: int | None = None
    overlay: Overlay = Overlay.NONE
    uplink_mode: UplinkMode = UplinkMode.AUTO
    redirect: Switch = Switch.OFF
    forward: Forward = Forward.SNAT
    agents: bool = True
    kubernetes: str = ""
    family: Family = Family.DUAL
    zones: tuple[str, ...] = ZONES
    pools: bool = True
    dns: bool = False
    announce: Announce = Announce.NONE
    router: RouterKind = RouterKind.BIRD

    def __post_init__(self) -> None:
        check_id(self.id)
        if not 1 <= self.nodes <= MAX_NODES:
            raise LabError(f"--nodes {self.nodes}: a lab has 1 to {MAX_NODES} nodes")
        if self.replicas is not None and not 0 <= self.replicas <= 250:
            raise LabError(f"--replicas {self.replicas}: give 0 to 250")
        if not self.zones or not all(map(_ZONE.fullmatch, self.zones)):
            raise LabError(f"--zones {','.join(self.zones)}: give names as the values of labels are")
        if self.overlay is Overlay.IPIP and self.versions == (6,):
            raise LabError("--overlay ipip: its tunnels run over IPv4, which --family ipv6 leaves out")
        if self.announce is not Announce.NONE and not self.balanced:
            raise LabError(
                f"--announce {self.announce}: without agents and pools there is nothing to announce"
            )

    @property
    def versions(self) -> tuple[int, ...]:
        """The IP versions, the primary one first."""
        return self.family.versions

    @property
    def balanced(self) -> bool:
        """Whether something gives addresses: it is of no use where no agent leads to them."""
        return self.pools and self.agents

    @property
    def service_cidr(self) -> str:
        """The networks of Services as kube-apiserver's ``--service-cluster-ip-range`` takes them."""
        return ",".join(str(SERVICE_CIDRS[version]) for version in self.versions)

    @property
    def pod_networks(self) -> tuple[IPNetwork, ...]:
        """The networks of all pods, the primary one first."""
        return tuple(POD_NETWORKS[version] for version in self.versions)

    @property
    def pod_mtu(self) -> int:
        """What fits into a frame between nodes, less the headers of the overlay, in bytes."""
        outer = 20 if 4 in self.versions else 40
        around = {Overlay.NONE: 0, Overlay.IPIP: outer, Overlay.VXLAN: outer + 8 + 8 + 14}
        return MTU - around[self.overlay]

    def node_addresses(self, node: str) -> tuple[IPAddress, ...]:
        """Return the node's addresses on the segment, the primary one first."""
        return tuple(node_address(node, version) for version in self.versions)

    def pod_cidrs(self, node: str) -> tuple[IPNetwork, ...]:
        """Return the node's shares of the pods' networks, the primary one first."""
        return tuple(pod_cidr(node, version) for version in self.versions)

    def zone(self, node: str) -> str:
        """Return the zone of a node."""
        return self.zones[(node_number(node) - 1) % len(self.zones)]

    @property
    def routed(self) -> bool:
        """Whether there is a router between the client and the nodes."""
        return self.announce is Announce.BGP

    def clients(self, version: int = 4) -> tuple[IPAddress, ...]:
        """Return the client's addresses, see :func:`clients`."""
        return clients(version, outer=self.routed)

    @property
    def client(self) -> str:
        """The client's namespace."""
        return f"{self.id}-client"

    @property
    def router_namespace(self) -> str:
        """The router's namespace, if there is one."""
        return f"{self.id}-router"

    @property
    def api(self) -> str:
        """The API server's namespace, if there is one."""
        return f"{self.id}-api"

    @property
    def switch(self) -> str:
        """The namespace of the bridge that is the segment."""
        return f"{self.id}-switch"

    @property
    def node_names(self) -> tuple[str, ...]:
        """``node1``, ``node2``, …: their names in Kubernetes."""
        return tuple(f"node{number}" for number in range(1, self.nodes + 1))

    @property
    def namespaces(self) -> tuple[str, ...]:
        """The namespaces that exist from the start; those of pods come and go."""
        others = [self.router_namespace] if self.routed else []
        others += [self.api] if self.kubernetes else []
        return (self.switch, self.client, *others, *(self.namespace(node) for node in self.node_names))

    def namespace(self, node: str) -> str:
        """Return the namespace of a node."""
        return f"{self.id}-{node}"

    def instance(self, node: str) -> str:
        """Return the name of a node's pins."""
        return f"{self.id}.{node}"

    def pod_namespace(self, namespace: str, pod: str) -> str:
        """Return the network namespace of a pod; ``@`` cannot occur in Kubernetes names."""
        return f"{self.id}-pod-{pod}" if namespace == "default" else f"{self.id}-pod-{pod}@{namespace}"


def check_id(lab: str) -> None:
    """Refuse what cannot be a lab's id.

    Raises LabError: says what an id may be.
    """
    if not _ID.fullmatch(lab):
        raise LabError(f"--id {lab!r}: up to 16 lower-case letters and digits, a letter first, no hyphen")


def node_number(node: str) -> int:
    """Return 3 for ``node3``."""
    return int(node.removeprefix("node"))


def node_address(node: str, version: int = 4) -> IPAddress:
    """Return the node's address on the segment."""
    return on_segment(10 + node_number(node), version)


def node_mac(node: str) -> str:
    """Return the MAC address of the node's uplink."""
    return f"02:77:00:00:00:{node_number(node):02x}"


def pod_cidr(node: str, version: int = 4) -> IPNetwork:
    """Return the node's share of the pods' network: ``10.244.<n>.0/24``, ``fd00:244:0:<n>::/64``."""
    number = node_number(node)
    if version == 4:
        return IPv4Network(f"10.244.{number}.0/24")
    return IPv6Network(f"fd00:244:0:{number}::/64")


def tunnel_address(node: str, version: int = 4) -> IPAddress:
    """Return the address of the node's end of the overlay: ``10.244.<n>.0``, ``fd00:244:0:<n>::1``.

    In IPv6 an address that ends in zeros alone means any router of the network (RFC 4291 2.6.1).
    """
    return pod_cidr(node, version)[0 if version == 4 else 1]


class AddressPool:
    """Pod addresses of one node, handed out in turn so that a fresh pod rarely gets a recent address."""

    def __init__(self, networks: Sequence[IPNetwork]) -> None:
        self._networks = networks
        self._used: dict[tuple[IPAddress, ...], int] = {}
        self._last = 1

    def take(self) -> tuple[IPAddress, ...]:
        """Return a free address of each network, .2 to .254 or ::2 to ::254.

        Raises LabError: every address is in use.
        """
        used = set(self._used.values())
        for step in range(253):
            host = 2 + (self._last - 1 + step) % 253
            if host not in used:
                addresses = tuple(each[_digits(host, each.version)] for each in self._networks)
                self._used[addresses] = self._last = host
                return addresses
        networks = " and ".join(map(str, self._networks))
        raise LabError(f"no free pod address in {networks}: 253 pods run there")

    def give_back(self, addresses: tuple[IPAddress, ...]) -> None:
        """Make the addresses of one pod free again."""
        self._used.pop(addresses, None)


def pod_interface(namespace: str, pod: str) -> str:
    """Return the name of the host end of the pod's veth pair: at most 15 characters, ``pod-`` first.

    A short name in the namespace default is kept (``pod-kubia-4bv25``); others become the last five
    characters and five hex digits of a hash over the whole.
    """
    if namespace == "default" and len(pod) <= 11:
        return f"pod-{pod}"
    digest = hashlib.blake2b(f"{namespace}/{pod}".encode(), digest_size=3).hexdigest()
    tail = re.sub(r"[^a-z0-9]", "", pod[-5:])
    return f"pod-{tail}-{digest[:5]}"
