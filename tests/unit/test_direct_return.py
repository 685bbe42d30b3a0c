# SPDX-License-Identifier: Apache-2.0
"""Direct return in Python: which Services have it, and what the programs are told of nodes and sets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest
from msgspec import structs

from lb.cli.settings import Given, build
from lb.config import Forward, Limits
from lb.datapath.maps.layouts import VipFlag
from lb.datapath.sync.direct_return import DirectReturn, clear_direct_return, read_entries
from lb.datapath.sync.former_sets import FormerSets, read_former
from lb.datapath.sync.ledger import Port, read_vips
from lb.datapath.sync.pools import Region
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.sync.tables import listed, table_rows
from lb.errors import ConfigError
from lb.model import Node, ObjectKey, Protocol, Service, ServicePort
from lb.plan import plan_service
from lb.plan.types import BackendState, ServicePlan, Topology
from tests.fake_maps import FakeMaps
from tests.unit.plan_builders import backend, port_plan

WEB = Service(
    ObjectKey("default", "web"),
    ports=(ServicePort("http", Protocol.TCP, 80, 8080),),
    cluster_ips=(ip_address("10.96.0.1"),),
)
NODE2 = Node("node2", (ip_address("192.0.2.2"), ip_address("192.0.2.12"), ip_address("2001:db8::2")))
HERE, THERE = "10.0.1.1:8080", "10.0.2.1:8080"


@pytest.mark.parametrize(
    ("setting", "asked", "direct", "refused"),
    [
        (Forward.SNAT, "", False, ""),
        (Forward.SNAT, "dsr", False, "the agent's setting forward is snat"),
        (Forward.SNAT, "snat", False, ""),
        (Forward.ANNOTATED, "", False, ""),
        (Forward.ANNOTATED, "dsr", True, ""),
        (Forward.DSR, "", True, ""),
        (Forward.DSR, "snat", False, ""),
        (Forward.DSR, "ipip", True, "it is neither snat nor dsr"),
        (Forward.ANNOTATED, "dsr+udp", True, ""),
        (Forward.SNAT, "dsr+udp", False, "the agent's setting forward is snat"),
        (Forward.DSR, "snat+udp", True, "it is neither snat nor dsr"),
        (Forward.ANNOTATED, "DSR", False, "it is neither snat nor dsr"),
    ],
)
def test_who_goes_direct(setting: Forward, asked: str, direct: bool, refused: str) -> None:
    plan = plan_service(replace(WEB, forward=asked), [], Topology("node1", forward=setting))
    assert [port.direct for port in plan.ports] == [direct]
    assert [refused in str(each) for each in plan.refusals] == [True] * bool(refused)


def test_of_udp_the_annotation_says_that_conversations_stay() -> None:
    both = (*WEB.ports, ServicePort("dns", Protocol.UDP, 53, 53))
    asked = replace(WEB, ports=both, forward="dsr+udp")
    plan = plan_service(asked, [], Topology("node1", forward=Forward.ANNOTATED))
    assert [(port.direct, port.udp_stays) for port in plan.ports] == [(True, False), (True, True)]


def test_the_port_is_one_that_snat_looks_at() -> None:
    def given(**texts: str) -> dict[str, Given]:
        return {name.replace("__", "."): Given((text,), "here") for name, text in texts.items()}

    assert build(given(direct_port="70")).direct_port == 70  # of no matter with SNAT
    assert build(given(forward="dsr")).direct_port == 6080
    with pytest.raises(ConfigError, match="direct_port: 70 is not within snat_ports, 1024-29999"):
        build(given(forward="dsr", direct_port="70"))


def plan(*backends: str) -> ServicePlan:
    nodes = {"10.0.1": "node1", "10.0.2": "node2", "10.0.9": "node9"}
    members = [backend(text, nodes[text.rpartition(".")[0]]) for text in backends]
    ports = (replace(port_plan(["10.96.0.1:80"], members), direct=True),)
    return ServicePlan(WEB.key, "", ports)


def test_nodes_and_backends_are_told_and_forgotten() -> None:
    """Of a node that no Node object is about nothing is told: SNAT leads there."""
    maps, nodes = FakeMaps(), [NODE2]
    reconciler = Reconciler(maps, lambda: 0.0, lambda: None, direct=DirectReturn(maps, lambda: nodes))
    assert not reconciler.sync({WEB.key: plan(HERE, THERE, "10.0.9.1:8080")}).errors
    (row,) = read_vips(maps).values()
    assert row.flags & VipFlag.DIRECT
    (there,) = read_entries(maps, "hosts4").values()
    assert there == int(NODE2.addresses[0])
    assert set(read_entries(maps, "host_addresses4")) == {int(each) for each in NODE2.addresses[:2]}
    assert len(read_entries(maps, "host_addresses6")) == 1
    ((address, service, port, _),) = read_entries(maps, "endpoints4")
    assert (address, service, port) == (int(ip_address("10.0.1.1")), row.service, 8080)
    nodes.clear()
    reconciler.place_nodes()
    assert not read_entries(maps, "hosts4") | read_entries(maps, "host_addresses4")
    clear_direct_return(maps)
    assert not read_entries(maps, "endpoints4")


def hosts(*numbers: int) -> ServicePlan:
    return plan(*(f"10.0.{1 if number > 99 else 2}.{number % 100}:8080" for number in numbers))


def ages(maps: FakeMaps) -> tuple[list[str], int]:
    """Return the backends in the line of ages, and how many of them are unordered."""
    ((line, unordered, _),) = read_former(maps).values()
    slots = maps.array("backends4")["address"]
    ids = listed(table_rows(maps), *line).tolist()
    return [str(ip_address(int(slots[ident]))).removeprefix("10.0.") for ident in ids], unordered


def test_ages_of_backends_follow_the_lists_and_outlive_a_restart() -> None:
    """Of those that come at once this node's own are the newest; who terminates stays until it has gone."""
    maps, now = FakeMaps(), [0.0]
    reconciler = Reconciler(maps, lambda: now[0], lambda: None)
    assert not reconciler.sync({WEB.key: hosts(3, 2)}).errors
    assert not read_former(maps)
    assert not reconciler.sync({WEB.key: hosts(3, 2, 101, 9)}).errors
    assert ages(maps) == (["2.2", "2.3", "2.9", "1.1"], 2)
    again = Reconciler(maps, lambda: now[0], lambda: None)
    again.recover()
    going = hosts(2, 3, 9)
    (port,) = going.ports
    last = structs.replace(port.backends[0], state=BackendState.TERMINATING)
    going = replace(
        going, ports=(replace(port, backends=(last, *port.backends[1:]), cluster=port.cluster[1:]),)
    )
    assert not again.sync({WEB.key: going}).errors
    assert ages(maps) == (["2.2", "2.3", "2.9"], 2)
    assert not again.sync({WEB.key: hosts(3, 9, 4)}).errors
    assert ages(maps) == (["2.3", "2.9", "2.4"], 1)
    assert not again.sync({WEB.key: None}).errors
    assert not read_former(maps)
    now[0] = 100.0
    again.sync({})
    assert again.sync({WEB.key: hosts(1)}).table_rows == 1


