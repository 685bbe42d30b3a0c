# SPDX-License-Identifier: Apache-2.0
"""Open the pinned maps that fit, make the others, and carry over what can be kept.

Two steps, because programs are compiled between them: :func:`open_maps` changes nothing that is pinned,
:func:`pin_maps` puts the new maps in place.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lb.datapath.kernel import batch, bpf
from lb.datapath.kernel.bpf import FD, MapInfo, Rows
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import cache, conversion, layouts, map_table
from lb.datapath.maps.map_table import MAP_SPECS, MapSpec, MapType
from lb.datapath.maps.releases import RELEASES

_LOG = logging.getLogger(__name__)

# Maps whose entries name each other by id. When one of them must start empty, ids start anew; then all of
# them start empty, and so does what the kernel noted by those ids.
_BY_ID = frozenset(
    {"nodes", "services", "tables"}
    | {f"{name}{version}" for name in ("backends", "source_ranges", "vips") for version in layouts.FAMILIES}
)
_NAMING_IDS = frozenset(
    f"{name}{version}"
    for name in ("flows", "affinity", "sockets", "traffic", "connections")
    for version in layouts.FAMILIES
) | {"service_counters", "ended"}


@dataclass(frozen=True, slots=True)
class MapSlot:
    """One map that a build uses.

    pinned: fd is already at its place. source: the pinned map whose entries fd takes over, if any. filled: it
    has taken them over already. layout: key and value of the source where they are others than fd's.
    """

    spec: MapSpec
    fd: FD
    pinned: bool
    source: FD | None
    filled: bool = False
    layout: Layout | None = None


Layout = tuple[np.dtype[Any], np.dtype[Any]]
"""Key and value as the kernel holds them."""


@dataclass(frozen=True, slots=True)
class _Old:
    """A pinned map. layout: as in MapSlot. lost: why its entries cannot be taken over, ``""`` if they can."""

    fd: FD
    info: MapInfo
    lost: str
    layout: Layout | None = None


@dataclass(frozen=True, slots=True)
class Prospect:
    """What becomes of a pinned map when this version is started.

    converted: it has another layout, and is converted. lost: why it starts empty, ``""`` when it does not.
    entries: how many it holds; None: nobody can tell. partly: it stays, but so many of its entries are of no
    use any more, for the reason `lost`.
    """

    name: str
    converted: bool
    lost: str
    entries: int | None
    partly: bool = False


def row_bytes(info: MapInfo) -> int:
    """Return the bytes of one value as bpf() transfers it: per-CPU values are padded to 8 and one per CPU."""
    if info.type == MapType.PERCPU_ARRAY:
        return -(-info.value_size // 8) * 8 * bpf.possible_cpus()
    return info.value_size


def read_rows(fd: FD, spec: MapSpec) -> tuple[Rows, Rows]:
    """Read a map as keys of its dtype and values of raw bytes."""
    info = bpf.map_info(fd)
    return batch.read_all(fd, info, spec.kernel_key, row_bytes(info))


def open_maps(pins: Pins, sizes: Mapping[str, int], stack: contextlib.ExitStack) -> list[MapSlot]:
    """Return a slot for each map of map_table.MAPS; descriptors close with the stack. sizes: of them.

    Raises BpfError: a map could not be opened or created.
    """
    described = _described(pins)
    old = {
        spec.name: _open_old(pins, spec, spec.max_entries(sizes), described, stack) for spec in map_table.MAPS
    }
    lost = _lost(old)
    slots = {}
    for spec in map_table.MAPS:
        entries = spec.max_entries(sizes)
        before = old[spec.name]
        source = before.fd if before is not None and spec.name not in lost else None
        layout = before.layout if before is not None and source is not None else None
        if before is not None and source is not None and not layout and before.info.max_entries == entries:
            slots[spec.name] = MapSlot(spec, source, pinned=True, source=None)
            continue
        slots[spec.name] = MapSlot(
            spec, stack.enter_context(create_map(spec, entries)), pinned=False, source=source, layout=layout
        )
        if before is not None and source is None:
            _LOG.warning("map %s: its old contents are lost: %s", spec.name, lost[spec.name])
    for version in layouts.FAMILIES:
        _set_hashing(slots, version, stack)
    return list(slots.values())


def create_map(spec: MapSpec, entries: int) -> FD:
    """Create a map of so many entries (of a CACHE: buckets) that is pinned nowhere.

    Raises BpfError: the kernel refused.
    """
    shape = (spec.kernel_type, spec.kernel_key.itemsize, spec.kernel_value.itemsize, entries)
    locked = spec.type is MapType.CACHE
    return bpf.map_create(*shape, flags=spec.flags, name=f"lb_{spec.name}", locked=locked)


def _set_hashing(slots: dict[str, MapSlot], version: int, stack: contextlib.ExitStack) -> None:
    """Let the seeds be as they were, if they were, and the numbers of buckets what they are now.

    When those change, programs of the build before go on with a map of their own, as with the tables.
    """
    name = f"hashing{version}"
    slot = slots[name]
    _, values = read_rows(slot.fd, slot.spec)
    row = values.reshape(-1).view(slot.spec.value)
    before = row.copy()
    if not row["seeds"].any():
        row = cache.new_hashing()
    for field, table in (("flow_buckets", "flows"), ("affinity_buckets", "affinity")):
        row[field] = bpf.map_info(slots[f"{table}{version}"].fd).max_entries
    if row == before:
        return
    if slot.pinned:
        slot = MapSlot(
            slot.spec,
            stack.enter_context(create_map(slot.spec, 1)),
            pinned=False,
            source=slot.fd,
            filled=True,
        )
        slots[name] = slot
    batch.update_all(slot.fd, np.zeros(1, layouts.ID), row)


def _lost(old: Mapping[str, _Old | None]) -> dict[str, str]:
    """Return which maps start empty, and why."""
    lost = {name: "there is none" if one is None else one.lost for name, one in old.items()}
    lost = {name: why for name, why in lost.items() if why}
    if by_id := lost.keys() & _BY_ID:
        why = f"entries name each other by ids, which begin anew with {', '.join(sorted(by_id))}"
        lost = dict.fromkeys(sorted(_BY_ID | _NAMING_IDS), why) | lost
    for version in layouts.FAMILIES:
        if f"hashing{version}" in lost:
            for name in (f"flows{version}", f"affinity{version}"):
                lost.setdefault(name, f"where its entries are is lost with hashing{version}")
    return lost


def prospects(pins: Pins, sizes: Mapping[str, int]) -> Iterator[Prospect]:
    """Yield what would become of each pinned map that would not stay as it is; nothing is changed.

    Raises BpfError: the kernel refused.
    """
    with contextlib.ExitStack() as stack:
        described = _described(pins)
        old = {
            spec.name: _open_old(pins, spec, spec.max_entries(sizes), described, stack)
            for spec in map_table.MAPS
        }
        lost = _lost(old)
        for spec in map_table.MAPS:
            one = old[spec.name]
            if one is not None and (spec.name in lost or one.layout):
                converted = spec.name not in lost
                yield Prospect(spec.name, converted, lost.get(spec.name, ""), _count(one, spec, described))


def prospects_in(pins: Pins, release: str) -> Iterator[Prospect]:
    """Yield the same for the start of an earlier release, one of :data:`lb.datapath.maps.releases.RELEASES`.

    Raises BpfError: the kernel refused.
    """
    to = RELEASES[release]
    known = {one.rpartition("-")[0] for one in to.layouts}
    with contextlib.ExitStack() as stack:
        old: dict[str, _Old | None] = {}
        for spec in map_table.MAPS:
            if spec.name in known and (pins.maps / spec.name).exists():
                fd = stack.enter_context(bpf.obj_get(pins.maps / spec.name))
                lost = (
                    ""
                    if _shape(spec) in to.layouts
                    else f"{release} has another layout, and converts nothing"
                )
                old[spec.name] = _Old(fd, bpf.map_info(fd), lost)
        lost_maps = _lost(old)
        for name, one in old.items():
            if one is not None and name in lost_maps:
                yield Prospect(name, False, lost_maps[name], _count(one, MAP_SPECS[name], {}))
            elif one is not None and name.startswith("flows"):
                flows = cache.read(one.fd, MAP_SPECS[name])
                if strange := int((~to.follows(flows.keys, flows.values)).sum()):
                    why = (
                        f"{release} does not know their way, or, if it has its default snat_ports, their port"
                    )
                    yield Prospect(name, False, why, strange, partly=True)


def _count(one: _Old, spec: MapSpec, described: Mapping[str, Any]) -> int | None:
    """Return how many entries of a pinned map are in use; None for one that has no such number."""
    if spec.type in (MapType.HASH, MapType.LRU_HASH, MapType.LPM_TRIE):
        return batch.count_all(one.fd, one.info, one.info.value_size)
    if spec.type is not MapType.CACHE:
        return None
    layout = one.layout or _layout_of(described, spec.name)
    bucket = layout[1] if layout else spec.kernel_value
    if bucket.itemsize != one.info.value_size:
        return None
    return len(conversion.read_cache(one.fd, bucket).keys)


def _described(pins: Pins) -> dict[str, Any]:
    """Return what the instance's map ``layouts`` holds; a version without one has left nothing."""
    if not pins.layouts.exists():
        return {}
    with bpf.obj_get(pins.layouts) as fd:
        return conversion.read_layouts(fd)


