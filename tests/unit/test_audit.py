# SPDX-License-Identifier: Apache-2.0
"""``lbctl audit`` and ``lbctl plan``: what differs is named, healed, foreseen; nothing else is touched."""

from __future__ import annotations

import os
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import numpy as np
import pytest

from lb.cli import audit as audit_command
from lb.cli import command
from lb.cli import plan as plan_command
from lb.config import Config, Limits
from lb.datapath.attach.hooks import Role
from lb.datapath.attach.netlink import Interface
from lb.datapath.maps.layouts import FLOW, FLOW_KEY, ID, SERVICE_NAME, BackendStateCode, pack_address
from lb.datapath.maps.map_table import MAPS, MapType
from lb.datapath.maps.overlay import Overlay
from lb.datapath.sync.differences import Difference
from lb.datapath.sync.ledger import vip_keys
from lb.diagnose import attachment, audit
from lb.diagnose.audit import Comparison, Preview, preview, steady
from lb.diagnose.snapshot import ManifestReader, read_files
from lb.errors import CapacityError, ConfigError, LbError
from lb.manifests.objects import ServiceRequest
from lb.plan.types import Topology, VipKind
from lb.segment import ownership
from lb.served.metrics import audit_metrics
from tests.fake_maps import FakeMaps
from tests.unit.plan_builders import port_plan, service_plan, vip_key
from tests.unit.reconcile_bench import OTHER_VIP, A, B, Bench, web
from tests.unit.reconcile_bench import VIP as BENCH_VIP
from tests.unit.worlds import HERE, ONE, SERVICE, TWO, WEB, WELL, World, world

VIP = "10.96.0.10:80"
LINE = 32
RANGED = SERVICE.replace("spec:", "spec:\n  type: LoadBalancer\n  loadBalancerSourceRanges: [192.0.2.0/24]")


def slots(maps: FakeMaps) -> list[int]:
    rows = maps.array("backends4")
    found: list[int] = np.flatnonzero(rows["state"] != BackendStateCode.FREE).tolist()
    return found


def no_vip(maps: FakeMaps) -> None:
    maps.delete("vips4", vip_keys(4, [vip_key(VIP)]))


def foreign_vip(maps: FakeMaps) -> None:
    _, values = maps.read("vips4")
    maps.update("vips4", vip_keys(4, [vip_key("10.96.9.9:80")]), values[:1])


def other_flags(maps: FakeMaps) -> None:
    keys, values = maps.read("vips4")
    changed = values.copy()
    changed["affinity_seconds"] = 7
    at = np.flatnonzero(keys["port"] == 80)
    maps.update("vips4", keys[at], changed[at])


def other_address(maps: FakeMaps) -> None:
    maps.array("backends4")["port"][slots(maps)[0]] = 9


def other_state(maps: FakeMaps) -> None:
    maps.array("backends4")["state"][slots(maps)[0]] = BackendStateCode.TERMINATING


def free_backend(maps: FakeMaps) -> None:
    maps.array("backends4")["state"][slots(maps)[0]] = BackendStateCode.FREE


