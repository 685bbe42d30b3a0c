"""What a lab consists of and which names and addresses it has: pure, the same for every lab.

::

      client .100 … .109, outside server .200          (namespace <id>-client, interface eth0)
        │
   ─────┴──── 192.168.77.0/24, a bridge in <id>-switch ────┬──────────────┐
                                                          │ .11           │ .12
                                              <id>-node1: eth0   <id>-node2: eth0
                                                │ pod-…  │ pod-…          │ pod-…
                                             10.244.1.2  10.244.1.3    10.244.2.2  (namespaces <id>-pod-<pod>)

With an API server, ``<id>-api`` is one more host on the segment, at .2. Labs never share a namespace or a
pin, so all of them use these same addresses.
"""

from __future__ import annotations

import enum
import hashlib
import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Interface, IPv4Network

from lb.config import UplinkMode
from lb.errors import LabError

SEGMENT = IPv4Network("192.168.77.0/24")
POD_CLUSTER = IPv4Network("10.244.0.0/16")
SERVICE_CIDR = IPv4Network("10.66.0.0/16")
POD_GATEWAY = IPv4Address("169.254.1.1")
"""Every pod's default gateway: exists nowhere, a fixed neighbour entry leads to the host end of the veth."""

POD_GATEWAY_MAC = "ee:ee:ee:ee:ee:ee"
CLIENTS = tuple(SEGMENT[100 + number] for number in range(10))
"""The client's addresses; the first is its primary one, ``curl --interface`` takes any of them."""

OUTSIDE_SERVER = SEGMENT[200]
"""An HTTP server on port 80 and a UDP echo on port 9000 outside the cluster."""

API_SERVER = SEGMENT[2]
API_PORT = 6443

UPLINK = "eth0"
POD_INTERFACES = "pod-*"
TUNNEL = "vxlan0"
VXLAN_ID = 77
VXLAN_PORT = 4789
MTU = 1500
TUNNEL_MTU = MTU - 50
MAX_NODES = 50

_ID = re.compile(r"[a-z][a-z0-9]{0,15}")


class Overlay(enum.StrEnum):
    """How pods of different nodes reach each other."""

    NONE = "none"
    VXLAN = "vxlan"


@dataclass(frozen=True, slots=True)
class LabSpec:
    """What ``lab up`` was asked for.

    Attributes
    ----------
    id: 1 to 16 lower-case letters and digits, a letter first; no hyphen, so that ``<id>-`` is never the
        beginning of another lab's names.
    nodes: how many, 1 to 50.
    manifests: absolute path of the directory of manifests.
    replicas: replaces ``spec.replicas`` of every ReplicaSet and Deployment; None leaves them.
    agents: whether each node runs an agent.
    kubernetes: absolute path of the folder of an API server's binaries, which then is what the lab lives
        from; ``""``: it lives from the manifests themselves.

    Raises
    ------
    LabError: id or nodes is out of bounds.
    """

    id: str
    manifests: str
    nodes: int = 2
    replicas: int | None = None
    overlay: Overlay = Overlay.NONE
    uplink_mode: UplinkMode = UplinkMode.AUTO
    agents: bool = True
    kubernetes: str = ""

    def __post_init__(self) -> None:
        check_id(self.id)
        if not 1 <= self.nodes <= MAX_NODES:
            raise LabError(f"--nodes {self.nodes}: a lab has 1 to {MAX_NODES} nodes")
        if self.replicas is not None and not 0 <= self.replicas <= 250:
            raise LabError(f"--replicas {self.replicas}: give 0 to 250")

    @property
    def client(self) -> str:
        """The client's namespace."""
        return f"{self.id}-client"

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
        api = (self.api,) if self.kubernetes else ()
        return (self.switch, self.client, *api, *(self.namespace(node) for node in self.node_names))

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

    Raises
    ------
    LabError: says what an id may be.
    """
    if not _ID.fullmatch(lab):
        raise LabError(f"--id {lab!r}: up to 16 lower-case letters and digits, a letter first, no hyphen")


def node_number(node: str) -> int:
    """Return 3 for ``node3``."""
    return int(node.removeprefix("node"))


def node_address(node: str) -> IPv4Address:
    """Return the node's address on the segment."""
    return SEGMENT[10 + node_number(node)]


def node_mac(node: str) -> str:
    """Return the MAC address of the node's uplink."""
    return f"02:77:00:00:00:{node_number(node):02x}"


def tunnel_mac(node: str) -> str:
    """Return the MAC address of the node's VXLAN device."""
    return f"02:77:00:00:01:{node_number(node):02x}"


def pod_cidr(node: str) -> IPv4Network:
    """Return the node's share of the pods' network, ``10.244.<n>.0/24``; .0 is its VXLAN device."""
    return IPv4Network((int(POD_CLUSTER.network_address) + (node_number(node) << 8), 24))


def on_segment(address: IPv4Address) -> IPv4Interface:
    """Return the address with the segment's prefix length."""
    return IPv4Interface(f"{address}/{SEGMENT.prefixlen}")


class AddressPool:
    """Pod addresses of one node, handed out in turn so that a fresh pod rarely gets a recent address."""

    def __init__(self, network: IPv4Network) -> None:
        self._network = network
        self._used: set[IPv4Address] = set()
        self._last = 1

    def take(self) -> IPv4Address:
        """Return a free address (.2 to .254).

        Raises
        ------
        LabError: all are in use.
        """
        for step in range(253):
            host = 2 + (self._last - 1 + step) % 253
            address = self._network[host]
            if address not in self._used:
                self._used.add(address)
                self._last = host
                return address
        raise LabError(f"no free pod address in {self._network}: 253 pods run there")

    def give_back(self, address: IPv4Address) -> None:
        """Make the address free again."""
        self._used.discard(address)


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
