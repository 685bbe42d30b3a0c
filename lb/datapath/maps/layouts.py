# SPDX-License-Identifier: Apache-2.0
"""Python's view of the structs in ``bpf/``.

A dtype is read from its struct in ``bpf/types.h`` or ``bpf/records.h``, whose comments say what the fields
mean. Each class of :data:`ENUMS` mirrors an enum, each row of :data:`CONSTANTS` a ``#define``.
:func:`static_assertions` turns all of this into C, so that the compiler refuses what differs from its own
view. Big-endian fields (``>u4``, ``>u2``) are addresses and ports in network byte order; all others are in
the CPU's order.

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
from lb.package_files import shipped
from lb.plan.rendezvous import FULL_WEIGHT, SMALL_SET

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


SLOTS = 7
CACHE_TIME_SHIFT = 24
SEEDS = 10
LINE_ROWS = 2 * SMALL_SET
WEIGHTED_SET = LINE_ROWS + SMALL_SET
HELD_BYTES = 2032
LINKS = 8
SNAT_SOURCES = 4
TRAFFIC_IN_LINE = 16
HANDSHAKE_FIRST = 4
HANDSHAKE_BUCKETS = 21
DROP_REASONS = 64
WATCHED_SERVICES = 16
EVENT_BYTES = 256
ANSWER_KINDS = 6
PROGRAMS_PER_FAMILY = 32
REASONS_PER_HOOK = 64
FORMER_SETS = 4
NODE_SELF = 0
NODE_NONE = 1

CONSTANTS: Mapping[str, int] = {
    "SMALL_SET": SMALL_SET,
    "LINE_ROWS": LINE_ROWS,
    "WEIGHTED_SET": WEIGHTED_SET,
    "FULL_WEIGHT": FULL_WEIGHT,
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
    "FORMER_SETS": FORMER_SETS,
}
"""The numbers that C and Python share, by C's name."""

BPF_DIR = shipped("bpf")
HEADERS = ("types.h", "records.h")
"""Where the structs of the maps are, and the enums of their fields."""
_STRUCT = re.compile(r"^struct (\w+) \{\n(.*?)^\};", re.MULTILINE | re.DOTALL)
_UNION = re.compile(r"union \{\s*([^;]*;).*?\};", re.DOTALL)
_FIELD = re.compile(r"(?:struct )?(\w+) (\w+)(?:\[(.+?)\])?;")
_BY_FAMILY = re.compile(r"FAMILY == 6 \? (\d+) : (\d+)")
_TYPES = {
    "u8": "u1",
    "u16": "u2",
    "u32": "u4",
    "u64": "u8",
    "s32": "i4",
    "__be16": ">u2",
    "bpf_spin_lock": "u4",
}
_OPAQUE = {"char": "S{}", "ETH_ALEN": "V6", "__be32": "V16"}
"""What is one value to Python: text, a link address, an address of whichever family."""


def _structs(version: int) -> dict[str, DType]:
    """Read the structs of the maps for one IP version. Of a union the first member counts."""
    found = {"addr": ADDRESS[version]}
    text = re.sub(
        r"/\*.*?\*/", "", "".join((BPF_DIR / name).read_text() for name in HEADERS), flags=re.DOTALL
    )
    for name, body in _STRUCT.findall(text):
        if name != "addr":
            fields = _FIELD.findall(_UNION.sub(r"\1", body))
            found[name] = np.dtype([_field(found, version, *field) for field in fields])
    return found


def _field(known: Mapping[str, DType], version: int, kind: str, name: str, length: str) -> tuple[Any, ...]:
    """Return one field as numpy takes it; length is what C has in brackets, ``""`` without any."""
    if opaque := _OPAQUE.get(kind) or _OPAQUE.get(length):
        return name, opaque.format(length)
    dtype: Any = known.get(kind) or _TYPES[kind]
    if not length:
        return name, dtype
    if by_family := _BY_FAMILY.fullmatch(length):
        length = by_family[1 if version == 6 else 2]
    return name, dtype, (int(length) if length.isdigit() else CONSTANTS[length],)


_BY_VERSION = {version: _structs(version) for version in FAMILIES}


def _each(name: str) -> Mapping[int, DType]:
    """Return a struct that has addresses in it, by IP version."""
    return {version: structs[name] for version, structs in _BY_VERSION.items()}


def _both(name: str) -> DType:
    """Return a struct that is the same for both IP versions."""
    return _BY_VERSION[4][name]


