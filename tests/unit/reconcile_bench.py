"""A reconciler on fake maps, and what must hold of the maps at every instant."""

from __future__ import annotations

import numpy as np

from lb.config import Limits
from lb.datapath.layouts import BackendStateCode, VipFlag
from lb.datapath.ledger import VipRow, read_ranges, read_vips
from lb.datapath.maps import FakeMaps
from lb.datapath.pools import Region
from lb.datapath.reconcile import QUARANTINE_SECONDS, Reconciler
from lb.model import ObjectKey, TrafficPolicy
from lb.plan import lookup_table
from lb.plan.types import ServicePlan, VipKind
from tests.unit.plan_builders import backend, port_plan, service_plan, vip_key

VIP = "10.96.0.1:80"
OTHER_VIP = "10.96.0.2:80"
A, B, C = "10.0.1.1:8080", "10.0.1.2:8080", "10.0.1.3:8080"
SMALL = Limits(vips=4, backends=8, table_rows=1100, flows=16, affinity=16, services=4)
Plans = dict[ObjectKey, ServicePlan | None]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A reconciler on fake maps, with a clock that stands still."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.maps = FakeMaps(limits)
        self.clock = Clock()
        self.settled: list[list[tuple[str, str, int]]] = []
        self.reconciler = self.start()

    def start(self) -> Reconciler:
        """Start anew, as after a restart."""
        self.reconciler = Reconciler(
            self.maps, self.clock, lambda: self.settled.append(list(self.maps.writes))
        )
        self.reconciler.recover()
        return self.reconciler

    def apply(self, *plans: ServicePlan) -> list[tuple[str, str]]:
        """Sync without error and return the writes."""
        self.maps.writes.clear()
        report = self.reconciler.sync({plan.key: plan for plan in plans})
        assert not report.errors
        return [(operation, name) for operation, name, _ in self.maps.writes]

    def wait(self) -> None:
        self.clock.now += QUARANTINE_SECONDS

    def row(self, vip: str = VIP) -> VipRow:
        return read_vips(self.maps)[vip_key(vip)]

    def choices(self, region: Region) -> list[tuple[int, int]]:
        """What each row of a table leads to: address and port."""
        ids = self.maps.array("tables")[region.offset : region.offset + region.size]
        return [(int(slot["address"]), int(slot["port"])) for slot in self.maps.array("backends4")[ids]]

    def slot(self, text: str) -> np.ndarray[tuple[()], np.dtype[np.void]]:
        """The one slot in use of a backend."""
        slots = self.maps.array("backends4")
        wanted = backend(text)
        found = slots[
            (slots["state"] != BackendStateCode.FREE)
            & (slots["address"] == int(wanted.address))
            & (slots["port"] == wanted.port)
        ]
        assert len(found) == 1
        return found[0]  # type: ignore[no-any-return]


def web(*backends: str, vips: tuple[str, ...] = (VIP,), draining: tuple[str, ...] = ()) -> ServicePlan:
    return service_plan("web", port_plan(vips, backends, draining=draining))


def check(maps: FakeMaps, exact: list[ServicePlan] | None = None) -> None:
    """What must hold at every instant: whatever a VIP leads to is complete and its own.

    exact: the maps hold these plans and nothing else.
    """
    slots = maps.array("backends4")
    named = set(maps.read("services")[0].tolist())
    vips = read_vips(maps)
    ranges = read_ranges(maps)
    for row in vips.values():
        assert row.service in named
        assert not row.flags & VipFlag.SOURCE_RANGES or row.service in dict(ranges)
        for region in (row.inside, row.outside):
            rows = slots[maps.array("tables")[region.offset : region.offset + region.size]]
            assert (rows["service"] == row.service).all()
            assert (rows["state"] != BackendStateCode.FREE).all()
    if exact is None:
        return
    ports = [port for plan in exact for port in plan.ports if port.vips]
    assert vips.keys() == {vip.key for port in ports for vip in port.vips}
    for port in ports:
        for vip in port.vips:
            row = vips[vip.key]
            filtered = bool(port.source_ranges) and vip.kind is VipKind.LOAD_BALANCER
            assert bool(row.flags & VipFlag.SOURCE_RANGES) == filtered
            assert {net for service, net in ranges if service == row.service} == set(port.source_ranges)
            assert bool(row.flags & VipFlag.USABLE) == bool(port.cluster)
            for region, policy, flag in (
                (row.inside, vip.inside, VipFlag.INSIDE_LOCAL),
                (row.outside, vip.outside, VipFlag.OUTSIDE_LOCAL),
            ):
                local = policy is TrafficPolicy.LOCAL
                assert bool(row.flags & flag) == local
                wanted = port.local if local else port.cluster
                ids = maps.array("tables")[region.offset : region.offset + region.size]
                found = [(int(s["address"]), int(s["port"])) for s in slots[ids]]
                table = lookup_table(b.identity for b in wanted)
                assert found == [(int(wanted[i].address), wanted[i].port) for i in table]
    used = slots[slots["state"] != BackendStateCode.FREE]
    assert sorted((int(s["address"]), int(s["port"])) for s in used) == sorted(
        (int(b.address), b.port) for port in ports for b in port.backends
    )
    assert len(named) == len(ports)
    assert {service for service, _ in ranges} <= named
