# SPDX-License-Identifier: Apache-2.0
"""Hooks on real interfaces, each test in a network namespace of its own. Needs root."""

from __future__ import annotations

import contextlib
import shutil
import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

from lb.config import UplinkMode
from lb.datapath.attach import hooks, netlink
from lb.datapath.attach.hooks import (
    HookReport,
    Hooks,
    LostHook,
    Role,
    Selection,
    attached,
    choose_uplink_mode,
    detach_all,
)
from lb.datapath.attach.keeper import Keeper
from lb.datapath.attach.netlink import Interface, InterfaceWatcher, Netlink
from lb.datapath.kernel import bpf, tcx
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.kernel.pins import Pins, remove_tree, unload
from lb.datapath.kernel.rtnl import TC_HANDLE, Direction, Filter, filters, set_xdp
from lb.datapath.maps import layouts
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs import loader
from lb.datapath.programs.loader import Loaded
from lb.errors import AttachError, BpfError
from lb.halt import Halt
from tests.namespaces import NetworkNamespace
from tests.unit.pins_bench import LIMITS, own_pins, tiny_tree

NODE, NODE_SECOND, PEER = "192.0.2.1", "192.0.2.9", "192.0.2.2"
TC_NAMES, XDP_NAMES, SOCK_NAMES = (
    sorted(name for name, one in loader.PROGRAMS.items() if one.type is kind)
    for kind in (ProgType.SCHED_CLS, ProgType.XDP, ProgType.CGROUP_SOCK_ADDR)
)
PASS_ALL = "int {name}({ctx} *ctx)\n{{\n\treturn {verdict};\n}}\n"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tree with the real programs' names and nothing in them: attaching is what is tested."""
    tree = tiny_tree(tmp_path_factory.mktemp("tree"))
    tc = "".join(PASS_ALL.format(name=name, ctx="struct __sk_buff", verdict=-1) for name in TC_NAMES)
    xdp = "".join(PASS_ALL.format(name=name, ctx="struct xdp_md", verdict="XDP_PASS") for name in XDP_NAMES)
    (tree / "tc_lb.c").write_text(f'#include "cache.h"\n#include "reasons.h"\n{tc}')
    (tree / "xdp_lb.c").write_text(f'#include "cache.h"\n#include "reasons.h"\n{xdp}')
    sock = "".join(PASS_ALL.format(name=name, ctx="struct bpf_sock_addr", verdict=1) for name in SOCK_NAMES)
    (tree / "sock_lb.c").write_text(f'#include "cache.h"\n#include "reasons.h"\n{sock}')
    return tree


@pytest.fixture(scope="module")
def pins() -> Iterator[Pins]:
    with own_pins() as own:
        yield own


@pytest.fixture(scope="module")
def loaded(pins: Pins, tree: Path) -> Loaded:
    """The programs, built once: each test attaches them in a namespace of its own."""
    return loader.load(pins, LIMITS, bpf_dir=tree)


@pytest.fixture
def maps(pins: Pins, loaded: Loaded) -> Iterator[KernelMaps]:
    maps = KernelMaps(pins.maps)
    for name in ("ifaces4", "ifaces6"):
        maps.delete(name, maps.read(name)[0])
    yield maps
    maps.close()


@pytest.fixture
def another(tree: Path, tmp_path: Path) -> Path:
    """A copy of the tree whose programs differ from the first one's."""
    copy = tmp_path / "bpf"
    shutil.copytree(tree, copy)
    for source in ("tc_lb.c", "xdp_lb.c"):
        text = (copy / source).read_text()
        changed = text.replace("return", "int result =").replace(";\n}", ";\n\treturn result;\n}")
        (copy / source).write_text(changed)
    return copy


@pytest.fixture
def pods() -> Iterator[NetworkNamespace]:
    """Where the other ends of pods' interfaces are."""
    namespace = NetworkNamespace()
    yield namespace
    namespace.close()


@pytest.fixture
def route(pods: NetworkNamespace) -> Iterator[IPRoute]:
    """A node: ``up0`` with the default route, ``vx0``, a pod's ``pod1`` and a bystander, ``br0``."""
    namespace = NetworkNamespace()
    with namespace.entered(), IPRoute() as route:
        route.link("set", index=1, state="up")
        route.link("add", ifname="up0", kind="veth", peer={"ifname": "up0-peer"})
        route.link("add", ifname="br0", kind="bridge")
        up = index_of("up0")
        route.link("add", ifname="vx0", kind="vxlan", vxlan_id=7, vxlan_link=up, vxlan_port=4789)
        for name in ("up0", "up0-peer", "vx0", "br0"):
            route.link("set", index=index_of(name), state="up")
        route.addr("add", index=up, address=NODE, prefixlen=24)
        route.addr("add", index=up, address=NODE_SECOND, prefixlen=24)
        route.addr("add", index=index_of("br0"), address="198.51.100.1", prefixlen=24)
        route.route("add", dst="0.0.0.0/0", gateway=PEER)
        add_pod(route, "pod1", pods)
        yield route
    namespace.close()


