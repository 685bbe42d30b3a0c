# SPDX-License-Identifier: Apache-2.0
"""What was counted, and whose it is, while backends and Services come and go."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from lb.config import Limits
from lb.datapath.maps import layouts, map_table
from lb.datapath.sync import accounts
from lb.datapath.view import figures
from lb.datapath.view.figures import HANDSHAKE_BOUNDS, Figures, PortName, quantile
from lb.datapath.view.words import ShownBackend
from lb.errors import BpfError
from lb.plan.types import ServicePlan
from tests.fake_maps import FakeMaps
from tests.unit.figures_bench import Node
from tests.unit.pins_bench import LIMITS
from tests.unit.plan_builders import port_plan, service_plan
from tests.unit.reconcile_bench import OTHER_VIP, SMALL, A, B, Bench, C, web

WEB_PORT = PortName("default", "web", "http", "TCP")
DNS_PORT = PortName("kube-system", "kube-dns", "dns", "UDP")
MAIL_PORT = PortName("default", "mail", "", "")
NOTHING = Figures(0, 0, 0, 0, 0, 0, 0)


def test_a_port_is_the_sum_of_its_backends_families_and_cpus() -> None:
    node = Node()
    node.busy()
    found = figures.sample(node.maps)
    assert list(found.ports) == [MAIL_PORT, WEB_PORT, DNS_PORT]
    web_row = found.ports[WEB_PORT]
    assert found.of_port(web_row) == Figures(710, 71_000, 680, 1_655_000, 82, 4, 1)
    assert found.of_port(found.ports[DNS_PORT]) == Figures(60, 4_800, 60, 9_000, 60, 0, 0)
    assert found.of_port(found.ports[MAIL_PORT]) == NOTHING
    assert {at: n for at, n in enumerate(found.handshakes[web_row].tolist()) if n} == {
        3: 40,
        4: 2,
        5: 30,
        9: 6,
    }
    assert found.handshake_ns[web_row] == 2_800_000
    assert found.dropped_of(web_row) == {"SOURCE_NOT_ALLOWED": 4}
    assert found.dropped_of(found.ports[MAIL_PORT]) == {"REJECT_NO_ENDPOINT": 2}
    assert found.counts_traffic


def test_backends_have_names_and_figures_of_their_own() -> None:
    node = Node()
    node.busy()
    found = figures.sample(node.maps)
    four, six = found.backends[4], found.backends[6]
    assert [found.backend(4, row) for row in range(len(four.ids))] == [
        ShownBackend(1, "10.244.1.2:8080", "node1", True, "active"),
        ShownBackend(2, "10.244.2.2:8080", "node2", False, "active"),
        ShownBackend(17, "10.244.2.3:53", "node2", False, "terminating"),
    ]
    assert found.backend(6, 0) == ShownBackend(1, "[fd00:244::2]:8080", "node1", True, "active")
    assert Figures(*four.figures[0].item()) == Figures(500, 50_000, 480, 1_150_000, 50, 0, 1)
    ports = list(found.ports)
    assert [ports[row] for row in four.ports] == [WEB_PORT, WEB_PORT, DNS_PORT]
    assert len(six.ids) == 1


def test_without_traffic_counters_there_are_connections_alone() -> None:
    class Off(FakeMaps):
        def capacity(self, name: str) -> int:
            return 1 if name.startswith("traffic") else super().capacity(name)

    node = Node(Off(LIMITS))
    row = node.maps.array("connections4")[1:2]
    row["opened"] = 5
    found = figures.sample(node.maps)
    assert not found.counts_traffic
    assert found.of_port(found.ports[WEB_PORT]) == Figures(0, 0, 0, 0, 5, 0, 0)


def test_a_map_without_room_for_traffic_has_one_line() -> None:
    off = map_table.sizes(Limits(), traffic_counters=False)
    on = map_table.sizes(Limits())
    spec = map_table.MAP_SPECS["traffic4"]
    assert (spec.max_entries(off), spec.max_entries(on)) == (1, Limits().backends // 16 + 1)
    lines, places = accounts.line_of(np.array([1, 16, 17, Limits().backends - 1], "u4"))
    assert lines.tolist() == [1, 1, 2, Limits().backends // 16]
    assert places.tolist() == [0, 15, 0, 14]


def test_empty_maps_have_nothing() -> None:
    found = figures.sample(FakeMaps(LIMITS))
    assert not found.ports
    assert all(not len(one.ids) for one in found.backends.values())


# While ids change hands ----------------------------------------------------------------------------------


class Counted(Bench):
    """A reconciler on fake maps whose backends count; see :class:`tests.unit.reconcile_bench.Bench`."""

    def count(self, text: str, connections: int) -> None:
        """Let a backend, which may have gone, count so many connections, and ten packets for each."""
        slots = self.maps.array(self.name("backends"))
        at = [
            slot
            for slot, row in enumerate(slots)
            if row["generation"] and (row["address"].item(), int(row["port"])) == self.place(text)
        ][-1]
        node = object.__new__(Node)
        node.maps = self.maps
        node.count(
            at,
            version=self.version,
            generation=int(slots["generation"][at]),
            traffic=(10 * connections, 0, 0, 0),
            connections=(connections, 0, 0),
        )

    def counted(self, name: str = "web") -> tuple[int, int]:
        """Return a Service's connections and packets."""
        found = figures.sample(self.maps)
        (row,) = [row for port, row in found.ports.items() if port.service == name]
        one = found.of_port(row)
        return one.opened, one.packets

    def of_backends(self) -> dict[str, int]:
        found = figures.sample(self.maps)
        one = found.backends[self.version]
        return {
            found.backend(self.version, row).address: Figures(*one.figures[row].item()).opened
            for row in range(len(one.ids))
        }


