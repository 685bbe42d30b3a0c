# SPDX-License-Identifier: Apache-2.0
"""Settings: their names, units, defaults, meaning, and what each may hold.

Every field below is one setting, declared once by :func:`setting`. How it is written in a YAML file, in the
environment and as a flag follows from its place here, see :class:`Setting`; the reading itself is in
:mod:`lb.cli.settings`.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, get_origin, get_type_hints

from lb import setting_forms as forms
from lb.setting_forms import Form


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


MODE = Form("MODE", "one of " + ", ".join(UplinkMode), UplinkMode)
SOCKETS = Form("MODE", "one of " + ", ".join(SocketMode), SocketMode)
SWITCH = Form("on|off", "on or off", Switch)
ANNOUNCE = Form("MODE", "one of " + ", ".join(Announce), Announce)
FORWARD = Form("MODE", "one of " + ", ".join(Forward), Forward)


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
        65_536,
        forms.ENTRIES,
        "Service addresses: one for each address, port and protocol, one for each address",
    )
    backends: int = setting(131_072, forms.ENTRIES, "endpoints: one for each Service port and endpoint")
    table_rows: int = setting(
        8_388_608,
        forms.ENTRIES,
        "rows of the sets of backends, 4 bytes each: 32 for a set of up to 16, else 100 to 200 for each",
    )
    flows: int = setting(
        524_288,
        forms.ENTRIES,
        "slots for flow entries; a connection takes two. Have twice as many as will be used",
    )
    affinity: int = setting(
        131_072, forms.ENTRIES, "slots for clients with ClientIP affinity. Have twice as many as will be used"
    )
    services: int = setting(65_536, forms.ENTRIES, "Service ports")
    sockets: int = setting(
        65_536,
        forms.ENTRIES,
        "peers of sockets: one for a connection, two for each peer of an unconnected UDP socket",
    )
    fragments: int = setting(8_192, forms.ENTRIES, "fragmented datagrams on their way")
    pieces: int = setting(512, forms.ENTRIES, "fragments that came before the first of their datagram")
    source_ranges: int = setting(
        65_536, forms.ENTRIES, "networks in loadBalancerSourceRanges: one for each Service port and network"
    )

    def as_dict(self) -> dict[str, int]:
        """Return the limits by name, as :meth:`lb.datapath.maps.map_table.MapSpec.max_entries` takes them."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds after which an idle flow is forgotten; defaults follow nf_conntrack as kube-proxy sets it."""

    tcp_syn: float = setting(60, forms.SECONDS, "a TCP connection whose handshake is not complete")
    tcp_established: float = setting(86_400, forms.SECONDS, "an idle TCP connection")
    tcp_closing: float = setting(10, forms.SECONDS, "a TCP connection after its first FIN")
    udp_new: float = setting(30, forms.SECONDS, "a UDP flow of one datagram, answered or not")
    udp: float = setting(120, forms.SECONDS, "an idle UDP flow, whose client has gone on after an answer")
    sctp: float = setting(
        210, forms.SECONDS, "an idle SCTP association; its start and end are timed as TCP's"
    )


@dataclass(frozen=True, slots=True)
class SnatPorts:
    """The port range, inclusive, that SNAT may use for connections whose backend is on another node.

    By default what is below NodePorts (30000 to 32767) and the ports that Linux gives to its own connections
    (net.ipv4.ip_local_port_range, 32768 to 60999): 28,976 ports for each backend. Ports at which the node
    listens, or that a Service has, are left out one by one: the kernel is asked.
    """

    first: int = setting(1024, forms.PORT, "first port for connections whose backend is on another node")
    last: int = setting(29_999, forms.PORT, "last of those ports")