def add_pod(route: IPRoute, name: str, pods: NetworkNamespace) -> None:
    peer = {"ifname": f"{name}-eth0", "net_ns_fd": pods.fileno()}
    route.link("add", ifname=name, kind="veth", peer=peer)
    route.link("set", index=index_of(name), state="up")


def index_of(name: str) -> int:
    return socket.if_nametoindex(name)


def by_name() -> dict[str, Interface]:
    with Netlink() as net:
        return {interface.name: interface for interface in net.interfaces()}


@contextlib.contextmanager
def hooked(
    loaded: Loaded,
    maps: KernelMaps,
    mode: UplinkMode = UplinkMode.AUTO,
    selection: Selection | None = None,
    *,
    redirect: bool = False,
) -> Iterator[Hooks]:
    hooks_ = Hooks(loaded.programs, maps, selection or Selection(), mode, redirect=redirect)
    try:
        yield hooks_
    finally:
        hooks_.close()


def shape() -> set[tuple[str, str, str]]:
    return {(one.interface, one.hook, one.program) for one in attached()}


UPLINK = {("up0", "tc ingress", "lb_tc_uplink_in"), ("up0", "tc egress", "lb_tc_uplink_out")}
TUNNEL = {("vx0", "tc ingress", "lb_tc_uplink_in"), ("vx0", "tc egress", "lb_tc_uplink_out")}
LOOPBACK = {("lo", "tc egress", "lb_tc_loopback")}
POD = {("pod1", "tc ingress", "lb_tc_pod_in"), ("pod1", "tc egress", "lb_tc_pod_out")}


def test_interfaces(route: IPRoute) -> None:
    found = by_name()
    up = found["up0"]
    assert (up.kind, up.up, up.ethernet, up.foreign_peer, up.xdp_id, up.mtu) == (
        "veth", True, True, False, 0, 1500,
    )  # fmt: skip
    four = [address for address in up.addresses if address.version == 4]
    assert four == [ip_interface(f"{NODE}/24"), ip_interface(f"{NODE_SECOND}/24")]
    assert up.source(4) == IPv4Address(NODE)
    assert (found["pod1"].foreign_peer, found["pod1"].source(4)) == (True, None)
    assert {name: found[name].kind for name in ("lo", "vx0", "br0")} == {
        "lo": "loopback", "vx0": "vxlan", "br0": "bridge",
    }  # fmt: skip


IFA_F_NODAD = 2


def test_dual_stack_primary_address_of_ipv6(route: IPRoute) -> None:
    """The one that was given first, of those that others may use: not link-local, deprecated or tentative."""
    up = index_of("up0")
    assert by_name()["up0"].source(6) is None, "link-local alone"
    Path("/proc/sys/net/ipv6/conf/up0/dad_transmits").write_text("600")  # tentative for as many seconds
    route.addr("add", index=up, address="2001:db8::9", prefixlen=64)
    route.addr("add", index=up, address="2001:db8::8", prefixlen=64, flags=IFA_F_NODAD, preferred=0)
    route.addr("add", index=up, address="fd00::5", prefixlen=64, flags=IFA_F_NODAD)
    route.addr("add", index=up, address="2001:db8::1", prefixlen=128, flags=IFA_F_NODAD)
    found = by_name()["up0"]
    assert {IPv6Address("2001:db8::9"), IPv6Address("2001:db8::8")} <= found.unfit
    assert found.source(6) == IPv6Address("fd00::5")
    assert found.source(4) == IPv4Address(NODE)


RT_SCOPE_LINK, RT_SCOPE_HOST = 253, 254


def test_an_address_of_link_scope_is_used_only_without_a_global_one(route: IPRoute) -> None:
    up = index_of("up0")
    route.flush_addr(index=up)
    route.addr("add", index=up, address="192.0.2.99", prefixlen=32, scope=RT_SCOPE_HOST)
    assert by_name()["up0"].source(4) is None, "nobody else may use it"
    route.addr("add", index=up, address="10.200.0.1", prefixlen=24, scope=RT_SCOPE_LINK)
    assert by_name()["up0"].source(4) == IPv4Address("10.200.0.1")
    route.addr("add", index=up, address="192.0.2.1", prefixlen=24)
    route.addr("add", index=up, address="192.0.2.2", prefixlen=24)
    found = by_name()["up0"]
    assert found.source(4) == IPv4Address("192.0.2.1")
    assert [str(each.ip) for each in found.addresses if each.version == 4] == [
        "192.0.2.1",
        "192.0.2.2",
        "10.200.0.1",
        "192.0.2.99",
    ]


