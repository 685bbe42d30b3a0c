# SPDX-License-Identifier: Apache-2.0
"""VIPs that a Service has no more stay for the connections that are open, and no longer."""

from __future__ import annotations

import math

import numpy as np
import pytest

from lb.cli.forms import as_objects, as_table
from lb.cli.output import formatted
from lb.datapath.maps import layouts
from lb.datapath.maps.layouts import FAMILIES, BackendStateCode, Direction, FlowState, VipFlag
from lb.datapath.maps.overlay import Overlay
from lb.datapath.sync.differences import differences
from lb.datapath.sync.reconcile import Reconciler
from lb.datapath.view.dump import dump
from lb.model import Protocol
from lb.plan.types import ServicePlan, VipKind
from tests.unit.plan_builders import port_plan, service_plan, vip_key
from tests.unit.reconcile_bench import OTHER_VIP, SMALL, VIP, A, B, Bench, web


@pytest.fixture(params=FAMILIES, ids=["IPv4", "IPv6"])
def bench(request: pytest.FixtureRequest) -> Bench:
    bench = Bench(version=request.param)
    settings = bench.maps.array(bench.name("settings"))
    settings["tcp_established_ns"] = 1000 * 10**9
    return bench


def open_connection(bench: Bench, vip: str = VIP, backend: str = A) -> None:
    """Let there be an established flow through a VIP, last used now."""
    slots = bench.maps.array(bench.name("backends"))
    (at,) = (at for at, row in enumerate(slots) if row["state"] and bench.place(backend) == place_of(row))
    bench.maps.array(bench.name("connections"))["opened"][at] += 1
    keys, values = np.zeros(1, layouts.FLOW_KEY[bench.version]), np.zeros(1, layouts.FLOW[bench.version])
    keys["dst"] = bench.place(vip)[0]
    keys["dport"], keys["protocol"] = vip_key(vip).port, Protocol.TCP
    keys["direction"], values["state"] = Direction.FORWARD, FlowState.ESTABLISHED
    values["last_seen"] = int(bench.clock() * 10**9)
    bench.maps.update(bench.name("flows"), keys, values)


def place_of(row: np.void) -> tuple[int | bytes, int]:
    return row["address"].tolist(), int(row["port"])


def end_connections(bench: Bench) -> None:
    keys, _ = bench.maps.read(bench.name("flows"))
    bench.maps.delete(bench.name("flows"), keys)


def remove(bench: Bench, plan: ServicePlan) -> None:
    assert not bench.sync({plan.key: None}).errors


def sweep(bench: Bench) -> float:
    """Look at all flows once; return the seconds to the next look."""
    while (wait := bench.reconciler.linger()) < 1:
        pass
    return wait


def test_service_gone_without_a_connection_ever_leaves_nothing(bench: Bench) -> None:
    bench.apply(web(A))
    remove(bench, web(A))
    bench.check([])
    assert sweep(bench) == math.inf


def test_service_gone_lingers_until_its_last_connection_is_over(bench: Bench) -> None:
    bench.apply(web(A, B))
    open_connection(bench)
    service = bench.row().service
    remove(bench, web(A, B))
    row = bench.row()
    assert (row.service, row.flags, row.inside, row.outside) == (service, VipFlag.GONE, (0, 0), (0, 0))
    assert bench.slot(A)["state"] == BackendStateCode.ACTIVE, "datagrams of open flows ask for it"
    assert service in bench.maps.read("services")[0], "dumps name it"
    assert sweep(bench) == 5.0
    assert bench.row().flags == VipFlag.GONE
    end_connections(bench)
    assert sweep(bench) == 5.0
    bench.check([])
    assert sweep(bench) == math.inf
    bench.wait()
    bench.apply(web(A))
    assert bench.row().service != service, "an id rests as long as the room allows"


