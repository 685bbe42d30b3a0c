"""Python's view of the structs and maps in ``bpf/``.

Each dtype mirrors one struct of ``bpf/types.h``, byte for byte; :func:`static_assertions` turns the dtypes
into C so that the compiler refuses a difference. Big-endian fields (``>u4``, ``>u2``) are addresses and
ports in network byte order; all others are in the CPU's order.

:data:`MAPS` is the table of every map: it creates them, and bpf/README.md prints it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from pathlib import Path
from typing import Any

import numpy as np

DType = np.dtype[Any]

VIP4_KEY: DType = np.dtype([("address", ">u4"), ("port", ">u2"), ("protocol", "u1"), ("pad", "u1")])
BACKEND_SET: DType = np.dtype([("offset", "u4"), ("size", "u4")])
VIP: DType = np.dtype(
    [
        ("service", "u4"),
        ("affinity_seconds", "u4"),
        ("inside", BACKEND_SET),
        ("outside", BACKEND_SET),
        ("kind", "u1"),
        ("flags", "u1"),
        ("pad", "u1", (2,)),
    ]
)
SOURCE_RANGE4: DType = np.dtype([("prefix", "u4"), ("service", "u4"), ("address", ">u4")])
BACKEND4: DType = np.dtype(
    [
        ("address", ">u4"),
        ("port", ">u2"),
        ("state", "u1"),
        ("flags", "u1"),
        ("service", "u4"),
        ("generation", "u4"),
        ("node", "u4"),
    ]
)
FLOW4_KEY: DType = np.dtype(
    [
        ("src", ">u4"),
        ("dst", ">u4"),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("protocol", "u1"),
        ("direction", "u1"),
        ("pad", "u1", (2,)),
    ]
)
FLOW4: DType = np.dtype(
    [
        ("src", ">u4"),
        ("dst", ">u4"),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("service", "u4"),
        ("backend", "u4"),
        ("generation", "u4"),
        ("state", "u1"),
        ("fins", "u1"),
        ("path", "u1"),
        ("pad", "u1", (5,)),
        ("last_seen", "u8"),
    ]
)
AFFINITY4_KEY: DType = np.dtype([("client", ">u4"), ("service", "u4")])
AFFINITY: DType = np.dtype([("last_used", "u8"), ("backend", "u4"), ("generation", "u4")])
IFACE: DType = np.dtype([("source4", ">u4"), ("flags", "u4"), ("source6", "u1", (16,))])
SETTINGS: DType = np.dtype(
    [
        ("tcp_syn_ns", "u8"),
        ("tcp_established_ns", "u8"),
        ("tcp_closing_ns", "u8"),
        ("udp_new_ns", "u8"),
        ("udp_ns", "u8"),
        ("snat_port_min", ">u2"),
        ("snat_port_max", ">u2"),
        ("pad", "u1", (4,)),
    ]
)
SERVICE_NAME: DType = np.dtype([("namespace", "S64"), ("name", "S64"), ("port_name", "S64")])
NODE_NAME: DType = np.dtype([("name", "S256")])
COUNTER: DType = np.dtype([("packets", "u8"), ("bytes", "u8")])
ID: DType = np.dtype("u4")

STRUCTS: Mapping[str, DType] = {
    "vip4_key": VIP4_KEY,
    "backend_set": BACKEND_SET,
    "vip": VIP,
    "source_range4": SOURCE_RANGE4,
    "backend4": BACKEND4,
    "flow4_key": FLOW4_KEY,
    "flow4": FLOW4,
    "affinity4_key": AFFINITY4_KEY,
    "affinity": AFFINITY,
    "iface": IFACE,
    "settings": SETTINGS,
    "service_name": SERVICE_NAME,
    "node_name": NODE_NAME,
    "counter": COUNTER,
}


class Direction(IntEnum):
    """enum direction."""

    FORWARD = 0
    REPLY = 1


class VipKindCode(IntEnum):
    """enum vip_kind."""

    CLUSTER_IP = 1
    NODE_PORT = 2
    LOAD_BALANCER = 3
    EXTERNAL_IP = 4


class VipFlag(IntFlag):
    """enum vip_flags."""

    INSIDE_LOCAL = 1
    OUTSIDE_LOCAL = 2
    USABLE = 4
    SOURCE_RANGES = 8


class BackendStateCode(IntEnum):
    """enum backend_state."""

    FREE = 0
    ACTIVE = 1
    TERMINATING = 2


class BackendFlag(IntFlag):
    """enum backend_flags."""

    LOCAL = 1
    IN_CLUSTER_SET = 2
    IN_LOCAL_SET = 4


class FlowState(IntEnum):
    """enum flow_state."""

    NEW = 0
    ESTABLISHED = 1
    CLOSING = 2
    CLOSED = 3


class FlowPath(IntEnum):
    """enum flow_path."""

    STACK = 0
    FORWARD = 1
    HAIRPIN = 2


class FinSeen(IntFlag):
    """enum fin_seen."""

    CLIENT = 1
    BACKEND = 2


class IfaceFlag(IntFlag):
    """enum iface_flags."""

    UPLINK = 1
    TUNNEL = 2


class MapType(IntEnum):
    """enum bpf_map_type of linux/bpf.h, as far as it is used here."""

    HASH = 1
    ARRAY = 2
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LPM_TRIE = 11


BPF_F_NO_PREALLOC = 1
BPF_F_MMAPABLE = 1 << 10


@dataclass(frozen=True, slots=True)
class MapSpec:
    """One map: its shape, who writes it, and what happens when it is full.

    limit names the field of :class:`lb.config.Limits` that sizes it; fixed sizes it outright.
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

    def max_entries(self, limits: Mapping[str, int]) -> int:
        """Return the number of entries under the given limits."""
        return self.fixed or limits[self.limit]

    @property
    def is_array(self) -> bool:
        """True when Python maps the array into memory instead of calling bpf() for each entry."""
        return self.type is MapType.ARRAY


