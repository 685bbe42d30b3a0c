# SPDX-License-Identifier: Apache-2.0
"""Pinned maps: what becomes of their entries when sizes or layouts change, and of pins when they go."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from lb.config import Limits
from lb.datapath.kernel import bpf
from lb.datapath.kernel.pins import BPFFS, Pins, instances, is_bpffs, unload
from lb.datapath.maps import cache, map_table
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import FAMILIES, FLOW, FLOW_KEY, VIP, VIP_KEY
from lb.datapath.maps.map_table import MAP_SPECS
from lb.datapath.programs import loader
from lb.datapath.sync.tables import table_rows
from lb.errors import ConfigError
from tests.unit.pins_bench import (
    LIMITS,
    TINY,
    load,
    map_ids,
    own_pins,
    pin_empty_maps,
)


def fill(pins: Pins, flows: int, vips: int) -> None:
    maps = KernelMaps(pins.maps)
    keys, values = np.zeros(vips, VIP_KEY[4]), np.zeros(vips, VIP)
    keys["address"] = np.arange(vips) + 1
    maps.update("vips4", keys, values)
    keys, values = np.zeros(flows, FLOW_KEY[4]), np.zeros(flows, FLOW[4])
    keys["src"] = np.arange(flows) + 1
    values["backend"] = np.arange(flows)
    maps.update("flows4", keys, values)
    table_rows(maps)[:320:32] = np.arange(10)
    maps.array("backends4")["generation"][:5] = 9
    maps.close()


def count(pins: Pins, name: str) -> int:
    maps = KernelMaps(pins.maps)
    try:
        return len(maps.read(name)[0])
    finally:
        maps.close()


def test_larger_maps_keep_their_entries(pins: Pins) -> None:
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    before = map_ids(pins)
    larger = replace(LIMITS, flows=1024, vips=128, table_rows=4096, backends=128)
    assert pin_empty_maps(pins, larger) == frozenset()
    after = map_ids(pins)
    changed = {name for name, ident in before.items() if after[name] != ident}
    of_backends = ("backends", "traffic", "connections")
    by_family = {f"{name}{ip}" for name in ("flows", "hashing", "vips", *of_backends) for ip in FAMILIES}
    assert changed == {"tables"} | by_family
    assert (count(pins, "flows4"), count(pins, "vips4")) == (20, 10)
    maps = KernelMaps(pins.maps)
    assert table_rows(maps)[:352:32].tolist() == [*range(10), 0]
    assert maps.array("backends4")["generation"][:6].tolist() == [9] * 5 + [0]
    assert maps.capacity("tables") == 4096 // 32
    maps.close()


def test_traffic_counters_are_switched_off_and_on(pins: Pins, tree: Path) -> None:
    """The maps alone change, and what they had counted goes; connections are counted anyhow."""
    rooms = []
    for on in (True, False, True):
        loaded = loader.load(pins, LIMITS, traffic_counters=on, bpf_dir=tree, programs=TINY)
        assert loaded.fresh in (frozenset(), {spec.name for spec in map_table.MAPS})
        maps = KernelMaps(pins.maps)
        rooms.append((maps.capacity("traffic4"), maps.capacity("connections4")))
        maps.array("connections4")["opened"][1] += 1
        opened = int(maps.array("connections4")["opened"][1])
        maps.close()
    assert rooms == [(5, 64), (1, 64), (5, 64)]
    assert opened == 3


def test_smaller_maps_keep_entries_that_fit(pins: Pins) -> None:
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    assert pin_empty_maps(pins, replace(LIMITS, vips=10, table_rows=320, backends=5)) == frozenset()
    assert (count(pins, "flows4"), count(pins, "vips4")) == (20, 10)


@pytest.mark.parametrize(
    "limits",
    [replace(LIMITS, vips=9), replace(LIMITS, table_rows=9 * 32), replace(LIMITS, backends=4)],
    ids=["vips", "tables", "backends"],
)
def test_entries_that_do_not_fit(pins: Pins, limits: Limits, caplog: pytest.LogCaptureFixture) -> None:
    """What names things by id starts empty together: an old id must not meet a new owner."""
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    with caplog.at_level(logging.WARNING):
        fresh = pin_empty_maps(pins, limits)
    of_families = (
        "backends", "source_ranges", "vips", "flows", "affinity", "sockets", "traffic", "connections",
    )  # fmt: skip
    by_id = {f"{name}{version}" for name in of_families for version in FAMILIES}
    assert fresh == {"nodes", "services", "tables", "service_counters", "ended"} | by_id
    assert (count(pins, "flows4"), count(pins, "vips4")) == (0, 0)
    assert {record.args[0] for record in caplog.records if isinstance(record.args, tuple)} == fresh
    assert "its old contents are lost" in caplog.text


def test_flows_of_another_layout(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sizes are the same, a field has moved: only the layout's marker tells."""
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    spec = MAP_SPECS["flows4"]
    moved = np.dtype([("all", f"V{spec.kernel_value.itemsize}")])
    other = tuple(replace(one, bucket=moved) if one.name == "flows4" else one for one in map_table.MAPS)
    monkeypatch.setattr(map_table, "MAPS", other)
    assert pin_empty_maps(pins) == {"flows4"}
    assert count(pins, "vips4") == 10
    assert pin_empty_maps(pins) == frozenset()


