# SPDX-License-Identifier: Apache-2.0
"""Settings: their names, units, defaults, meaning, and what each may hold.

Every field below is one setting, declared once by :func:`setting`. How it is written in a YAML file, in the
environment and as a flag follows from its place here, see :class:`Setting`; the reading itself is in
:mod:`lb.cli.settings`.
"""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any, get_origin, get_type_hints


class SocketMode(enum.StrEnum):
    """Whose sockets are served at the socket: those of the node itself, those of pods as well, none."""

    HOST = "host"
    ALL = "all"
    OFF = "off"


class Switch(enum.StrEnum):
    """Whether something is done."""

    ON = "on"
    OFF = "off"


class Forward(enum.StrEnum):
    """How packets from outside reach a backend on another node.

    SNAT: in this node's name, and back through it. DSR: encapsulated, and the other node answers. ANNOTATED:
    as DSR for Services that ask for it by annotation, as SNAT for all others.
    """

    SNAT = "snat"
    DSR = "dsr"
    ANNOTATED = "annotated"


class Announce(enum.StrEnum):
    """How the node's segment finds load-balancer addresses: not by us, or by ARP and neighbour discovery."""

    OFF = "off"
    ARP = "arp"


class UplinkMode(enum.StrEnum):
    """Which hook an uplink uses; AUTO decides by driver and says why."""

    AUTO = "auto"
    XDP_NATIVE = "xdp-native"
    XDP_GENERIC = "xdp-generic"
    TC = "tc"


PRIMARY = "primary"
"""In node_port_addresses: the first InternalIP of each family by the Node object, as with kube-proxy; where
the node has no such address, the first one of the uplinks."""


ALL, NONE = "all", "none"
"""In external_ips: no limit; no address at all."""


@dataclass(frozen=True, slots=True)
class Form:
    """What a setting may hold.

    metavar is the unit or the form as shown in help texts. right says in words what would be right. parse
    turns text into the value and raises ValueError when it cannot.
    """

    metavar: str
    right: str
    parse: Callable[[str], Any]


