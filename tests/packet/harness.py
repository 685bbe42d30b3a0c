# SPDX-License-Identifier: Apache-2.0
"""The real programs on a bench: loaded from bpf/, in a network namespace with routes, fed by the packet."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import socket
import struct
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pyroute2 import IPRoute

from lb.config import Limits, SnatPorts, Timeouts
from lb.datapath.attach.hooks import TC_PROGRAMS, XDP_PROGRAM, Role
from lb.datapath.attach.netlink import Netlink
from lb.datapath.attach.snat import add_snat_sources
from lb.datapath.kernel import bpf
from lb.datapath.kernel.pins import Pins, unload
from lb.datapath.kernel.rtnl import Direction
from lb.datapath.maps import layouts
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs import loader
from lb.datapath.programs.loader import PROGRAMS, Program, load, pin_name, program_array
from lb.datapath.sync.direct_return import DirectReturn
from lb.datapath.sync.gone_vips import REST_SECONDS
from lb.datapath.sync.reconcile import Reconciler
from lb.errors import BpfError
from lb.model import Node, ObjectKey
from lb.plan.types import ServicePlan
from tests import packets as p
from tests.namespaces import NetworkNamespace

XDP = XDP_PROGRAM
TC_UPLINK_IN = TC_PROGRAMS[Role.UPLINK][Direction.INGRESS]
TC_UPLINK_OUT = TC_PROGRAMS[Role.UPLINK][Direction.EGRESS]
TC_POD_IN = TC_PROGRAMS[Role.POD][Direction.INGRESS]
TC_POD_OUT = TC_PROGRAMS[Role.POD][Direction.EGRESS]
TC_LOOPBACK = TC_PROGRAMS[Role.LOOPBACK][Direction.EGRESS]
OUTSIDE_INGRESS = (XDP, TC_UPLINK_IN)

HOOK_OF = {
    XDP: "XDP_UPLINK",
    TC_UPLINK_IN: "TC_UPLINK_IN",
    TC_UPLINK_OUT: "TC_UPLINK_OUT",
    TC_POD_IN: "TC_POD_IN",
    TC_POD_OUT: "TC_POD_OUT",
    TC_LOOPBACK: "TC_LOOPBACK",
}

LIMITS = Limits(vips=4096, backends=4096, table_rows=1 << 18, flows=8192, affinity=1024)

PASS, DROP, SEND, TAKEN = "pass", "drop", "send", "taken"
_RTAX_MTU = 2  # of rtnetlink(7): bpf_fib_lookup() sees a route's MTU only when it is locked
_XDP_VERDICTS = {1: DROP, 2: PASS, 3: SEND, 4: SEND}
_TC_VERDICTS = {-1: PASS, 2: DROP, 4: TAKEN, 7: SEND}
_GROWTH = layouts.HELD_BYTES + 256
"""Bytes: the first piece of a datagram comes out as the last one that waited for it."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of a packet: verdict is PASS, DROP or SEND, reasons are the counters that moved."""

    verdict: str
    packet: bytes
    reasons: Mapping[tuple[str, str], int]

    @property
    def reason(self) -> str:
        """The one reason that was counted."""
        ((_, reason),) = self.reasons
        return reason


_NO_PORTS = SnatPorts(0, 0)


