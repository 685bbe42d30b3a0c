# SPDX-License-Identifier: Apache-2.0
"""Source ⇄ plan ⇄ kernel: what the maps should hold by what the source says now, and in what they differ.

Nothing is written here: the reconciler that would bring the maps in step works on a copy
(:class:`lb.datapath.maps.overlay.Overlay`), and what it changed there is what differs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np

from lb.datapath.kernel.grace import wait_for_running_programs
from lb.datapath.maps.expiry import live_affinity, live_flows
from lb.datapath.maps.fill import MapFill, map_fill
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import (
    FAMILIES,
    Direction,
    FlowState,
    VipFlag,
    VipKindCode,
    unpack_address,
)
from lb.datapath.maps.overlay import Overlay
from lb.datapath.sync.differences import DamagedSet, Difference, damaged_sets, differences, repair
from lb.datapath.sync.ledger import read_vips
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.sync.recover import read_ledger
from lb.model import ObjectKey
from lb.plan import Claims, Conflict, health_port_taken, plan_service
from lb.plan.types import ServicePlan, Topology
from lb.state import ClusterState


@dataclass(slots=True)
class Comparison:
    """How the kernel stands to the source.

    differences: entries of the maps. conflicts: VIPs that a Service does not get. failed: why a Service
    cannot be in the maps as it should, by Service. plans: what each Service should have here.
    """

    differences: list[Difference]
    conflicts: tuple[Conflict, ...]
    failed: dict[ObjectKey, str]
    plans: dict[ObjectKey, ServicePlan]
    damaged: list[DamagedSet] = field(default_factory=list)


def _nothing(_maps: Maps) -> None: ...


def compare(
    maps: Maps, state: ClusterState, topology: Topology, around: Callable[[Maps], None] = _nothing
) -> Comparison:
    """Compare the maps with what the source says, and with what around writes of the node itself.

    Raises BpfError: a map could not be read.
    """
    overlay = Overlay(maps)
    around(overlay)
    result = bring_in_step(overlay, state, topology)
    _end_unserved(overlay)
    result.damaged = damaged_sets(read_ledger(overlay), maps, overlay)
    found = differences(maps, overlay)
    # Names of nodes that no backend is on stay until there is no room for another: they serve dumps alone.
    result.differences = [one for one in found if one.map != "nodes" or one.after]
    result.differences += [one.difference for one in result.damaged]
    return result


def _end_unserved(maps: Maps) -> None:
    """Answer for no address on a segment that is no Service's: whoever has written that was no agent."""
    served = {
        vip.address
        for vip, row in read_vips(maps).items()
        if row.kind == VipKindCode.LOAD_BALANCER and not row.flags & VipFlag.GONE
    }
    for version in FAMILIES:
        keys, _ = maps.read(f"announced{version}")
        wrong = [unpack_address(address) not in served for address, _ in keys.tolist()]
        if any(wrong):
            maps.delete(f"announced{version}", keys[np.array(wrong)])


def bring_in_step(
    maps: Maps, state: ClusterState, topology: Topology, settle: Callable[[], None] = lambda: None
) -> Comparison:
    """Write to the maps what the source says, as an agent does that starts; differences are left empty.

    settle: see :class:`lb.datapath.sync.reconcile.Reconciler`; the default will do where no packet looks.

    Raises BpfError: the kernel refused.
    """
    reconciler = Reconciler(maps, lambda: 0.0, settle)
    reconciler.recover()
    state.settle()
    plans: dict[ObjectKey, ServicePlan | None] = dict.fromkeys(reconciler.known())
    failed: dict[ObjectKey, str] = {}
    for key in sorted(state.service_keys()):
        service = state.service(key)
        assert service is not None
        try:
            plans[key] = plan_service(service, state.slices(key), topology, state.overlaps(key))
        except Exception as error:  # a bug that one Service meets must not hide the others
            failed[key] = f"{type(error).__name__}: {error}"
            plans.pop(key, None)
    claims = Claims(plans.get, reconciler.holders())
    decision = claims.update(plans)
    decided = {key: plan for key, plan in decision.plans.items() if plan is not None}
    report = reconciler.sync(dict(decision.plans))
    reconciler.narrow()
    failed |= {key: str(error) for key, error in report.errors.items()}
    return Comparison([], claims.conflicts(), failed, decided)


