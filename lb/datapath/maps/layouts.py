# SPDX-License-Identifier: Apache-2.0
"""Python's view of the structs in ``bpf/``.

Each dtype mirrors one struct of ``bpf/types.h``, byte for byte, each class of :data:`ENUMS` an enum, each row
of :data:`CONSTANTS` a ``#define``; :func:`static_assertions` turns them into C so that the compiler refuses a
difference. Big-endian fields (``>u4``, ``>u2``) are addresses and
ports in network byte order; all others are in the CPU's order.

Which map holds which of them is in :mod:`lb.datapath.maps.map_table`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from enum import IntEnum, IntFlag
from ipaddress import IPv4Address, IPv6Address
from typing import Any

import numpy as np

from lb.model import IPAddress
from lb.plan.rendezvous import SMALL_SET
from lb.shipped import shipped

DType = np.dtype[Any]

ADDRESS: Mapping[int, DType] = {4: np.dtype(">u4"), 6: np.dtype("V16")}
"""An address in network byte order, by IP version: a number for IPv4, 16 opaque bytes for IPv6."""
FAMILIES = tuple(ADDRESS)


def pack_address(address: IPAddress) -> int | bytes:
    """Return an address as a field of type :data:`ADDRESS` takes it."""
    return int(address) if address.version == 4 else address.packed


def unpack_address(value: int | bytes) -> IPAddress:
    """Return the address that a field of type :data:`ADDRESS` gives as a Python object (``tolist()``)."""
    return IPv6Address(value) if isinstance(value, bytes) else IPv4Address(value)


def _each(*fields: tuple[Any, ...]) -> Mapping[int, DType]:
    """Return the dtype of a struct for each IP version; a field of type "address" is one of that version."""
    return {
        version: np.dtype(
            [(name, address if kind == "address" else kind, *rest) for name, kind, *rest in fields]
        )
        for version, address in ADDRESS.items()
    }


VIP_KEY = _each(("address", "address"), ("port", ">u2"), ("protocol", "u1"), ("pad", "u1"))
BACKEND_SET: DType = np.dtype([("offset", "u4"), ("size", "u4")])
LINE_ROWS = 2 * SMALL_SET
TABLE_LINE: DType = np.dtype([("rows", "u4", (LINE_ROWS,))])
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
SOURCE_RANGE = _each(("prefix", "u4"), ("service", "u4"), ("address", "address"))
BACKEND = _each(
    ("address", "address"),
    ("port", ">u2"),
    ("state", "u1"),
    ("flags", "u1"),
    ("service", "u4"),
    ("generation", "u4"),
    ("node", "u4"),
)
FLOW_KEY = _each(
    ("src", "address"),
    ("dst", "address"),
    ("sport", ">u2"),
    ("dport", ">u2"),
    ("protocol", "u1"),
    ("direction", "u1"),
    ("pad", "u1", (2,)),
)
FLOW = _each(
    ("src", "address"),
    ("dst", "address"),
    ("sport", ">u2"),
    ("dport", ">u2"),
    ("service", "u4"),
    ("backend", "u4"),
    ("generation", "u4"),
    ("state", "u1"),
    ("fins", "u1"),
    ("path", "u1"),
    ("pad", "u1"),
    ("touched", "u4"),
    ("last_seen", "u8"),
)
SLOTS = 7
CACHE_TIME_SHIFT = 24
SEEDS = 10
BUCKET_HEAD: DType = np.dtype(
    [("lock", "u4"), ("until", "u4", (SLOTS,)), ("tags", "u8", (2,)), ("evicted", "u4"), ("pad", "u4", (3,))]
)
HASHING: DType = np.dtype([("seeds", "u8", (SEEDS,)), ("flow_buckets", "u4"), ("affinity_buckets", "u4")])


def _slot(keys: Mapping[int, DType], pad: tuple[int, int], value: Mapping[int, DType]) -> Mapping[int, DType]:
    """Return the dtype of an entry of a bucket for each IP version; pad: bytes between key and value."""
    return {
        version: np.dtype([("key", keys[version]), ("pad", "u1", (between,)), ("value", value[version])])
        for version, between in zip(FAMILIES, pad, strict=True)
    }


def _bucket(slots: Mapping[int, DType]) -> Mapping[int, DType]:
    """Return the dtype of a bucket for each IP version: whole cache lines of 64 bytes."""
    fields = {version: [("head", BUCKET_HEAD), ("slots", slot, (SLOTS,))] for version, slot in slots.items()}
    left = {version: -np.dtype(parts).itemsize % 64 for version, parts in fields.items()}
    return {
        version: np.dtype([*parts, ("pad", "u1", (left[version],))] if left[version] else parts)
        for version, parts in fields.items()
    }


FLOW_SLOT = _slot(FLOW_KEY, (8, 24), FLOW)
FLOW_BUCKET = _bucket(FLOW_SLOT)
FRAGMENT_KEY = _each(
    ("src", "address"), ("dst", "address"), ("id", "u4"), ("protocol", "u1"), ("pad", "u1", (3,))
)
SCRATCH: DType = np.dtype([("room", "u8", (64,))])
FRAGMENT: DType = np.dtype(
    [
        ("seen_ns", "u8"),
        ("passed", "u4"),
        ("whole", "u4"),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("hook", "u1"),
        ("protocol", "u1"),
        ("pad", "u1", (2,)),
    ]
)
PIECE_KEY = {
    version: np.dtype([("datagram", datagram), ("place", "u4")]) for version, datagram in FRAGMENT_KEY.items()
}
HELD_BYTES = 2032
HELD_PIECE: DType = np.dtype(
    [("since_ns", "u8"), ("len", "u4"), ("pad", "u4"), ("frame", "u1", (HELD_BYTES,))]
)
AFFINITY_KEY = _each(("client", "address"), ("service", "u4"))
AFFINITY: DType = np.dtype([("last_used", "u8"), ("backend", "u4"), ("generation", "u4")])
AFFINITY_SLOT = _slot(AFFINITY_KEY, (0, 4), dict.fromkeys(FAMILIES, AFFINITY))
AFFINITY_BUCKET = _bucket(AFFINITY_SLOT)
IFACE = _each(("source", "address"), ("flags", "u4"))
LINKS = 8
LINK: DType = np.dtype([("ifindex", "u4"), ("mac", "V6"), ("pad", "V2")])
LINK_TABLE: DType = np.dtype([("links", LINK, (LINKS,))])
SNAT_SOURCES = 4
SETTINGS = _each(
    ("tcp_syn_ns", "u8"),
    ("tcp_established_ns", "u8"),
    ("tcp_closing_ns", "u8"),
    ("udp_new_ns", "u8"),
    ("udp_ns", "u8"),
    ("sctp_ns", "u8"),
    ("answer_interval_ns", "u8"),
    ("answer_burst_ns", "u8"),
    ("netns", "u8"),
    ("wall_ns", "u8"),
    ("snat_port_min", ">u2"),
    ("snat_port_max", ">u2"),
    ("former_port_min", ">u2"),
    ("former_port_max", ">u2"),
    ("snat_sources", "address", (SNAT_SOURCES,)),
    ("cluster_net", "address"),
    ("cluster_mask", "address"),
    ("all_sockets", "u1"),
    ("redirect", "u1"),
    ("sources", "u1"),
    ("pad", "u1", (5,)),
)
SOCKET_KEY = _each(
    ("cookie", "u4", (2,)), ("address", "address"), ("port", ">u2"), ("direction", "u1"), ("pad", "u1")
)
SOCKET = _each(
    ("address", "address"),
    ("port", ">u2"),
    ("pad", "u1", (2,)),
    ("service", "u4"),
    ("backend", "u4"),
    ("generation", "u4"),
)
SERVICE_NAME: DType = np.dtype([("namespace", "S64"), ("name", "S64"), ("port_name", "S64")])
NODE_NAME: DType = np.dtype([("name", "S256")])
COUNTER: DType = np.dtype([("packets", "u8"), ("bytes", "u8")])
_TRAFFIC = [(name, "u8") for name in ("packets", "bytes", "reply_packets", "reply_bytes")]
_CONNECTIONS = [(name, "u8") for name in ("opened", "refused", "unanswered")]
TRAFFIC: DType = np.dtype([*_TRAFFIC, ("generation", "u4"), ("pad", "u4")])
TRAFFIC_IN_LINE = 16
TRAFFIC_LINE: DType = np.dtype([("cells", TRAFFIC, (TRAFFIC_IN_LINE,))])
CONNECTIONS: DType = np.dtype(_CONNECTIONS)
HANDSHAKE_FIRST = 4
HANDSHAKE_BUCKETS = 21
DROP_REASONS = 40
SERVICE_COUNTERS: DType = np.dtype(
    [("handshakes", "u8", (HANDSHAKE_BUCKETS,)), ("handshake_ns", "u8"), ("dropped", "u8", (DROP_REASONS,))]
)
ENDED: DType = np.dtype([*_TRAFFIC, *_CONNECTIONS])
NOTE: DType = np.dtype(
    [
        ("hook", "u4"),
        ("reason", "u4"),
        ("mtu", "u4"),
        ("l3", "u1"),
        ("side", "u1"),
        ("answer", "u1"),
        ("egress", "u1"),
        ("stale", "u1"),
        ("watch", "u1"),
        ("asked", "u1"),
        ("attempt", "u1"),
    ]
)
WATCHED_SERVICES = 16
WATCH: DType = np.dtype(
    [
        ("until_ns", "u8"),
        ("lost", "u8"),
        ("what", "u4"),
        ("one_in", "u4"),
        ("services", "u4", (WATCHED_SERVICES,)),
    ]
)
EVENT_BYTES = 256
EVENT: DType = np.dtype(
    [
        ("time_ns", "u8"),
        ("hook", "u4"),
        ("reason", "u4"),
        ("verdict", "i4"),
        ("ifindex", "u4"),
        ("service", "u4"),
        ("backend", "u4"),
        ("len", "u4"),
        ("sent_len", "u4"),
        ("src", "V16"),
        ("dst", "V16"),
        ("to_src", "V16"),
        ("to_dst", "V16"),
        ("sport", ">u2"),
        ("dport", ">u2"),
        ("to_sport", ">u2"),
        ("to_dport", ">u2"),
        ("captured", "u2"),
        ("sent_captured", "u2"),
        ("family", "u1"),
        ("protocol", "u1"),
        ("direction", "u1"),
        ("tcp_flags", "u1"),
        ("closes", "u1"),
        ("l3", "u1"),
        ("pad", "u1", (6,)),
        ("before", "u1", (EVENT_BYTES,)),
        ("after", "u1", (EVENT_BYTES,)),
    ]
)
ANSWER_KINDS = 5
RATE: DType = np.dtype([("full_ns", "u8")])
NOTHING: DType = np.dtype([])
ID: DType = np.dtype("u4")

STRUCTS: Mapping[str, DType | Mapping[int, DType]] = {
    "vip_key": VIP_KEY,
    "backend_set": BACKEND_SET,
    "table_line": TABLE_LINE,
    "vip": VIP,
    "source_range": SOURCE_RANGE,
    "backend_slot": BACKEND,
    "flow_key": FLOW_KEY,
    "flow_entry": FLOW,
    "bucket_head": BUCKET_HEAD,
    "flow_slot": FLOW_SLOT,
    "flow_bucket": FLOW_BUCKET,
    "hashing": HASHING,
    "scratch": SCRATCH,
    "fragment_key": FRAGMENT_KEY,
    "fragment": FRAGMENT,
    "piece_key": PIECE_KEY,
    "held_piece": HELD_PIECE,
    "socket_key": SOCKET_KEY,
    "socket_entry": SOCKET,
    "affinity_key": AFFINITY_KEY,
    "affinity": AFFINITY,
    "affinity_slot": AFFINITY_SLOT,
    "affinity_bucket": AFFINITY_BUCKET,
    "iface": IFACE,
    "rate": RATE,
    "link": LINK,
    "links": LINK_TABLE,
    "settings": SETTINGS,
    "service_name": SERVICE_NAME,
    "node_name": NODE_NAME,
    "note": NOTE,
    "counter": COUNTER,
    "traffic": TRAFFIC,
    "traffic_line": TRAFFIC_LINE,
    "connections": CONNECTIONS,
    "service_counters": SERVICE_COUNTERS,
    "ended": ENDED,
    "watch": WATCH,
    "event": EVENT,
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
    GONE = 32


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
    HOST = 3
    REDIRECT = 4
    LOOPBACK = 5


class FinSeen(IntFlag):
    """enum fin_seen."""

    FIN_CLIENT = 1
    FIN_BACKEND = 2
    RST_CLIENT = 4
    RST_BACKEND = 8
    SYN_AGAIN = 16
    HALF_OPEN = 32
    ANSWERED = 64
    MET_LATE = 128


class IfaceFlag(IntFlag):
    """enum iface_flags."""

    UPLINK = 1
    TUNNEL = 2
    PEER = 4


class WatchFlag(IntFlag):
    """enum watch_flags."""

    FLOWS = 1
    DROPS = 2
    PACKETS = 4
    BYTES = 8


ENUMS: Mapping[str, tuple[str, type[IntEnum] | type[IntFlag]]] = {
    "direction": ("DIR_", Direction),
    "vip_kind": ("VIP_", VipKindCode),
    "vip_flags": ("VIP_", VipFlag),
    "backend_state": ("BACKEND_", BackendStateCode),
    "backend_flags": ("BACKEND_", BackendFlag),
    "flow_state": ("FLOW_", FlowState),
    "flow_path": ("PATH_", FlowPath),
    "fin_seen": ("", FinSeen),
    "iface_flags": ("IFACE_", IfaceFlag),
    "watch_flags": ("WATCH_", WatchFlag),
}
"""The enums that C and Python share: by C's name, what C puts before each member's name, and the class."""

BPF_DIR = shipped("bpf")
_X_ROW = re.compile(r'X\((\w+),\s*"([^"]*)"\)')


def _x_table(name: str) -> tuple[tuple[str, str], ...]:
    """Read one X-macro table of bpf/reasons.h as (name, meaning) pairs."""
    text = (BPF_DIR / "reasons.h").read_text()
    start = text.index(f"#define {name}(X)")
    end = text.index("\n\n", start)
    return tuple(_X_ROW.findall(text[start:end].replace("\\\n", "\n")))


REASONS: tuple[tuple[str, str], ...] = _x_table("REASONS")
HOOKS: tuple[tuple[str, str], ...] = _x_table("HOOKS")
STEPS: tuple[tuple[str, str], ...] = _x_table("STEPS")
PROGRAMS_PER_FAMILY = 24
REASONS_PER_HOOK = 64
NODE_SELF = 0
NODE_NONE = 1

CONSTANTS: Mapping[str, int] = {
    "SMALL_SET": SMALL_SET,
    "LINE_ROWS": LINE_ROWS,
    "SLOTS": SLOTS,
    "SEEDS": SEEDS,
    "CACHE_TIME_SHIFT": CACHE_TIME_SHIFT,
    "TRAFFIC_LINE": TRAFFIC_IN_LINE,
    "HANDSHAKE_FIRST": HANDSHAKE_FIRST,
    "HANDSHAKE_BUCKETS": HANDSHAKE_BUCKETS,
    "DROP_REASONS": DROP_REASONS,
    "WATCHED_SERVICES": WATCHED_SERVICES,
    "EVENT_BYTES": EVENT_BYTES,
    "PROGRAMS_PER_FAMILY": PROGRAMS_PER_FAMILY,
    "REASONS_PER_HOOK": REASONS_PER_HOOK,
    "ANSWER_KINDS": ANSWER_KINDS,
    "LINKS": LINKS,
    "SNAT_SOURCES": SNAT_SOURCES,
    "HELD_BYTES": HELD_BYTES,
}
"""The numbers that C and Python share, by C's name."""


def _fields(dtype: DType) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of each field of a structured dtype."""
    assert dtype.fields is not None
    for name in dtype.names or ():
        kind, offset = dtype.fields[name][:2]
        yield name, int(offset), int(kind.itemsize)


def static_assertions(version: int) -> str:
    """Return C that does not compile when a struct, enum or constant in bpf/ differs, for one IP version."""
    shared = dict(CONSTANTS)
    for prefix, members in ENUMS.values():
        shared |= {prefix + member.name: member.value for member in members if member.name}
    lines = [f'#include "{header}"' for header in ("types.h", "reasons.h", "cache.h")]
    lines += [f'_Static_assert({name} == {value}, "{name}");' for name, value in shared.items()]
    for name, shape in STRUCTS.items():
        dtype = shape if isinstance(shape, np.dtype) else shape[version]
        lines.append(f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "{name}: size");')
        for field, offset, size in _fields(dtype):
            lines.append(
                f"_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset} &&"
                f' sizeof(((struct {name} *)0)->{field}) == {size}, "{name}.{field}");'
            )
    return "\n".join(lines) + "\n"