class Datapath:
    """The loaded programs and their maps, in a namespace that looks like NODE1 of tests/packets.py.

    ``up0`` is the uplink: CLIENT, CLIENT_2 and NODE2 are neighbours there, the pods of NODE2 are behind
    NODE2. ``up1`` is another uplink. ``pod0`` is the host end of a pod's interface, with the node's own pods
    behind it. All of it in both families; the maps are those of the family under test, :func:`p.version`.
    """

    def __init__(self, limits: Limits = LIMITS, programs: Mapping[str, Program] = PROGRAMS) -> None:
        self._stack = contextlib.ExitStack()
        try:
            self._set_up(limits, programs)
        except BaseException:
            self._stack.close()
            raise

    def _set_up(self, limits: Limits, programs: Mapping[str, Program]) -> None:
        self.pins = Pins(f"test.{os.getpid()}-{uuid.uuid4().hex[:8]}")
        self._stack.callback(unload, self.pins)
        loaded = load(self.pins, limits, programs=programs)
        self._build = self.pins.programs(loaded.fingerprint)
        self._programs = {
            name: self._stack.enter_context(bpf.obj_get(path)) for name, path in loaded.programs.items()
        }
        self.maps = KernelMaps(self.pins.maps)
        self._stack.callback(self.maps.close)
        self.namespace = NetworkNamespace()
        self._stack.callback(self.namespace.close)
        with self.namespace.entered():
            self.uplink, self.uplink_2, self.pod = _node1()
        self._plans: set[ObjectKey] = set()
        self._attached = False  # packets may run the programs at any time
        self._last: Any = None  # what was counted after the last run, unless something else ran them since
        self.skew = 0.0  # seconds by which the reconciler's clock is ahead: a test may let its quarantine end
        self.reconciler = Reconciler(
            self.maps,
            lambda: time.monotonic() + self.skew,
            direct=DirectReturn(self.maps, lambda: [_node2()]),
        )
        self.set_up_node()

    def close(self) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def default_route(self) -> Iterator[None]:
        """Have everything else routed by NODE2 meanwhile."""
        family = socket.AF_INET if p.version() == 4 else socket.AF_INET6
        way = {"dst": "default", "gateway": p.here(p.NODE2), "oif": self.uplink, "family": family}
        with self.namespace.entered(), IPRoute() as route:
            route.route("add", **way)
        try:
            yield
        finally:
            with self.namespace.entered(), IPRoute() as route:
                route.route("del", **way)

    def set_up_node(
        self,
        timeouts: Timeouts | None = None,
        snat_ports: SnatPorts | None = None,
        *,
        former: SnatPorts = _NO_PORTS,
        redirect: bool = False,
        direct_port: int = 0,
    ) -> None:
        """Write the settings, and NODE1's addresses for SNAT; redirect: switched on, the pod has a veth.

        direct_port: where this node takes encapsulated packets of NODE2; 0: nowhere.
        """
        times, ports = timeouts or Timeouts(), snat_ports or SnatPorts()
        row = self.maps.array(own("settings"))[0:1]
        for name in ("tcp_syn", "tcp_established", "tcp_closing", "udp_new", "udp", "sctp"):
            row[f"{name}_ns"] = int(getattr(times, name) * 1e9)
        row["snat_port_min"], row["snat_port_max"] = ports.first, ports.last
        row["former_port_min"], row["former_port_max"] = former.first, former.last
        row["sources"] = 0
        add_snat_sources(
            self.maps, p.version(), [ip_address(p.here(one)) for one in (p.NODE1, p.UPLINK_2_ADDRESS)]
        )
        row["redirect"] = redirect
        row["direct_port"] = direct_port
        self.begin_the_day()
        ifaces = np.zeros(4, dtype=layouts.IFACE[p.version()])
        for at, (role, flags) in enumerate(
            (
                (p.NODE1, 0),
                (p.NODE1, layouts.IfaceFlag.UPLINK),
                (p.UPLINK_2_ADDRESS, layouts.IfaceFlag.UPLINK),
            )
        ):
            ifaces[at] = (packed(role), flags, 1500 if flags else 0)
        ifaces[3]["flags"] = layouts.IfaceFlag.PEER if redirect else 0
        indexes = np.array([0, self.uplink, self.uplink_2, self.pod], dtype=layouts.ID)
        self.update("ifaces", indexes, ifaces)
        links = self.maps.array("links")[0]["links"]
        for at, (index, mac) in enumerate(((self.uplink, p.NODE1_MAC), (self.uplink_2, p.UPLINK_2_MAC))):
            links[at] = (index, bytes.fromhex(mac.replace(":", "")), (0, 0))

    def run(
        self,
        program: str,
        packet: bytes,
        *,
        ifindex: int | None = None,
        from_host: bool | None = None,
        gso_size: int = 0,
        mark: int = 0,
    ) -> Result:
        """Run one program on one packet; ifindex defaults to the interface that the program belongs to.

        from_host: a process of the node sent the packet, it has come in by no interface (egress); None: at lo
        alone. gso_size: the packet awaits segmentation into so many bytes of payload each (tc). mark: the
        packet's (tc).
        """
        if ifindex is None:
            ifindex = self._interface_of(program)
        before = self._counted() if self._last is None else self._last
        if program == XDP:
            ctx = struct.pack("=IIIIII", 0, len(packet), 0, ifindex, 0, 0)
        else:
            if program in (TC_UPLINK_OUT, TC_POD_OUT, TC_LOOPBACK):
                sent_here = program == TC_LOOPBACK if from_host is None else from_host
                came_in = 0 if sent_here else {self.pod: self.uplink}.get(ifindex, self.pod)
            else:
                came_in = ifindex if self._tells_ingress() else 0  # it is of no matter at ingress
            # struct __sk_buff: ..., mark, ..., ingress_ifindex, ifindex, ..., gso_size
            ctx = struct.pack("=8xI24xII132xI12x", mark, came_in, ifindex, gso_size)
        with self.namespace.entered():
            _need_context(program == XDP, ifindex, 0 if program == XDP else came_in)
            run = bpf.prog_test_run(self._programs[program], packet, ctx, room=len(packet) + _GROWTH)
        verdicts = _XDP_VERDICTS if program == XDP else _TC_VERDICTS
        after = self._counted()
        self._last = None if self._attached else after
        return Result(verdicts[run.retval], run.data, _named(after - before))

    def _interface_of(self, program: str) -> int:
        if program == TC_LOOPBACK:
            return 1
        return self.pod if program in (TC_POD_IN, TC_POD_OUT) else self.uplink

    def try_frame(self, program: str, packet: bytes) -> tuple[str, bytes]:
        """Run one program on one frame of its own interface; return verdict and frame, and count nothing.

        The calling thread is in the namespace. It is what a campaign of millions of frames can afford.
        """
        self._last = None
        ifindex = self._interface_of(program)
        if program == XDP:
            ctx = struct.pack("=IIIIII", 0, len(packet), 0, ifindex, 0, 0)
        else:
            ctx = struct.pack("=40xI148x", ifindex)
        run = bpf.prog_test_run(self._programs[program], packet, ctx, room=len(packet) + _GROWTH)
        verdicts = _XDP_VERDICTS if program == XDP else _TC_VERDICTS
        return verdicts.get(run.retval, f"unknown {run.retval}"), run.data

    def _tells_ingress(self) -> bool:
        with self.namespace.entered():
            return _takes_context(False, self.uplink, self.uplink)

    def program(self, name: str) -> bpf.FD:
        """Return a loaded program, to attach it."""
        self._attached, self._last = True, None
        return self._programs[name]

    @contextlib.contextmanager
    def without_programs(
        self, gone: Callable[[int, int], bool], *, another_serves: bool = False
    ) -> Iterator[None]:
        """Take out of the arrays of programs meanwhile those of which gone(number, IP version) is true.

        another_serves: leave the array alone by which programs know that another version has taken over.
        """
        with contextlib.ExitStack() as stack:
            if not another_serves:
                array = stack.enter_context(bpf.obj_get(self.pins.handover))
                ident = np.zeros(1, "u4")
                assert bpf.map_lookup(array, np.zeros(1, "u4"), ident)
                fd = stack.enter_context(bpf.prog_by_id(int(ident[0])))
                bpf.map_delete(array, np.zeros(1, "u4"))
                stack.callback(bpf.map_update, array, np.zeros(1, "u4"), np.array([fd.fileno()], "u4"))
            for name, version, program in loader.instances():
                if program.at_sockets or not gone(program.number, version):
                    continue
                array = stack.enter_context(bpf.obj_get(self._build / program_array(program.source)))
                fd = stack.enter_context(bpf.obj_get(self._build / pin_name(name, version)))
                number = np.array([program.place(version)], "u4")
                bpf.map_delete(array, number)
                stack.callback(bpf.map_update, array, number, np.array([fd.fileno()], "u4"))
            yield

    def apply(self, *plans: ServicePlan) -> None:
        """Make these the only Services."""
        wanted: dict[ObjectKey, ServicePlan | None] = dict.fromkeys(self._plans)
        wanted.update({plan.key: plan for plan in plans})
        report = self.reconciler.sync(wanted)
        assert not report.errors, report.errors
        self._plans = {plan.key for plan in plans}

    def begin_the_day(self) -> None:
        """Let it be the first period of every client's affinity: see hash_client() in bpf/affinity.h.

        Tests choose by affinity's hash, and a period that ended between two packets would choose anew.
        """
        self.array("settings")["wall_ns"][0] = 2**64 - time.monotonic_ns()

    def reset(self) -> None:
        """Forget flows, affinity and counters, and set the node up as at first."""
        self._last = None
        for name in ("flows", "affinity", "fragments", "pieces", "tags"):
            for version in layouts.FAMILIES:
                self.maps.delete(f"{name}{version}", self.maps.read(f"{name}{version}")[0])
        keys, values = self.maps.read("reasons")
        self.maps.update("reasons", keys, np.zeros_like(values))
        keys, values = self.maps.read("rates")
        self.maps.update("rates", keys, np.zeros_like(values))
        while self.reconciler.linger() < REST_SECONDS:
            pass  # without flows no VIP lingers
        self.set_up_node()

    def read(self, name: str) -> tuple[Any, Any]:
        """Return the keys and values of a map of the family under test."""
        return self.maps.read(own(name))

    def update(self, name: str, keys: Any, values: Any) -> None:
        """Write entries of a map of the family under test."""
        self.maps.update(own(name), keys, values)

    def delete(self, name: str, keys: Any) -> None:
        """Delete entries of a map of the family under test."""
        self.maps.delete(own(name), keys)

    def array(self, name: str) -> Any:
        """Return an array of the family under test, as the kernel has it."""
        return self.maps.array(own(name))

    def counters(self) -> dict[tuple[str, str], int]:
        """Return the packets counted so far, by (hook, reason)."""
        return _named(self._counted())

    def _counted(self) -> Any:
        return self.maps.read("reasons")[1]["packets"].sum(axis=1)


