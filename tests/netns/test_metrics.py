"""Metrics of agents that run: each answers on loopback of its own node, and tells what the kernel did."""

from __future__ import annotations

import time

from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from tests.netns.waiting import dumped, scrape


def test_metrics_of_an_agent(lab: Lab) -> None:
    before = scrape(lab, "node1")
    request = ["curl", "-sS", "-m", "5", f"http://{node_address('node1')}:30123/"]
    assert lab.run("client", request).returncode == 0
    after = scrape(lab, "node1")
    collectors = {name: value for name, value in after.items() if name[0] == "lbctl_collector_success"}
    assert set(collectors.values()) == {1}
    assert after["lbctl_services",] > 0
    assert {after["lbctl_problems", kind] for kind in ("service", "hook", "conflict")} == {0}
    assert after["lbctl_sync_duration_seconds_count",] >= 1
    assert after["process_start_time_seconds",] <= after["lbctl_last_sync_timestamp_seconds",] <= time.time()
    in_map = [one for name in ("vips", "addresses") for one in dumped(lab, "node1", name)[name]]
    assert after["lbctl_map_entries", "vips4"] == sum("." in one["address"] for one in in_map)
    new = [("lbctl_hook_packets_total", "TC_UPLINK_IN", reason) for reason in ("NEW_LOCAL", "NEW_REMOTE")]
    assert sum(after[name] for name in new) == sum(before[name] for name in new) + 1
    for name, value in before.items():
        if name[0].endswith("_total"):
            assert after[name] >= value, name


def test_every_node_has_its_own(lab: Lab) -> None:
    starts = [scrape(lab, node)["process_start_time_seconds",] for node in ("node1", "node2")]
    rooms = [scrape(lab, node)["lbctl_map_capacity", "vips4"] for node in ("node1", "node2")]
    assert min(starts) > 0
    assert rooms == [65536, 65536]