def _whole(low: int, high: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise ValueError(text)
        return value

    return parse


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value <= 1e9:
        raise ValueError(text)
    return value


def _matching(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def parse(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(text)
        return text

    return parse


def _network(text: str) -> str:
    return str(ip_network(text))


def _networks(text: str) -> str:
    return ",".join(_network(each.strip()) for each in text.split(","))


def _external_ips(text: str) -> str:
    return text if text in (ALL, NONE) else _networks(text)


def _network_or_primary(text: str) -> str:
    return PRIMARY if text == PRIMARY else _network(text)


def _port_range(text: str) -> str:
    first, _, last = text.partition("-")
    if not 1 <= int(first) <= int(last) <= 65535:
        raise ValueError(text)
    return text


OFF = "off"


def split_address(text: str) -> tuple[str, int] | None:
    """Return IP address and port of ``127.0.0.1:10249`` or ``[::1]:10249``; None for ``off`` and for nothing.

    Raises ValueError: the text is none of these.
    """
    if text in ("", OFF):
        return None
    host, _, port = text.rpartition(":")
    bare = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if (ip_address(bare).version == 6) != (bare != host) or not 1 <= int(port) <= 65535:
        raise ValueError(text)
    return bare, int(port)


def _listen_address(text: str) -> str:
    split_address(text)
    return text


def _one_of(*words: str) -> Callable[[str], str]:
    return _matching("|".join(words))


_DNS_NAME = r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*"

ENTRIES = Form("ENTRIES", "a whole number of entries from 1 to 2147483647", _whole(1, 2**31 - 1))
COUNT = Form("NUMBER", "a whole number from 0 to 1000000", _whole(0, 1_000_000))
SECONDS = Form("SECONDS", "a number of seconds above 0", _seconds)
RATE = Form("PER_SECOND", "a whole number from 0 to 1000000, so many a second", _whole(0, 1_000_000))
PORT = Form("PORT", "a port number from 1 to 65535", _whole(1, 65535))
PORT_RANGE = Form("FIRST-LAST", "a range of port numbers such as 30000-32767", _port_range)
NETWORKS = Form(
    "CIDR[,CIDR]",
    "one network or one of each family, such as 10.96.0.0/16,fd00:96::/112, without host bits",
    _networks,
)
EXTERNAL_IPS = Form(
    "all|none|CIDR[,CIDR]",
    f"{ALL}, {NONE}, or networks such as 203.0.113.0/24,2001:db8::/64, without host bits",
    _external_ips,
)
NETWORK_OR_PRIMARY = Form(
    "CIDR", f"a network such as 10.0.0.0/8, without host bits, or the word {PRIMARY}", _network_or_primary
)
NODE_NAME = Form(
    "NAME",
    "a node name as Kubernetes takes it: at most 253 lower-case letters, digits, '-' and '.'",
    _matching(rf"(?=.{{1,253}}$){_DNS_NAME}"),
)
INSTANCE = Form(
    "NAME",
    "a directory name: at most 200 letters, digits, '-', '_' and '.', beginning with a letter or digit",
    _matching(r"[A-Za-z0-9][-A-Za-z0-9_.]{0,199}"),
)
INTERFACE = Form("IFACE", "the name of an interface, at most 15 characters", _matching(r"[^\s/:,]{1,15}"))
GLOB = Form("GLOB", "an interface name or a pattern such as veth*", _matching(r"[^\s/,]{1,64}"))
SOURCE = Form("SOURCE", "manifests:DIR or kubernetes", _matching(r"manifests:.+|kubernetes"))
MODE = Form("MODE", "one of " + ", ".join(UplinkMode), UplinkMode)
SOCKETS = Form("MODE", "one of " + ", ".join(SocketMode), SocketMode)
SWITCH = Form("on|off", "on or off", Switch)
ANNOUNCE = Form("MODE", "one of " + ", ".join(Announce), Announce)
FORWARD = Form("MODE", "one of " + ", ".join(Forward), Forward)
NETWORK = Form("CIDR", "a network such as 203.0.113.0/24, without host bits", _network)
LEVEL = Form("LEVEL", "one of debug, info, warning, error", _one_of("debug", "info", "warning", "error"))
LOG_FORMAT = Form("FORMAT", "text or json", _one_of("text", "json"))
LISTEN_ADDRESS = Form(
    "IP:PORT", f"an IP address and a port such as 127.0.0.1:10249 or [::1]:10249, or {OFF}", _listen_address
)
CONTEXT = Form("NAME", "the name of a context", _matching(r".+"))
FILE = Form("FILE", "the path of a file", _matching(r".+"))
DIRECTORY = Form("DIR", "the path of a directory", _matching(r".+"))


def setting(default: Any, kind: Form, text: str, *, one: str = "") -> Any:
    """Declare a setting: its default, what it may hold, and its help text.

    one is the name of a single value of a list, as flags and the environment call it: ``uplink`` for
    the field ``uplinks``.
    """
    return field(default=default, metadata={"kind": kind, "help": text, "one": one})


@dataclass(frozen=True, slots=True)
class Limits:
    """Entries of each map that can fill up. A change compiles anew; what still fits is carried over."""

    vips: int = setting(
        65_536, ENTRIES, "Service addresses: one for each address, port and protocol, one for each address"
    )
    backends: int = setting(131_072, ENTRIES, "endpoints: one for each Service port and endpoint")
    table_rows: int = setting(
        8_388_608,
        ENTRIES,
        "rows of the sets of backends, 4 bytes each: 32 for a set of up to 16, else 100 to 200 for each",
    )
    flows: int = setting(
        524_288, ENTRIES, "slots for flow entries; a connection takes two. Have twice as many as will be used"
    )
    affinity: int = setting(
        131_072, ENTRIES, "slots for clients with ClientIP affinity. Have twice as many as will be used"
    )
    services: int = setting(65_536, ENTRIES, "Service ports")
    sockets: int = setting(
        65_536,
        ENTRIES,
        "peers of sockets: one for a connection, two for each peer of an unconnected UDP socket",
    )
    fragments: int = setting(8_192, ENTRIES, "fragmented datagrams on their way")
    pieces: int = setting(512, ENTRIES, "fragments that came before the first of their datagram")
    source_ranges: int = setting(
        65_536, ENTRIES, "networks in loadBalancerSourceRanges: one for each Service port and network"
    )

    def as_dict(self) -> dict[str, int]:
        """Return the limits by name, as :meth:`lb.datapath.maps.map_table.MapSpec.max_entries` takes them."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds after which an idle flow is forgotten; defaults follow nf_conntrack as kube-proxy sets it."""

    tcp_syn: float = setting(60, SECONDS, "a TCP connection whose handshake is not complete")
    tcp_established: float = setting(86_400, SECONDS, "an idle TCP connection")
    tcp_closing: float = setting(10, SECONDS, "a TCP connection after its first FIN")
    udp_new: float = setting(30, SECONDS, "a UDP flow of one datagram, answered or not")
    udp: float = setting(120, SECONDS, "an idle UDP flow, whose client has gone on after an answer")
    sctp: float = setting(210, SECONDS, "an idle SCTP association; its start and end are timed as TCP's")


@dataclass(frozen=True, slots=True)
class SnatPorts:
    """The port range, inclusive, that SNAT may use for connections whose backend is on another node.

    By default what is below NodePorts (30000 to 32767) and the ports that Linux gives to its own connections
    (net.ipv4.ip_local_port_range, 32768 to 60999): 28,976 ports for each backend. Ports at which the node
    listens, or that a Service has, are left out one by one: the kernel is asked.
    """

    first: int = setting(1024, PORT, "first port for connections whose backend is on another node")
    last: int = setting(29_999, PORT, "last of those ports")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything ``lbctl run`` can be told; the text of each setting says what it means, and by default."""

    sources: tuple[str, ...] = setting(
        (),
        SOURCE,
        "where Services come from: the Kubernetes API, or a directory of manifests, watched; what two of them"
        " define is the later one's",
        one="source",
    )
    kubeconfig: str = setting(
        "", FILE, "kubeconfig file for the Kubernetes API; default: the pod's service account"
    )
    context: str = setting("", CONTEXT, "context in the kubeconfig; default: its current one")
    node_name: str = setting("", NODE_NAME, "this node's name in pods and endpoints; default: the host name")
    instance: str = setting(
        "", INSTANCE, "name of the directory of pins below /sys/fs/bpf/lbctl; default: the node's name"
    )
    uplinks: tuple[str, ...] = setting(
        (),
        INTERFACE,
        "interface towards clients and other nodes; default: that of the default route",
        one="uplink",
    )
    uplink_mode: UplinkMode = setting(
        UplinkMode.AUTO,
        MODE,
        "hook of the uplinks: auto, xdp-native, xdp-generic or tc; auto says what it took and why",
    )
    tunnels: tuple[str, ...] = setting(
        (),
        GLOB,
        "overlay interface that leads to pods of other nodes; default: every VXLAN and Geneve device",
        one="tunnel",
    )
    pod_interfaces: tuple[str, ...] = setting(
        (),
        GLOB,
        "host ends of pods' interfaces; default: every veth whose other end is in another network namespace",
        one="pod_interface",
    )
    socket_lb: SocketMode = setting(
        SocketMode.HOST,
        SOCKETS,
        "whose sockets are led to backends by socket hooks: host, the processes of the node's own network"
        " namespace; all, pods as well; off, nobody's: tc translates the packets",
    )
    shadow: Switch = setting(
        Switch.OFF,
        SWITCH,
        "beside kube-proxy: the programs decide about each connection and touch no packet; lbctl shadow tells"
        " where they would have done otherwise than netfilter did",
    )
    cutover: Switch = setting(
        Switch.OFF,
        SWITCH,
        "at a first start beside kube-proxy's rules: once kube-proxy itself has gone, take over its"
        " connections and remove its rules, as lbctl cutover does",
    )
    redirect: Switch = setting(
        Switch.OFF,
        SWITCH,
        "send packets for pods of this node, and their replies, past the host's stack: faster, but netfilter,"
        " with what NetworkPolicies it enforces, and all else on the interfaces between do not see them",
    )
    forward: Forward = setting(
        Forward.SNAT,
        FORWARD,
        "how packets from outside reach backends on other nodes: snat, in the node's own name; dsr,"
        " encapsulated with the client's address, and the other node answers the client; annotated: dsr for"
        " Services with the annotation lbctl/forward: dsr alone. The same on every node",
    )
    direct_port: int = setting(
        6080,
        PORT,
        "UDP port at which nodes take encapsulated packets of each other (forward: dsr), within snat_ports;"
        " the same on every node",
    )
    cgroup: str = setting(
        "",
        DIRECTORY,
        "cgroup v2 whose processes the socket hooks serve, as a path; default: the root of the cgroup2 mount",
    )
    node_port_addresses: tuple[str, ...] = setting(
        (),
        NETWORK_OR_PRIMARY,
        "networks whose addresses, but for loopback and link-local ones, answer on NodePorts; default:"
        f" {PRIMARY}, the first InternalIP of each family by the Node object, else the uplinks' first",
        one="node_port_address",
    )
    external_ips: str = setting(
        ALL,
        EXTERNAL_IPS,
        "which addresses Services may have as externalIPs: whoever may write a Service can take over what is"
        " sent to any of them, from this node's pods as well (CVE-2020-8554); a clusterIP, an endpoint's"
        " address and a port on which the node listens are never among them",
    )
    service_cidr: str = setting(
        "10.96.0.0/16",
        NETWORKS,
        "network for manifests that leave clusterIP out; after a comma a second one of the other family, for"
        " Services that ask for it",
    )
    node_port_range: str = setting("30000-32767", PORT_RANGE, "ports for manifests that leave nodePort out")
    ready_file: str = setting("", FILE, "written when the first sync is in the kernel, removed on stop")
    metrics_address: str = setting(
        "127.0.0.1:10249",
        LISTEN_ADDRESS,
        f"where GET /metrics is answered, for Prometheus: an IP address and a port, or {OFF}",
    )
    healthz_address: str = setting(
        "0.0.0.0:10256",
        LISTEN_ADDRESS,
        f"where GET /healthz and /livez are answered: an IP address and a port, or {OFF}; 0.0.0.0 and [::]"
        " mean every address of both families",
    )
    traffic_counters: Switch = setting(
        Switch.ON,
        SWITCH,
        "count packets and bytes of each backend: takes 80 bytes of memory for each of limits.backends and"
        " CPU; connections are counted anyhow",
    )
    metrics_services: int = setting(
        500,
        COUNT,
        "Service ports of which GET /metrics tells, those with the most connections first; how many are left"
        " out is a metric, too",
    )
    metrics_backends: int = setting(500, COUNT, "backends of which GET /metrics tells, likewise")
    answer_rate: int = setting(
        1000,
        RATE,
        "answers of each kind (TCP resets, ICMP errors about ports, sizes and TTLs, ping replies) that the"
        " programs send on each CPU, per second, and as many at once; 0: no limit",
    )
    announce: Announce = setting(
        Announce.OFF,
        ANNOUNCE,
        "arp: one node answers for each load-balancer address, in ARP and in IPv6's neighbour discovery; the"
        " agents agree which by frames on the segment. off: somebody else brings packets to the nodes",
    )
    announce_interfaces: tuple[str, ...] = setting(
        (),
        GLOB,
        "uplink on whose segment addresses are announced; default: every uplink",
        one="announce_interface",
    )
    announce_networks: tuple[str, ...] = setting(
        (),
        NETWORK,
        "network whose addresses are announced on every such segment; default: only addresses in a network of"
        " the uplink itself",
        one="announce_network",
    )
    log_level: str = setting("info", LEVEL, "debug, info, warning or error, to stderr")
    log_format: str = setting("text", LOG_FORMAT, "text, or json: an object in each line of the log")
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    snat_ports: SnatPorts = field(default_factory=SnatPorts)

    @property
    def every_node(self) -> bool:
        """Whether all Nodes are read from the API server, and not the agent's own alone.

        Direct return leads to them; no address of theirs is to be announced.
        """
        return self.forward is not Forward.SNAT or self.announce is not Announce.OFF


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting, as :func:`settings` finds it.

    path is its place: ``("limits", "flows")`` is ``limits: {flows: …}`` in YAML. many is true for lists: the
    flag may be repeated, the environment variable separates by commas.
    """

    path: tuple[str, ...]
    kind: Form
    help: str
    default: Any
    many: bool
    one: str

    @property
    def name(self) -> str:
        """The dotted name, ``limits.flows``."""
        return ".".join(self.path)

    @property
    def flag(self) -> str:
        """The flag, ``--limits-flows``."""
        return "--" + self._single.replace("_", "-")

    @property
    def variable(self) -> str:
        """The environment variable, ``LBCTL_LIMITS_FLOWS``."""
        return "LBCTL_" + self._single.upper()

    @property
    def _single(self) -> str:
        return self.one or "_".join(self.path)


def settings(cls: type = Config, prefix: tuple[str, ...] = ()) -> Iterator[Setting]:
    """Yield every setting of the dataclass and of those nested in it, in their order."""
    types = get_type_hints(cls)
    for item in dataclasses.fields(cls):
        path = (*prefix, item.name)
        if dataclasses.is_dataclass(types[item.name]):
            yield from settings(types[item.name], path)
            continue
        yield Setting(
            path=path,
            kind=item.metadata["kind"],
            help=item.metadata["help"],
            default=item.default,
            many=get_origin(types[item.name]) is tuple,
            one=item.metadata["one"],
        )


def texts(config: Config) -> dict[str, list[str]]:
    """Return the settings that are not as by default, as texts by their dotted names: what was given."""
    found = {}
    for item in settings():
        value: Any = config
        for name in item.path:
            value = getattr(value, name)
        if value != item.default:
            found[item.name] = [str(each) for each in value] if item.many else [str(value)]
    return found