def test_tables_of_before_are_kept_and_outlive_a_restart() -> None:
    maps = FakeMaps()
    reconciler = Reconciler(maps, lambda: 0.0, lambda: None)
    regions = []
    for count in range(17, 24):
        assert not reconciler.sync({WEB.key: hosts(*range(1, count))}).errors
        (row,) = read_vips(maps).values()
        regions.append(row.outside)
    ((line, unordered, kept),) = read_former(maps).values()
    assert (line.size, unordered) == (16, 16)
    assert kept == regions[-2:1:-1][:4]
    again = Reconciler(maps, lambda: 100.0, lambda: None)
    again.recover()
    assert not again.sync({WEB.key: hosts(1)}).errors
    ((_, _, now),) = read_former(maps).values()
    assert now == [regions[-1], *kept[:3]]


def test_former_sets_have_a_share_of_the_rows() -> None:
    maps = FakeMaps(Limits(table_rows=8 * 640))
    former, port = FormerSets(maps, {}), Port(1)
    regions = [Region(offset, 300) for offset in (0, 320, 640)]
    port.retired.update(region.offset for region in regions)
    assert [former.keep(port, region) for region in regions] == [[], [], [regions[2]]]
    for offset in (960, regions[0].offset):  # no set of the outside, and one that was kept already
        assert former.keep(port, Region(offset, 300)) == [Region(offset, 300)]
    former.write()
    assert read_former(maps) == {1: (Region(0, 0), 0, [regions[1], regions[0]])}
    assert former.forget(port) == [regions[1], regions[0]]
    former.write()
    assert not read_former(maps)
