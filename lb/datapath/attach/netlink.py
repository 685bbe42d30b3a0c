# SPDX-License-Identifier: Apache-2.0
"""Interfaces and what is attached to them: rtnetlink, in the network namespace of the calling thread.

pyroute2 speaks for us; what it does not decode is read in :mod:`lb.datapath.kernel.rtnl`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from pathlib import Path
from typing import Any

from lb.config import UplinkMode
from lb.datapath.kernel import bpf, tcx
from lb.datapath.kernel.bpf import FD
from lb.datapath.kernel.closing import Closing
from lb.datapath.kernel.pins import ROOT
from lb.datapath.kernel.rtnl import TC_HANDLE, TC_PRIORITY, Direction, changed_interfaces, filters, set_xdp
from lb.errors import AttachError, BpfError
from lb.folders import entries
from lb.lazy_imports import bare_package
from lb.model import IPAddress
from lb.stop_event import StopEvent

bare_package("pyroute2", IPRoute="pyroute2.iproute.linux")
from pyroute2.iproute.linux import IPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError  # noqa: E402

_OUR_FILTER = {"handle": TC_HANDLE, "prio": TC_PRIORITY, "protocol": 0x0003}  # ETH_P_ALL
_ARPHRD_ETHER = 1
_ARPHRD_LOOPBACK = 772
_IFF_UP = 1
_IFA_F_SECONDARY = 1  # IPv4; to IPv6 it is IFA_F_TEMPORARY, an address for privacy (RFC 8981)
_IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x08, 0x20, 0x40
_RT_SCOPE_HOST = 254  # global is 0; the narrower, the greater
_XDP_FLAGS = {UplinkMode.XDP_GENERIC: 1 << 1, UplinkMode.XDP_NATIVE: 1 << 2}
_NSID_NOT_ASSIGNED = 0xFFFF_FFFF  # linux/net_namespace.h has -1; pyroute2 reads it unsigned
_OUR_XDP, _OUR_TC = "lb_xdp", "lb_tc"
_DUMP_TRIES = 10
_RTN_LOCAL = 2  # a route to this host itself
_RTMGRP = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 and IPv6 addresses and routes
_EVENT_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface.

    kind is the kernel's link kind (``"veth"``, ``"vxlan"``, …), ``"loopback"``, or ``"physical"`` for a
    device with a driver of its own. ethernet: packets have an Ethernet header. addresses are in the order
    that they were given in, but secondary and temporary ones last, and before that those of a narrower
    scope than global (ip-address(8): site, link, host) after the others; unfit are those of them that are
    deprecated, of scope host, or not (yet) known to be this host's alone.
    foreign_peer: the other end is in another network namespace. xdp_id is the attached XDP program, 0 for
    none; xdp_mode is how it is attached. mac is its link address.
    """

    index: int
    name: str
    kind: str
    mtu: int = 1500
    up: bool = True
    ethernet: bool = True
    foreign_peer: bool = False
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    unfit: frozenset[IPAddress] = frozenset()
    xdp_id: int = 0
    xdp_mode: UplinkMode | None = None
    mac: str = ""

    def source(self, version: int, preferred: Sequence[IPAddress] = ()) -> IPAddress | None:
        """Return the primary address of a family that other hosts can reach; None without one.

        It is the first of the preferred ones that is here, else the first address of all.
        """
        here = [
            each.ip
            for each in self.addresses
            if each.version == version
            and not (each.ip.is_loopback or each.ip.is_link_local or each.ip in self.unfit)
        ]
        return next((address for address in (*preferred, *here) if address in here), None)