def _layout_of(described: Mapping[str, Any], name: str) -> Layout | None:
    if name not in described:
        return None
    _, key, value = described[name]
    return conversion.described(key), conversion.described(value)


def _open_old(
    pins: Pins, spec: MapSpec, entries: int, described: Mapping[str, Any], stack: contextlib.ExitStack
) -> _Old | None:
    path = pins.maps / spec.name
    if not path.exists():
        return None
    fd = stack.enter_context(bpf.obj_get(path))
    info = bpf.map_info(fd)
    same_shape = (pins.shapes / _shape(spec)).is_dir() and _kernel_shape(info) == (
        spec.kernel_type,
        spec.kernel_key.itemsize,
        spec.kernel_value.itemsize,
        spec.flags,
    )
    if same_shape:
        fits = info.max_entries <= entries or _fits(fd, spec, entries)
        return _Old(fd, info, "" if fits else "there is no room for it")
    layout = _layout_of(described, spec.name)
    if layout is None or not (pins.shapes / described[spec.name][0]).is_dir():
        return _Old(fd, info, "it has another layout, which is not described")
    if why := _obstacle(info, spec, entries, layout):
        return _Old(fd, info, f"it has another layout: {why}", layout)
    return _Old(fd, info, "", layout)


def _kernel_shape(info: MapInfo) -> tuple[int, int, int, int]:
    return info.type, info.key_size, info.value_size, info.flags


