# SPDX-License-Identifier: Apache-2.0
"""A reconciler on fake maps, and what must hold of the maps at every instant."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import ip_address

import numpy as np
from msgspec import structs

from lb.config import Limits
from lb.datapath.maps.interface import Rows
from lb.datapath.maps.layouts import FAMILIES, BackendStateCode, VipFlag, VipKindCode, pack_address
from lb.datapath.maps.map_table import MAP_SPECS
from lb.datapath.sync.ledger import VipRow, read_ranges, read_vips, socket_of
from lb.datapath.sync.pools import Region
from lb.datapath.sync.quarantine import QUARANTINE_SECONDS
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.sync.sync_record import SyncReport
from lb.datapath.sync.tables import table_rows
from lb.model import ObjectKey, TrafficPolicy
from lb.plan import SMALL_SET, lookup_table, seeds
from lb.plan.types import Backend, ServicePlan, VipKey, VipKind
from tests.fake_maps import FakeMaps
from tests.unit.plan_builders import address_in, backend, plan_in, port_plan, service_plan, vip_key

VIP = "10.96.0.1:80"
OTHER_VIP = "10.96.0.2:80"
A, B, C = "10.0.1.1:8080", "10.0.1.2:8080", "10.0.1.3:8080"
SMALL = Limits(vips=4, backends=8, table_rows=4 * 32, flows=16, affinity=16, services=4)
Plans = dict[ObjectKey, ServicePlan | None]


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Bench:
    """A reconciler on fake maps, with a clock that stands still.

    version: the family of all that goes in; plans and addresses are given as of IPv4 whatever it is.
    """

    def __init__(self, limits: Limits | None = None, version: int = 4) -> None:
        self.maps = FakeMaps(limits)
        self.version = version
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

    def sync(self, plans: Plans) -> SyncReport:
        return self.reconciler.sync(
            {key: plan and plan_in(self.version, plan) for key, plan in plans.items()}
        )

    def apply(self, *plans: ServicePlan) -> list[tuple[str, str]]:
        """Sync without error and return the writes, maps by their names in C."""
        self.maps.writes.clear()
        assert not self.sync({plan.key: plan for plan in plans}).errors
        return self.writes()

    def writes(self) -> list[tuple[str, str]]:
        """Return the writes so far without those to settings, maps by their names in C."""
        found = [(operation, MAP_SPECS[name].c_name) for operation, name, _ in self.maps.writes]
        return [write for write in found if write[1] != "settings"]

    def name(self, c_name: str) -> str:
        """Return the name of a map of the family."""
        return f"{c_name}{self.version}"

    def check(self, exact: list[ServicePlan] | None = None) -> None:
        """See :func:`check`."""
        check(self.maps, exact and [plan_in(self.version, plan) for plan in exact])

    def vips(self) -> list[VipKey]:
        """Return the VIPs in the kernel, as of IPv4."""
        back = address_in(self.version, ip_address("0.0.0.0"))
        return [
            structs.replace(vip, address=ip_address(int(vip.address) - int(back)))
            for vip in read_vips(self.maps)
        ]

    def wait(self) -> None:
        self.clock.now += QUARANTINE_SECONDS

    def row(self, vip: str = VIP) -> VipRow:
        key = vip_key(vip)
        return read_vips(self.maps)[structs.replace(key, address=address_in(self.version, key.address))]

    def place(self, text: str) -> tuple[int | bytes, int]:
        """Return a backend's address and port as the maps have them."""
        one = backend(text)
        return (pack_address(address_in(self.version, one.address)), one.port)

    def choices(self, region: Region) -> list[tuple[int | bytes, int]]:
        """What each row of a table leads to: address and port."""
        ids = table_rows(self.maps)[region.offset : region.offset + region.size]
        return _places(self.maps.array(self.name("backends"))[ids])

    def slot(self, text: str) -> np.ndarray[tuple[()], np.dtype[np.void]]:
        """The one slot in use of a backend."""
        slots = self.maps.array(self.name("backends"))
        used = slots[slots["state"] != BackendStateCode.FREE]
        found = used[[place == self.place(text) for place in _places(used)]]
        assert len(found) == 1
        return found[0]  # type: ignore[no-any-return]


def web(*backends: str, vips: tuple[str, ...] = (VIP,), draining: tuple[str, ...] = ()) -> ServicePlan:
    return service_plan("web", port_plan(vips, backends, draining=draining))


def set_table(backends: Sequence[Backend]) -> list[int]:
    """Return which backend each row of a set is."""
    if len(backends) <= SMALL_SET:
        return list(range(len(backends)))
    return lookup_table(one.identity for one in backends).tolist()  # type: ignore[no-any-return]


def _places(slots: Rows) -> list[tuple[int | bytes, int]]:
    return list(zip(slots["address"].tolist(), slots["port"].tolist(), strict=True))


def _place(one: Backend) -> tuple[int | bytes, int]:
    return (pack_address(one.address), one.port)


def check(maps: FakeMaps, exact: list[ServicePlan] | None = None) -> None:
    """What must hold at every instant: whatever a VIP leads to is complete and its own.

    exact: the maps hold these plans and nothing else.
    """
    slots = {version: maps.array(f"backends{version}") for version in FAMILIES}
    named = set(maps.read("services")[0].tolist())
    vips = read_vips(maps)
    ranges = read_ranges(maps)
    for key, row in vips.items():
        version = key.address.version
        settings = maps.array(f"settings{version}")[:1]
        net, mask = (
            int.from_bytes(settings[name].tobytes(), "big") for name in ("cluster_net", "cluster_mask")
        )
        assert row.kind != VipKindCode.CLUSTER_IP or not (int(key.address) ^ net) & mask
        assert row.service in named
        assert not row.flags & VipFlag.SOURCE_RANGES or row.service in dict(ranges)
        for region in (row.inside, row.outside):
            rows = slots[version][table_rows(maps)[region.offset : region.offset + region.size]]
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
                ids = table_rows(maps)[region.offset : region.offset + region.size]
                assert _places(slots[port.version][ids]) == [_place(wanted[i]) for i in set_table(wanted)]
                if 0 < len(wanted) <= SMALL_SET:
                    found = table_rows(maps)[region.offset + SMALL_SET :][: region.size]
                    assert found.tolist() == seeds(port.version, map(socket_of, wanted))
    for family, of_family in slots.items():
        used = of_family[of_family["state"] != BackendStateCode.FREE]
        assert sorted(_places(used)) == sorted(
            _place(b) for port in ports if port.version == family for b in port.backends
        )
    assert len(named) == len(ports)
    assert {service for service, _ in ranges} <= named
