# SPDX-License-Identifier: Apache-2.0
"""Direct return in Python: which Services have it, and what the programs are told of nodes and sets."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import ip_address

import pytest

from lb.cli.settings import Given, build
from lb.config import Forward, Limits
from lb.datapath.maps.layouts import VipFlag
from lb.datapath.sync.direct_return import DirectReturn, clear_direct_return, read_entries
from lb.datapath.sync.former_sets import FormerSets, read_former
from lb.datapath.sync.ledger import Port, read_vips
from lb.datapath.sync.pools import Region
from lb.datapath.sync.reconcile import Reconciler
from lb.errors import ConfigError
from lb.model import Node, ObjectKey, Protocol, Service, ServicePort
from lb.plan import plan_service
from lb.plan.types import ServicePlan, Topology
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
        (Forward.ANNOTATED, "DSR", False, "it is neither snat nor dsr"),
    ],
)
def test_who_goes_direct(setting: Forward, asked: str, direct: bool, refused: str) -> None:
    plan = plan_service(replace(WEB, forward=asked), [], Topology("node1", forward=setting))
    assert [port.direct for port in plan.ports] == [direct]
    assert [refused in str(each) for each in plan.refusals] == [True] * bool(refused)


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


def test_former_sets_outlive_a_restart_and_their_rows_are_nobody_else_s() -> None:
    maps = FakeMaps()
    sets = [plan(*(f"10.0.2.{host}:8080" for host in range(1, count + 1))) for count in range(1, 8)]
    reconciler = Reconciler(maps, lambda: 0.0, lambda: None)
    for each in sets:
        assert not reconciler.sync({WEB.key: each}).errors
    (kept,) = read_former(maps).values()
    assert [region.size for region in kept] == [6, 5, 4, 3]
    again = Reconciler(maps, lambda: 100.0, lambda: None)
    again.recover()
    assert not again.sync({WEB.key: sets[0]}).errors
    (row,) = read_vips(maps).values()
    (now,) = read_former(maps).values()
    assert [region.size for region in now] == [7, 6, 5, 4]
    assert row.outside.offset not in {region.offset for region in now}
    assert not again.sync({WEB.key: None}).errors
    assert not read_former(maps)


def test_former_sets_have_a_share_of_the_rows() -> None:
    maps = FakeMaps(Limits(table_rows=8 * 64))
    former, port = FormerSets(maps), Port(1)
    regions = [Region(offset, 30) for offset in (0, 32, 64)]
    port.retired.update(region.offset for region in regions)
    assert [former.keep(port, region) for region in regions] == [[], [], [regions[2]]]
    for offset in (96, regions[0].offset):  # no set of the outside, and one that was kept already
        assert former.keep(port, Region(offset, 1)) == [Region(offset, 1)]
    former.write()
    assert read_former(maps) == {1: [regions[1], regions[0]]}
    assert former.forget(port) == [regions[1], regions[0]]
    former.write()
    assert not read_former(maps)