def test_a_listing_that_is_interrupted_starts_again() -> None:
    answers: list[NetlinkDumpInterrupted | list[int]]
    answers = [NetlinkDumpInterrupted(), NetlinkDumpInterrupted(), [1, 2]]

    def listing() -> list[int]:
        answer = answers.pop(0)
        if not isinstance(answer, list):
            raise answer
        return answer

    assert netlink._dump(listing) == [1, 2]
    answers = [NetlinkDumpInterrupted() for _ in range(100)]
    with pytest.raises(AttachError, match="change faster"):
        netlink._dump(listing)


def test_default_routes(route: IPRoute) -> None:
    with Netlink() as net:
        assert net.default_route_interfaces() == [index_of("up0")]
        route.route("add", dst="0.0.0.0/0", oif=index_of("br0"), priority=5)
        assert net.default_route_interfaces() == [index_of("up0"), index_of("br0")]
        route.route("del", dst="0.0.0.0/0", gateway=PEER)
        route.route("del", dst="0.0.0.0/0", oif=index_of("br0"), priority=5)
        hops = [{"gateway": PEER, "hops": 1}, {"oif": index_of("br0"), "hops": 1}]
        route.route("add", dst="0.0.0.0/0", multipath=hops)
        assert set(net.default_route_interfaces()) == {index_of("up0"), index_of("br0")}


def test_dual_stack_an_uplink_with_an_ipv6_route_alone(route: IPRoute) -> None:
    route.route("del", dst="0.0.0.0/0", gateway=PEER)
    route.route("add", family=socket.AF_INET6, dst="::/0", oif=index_of("br0"))
    with Netlink() as net:
        assert net.default_route_interfaces() == [index_of("br0")]


