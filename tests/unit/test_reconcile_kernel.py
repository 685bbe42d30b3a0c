# SPDX-License-Identifier: Apache-2.0
"""The fake maps against the kernel's: one history, the same contents and the same errors. Needs root."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings

from lb.cli.forms import as_objects
from lb.cli.output import formatted
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.maps.layouts import FAMILIES, SERVICE_NAME
from lb.datapath.maps.map_pins import open_maps, pin_maps
from lb.datapath.maps.map_table import MAPS, MapType, sizes
from lb.datapath.sync.ledger import read_names
from lb.datapath.sync.quarantine import QUARANTINE_SECONDS
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.view import service_names
from lb.datapath.view.dump import dump
from lb.errors import BpfError
from tests.fake_maps import FakeMaps
from tests.unit.plan_builders import port_plan, service_plan
from tests.unit.reconcile_bench import OTHER_VIP, SMALL, A, B, Clock
from tests.unit.test_reconcile_restart import Step, histories

LIMITS = replace(SMALL, vips=3, backends=12, table_rows=2600, services=3, source_ranges=5)


@pytest.fixture(scope="module")
def kernel_maps() -> Iterator[KernelMaps]:
    pins = Pins(f"test.reconcile-{os.getpid()}")
    with contextlib.ExitStack() as stack:
        stack.callback(unload, pins)
        pins.base.mkdir(parents=True)
        pin_maps(pins, open_maps(pins, sizes(LIMITS), stack))
        maps = KernelMaps(pins.maps)
        stack.callback(maps.close)
        yield maps


def clear(maps: KernelMaps) -> None:
    """Empty what Python writes."""
    for spec in MAPS:
        if spec.writer != "Python":
            continue
        if spec.type is MapType.ARRAY:
            maps.array(spec.name)[:] = np.zeros(1, spec.value)
        else:
            maps.delete(spec.name, maps.read(spec.name)[0])


class Twin:
    """Reconcilers that get the same plans, one on each kind of maps."""

    def __init__(self, *maps: Maps) -> None:
        self.maps = maps
        self.clock = Clock()
        self.reconcilers: list[Reconciler] = []
        self.start()

    def start(self) -> None:
        self.reconcilers = [Reconciler(maps, self.clock, lambda: None) for maps in self.maps]
        for reconciler in self.reconcilers:
            reconciler.recover()


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(histories)
def test_fake_and_kernel_maps_agree(kernel_maps: KernelMaps, history: list[Step]) -> None:
    """Also when maps are full: the limits are tight."""
    clear(kernel_maps)
    twin = Twin(kernel_maps, FakeMaps(LIMITS))
    for batch, _, wait, restart in history:
        plans = {plan.key: plan if there else None for plan, there in batch}
        kernel, fake = (reconciler.sync(dict(plans)) for reconciler in twin.reconcilers)
        assert {key: str(error) for key, error in kernel.errors.items()} == {
            key: str(error) for key, error in fake.errors.items()
        }
        assert kernel.writes == fake.writes
        texts = {
            formatted("json", as_objects(dump(maps, 0, ["vips", "addresses", "backends"])))
            for maps in twin.maps
        }
        assert len(texts) == 1
        for version in FAMILIES:
            assert len({maps.array(f"settings{version}").tobytes() for maps in twin.maps}) == 1
        twin.clock.now += QUARANTINE_SECONDS if wait else 0
        if restart and not kernel.errors:
            twin.start()


def test_a_sync_waits_for_packets_on_their_way(kernel_maps: KernelMaps) -> None:
    """With the real grace period: a backend that a table listed is freed only after it."""
    clear(kernel_maps)
    reconciler = Reconciler(kernel_maps, Clock())
    reconciler.recover()
    for backends in ([A, B], [A]):
        plan = service_plan("web", port_plan([OTHER_VIP], backends))
        assert not reconciler.sync({plan.key: plan}).errors
    assert "10.0.1.2" not in formatted("json", as_objects(dump(kernel_maps, 0)))


def test_the_names_that_a_shell_completes_are_those_of_the_maps(kernel_maps: KernelMaps) -> None:
    clear(kernel_maps)
    pinned = Pins(f"test.reconcile-{os.getpid()}").maps / "services"
    assert service_names.read(pinned) == []
    written = [("default", "web", "http"), ("default", "web", "dns"), ("a" * 63, "b" * 63, "")]
    rows = np.array(written, SERVICE_NAME)
    kernel_maps.update("services", np.array([3, 1, 2], "u4"), rows)
    names = {name for name, _ in read_names(kernel_maps).values()}
    assert service_names.read(pinned) == sorted(names) == [f"{'a' * 63}/{'b' * 63}", "default/web"]
    clear(kernel_maps)
    with pytest.raises(BpfError, match="OBJ_GET_INFO_BY_FD"):
        service_names.read(pinned.with_name("vips4"))
