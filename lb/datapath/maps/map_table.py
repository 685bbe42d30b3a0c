# SPDX-License-Identifier: Apache-2.0
"""The table of every map: its shape, who writes it, what happens when it is full.

It creates the maps, and bpf/README.md prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum

from lb.config import Limits
from lb.datapath.maps.layouts import (
    AFFINITY,
    AFFINITY_BUCKET,
    AFFINITY_KEY,
    ANSWER_KINDS,
    BACKEND,
    CONNECTIONS,
    COUNTER,
    ENDED,
    EVENT,
    FAMILIES,
    FLOW,
    FLOW_BUCKET,
    FLOW_KEY,
    FRAGMENT,
    FRAGMENT_KEY,
    HASHING,
    HELD_PIECE,
    HOOKS,
    ID,
    IFACE,
    LINE_ROWS,
    LINK_TABLE,
    NODE_NAME,
    NOTE,
    NOTHING,
    PIECE_KEY,
    RATE,
    REASONS_PER_HOOK,
    SCRATCH,
    SERVICE_COUNTERS,
    SERVICE_NAME,
    SETTINGS,
    SLOTS,
    SOCKET,
    SOCKET_KEY,
    SOURCE_RANGE,
    TABLE_LINE,
    TRAFFIC_IN_LINE,
    TRAFFIC_LINE,
    VIP,
    VIP_KEY,
    WATCH,
    DType,
)


class MapType(IntEnum):
    """enum bpf_map_type of linux/bpf.h, as far as it is used here, and CACHE: our own (bpf/cache.h)."""

    HASH = 1
    ARRAY = 2
    PROG_ARRAY = 3
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11
    RINGBUF = 27
    CACHE = 1 << 16


BPF_F_NO_PREALLOC = 1
BPF_F_MMAPABLE = 1 << 10


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map: its shape, who writes it, and what happens when it is full.

    limit names the field of :class:`lb.config.Limits` that sizes it, in units of which an entry holds
    per_entry, and spare more; fixed sizes it outright. optional names the setting that, off, leaves it a
    single entry. version is the IP version whose addresses it holds, 0 when it holds none or those of both.

    A CACHE is a table of keys and values to its users (:mod:`lb.datapath.maps.cache`); to the kernel it is an
    array of its buckets, of which the attributes kernel_… speak. A RINGBUF has neither keys nor values, and
    its entries are bytes (:mod:`lb.datapath.kernel.ringbuf`).
    """

    name: str
    type: MapType
    key: DType
    value: DType
    writer: str
    when_full: str
    purpose: str
    limit: str = ""
    fixed: int = 0
    flags: int = 0
    version: int = 0
    per_entry: int = 1
    spare: int = 0
    optional: str = ""
    bucket: DType | None = None

    def max_entries(self, sizes: Mapping[str, int]) -> int:
        """Return the number of entries under the given sizes; of a CACHE, the number of its buckets.

        sizes: see :func:`sizes`.
        """
        if not sizes.get(self.optional, 1):
            return 1
        return self.fixed or -(-sizes[self.limit] // self.per_entry) + self.spare

    @property
    def entries_each(self) -> int:
        """How many entries each of the kernel's holds: those of a bucket."""
        return 1 if self.bucket is None else SLOTS

    @property
    def kernel_type(self) -> MapType:
        """The type of map that the kernel knows it as."""
        return MapType.ARRAY if self.type is MapType.CACHE else self.type

    @property
    def kernel_key(self) -> DType:
        """The key that the kernel knows it by."""
        return ID if self.bucket is not None else self.key

    @property
    def kernel_value(self) -> DType:
        """What the kernel holds under each key."""
        return self.value if self.bucket is None else self.bucket

    @property
    def c_name(self) -> str:
        """The map's name in C, where a program knows its own family's maps alone."""
        return self.name.removesuffix(str(self.version)) if self.version else self.name


OTHER_VIPS = "other_vips"
"""In C the name of the VIPs of the family that is not being compiled."""


def named_in_c(version: int) -> dict[str, str]:
    """Return what the maps of a program of an IP version are called, by their names in C."""
    own = {spec.c_name: spec.name for spec in MAPS if spec.version in (0, version)}
    return {**own, OTHER_VIPS: f"vips{next(other for other in FAMILIES if other != version)}"}


TRAFFIC_COUNTERS = "traffic_counters"


def sizes(limits: Limits, *, traffic_counters: bool = True) -> Mapping[str, int]:
    """Return what maps are sized by: the limits, and the setting that some depend on, by their names."""
    return {**limits.as_dict(), TRAFFIC_COUNTERS: traffic_counters}


def _maps() -> Iterator[MapSpec]:
    """Yield every map: first those of each family, then those that the families share."""
    refused = "the Service is refused, logged"
    for ip in FAMILIES:
        yield MapSpec(
            f"settings{ip}",
            MapType.ARRAY,
            ID,
            SETTINGS[ip],
            "Python",
            "fixed",
            "timeouts, the ports and addresses of SNAT, the network that holds every clusterIP",
            fixed=1,
            flags=BPF_F_MMAPABLE,
            version=ip,
        )
        yield MapSpec(
            f"ifaces{ip}",
            MapType.HASH,
            ID,
            IFACE[ip],
            "Python",
            "the interface is not used for SNAT, logged",
            "by ifindex: the node's own address on an uplink or tunnel; 0: its primary address, for hairpin;"
            " to redirect also the veths of pods",
            fixed=4096,
            flags=BPF_F_NO_PREALLOC,
            version=ip,
        )
        yield MapSpec(
            f"vips{ip}",
            MapType.HASH,
            VIP_KEY[ip],
            VIP,
            "Python",
            refused,
            "VIP to Service port and backend sets; port and protocol 0: the address as a whole",
            limit="vips",
            version=ip,
        )
        yield MapSpec(
            f"source_ranges{ip}",
            MapType.LPM_TRIE,
            SOURCE_RANGE[ip],
            ID,
            "Python",
            refused,
            "loadBalancerSourceRanges: Service port and network to 1",
            limit="source_ranges",
            flags=BPF_F_NO_PREALLOC,
            version=ip,
        )
        yield MapSpec(
            f"backends{ip}",
            MapType.ARRAY,
            ID,
            BACKEND[ip],
            "Python",
            refused,
            "by backend id: where an endpoint is",
            limit="backends",
            flags=BPF_F_MMAPABLE,
            version=ip,
        )
        yield MapSpec(
            f"hashing{ip}",
            MapType.ARRAY,
            ID,
            HASHING,
            "Python",
            "fixed",
            "where the entries of flows and affinity are: seeds of the hash, numbers of buckets",
            fixed=1,
            flags=BPF_F_MMAPABLE,
            version=ip,
        )
        yield MapSpec(
            f"flows{ip}",
            MapType.CACHE,
            FLOW_KEY[ip],
            FLOW[ip],
            "kernel",
            "of seven flows, the one whose time is over first goes",
            "conntrack: one entry for each direction of a translated connection",
            limit="flows",
            flags=BPF_F_MMAPABLE,
            version=ip,
            per_entry=SLOTS,
            bucket=FLOW_BUCKET[ip],
        )
        yield MapSpec(
            f"fragments{ip}",
            MapType.LRU_HASH,
            FRAGMENT_KEY[ip],
            FRAGMENT,
            "kernel",
            "the least recently used datagram goes",
            "the ports of a translated datagram's first fragment, for those that follow",
            limit="fragments",
            version=ip,
        )
        yield MapSpec(
            f"pieces{ip}",
            MapType.LRU_HASH,
            PIECE_KEY[ip],
            HELD_PIECE,
            "kernel",
            "the piece held longest goes, and its datagram is lost",
            "fragments that came before the first of their datagram, until it comes",
            limit="pieces",
            version=ip,
        )
        yield MapSpec(
            f"sockets{ip}",
            MapType.LRU_HASH,
            SOCKET_KEY[ip],
            SOCKET[ip],
            "kernel",
            "the least recently used peer goes",
            "by socket and address: the VIP in a backend's place",
            limit="sockets",
            version=ip,
        )
        yield MapSpec(
            f"affinity{ip}",
            MapType.CACHE,
            AFFINITY_KEY[ip],
            AFFINITY,
            "kernel",
            "of seven clients, the one whose time is over first goes",
            "ClientIP affinity: the backend that a client keeps",
            limit="affinity",
            flags=BPF_F_MMAPABLE,
            version=ip,
            per_entry=SLOTS,
            bucket=AFFINITY_BUCKET[ip],
        )
        yield MapSpec(
            f"traffic{ip}",
            MapType.PERCPU_ARRAY,
            ID,
            TRAFFIC_LINE,
            "kernel",
            "as large as backends; with traffic_counters off nothing is counted",
            "packets and bytes by backend, 16 in a line",
            limit="backends",
            version=ip,
            per_entry=TRAFFIC_IN_LINE,
            spare=1,
            optional=TRAFFIC_COUNTERS,
        )
        yield MapSpec(
            f"connections{ip}",
            MapType.ARRAY,
            ID,
            CONNECTIONS,
            "kernel",
            "as large as backends",
            "by backend id: connections opened, refused, unanswered",
            limit="backends",
            flags=BPF_F_MMAPABLE,
            version=ip,
        )
    yield MapSpec(
        "tables",
        MapType.ARRAY,
        ID,
        TABLE_LINE,
        "Python",
        refused,
        "pool of backend sets: a line of ids and weights, or the lines of a Maglev table of ids",
        limit="table_rows",
        flags=BPF_F_MMAPABLE,
        per_entry=LINE_ROWS,
    )
    yield MapSpec(
        "crc32c_shifts",
        MapType.ARRAY,
        ID,
        ID,
        "Python",
        "fixed",
        "powers of x for the checksum of SCTP",
        fixed=512,
        flags=BPF_F_MMAPABLE,
    )
    yield MapSpec(
        "notes",
        MapType.PERCPU_ARRAY,
        ID,
        NOTE,
        "kernel",
        "fixed",
        "what a program tells the one that it goes on in",
        fixed=1,
    )
    yield MapSpec(
        "scratch",
        MapType.PERCPU_ARRAY,
        ID,
        SCRATCH,
        "kernel",
        "fixed",
        "room for what does not fit on a program's stack",
        fixed=1,
    )
    yield MapSpec(
        "piece_room",
        MapType.PERCPU_ARRAY,
        ID,
        HELD_PIECE,
        "kernel",
        "fixed",
        "room for a fragment on its way to `pieces`",
        fixed=1,
    )
    yield MapSpec(
        "links",
        MapType.ARRAY,
        ID,
        LINK_TABLE,
        "Python",
        "fixed",
        "interface indexes and link addresses of uplinks, up to 8: for whom XDP takes a frame",
        fixed=1,
        flags=BPF_F_MMAPABLE,
    )
    yield MapSpec(
        "rates",
        MapType.PERCPU_ARRAY,
        ID,
        RATE,
        "kernel",
        "fixed",
        "by kind of answer (RST, ICMP error, ping, too big, TTL): how many may still be sent: answer_rate",
        fixed=ANSWER_KINDS,
    )
    yield MapSpec(
        "reasons",
        MapType.PERCPU_ARRAY,
        ID,
        COUNTER,
        "kernel",
        "fixed",
        "packets and bytes by hook and reason",
        fixed=REASONS_PER_HOOK * len(HOOKS),
    )
    yield MapSpec(
        "service_counters",
        MapType.HASH,
        ID,
        SERVICE_COUNTERS,
        "kernel",
        "as large as services",
        "by Service port id, with its name: handshake times, and packets dropped by reason",
        limit="services",
        flags=BPF_F_NO_PREALLOC,
    )
    yield MapSpec(
        "ended",
        MapType.ARRAY,
        ID,
        ENDED,
        "Python",
        "as large as services",
        "by Service port id: what its former backends, whose slots others have, had counted",
        limit="services",
        flags=BPF_F_MMAPABLE,
        spare=1,
    )
    yield MapSpec(
        "watch",
        MapType.ARRAY,
        ID,
        WATCH,
        "lbctl monitor, kernel",
        "fixed",
        "whether somebody watches, and what is wanted",
        fixed=1,
        flags=BPF_F_MMAPABLE,
    )
    yield MapSpec(
        "draft",
        MapType.PERCPU_ARRAY,
        ID,
        EVENT,
        "kernel",
        "fixed",
        "the event that is being made",
        fixed=1,
    )
    yield MapSpec(
        "events",
        MapType.RINGBUF,
        NOTHING,
        NOTHING,
        "kernel",
        "the event is lost, counted in `watch`",
        "what became of packets and of calls, for whoever watches",
        fixed=1 << 20,
    )
    yield MapSpec(
        "services",
        MapType.HASH,
        ID,
        SERVICE_NAME,
        "Python",
        refused,
        "by Service port id: its names, for dumps",
        limit="services",
        flags=BPF_F_NO_PREALLOC,
    )
    yield MapSpec(
        "nodes", MapType.HASH, ID, NODE_NAME, "Python", "the backend's node is shown as unknown",
        "by node id: its name, for dumps; id 0 is this node, id 1 is 'no node'",
        fixed=16384, flags=BPF_F_NO_PREALLOC,
    )  # fmt: skip


MAPS: tuple[MapSpec, ...] = tuple(_maps())
MAP_SPECS: Mapping[str, MapSpec] = {spec.name: spec for spec in MAPS}
