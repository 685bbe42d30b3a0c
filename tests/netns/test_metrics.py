# SPDX-License-Identifier: Apache-2.0
"""Metrics of agents that run: each answers on loopback of its own node, and tells what the kernel did."""

from __future__ import annotations

import contextlib
import json
import re
import time
from dataclasses import asdict
from ipaddress import ip_address
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from lb.bgp.metrics import SpeakerMetrics
from lb.bgp.peers import Peer
from lb.bgp.status import PeerNow, SpeakerStatus
from lb.datapath.maps.layouts import REASONS
from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from lb.segment.speaker import Figures
from lb.served import metrics
from lb.served.service_metrics import service_metrics
from tests.deploy.conftest import ROOT
from tests.netns.waiting import METRICS, dumped, scrape
from tests.unit.figures_bench import Node
from tests.unit.test_metrics import SERVICES


def test_metrics_of_an_agent(lab: Lab) -> None:
    before = scrape(lab, "node1")
    request = ["curl", "-sS", "-m", "5", f"http://{node_address('node1')}:30123/"]
    assert lab.run("client", request).returncode == 0
    after = scrape(lab, "node1")
    collectors = {name: value for name, value in after.items() if name[0] == "lbctl_collector_success"}
    assert set(collectors.values()) == {1}
    assert after["lbctl_services",] > 0
    assert {after["lbctl_problems", kind] for kind in ("service", "hook", "conflict", "cutover")} == {0}
    assert after["lbctl_sync_duration_seconds_count",] >= 1
    assert after["process_start_time_seconds",] <= after["lbctl_last_sync_timestamp_seconds",] <= time.time()
    in_map = [one for name in ("vips", "addresses") for one in dumped(lab, "node1", name)[name]]
    assert after["lbctl_map_entries", "vips4"] == sum("." in one["address"] for one in in_map)
    new = [("lbctl_hook_packets_total", "TC_UPLINK_IN", reason) for reason in ("NEW_LOCAL", "NEW_REMOTE")]
    assert sum(after[name] for name in new) == sum(before[name] for name in new) + 1
    for name, value in before.items():
        if name[0].endswith("_total"):
            assert after[name] >= value, name


def test_the_mode_is_told_where_kube_proxy_tells_its_own(lab: Lab) -> None:
    """Kubernetes' end-to-end test "should check kube-proxy urls" asks for it."""
    asked = lab.run("node1", ["curl", "-sS", "-m", "5", "-i", "http://localhost:10249/proxyMode"])
    assert asked.stdout.startswith("HTTP/1.1 200 OK")
    assert asked.stdout.endswith("ebpf")


def test_every_node_has_its_own(lab: Lab) -> None:
    starts = [scrape(lab, node)["process_start_time_seconds",] for node in ("node1", "node2")]
    rooms = [scrape(lab, node)["lbctl_map_capacity", "vips4"] for node in ("node1", "node2")]
    assert min(starts) > 0
    assert rooms == [65536, 65536]


# The dashboard and the page ask for what agents really give ----------------------------------------------

DASHBOARD = json.loads((ROOT / "deploy" / "grafana" / "lbctl.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def test_the_dashboard_asks_for_metrics_and_labels_that_there_are(lab: Lab) -> None:
    done = lab.run("node1", ["curl", "-sSf", "-m", "10", METRICS])
    families = list(text_string_to_metric_families(done.stdout))
    families += metrics.source_metrics((SERVICES,))  # an agent of manifests has none of them
    families += metrics.audit_metrics({"vips4": 0})  # nor these, before it has looked
    families += metrics.announce_metrics(
        asdict(Figures(owned=1, taken=1, ended=0, members=2, rivals=0, unanswered=0))
    )
    peer = Peer("tor", ip_address("192.168.77.1"), 64500, 64512)
    families += SpeakerMetrics(SpeakerStatus(peers={"tor": PeerNow(peer)})).collect()
    counted = Node()
    counted.busy()  # and what has not been dropped yet is not there
    families += service_metrics(lambda: contextlib.nullcontext(counted.maps), 9, 9)
    samples = [one for each in families for one in each.samples]
    labels: dict[str, set[str]] = {}
    for one in samples:
        labels.setdefault(one.name, {"instance"}).update(one.labels)
    for panel in PANELS:
        for target in panel["targets"]:
            expression = target["expr"]
            asked = re.findall(r"\b((?:lbctl|process)_\w+)(?:\{([^}]*)\})?", expression)
            assert asked, panel["title"]
            known: set[str] = {"le"} if "_bucket" in expression else set()
            for name, matchers in asked:
                assert name in labels, f"{panel['title']}: {name}"
                known |= labels[name]
                assert set(re.findall(r"(\w+)\s*[=!]~?\"", matchers)) <= labels[name], expression
            grouped = re.findall(r"\b(?:by|on) \(([^)]*)\)", expression)
            assert {word.strip() for words in grouped for word in words.split(",")} <= known, expression
            assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= known, panel["title"]
            for words in re.findall(r'reason=~"([^"]*)"', expression):
                for word in words.split("|"):
                    assert [name for name, _ in REASONS if re.fullmatch(word, name)], word


def test_the_dashboard_is_whole() -> None:
    idents = [panel["id"] for panel in DASHBOARD["panels"]]
    assert len(idents) == len(set(idents))
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    variables = {one["name"] for one in DASHBOARD["templating"]["list"]}
    for word in re.findall(r"\$\{?(\w+)", json.dumps(DASHBOARD)):
        assert word.startswith("__") or word in variables, word


def asked(lab: Lab, path: str) -> Any:
    done = lab.run("node1", ["curl", "-sSf", "-m", "10", f"http://127.0.0.1:10249{path}"])
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_the_page_of_an_agent_has_its_hooks_services_and_ways(lab: Lab) -> None:
    page = lab.run("node1", ["curl", "-sSi", "-m", "10", "http://127.0.0.1:10249/"]).stdout
    assert "Content-Security-Policy: default-src 'none'" in page
    state = asked(lab, "/api/state")
    assert {hook["program"] for hook in state["hooks"]} >= {"lb_tc_uplink_in", "lb_tc_pod_in"}
    assert state["agent"]["running"] is True
    service = asked(lab, "/api/service?service=default/kubia")
    outside, pod, host = service["ports"][0]["paths"][0]
    assert outside["hooks"] == ["lb_tc_uplink_in at eth0, tc ingress"]
    assert pod["hooks"][0].startswith("lb_tc_pod_in at ")
    assert host["hooks"] == ["lb_sock_connect at the socket"]
    assert sum(way["share"] for way in outside["ways"]) == pytest.approx(1)
    assert {port["service"] for port in asked(lab, "/api/services?q=kubia")["ports"]} >= {"default/kubia"}
