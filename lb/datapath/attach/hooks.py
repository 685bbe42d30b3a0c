# SPDX-License-Identifier: Apache-2.0
"""Which program runs where: the desired hooks of the interfaces, and the kernel brought in step with them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from enum import StrEnum
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np

from lb.config import UplinkMode
from lb.datapath.attach.netlink import (
    Interface,
    Netlink,
    exists,
    in_place,
    is_our_xdp,
    our_names,
    runs,
    tc_programs,
)
from lb.datapath.attach.snat import add_snat_sources
from lb.datapath.kernel import bpf
from lb.datapath.kernel.rtnl import Direction
from lb.datapath.maps import layouts
from lb.datapath.maps.interface import Maps
from lb.datapath.maps.layouts import IfaceFlag
from lb.errors import AttachError, CapacityError
from lb.model import IPAddress

_LOG = logging.getLogger(__name__)
_OVERLAYS = frozenset({"vxlan", "geneve"})
_IP_OVERLAYS = frozenset({"ipip", "ip6tnl"})
NO_UPLINK = "there is no such interface"
"""How the error ends that an uplink is not there."""
XDP_PROGRAM = "lb_xdp_uplink"
NO_XDP = "no network card was there when the agent started: it loads the programs of XDP when it starts again"
"""Why tc serves an uplink that XDP could serve, see :func:`may_run_xdp`."""
LOOPBACK_PROGRAM = "lb_tc_loopback"


class Role(StrEnum):
    """What an interface is to us."""

    UPLINK = "uplink"
    TUNNEL = "tunnel"
    POD = "pod"
    LOOPBACK = "loopback"


_OUTWARD = {Direction.INGRESS: "lb_tc_uplink_in", Direction.EGRESS: "lb_tc_uplink_out"}
TC_PROGRAMS: Mapping[Role, Mapping[Direction, str]] = {
    Role.UPLINK: _OUTWARD,
    Role.TUNNEL: _OUTWARD,
    Role.POD: {Direction.INGRESS: "lb_tc_pod_in", Direction.EGRESS: "lb_tc_pod_out"},
    Role.LOOPBACK: {Direction.EGRESS: LOOPBACK_PROGRAM},
}
"""The tc programs of each role. Ingress is what comes into the node from the interface.

What the node sends to itself is seen as it leaves by ``lo``, where the kernel still knows its socket.