class Netlink(Closing):
    """A connection to rtnetlink, bound to the network namespace of the thread that opened it."""

    def __init__(self) -> None:
        self._route = IPRoute()

    def close(self) -> None:
        """Close the connection."""
        self._route.close()

    def interfaces(self) -> list[Interface]:
        """Return all interfaces by ifindex.

        Raises AttachError: the kernel refused to list them.
        """
        addresses: dict[int, list[Any]] = {}
        for message in _dump(self._route.get_addr):
            addresses.setdefault(message["index"], []).append(message)
        found = [
            _interface(message, addresses.get(message["index"], ()))
            for message in _dump(self._route.get_links)
        ]
        return sorted(found, key=lambda interface: interface.index)

    def default_route_interfaces(self) -> list[int]:
        """Return the ifindexes of the default routes, the preferred one first, IPv4 before IPv6."""
        found: list[tuple[int, int, int]] = []
        for route in _dump(self._route.get_default_routes):
            hops = [hop["oif"] for hop in route.get_attr("RTA_MULTIPATH") or ()]
            oif = route.get_attr("RTA_OIF")
            metric = route.get_attr("RTA_PRIORITY") or 0
            found += [(route["family"], metric, index) for index in (*hops, *([oif] if oif else ()))]
        return list(dict.fromkeys(index for _, _, index in sorted(found)))

    def linked(self, pid: int) -> bool:
        """Tell whether the network namespace of a process has a number in ours: some link leads there."""
        try:
            number: int = self._route.get_netnsid(pid=pid)["nsid"]
            return number != _NSID_NOT_ASSIGNED
        except NetlinkError:
            return False

    def route_to(self, address: IPAddress) -> tuple[int, bool] | None:
        """Return the ifindex of the route to an address, and whether it is this host's own; None without one.

        Raises AttachError: the kernel refused to say.
        """
        family = socket.AF_INET if address.version == 4 else socket.AF_INET6
        try:
            (message,) = self._route.route("get", dst=str(address), family=family)
        except NetlinkError as error:
            if error.code in (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EINVAL, errno.EACCES):
                return None
            raise AttachError(f"the route to {address}: {os.strerror(error.code)}") from error
        oif = message.get_attr("RTA_OIF")
        return (oif, message["type"] == _RTN_LOCAL) if oif else None

    def attach_tc(self, interface: Interface, direction: Direction, name: str, program: FD) -> None:
        """Run the program at a tc hook; an earlier one of ours is replaced atomically.

        It is at the hook itself (tcx) or, where the kernel has no such thing, in a clsact qdisc's filter.

        Raises AttachError: the kernel refused.
        """
        try:
            present = tcx.programs(interface.index, direction)
            if present is None:
                self._attach_filter(interface, direction, name, program)
                return
            _put_tcx(interface.index, direction, program, present)
            # An earlier agent, or one under another kernel, may have left one.
            self._detach_filter(interface, direction)
        except (NetlinkError, BpfError) as error:
            raise _refused(interface, f"tc {direction.name.lower()}", error) from error

    def _attach_filter(self, interface: Interface, direction: Direction, name: str, program: FD) -> None:
        try:
            self._route.tc("add", "clsact", interface.index)
        except NetlinkError as error:
            if error.code != errno.EEXIST:
                raise
        self._route.tc(
            "replace-filter",
            "bpf",
            interface.index,
            parent=int(direction),
            fd=program.fileno(),
            name=name,
            direct_action=True,
            **_OUR_FILTER,
        )

    def detach_tc(self, interface: Interface) -> int:
        """Remove our programs from the tc hooks; return how many they were.

        The clsact qdisc goes as well when it was there for a filter of ours and no other is left.

        Raises AttachError: the kernel refused.
        """
        removed = 0
        try:
            for direction in Direction:
                for ident in tcx.programs(interface.index, direction) or ():
                    if our_name(ident, _OUR_TC):
                        with _open(ident) as program:
                            tcx.detach(interface.index, direction, program)
                        removed += 1
                removed += self._detach_filter(interface, direction)
        except (NetlinkError, BpfError) as error:
            raise _refused(interface, "tc", error) from error
        return removed

    def _detach_filter(self, interface: Interface, direction: Direction) -> int:
        removed = 0
        for one in filters(interface.index, direction):
            if one.ours:
                self._route.tc("del-filter", "bpf", interface.index, parent=int(direction), **_OUR_FILTER)
                removed += 1
        if removed and not any(filters(interface.index, each) for each in Direction):
            self._route.tc("del", "clsact", interface.index)
        return removed

    def attach_xdp(self, interface: Interface, mode: UplinkMode, program: FD) -> None:
        """Run the program at XDP in native or generic mode; an earlier one of ours is replaced.

        In the same mode the replacement is atomic. Between two modes the kernel wants the old one gone first;
        the tc program serves meanwhile.

        Raises AttachError: the kernel or the driver refused, or somebody else's program is there.
        """
        if interface.xdp_id and not is_our_xdp(interface):
            raise AttachError(f"{interface.name}: XDP: another program (id {interface.xdp_id}) is attached")
        try:
            if interface.xdp_id and interface.xdp_mode is not mode:
                _remove_xdp(interface)
            set_xdp(interface.index, program.fileno(), _XDP_FLAGS[mode])
        except OSError as error:
            raise _refused(interface, mode.value, error) from error

    def detach_xdp(self, interface: Interface) -> bool:
        """Remove our XDP program; return False when none of ours is there.

        Raises AttachError: the kernel refused.
        """
        if not is_our_xdp(interface):
            return False
        try:
            _remove_xdp(interface)
        except OSError as error:
            raise _refused(interface, "XDP", error) from error
        return True