def _node2() -> Node:
    """Return NODE2 in both families."""
    addresses = []
    for version in layouts.FAMILIES:
        with p.family(version):
            addresses.append(ip_address(p.here(p.NODE2)))
    return Node("node2", tuple(addresses))


def _named(packets: Any) -> dict[tuple[str, str], int]:
    """Return those of the counters that are not 0, by (hook, reason)."""
    found = {}
    for index in np.flatnonzero(packets).tolist():
        hook, reason = divmod(index, layouts.REASONS_PER_HOOK)
        found[layouts.HOOKS[hook][0], layouts.REASONS[reason][0]] = int(packets[index])
    return found


@functools.cache
def _takes_context(xdp: bool, ifindex: int, came_in: int) -> bool:
    """Try a context that names the interfaces of a packet, in the current namespace."""
    code = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # return 2
    kind = bpf.ProgType.XDP if xdp else bpf.ProgType.SCHED_CLS
    ctx = struct.pack("=IIIIII", 0, 64, 0, ifindex, 0, 0) if xdp else struct.pack("=36xII", came_in, ifindex)
    fd, _, error = bpf.prog_load(kind, code, "takes_context")
    if fd is None:
        raise BpfError("PROG_LOAD", "takes_context", error)
    with fd:
        try:
            bpf.prog_test_run(fd, bytes(64), ctx)
        except BpfError as refused:
            if refused.errno != errno.EINVAL:
                raise
            return False
    return True


