# SPDX-License-Identifier: Apache-2.0
"""The table of every map: its shape, who writes it, what happens when it is full.

It creates the maps, and bpf/README.md prints it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import IntEnum, StrEnum
from typing import Any

from lb.config import Limits
from lb.datapath.maps.layouts import (
    ADDRESS,
    AFFINITY,
    AFFINITY_BUCKET,
    AFFINITY_KEY,
    ANNOUNCED,
    ANNOUNCED_KEY,
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
    FORMER,
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
    RIVAL,
    SCRATCH,
    SERVICE_COUNTERS,
    SERVICE_NAME,
    SETTINGS,
    SLOTS,
    SOCKET,
    SOCKET_ADDRESS,
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


class Writer(StrEnum):
    """Who writes a map."""

    PYTHON = "Python"
    PROGRAMS = "kernel"
    WATCHER = "lbctl monitor, kernel"


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
    purpose: str
    writer: Writer = Writer.PYTHON
    when_full: str = "fixed"
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


_REFUSED = "the Service is refused, logged"


# fmt: off
def _array(name: str, value: DType, purpose: str, **more: Any) -> MapSpec:
    """Return an array that Python maps into its memory."""
    return MapSpec(name, MapType.ARRAY, ID, value, purpose, flags=BPF_F_MMAPABLE, **more)


def _per_cpu(name: str, value: DType, purpose: str, **more: Any) -> MapSpec:
    """Return an array of the programs' own, one for each CPU."""
    return MapSpec(name, MapType.PERCPU_ARRAY, ID, value, purpose, Writer.PROGRAMS, **more)


def _hash(name: str, key: DType, value: DType, purpose: str, **more: Any) -> MapSpec:
    """Return a hash that takes memory for the entries that it has, not for those that it may have."""
    return MapSpec(name, MapType.HASH, key, value, purpose, flags=BPF_F_NO_PREALLOC, **more)


def _lru(name: str, key: DType, value: DType, purpose: str, when_full: str) -> MapSpec:
    """Return a hash of the programs, least recently used first to go, sized by the limit of its name."""
    return MapSpec(name, MapType.LRU_HASH, key, value, purpose, Writer.PROGRAMS, when_full, limit=name)


def _cache(name: str, entry: tuple[DType, DType, DType], purpose: str, when_full: str) -> MapSpec:
    """Return a table that forgets, sized by the limit of its name; entry: its key, value and bucket."""
    key, value, bucket = entry
    return MapSpec(
        name, MapType.CACHE, key, value, purpose, Writer.PROGRAMS, when_full,
        limit=name, flags=BPF_F_MMAPABLE, per_entry=SLOTS, bucket=bucket,
    )


def _of_family(ip: int) -> Iterator[MapSpec]:
    """Yield the maps that each IP version has for itself; their names get its number."""
    yield _array("settings", SETTINGS[ip], fixed=1,
        purpose="timeouts, the ports and addresses of SNAT, the network that holds every clusterIP")
    yield _hash("ifaces", ID, IFACE[ip], fixed=4096, when_full="the interface is not used for SNAT, logged",
        purpose="by ifindex: the node's own address on an uplink or tunnel; 0: its primary address, for"
        " hairpin; to redirect also the veths of pods")
    yield _hash("announced", ANNOUNCED_KEY[ip], ANNOUNCED, fixed=4096,
        when_full="the address is not announced, logged",
        purpose="by address and ifindex: the link address that ARP and neighbour solicitations are answered"
        " with, and until when")
    yield MapSpec("rivals", MapType.LRU_HASH, ANNOUNCED_KEY[ip], RIVAL, writer=Writer.PROGRAMS, fixed=256,
        when_full="the one that was quiet for longest is forgotten",
        purpose="by address and ifindex: who else claims an announced address")
    yield MapSpec("vips", MapType.HASH, VIP_KEY[ip], VIP, limit="vips", when_full=_REFUSED,
        purpose="VIP to Service port and backend sets; port and protocol 0: the address as a whole")
    yield MapSpec("source_ranges", MapType.LPM_TRIE, SOURCE_RANGE[ip], ID, flags=BPF_F_NO_PREALLOC,
        limit="source_ranges", when_full=_REFUSED,
        purpose="loadBalancerSourceRanges: Service port and network to 1")
    yield _array("backends", BACKEND[ip], limit="backends", when_full=_REFUSED,
        purpose="by backend id: where an endpoint is")
    yield _hash("endpoints", SOCKET_ADDRESS[ip], ID, fixed=8192,
        when_full="what other nodes send to the backend counts for nobody, logged",
        purpose="by address, Service port and port: a backend of this node, as other nodes name it")
    yield _hash("hosts", ID, ADDRESS[ip], fixed=8192, when_full="SNAT in place of direct return, logged",
        purpose="by node id: the address to which packets for its backends go, with direct return")
    yield _hash("host_addresses", ADDRESS[ip], ID, fixed=8192,
        when_full="what the node sends is refused, logged",
        purpose="addresses of the other nodes to 1: from whom encapsulated packets are taken")
    yield _array("hashing", HASHING, fixed=1,
        purpose="where the entries of flows and affinity are: seeds of the hash, numbers of buckets")
    yield _cache("flows", (FLOW_KEY[ip], FLOW[ip], FLOW_BUCKET[ip]),
        "conntrack: one entry for each direction of a translated connection",
        "of seven flows, the one whose time is over first goes")
    yield MapSpec("tags", MapType.LRU_HASH, FLOW_KEY[ip], ID, writer=Writer.PROGRAMS, fixed=2048,
        when_full="the association that was quiet for longest is not given back to netfilter",
        purpose="by direction of a flow of SCTP: the verification tag that its packets show")
    yield _lru("fragments", FRAGMENT_KEY[ip], FRAGMENT,
        "the ports of a translated datagram's first fragment, for those that follow",
        "the least recently used datagram goes")
    yield _lru("pieces", PIECE_KEY[ip], HELD_PIECE,
        "fragments that came before the first of their datagram, until it comes",
        "the piece held longest goes, and its datagram is lost")
    yield _lru("sockets", SOCKET_KEY[ip], SOCKET[ip],
        "by socket and address: the VIP in a backend's place",
        "the least recently used peer goes")
    yield _cache("affinity", (AFFINITY_KEY[ip], AFFINITY, AFFINITY_BUCKET[ip]),
        "ClientIP affinity: the backend that a client keeps",
        "of seven clients, the one whose time is over first goes")
    yield _per_cpu("traffic", TRAFFIC_LINE, "packets and bytes by backend, 16 in a line",
        limit="backends", per_entry=TRAFFIC_IN_LINE, spare=1, optional=TRAFFIC_COUNTERS,
        when_full="as large as backends; with traffic_counters off nothing is counted")
    yield _array("connections", CONNECTIONS, "by backend id: connections opened, refused, unanswered",
        writer=Writer.PROGRAMS, limit="backends", when_full="as large as backends")