@dataclass(frozen=True, slots=True)
class Config:
    """Everything ``lbctl run`` can be told; the text of each setting says what it means, and by default."""

    sources: tuple[str, ...] = setting(
        (),
        forms.SOURCE,
        "where Services come from: the Kubernetes API, or a directory of manifests, watched; what two of them"
        " define is the later one's",
        one="source",
    )
    kubeconfig: str = setting(
        "", forms.FILE, "kubeconfig file for the Kubernetes API; default: the pod's service account"
    )
    context: str = setting("", forms.CONTEXT, "context in the kubeconfig; default: its current one")
    node_name: str = setting(
        "", forms.NODE_NAME, "this node's name in pods and endpoints; default: the host name"
    )
    instance: str = setting(
        "", forms.INSTANCE, "name of the directory of pins below /sys/fs/bpf/lbctl; default: the node's name"
    )
    uplinks: tuple[str, ...] = setting(
        (),
        forms.INTERFACE,
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
        forms.GLOB,
        "overlay interface that leads to pods of other nodes; default: every VXLAN and Geneve device",
        one="tunnel",
    )
    pod_interfaces: tuple[str, ...] = setting(
        (),
        forms.GLOB,
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
        forms.PORT,
        "UDP port at which nodes take encapsulated packets of each other (forward: dsr), within snat_ports;"
        " the same on every node",
    )
    cgroup: str = setting(
        "",
        forms.DIRECTORY,
        "cgroup v2 whose processes the socket hooks serve, as a path; default: the root of the cgroup2 mount",
    )
    node_port_addresses: tuple[str, ...] = setting(
        (),
        forms.NETWORK_OR_PRIMARY,
        "networks whose addresses, but for loopback and link-local ones, answer on NodePorts; default:"
        f" {forms.PRIMARY}, the first InternalIP of each family by the Node object, else the uplinks' first",
        one="node_port_address",
    )
    external_ips: str = setting(
        forms.ALL,
        forms.EXTERNAL_IPS,
        "which addresses Services may have as externalIPs: whoever may write a Service can take over what is"
        " sent to any of them, from this node's pods as well (CVE-2020-8554); a clusterIP, an endpoint's"
        " address and a port on which the node listens are never among them",
    )
    service_cidr: str = setting(
        "10.96.0.0/16",
        forms.NETWORKS,
        "network for manifests that leave clusterIP out; after a comma a second one of the other family, for"
        " Services that ask for it",
    )
    node_port_range: str = setting(
        "30000-32767", forms.PORT_RANGE, "ports for manifests that leave nodePort out"
    )
    ready_file: str = setting("", forms.FILE, "written when the first sync is in the kernel, removed on stop")
    metrics_address: str = setting(
        "127.0.0.1:10249",
        forms.LISTEN_ADDRESS,
        f"where GET /metrics is answered, for Prometheus: an IP address and a port, or {forms.OFF}",
    )
    healthz_address: str = setting(
        "0.0.0.0:10256",
        forms.LISTEN_ADDRESS,
        f"where GET /healthz and /livez are answered: an IP address and a port, or {forms.OFF};"
        " 0.0.0.0 and [::] mean every address of both families",
    )
    traffic_counters: Switch = setting(
        Switch.ON,
        SWITCH,
        "count packets and bytes of each backend: takes 80 bytes of memory for each of limits.backends and"
        " CPU; connections are counted anyhow",
    )
    metrics_services: int = setting(
        500,
        forms.COUNT,
        "Service ports of which GET /metrics tells, those with the most connections first; how many are left"
        " out is a metric, too",
    )
    metrics_backends: int = setting(500, forms.COUNT, "backends of which GET /metrics tells, likewise")
    answer_rate: int = setting(
        1000,
        forms.RATE,
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
        forms.GLOB,
        "uplink on whose segment addresses are announced; default: every uplink",
        one="announce_interface",
    )
    announce_networks: tuple[str, ...] = setting(
        (),
        forms.NETWORK,
        "network whose addresses are announced on every such segment; default: only addresses in a network of"
        " the uplink itself",
        one="announce_network",
    )
    log_level: str = setting("info", forms.LEVEL, "debug, info, warning or error, to stderr")
    log_format: str = setting("text", forms.LOG_FORMAT, "text, or json: an object in each line of the log")
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