def test_service_gone_with_flows_whose_time_is_over(bench: Bench) -> None:
    bench.apply(web(A))
    open_connection(bench)
    remove(bench, web(A))
    bench.clock.now += 1001
    sweep(bench)
    bench.check([])


def test_service_gone_and_made_again_takes_everything_back(bench: Bench) -> None:
    bench.apply(web(A))
    open_connection(bench)
    before, slot = bench.row(), bench.slot(A).copy()
    remove(bench, web(A))
    bench.apply(web(A, B))
    assert (bench.row().service, bench.slot(A)["generation"]) == (before.service, slot["generation"])
    bench.check([web(A, B)])
    assert sweep(bench) == math.inf


def test_service_gone_and_its_vip_anothers(bench: Bench) -> None:
    bench.apply(web(A))
    open_connection(bench)
    remove(bench, web(A))
    other = service_plan("other", port_plan([VIP], [B]))
    bench.apply(other)
    sweep(bench)
    assert bench.row().flags & VipFlag.GONE == 0
    remove(bench, web(A))  # that it is gone may be told again
    assert sweep(bench) == math.inf
    bench.check([other])


def test_one_vip_of_a_service_gone(bench: Bench) -> None:
    """A NodePort or an address taken away; only what connections may go through lingers."""
    bench.apply(web(A, B, vips=(VIP, OTHER_VIP)))
    open_connection(bench, OTHER_VIP)
    bench.apply(web(A))
    assert bench.row(OTHER_VIP).flags == VipFlag.GONE
    assert bench.row().inside.size == 1
    end_connections(bench)
    sweep(bench)
    bench.check([web(A)])


def test_a_vip_gone_and_back_and_gone_within_one_sweep(bench: Bench) -> None:
    bench.apply(web(A))
    open_connection(bench)
    remove(bench, web(A))
    bench.reconciler.linger()
    end_connections(bench)
    bench.apply(web(A))
    open_connection(bench)
    remove(bench, web(A))
    sweep(bench)
    assert bench.row().flags == VipFlag.GONE


def test_what_lingers_is_known_after_a_restart(bench: Bench) -> None:
    bench.apply(web(A))
    open_connection(bench)
    remove(bench, web(A))
    before = bench.row()
    bench.start()
    assert bench.reconciler.holders() == {}
    remove(bench, web(A))  # as an agent does that starts
    assert bench.row() == before
    assert not any(bench.reconciler.drift().values())  # type: ignore[union-attr]
    sweep(bench)
    assert bench.row() == before
    end_connections(bench)
    sweep(bench)
    bench.check([])


def test_what_lingers_is_no_difference(bench: Bench) -> None:
    bench.apply(web(A))
    open_connection(bench)
    remove(bench, web(A))
    wanted = Overlay(bench.maps)
    again = Reconciler(wanted, bench.clock, lambda: None)
    again.recover()
    again.sync({web(A).key: None})
    assert differences(bench.maps, wanted) == []


def test_new_services_come_before_what_lingers(bench: Bench) -> None:
    bench = Bench(SMALL, bench.version)
    bench.apply(web(A, vips=(VIP, OTHER_VIP)))
    open_connection(bench)
    remove(bench, web(A))
    more = service_plan("more", port_plan([f"10.96.1.{n}:80" for n in range(3)], [B]))
    assert bench.sync({more.key: more}).errors
    bench.wait()
    assert not bench.sync({}).errors
    assert len(bench.vips()) == 3


def test_a_lingering_vip_is_shown_as_such(bench: Bench) -> None:
    bench.apply(service_plan("web", port_plan([VIP], [A], kind=VipKind.NODE_PORT)))
    open_connection(bench)
    assert '"lingering"' not in formatted("json", as_objects(dump(bench.maps, 0, ["vips"], web().key)))
    remove(bench, web(A))
    shown = dump(bench.maps, 0, ["vips"], web().key)
    assert '"lingering": true' in formatted("json", as_objects(shown))
    assert "lingering" in as_table(shown)