def _dump(request: Callable[[], Iterable[Any]]) -> list[Any]:
    """Return a whole listing; start again when something changed in the middle of it."""
    for _ in range(_DUMP_TRIES):
        try:
            return list(request())
        except NetlinkDumpInterrupted:
            continue
        except NetlinkError as error:
            raise AttachError(f"listing interfaces and routes: {os.strerror(error.code)}") from error
    raise AttachError("listing interfaces and routes: they change faster than they can be listed")


def _interface(message: Any, address_messages: Iterable[Any]) -> Interface:
    """Convert one RTM_NEWLINK message and the RTM_NEWADDR messages of the same interface."""
    addresses: list[tuple[int, bool, int, int, IPv4Interface | IPv6Interface]] = []
    unfit: set[IPAddress] = set()
    for position, one in enumerate(address_messages):
        text = one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS")
        address = ip_interface(f"{text}/{one['prefixlen']}")
        # The kernel lists the newest IPv6 address first, but the oldest IPv4 address.
        age = (one.get_attr("IFA_CACHEINFO")["cstamp"], -position) if address.version == 6 else (0, position)
        addresses.append((one["scope"], bool(one["flags"] & _IFA_F_SECONDARY), *age, address))
        if one["flags"] & (_IFA_F_DADFAILED | _IFA_F_DEPRECATED | _IFA_F_TENTATIVE) and address.version == 6:
            unfit.add(address.ip)
        if one["scope"] == _RT_SCOPE_HOST:
            unfit.add(address.ip)
    addresses.sort(key=lambda each: each[:4])
    info = message.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info else None
    if kind is None:
        kind = "loopback" if message["ifi_type"] == _ARPHRD_LOOPBACK else "physical"
    xdp = message.get_attr("IFLA_XDP")
    xdp_id = (xdp.get_attr("IFLA_XDP_PROG_ID") if xdp else None) or 0
    generic = xdp is not None and xdp.get_attr("IFLA_XDP_SKB_PROG_ID")
    return Interface(
        index=message["index"],
        name=message.get_attr("IFLA_IFNAME"),
        kind=kind,
        mtu=message.get_attr("IFLA_MTU") or 0,
        up=bool(message["flags"] & _IFF_UP),
        ethernet=message["ifi_type"] == _ARPHRD_ETHER,
        foreign_peer=message.get_attr("IFLA_LINK_NETNSID") is not None,
        addresses=tuple(address for *_, address in addresses),
        unfit=frozenset(unfit),
        xdp_id=xdp_id,
        xdp_mode=(UplinkMode.XDP_GENERIC if generic else UplinkMode.XDP_NATIVE) if xdp_id else None,
        mac=message.get_attr("IFLA_ADDRESS") or "",
    )


def _remove_xdp(interface: Interface) -> None:
    if interface.xdp_mode is not None:
        set_xdp(interface.index, -1, _XDP_FLAGS[interface.xdp_mode])


def _refused(interface: Interface, hook: str, error: NetlinkError | OSError | BpfError) -> AttachError:
    if isinstance(error, BpfError):
        code, text = error.errno, os.strerror(error.errno)
    elif isinstance(error, OSError):
        code, text = error.errno or 0, error.strerror or ""
    else:
        code, text = error.code, os.strerror(error.code)
    refused = AttachError(f"{interface.name}: {hook}: {text}")
    refused.errno = code
    return refused


def is_our_xdp(interface: Interface) -> bool:
    """Tell whether the XDP program on an interface is one of ours."""
    return bool(interface.xdp_id and our_name(interface.xdp_id, _OUR_XDP))


def tc_programs(ifindex: int, direction: Direction, known: Mapping[int, str]) -> list[tuple[int, str]]:
    """Return id and name of each of our programs at a tc hook; known are names by id, which saves time.

    Raises AttachError, BpfError: the kernel refused the question.
    """
    at_hook = tcx.programs(ifindex, direction) or ()
    here = [(ident, known.get(ident) or our_name(ident, _OUR_TC)) for ident in at_hook]
    in_filters = [(one.program_id, one.name) for one in filters(ifindex, direction) if one.ours]
    return [(ident, name) for ident, name in here if name] + in_filters