An uplink in an XDP mode has them too: XDP leaves to them what it cannot send itself."""

TC_PROGRAMS_L3: Mapping[Direction, str] = {Direction.INGRESS: "lb_tc_l3_in", Direction.EGRESS: "lb_tc_l3_out"}
"""Those of an uplink or a tunnel whose packets begin with the IP header."""


def tc_programs_for(interface: Interface, role: Role) -> Mapping[Direction, str]:
    """Return the tc programs that an interface of a role should have, by direction."""
    outward = role in (Role.UPLINK, Role.TUNNEL)
    return TC_PROGRAMS_L3 if outward and not interface.ethernet else TC_PROGRAMS[role]


_KERNEL_NAME = 15
_FULL_NAMES = {
    name[:_KERNEL_NAME]: name
    for programs in (*TC_PROGRAMS.values(), TC_PROGRAMS_L3)
    for name in programs.values()
}
"""The kernel does not know more of a name."""

_FLAGS: Mapping[Role | None, IfaceFlag] = {Role.UPLINK: IfaceFlag.UPLINK, Role.TUNNEL: IfaceFlag.TUNNEL}


@dataclass(frozen=True, slots=True)
class Selection:
    """Which interfaces have which role: names or globs, as in :class:`lb.config.Config`.

    What is left empty is detected: uplinks are the interfaces of the default routes; tunnels are VXLAN and
    Geneve devices, and IP-in-IP ones that are up, as the kernel keeps one in every network namespace that
    nobody may use; pods' interfaces are veths whose other end is in another network namespace.
    """

    uplinks: tuple[str, ...] = ()
    tunnels: tuple[str, ...] = ()
    pod_interfaces: tuple[str, ...] = ()

    def roles(self, interfaces: Sequence[Interface], default_routes: Sequence[int]) -> dict[int, Role]:
        """Return the role of each interface that has one, by ifindex; uplink before tunnel before pod."""
        found = {}
        for interface in interfaces:
            if interface.kind == "loopback":
                found[interface.index] = Role.LOOPBACK
            elif _named(interface, self.uplinks) if self.uplinks else interface.index in default_routes:
                found[interface.index] = Role.UPLINK
            elif _named(interface, self.tunnels) if self.tunnels else _is_overlay(interface):
                found[interface.index] = Role.TUNNEL
            elif (
                _named(interface, self.pod_interfaces)
                if self.pod_interfaces
                else interface.kind == "veth" and interface.foreign_peer
            ):
                found[interface.index] = Role.POD
        return found

    def missing(self, interfaces: Sequence[Interface], roles: Mapping[int, Role]) -> list[AttachError]:
        """Return an error for each uplink that is named and not there, or for want of any."""
        absent = [name for name in self.uplinks if not any(_named(one, (name,)) for one in interfaces)]
        if not self.uplinks and Role.UPLINK not in roles.values():
            return [AttachError(f"no uplink is named, and by the default routes {NO_UPLINK}")]
        return [AttachError(f"uplink {name}: {NO_UPLINK}") for name in absent]


def _leads_to_pod(interface: Interface) -> bool:
    """Tell whether what is redirected to the interface's peer is in a pod (bpf-helpers(7), redirect_peer).

    The kernel drops it where there is no peer, and where that is in the same network namespace.
    """
    return interface.kind == "veth" and interface.foreign_peer


def _is_overlay(interface: Interface) -> bool:
    return interface.kind in _OVERLAYS or (interface.kind in _IP_OVERLAYS and interface.up)


def _named(interface: Interface, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(interface.name, pattern) for pattern in patterns)


def choose_uplink_mode(interface: Interface, wanted: UplinkMode) -> tuple[UplinkMode, str]:
    """Return the mode to try on an uplink, and why. Only AUTO may fall back to tc when the kernel refuses."""
    if not interface.ethernet:
        return UplinkMode.TC, "packets have no Ethernet header, as XDP would expect"
    if wanted is not UplinkMode.AUTO:
        return wanted, "as configured"
    if interface.kind == "veth":
        return UplinkMode.TC, "veth: XDP would turn off the peer's segmentation offload"
    if interface.kind != "physical":
        return UplinkMode.TC, f"{interface.kind}: a virtual device without a driver that runs XDP"
    return UplinkMode.XDP_NATIVE, "the driver runs XDP"


def may_run_xdp(wanted: UplinkMode) -> bool:
    """Tell whether XDP may get a program on an interface of the calling thread's network namespace.

    AUTO takes it on network cards alone: a node that has none, such as a container, needs no programs for it.

    Raises AttachError: the kernel refused to list interfaces.
    """
    if wanted is not UplinkMode.AUTO:
        return wanted is not UplinkMode.TC
    with Netlink() as net:
        return any(choose_uplink_mode(one, wanted)[0] is not UplinkMode.TC for one in net.interfaces())


@dataclass(slots=True)
class HookReport:
    """What one sync did: the hooks attached and detached as ``"eth0 tc ingress"``, and what failed."""

    attached: list[str] = field(default_factory=list)
    detached: list[str] = field(default_factory=list)
    errors: list[AttachError | CapacityError] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Attached:
    """One of our programs at a hook, as the kernel tells it; hook is ``"tc ingress"``, ``"xdp-native"``, …"""

    interface: str
    ifindex: int
    hook: str
    program: str
    program_id: int


@dataclass(frozen=True, slots=True)
class LostHook:
    """A hook without the program that it should have.

    place: the hook and its program in words. outward: it is on an uplink or a tunnel.
    """

    place: str
    outward: bool


class Hooks:
    """Keeps our programs attached to the interfaces that want them, and the ``ifaces`` maps filled.

    Not safe for several threads at once. modes holds, for each uplink by name, its mode and why. redirect:
    tell the programs to which interfaces they may redirect.
    """

    def __init__(
        self,
        programs: Mapping[str, Path],
        maps: Maps,
        selection: Selection,
        uplink_mode: UplinkMode,
        *,
        redirect: bool = False,
    ) -> None:
        """Open the pinned programs.

        Raises BpfError: a program is not pinned.
        """
        self.modes: dict[str, tuple[UplinkMode, str]] = {}
        self._programs = {name: bpf.obj_get(path) for name, path in programs.items()}
        self._ids = {name: bpf.prog_info(fd).id for name, fd in self._programs.items()}
        self._names = {ident: name for name, ident in self._ids.items()}
        self._maps = maps
        self._selection = selection
        self._wanted_mode = uplink_mode
        self._redirect = redirect
        self._default_routes: list[int] = []
        self._done: dict[int, tuple[str, Role | None]] = {}
        self._wanted: dict[int, tuple[str, Role, Mapping[Direction, str]]] = {}

    @property
    def outward(self) -> bool:
        """Whether there was an uplink at the last sync; may be read from any thread."""
        return any(role is Role.UPLINK for _, role, _ in self._wanted.values())

    @property
    def places(self) -> dict[str, Role]:
        """The interfaces of the last sync that have a role, by name."""
        return {name: role for name, role, _ in self._wanted.values()}

    def close(self) -> None:
        """Close the programs; what is attached stays attached."""
        for fd in self._programs.values():
            fd.close()

    def sync(self, changed: Set[int] | None = None, own: Sequence[IPAddress] = ()) -> HookReport:
        """Bring the kernel in step; own are the node's addresses by its Node object, see fill_ifaces.

        Interfaces seen for the first time, of another role than before, and those in changed are compared
        with the kernel; all are when changed is None. One interface's failure does not stop the others; an
        interface that vanishes meanwhile is no failure.
        """
        report = HookReport()
        with Netlink() as net:
            interfaces = net.interfaces()
            # A default route that comes back in a moment must not cost an uplink its programs.
            self._default_routes = net.default_route_interfaces() or self._default_routes
            roles = self._selection.roles(interfaces, self._default_routes)
            fill_links(self._maps, interfaces, roles)
            for version in layouts.FAMILIES:
                try:
                    fill_ifaces(self._maps, version, interfaces, roles, redirect=self._redirect, own=own)
                except CapacityError as error:
                    report.errors.append(error)
            report.errors += self._selection.missing(interfaces, roles)
            self._wanted = {
                one.index: (one.name, roles[one.index], tc_programs_for(one, roles[one.index]))
                for one in interfaces
                if one.index in roles
            }
            done: dict[int, tuple[str, Role | None]] = {}
            for interface in interfaces:
                role = roles.get(interface.index)
                state = (interface.name, role)
                if changed is None or interface.index in changed or self._done.get(interface.index) != state:
                    try:
                        self._sync_one(net, interface, role, report)
                    except AttachError as error:
                        if error.errno != errno.ENODEV:
                            report.errors.append(error)
                        continue
                done[interface.index] = state
        self._done = done
        names = {interface.name for interface in interfaces if interface.index in roles}
        self.modes = {name: mode for name, mode in self.modes.items() if name in names}
        return report

    def lost(self) -> list[LostHook]:
        """Return the tc hooks that have not our program now, with one question to the kernel for each.

        Of XDP the kernel tells by an event when somebody detaches it, and tc serves behind it.

        Raises AttachError, BpfError: the kernel refused the question.
        """
        return [
            LostHook(f"{role.value} {name}, tc {direction.name.lower()}: {program}", role in _FLAGS)
            for index, (name, role, programs) in self._wanted.items()
            for direction, program in programs.items()
            if not runs(index, direction, self._ids[program]) and exists(index)
        ]

    def _sync_one(self, net: Netlink, interface: Interface, role: Role | None, report: HookReport) -> None:
        if role is None:
            _detach(net, interface, report)
            return
        for direction, program in tc_programs_for(interface, role).items():
            if not in_place(interface.index, direction, self._ids[program], self._names):
                net.attach_tc(interface, direction, program, self._programs[program])
                report.attached.append(f"{interface.name} tc {direction.name.lower()}")
        if role is Role.UPLINK:
            self._sync_xdp(net, interface, report)
        elif net.detach_xdp(interface):
            report.detached.append(f"{interface.name} XDP")

    def _sync_xdp(self, net: Netlink, interface: Interface, report: HookReport) -> None:
        mode, why = self.modes.get(interface.name) or choose_uplink_mode(interface, self._wanted_mode)
        if mode is not UplinkMode.TC and XDP_PROGRAM not in self._programs:
            mode, why = UplinkMode.TC, NO_XDP
        if mode is not UplinkMode.TC:
            try:
                if (interface.xdp_id, interface.xdp_mode) != (self._ids[XDP_PROGRAM], mode):
                    net.attach_xdp(interface, mode, self._programs[XDP_PROGRAM])
                    report.attached.append(f"{interface.name} {mode.value}")
            except AttachError as error:
                if self._wanted_mode is not UplinkMode.AUTO or error.errno == errno.ENODEV:
                    raise
                mode, why = UplinkMode.TC, str(error)
        elif net.detach_xdp(interface):
            report.detached.append(f"{interface.name} XDP")
        if self.modes.get(interface.name) != (mode, why):
            _LOG.info("uplink %s: %s (%s)", interface.name, mode.value, why)
        self.modes[interface.name] = (mode, why)


def fill_ifaces(
    maps: Maps,
    version: int,
    interfaces: Sequence[Interface],
    roles: Mapping[int, Role],
    *,
    redirect: bool,
    own: Sequence[IPAddress] = (),
) -> None:
    """Write source address and MTU of each uplink and tunnel, and under key 0 the node's primary address.

    own are the node's addresses by its Node object (status.addresses of type InternalIP, in their order).
    An interface's source is one of own if it has one. While the Node is unknown, it is the address that the
    map has already. Otherwise it is :meth:`Interface.source`. The primary address is one of own that an
    uplink has, else the first uplink's, else one of own that any interface has (a host route to an address
    of ``lo``). An uplink or tunnel without an address uses it. No other interface has one: the answer to a
    packet that we SNATed has to come in by one of our ingress hooks that undo it. To redirect, the veths of
    pods are there as well.

    Raises BpfError: the kernel refused; CapacityError when there are more interfaces than the map has room
    for.
    """
    name = f"ifaces{version}"
    keys, values = maps.read(name)
    present = dict(zip(keys.tolist(), values.tolist(), strict=True))

    def prefer(index: int) -> Sequence[IPAddress]:
        if own or index not in present:
            return own
        return (layouts.unpack_address(present[index][0]),)

    sources = {one.index: one.source(version, prefer(one.index)) for one in interfaces}
    uplinks = [one for one in interfaces if roles.get(one.index) is Role.UPLINK]
    primary = primary_address(version, uplinks, prefer(0)) or primary_address(
        version, interfaces, own, otherwise=()
    )
    nowhere = np.zeros(1, layouts.ADDRESS[version]).tolist()[0]
    wanted = {0: (layouts.pack_address(primary), 0, 0)} if primary else {}
    for one in interfaces:
        flags = _FLAGS.get(roles.get(one.index))
        if flags:
            source = sources[one.index] or primary
            wanted[one.index] = (layouts.pack_address(source) if source else nowhere, int(flags), one.mtu)
        elif redirect and one.index in roles and _leads_to_pod(one):
            wanted[one.index] = (nowhere, int(IfaceFlag.PEER), 0)
    used = [primary, *(sources[index] for index in sources if roles.get(index) in _FLAGS)]
    add_snat_sources(maps, version, [each for each in used if each])
    gone = sorted(present.keys() - wanted.keys())
    changed = sorted(index for index, value in wanted.items() if present.get(index) != value)
    if gone:
        maps.delete(name, np.array(gone, dtype=layouts.ID))
    if changed:
        rows = np.array([wanted[index] for index in changed], dtype=layouts.IFACE[version])
        maps.update(name, np.array(changed, dtype=layouts.ID), rows)


def primary_address(
    version: int,
    interfaces: Sequence[Interface],
    own: Sequence[IPAddress],
    otherwise: Sequence[Interface] | None = None,
) -> IPAddress | None:
    """Return the first of own that is on one of the interfaces, else the first address of otherwise.

    otherwise: interfaces, the same ones when left out. None: there is no such address of this family.
    """
    here = {each.ip for one in interfaces for each in one.addresses if each.version == version}
    fit = here.difference(*(one.unfit for one in interfaces))
    for address in own:
        if address in fit and not (address.is_loopback or address.is_link_local):
            return address
    sources = (one.source(version) for one in (interfaces if otherwise is None else otherwise))
    return next((source for source in sources if source), None)


def fill_links(maps: Maps, interfaces: Sequence[Interface], roles: Mapping[int, Role]) -> None:
    """Write the link addresses of the uplinks, by which XDP knows whom a frame is for.

    What has no room or no link header is left out: tc serves there.

    Raises BpfError: the map could not be mapped into memory.
    """
    uplinks = [one for one in interfaces if roles.get(one.index) is Role.UPLINK and one.ethernet and one.mac]
    row = np.zeros(1, layouts.LINK_TABLE)
    for at, one in enumerate(uplinks[: layouts.LINKS]):
        row["links"][0, at] = (one.index, bytes.fromhex(one.mac.replace(":", "")), (0, 0))
    table = maps.array("links")
    if table[:1].tobytes() != row.tobytes():
        table[:1] = row


def _detach(net: Netlink, interface: Interface, report: HookReport) -> None:
    if net.detach_tc(interface):
        report.detached.append(f"{interface.name} tc")
    if net.detach_xdp(interface):
        report.detached.append(f"{interface.name} XDP")


def detach_all() -> HookReport:
    """Remove our programs from every interface of the current network namespace."""
    report = HookReport()
    with Netlink() as net:
        for interface in net.interfaces():
            try:
                _detach(net, interface, report)
            except AttachError as error:
                if error.errno != errno.ENODEV:
                    report.errors.append(error)
    return report


def attached() -> list[Attached]:
    """Return our programs at the hooks of the current network namespace, by ifindex, as the kernel tells it.

    Raises AttachError, BpfError: the kernel refused.
    """
    found = []
    names = our_names()
    with Netlink() as net:
        for one in net.interfaces():
            if one.xdp_mode is not None and is_our_xdp(one):
                found.append(Attached(one.name, one.index, one.xdp_mode.value, XDP_PROGRAM, one.xdp_id))
            for direction in Direction:
                found += [
                    Attached(
                        one.name,
                        one.index,
                        f"tc {direction.name.lower()}",
                        _FULL_NAMES.get(name, name),
                        ident,
                    )
                    for ident, name in tc_programs(one.index, direction, names)
                ]
    return found
