"""Interfaces and what is attached to them: rtnetlink, in the network namespace of the calling thread.

pyroute2 speaks for us; what it does not decode is read in :mod:`lb.datapath.rtnl`.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from ipaddress import IPv4Interface, IPv6Interface, ip_interface
from types import TracebackType
from typing import Any, Self

from lb.bare import bare_package
from lb.config import UplinkMode
from lb.datapath import bpf
from lb.datapath.bpf import FD
from lb.datapath.pins import ROOT
from lb.datapath.rtnl import TC_HANDLE, TC_PRIORITY, Direction, changed_interfaces, filters, set_xdp
from lb.errors import AttachError, BpfError
from lb.model import IPAddress

bare_package("pyroute2", IPRoute="pyroute2.iproute.linux")
from pyroute2.iproute.linux import IPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted, NetlinkError  # noqa: E402

_ETH_P_ALL = 0x0003
_ARPHRD_ETHER = 1
_ARPHRD_LOOPBACK = 772
_IFF_UP = 1
_IFA_F_SECONDARY = 1  # IPv4; to IPv6 it is IFA_F_TEMPORARY, an address for privacy (RFC 8981)
_IFA_F_DADFAILED, _IFA_F_DEPRECATED, _IFA_F_TENTATIVE = 0x08, 0x20, 0x40
_XDP_FLAGS = {UplinkMode.XDP_GENERIC: 1 << 1, UplinkMode.XDP_NATIVE: 1 << 2}
_OUR_XDP = "lb_xdp"
_DUMP_TRIES = 10
_RTMGRP = 0x1 | 0x10 | 0x40 | 0x100 | 0x400  # links, IPv4 and IPv6 addresses and routes
_EVENT_BUFFER = 1 << 20


@dataclass(frozen=True, slots=True)
class Interface:
    """One network interface.

    kind is the kernel's link kind (``"veth"``, ``"vxlan"``, …), ``"loopback"``, or ``"physical"`` for a
    device with a driver of its own. ethernet: packets have an Ethernet header. addresses are in the order
    that they were given in, secondary and temporary ones last; unfit are those of them that are deprecated,
    or not (yet) known to be this host's alone. master is an ifindex, 0 for none. foreign_peer: the other end
    is in another network namespace. xdp_id is the attached XDP program, 0 for none; xdp_mode is how it is
    attached.
    """

    index: int
    name: str
    kind: str
    mtu: int = 1500
    up: bool = True
    ethernet: bool = True
    master: int = 0
    foreign_peer: bool = False
    addresses: tuple[IPv4Interface | IPv6Interface, ...] = ()
    unfit: frozenset[IPAddress] = frozenset()
    xdp_id: int = 0
    xdp_mode: UplinkMode | None = None

    def source(self, version: int) -> IPAddress | None:
        """Return the primary address of a family that other hosts can reach; None without one."""
        for address in (each.ip for each in self.addresses if each.version == version):
            if not (address.is_loopback or address.is_link_local or address in self.unfit):
                return address
        return None


class Netlink:
    """A connection to rtnetlink, bound to the network namespace of the thread that opened it."""

    def __init__(self) -> None:
        self._route = IPRoute()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._route.close()

    def interfaces(self) -> list[Interface]:
        """Return all interfaces by ifindex.

        Raises
        ------
        AttachError: the kernel refused to list them.
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

    def attach_tc(self, interface: Interface, direction: Direction, name: str, program: FD) -> None:
        """Run the program at a clsact hook, direct-action; an earlier one of ours is replaced atomically.

        Raises
        ------
        AttachError: the kernel refused.
        """
        try:
            try:
                self._route.tc("add", "clsact", interface.index)
            except NetlinkError as error:
                if error.code != errno.EEXIST:
                    raise
            self._route.tc(
                "replace-filter",
                "bpf",
                interface.index,
                handle=TC_HANDLE,
                parent=int(direction),
                prio=TC_PRIORITY,
                protocol=_ETH_P_ALL,
                fd=program.fileno(),
                name=name,
                direct_action=True,
            )
        except NetlinkError as error:
            raise _refused(interface, f"tc {direction.name.lower()}", error) from error

    def detach_tc(self, interface: Interface) -> int:
        """Remove our filters, and the clsact qdisc when no filter is left; return how many were removed.

        Raises
        ------
        AttachError: the kernel refused.
        """
        removed = left = 0
        try:
            for direction in Direction:
                for one in filters(interface.index, direction):
                    if not one.ours:
                        left += 1
                        continue
                    self._route.tc(
                        "del-filter",
                        "bpf",
                        interface.index,
                        handle=TC_HANDLE,
                        parent=int(direction),
                        prio=TC_PRIORITY,
                        protocol=_ETH_P_ALL,
                    )
                    removed += 1
            if removed and not left:
                self._route.tc("del", "clsact", interface.index)
        except NetlinkError as error:
            raise _refused(interface, "tc", error) from error
        return removed

    def attach_xdp(self, interface: Interface, mode: UplinkMode, program: FD) -> None:
        """Run the program at XDP in native or generic mode; an earlier one of ours is replaced.

        In the same mode the replacement is atomic. Between two modes the kernel wants the old one gone first;
        the tc program serves meanwhile.

        Raises
        ------
        AttachError: the kernel or the driver refused, or somebody else's program is there.
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

        Raises
        ------
        AttachError: the kernel refused.
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
    addresses: list[tuple[bool, int, int, IPv4Interface | IPv6Interface]] = []
    unfit = set()
    for position, one in enumerate(address_messages):
        text = one.get_attr("IFA_LOCAL") or one.get_attr("IFA_ADDRESS")
        address = ip_interface(f"{text}/{one['prefixlen']}")
        # The kernel lists the newest IPv6 address first, but the oldest IPv4 address.
        age = (one.get_attr("IFA_CACHEINFO")["cstamp"], -position) if address.version == 6 else (0, position)
        addresses.append((bool(one["flags"] & _IFA_F_SECONDARY), *age, address))
        if one["flags"] & (_IFA_F_DADFAILED | _IFA_F_DEPRECATED | _IFA_F_TENTATIVE) and address.version == 6:
            unfit.add(address.ip)
    addresses.sort(key=lambda each: each[:3])
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
        master=message.get_attr("IFLA_MASTER") or 0,
        foreign_peer=message.get_attr("IFLA_LINK_NETNSID") is not None,
        addresses=tuple(address for *_, address in addresses),
        unfit=frozenset(unfit),
        xdp_id=xdp_id,
        xdp_mode=(UplinkMode.XDP_GENERIC if generic else UplinkMode.XDP_NATIVE) if xdp_id else None,
    )


def _remove_xdp(interface: Interface) -> None:
    if interface.xdp_mode is not None:
        set_xdp(interface.index, -1, _XDP_FLAGS[interface.xdp_mode])


def _refused(interface: Interface, hook: str, error: NetlinkError | OSError) -> AttachError:
    if isinstance(error, OSError):
        code, text = error.errno or 0, error.strerror
    else:
        code, text = error.code, os.strerror(error.code)
    refused = AttachError(f"{interface.name}: {hook}: {text}")
    refused.errno = code
    return refused


def is_our_xdp(interface: Interface) -> bool:
    """Tell whether the XDP program on an interface is one of ours: pinned as such, or of our name."""
    if not interface.xdp_id:
        return False
    if interface.xdp_id in _pinned_ids():
        return True
    try:
        with bpf.prog_by_id(interface.xdp_id) as program:
            return bpf.prog_info(program).name.startswith(_OUR_XDP)
    except BpfError as error:
        if error.errno == errno.ENOENT:  # detached meanwhile
            return False
        if error.errno == errno.EPERM:
            return False  # to ask takes CAP_SYS_ADMIN, which an agent need not have; no pin of ours has it
        raise


def _pinned_ids() -> set[int]:
    """Return the ids of the XDP programs of all instances and builds that are pinned."""
    ids = set()
    for path in ROOT.glob(f"*/*/{_OUR_XDP}_uplink"):
        with contextlib.suppress(BpfError), bpf.obj_get(path) as program:  # may be unpinned meanwhile
            ids.add(bpf.prog_info(program).id)
    return ids


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

    def run(self, stop: threading.Event) -> None:
        """Watch until stop is set."""
        while not stop.is_set():
            self.step(0.5)

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