def in_place(ifindex: int, direction: Direction, program: int, known: Mapping[int, str]) -> bool:
    """Tell whether the program of this id is the only one of ours at a tc hook, and where the kernel is best.

    Raises AttachError, BpfError: the kernel refused the question.
    """
    at_hook = tcx.programs(ifindex, direction)
    return [ident for ident, _ in tc_programs(ifindex, direction, known)] == [program] and (
        at_hook is None or program in at_hook
    )


def runs(ifindex: int, direction: Direction, program: int) -> bool:
    """Tell whether the program of this id is at a tc hook, with one question to the kernel.

    Raises AttachError, BpfError: the kernel refused the question.
    """
    at_hook = tcx.programs(ifindex, direction)
    if at_hook is None:
        at_hook = [one.program_id for one in filters(ifindex, direction)]
    return program in at_hook


def exists(ifindex: int) -> bool:
    """Tell whether there is an interface of this index in the calling thread's network namespace."""
    try:
        socket.if_indextoname(ifindex)
    except OSError:
        return False
    return True


def our_name(ident: int, kind: str) -> str:
    """Return the name of a program that is ours, pinned as such or named so; ``""`` for those of others.

    kind is how names of its kind begin. The kernel itself knows the first 15 letters of a name.
    """
    if pin := _pins(kind).get(ident):
        return pin.name
    try:
        with bpf.prog_by_id(ident) as program:
            name = bpf.prog_info(program).name
    except BpfError as error:
        if error.errno == errno.ENOENT:  # detached meanwhile
            return ""
        if error.errno == errno.EPERM:
            return ""  # to ask takes CAP_SYS_ADMIN, which an agent need not have; no pin of ours has it
        raise
    return name if name.startswith(kind) else ""


def our_names() -> dict[int, str]:
    """Return the names of the tc programs of all instances and builds that are pinned, by id."""
    return {ident: path.name for ident, path in _pins(_OUR_TC).items()}


def _pins(kind: str) -> dict[int, Path]:
    """Return where programs of all instances and builds are pinned, by id."""
    found = {}
    for path in (path for base in entries(ROOT) for build in entries(base) for path in entries(build)):
        if path.name.startswith(f"{kind}_"):
            with contextlib.suppress(BpfError), bpf.obj_get(path) as program:  # may be unpinned meanwhile
                found[bpf.prog_info(program).id] = path
    return found


def _open(ident: int) -> FD:
    pin = _pins(_OUR_TC).get(ident)
    return bpf.obj_get(pin) if pin else bpf.prog_by_id(ident)


def _put_tcx(ifindex: int, direction: Direction, program: FD, present: Sequence[int]) -> None:
    """Have the program be the only one of ours at the hook, in the first one's place."""
    ours = [ident for ident in present if our_name(ident, _OUR_TC)]
    wanted = bpf.prog_info(program).id
    if wanted not in ours:
        with contextlib.ExitStack() as stack:
            instead = stack.enter_context(_open(ours.pop(0))) if ours else None
            tcx.attach(ifindex, direction, program, instead)
    for ident in ours:
        if ident != wanted:
            with _open(ident) as other:
                tcx.detach(ifindex, direction, other)


class InterfaceWatcher:
    """Calls back with the ifindexes whose link, addresses or default route changed, many events at a time.

    When the kernel dropped events (ENOBUFS), the callback gets every interface that there is.
    """

    def __init__(self, changed: Callable[[set[int]], None]) -> None:
        self._changed = changed
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _EVENT_BUFFER)
        self._socket.bind((0, _RTMGRP))

    def close(self) -> None:
        """Stop listening."""
        self._socket.close()

    def run(self, stop: StopEvent) -> None:
        """Watch until stop is set."""
        while not stop.is_set():
            select.select([self._socket.fileno(), stop.fileno()], [], [])
            self.step(0)

    def step(self, timeout: float) -> bool:
        """Wait up to timeout seconds for events, and hand them on; return whether there were any."""
        if not select.select([self._socket], [], [], timeout)[0]:
            return False
        found: set[int] = set()
        while True:
            try:
                found |= changed_interfaces(self._socket.recv(1 << 17))
            except BlockingIOError:
                break
            except OSError as error:
                if error.errno != errno.ENOBUFS:
                    raise
                found |= {index for index, _ in socket.if_nameindex()}
        if found:
            self._changed(found)
        return bool(found)