def test_a_crash_between_pin_and_marker_counts_as_another_layout(pins: Pins) -> None:
    pin_empty_maps(pins)
    next(pins.shapes.glob("reasons-*")).rmdir()
    assert pin_empty_maps(pins) == {"reasons"}


def test_opening_changes_nothing(pins: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    pin_empty_maps(pins)
    before = map_ids(pins)
    monkeypatch.setattr(cache, "copy", lambda *_: pytest.fail("copied"))
    with pytest.raises(pytest.fail.Exception):
        pin_empty_maps(pins, replace(LIMITS, flows=512))
    assert map_ids(pins) == before


def test_a_crash_between_the_pins_of_a_table_and_of_its_hashing(pins: Pins) -> None:
    """Only one of them is new: the entries that are there are found all the same."""
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    old = pins.maps / "hashing4~old"
    with bpf.obj_get(pins.maps / "hashing4") as fd:
        bpf.obj_pin(fd, old)
    assert pin_empty_maps(pins, replace(LIMITS, flows=1024)) == frozenset()
    old.rename(pins.maps / "hashing4")
    assert pin_empty_maps(pins, replace(LIMITS, flows=1024)) == frozenset()
    maps = KernelMaps(pins.maps)
    keys, _ = maps.read("flows4")
    assert len(keys) == 20
    maps.delete("flows4", keys)
    assert len(maps.read("flows4")[0]) == 0
    maps.close()


def test_without_the_hashing_its_tables_start_empty(pins: Pins) -> None:
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    (pins.maps / "hashing4").unlink()
    assert pin_empty_maps(pins) == {"hashing4", "flows4", "affinity4"}
    assert (count(pins, "flows4"), count(pins, "vips4")) == (0, 10)


def test_unload_removes_this_instance_only(pins: Pins, tree: Path) -> None:
    load(pins, tree)
    with own_pins() as other:
        pin_empty_maps(other)
        assert {pins.instance, other.instance} <= set(instances())
        unload(pins)
        assert not pins.base.exists()
        assert pins.instance not in instances()
        assert set(map_ids(other)) == set(MAP_SPECS)
        unload(pins)  # once more: nothing to do
    assert not other.base.exists()


@pytest.mark.parametrize("name", ["", "a/b", "..", ".x", "-x", "a b", "ü", "x" * 254])
def test_instance_names_that_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="instance"):
        Pins(name)


def test_dots_in_instance_names() -> None:
    assert Pins("lab.node1.example").base.name == "lab~node1~example"


@pytest.mark.parametrize(
    ("mountinfo", "mounted"),
    [
        ("", False),
        ("26 20 0:21 / /sys/fs/bpf rw - bpf bpf rw,mode=700\n", True),
        ("26 20 0:21 / /sys/fs/bpf rw shared:9 - bpf none rw\n", True),
        ("26 20 0:21 / /sys/fs/bpf rw - tmpfs none rw\n", False),
        ("26 20 0:21 / /sys/fs/bpf rw - tmpfs none rw\n27 26 0:22 / /sys/fs/bpf rw - bpf bpf rw\n", True),
        ("26 20 0:21 / /sys/fs/bpf/x rw - bpf bpf rw\n", False),
    ],
)
def test_is_bpffs(mountinfo: str, mounted: bool) -> None:
    assert is_bpffs(BPFFS, mountinfo) is mounted
