# SPDX-License-Identifier: Apache-2.0
"""What of the node itself an instance should know and do: hooks with its programs, interfaces, settings."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lb.config import Config, SocketMode, Switch, UplinkMode
from lb.datapath.attach import hooks, sockets
from lb.datapath.attach.hooks import XDP_PROGRAM, Attached, Role, fill_ifaces, fill_links, tc_programs_for
from lb.datapath.attach.netlink import Interface
from lb.datapath.attach.roles import interfaces_and_roles
from lb.datapath.attach.settings import write_settings
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.interface import Maps, Rows
from lb.datapath.maps.layouts import FAMILIES
from lb.datapath.maps.overlay import Overlay
from lb.datapath.programs.loader import pinned_programs
from lb.errors import CapacityError
from lb.model import IPAddress


@dataclass(frozen=True, slots=True)
class MissingHook:
    """A hook without our program. interface is ``""`` for a control group; role: what it is to us."""

    interface: str
    role: str
    hook: str
    program: str

    @property
    def place(self) -> str:
        """Which hook, in words."""
        return f"{self.role} {self.interface}".strip() + f", {self.hook}"

    def __str__(self) -> str:
        return f"{self.place}: {self.program} is not attached"


def wanted(
    interfaces: Sequence[Interface], roles: Mapping[int, Role], modes: Mapping[str, Sequence[str]]
) -> list[tuple[Interface, Role, str, str]]:
    """Return the hooks that should have a program: interface, its role, hook, program.

    modes: each uplink's mode and why, as the agent noted it; without a note it is taken for tc.
    """
    found = []
    for one in interfaces:
        role = roles.get(one.index)
        if role is None:
            continue
        for direction, program in tc_programs_for(one, role).items():
            found.append((one, role, f"tc {direction.name.lower()}", program))
        mode = (modes.get(one.name) or (UplinkMode.TC.value,))[0]
        if role is Role.UPLINK and mode != UplinkMode.TC:
            found.append((one, role, mode, XDP_PROGRAM))
    return found


def absent(
    hooks_wanted: Sequence[tuple[Interface, Role, str, str]], attached: Sequence[Attached], ours: set[int]
) -> list[MissingHook]:
    """Return those that are not there, or whose program is none of this instance's."""
    there = {(one.ifindex, one.hook, one.program) for one in attached if one.program_id in ours}
    return [
        MissingHook(one.name, role.value, hook, program)
        for one, role, hook, program in hooks_wanted
        if (one.index, hook, program) not in there
    ]


def missing(config: Config, notes: Mapping[str, Any]) -> list[MissingHook]:
    """Look at the interfaces of the calling thread's network namespace, and at the control group.

    notes: the agent's. They have each uplink's mode, and why there are no socket hooks, which then are not
    missed.

    Raises AttachError, BpfError: the kernel refused.
    """
    pins = Pins(config.instance)
    interfaces, roles = interfaces_and_roles(config)
    ours = {info.id for _, info in pinned_programs(pins)}
    modes = notes.get("uplink_modes", {})
    found = absent(wanted(interfaces, roles, modes), hooks.attached(), ours)
    if config.socket_lb is not SocketMode.OFF and not notes.get("no_socket_hooks"):
        links = sockets.attached(pins)
        if not links:
            found.append(MissingHook("", "control group", "connect, sendmsg", "no socket program"))
        found += [
            MissingHook("", "control group", one.hook, one.program)
            for one in links
            if one.cgroup is None or one.program_id not in ours
        ]
    return found


def write_node(maps: Maps, config: Config, own: Sequence[IPAddress]) -> None:
    """Write to maps what an agent writes there of its configuration and of the interfaces around it.

    own are the node's addresses by its Node object, see :func:`lb.datapath.attach.hooks.fill_ifaces`.
    The interfaces are left as they are while there is no uplink: an agent remembers the one it had.

    Raises AttachError: the kernel refused to list interfaces.
    Raises BpfError: the kernel refused the maps.
    """
    write_settings(maps, config)
    interfaces, roles = interfaces_and_roles(config)
    if Role.UPLINK in roles.values():
        fill_links(maps, interfaces, roles)
        for version in FAMILIES:
            with contextlib.suppress(CapacityError):  # which the agent tells of
                redirect = config.redirect is Switch.ON
                fill_ifaces(maps, version, interfaces, roles, redirect=redirect, own=own)


def drift(maps: Maps, config: Config, own: Sequence[IPAddress]) -> dict[str, int]:
    """Return by map how many interfaces, link addresses and settings are not as :func:`write_node` has them.

    Raises AttachError: the kernel refused to list interfaces.
    Raises BpfError: the kernel refused the maps.
    """
    should = Overlay(maps)
    write_node(should, config, own)
    live_links, right_links = (each.array("links")[0]["links"] for each in (maps, should))
    found = {
        "links": sum(
            was.tobytes() != right.tobytes() for was, right in zip(live_links, right_links, strict=True)
        )
    }
    for version in FAMILIES:
        name = f"ifaces{version}"
        live, right = (set(_pairs(*each.read(name))) for each in (maps, should))
        found[name] = len({index for index, _ in live ^ right})
        name = f"settings{version}"
        found[name] = int(maps.array(name).tobytes() != should.array(name).tobytes())
    return found


def _pairs(keys: Rows, values: Rows) -> Iterator[tuple[int, bytes]]:
    return zip(keys.tolist(), (value.tobytes() for value in values), strict=True)
