# SPDX-License-Identifier: Apache-2.0
"""What the agent knows and no map holds: Services without a VIP, pods behind addresses."""

from __future__ import annotations

import json
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path

import pytest

from lb.cli import pods
from lb.cli.flows import of_pods
from lb.cli.flows import render as render_flows
from lb.cli.service import collect, render
from lb.datapath.view.dump import FlowEntry
from lb.kube import convert
from lb.model import (
    Endpoint,
    EndpointPort,
    EndpointSlice,
    ObjectKey,
    Protocol,
    Service,
    ServiceType,
    Upsert,
)
from lb.rundir import RunDir
from lb.served.http import routes
from lb.served.state_view import StateView
from lb.state import ClusterState
from tests.fake_maps import FakeMaps
from tests.unit.http_bench import serving

WEB = ObjectKey("default", "web")
SLICE = EndpointSlice(
    ObjectKey("default", "web-1"),
    WEB,
    (EndpointPort("http", Protocol.TCP, 8080), EndpointPort("dns", Protocol.UDP, 53)),
    (
        Endpoint(ip_address("10.244.1.2"), target="default/one"),
        Endpoint(ip_address("10.244.1.3")),
        Endpoint(ip_address("fd00:244::2"), target="default/one"),
        Endpoint(ip_address("192.0.2.11"), target="default/host"),
    ),
)
OTHER = replace(
    SLICE,
    key=ObjectKey("default", "other-1"),
    service=ObjectKey("default", "other"),
    ports=(EndpointPort("", Protocol.TCP, 9000),),
    endpoints=(Endpoint(ip_address("192.0.2.11"), target="default/other-host"),),
)
SERVICES = (
    Service(WEB, cluster_ips=(ip_address("10.96.0.1"),)),
    Service(ObjectKey("default", "db"), headless=True),
    Service(ObjectKey("default", "alias"), type=ServiceType.EXTERNAL_NAME, external_name="db.example.org"),
    Service(ObjectKey("default", "mesh"), proxied=False),
)


@pytest.fixture
def known() -> StateView:
    state = ClusterState()
    state.apply(Upsert(one) for one in (*SERVICES, SLICE, OTHER))
    return StateView(state)


def test_services_without_a_vip_are_listed_with_the_reason(known: StateView) -> None:
    assert known.unserved() == [
        {"service": "default/alias", "why": "ExternalName: DNS answers with db.example.org"},
        {"service": "default/db", "why": "headless: DNS answers with the pods' addresses"},
        {"service": "default/mesh", "why": "a label gives it to another proxy"},
    ]


def test_a_list_of_services_ends_with_those_that_have_no_vip(known: StateView) -> None:
    found = collect(FakeMaps(), {}, running=True)
    assert "without a VIP" not in render(found)
    text = render({**found, "unserved": known.unserved()})
    assert "without a VIP, as asked for:\n  default/alias  ExternalName: DNS answers with" in text
    many = [{"service": f"default/s{at}", "why": "headless"} for at in range(25)]
    assert render({**found, "unserved": many}).endswith("  and 5 more: -o json\n")


def test_what_an_agent_of_the_api_does_not_read_is_said() -> None:
    notes = {"settings": {"sources": ["kubernetes"]}}
    assert "--field-selector spec.clusterIP=None" in render(collect(FakeMaps(), notes, running=True))


def test_pods_are_known_by_socket_and_by_address_where_it_is_theirs_alone(known: StateView) -> None:
    every = known.pods({})
    assert every["10.244.1.2:8080"] == every["10.244.1.2:53"] == every["10.244.1.2"] == "default/one"
    assert every["[fd00:244::2]:8080"] == "default/one"
    assert (every["192.0.2.11:8080"], every["192.0.2.11:9000"]) == ("default/host", "default/other-host")
    assert "192.0.2.11" not in every  # two pods with the node's network
    assert known.pods({"service": "default/other"}) == {
        "192.0.2.11": "default/other-host",
        "192.0.2.11:9000": "default/other-host",
    }