VIP_KEY = _each("vip_key")
TABLE_LINE = _both("table_line")
VIP = _both("vip")
FORMER = _both("former")
SOURCE_RANGE = _each("source_range")
BACKEND = _each("backend_slot")
FLOW_KEY = _each("flow_key")
FLOW = _each("flow_entry")
FLOW_BUCKET = _each("flow_bucket")
HASHING = _both("hashing")
FRAGMENT_KEY = _each("fragment_key")
FRAGMENT = _both("fragment")
PIECE_KEY = _each("piece_key")
HELD_PIECE = _both("held_piece")
SCRATCH = _both("scratch")
AFFINITY_KEY = _each("affinity_key")
AFFINITY = _both("affinity")
AFFINITY_BUCKET = _each("affinity_bucket")
IFACE = _each("iface")
ANNOUNCED_KEY = _each("announced_key")
ANNOUNCED = _both("announced")
RIVAL = _both("rival")
LINK_TABLE = _both("links")
SETTINGS = _each("settings")
SOCKET_ADDRESS = _each("socket_address")
SOCKET_KEY = _each("socket_key")
SOCKET = _each("socket_entry")
SERVICE_NAME = _both("service_name")
NODE_NAME = _both("node_name")
COUNTER = _both("counter")
TRAFFIC = _both("traffic")
TRAFFIC_LINE = _both("traffic_line")
CONNECTIONS = _both("connections")
SERVICE_COUNTERS = _both("service_counters")
ENDED = _both("ended")
NOTE = _both("note")
WATCH = _both("watch")
EVENT = _both("event")
SHADOWED = _both("shadowed")
RATE = _both("rate")
NOTHING: DType = np.dtype([])
ID: DType = np.dtype("u4")


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
    DIRECT = 64
    UDP_STAYS = 128


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
    DIRECT = 6


class FlowSign(IntFlag):
    """enum flow_signs."""

    FIN_CLIENT = 1
    FIN_BACKEND = 2
    RST_CLIENT = 4
    RST_BACKEND = 8
    SYN_AGAIN = 16
    HALF_OPEN = 32
    ANSWERED = 64
    MET_LATE = 128


class Cutover(IntEnum):
    """enum cutover."""

    NONE = 0
    TAKE = 1
    LEAVE = 2
    SHADOW = 3


class ShadowKind(IntEnum):
    """enum shadow_kind."""

    DECIDED = 1
    CALLED = 2
    SENT = 3
    ANSWERED = 4


class ShadowOutcome(IntEnum):
    """enum shadow_outcome."""

    UNTOUCHED = 0
    SERVED = 1
    REFUSED = 2
    DROPPED = 3


class Side(IntEnum):
    """enum side."""

    INSIDE = 0
    OUTSIDE = 1
    HOST = 2


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
    "flow_signs": ("", FlowSign),
    "cutover": ("CUTOVER_", Cutover),
    "shadow_kind": ("SHADOW_", ShadowKind),
    "shadow_outcome": ("SHADOW_", ShadowOutcome),
    "side": ("", Side),
    "iface_flags": ("IFACE_", IfaceFlag),
    "watch_flags": ("WATCH_", WatchFlag),
}
"""The enums that C and Python share: by C's name, what C puts before each member's name, and the class."""

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


def _fields(dtype: DType) -> Iterator[tuple[str, int, int]]:
    """Yield (name, offset, size) of each field of a structured dtype."""
    assert dtype.fields is not None
    for name in dtype.names or ():
        kind, offset = dtype.fields[name][:2]
        yield name, int(offset), int(kind.itemsize)


def structs(version: int) -> Mapping[str, DType]:
    """Return every struct of the maps by C's name, for one IP version."""
    return {name: dtype for name, dtype in _BY_VERSION[version].items() if name != "addr"}


def static_assertions(version: int) -> str:
    """Return C that does not compile when a struct, enum or constant in bpf/ differs, for one IP version."""
    shared = dict(CONSTANTS)
    for prefix, members in ENUMS.values():
        shared |= {prefix + member.name: member.value for member in members if member.name}
    lines = [f'#include "{header}"' for header in (*HEADERS, "reasons.h", "cache.h")]
    lines += [f'_Static_assert({name} == {value}, "{name}");' for name, value in shared.items()]
    for name, dtype in structs(version).items():
        lines.append(f'_Static_assert(sizeof(struct {name}) == {dtype.itemsize}, "{name}: size");')
        for field, offset, size in _fields(dtype):
            lines.append(
                f"_Static_assert(__builtin_offsetof(struct {name}, {field}) == {offset} &&"
                f' sizeof(((struct {name} *)0)->{field}) == {size}, "{name}.{field}");'
            )
    return "\n".join(lines) + "\n"
