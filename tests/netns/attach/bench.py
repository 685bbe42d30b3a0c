# SPDX-License-Identifier: Apache-2.0
"""Interfaces as a node has them, and what is attached to them."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from lb.config import UplinkMode
from lb.datapath.attach.hooks import (
    Hooks,
    Selection,
    attached,
)
from lb.datapath.attach.netlink import Interface, Netlink
from lb.datapath.kernel import bpf
from lb.datapath.kernel.bpf import ProgType
from lb.datapath.kernel.rtnl import Direction, Filter, filters
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs import loader
from lb.datapath.programs.loader import Loaded
from lb.errors import BpfError
from tests.namespaces import NetworkNamespace

NODE, NODE_SECOND, PEER = "192.0.2.1", "192.0.2.9", "192.0.2.2"
TC_NAMES, XDP_NAMES, SOCK_NAMES = (
    sorted(name for name, one in loader.PROGRAMS.items() if one.type is kind)
    for kind in (ProgType.SCHED_CLS, ProgType.XDP, ProgType.CGROUP_SOCK_ADDR)
)
PASS_ALL = "int {name}({ctx} *ctx)\n{{\n\treturn {verdict};\n}}\n"


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


def stranger_program() -> bpf.FD:
    """Load a program of somebody else, which passes everything."""
    code = bytes.fromhex("b7000000ffffffff9500000000000000")
    program, log, _ = bpf.prog_load(ProgType.SCHED_CLS, code, "cil_from_net")
    assert program is not None, log
    return program


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
