# SPDX-License-Identifier: Apache-2.0
"""Which flows and affinity entries live."""

from __future__ import annotations

import numpy as np
import pytest

from lb.config import Config, Timeouts
from lb.datapath.attach.settings import write_settings
from lb.datapath.maps import layouts
from lb.datapath.maps.expiry import idle_limits, live_affinity, live_connections, live_flows
from lb.datapath.maps.layouts import FAMILIES, Direction, FlowSign, FlowState
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


@pytest.mark.parametrize("version", FAMILIES)
def test_a_connection_that_begins_is_one_with_a_reply_half_alone(maps: FakeMaps, version: int) -> None:
    """Of ports 1 to 3 the first has both halves, the second has lost one, the third has had no answer yet."""
    keys, values = np.zeros(4, layouts.FLOW_KEY[version]), np.zeros(4, layouts.FLOW[version])
    keys["direction"] = [Direction.FORWARD, *[Direction.REPLY] * 3]
    keys["sport"], keys["dport"] = [1, 8080, 8080, 8080], [80, 1001, 1002, 1003]
    values["sport"], values["dport"] = [1001, 80, 80, 80], [8080, 1, 2, 3]
    keys["protocol"], values["last_seen"] = Protocol.TCP, NOW
    values["state"][2], values["fins"][3] = FlowState.ESTABLISHED, FlowSign.HALF_OPEN
    maps.update(f"flows{version}", keys, values)
    keys, values = live_connections(maps, version, NOW)
    assert [row.item()[2:6] for row in keys] == [(port, 80, Protocol.TCP, 0) for port in (1, 3)]
    assert [row.item()[2:4] for row in values] == [(port, 8080) for port in (1001, 1003)]
