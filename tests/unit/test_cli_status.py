# SPDX-License-Identifier: Apache-2.0
"""``lbctl status`` as text, and what it counts."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lb.cli.status import render as status_text
from lb.cli.tables import table
from lb.datapath.maps import layouts
from lb.datapath.maps.fill import map_fill
from lb.datapath.maps.layouts import BackendStateCode
from tests.fake_maps import FakeMaps


def test_map_fill_counts_what_is_used() -> None:
    maps = FakeMaps()
    maps.array("backends4")["state"][[1, 2, 9]] = BackendStateCode.ACTIVE
    keys = np.zeros(3, layouts.VIP_KEY[4])
    keys["address"] = [1, 2, 3]
    vips = np.zeros(3, layouts.VIP)
    vips["inside"]["offset"] = vips["outside"]["offset"] = [0, 0, 251]
    vips["inside"]["size"] = vips["outside"]["size"] = [251, 251, 1009]
    maps.update("vips4", keys, vips)
    maps.array("backends6")["state"][7] = BackendStateCode.TERMINATING
    vips["inside"] = (1260, 509)
    vips["outside"] = (0, 0)
    maps.update("vips6", np.zeros(1, layouts.VIP_KEY[6]), vips[:1])
    fill = {row.name: (row.entries, row.capacity) for row in map_fill(maps)}
    used = {"vips4": 3, "backends4": 3, "vips6": 1, "backends6": 1}
    assert fill == {
        name: (used.get(name, 0), capacity)
        for version in layouts.FAMILIES
        for name, capacity in (
            (f"ifaces{version}", 4096),
            (f"announced{version}", 4096),
            (f"rivals{version}", 256),
            (f"endpoints{version}", 8192),
            (f"hosts{version}", 8192),
            (f"host_addresses{version}", 8192),
            (f"vips{version}", 65536),
            (f"source_ranges{version}", 65536),
            (f"backends{version}", 131072),
            (f"flows{version}", 524293),
            (f"tags{version}", 2048),
            (f"fragments{version}", 8192),
            (f"pieces{version}", 512),
            (f"affinity{version}", 131075),
            (f"sockets{version}", 65536),
        )
    } | {
        "tables": (40 + 16, 262144),
        "former": (0, 8192),
        "services": (0, 65536),
        "nodes": (0, 16384),
    }


def a_status() -> dict[str, Any]:
    """Return a status with something of everything."""
    hook = {
        "interface": "eth0",
        "role": "uplink",
        "hook": "tc ingress",
        "program": "lb_tc_uplink_in",
        "program_id": 7,
    }
    return {
        "instance": "n1",
        "node": "node1",
        "problems": [
            {"text": "no agent runs", "next": "start it", "since": None},
            {
                "text": "service default/web: no room",
                "next": "raise the limit that it names, and no other: " + "so this is a long line " * 3,
                "since": "2020-01-01T00:00:00+00:00",
            },
        ],
        "problems_left_out": 3,
        "agent": {
            "running": False,
            "silent_seconds": None,
            "pid": None,
            "last_sync": "2020-01-01T00:00:00+00:00",
            "services": 2,
            "repairs": {
                "count": 2,
                "last": "2020-01-01T00:00:00+00:00",
                "what": "uplink eth0, tc ingress",
            },
        },
        "healthz": "0.0.0.0:10256",
        "drained_since": None,
        "health_check_node_ports": [
            {
                "service": "default/web",
                "port": 30500,
                "local_endpoints": 2,
                "addresses": ["192.0.2.11:30500", "[2001:db8::11]:30500"],
            },
            {"service": "default/dns", "port": 30501, "local_endpoints": 0, "addresses": []},
        ],
        "source": [
            {
                "resource": "services",
                "objects": 12,
                "unusable": 1,
                "contact": "2020-01-01T00:00:00+00:00",
                "failures": 3,
                "error": "GET /api/v1/services: 500 oops",
            },
            {
                "resource": "nodes",
                "objects": 0,
                "unusable": 0,
                "contact": None,
                "failures": 0,
                "error": "",
            },
        ],
        "hooks_elsewhere": None,
        "snat": {"first": 1024, "last": 29999, "ports": 28976, "elsewhere": 2, "exhausted": 7},
        "hooks": [
            {**hook, "why": "veth: XDP would turn off offload"},
            {**hook, "hook": "tc egress", "why": ""},
            *({**hook, "interface": f"veth{at}", "role": "pod", "why": ""} for at in range(3)),
            {**hook, "interface": "/sys/fs/cgroup", "role": "sockets", "hook": "connect4", "why": ""},
        ],
        "programs": [],
        "maps": [
            {"name": "vips4", "entries": 3, "capacity": 64, "when_full": "refused"},
            {"name": "vips6", "entries": 0, "capacity": 64, "when_full": "refused"},
            {"name": "flows4", "entries": 0, "capacity": 64, "when_full": "one goes", "evicted": 456},
        ],
    }


def plain(text: str) -> str:
    """Return a text without how long ago things were."""
    return re.sub(r"[0-9]+ d ago", "N d ago", text)


def test_status_as_text() -> None:
    text = plain(status_text(a_status()))
    assert text == (Path(__file__).parent / "texts" / "status.txt").read_text()


def test_status_with_programs_shows_every_hook_and_map() -> None:
    text = plain(status_text(a_status(), programs=True))
    assert text.endswith(
        "INTERFACE       ROLE     HOOK        PROGRAM          PROGRAM ID  WHY\n"
        "eth0            uplink   tc ingress  lb_tc_uplink_in           7  veth: XDP would turn off offload\n"
        "eth0            uplink   tc egress   lb_tc_uplink_in           7\n"
        "veth0           pod      tc ingress  lb_tc_uplink_in           7\n"
        "veth1           pod      tc ingress  lb_tc_uplink_in           7\n"
        "veth2           pod      tc ingress  lb_tc_uplink_in           7\n"
        "/sys/fs/cgroup  sockets  connect4    lb_tc_uplink_in           7\n"
        "\n"
        "NAME  ID  TAG  LOADED  BUILD\n"
        "\n"
        "NAME    ENTRIES  CAPACITY  WHEN FULL\n"
        "vips4         3        64  refused\n"
        "vips6         0        64  refused\n"
        "flows4        0        64  one goes\n"
    )


@pytest.mark.parametrize("width", [60, 80])
def test_status_fits_a_narrow_terminal(width: int) -> None:
    assert max(map(len, status_text(a_status(), width=width).splitlines())) <= width


def test_the_first_line_of_a_status_decides() -> None:
    well = {**a_status(), "problems": [], "problems_left_out": 0}
    assert status_text(well).startswith("ok: node1 (instance n1)\n\n")
    one = {**well, "problems": a_status()["problems"][:1]}
    assert status_text(one).startswith("1 problem: node1 (instance n1)\n- no agent runs\n  → start it\n\n")


def test_status_from_another_network_namespace_says_where_the_hooks_are() -> None:
    agent: dict[str, Any] = {"running": True, "silent_seconds": None, "pid": 77, "last_sync": None}
    parts: dict[str, Any] = {"hooks": [], "programs": [], "maps": []}
    parts |= {"healthz": None, "health_check_node_ports": []}
    parts["snat"] = {"first": 1, "last": 2, "ports": 2, "elsewhere": 0, "exhausted": 0}
    parts |= {"node": None, "problems": [], "problems_left_out": 0, "source": [], "agent": agent}
    text = status_text({"instance": "n1", "hooks_elsewhere": "nsenter …", **parts})
    assert text.startswith(
        "ok: n1\n\n"
        "agent      runs, process 77\n"
        "SNAT       ports 1-2, 2 for each remote backend; never exhausted\n"
        "hooks      in another network namespace: nsenter …\n\n"
    )


def test_a_table_sets_numbers_flush_right() -> None:
    assert table(("a", "b"), [("x", 1), ("long", 100)]) == "A       B\nx       1\nlong  100\n"
