# SPDX-License-Identifier: Apache-2.0
"""Which flows and affinity entries live."""

from __future__ import annotations

import numpy as np
import pytest

from lb.config import Config, Timeouts
from lb.datapath.attach.settings import write_settings
from lb.datapath.maps import layouts
from lb.datapath.maps.expiry import idle_limits, live_affinity, live_flows
from lb.datapath.maps.layouts import FAMILIES, FlowState
from lb.model import Protocol
from tests.fake_maps import FakeMaps

SECOND = 1_000_000_000
NOW = 10_000 * SECOND
TIMEOUTS = Timeouts(tcp_syn=1, tcp_established=2, tcp_closing=3, udp_new=4, udp=5, sctp=6)


@pytest.fixture
def maps() -> FakeMaps:
    maps = FakeMaps()
    write_settings(maps, Config(timeouts=TIMEOUTS))
    return maps


@pytest.mark.parametrize(
    ("protocol", "seconds"),
    [(Protocol.TCP, [1, 2, 3, 3]), (Protocol.UDP, [4, 5, 5, 5]), (Protocol.SCTP, [1, 6, 3, 3])],
)
@pytest.mark.parametrize("version", FAMILIES)
def test_idle_limits_by_protocol_and_state(
    maps: FakeMaps, version: int, protocol: Protocol, seconds: list[int]
) -> None:
    keys, values = np.zeros(4, layouts.FLOW_KEY[version]), np.zeros(4, layouts.FLOW[version])
    keys["protocol"], values["state"] = protocol, list(FlowState)
    limits = idle_limits(maps.array(f"settings{version}")[0], keys, values)
    assert limits.tolist() == [each * SECOND for each in seconds]


@pytest.mark.parametrize("version", FAMILIES)
def test_what_has_run_out_is_not_among_the_living(maps: FakeMaps, version: int) -> None:
    keys, values = np.zeros(3, layouts.FLOW_KEY[version]), np.zeros(3, layouts.FLOW[version])
    keys["sport"], keys["protocol"] = [1, 2, 3], Protocol.UDP
    values["last_seen"] = [NOW - 5 * SECOND, NOW - 4 * SECOND, NOW + SECOND]
    maps.update(f"flows{version}", keys, values)
    vips, rows = np.zeros(1, layouts.VIP_KEY[version]), np.zeros(1, layouts.VIP)
    rows["service"], rows["affinity_seconds"] = 7, 60
    maps.update(f"vips{version}", vips, rows)
    clients, used = np.zeros(3, layouts.AFFINITY_KEY[version]), np.zeros(3, layouts.AFFINITY)
    clients["service"] = [7, 8, 9]
    used["last_used"] = [NOW - 59 * SECOND, NOW - SECOND, NOW - SECOND]
    maps.update(f"affinity{version}", clients, used)
    keys, values = live_flows(maps, version, NOW)
    assert sorted(zip(keys["sport"].tolist(), values["last_seen"].tolist(), strict=True)) == [
        (2, NOW - 4 * SECOND),
        (3, NOW + SECOND),
    ]
    keys, values = live_affinity(maps, version, NOW)
    assert keys["service"].tolist() == [7]
    assert values["last_used"].tolist() == [NOW - 59 * SECOND]
