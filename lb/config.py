"""Settings: their names, units, defaults and meaning. How they are read is in :mod:`lb.cli`."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class UplinkMode(enum.StrEnum):
    """Which hook an uplink uses; AUTO decides by driver and says why."""

    AUTO = "auto"
    XDP_NATIVE = "xdp-native"
    XDP_GENERIC = "xdp-generic"
    TC = "tc"


@dataclass(frozen=True, slots=True)
class Limits:
    """Entries of each map that can fill up; a change compiles anew and keeps no flows of a resized map."""

    vips: int = 65_536
    backends: int = 131_072
    table_rows: int = 4_194_304
    flows: int = 262_144
    affinity: int = 65_536
    services: int = 65_536

    def as_dict(self) -> dict[str, int]:
        """Return the limits by name, as :meth:`lb.datapath.layouts.MapSpec.max_entries` takes them."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Seconds after which an idle flow is forgotten; defaults follow Linux' nf_conntrack sysctls."""

    tcp_syn: float = 60
    tcp_established: float = 86_400
    tcp_closing: float = 10
    udp_new: float = 30
    udp: float = 120


@dataclass(frozen=True, slots=True)
class SnatPorts:
    """The port range, inclusive, that SNAT may use; keep it apart from net.ipv4.ip_local_port_range."""

    first: int = 61_000
    last: int = 65_535


@dataclass(frozen=True, slots=True)
class Config:
    """Everything ``lbctl run`` can be told.

    Attributes
    ----------
    sources: one or more of ``manifests:DIR`` (later: ``kubernetes``).
    node_name: this node's name, as pods and endpoints use it.
    instance: name of the pin directory below /sys/fs/bpf/lbctl; default: the node's name.
    uplinks: interfaces that face other nodes and clients; empty: those of the default routes.
    tunnels: overlay interfaces (vxlan, ipip) that lead to pods of other nodes; globs.
    pod_interfaces: globs of the host ends of pods' interfaces.
    node_port_addresses: networks whose addresses answer on NodePorts; empty: the primary address
        of each family.
    service_cidr, node_port_range: from which manifests without clusterIP or nodePort get one.
    """

    sources: tuple[str, ...] = ()
    node_name: str = ""
    instance: str = ""
    uplinks: tuple[str, ...] = ()
    uplink_mode: UplinkMode = UplinkMode.AUTO
    tunnels: tuple[str, ...] = ()
    pod_interfaces: tuple[str, ...] = ()
    node_port_addresses: tuple[str, ...] = ()
    service_cidr: str = "10.96.0.0/16"
    node_port_range: str = "30000-32767"
    limits: Limits = field(default_factory=Limits)
    timeouts: Timeouts = field(default_factory=Timeouts)
    snat_ports: SnatPorts = field(default_factory=SnatPorts)