def test_names_of_pods_come_with_the_slices_of_the_api() -> None:
    entry = {"addresses": ["10.244.1.2"], "targetRef": {"kind": "Pod", "namespace": "default", "name": "one"}}
    item = {
        "metadata": {
            "name": "web-1", "namespace": "default", "uid": "u", "resourceVersion": "1",
            "labels": {"kubernetes.io/service-name": "web"},
        },
        "addressType": "IPv4",
        "endpoints": [{"addresses": ["10.244.1.9"]}, entry, {"addresses": ["10.244.1.8"]}],
        "ports": [{"port": 8080}],
    }  # fmt: skip
    piece = convert.ENDPOINT_SLICES.read(json.dumps(item).encode()).resource
    assert isinstance(piece, EndpointSlice)
    assert [pod for _, pod in piece.named()] == ["", "default/one", ""]


def test_load_balancer_addresses_are_told_with_their_pool_and_why_there_is_none() -> None:
    def balanced(name: str, *addresses: str, note: str = "") -> Service:
        ips = tuple(map(ip_address, addresses))
        key = ObjectKey("shop", name)
        return Service(key, ServiceType.LOAD_BALANCER, load_balancer_ips=ips, balancer_note=note)

    state = ClusterState()
    told = balanced("told", "192.0.2.1", note="192.0.2.1 from pool edge")
    refused, waiting, by_hand = (
        balanced("refused", note="no"),
        balanced("waiting"),
        balanced("z", "192.0.2.2"),
    )
    state.apply([Upsert(each) for each in (told, refused, waiting, by_hand, Service(WEB))])
    found = StateView(state).balanced({})
    assert found[0] == {"service": "shop/refused", "addresses": [], "note": "no"}
    assert [each["service"] for each in found] == ["shop/refused", "shop/told", "shop/waiting", "shop/z"]
    assert StateView(state).balanced({"service": "shop/told"}) == [found[1]]
    empty = {"services": [], "unserved": [], "headless_unread": False, "conflicts": [], "refusals": []}
    assert render({**empty, "balanced": found}) == (
        render({**empty, "balanced": []})
        + "\nload-balancer addresses:\n  shop/refused  none: no\n  shop/told  192.0.2.1 from pool edge\n"
        "  shop/waiting  none: nobody has given it one\n"
    )


def test_a_command_asks_the_agent_for_pods(known: StateView, tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    assert pods.known(run_dir) == {}  # no agent runs
    with serving() as server, run_dir.lock():
        server.open((str(run_dir.socket_path), 0), routes(known.answers()), "lbctl")
        assert pods.known(run_dir, WEB)["10.244.1.2:8080"] == "default/one"


def test_who_is_not_known_is_asked_for_again_but_not_too_often() -> None:
    now, asked = [0.0], []

    def read() -> dict[str, str]:
        asked.append(now[0])
        return {"10.244.1.2:80": "default/one"} if now[0] else {}

    find = pods.Lookup(read, lambda: now[0])
    assert (find("10.244.1.2:80"), find("10.244.1.2:80"), asked) == ("", "", [0.0])
    now[0] = 10.0
    assert (find("10.244.1.2:80"), find("10.244.1.9:80"), asked) == ("default/one", "", [0.0, 10.0])


def test_flows_name_the_pods_at_both_ends() -> None:
    flow = FlowEntry("TCP", "10.244.1.2:40000", "10.96.0.1:80", "10.244.1.3:8080", "", "established", 61.4)
    found = {"10.244.1.2": "default/client", "10.244.1.3:8080": "default/web"}
    assert of_pods(flow, found) == {"pod": "default/web", "client_pod": "default/client"}
    text = render_flows([flow], found)
    assert text.splitlines()[0].split()[-3:] == ["POD", "CLIENT", "POD"]
    assert "default/web  default/client" in text
    assert "POD" not in render_flows([flow], {})