@pytest.fixture(params=["tcx", "clsact"])
def tc_hook(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where tc programs are: at the hook itself, or, as before Linux 6.6, in a qdisc's filter."""
    if request.param == "clsact":
        monkeypatch.setattr(tcx, "programs", lambda *_: None)
    elif tcx.programs(1, Direction.INGRESS) is None:
        pytest.skip("this kernel, older than 6.6, has no tcx")
    return str(request.param)


def test_every_role_gets_its_programs(route: IPRoute, loaded: Loaded, maps: KernelMaps, tc_hook: str) -> None:
    with hooked(loaded, maps) as own:
        report = own.sync()
        assert shape() == LOOPBACK | UPLINK | TUNNEL | POD
        assert {one.program: one.program_id for one in attached()} == {
            program: loaded.ids[program] for each in hooks.TC_PROGRAMS.values() for program in each.values()
        }
        assert (len(report.attached), report.detached, report.errors) == (7, [], [])
        assert own.modes == {
            "up0": (UplinkMode.TC, "veth: XDP would turn off the peer's segmentation offload")
        }
        assert own.sync() == HookReport()
    in_filters = {one.name for direction in Direction for one in filters(index_of("up0"), direction)}
    assert in_filters == ({"lb_tc_uplink_in", "lb_tc_uplink_out"} if tc_hook == "clsact" else set())


def test_programs_in_filters_go_when_the_hook_takes_them(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An earlier agent, or the node's kernel before, left them."""
    if tcx.programs(1, Direction.INGRESS) is None:
        pytest.skip("this kernel, older than 6.6, has no tcx")
    with hooked(loaded, maps) as own:
        with monkeypatch.context() as before:
            before.setattr(tcx, "programs", lambda *_: None)
            own.sync()
        attached_again = own.sync()
        assert len(attached_again.attached) == 7
        assert shape() == LOOPBACK | UPLINK | TUNNEL | POD
        for name in ("up0", "vx0", "pod1"):
            assert "clsact" not in qdiscs(route, index_of(name))
            assert [len(tcx.programs(index_of(name), each) or ()) for each in Direction] == [1, 1]


def test_tcx_programs_of_others_are_left_alone(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    """Ours run before them, or the VIP would not be gone yet."""
    up = index_of("up0")
    if tcx.programs(up, Direction.INGRESS) is None:
        pytest.skip("this kernel, older than 6.6, has no tcx")
    with stranger_program() as stranger, hooked(loaded, maps) as own:
        tcx.attach(up, Direction.INGRESS, stranger, None)
        own.sync()
        ids = [loaded.ids["lb_tc_uplink_in"], bpf.prog_info(stranger).id]
        assert tcx.programs(up, Direction.INGRESS) == ids
        assert own.sync() == HookReport()
        detach_all()
        assert tcx.programs(up, Direction.INGRESS) == ids[1:]


def stranger_program() -> bpf.FD:
    """Load a program of somebody else, which passes everything."""
    code = bytes.fromhex("b7000000ffffffff9500000000000000")
    program, log, _ = bpf.prog_load(ProgType.SCHED_CLS, code, "cil_from_net")
    assert program is not None, log
    return program


def test_interface_map(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    def rows() -> dict[int, tuple[str, int]]:
        keys, values = maps.read("ifaces4")
        return {
            int(key): (str(IPv4Address(int(row["source"]))), int(row["flags"]))
            for key, row in zip(keys, values, strict=True)
        }

    up, tunnel, bridge = index_of("up0"), index_of("vx0"), index_of("br0")
    with hooked(loaded, maps) as own:
        own.sync()
        assert rows() == {0: (NODE, 0), up: (NODE, 1), tunnel: (NODE, 2)}, "the bridge is no way out"
        route.addr("add", index=tunnel, address="10.0.9.1", prefixlen=32)
        route.link("del", index=bridge)
        own.sync({tunnel, bridge})
        assert rows() == {0: (NODE, 0), up: (NODE, 1), tunnel: ("10.0.9.1", 2)}
        Path("/proc/sys/net/ipv4/conf/up0/promote_secondaries").write_text("1")
        route.addr("del", index=up, address=NODE, prefixlen=24)
        own.sync({up})
        assert rows() == {0: (NODE_SECOND, 0), up: (NODE_SECOND, 1), tunnel: ("10.0.9.1", 2)}


def test_the_sources_are_the_addresses_of_the_node_object(
    route: IPRoute, loaded: Loaded, maps: KernelMaps
) -> None:
    def source(index: int) -> str:
        keys, values = maps.read("ifaces4")
        rows = dict(zip(keys.tolist(), values.tolist(), strict=True))
        return str(layouts.unpack_address(rows[index][0]))

    def sync(*own: str) -> tuple[str, str]:
        hooks.sync(set(), [ip_address(text) for text in own])
        return source(0), source(up)

    up = index_of("up0")
    with hooked(loaded, maps) as hooks:
        assert sync() == (NODE, NODE)
        assert sync("2001:db8::1", NODE_SECOND, NODE) == (NODE_SECOND, NODE_SECOND)
        assert sync() == (NODE_SECOND, NODE_SECOND), "it stays while the Node is not known"
        assert sync("203.0.113.9") == (NODE, NODE), "which is on no interface"
        route.addr("add", index=index_of("lo"), address="203.0.113.9", prefixlen=32)
        assert sync("203.0.113.9") == (NODE, NODE), "the uplink has addresses of its own"
        route.flush_addr(index=up)
        assert sync("203.0.113.9") == ("203.0.113.9", "203.0.113.9"), "a host route to an address of lo"


def test_interface_map_follows_the_link_address(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    """XDP compares a frame's destination with it; an event tells of a change (RTM_NEWLINK)."""
    up = index_of("up0")

    def known() -> dict[int, str]:
        rows = maps.array("links")[0]["links"]
        return {int(row["ifindex"]): row["mac"].tobytes().hex(":") for row in rows if row["ifindex"]}

    with hooked(loaded, maps) as own:
        own.sync()
        assert known() == {up: by_name()["up0"].mac}
        changed: list[set[int]] = []
        watcher = InterfaceWatcher(changed.append)
        route.link("set", index=up, address="02:00:00:00:77:01")
        assert watcher.step(5.0)
        watcher.close()
        own.sync(set.union(*changed))
        assert known() == {up: "02:00:00:00:77:01"}


def test_redirect_is_for_veths_with_an_end_in_a_pod(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, pods: NetworkNamespace
) -> None:
    """Anything else the kernel would drop what is redirected to: a tap device, a veth with both ends here."""
    route.link("add", ifname="pod2", kind="veth", peer={"ifname": "pod2-peer"})
    route.link("add", ifname="pod3", kind="tuntap", mode="tap")
    selection = Selection(pod_interfaces=("pod?",))

    def peers(name: str) -> set[int]:
        keys, values = maps.read(name)
        return {
            int(key) for key, row in zip(keys, values, strict=True) if row["flags"] & layouts.IfaceFlag.PEER
        }

    for redirect in (False, True, False):
        with hooked(loaded, maps, selection=selection, redirect=redirect) as own:
            own.sync()
            expected = {index_of("pod1")} if redirect else set()
            assert (peers("ifaces4"), peers("ifaces6")) == (expected, expected)
            add_pod(route, "pod4", pods)
            own.sync({index_of("pod4")})
            assert (index_of("pod4") in peers("ifaces4")) == redirect
            route.link("del", index=index_of("pod4"))
            own.sync()
            assert peers("ifaces4") == expected


def test_dual_stack_interface_map_of_ipv6(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    def rows() -> dict[int, tuple[str, int]]:
        keys, values = maps.read("ifaces6")
        return {
            index: (str(layouts.unpack_address(source)), flags)
            for index, (source, flags) in zip(keys.tolist(), values.tolist(), strict=True)
        }

    up, tunnel = index_of("up0"), index_of("vx0")
    with hooked(loaded, maps) as own:
        own.sync()
        assert rows() == {up: ("::", 1), tunnel: ("::", 2)}
        route.addr("add", index=up, address="2001:db8::1", prefixlen=64, flags=IFA_F_NODAD)
        own.sync({up})
        assert rows() == {0: ("2001:db8::1", 0), up: ("2001:db8::1", 1), tunnel: ("2001:db8::1", 2)}
        writes = maps.read("ifaces6")[0].tolist()
        assert own.sync() == HookReport()
        assert sorted(maps.read("ifaces6")[0].tolist()) == sorted(writes)


def test_overlay_without_ethernet_has_programs_of_its_own(
    route: IPRoute, loaded: Loaded, maps: KernelMaps
) -> None:
    route.link("add", ifname="tun0", kind="tuntap", mode="tun")
    with hooked(loaded, maps, UplinkMode.XDP_GENERIC, Selection(tunnels=("tun0",))) as own:
        assert own.sync().errors == []
    assert {each for each in shape() if each[0] == "tun0"} == {
        ("tun0", "tc ingress", "lb_tc_l3_in"),
        ("tun0", "tc egress", "lb_tc_l3_out"),
    }


def test_a_lost_default_route_loses_no_uplink(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    """A DHCP lease that is renewed takes the route away for a moment."""
    with hooked(loaded, maps) as own:
        own.sync()
        route.route("del", dst="0.0.0.0/0", gateway=PEER)
        assert own.sync() == HookReport()
        assert shape() >= UPLINK
        route.route("add", dst="0.0.0.0/0", oif=index_of("br0"))
        assert sorted(own.sync().detached) == ["up0 tc"]
        assert ("br0", "tc ingress", "lb_tc_uplink_in") in shape()


def test_a_new_interface_gets_its_programs_by_its_event(
    route: IPRoute, pods: NetworkNamespace, loaded: Loaded, maps: KernelMaps
) -> None:
    reports: list[HookReport] = []
    with hooked(loaded, maps) as own:
        own.sync()
        watcher = InterfaceWatcher(lambda changed: reports.append(own.sync(changed)))
        with contextlib.closing(watcher):
            add_pod(route, "pod2", pods)
            assert watcher.step(5)
            hook_names = {(hook, program) for name, hook, program in shape() if name == "pod2"}
            assert hook_names == {(hook, program) for _, hook, program in POD}
            route.link("del", index=index_of("pod2"))
            while any(name == "pod2" for name, _, _ in shape()):
                assert watcher.step(5)
    assert not any(report.errors for report in reports)


def test_watcher_thread_stops(route: IPRoute, pods: NetworkNamespace) -> None:
    seen: set[int] = set()
    stop, told = Halt(), threading.Event()

    def changed(indexes: set[int]) -> None:
        seen.update(indexes)
        told.set()

    with contextlib.closing(InterfaceWatcher(changed)) as watcher:
        thread = threading.Thread(target=watcher.run, args=(stop,))
        thread.start()
        add_pod(route, "pod2", pods)
        index = index_of("pod2")
        assert told.wait(5)
        stop.set()
        thread.join(5)
        assert not thread.is_alive()
    assert index in seen


def test_dropped_events_mean_everything(route: IPRoute) -> None:
    seen: set[int] = set()
    with contextlib.closing(InterfaceWatcher(seen.update)) as watcher:
        watcher._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for state in ("down", "up") * 10:
            route.link("set", index=index_of("br0"), state=state)
        assert watcher.step(5)
    assert seen == {index for index, _ in socket.if_nameindex()}


def test_a_restart_keeps_what_is_attached(
    route: IPRoute, pins: Pins, tree: Path, loaded: Loaded, maps: KernelMaps
) -> None:
    with hooked(loaded, maps) as own:
        own.sync()
    before = attached()
    again = loader.load(pins, LIMITS, bpf_dir=tree)
    assert not again.compiled
    with hooked(again, maps) as own:
        assert own.sync() == HookReport()
    assert attached() == before


@pytest.mark.parametrize("mode", [UplinkMode.TC, UplinkMode.XDP_NATIVE, UplinkMode.XDP_GENERIC])
def test_new_programs_take_over(
    route: IPRoute, pins: Pins, another: Path, loaded: Loaded, maps: KernelMaps, mode: UplinkMode
) -> None:
    with hooked(loaded, maps, mode) as own:
        own.sync()
    before = shape()
    upgraded = loader.load(pins, LIMITS, bpf_dir=another)
    assert set(upgraded.ids.values()).isdisjoint(loaded.ids.values())
    with hooked(upgraded, maps, mode) as own:
        report = own.sync()
    assert report.errors == []
    assert shape() == before
    assert {one.program_id for one in attached()} <= set(upgraded.ids.values())
    assert all(len(netlink.tc_programs(index_of("up0"), direction, {})) == 1 for direction in Direction)
    loader.prune(pins, loaded)  # what is attached outlives its pins
    assert pins.builds() == [pins.programs(loaded.fingerprint)]
    assert shape() == before


@pytest.mark.parametrize("mode", [UplinkMode.XDP_NATIVE, UplinkMode.XDP_GENERIC])
def test_xdp_on_the_uplink(route: IPRoute, loaded: Loaded, maps: KernelMaps, mode: UplinkMode) -> None:
    xdp = {("up0", mode.value, "lb_xdp_uplink")}
    with hooked(loaded, maps, mode) as own:
        assert own.sync().errors == []
        assert own.modes == {"up0": (mode, "as configured")}
        assert shape() == LOOPBACK | UPLINK | TUNNEL | POD | xdp  # tc is the second stage
        assert own.sync() == HookReport()
    other = UplinkMode.XDP_GENERIC if mode is UplinkMode.XDP_NATIVE else UplinkMode.XDP_NATIVE
    with hooked(loaded, maps, other) as own:
        assert own.sync().attached == [f"up0 {other.value}"]
        assert shape() == LOOPBACK | UPLINK | TUNNEL | POD | {("up0", other.value, "lb_xdp_uplink")}
    with hooked(loaded, maps, UplinkMode.TC) as own:
        assert own.sync().detached == ["up0 XDP"]
        assert shape() == LOOPBACK | UPLINK | TUNNEL | POD


def test_a_driver_without_xdp_falls_back_to_tc(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bridge has no native XDP: stands for a physical card whose driver has none."""
    selection = Selection(uplinks=("br0",))
    says = "br0: xdp-native: Operation not supported ("  # and in parentheses the kernel's explanation
    with hooked(loaded, maps, UplinkMode.XDP_NATIVE, selection) as own:
        (error,) = own.sync().errors
        assert str(error).startswith(says)
    monkeypatch.setattr(hooks, "choose_uplink_mode", lambda *_: (UplinkMode.XDP_NATIVE, "to be tried"))
    with hooked(loaded, maps, UplinkMode.AUTO, selection) as own:
        assert own.sync().errors == []
        mode, why = own.modes["br0"]
        assert mode is UplinkMode.TC
        assert why.startswith(says)
        assert own.sync() == HookReport()
    assert ("br0", "tc ingress", "lb_tc_uplink_in") in shape()


def attach_stranger(route: IPRoute, ifindex: int, loaded: Loaded) -> Filter:
    """Attach a filter as another project would, and return it."""
    with contextlib.suppress(Exception):
        route.tc("add", "clsact", ifindex)
    with bpf.obj_get(loaded.programs["lb_tc_pod_in"]) as fd:
        route.tc(
            "add-filter", "bpf", ifindex, handle=1, parent=int(Direction.INGRESS), prio=1,
            fd=fd.fileno(), name="cil_from_netdev", direct_action=True,
        )  # fmt: skip
    (found,) = [one for one in filters(ifindex, Direction.INGRESS) if not one.ours]
    return found


def qdiscs(route: IPRoute, ifindex: int) -> set[str]:
    return {message.get_attr("TCA_KIND") for message in route.get_qdiscs(index=ifindex)}


def test_detaching_and_unloading_leaves_nothing(route: IPRoute, tree: Path, tc_hook: str) -> None:
    with own_pins() as pins:
        loaded = loader.load(pins, LIMITS, bpf_dir=tree)
        maps = KernelMaps(pins.maps)
        with hooked(loaded, maps, UplinkMode.XDP_NATIVE) as own:
            own.sync()
        maps.close()
        report = detach_all()
        unload(pins)
        assert not pins.base.exists()
    assert report.errors == []
    assert sorted(report.detached) == ["lo tc", "pod1 tc", "up0 XDP", "up0 tc", "vx0 tc"]
    assert attached() == []
    for name, interface in by_name().items():
        assert interface.xdp_id == 0
        assert "clsact" not in qdiscs(route, index_of(name))
    assert detach_all() == HookReport()
    for ident in loaded.ids.values():
        wait_until_gone(ident)


def wait_until_gone(program_id: int) -> None:
    """Wait until the kernel has freed a program, which it does some time after its last use."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            bpf.prog_by_id(program_id).close()
        except BpfError:
            return
        time.sleep(0.01)
    pytest.fail(f"program {program_id} is still there")


def test_filters_of_others_are_left_alone(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, tc_hook: str
) -> None:
    up = index_of("up0")
    stranger = attach_stranger(route, up, loaded)
    route.tc("add", "clsact", index_of("vx0"))
    with hooked(loaded, maps) as own:
        assert own.sync().errors == []
        assert stranger in filters(up, Direction.INGRESS)
        handles = [one.handle for one in filters(up, Direction.INGRESS)]
        assert handles == ([1, TC_HANDLE] if tc_hook == "clsact" else [1])
        assert own.sync() == HookReport()
    detach_all()
    assert filters(up, Direction.INGRESS) == [stranger]
    assert filters(up, Direction.EGRESS) == []
    assert "clsact" in qdiscs(route, up)


@pytest.mark.parametrize("mode", [UplinkMode.XDP_NATIVE, UplinkMode.AUTO])
def test_xdp_of_others_is_left_alone(
    route: IPRoute, tree: Path, tmp_path: Path, loaded: Loaded, maps: KernelMaps, mode: UplinkMode,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    strange_tree = shutil.copytree(tree, tmp_path / "bpf")
    path = strange_tree / "xdp_lb.c"
    path.write_text(path.read_text().replace("lb_xdp_uplink", "katran"))
    with own_pins() as others:
        programs = {"katran": loader.PROGRAMS["lb_xdp_uplink"]}
        strange = loader.load(others, LIMITS, bpf_dir=strange_tree, programs=programs)
        with bpf.obj_get(strange.programs["katran"]) as fd:
            set_xdp(index_of("up0"), fd.fileno(), 1 << 2)  # XDP_FLAGS_DRV_MODE
        ident = strange.ids["katran"]
    monkeypatch.setattr(hooks, "choose_uplink_mode", lambda *_: (UplinkMode.XDP_NATIVE, "as a physical card"))
    says = f"up0: XDP: another program (id {ident}) is attached"
    with hooked(loaded, maps, mode) as own:
        report = own.sync()
        if mode is UplinkMode.AUTO:
            assert own.modes["up0"] == (UplinkMode.TC, says)
            assert report.errors == []
        else:
            assert [str(error) for error in report.errors] == [says]
        assert shape() >= UPLINK
    detach_all()
    assert by_name()["up0"].xdp_id == ident


def test_what_has_lost_its_role_is_detached(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    with hooked(loaded, maps) as own:
        own.sync()
    with hooked(loaded, maps, selection=Selection(pod_interfaces=("none*",), tunnels=("none*",))) as own:
        assert sorted(own.sync().detached) == ["pod1 tc", "vx0 tc"]
    assert shape() == LOOPBACK | UPLINK


def test_what_somebody_removed_comes_back(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, tc_hook: str
) -> None:
    with hooked(loaded, maps) as own:
        own.sync()
        if tc_hook == "clsact":
            route.tc("del", "clsact", index_of("pod1"))
        else:
            with Netlink() as net:
                net.detach_tc(by_name()["pod1"])
        assert own.sync().attached == ["pod1 tc ingress", "pod1 tc egress"]
    assert shape() >= POD


def test_self_repair_what_somebody_detached_is_found(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, tc_hook: str
) -> None:
    with hooked(loaded, maps) as own:
        own.sync()
        assert own.lost() == []
        with Netlink() as net:
            net.detach_tc(by_name()["up0"])
        assert own.lost() == [
            LostHook("uplink up0, tc ingress: lb_tc_uplink_in", outward=True),
            LostHook("uplink up0, tc egress: lb_tc_uplink_out", outward=True),
        ]
        own.sync()
        assert own.lost() == []
        route.link("del", index=index_of("pod1"))
        assert own.lost() == [], "it went with its interface"
    assert tc_hook


def test_self_repair_a_hook_that_cannot_be_attached_stays_lost(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise AttachError("up0: tc ingress: Operation not permitted")

    monkeypatch.setattr(Netlink, "attach_tc", refused)
    with hooked(loaded, maps) as own:
        assert own.sync().errors
        assert {one.outward for one in own.lost()} == {True, False}


def test_self_repair_pins_are_put_back(tree: Path) -> None:
    """Meanwhile the kernel empties no array of programs: the keeper has it open."""
    with own_pins() as pins:
        built = loader.load(pins, LIMITS, bpf_dir=tree)
        folder = pins.programs(built.fingerprint)
        keeper = Keeper(pins, folder)
        before = sorted(path for path in pins.base.rglob("*"))
        remove_tree(pins.base)
        assert len(keeper.mend()) == len([path for path in before if not path.is_dir()])
        assert sorted(path for path in pins.base.rglob("*")) == before
        assert keeper.mend() == []
        keeper.close()
        again = loader.load(pins, LIMITS, bpf_dir=tree)
        assert (again.compiled, again.ids, again.fresh) == (False, built.ids, frozenset())


def test_an_interface_that_vanishes_meanwhile(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Netlink.interfaces

    def and_one_gone(net: Netlink) -> list[Interface]:
        found = real(net)
        return [*found, replace(found[-1], index=4000, name="ghost", kind="veth", foreign_peer=True)]

    monkeypatch.setattr(Netlink, "interfaces", and_one_gone)
    with hooked(loaded, maps) as own:
        assert own.sync().errors == []
    assert shape() == LOOPBACK | UPLINK | TUNNEL | POD


def test_attach_error_names_interface_and_hook(route: IPRoute, loaded: Loaded) -> None:
    up = by_name()["up0"]
    with (
        Netlink() as net,
        bpf.obj_get(loaded.programs["lb_xdp_uplink"]) as xdp_program,
        pytest.raises(AttachError, match="up0: tc ingress: Invalid argument"),
    ):
        net.attach_tc(up, Direction.INGRESS, "lb_tc_x", xdp_program)


def interface(index: int, name: str, kind: str = "veth", *, foreign: bool = False) -> Interface:
    return Interface(index, name, kind, foreign_peer=foreign)


INTERFACES = [
    interface(1, "lo", "loopback"),
    interface(2, "eth0", "physical"),
    interface(3, "eth1", "physical"),
    interface(4, "flannel.1", "vxlan"),
    interface(5, "veth12", foreign=True),
    interface(6, "veth-local"),
    interface(7, "cali99", foreign=True),
    replace(interface(8, "tunl0", "ipip"), up=False),  # as the kernel makes it in each namespace
    interface(9, "tun6", "ip6tnl"),
]


@pytest.mark.parametrize(
    ("selection", "roles"),
    [
        (Selection(), {2: Role.UPLINK, 4: Role.TUNNEL, 5: Role.POD, 7: Role.POD, 9: Role.TUNNEL}),
        (
            Selection(uplinks=("eth1",)),
            {3: Role.UPLINK, 4: Role.TUNNEL, 5: Role.POD, 7: Role.POD, 9: Role.TUNNEL},
        ),
        (Selection(tunnels=("tunl0",)), {2: Role.UPLINK, 5: Role.POD, 7: Role.POD, 8: Role.TUNNEL}),
        (Selection(pod_interfaces=("cali*",)), {2: Role.UPLINK, 4: Role.TUNNEL, 7: Role.POD, 9: Role.TUNNEL}),
        (
            Selection(uplinks=("eth*",), tunnels=("fl*",), pod_interfaces=("*",)),
            {2: Role.UPLINK, 3: Role.UPLINK, 4: Role.TUNNEL, **dict.fromkeys((5, 6, 7, 8, 9), Role.POD)},
        ),
    ],
)
def test_roles(selection: Selection, roles: dict[int, Role]) -> None:
    assert selection.roles(INTERFACES, [2]) == {1: Role.LOOPBACK, **roles}


def test_an_uplink_that_is_not_there_is_an_error() -> None:
    interfaces = [interface(2, "eth0"), interface(3, "eth1")]

    def errors(default_routes: Sequence[int], *uplinks: str) -> list[str]:
        selection = Selection(uplinks=uplinks)
        return [
            str(error) for error in selection.missing(interfaces, selection.roles(interfaces, default_routes))
        ]

    assert errors([2]) == []
    assert errors([2], "eth1") == []
    assert errors([2], "eth*") == []
    assert errors([2], "eth1", "eth7") == ["uplink eth7: there is no such interface"]
    assert errors([]) == ["no uplink: there is no default route; name the interface with --uplink"]


@pytest.mark.parametrize(
    ("kind", "wanted", "mode", "why"),
    [
        ("physical", UplinkMode.AUTO, UplinkMode.XDP_NATIVE, "the driver runs XDP"),
        ("veth", UplinkMode.AUTO, UplinkMode.TC, "veth: XDP would turn off"),
        ("bond", UplinkMode.AUTO, UplinkMode.TC, "bond: a virtual device"),
        ("veth", UplinkMode.XDP_NATIVE, UplinkMode.XDP_NATIVE, "as configured"),
        ("physical", UplinkMode.TC, UplinkMode.TC, "as configured"),
    ],
)
def test_uplink_mode(kind: str, wanted: UplinkMode, mode: UplinkMode, why: str) -> None:
    chosen, reason = choose_uplink_mode(interface(2, "eth0", kind), wanted)
    assert chosen is mode
    assert reason.startswith(why)


@pytest.mark.parametrize("wanted", UplinkMode)
def test_overlay_without_ethernet_never_has_xdp(wanted: UplinkMode) -> None:
    bare = replace(interface(2, "wg0", "wireguard"), ethernet=False)
    assert choose_uplink_mode(bare, wanted)[0] is UplinkMode.TC