def _need_context(xdp: bool, ifindex: int, came_in: int) -> None:
    """Skip the test on a kernel whose test runs cannot be told these interfaces: see docs/kernels.md."""
    if not _takes_context(xdp, ifindex, came_in):
        what = "an XDP packet's interface" if xdp else "the interface that a packet came in by"
        pytest.skip(f"this kernel's BPF_PROG_TEST_RUN cannot be told {what}")


def own(name: str) -> str:
    """Return the name of a map in the family under test."""
    return f"{name}{p.version()}"


def packed(role: str) -> int | bytes:
    """Return a role's address in the family under test, as maps hold it."""
    return layouts.pack_address(ip_address(p.here(role)))


def _node1() -> tuple[int, int, int]:
    """Make NODE1's interfaces and routes in the current namespace; return the ifindexes of up0, up1, pod0."""
    Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
    Path("/proc/sys/net/ipv6/conf/all/forwarding").write_text("1")
    for scope in ("all", "default"):  # nobody else is there: no address need wait for that to be found out
        Path(f"/proc/sys/net/ipv6/conf/{scope}/accept_dad").write_text("0")
    with IPRoute() as route:
        for name, mac in (("up0", p.NODE1_MAC), ("up1", p.UPLINK_2_MAC), ("pod0", p.POD_GATEWAY_MAC)):
            route.link("add", ifname=name, kind="veth", address=mac, peer={"ifname": f"{name}-peer"})
    with Netlink() as net:
        index = {interface.name: interface.index for interface in net.interfaces()}
    up, up_2, pod = index["up0"], index["up1"], index["pod0"]
    with IPRoute() as route:
        for each in index.values():
            route.link("set", index=each, state="up")
        for version in layouts.FAMILIES:
            with p.family(version):
                _routes(route, up, up_2, pod)
    return up, up_2, pod


