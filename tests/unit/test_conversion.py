# SPDX-License-Identifier: Apache-2.0
"""Maps of another layout: an upgrade that changes a struct, and the way back, keep what they can and tell."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lb.datapath.kernel import bpf
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps import cache, conversion, map_table
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import FLOW, Direction, FlowPath
from lb.datapath.maps.map_pins import prospects, prospects_in
from lb.datapath.maps.map_table import MAP_SPECS
from tests.unit.pins_bench import LIMITS, pin_empty_maps
from tests.unit.test_map_pins import count, fill

SIZES = map_table.sizes(LIMITS)


def changed(dtype: np.dtype[Any], name: str, kind: str | None, at: int = 0) -> np.dtype[Any]:
    """Return a struct with one field of another kind: new, in front of the one at a place, or gone (None)."""
    fields = [(one, dtype[one]) for one in dtype.names or ()]
    old = [one for one, _ in fields]
    if name in old:
        at = old.index(name)
        del fields[at]
    if kind is not None:
        fields.insert(at, (name, np.dtype(kind)))
    return np.dtype(fields)


def flows_as(value: np.dtype[Any]) -> dict[str, Any]:
    """Return what is otherwise of a map in which a flow is this."""
    bucket = MAP_SPECS["flows4"].kernel_value
    slot = np.dtype([("key", bucket["slots"].base["key"]), ("value", value)])
    slots = np.dtype((slot, bucket["slots"].shape))
    return {"value": value, "bucket": np.dtype([("head", bucket["head"]), ("slots", slots)])}


def with_flows(monkeypatch: pytest.MonkeyPatch, flows: dict[str, Any]) -> None:
    """Be a version in which flows of IPv4 are otherwise."""
    maps = tuple(replace(one, **flows) if one.name == "flows4" else one for one in map_table.MAPS)
    monkeypatch.setattr(map_table, "MAPS", maps)


VERSIONS: dict[str, dict[str, Any]] = {
    "a field is added": flows_as(changed(FLOW[4], "since", "u8", 3)),
    "a field is widened": flows_as(changed(FLOW[4], "backend", "u8")),
    "a field is narrowed": flows_as(changed(FLOW[4], "service", "u2")),
    "a field is gone": flows_as(changed(FLOW[4], "path", None)),
}


def contents(pins: Pins, spec: map_table.MapSpec) -> dict[bytes, dict[str, Any]]:
    """Return the flows of a map by key, each by field."""
    with bpf.obj_get(pins.maps / spec.name) as fd:
        found = cache.read(fd, spec)
    return {
        key.tobytes(): {name: value[name].tolist() for name in value.dtype.names or ()}
        for key, value in zip(found.keys, found.values, strict=True)
    }


@pytest.fixture
def filled(pins: Pins) -> Pins:
    """Pins with 20 flows of IPv4 and 10 VIPs."""
    pin_empty_maps(pins)
    fill(pins, flows=20, vips=10)
    return pins


@pytest.mark.parametrize("change", VERSIONS)
def test_flows_are_converted_to_another_layout_and_back(
    filled: Pins, change: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ours = MAP_SPECS["flows4"]
    before = contents(filled, ours)
    assert len(before) == 20
    with monkeypatch.context() as meanwhile:
        with_flows(meanwhile, VERSIONS[change])
        told = [(one.name, one.converted, one.lost, one.entries) for one in prospects(filled, SIZES)]
        assert told == [("flows4", True, "", 20)]
        with caplog.at_level(logging.INFO):
            assert pin_empty_maps(filled) == frozenset()
        assert "20 entries converted" in caplog.text
        other = replace(ours, **VERSIONS[change])
        common = set(other.value.names or ()) & set(ours.value.names or ())
        there = contents(filled, other)
        assert {key: {name: one[name] for name in common} for key, one in there.items()} == {
            key: {name: one[name] for name in common} for key, one in before.items()
        }
        assert [*prospects(filled, SIZES)] == []
    assert pin_empty_maps(filled) == frozenset()
    assert contents(filled, ours) == before  # a field that was gone meanwhile is 0, as it was
    assert count(filled, "vips4") == 10


def test_a_number_that_is_too_large_for_its_field_is_lost_and_told(
    filled: Pins, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with KernelMaps(filled.maps) as maps:
        keys, values = maps.read("flows4")
        values["service"][:3] = 70_000
        maps.update("flows4", keys, values)
    with_flows(monkeypatch, VERSIONS["a field is narrowed"])
    pin_empty_maps(filled)
    assert "map flows4: 3 entries do not fit its layout and are lost" in caplog.text
    assert len(contents(filled, replace(MAP_SPECS["flows4"], **VERSIONS["a field is narrowed"]))) == 17


def test_what_cannot_be_converted_is_said_before(filled: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    with_flows(monkeypatch, flows_as(changed(FLOW[4], "src", "V16")))
    (told,) = prospects(filled, SIZES)
    assert (told.name, told.converted, told.entries) == ("flows4", False, 20)
    assert told.lost == "it has another layout: src: >u4 has become |V16"
    assert pin_empty_maps(filled) == {"flows4"}


def test_a_layout_that_nobody_has_described_is_lost(filled: Pins, monkeypatch: pytest.MonkeyPatch) -> None:
    """As that of version 0.1.0, which leaves no map `layouts`."""
    filled.layouts.unlink()
    with_flows(monkeypatch, VERSIONS["a field is added"])
    (told,) = prospects(filled, SIZES)
    assert (told.name, told.lost) == ("flows4", "it has another layout, which is not described")
    assert pin_empty_maps(filled) == {"flows4"}


def test_what_version_0_1_0_would_lose_is_said_before_going_back(
    filled: Pins, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its flows have the layout that there is, but fewer ways, and other SNAT ports."""
    assert not [one for one in prospects_in(filled, "0.1.0") if one.name.startswith("flows")]
    with KernelMaps(filled.maps) as maps:
        keys, values = maps.read("flows4")
        values["path"][:4] = FlowPath.LOOPBACK
        values["path"][4:10] = FlowPath.FORWARD
        keys["direction"][7:10] = Direction.REPLY
        values["sport"][4:7] = 61_000, 1024, 29_999
        keys["dport"][7:10] = 65_535, 1024, 29_999
        maps.update("flows4", keys, values)
    told = {one.name: one for one in prospects_in(filled, "0.1.0")}
    assert (told["flows4"].entries, told["flows4"].partly) == (8, True)
    assert {"settings4", "fragments6"} < told.keys()
    assert "vips4" not in told
    with_flows(monkeypatch, VERSIONS["a field is added"])
    pin_empty_maps(filled)
    told = {one.name: one for one in prospects_in(filled, "0.1.0")}
    assert (told["flows4"].lost, told["flows4"].partly) == (
        "0.1.0 has another layout, and converts nothing",
        False,
    )


@pytest.mark.parametrize("count", [0, 1, 3])
def test_fields_of_several_parts_are_converted_in_tables_of_every_size(count: int) -> None:
    rows = np.zeros(count, [("a", "u4", (2,)), ("b", [("c", "u8")], (2,)), ("none", "u1", (0,))])
    rows["a"], rows["b"]["c"] = 70_000, 70_000
    into, whole = conversion.convert(rows, np.dtype([("b", [("c", "u4")], (2,)), ("none", "u2", (0,))]))
    assert into["b"]["c"].tolist() == [[70_000, 70_000]] * count
    assert whole.tolist() == [True] * count
    _, whole = conversion.convert(rows, np.dtype([("a", "u2", (2,))]))
    assert whole.tolist() == [False] * count