def _obstacle(info: MapInfo, spec: MapSpec, entries: int, layout: Layout) -> str:
    """Return why a map of another layout cannot be converted, ``""`` if it can."""
    key, value = layout
    if _kernel_shape(info) != (spec.kernel_type, key.itemsize, value.itemsize, spec.flags):
        return "it is another kind of map"
    if spec.name in conversion.NEVER or spec.type in (MapType.RINGBUF, MapType.PERCPU_ARRAY):
        return "what it holds begins anew"
    if info.max_entries > entries:
        return "it is larger than what there is room for"
    if spec.type is MapType.CACHE:
        return conversion.bucket_obstacle(value, spec)
    return conversion.obstacle(key, spec.kernel_key) or conversion.obstacle(value, spec.kernel_value)


def _fits(fd: FD, spec: MapSpec, entries: int) -> bool:
    """Tell whether what the map holds fits into a smaller one."""
    if spec.type in (MapType.LRU_HASH, MapType.CACHE, MapType.RINGBUF):
        return True  # as ever, some have to go
    keys, values = read_rows(fd, spec)
    if spec.type in (MapType.HASH, MapType.LPM_TRIE):
        return len(keys) <= entries
    return not values[keys >= entries].any()


def pin_maps(pins: Pins, slots: Sequence[MapSlot]) -> frozenset[str]:
    """Fill and pin the maps that are not at their place; return the names of those that start empty.

    A pin is replaced by rename, so a reader finds the old map or the new one. A crash in between loses a
    layout's marker at worst: the map then counts as one of another shape.

    Raises BpfError: the kernel refused an entry or a pin.
    """
    pins.maps.mkdir(exist_ok=True)
    pins.shapes.mkdir(exist_ok=True)
    hashing = {
        slot.spec.version: read_rows(slot.fd, slot.spec)[1].reshape(-1).view(slot.spec.value)
        for slot in slots
        if slot.spec.name.startswith("hashing")
    }
    for slot in slots:
        if slot.layout and slot.source is not None:
            _convert(slot, slot.source, slot.layout, hashing)
        elif slot.spec.type is MapType.CACHE and slot.source is not None:
            cache.copy(slot.source, slot.fd, slot.spec, hashing[slot.spec.version])
        elif slot.source is not None and not slot.filled:
            _copy(slot.source, slot.fd, slot.spec)
    for slot in slots:
        if slot.pinned:
            continue
        name = slot.spec.name
        for marker in pins.shapes.glob(f"{name}-*"):
            marker.rmdir()
        aside = pins.maps / f"{name}~new"
        aside.unlink(missing_ok=True)
        bpf.obj_pin(slot.fd, aside)
        aside.rename(pins.maps / name)
        (pins.shapes / _shape(slot.spec)).mkdir()
    _write_layouts(pins, slots)
    return frozenset(slot.spec.name for slot in slots if not slot.pinned and slot.source is None)


