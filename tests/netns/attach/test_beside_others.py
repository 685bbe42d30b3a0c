# SPDX-License-Identifier: Apache-2.0
"""Hooks at which there are other programs, or from which ours were taken. Needs root."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from pyroute2 import IPRoute

from lb.config import UplinkMode
from lb.datapath.attach import hooks
from lb.datapath.attach.hooks import (
    HookReport,
    LostHook,
    detach_all,
)
from lb.datapath.attach.keeper import Keeper
from lb.datapath.attach.netlink import Netlink
from lb.datapath.kernel import bpf, tcx
from lb.datapath.kernel.pins import remove_tree
from lb.datapath.kernel.rtnl import TC_HANDLE, Direction, filters, set_xdp
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs import loader
from lb.datapath.programs.loader import Loaded
from lb.errors import AttachError
from tests.netns.attach.bench import (
    LOOPBACK,
    POD,
    TUNNEL,
    UPLINK,
    attach_stranger,
    by_name,
    hooked,
    index_of,
    qdiscs,
    shape,
    stranger_program,
)
from tests.unit.pins_bench import LIMITS, own_pins


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