@pytest.fixture(params=[4, 6])
def bench(request: pytest.FixtureRequest) -> Counted:
    return Counted(replace(SMALL, backends=3), version=request.param)  # two slots, as id 0 is nobody's


def other(*backends: str) -> ServicePlan:
    return service_plan("other", port_plan((OTHER_VIP,), backends))


def ended(bench: Counted) -> None:
    """Let what was freed be free for others."""
    bench.wait()
    bench.sync({})


def test_a_reused_slot_leaves_its_figures_to_the_service(bench: Counted) -> None:
    bench.apply(web(A))
    bench.count(A, 3)
    bench.apply(web(B))
    assert bench.counted() == (3, 30)
    bench.count(A, 1)  # a connection that goes on
    assert bench.counted() == (4, 40)
    ended(bench)
    bench.apply(web(B, C))  # in A's slot
    assert bench.counted() == (4, 40)
    assert set(bench.of_backends().values()) == {0}
    bench.count(C, 2)
    bench.count(B, 1)
    assert bench.counted() == (7, 70)
    assert sorted(bench.of_backends().values()) == [1, 2]


def test_a_slot_that_another_service_gets_takes_nothing_along(bench: Counted) -> None:
    bench.apply(web(A))
    bench.count(A, 3)
    bench.apply(web(), other(B))
    ended(bench)
    bench.apply(other(B, C))
    bench.count(C, 1)
    assert bench.counted() == (3, 30)
    assert bench.counted("other") == (1, 10)


def test_a_service_id_of_before_gives_nothing(bench: Counted) -> None:
    """There are four ids: the fifth Service has the first one's, whose slot is free still."""
    bench.apply(web(A))
    bench.count(A, 3)
    assert not bench.sync({web().key: None}).errors
    while bench.reconciler.linger() < 1:  # no flow keeps its VIP
        pass
    for name in ("a", "b", "c", "d"):
        plan = service_plan(name, port_plan((OTHER_VIP,), ()))
        bench.apply(plan)
        assert bench.counted(name) == (0, 0)
        if name != "d":
            bench.sync({plan.key: None})
    assert bench.maps.read("services")[0].tolist() == [1]
    assert not bench.maps.array("ended")[1].item()[0]


def test_a_restart_changes_nothing(bench: Counted) -> None:
    bench.apply(web(A, B))
    bench.count(A, 3)
    bench.apply(web(B))
    ended(bench)
    bench.start()
    assert bench.counted() == (3, 30)
    bench.apply(web(B, C))
    bench.start()
    assert bench.counted() == (3, 30)


def test_a_start_makes_counters_for_services_of_before_and_removes_others(bench: Counted) -> None:
    bench.apply(web(A))
    keys = bench.maps.read("service_counters")[0]
    bench.maps.delete("service_counters", keys)
    accounts.begin(bench.maps, [3])
    row = bench.maps.some("ended", accounts.CHANGES)
    row["packets"] = 7  # somebody was killed in the middle of a change
    bench.maps.update("ended", accounts.CHANGES, row)
    bench.start()
    assert bench.maps.read("service_counters")[0].tolist() == keys.tolist()
    assert bench.maps.some("ended", accounts.CHANGES)["packets"].tolist() == [8]


def test_counters_go_with_the_service(bench: Counted) -> None:
    bench.apply(web(A))
    assert len(bench.maps.read("service_counters")[0]) == 1
    bench.sync({web().key: None})
    assert len(bench.maps.read("service_counters")[0]) == 0


def test_what_is_read_while_slots_change_hands_is_read_again(monkeypatch: pytest.MonkeyPatch) -> None:
    node = Node()
    node.busy()
    reads: list[str] = []
    real: Callable[..., object] = figures._figures

    def changing(maps: FakeMaps, version: int, slots: object) -> object:
        if not reads:
            accounts.hand_over(maps, 4, np.array([2], "u4"))
        reads.append(str(version))
        return real(maps, version, slots)

    monkeypatch.setattr(figures, "_figures", changing)
    found = figures.sample(node.maps)
    assert len(reads) == 4
    assert found.of_port(found.ports[WEB_PORT]).opened == 82


def test_a_failure_to_read_is_told() -> None:
    node = Node()
    node.maps.fail("traffic4", operation="read")
    with pytest.raises(BpfError, match="traffic4"):
        figures.sample(node.maps)


# Handshake times -----------------------------------------------------------------------------------------


def test_quantiles() -> None:
    none = [0] * layouts.HANDSHAKE_BUCKETS
    assert quantile(none, 0.5) is None
    assert quantile((), 0.5) is None
    counts = list(none)
    counts[0], counts[3] = 10, 10
    assert quantile(counts, 0.5) == HANDSHAKE_BOUNDS[0]
    assert quantile(counts, 0.25) == HANDSHAKE_BOUNDS[0] / 2
    assert quantile(counts, 0.75) == pytest.approx((HANDSHAKE_BOUNDS[2] + HANDSHAKE_BOUNDS[3]) / 2)
    counts[-1] = 1000
    assert quantile(counts, 0.99) == HANDSHAKE_BOUNDS[-1]


def test_bounds() -> None:
    assert HANDSHAKE_BOUNDS[:2] == (16e-6, 32e-6)
    assert HANDSHAKE_BOUNDS[-1] == 8.388608
    assert len(HANDSHAKE_BOUNDS) == layouts.HANDSHAKE_BUCKETS - 1