def _of_both() -> Iterator[MapSpec]:
    """Yield the maps that the IP versions share."""
    yield _array("tables", TABLE_LINE, limit="table_rows", per_entry=LINE_ROWS, when_full=_REFUSED,
        purpose="pool of backend sets: a line of ids and seeds, for unequal weights one more; or the"
        " lines of a Maglev table of ids")
    yield _array("crc32c_shifts", ID, "powers of x for the checksum of SCTP", fixed=512)
    yield _per_cpu("notes", NOTE, "what a program tells the one that it goes on in", fixed=1)
    yield _per_cpu("scratch", SCRATCH, "room for what does not fit on a program's stack", fixed=1)
    yield _per_cpu("piece_room", HELD_PIECE, "room for a fragment on its way to `pieces`", fixed=1)
    yield _array("cutover", ID, fixed=1,
        purpose="who serves what has no flow here, while Services change hands: enum cutover")
    yield _array("links", LINK_TABLE, fixed=1,
        purpose="interface indexes and link addresses of uplinks, up to 8: for whom XDP takes a frame")
    yield _per_cpu("rates", RATE, fixed=ANSWER_KINDS,
        purpose="by kind of answer (RST, ICMP error, ping, too big, TTL, link address): how many may still"
        " be sent: answer_rate")
    yield _per_cpu("reasons", COUNTER, fixed=REASONS_PER_HOOK * len(HOOKS),
        purpose="packets and bytes by hook and reason")
    yield _hash("service_counters", ID, SERVICE_COUNTERS, writer=Writer.PROGRAMS,
        limit="services", when_full="as large as services",
        purpose="by Service port id, with its name: handshake times, and packets dropped by reason")
    yield _array("ended", ENDED, limit="services", spare=1, when_full="as large as services",
        purpose="by Service port id: what its former backends, whose slots others have, had counted")
    yield _array("watch", WATCH, writer=Writer.WATCHER, fixed=1,
        purpose="whether somebody watches, and what is wanted")
    yield _per_cpu("draft", EVENT, "the event that is being made", fixed=1)
    yield MapSpec("events", MapType.RINGBUF, NOTHING, NOTHING, writer=Writer.PROGRAMS, fixed=1 << 20,
        when_full="the event is lost, counted in `watch`",
        purpose="what became of packets and of calls, for whoever watches")
    yield _hash("former", ID, FORMER, fixed=8192, when_full="no second chance for the Service port, logged",
        purpose="by Service port id: what its outside was offered before, for packets in mid-connection")
    yield _hash("services", ID, SERVICE_NAME, "by Service port id: its names, for dumps",
        limit="services", when_full=_REFUSED)
    yield _hash("nodes", ID, NODE_NAME, fixed=16384, when_full="the backend's node is shown as unknown",
        purpose="by node id: its name, for dumps; id 0 is this node, id 1 is 'no node'")
# fmt: on


def _maps() -> Iterator[MapSpec]:
    for ip in FAMILIES:
        yield from (replace(spec, name=f"{spec.name}{ip}", version=ip) for spec in _of_family(ip))
    yield from _of_both()


MAPS: tuple[MapSpec, ...] = tuple(_maps())
MAP_SPECS: Mapping[str, MapSpec] = {spec.name: spec for spec in MAPS}
