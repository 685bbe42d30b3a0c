# SPDX-License-Identifier: Apache-2.0
"""Hooks on real interfaces, each test in a network namespace of its own. Needs root."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from lb.config import UplinkMode
from lb.datapath.attach import hooks, netlink
from lb.datapath.attach.hooks import (
    HookReport,
    Selection,
    attached,
    detach_all,
)
from lb.datapath.attach.netlink import Interface, Netlink
from lb.datapath.kernel import bpf
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.kernel.rtnl import Direction, filters
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs import loader
from lb.datapath.programs.loader import Loaded
from lb.errors import AttachError
from tests.netns.attach.bench import (
    LOOPBACK,
    PEER,
    POD,
    TUNNEL,
    UPLINK,
    by_name,
    hooked,
    index_of,
    qdiscs,
    shape,
    wait_until_gone,
)
from tests.unit.pins_bench import LIMITS, own_pins


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


def test_xdp_asks_for_its_programs_at_the_next_start(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A network card that comes to a node without one is served by tc until the agent starts again."""
    assert not hooks.may_run_xdp(UplinkMode.AUTO)  # there are only virtual devices
    without_xdp = {name: path for name, path in loaded.programs.items() if "xdp" not in name}
    monkeypatch.setattr(hooks, "choose_uplink_mode", lambda *_: (UplinkMode.XDP_NATIVE, "as a physical card"))
    assert hooks.may_run_xdp(UplinkMode.AUTO)
    with hooked(replace(loaded, programs=without_xdp), maps) as own:
        assert own.sync().errors == []
        assert own.modes == {"up0": (UplinkMode.TC, hooks.NO_XDP)}
        assert own.sync() == HookReport()
    assert shape() == LOOPBACK | UPLINK | TUNNEL | POD


@pytest.mark.parametrize("mode", UplinkMode)
def test_only_the_programs_of_wanted_modes_are_loaded(route: IPRoute, mode: UplinkMode) -> None:
    xdp = hooks.may_run_xdp(mode)
    assert xdp == mode.value.startswith("xdp")
    names = set(loader.serving(direct=True, xdp=xdp))
    assert xdp == (names == set(loader.PROGRAMS))
    assert xdp == any(name.startswith("lb_xdp") for name in names)


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


def test_what_has_lost_its_role_is_detached(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    with hooked(loaded, maps) as own:
        own.sync()
    with hooked(loaded, maps, selection=Selection(pod_interfaces=("none*",), tunnels=("none*",))) as own:
        assert sorted(own.sync().detached) == ["pod1 tc", "vx0 tc"]
    assert shape() == LOOPBACK | UPLINK


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