def steady(look: Callable[[], Comparison], wait: Callable[[], None], tries: int = 3) -> Comparison:
    """Compare until two looks agree: what an agent is about to write is no difference. wait: between looks.

    After so many tries, those that were in every look are the differences.
    """
    before = look()
    for _ in range(tries):
        if not before.differences:
            break
        wait()
        now = look()
        lasting = [one for one in now.differences if one in before.differences]
        settled = len(lasting) == len(now.differences)
        now.differences = lasting
        before = now
        if settled:
            break
    return before


def heal(maps: Maps, state: ClusterState, topology: Topology) -> None:
    """Bring the kernel's maps in step with the source: for as long as no agent does that.

    Raises BpfError: the kernel refused.
    """
    damaged = compare(maps, state, topology).damaged
    repair(maps, damaged)
    bring_in_step(maps, state, topology, wait_for_running_programs)
    _end_unserved(maps)


@dataclass(frozen=True, slots=True)
class Preview:
    """What applying some objects would do.

    changes: entries that would be written or deleted. fills: how full the maps are now, and would be.
    flows, affinity: live connections, and clients with affinity, that would lose their backend, of how many.
    beforehand: entries in which the kernel differs from the source already.
    """

    changes: list[Difference]
    fills: list[tuple[MapFill, MapFill]]
    flows: int
    flows_all: int
    affinity: int
    affinity_all: int
    conflicts: tuple[Conflict, ...]
    failed: Mapping[ObjectKey, str]
    beforehand: int


def preview(maps: Maps, now: ClusterState, then: ClusterState, topology: Topology, clock_ns: int) -> Preview:
    """Return what the maps would go through if the source said something else; nothing is written.

    clock_ns: CLOCK_MONOTONIC.

    Raises BpfError: a map could not be read.
    """
    present = Overlay(maps)
    current = bring_in_step(present, now, topology)
    future = Overlay(present)
    result = bring_in_step(future, then, topology)
    flows, flows_all = _led_elsewhere(present, future, clock_ns, "flows")
    clients, clients_all = _led_elsewhere(present, future, clock_ns, "affinity")
    before = [one for one in differences(maps, present) if one.map != "nodes" or one.after]
    taken = health_port_taken(then.services())
    known = health_port_taken(now.services())
    failed = result.failed | {key: text for key, text in taken.items() if known.get(key) != text}
    return Preview(
        changes=[one for one in differences(present, future) if one.map != "nodes" or one.after],
        fills=list(zip(map_fill(present), map_fill(future), strict=True)),
        flows=flows,
        flows_all=flows_all,
        affinity=clients,
        affinity_all=clients_all,
        conflicts=tuple(one for one in result.conflicts if one not in current.conflicts),
        failed=failed,
        beforehand=len(before),
    )


def _led_elsewhere(present: Maps, future: Maps, now_ns: int, what: str) -> tuple[int, int]:
    """Return how many open connections, or clients, would lose their backend, and how many there are."""
    moved = total = 0
    for version in FAMILIES:
        read = live_flows if what == "flows" else live_affinity
        keys, values = read(present, version, now_ns)
        if what == "flows":
            open_ones = (values["state"] != FlowState.CLOSED) & (keys["direction"] == Direction.FORWARD)
            values = values[open_ones]
        slots, after = present.array(f"backends{version}"), future.array(f"backends{version}")
        ids = values["backend"]
        alive = (slots["state"][ids] != 0) & (slots["generation"][ids] == values["generation"])
        stays = (after["state"][ids] != 0) & (after["generation"][ids] == values["generation"])
        moved += int(np.count_nonzero(alive & ~stays))
        total += len(values)
    return moved, total
