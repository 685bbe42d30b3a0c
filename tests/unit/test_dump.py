# SPDX-License-Identifier: Apache-2.0
"""The dump and its three forms; the reconciler fills Python's maps, and the tests those of the kernel."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from lb.cli.forms import as_ipvsadm, as_objects, as_table
from lb.config import Config
from lb.datapath.attach.settings import write_settings
from lb.datapath.maps.layouts import (
    AFFINITY,
    AFFINITY_KEY,
    COUNTER,
    FLOW,
    FLOW_KEY,
    HOOKS,
    ID,
    REASONS,
    REASONS_PER_HOOK,
    Direction,
    FlowState,
    pack_address,
)
from lb.datapath.sync.tables import table_rows
from lb.datapath.view.dump import SECTIONS, dump
from lb.model import ObjectKey, Protocol, TrafficPolicy
from lb.plan.types import BackendState, VipKind
from tests.fake_maps import FakeMaps
from tests.unit.plan_builders import NODE, backend, port_plan, service_plan, vip_key
from tests.unit.reconcile_bench import Bench

SECOND = 1_000_000_000
NOW = 1_000 * SECOND
TCP, UDP = Protocol.TCP, Protocol.UDP
WEB = service_plan(
    "web",
    port_plan(
        ["10.66.13.240:80", "9.9.9.9:80"],
        [backend("10.0.2.10:8080", "node2"), backend("10.0.1.9:8080", NODE)],
        draining=[backend("10.0.2.11:8080", "node2", BackendState.TERMINATING)],
        affinity_seconds=10800,
    ),
)
DNS = service_plan(
    "dns", port_plan(["10.66.0.53:53"], ["192.0.2.53:53"], name="dns", protocol=UDP, kind=VipKind.EXTERNAL_IP)
)
EMPTY = service_plan("empty", port_plan(["10.66.0.9:80"], [], kind=VipKind.LOAD_BALANCER))


@pytest.fixture
def bench() -> Bench:
    bench = Bench()
    write_settings(bench.maps, Config())
    bench.apply(WEB, DNS, EMPTY)
    return bench


def shown(maps: FakeMaps, *sections: str, service: str = "") -> dict[str, list[dict[str, Any]]]:
    key = ObjectKey(*service.split("/")) if service else None
    found: dict[str, list[dict[str, Any]]] = json.loads(
        json.dumps(as_objects(dump(maps, NOW, sections or None, key)))
    )
    return found


def ends(*texts: str) -> list[tuple[int | bytes, int]]:
    """Return addresses and ports as the maps have them."""
    return [(pack_address(one.address), one.port) for one in map(backend, texts)]


def add_flow(
    bench: Bench,
    client: str,
    vip: str,
    to: str,
    *,
    source: str = "",
    protocol: Protocol = TCP,
    state: FlowState = FlowState.ESTABLISHED,
    idle: float = 0,
    direction: Direction = Direction.FORWARD,
) -> None:
    """Add one direction of a connection, as the kernel notes it."""
    version = vip_key(vip).address.version
    (src, sport), (dst, dport), (new_src, new_sport), (new_dst, new_dport) = ends(
        client, vip, source or client, to
    )
    key = np.array([(src, dst, sport, dport, protocol, direction, (0, 0))], FLOW_KEY[version])
    service = int(bench.row(vip).service) if protocol is TCP else 0
    last_seen = NOW - int(idle * SECOND)
    value = (
        *(new_src, new_dst, new_sport, new_dport),
        *(service, 1, 1, state, 0, 0, 0, 0, last_seen),
    )
    bench.maps.update(f"flows{version}", key, np.array([value], FLOW[version]))


def add_affinity(bench: Bench, client: str, slot: int, generation: int, vip: str = "9.9.9.9:80") -> None:
    version = vip_key(vip).address.version
    ((address, _),) = ends(f"{client}:0")
    key = np.array([(address, bench.row(vip).service)], AFFINITY_KEY[version])
    value = np.array([(NOW - 90 * SECOND, slot, generation)], AFFINITY)
    bench.maps.update(f"affinity{version}", key, value)


def test_vips_are_in_the_order_of_numbers_with_their_backends(bench: Bench) -> None:
    vips = shown(bench.maps, "vips")["vips"]
    assert [(vip["address"], vip["protocol"], vip["service"], vip["kind"]) for vip in vips] == [
        ("9.9.9.9", "TCP", "default/web", "clusterIP"),
        ("10.66.0.9", "TCP", "default/empty", "loadBalancer"),
        ("10.66.0.53", "UDP", "default/dns", "externalIP"),
        ("10.66.13.240", "TCP", "default/web", "clusterIP"),
    ]
    assert vips[1]["backends"] == []
    assert vips[3] == {
        "address": "10.66.13.240",
        "port": 80,
        "protocol": "TCP",
        "service": "default/web",
        "port_name": "http",
        "kind": "clusterIP",
        "affinity_seconds": 10800,
        "backends": [
            {"address": "10.0.1.9", "port": 8080, "node": "node1", "state": "active"},
            {"address": "10.0.2.10", "port": 8080, "node": "node2", "state": "active"},
            {"address": "10.0.2.11", "port": 8080, "node": "node2", "state": "terminating"},
        ],
    }
    assert vips[2]["backends"][0]["node"] == ""


def test_backends(bench: Bench) -> None:
    backends = shown(bench.maps, "backends")["backends"]
    assert [(b["service"], b["address"], b["local"], b["generation"]) for b in backends] == [
        ("default/dns", "192.0.2.53", False, 1),
        ("default/web", "10.0.1.9", True, 1),
        ("default/web", "10.0.2.10", False, 1),
        ("default/web", "10.0.2.11", False, 1),
    ]
    assert len({b["id"] for b in backends}) == 4


@pytest.mark.parametrize(
    ("protocol", "state", "word"),
    [
        (TCP, FlowState.NEW, "syn_sent"),
        (TCP, FlowState.ESTABLISHED, "established"),
        (TCP, FlowState.CLOSING, "closing"),
        (TCP, FlowState.CLOSED, "closed"),
        (UDP, FlowState.NEW, "new"),
        (UDP, FlowState.ESTABLISHED, "established"),
    ],
)
def test_flow_states_have_the_words_of_their_protocol(
    bench: Bench, protocol: Protocol, state: FlowState, word: str
) -> None:
    client, vip, to = "192.0.2.7:40000", "9.9.9.9:80", "10.0.1.9:8080"
    add_flow(bench, client, vip, to, protocol=protocol, state=state, idle=1.5)
    assert shown(bench.maps, "flows")["flows"] == [
        {
            "protocol": protocol.name,
            "client": client,
            "vip": vip,
            "backend": to,
            "state": word,
            "idle_seconds": 1.5,
        }
    ]


def test_flows_show_snat_and_only_the_clients_direction(bench: Bench) -> None:
    add_flow(bench, "192.0.2.7:9999", "9.9.9.9:80", "10.0.2.10:8080", source="192.0.2.1:61000")
    add_flow(bench, "10.0.2.10:8080", "9.9.9.9:80", "192.0.2.7:9999", direction=Direction.REPLY)
    add_flow(bench, "20.0.0.1:5", "9.9.9.9:80", "10.0.1.9:8080")
    add_flow(bench, "20.0.0.1:40", "9.9.9.9:80", "10.0.1.9:8080")
    flows = shown(bench.maps, "flows")["flows"]
    assert [flow["client"] for flow in flows] == ["20.0.0.1:5", "20.0.0.1:40", "192.0.2.7:9999"]
    assert [flow.get("snat") for flow in flows] == [None, None, "192.0.2.1:61000"]


def test_what_is_forgotten_is_not_shown(bench: Bench) -> None:
    add_flow(bench, "192.0.2.7:9999", "9.9.9.9:80", "10.0.1.9:8080", state=FlowState.NEW, idle=61)
    add_affinity(bench, "192.0.2.7", 1, 1, "10.66.0.9:80")  # of a Service without affinity
    assert shown(bench.maps, "flows", "affinity") == {"flows": [], "affinity": []}


def test_affinity_names_the_backend_while_it_lives(bench: Bench) -> None:
    slot = int(table_rows(bench.maps)[bench.row("9.9.9.9:80").inside.offset])
    add_affinity(bench, "192.0.2.7", slot, 1)
    add_affinity(bench, "20.0.0.1", slot, 2)  # an earlier or later use of the slot
    add_affinity(bench, "3.3.3.3", 77, 1)  # a free slot
    at = bench.maps.array("backends4")[slot]
    head = {"service": "default/web", "port_name": "http"}
    assert shown(bench.maps, "affinity")["affinity"] == [
        {"client": "3.3.3.3", **head, "backend": "", "idle_seconds": 90.0},
        {"client": "20.0.0.1", **head, "backend": "", "idle_seconds": 90.0},
        {
            "client": "192.0.2.7",
            **head,
            "backend": f"{backend('0.0.0.0:1').address + int(at['address'])}:8080",
            "idle_seconds": 90.0,
        },
    ]


def test_counters_that_are_not_zero_over_all_cpus(bench: Bench) -> None:
    hook, reason = len(HOOKS) - 1, len(REASONS) - 1
    values = np.array([[(3, 300), (4, 44)]], COUNTER)
    bench.maps.update("reasons", np.array([hook * REASONS_PER_HOOK + reason], ID), values)
    assert shown(bench.maps, "counters")["counters"] == [
        {
            "hook": HOOKS[hook][0],
            "reason": REASONS[reason][0],
            "packets": 7,
            "bytes": 344,
            "meaning": REASONS[reason][1],
        }
    ]


def test_sections_and_service_filter(bench: Bench) -> None:
    add_flow(bench, "192.0.2.7:40000", "9.9.9.9:80", "10.0.1.9:8080")
    add_affinity(bench, "192.0.2.7", 1, 1)
    assert (
        tuple(shown(bench.maps))
        == SECTIONS
        == ("vips", "addresses", "backends", "flows", "affinity", "counters", "announced")
    )
    web = shown(bench.maps, service="default/web")
    assert [len(web[name]) for name in SECTIONS] == [2, 0, 3, 1, 1, 0, 0]
    dns = shown(bench.maps, service="default/dns")
    assert [len(dns[name]) for name in SECTIONS] == [1, 0, 1, 0, 0, 0, 0]
    assert list(shown(bench.maps, "flows", "vips")) == ["vips", "flows"]


def test_names_that_are_missing_are_said_to_be_unknown(bench: Bench) -> None:
    for name in ("services", "nodes"):
        bench.maps.delete(name, bench.maps.read(name)[0])
    vip = shown(bench.maps, "vips")["vips"][0]
    assert vip["service"] == "unknown"
    assert vip["backends"][0]["node"] == "unknown"


def test_a_backend_that_takes_over_as_the_last_one_has_weight(bench: Bench) -> None:
    last = backend("10.0.2.11:8080", "node2", BackendState.TERMINATING)
    bench.apply(service_plan("web", port_plan(["10.66.13.240:80"], [last])))
    assert as_ipvsadm(dump(bench.maps, NOW, ["vips"], WEB.key)) == (
        "-A -t 10.66.13.240:80 -s mh\n-a -t 10.66.13.240:80 -r 10.0.2.11:8080 -m -w 1\n"
    )


def test_ipvsadm_form_can_be_grepped_for_the_address(bench: Bench) -> None:
    text = as_ipvsadm(dump(bench.maps, NOW))
    assert [line for line in text.splitlines() if "10.66.13.240" in line] == [
        "-A -t 10.66.13.240:80 -s mh -p 10800",
        "-a -t 10.66.13.240:80 -r 10.0.1.9:8080 -m -w 1",
        "-a -t 10.66.13.240:80 -r 10.0.2.10:8080 -m -w 1",
        "-a -t 10.66.13.240:80 -r 10.0.2.11:8080 -m -w 0",
    ]
    assert "-A -u 10.66.0.53:53 -s mh\n-a -u 10.66.0.53:53 -r 192.0.2.53:53 -m -w 1\n" in text


def test_table_form(bench: Bench) -> None:
    add_flow(bench, "192.0.2.7:40000", "9.9.9.9:80", "10.0.1.9:8080", idle=2.25)
    assert as_table(dump(bench.maps, NOW, ["vips", "flows"], WEB.key)) == (
        "vips\n"
        "VIP              PROTOCOL  KIND       SERVICE      PORT NAME  AFFINITY"
        "  BACKEND         NODE   STATE\n"
        + "".join(
            f"{vip:<15}  TCP       clusterIP  default/web  http       10800s    {rest}\n"
            for vip in ("9.9.9.9:80", "10.66.13.240:80")
            for rest in (
                "10.0.1.9:8080   node1  active",
                "10.0.2.10:8080  node2  active",
                "10.0.2.11:8080  node2  terminating",
            )
        )
        + "\nflows\n"
        "PROTOCOL  CLIENT           VIP         BACKEND        SNAT  STATE        IDLE\n"
        "TCP       192.0.2.7:40000  9.9.9.9:80  10.0.1.9:8080  -     established  2.2s\n"
    )


SIX = service_plan(
    "web",
    port_plan(
        ["[fd00::a]:80", "fd00::a"], [backend("[fd00:1::9]:8080", NODE)], draining=["[fd00:2::7]:8080"]
    ),
    port_plan(
        ["[fd00::a]:2905", "[2001:db8::7]:2905"], ["[fd00:1::9]:2905"], name="s7", protocol=Protocol.SCTP
    ),
)


def test_dual_stack_dumps_ipv4_before_ipv6(bench: Bench) -> None:
    bench.apply(service_plan("web", *WEB.ports, *SIX.ports))
    vips = [(vip["address"], vip["port"], vip["protocol"]) for vip in shown(bench.maps, "vips")["vips"]]
    assert vips == [
        ("9.9.9.9", 80, "TCP"),
        ("10.66.0.9", 80, "TCP"),
        ("10.66.0.53", 53, "UDP"),
        ("10.66.13.240", 80, "TCP"),
        ("2001:db8::7", 2905, "SCTP"),
        ("fd00::a", 80, "TCP"),
        ("fd00::a", 2905, "SCTP"),
    ]
    found = shown(bench.maps, "backends", service="default/web")["backends"]
    assert [(one["address"], one["port_name"]) for one in found] == [
        ("10.0.1.9", "http"),
        ("10.0.2.10", "http"),
        ("10.0.2.11", "http"),
        ("fd00:1::9", "http"),
        ("fd00:2::7", "http"),
        ("fd00:1::9", "s7"),
    ]


def test_cluster_ip_of_ipv6_and_sctp_in_the_ipvsadm_form(bench: Bench) -> None:
    bench.apply(SIX)
    assert as_ipvsadm(dump(bench.maps, NOW, ["vips"], SIX.key)) == (
        "-A --sctp-service [2001:db8::7]:2905 -s mh\n"
        "-a --sctp-service [2001:db8::7]:2905 -r [fd00:1::9]:2905 -m -w 1\n"
        "-A -t [fd00::a]:80 -s mh\n"
        "-a -t [fd00::a]:80 -r [fd00:1::9]:8080 -m -w 1\n"
        "-a -t [fd00::a]:80 -r [fd00:2::7]:8080 -m -w 0\n"
        "-A --sctp-service [fd00::a]:2905 -s mh\n"
        "-a --sctp-service [fd00::a]:2905 -r [fd00:1::9]:2905 -m -w 1\n"
    )


def test_flows_and_affinity_of_ipv6(bench: Bench) -> None:
    web, signalling = SIX.ports
    bench.apply(replace(SIX, ports=(replace(web, affinity_seconds=10800), signalling)))
    vip, client = "[fd00::a]:80", "[2001:db8::77]:40000"
    add_flow(bench, client, vip, "[fd00:1::9]:8080", source="[2001:db8::1]:61000")
    add_flow(bench, "20.0.0.1:5", "10.66.0.9:80", "10.0.1.9:8080")
    flows = shown(bench.maps, "flows")["flows"]
    assert [flow["client"] for flow in flows] == ["20.0.0.1:5", client]
    assert (flows[1]["vip"], flows[1]["backend"], flows[1]["snat"]) == (
        vip,
        "[fd00:1::9]:8080",
        "[2001:db8::1]:61000",
    )
    slot = int(table_rows(bench.maps)[bench.row(vip).inside.offset])
    add_affinity(bench, "2001:db8::77", slot, 1, vip)
    (entry,) = shown(bench.maps, "affinity")["affinity"]
    assert (entry["client"], entry["backend"]) == ("2001:db8::77", "[fd00:1::9]:8080")


def test_ping_addresses_as_a_whole_are_a_section_of_their_own(bench: Bench) -> None:
    shared = port_plan(
        ["203.0.113.7", "203.0.113.7:80"],
        ["10.0.2.10:80"],
        kind=VipKind.LOAD_BALANCER,
        outside=TrafficPolicy.LOCAL,
        source_ranges=["192.0.2.0/24", "10.0.0.0/8"],
    )
    bench.apply(SIX, service_plan("dns", shared), service_plan("empty", port_plan(["10.66.0.9"], [])))
    assert shown(bench.maps, "addresses")["addresses"] == [
        {"address": "10.66.0.9", "kind": "clusterIP", "service": "default/empty", "answers": []},
        {
            "address": "203.0.113.7",
            "kind": "loadBalancer",
            "service": "default/dns",
            "answers": ["inside"],
            "source_ranges": ["10.0.0.0/8", "192.0.2.0/24"],
        },
        {
            "address": "fd00::a",
            "kind": "clusterIP",
            "service": "default/web",
            "answers": ["inside", "outside"],
        },
    ]
    assert "203.0.113.7 " not in as_ipvsadm(dump(bench.maps, NOW))
    assert [vip["port"] for vip in shown(bench.maps, "vips", service="default/dns")["vips"]] == [80]
    assert as_table(dump(bench.maps, NOW, ["addresses"])) == (
        "addresses\n"
        "ADDRESS      KIND          SERVICE        ANSWERS PING FROM  SOURCE RANGES\n"
        "10.66.0.9    clusterIP     default/empty  -                  -\n"
        "203.0.113.7  loadBalancer  default/dns    inside             10.0.0.0/8,192.0.2.0/24\n"
        "fd00::a      clusterIP     default/web    inside,outside     -\n"
    )


def test_empty_maps_are_empty_sections() -> None:
    maps = FakeMaps()
    assert shown(maps) == {name: [] for name in SECTIONS}
    assert as_ipvsadm(dump(maps, NOW)) == ""
    assert as_table(dump(maps, NOW, ["affinity"])) == (
        "affinity\nCLIENT  SERVICE  PORT NAME  BACKEND  IDLE\n"
    )