def _routes(route: IPRoute, up: int, up_2: int, pod: int) -> None:
    """Give NODE1 the addresses, neighbours and routes of the family under test."""
    family = socket.AF_INET if p.version() == 4 else socket.AF_INET6
    whole, link = (32, 24) if p.version() == 4 else (128, 56)
    for index, role, prefix in (
        (up, p.NODE1, link),
        (up_2, p.UPLINK_2_ADDRESS, link),
        (pod, p.POD_GATEWAY, whole),
    ):
        route.addr("add", index=index, address=p.here(role), prefixlen=prefix, family=family)
    for index, role, mac in (
        (up, p.CLIENT, p.CLIENT_MAC),
        (up, p.CLIENT_2, p.CLIENT_MAC),
        (up, p.NODE2, p.NODE2_MAC),
        (up_2, p.BEHIND_UPLINK_2, p.UPLINK_2_PEER_MAC),
        (pod, p.BACKEND_LOCAL, p.POD_MAC),
        (pod, p.POD_CLIENT, p.POD_MAC),
    ):
        route.neigh("add", dst=p.here(role), lladdr=mac, ifindex=index, state="permanent", family=family)
    gateway = {"gateway": p.here(p.NODE2), "oif": up, "family": family}
    route.route("add", dst=p.here_net(p.POD_NET), oif=pod, family=family)
    route.route("add", dst=p.here_net(f"{p.BACKEND_UNROUTED}/32"), type="blackhole", family=family)
    route.route("add", dst=p.here_net(p.POD_NET_2), **gateway)
    route.route(
        "add", dst=p.here_net(p.NARROW_NET), metrics={"mtu": p.NARROW_MTU, "lock": 1 << _RTAX_MTU}, **gateway
    )
