# SPDX-License-Identifier: Apache-2.0
"""What the settings tell of SNAT: the range, the one before it, and the node's addresses."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from lb.config import SnatPorts
from lb.datapath.attach.snat import add_snat_sources, snat_range, write_snat_ports
from lb.datapath.maps.layouts import FAMILIES, SNAT_SOURCES
from tests.fake_maps import FakeMaps


def former(maps: FakeMaps) -> tuple[int, int]:
    row = maps.array("settings4")[0]
    return int(row["former_port_min"]), int(row["former_port_max"])


def test_the_default_has_as_many_ports_as_kube_proxy() -> None:
    ports = SnatPorts()
    assert ports.last - ports.first + 1 >= 28_000
    assert ports.last < 30_000  # NodePorts
    assert ports.first >= 1024


def test_a_range_that_changes_leaves_the_one_before_to_its_flows() -> None:
    maps = FakeMaps()
    row = maps.array("settings4")[:1]
    write_snat_ports(row, SnatPorts(2000, 2999))
    assert snat_range(maps) == (2000, 2999)
    assert former(maps) == (61_000, 65_535)  # of versions that had no such setting
    write_snat_ports(row, SnatPorts(2000, 2999))
    assert former(maps) == (61_000, 65_535)
    write_snat_ports(row, SnatPorts(5000, 5999))
    assert snat_range(maps) == (5000, 5999)
    assert former(maps) == (2000, 65_535)


@pytest.mark.parametrize("version", FAMILIES)
def test_the_nodes_addresses_gather_and_too_many_mean_any(version: int) -> None:
    maps = FakeMaps()
    many = [ip_address(f"192.0.2.{n}" if version == 4 else f"2001:db8::{n}") for n in range(1, 7)]
    row = maps.array(f"settings{version}")[0]
    add_snat_sources(maps, version, many[:2])
    add_snat_sources(maps, version, many[1:3])
    assert row["sources"] == 3
    rows = row["snat_sources"].tolist()
    assert len(set(rows)) == 3
    assert rows[3] == rows[0]  # what is compared with nothing else
    add_snat_sources(maps, version, many)
    assert row["sources"] > SNAT_SOURCES
    assert row["snat_sources"].tolist() == rows
    add_snat_sources(maps, version, many[:1])
    assert row["sources"] > SNAT_SOURCES
