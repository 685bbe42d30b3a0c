# SPDX-License-Identifier: Apache-2.0
"""What the agent writes into the map ``settings`` while it runs."""

from __future__ import annotations

from lb.datapath.attach.settings import write_time
from lb.datapath.maps.layouts import FAMILIES
from tests.fake_maps import FakeMaps

HOUR_NS = 3600 * 10**9


def test_the_time_of_day_is_written_when_somebody_has_set_it() -> None:
    maps = FakeMaps()
    write_time(maps, HOUR_NS)
    maps.writes.clear()
    write_time(maps, HOUR_NS + 1000)
    assert maps.writes == [], "the two clocks are not read at the same instant"
    write_time(maps, 2 * HOUR_NS)
    assert [int(maps.array(f"settings{version}")["wall_ns"][0]) for version in FAMILIES] == [2 * HOUR_NS] * 2