def _convert(slot: MapSlot, source: FD, layout: Layout, hashing: Mapping[int, Rows]) -> None:
    spec = slot.spec
    if spec.type is MapType.CACHE:
        kept, left = conversion.copy_cache(source, layout, slot.fd, spec, hashing[spec.version])
    else:
        kept, left = conversion.copy(source, layout, slot.fd, spec)
    _LOG.info("map %s has another layout: %d entries converted", spec.name, kept)
    if left:
        _LOG.warning("map %s: %d entries do not fit its layout and are lost", spec.name, left)


def _write_layouts(pins: Pins, slots: Sequence[MapSlot]) -> None:
    """Describe the maps for a version with other layouts."""
    found = {
        slot.spec.name: [
            _shape(slot.spec),
            conversion.describe(slot.spec.kernel_key),
            conversion.describe(slot.spec.kernel_value),
        ]
        for slot in slots
        if slot.spec.type is not MapType.RINGBUF
    }
    if pins.layouts.exists():
        with bpf.obj_get(pins.layouts) as fd:
            if conversion.read_layouts(fd) != json.loads(json.dumps(found)):
                conversion.write_layouts(fd, found)
        return
    with conversion.make_layouts() as fd:
        conversion.write_layouts(fd, found)
        bpf.obj_pin(fd, pins.layouts)


def _copy(source: FD, target: FD, spec: MapSpec) -> None:
    if spec.type is MapType.RINGBUF:
        return  # what nobody has read by now, nobody waits for
    keys, values = read_rows(source, spec)
    if spec.type in (MapType.ARRAY, MapType.PERCPU_ARRAY):
        inside = keys < bpf.map_info(target).max_entries
        keys, values = keys[inside], values[inside]
    batch.update_all(target, keys, values)


def _shape(spec: MapSpec) -> str:
    """Return the name of the marker of a map's layout: the sizes alone would not show a moved field."""
    layout = f"{spec.kernel_key.descr}{spec.kernel_value.descr}"
    return f"{spec.name}-{hashlib.sha256(layout.encode()).hexdigest()[:12]}"