BPF_DIR = Path(__file__).resolve().parent.parent.parent / "bpf"
_X_ROW = re.compile(r'X\((\w+),\s*"([^"]*)"\)')


def _x_table(name: str) -> tuple[tuple[str, str], ...]:
    """Read one X-macro table of bpf/reasons.h as (name, meaning) pairs."""
    text = (BPF_DIR / "reasons.h").read_text()
    start = text.index(f"#define {name}(X)")
    end = text.index("\n\n", start)
    return tuple(_X_ROW.findall(text[start:end].replace("\\\n", "\n")))


REASONS: tuple[tuple[str, str], ...] = _x_table("REASONS")
HOOKS: tuple[tuple[str, str], ...] = _x_table("HOOKS")
REASONS_PER_HOOK = 64

MAPS: tuple[MapSpec, ...] = (
    MapSpec(
        "settings", MapType.ARRAY, ID, SETTINGS, "Python", "fixed", "timeouts and the SNAT port range",
        fixed=1, flags=BPF_F_MMAPABLE,
    ),
    MapSpec(
        "ifaces", MapType.HASH, ID, IFACE, "Python", "the interface is not used for SNAT, logged",
        "by ifindex: the node's own address on an uplink or tunnel; 0: its primary address, for hairpin",
        fixed=4096, flags=BPF_F_NO_PREALLOC,
    ),
    MapSpec(
        "vips4", MapType.HASH, VIP4_KEY, VIP, "Python", "the Service is refused, logged",
        "VIP to Service port and backend sets", limit="vips",
    ),
    MapSpec(
        "source_ranges4", MapType.LPM_TRIE, SOURCE_RANGE4, ID, "Python", "the Service is refused, logged",
        "loadBalancerSourceRanges: Service port and network to 1", limit="source_ranges",
        flags=BPF_F_NO_PREALLOC,
    ),
    MapSpec(
        "backends4", MapType.ARRAY, ID, BACKEND4, "Python", "the Service is refused, logged",
        "by backend id: where an endpoint is", limit="backends", flags=BPF_F_MMAPABLE,
    ),
    MapSpec(
        "tables", MapType.ARRAY, ID, ID, "Python", "the Service is refused, logged",
        "pool of Maglev lookup tables: rows are backend ids", limit="table_rows", flags=BPF_F_MMAPABLE,
    ),
    MapSpec(
        "flows4", MapType.LRU_HASH, FLOW4_KEY, FLOW4, "kernel", "the least recently used flow goes",
        "conntrack: one entry for each direction of a translated connection", limit="flows",
    ),
    MapSpec(
        "affinity4", MapType.LRU_HASH, AFFINITY4_KEY, AFFINITY, "kernel",
        "the least recently used client goes", "ClientIP affinity: the backend that a client keeps",
        limit="affinity",
    ),
    MapSpec(
        "reasons", MapType.PERCPU_ARRAY, ID, COUNTER, "kernel", "fixed",
        "packets and bytes by hook and reason", fixed=REASONS_PER_HOOK * len(HOOKS),
    ),
    MapSpec(
        "services", MapType.HASH, ID, SERVICE_NAME, "Python", "the Service is refused, logged",
        "by Service port id: its names, for dumps", limit="services", flags=BPF_F_NO_PREALLOC,
    ),
    MapSpec(
        "nodes", MapType.HASH, ID, NODE_NAME, "Python", "the backend's node is shown as unknown",
        "by node id: its name, for dumps; id 0 is this node, id 1 is 'no node'",
        fixed=16384, flags=BPF_F_NO_PREALLOC,
    ),
)  # fmt: skip

MAP_SPECS: Mapping[str, MapSpec] = {spec.name: spec for spec in MAPS}
NODE_SELF = 0
NODE_NONE = 1


def _fields(dtype: DType) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of each field of a structured dtype."""
    assert dtype.fields is not None
    for name in dtype.names or ():
        kind, offset = dtype.fields[name][:2]
        yield name, int(offset), int(kind.itemsize)


def static_assertions() -> str:
    """Return C that fails to compile when a struct in bpf/types.h differs from its dtype here."""
    lines = []
    for name, dtype in STRUCTS.items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "{name}: size");')
        for field, offset, size in _fields(dtype):
            lines.append(
                f"_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset} &&"
                f' sizeof(((struct {name} *)0)->{field}) == {size}, "{name}.{field}");'
            )
    return "\n".join(lines) + "\n"