def other_weight(maps: FakeMaps) -> None:
    maps.array("tables")["rows"].reshape(-1)[LINE // 2] ^= 1


def other_row(maps: FakeMaps) -> None:
    maps.array("tables")["rows"].reshape(-1)[0] = 99


def no_name(maps: FakeMaps) -> None:
    maps.delete("services", maps.read("services")[0][:1])


def foreign_name(maps: FakeMaps) -> None:
    maps.update("services", np.array([77], ID), np.array([(b"a", b"b", b"")], SERVICE_NAME))


def foreign_answer(maps: FakeMaps) -> None:
    ownership.write(maps, 7, bytes(6), {ip_address("192.0.2.99"): ownership.Entry(1)})


DAMAGE: dict[str, tuple[Callable[[FakeMaps], None], str, str]] = {
    "a VIP is missing": (no_vip, "vips4", "+"),
    "a VIP that nobody planned": (foreign_vip, "vips4", "-"),
    "a VIP's value": (other_flags, "vips4", "~"),
    "a backend's port": (other_address, "backends4", "-"),
    "a backend's state": (other_state, "backends4", "~"),
    "a backend is free": (free_backend, "backends4", "+"),
    "a weight": (other_weight, "tables", "~"),
    "a row": (other_row, "tables", "-"),
    "a name is missing": (no_name, "services", "+"),
    "a name that nobody planned": (foreign_name, "services", "-"),
    "an answer for an address of no Service": (foreign_answer, "announced4", "-"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_damage_is_named_and_healed(what: str, tmp_path: Path) -> None:
    damage, name, sign = DAMAGE[what]
    node = world(tmp_path)
    assert node.compare().differences == []
    damage(node.maps)
    before = contents(node.maps)
    found = node.compare().differences
    assert (name, sign) in [(one.map, one.sign) for one in found], found
    assert contents(node.maps) == before  # looking writes nothing
    audit.heal(node.maps, node.snapshot().state, HERE)
    assert node.compare().differences == []


def test_source_ranges_are_compared(tmp_path: Path) -> None:
    text = RANGED.replace("\n---", "\nstatus: {loadBalancer: {ingress: [{ip: 198.51.100.1}]}}\n---") + ONE
    node = world(tmp_path, text)
    keys, _ = node.maps.read("source_ranges4")
    node.maps.delete("source_ranges4", keys)
    (found,) = node.compare().differences
    assert (found.map, found.entry, found.service) == ("source_ranges4", "#1 192.0.2.0/24", "default/web")


@pytest.mark.parametrize(
    ("net", "mask", "differs"),
    [
        ("10.96.0.0", "255.255.0.0", False),  # an agent had others as well
        ("0.0.0.0", "0.0.0.0", False),
        ("10.96.0.11", "255.255.255.255", True),
        ("10.97.0.0", "255.255.0.0", True),
        ("10.96.0.0", "255.255.0.255", True),
    ],
)
def test_the_cluster_network_may_be_wider(tmp_path: Path, net: str, mask: str, *, differs: bool) -> None:
    node = world(tmp_path)
    row = node.maps.array("settings4")[:1]
    row["cluster_net"], row["cluster_mask"] = (pack_address(ip_address(text)) for text in (net, mask))
    found = [(one.map, one.entry) for one in node.compare().differences]
    assert found == ([("settings4", "cluster_net")] if differs else [])
    audit.heal(node.maps, node.snapshot().state, HERE)
    assert node.compare().differences == []


def test_a_cluster_network_that_should_hold_all_there_is(tmp_path: Path) -> None:
    """With clusterIPs far apart its address is 0, as it is without any."""
    far = SERVICE.replace("name: web", "name: far").replace("10.96.0.10", "172.20.0.10")
    node = world(tmp_path, WELL + far)
    row = node.maps.array("settings4")[:1]
    assert not int(row["cluster_net"][0])
    assert node.compare().differences == []
    row["cluster_net"], row["cluster_mask"] = (
        pack_address(ip_address(text)) for text in ("10.96.0.0", "255.255.0.0")
    )
    assert [one.entry for one in node.compare().differences] == ["cluster_net"]


def test_no_cluster_network_is_wanted_any_more(tmp_path: Path) -> None:
    node = world(tmp_path)
    (tmp_path / "all.yaml").write_text("")
    assert all(one.map != "settings4" for one in node.compare().differences)


def contents(maps: FakeMaps) -> dict[str, list[bytes]]:
    return {
        spec.name: sorted(a.tobytes() + b.tobytes() for a, b in zip(*maps.read(spec.name), strict=True))
        if spec.type in (MapType.HASH, MapType.LPM_TRIE)
        else [np.asarray(maps.array(spec.name)).tobytes()]
        for spec in MAPS
        if spec.writer == "Python" and spec.type is not MapType.PROG_ARRAY
    }


def test_what_the_agent_is_about_to_write_is_no_difference() -> None:
    lasting = Difference("vips4", "10.96.0.1:80/TCP", "a/b", "", "x")
    passing = Difference("vips4", "10.96.0.2:80/TCP", "a/b", "", "x")
    looks = [[lasting, passing], [lasting], [lasting]]

    def look() -> Comparison:
        return Comparison(looks.pop(0), (), {}, {})

    waits: list[None] = []
    assert steady(look, lambda: waits.append(None)).differences == [lasting]
    assert waits == [None]


def test_all_is_well_at_the_first_look() -> None:
    def wait() -> None:
        raise AssertionError("nothing to wait for")

    assert steady(lambda: Comparison([], (), {}, {}), wait).differences == []


def test_the_reconciler_of_a_running_agent_reads_anew() -> None:
    bench = Bench()
    bench.apply(web(A, B))
    bench.apply(web(A))
    assert not bench.reconciler.reread()  # what was freed rests still
    bench.wait()
    bench.maps.delete("vips4", vip_keys(4, [vip_key(BENCH_VIP)]))
    other_weight(bench.maps)
    assert bench.reconciler.reread()
    bench.apply(web(A))
    bench.check([web(A)])


@pytest.mark.parametrize(
    ("damage", "name"),
    [
        (foreign_vip, "vips4"),
        (other_flags, "vips4"),
        (other_address, "backends4"),
        (free_backend, "backends4"),
    ],
)
def test_an_agent_sees_what_others_wrote(damage: Callable[[FakeMaps], None], name: str) -> None:
    bench = Bench()
    bench.apply(web(A, B))
    assert set((bench.reconciler.drift() or {"": 1}).values()) == {0}
    damage(bench.maps)
    assert {n: count for n, count in (bench.reconciler.drift() or {}).items() if count} == {name: 1}


def test_an_agent_sees_that_somebody_took_back_what_it_wrote() -> None:
    """The maps are as they were at the last look: it is the agent that wants something else now."""
    bench = Bench()
    bench.apply(web(A, vips=(BENCH_VIP, OTHER_VIP)))
    assert not any((bench.reconciler.drift() or {"": 1}).values())
    before = bench.maps.read("vips4")
    bench.apply(web(A))
    bench.maps.update("vips4", *before)
    assert {n: count for n, count in (bench.reconciler.drift() or {}).items() if count} == {"vips4": 1}


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("field", "value"), [("port", 1), ("service", 77), ("state", BackendStateCode.FREE)])
def test_an_agent_sees_what_became_of_a_backend(version: int, field: str, value: int) -> None:
    bench = Bench(version=version)
    bench.apply(web(A, B))
    assert not any((bench.reconciler.drift() or {"": 1}).values())
    slots = bench.maps.array(f"backends{version}")
    slots[field][np.flatnonzero(slots["state"])[0]] = value
    found = bench.reconciler.drift() or {}
    assert {n: count for n, count in found.items() if count} == {f"backends{version}": 1}


def test_an_agent_sees_that_a_source_range_is_gone() -> None:
    bench = Bench()
    ranged = port_plan([BENCH_VIP], [A], kind=VipKind.LOAD_BALANCER, source_ranges=["192.0.2.0/24"])
    bench.apply(service_plan("web", ranged))
    assert not any((bench.reconciler.drift() or {"": 1}).values())
    bench.maps.delete("source_ranges4", bench.maps.read("source_ranges4")[0])
    found = bench.reconciler.drift() or {}
    assert {n: count for n, count in found.items() if count} == {"source_ranges4": 1}


def test_the_metric_of_an_audit() -> None:
    (family,) = audit_metrics({"vips4": 2, "backends4": 0})
    assert [(one.labels["map"], one.value) for one in family.samples] == [("backends4", 0), ("vips4", 2)]


def test_an_overlay_answers_as_a_full_map() -> None:
    base = FakeMaps(Limits(services=4))
    overlay = Overlay(base)
    names = np.zeros(5, SERVICE_NAME)
    overlay.update("services", np.arange(4, dtype=ID), names[:4])
    with pytest.raises(CapacityError, match="services is full: 5 entries wanted, 4 possible"):
        overlay.update("services", np.arange(5, dtype=ID), names)
    assert (overlay.fill("services").entries, base.fill("services").entries) == (4, 0)
    overlay.delete("services", np.arange(3, dtype=ID))
    assert overlay.read("services")[0].tolist() == [3]
    assert base.writes == []


def planned(node: World, folder: Path, text: str, topology: Topology = HERE) -> Preview:
    """Return what a file would change."""
    file = folder / "new.yml.txt"
    file.write_text(text)
    config = Config(sources=(f"manifests:{folder}",))
    then = ManifestReader(config).merged(read_files([str(file)], config))
    return preview(node.maps, node.snapshot().state, then.state, topology, 10**9)


def flow(maps: FakeMaps, slot: int) -> None:
    """Put a live connection to a backend into the maps."""
    key, value = np.zeros(1, FLOW_KEY[4]), np.zeros(1, FLOW[4])
    key["sport"], key["protocol"] = 1000 + slot, 6
    value["backend"], value["last_seen"], value["state"] = slot, 10**9, 1
    value["generation"] = maps.array("backends4")["generation"][slot]
    maps.update("flows4", key, value)
    maps.array("settings4")["tcp_established_ns"] = 10**10


def test_a_manifest_that_changes_nothing(tmp_path: Path) -> None:
    node = world(tmp_path)
    found = planned(node, tmp_path, WELL)
    assert (found.changes, found.flows, found.conflicts, found.beforehand) == ([], 0, (), 0)


def test_a_backend_that_goes_costs_its_connections(tmp_path: Path) -> None:
    node = world(tmp_path)
    for slot in slots(node.maps):
        flow(node.maps, slot)
    found = planned(node, tmp_path, ONE.replace("app: web", "app: other"))
    assert (found.flows, found.flows_all) == (1, 2)
    assert [one.entry for one in found.changes if one.map == "backends4" and one.sign == "-"] == ["#1"]
    assert node.compare().differences == []  # nothing was applied


def test_what_is_not_read_of_a_manifest_is_said(tmp_path: Path) -> None:
    file = tmp_path / "new.yml.txt"
    file.write_text(f"{WELL}---\napiVersion: apps/v1\nkind: Deployment\n")
    content = read_files([str(file)], Config())
    report = plan_command.as_dict(planned(world(tmp_path), tmp_path, WELL), [])
    text = plan_command.render({**report, "not_read": dict(content.passed_over)})
    assert "not read: 1 Deployment (apps/v1); what is read: Service, Pod," in text


def test_many_changes_are_summed_and_their_ids_are_sorted_as_numbers(tmp_path: Path) -> None:
    node = world(tmp_path)
    more = "".join(
        TWO.replace("name: two", f"name: p{at}").replace("10.244.2.2", f"10.244.3.{at}")
        for at in range(1, 13)
    )
    report = plan_command.as_dict(planned(node, tmp_path, SERVICE + more), [])
    came = [one["entry"] for one in report["changes"] if one["map"] == "backends4" and one["sign"] == "+"]
    assert came == [f"#{at}" for at in range(3, 15)]
    assert "in all: backends4 +12" in plan_command.render(report)


def test_a_new_service_and_the_room_that_is_left(tmp_path: Path) -> None:
    node = world(tmp_path)
    new = SERVICE.replace("name: web", "name: new").replace("0.10", "0.11")
    report = plan_command.as_dict(planned(node, tmp_path, new), [])
    assert [one["entry"] for one in report["changes"] if one["map"] == "vips4"] == [
        "10.96.0.11",
        "10.96.0.11:80/TCP",
    ]
    (vips,) = [one for one in report["room"] if one["map"] == "vips4"]
    assert (vips["entries"], vips["would_be"], vips["left"]) == (2, 4, vips["capacity"] - 4)
    assert report["problems"] == []
    text = plan_command.render(report)
    assert text == (Path(__file__).parent / "texts" / "plan-new.txt").read_text()
    assert max(map(len, text.splitlines())) <= 100


def test_an_address_that_another_has_is_a_problem(tmp_path: Path) -> None:
    node = world(tmp_path)
    report = plan_command.as_dict(planned(node, tmp_path, SERVICE.replace("name: web", "name: new")), [])
    assert "10.96.0.10:80/TCP belongs to Service default/web" in report["problems"][0]


def test_a_health_check_port_that_another_has_as_node_port_is_a_problem(tmp_path: Path) -> None:
    local = "spec:\n  type: LoadBalancer\n  externalTrafficPolicy: Local\n  healthCheckNodePort: 30777"
    new = SERVICE.replace("name: web", "name: new").replace("0.10", "0.11").replace("spec:", local)
    node_port = SERVICE.replace("spec:", "spec:\n  type: NodePort").replace(
        "port: 80,", "port: 80, nodePort: 30777,"
    )
    report = plan_command.as_dict(planned(world(tmp_path), tmp_path, new + node_port), [])
    assert report["problems"] == [
        "default/new: spec.healthCheckNodePort 30777: service default/web has it as a nodePort"
    ]


def test_a_file_that_is_wrong_is_one_error(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(SERVICE.replace("port: 80", "port: 80000"))
    with pytest.raises(LbError, match=r"x.yaml:7: Service default/web: spec.ports\[0\].port: must be from 1"):
        read_files([str(file)], Config())
    file.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(LbError, match=r"x.yaml: is not UTF-8 text"):
        read_files([str(file)], Config())
    with pytest.raises(LbError, match=r"gone.yaml: cannot be read: No such file"):
        read_files([str(tmp_path / "gone.yaml")], Config())


def test_several_files_folders_and_standard_input_are_planned_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def named(name: str, port: int) -> str:
        return SERVICE.replace("name: web", f"name: {name}").replace("port: 80", f"port: {port}")

    (tmp_path / "folder" / "below").mkdir(parents=True)
    (tmp_path / "folder" / "a.yaml").write_text(named("a", 1))
    (tmp_path / "folder" / "below" / "b.json").write_text(named("b", 2))
    (tmp_path / "folder" / "notes.txt").write_text("no manifest")
    (tmp_path / "again").write_text(named("a", 3))
    reading, writing = os.pipe()
    os.write(writing, named("c", 4).encode())
    os.close(writing)
    with os.fdopen(reading):
        monkeypatch.setattr("lb.diagnose.snapshot.STDIN", Path(f"/dev/fd/{reading}"))
        content = read_files([str(tmp_path / "folder"), str(tmp_path / "again"), "-"], Config())
    ports = {
        key.name: one.service.ports[0].port
        for (_, key), one in content.objects.items()
        if isinstance(one, ServiceRequest)
    }
    assert ports == {"a": 3, "b": 2, "c": 4}
    parsed = command.parser("plan").parse_args(["plan", "-f", "folder", "-f", "-"])
    assert parsed.file == ["folder", "-"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"empty: holds no manifest: no file ends in .yaml, .yml, .json"):
        read_files([str(tmp_path / "empty")], Config())


def test_the_text_of_an_audit(tmp_path: Path) -> None:
    node = world(tmp_path, SERVICE + ONE + TWO)
    no_vip(node.maps)
    foreign_vip(node.maps)
    text = audit_command.render(audit_command.as_dict("node1", node.compare(), []))
    assert text == (Path(__file__).parent / "texts" / "audit.txt").read_text()
    assert max(map(len, text.splitlines())) <= 100
    audit.heal(node.maps, node.snapshot().state, HERE)
    healed = audit_command.render(audit_command.as_dict("node1", node.compare(), []))
    assert healed == "the kernel holds what the source says: 1 Service, no difference\n"
    assert WEB in node.compare().plans


def test_an_agent_sees_what_others_wrote_of_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """What programs are told of interfaces and link addresses, and settings."""
    uplink = Interface(7, "eth0", "veth", mac="02:00:00:00:00:07")
    monkeypatch.setattr(attachment, "interfaces_and_roles", lambda _config: ([uplink], {7: Role.UPLINK}))
    monkeypatch.setattr("lb.datapath.attach.settings.netns_cookie", lambda: 1)
    maps, config = FakeMaps(), Config()
    attachment.write_node(maps, config, ())
    assert set(attachment.drift(maps, config, ()).values()) == {0}
    maps.array("links")["links"]["mac"][0, 0] = bytes(6)
    maps.array("settings4")["udp_ns"] = 1
    maps.delete("ifaces6", np.array([7], ID))
    found = attachment.drift(maps, config, ())
    assert {name for name, count in found.items() if count} == {"links", "settings4", "ifaces6"}
    assert found["links"] == 1
