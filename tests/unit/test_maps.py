# SPDX-License-Identifier: Apache-2.0
"""What every Maps must do: the same tests on the fake and on the kernel's pinned maps."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from lb.datapath.maps import layouts, map_table
from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import BACKEND, COUNTER, ID, TABLE_LINE, VIP, VIP_KEY
from lb.datapath.sync.tables import table_rows
from lb.errors import BpfError, CapacityError
from tests.fake_maps import FakeMaps
from tests.unit.pins_bench import LIMITS, own_pins, pin_empty_maps


@pytest.fixture(params=["fake", "kernel"])
def maps(request: pytest.FixtureRequest) -> Iterator[Maps]:
    if request.param == "fake":
        yield FakeMaps(LIMITS)
        return
    with own_pins() as pins:
        pin_empty_maps(pins)
        kernel = KernelMaps(pins.maps)
        yield kernel
        kernel.close()


def vips(count: int, service: int = 1) -> tuple[Rows, Rows]:
    keys, values = np.zeros(count, VIP_KEY[4]), np.zeros(count, VIP)
    keys["address"] = 0x0A60_0000 + np.arange(count)
    keys["port"], keys["protocol"] = 80, 6
    values["service"] = service
    return keys, values


def entries(maps: Maps, name: str) -> dict[bytes, bytes]:
    keys, values = maps.read(name)
    assert len(keys) == len(values)
    return {key.tobytes(): value.tobytes() for key, value in zip(keys, values, strict=True)}


def test_read_what_was_written(maps: Maps) -> None:
    assert entries(maps, "vips4") == {}
    keys, values = vips(10)
    maps.update("vips4", keys, values)
    found, rows = maps.read("vips4")
    assert (found.dtype, rows.dtype) == (VIP_KEY[4], VIP)
    assert entries(maps, "vips4") == {k.tobytes(): v.tobytes() for k, v in zip(keys, values, strict=True)}


def test_count(maps: Maps) -> None:
    assert maps.fill("vips4").entries == 0
    maps.update("vips4", *vips(10))
    assert maps.fill("vips4").entries == 10


def test_an_update_replaces(maps: Maps) -> None:
    maps.update("vips4", *vips(4, service=1))
    keys, values = vips(2, service=2)
    maps.update("vips4", keys, values)
    services = sorted(maps.read("vips4")[1]["service"])
    assert services == [1, 1, 2, 2]


def test_delete(maps: Maps) -> None:
    keys, values = vips(6)
    maps.update("vips4", keys[:4], values[:4])
    maps.delete("vips4", keys[2:])  # two of them are not there
    assert set(entries(maps, "vips4")) == {key.tobytes() for key in keys[:2]}
    maps.delete("vips4", keys[:0])
    assert len(entries(maps, "vips4")) == 2


def test_full_map(maps: Maps) -> None:
    keys, values = vips(LIMITS.vips + 5)
    with pytest.raises(CapacityError) as caught:
        maps.update("vips4", keys, values)
    error = caught.value
    assert (error.resource, error.capacity, error.wanted) == ("vips4", LIMITS.vips, LIMITS.vips + 5)
    assert error.setting == "limits.vips"
    assert set(entries(maps, "vips4")) == {key.tobytes() for key in keys[: LIMITS.vips]}
    maps.update("vips4", *vips(LIMITS.vips, service=9))  # what is there can still be replaced


def test_array_is_live(maps: Maps) -> None:
    slots = maps.array("backends4")
    assert (slots.dtype, len(slots)) == (BACKEND[4], LIMITS.backends)
    slots["port"][3] = 8080
    slots[LIMITS.backends - 1] = np.array((1, 2, 1, 0, 4, 5, 6), BACKEND[4])
    again = maps.array("backends4")
    assert again["port"][3] == 8080
    assert again["generation"][-1] == 5
    assert maps.read("backends4")[1]["port"][3] == 8080


def test_slices_of_an_array(maps: Maps) -> None:
    table = table_rows(maps)
    table[100:200] = np.arange(100, dtype=ID)
    assert table_rows(maps)[99:201].tolist() == [0, *range(100), 0]


def test_entries_of_an_array_are_written_without_mapping_it(maps: Maps) -> None:
    lines = np.zeros(2, TABLE_LINE)
    lines["rows"] = np.arange(64).reshape(2, 32)
    maps.update("tables", np.array([3, 1], ID), lines)
    assert table_rows(maps)[:128].tolist() == [*[0] * 32, *range(32, 64), *[0] * 32, *range(32)]


def test_per_cpu_values(maps: Maps) -> None:
    keys, values = maps.read("reasons")
    rows = layouts.REASONS_PER_HOOK * len(layouts.HOOKS)
    assert keys.tolist() == list(range(rows))
    assert (values.dtype, values.shape[0]) == (COUNTER, rows)
    values = np.zeros_like(values)
    values["packets"][5] = np.arange(values.shape[1]) + 1
    values["bytes"][5] = 1000
    maps.update("reasons", keys, values)
    found = maps.read("reasons")[1]
    assert found["packets"][5].tolist() == values["packets"][5].tolist()
    assert found["packets"].sum() == values["packets"][5].sum()


def test_capacity(maps: Maps) -> None:
    for spec in map_table.MAPS:
        assert maps.capacity(spec.name) == spec.max_entries(LIMITS.as_dict()) * spec.entries_each


def test_keys_and_values_of_different_number(maps: Maps) -> None:
    keys, values = vips(3)
    with pytest.raises((AssertionError, ValueError), match="vips4"):
        maps.update("vips4", keys, values[:2])


def test_unpinned_map() -> None:
    with own_pins() as pins, pytest.raises(BpfError, match=r"OBJ_GET.*vips4"):
        KernelMaps(pins.maps).read("vips4")


def test_two_processes_see_one_map() -> None:
    """Here: two openings of one pin."""
    with own_pins() as pins:
        pin_empty_maps(pins)
        one, two = KernelMaps(pins.maps), KernelMaps(pins.maps)
        one.array("backends4")["node"][7] = 70
        assert two.array("backends4")["node"][7] == 70
        one.update("vips4", *vips(1))
        assert len(two.read("vips4")[0]) == 1
        held = one.array("backends4")
        one.close()
        held["node"][7] = 71  # what was handed out outlives the closing
        assert two.array("backends4")["node"][7] == 71
        two.close()
