# SPDX-License-Identifier: Apache-2.0
"""Where a packet meets the data plane on this node: which interface, and which of our programs are there."""

from __future__ import annotations

from pathlib import Path

from lb.datapath.attach import hooks
from lb.datapath.attach.hooks import Role
from lb.datapath.attach.netlink import Netlink
from lb.datapath.attach.roles import written_roles
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs.loader import pinned_programs
from lb.datapath.view.lookups import Flow
from lb.diagnose.trace import EntryPoint
from lb.diagnose.trace_story import Side
from lb.errors import ConfigError
from lb.model import FiveTuple, IPAddress

_INGRESS, _EGRESS = "tc ingress", "tc egress"
_POD_IN = "lb_tc_pod_in"
_LOOPBACK = 1  # lo's ifindex in every network namespace
_NO_LINK_HEADER = ("lb_tc_l3_in", "lb_tc_l3_out")


class Entries:
    """The interfaces of the current network namespace that an instance's programs are attached to.

    Raises ConfigError: none of its programs is attached here; AttachError, BpfError: the kernel refused.
    """

    def __init__(self, pins: Pins) -> None:
        programs = {info.id: path for path, info in pinned_programs(pins)}
        found = [one for one in hooks.attached() if one.program_id in programs]
        if not found:
            raise ConfigError(
                f"instance {pins.instance}: none of its programs is attached in this network namespace"
            )
        self._at: dict[int, list[hooks.Attached]] = {}
        for one in found:
            self._at.setdefault(one.ifindex, []).append(one)
        self.directory: Path = programs[found[0].program_id].parent
        with Netlink() as net:
            self._interfaces = {one.index: one for one in net.interfaces()}
        with KernelMaps(pins.maps) as maps:
            roles = written_roles(maps)
        self._uplinks = sorted(index for index, role in roles.items() if role is Role.UPLINK)

    @property
    def programs(self) -> set[str]:
        """The names of all programs that are attached."""
        return {one.program for each in self._at.values() for one in each}

    def find(self, where: str, packet: FiveTuple | None) -> EntryPoint:
        """Return where a packet comes in.

        where: an interface, ``outside``, ``host``, or ``""``: the packet's source says it: it is an address
        of this node, or the route to it leads to a pod; else it is outside.

        Raises ConfigError: there is no such interface, or no program at it.
        """
        if not where:
            where = self._whence(packet.src) if packet else "outside"
        if where == "host":
            return self._from_host(packet)
        if where == "outside":
            return self._ingress(self._outside(packet))
        for interface in self._interfaces.values():
            if interface.name == where:
                return self._ingress(interface.index)
        raise ConfigError(f"--in {where}: there is no such interface; programs are at {self._names()}")

    def behind(self, pod: IPAddress, name: str) -> str:
        """Return the interface of a pod with this address, ``host`` for one in the node's own network.

        Raises ConfigError: no interface leads to it; the message calls it by name.
        """
        route = self._route(pod)
        if route and route[1]:
            return "host"
        if route and any(one.program == _POD_IN for one in self._at.get(route[0], ())):
            return self._interfaces[route[0]].name
        raise ConfigError(
            f"--in {name}: no pod's interface of this node leads to {pod}: is it on another node?"
        )

    def facing(self, entry: EntryPoint, flow: Flow, answer: FiveTuple) -> EntryPoint:
        """Return where the answer to a packet of a flow is translated back: at what faces the client.

        answer: from the backend to what it takes for the client.
        """
        route = self._route(answer.src)
        behind = route[0] if route else 0
        if flow.path == "stack":
            return self._at_hook(entry.ifindex, _EGRESS, Side.LEAVING, came_in=behind)
        if flow.path == "hairpin" or behind not in self._at:
            return self._ingress(entry.ifindex)
        return self._ingress(behind)

    def _whence(self, address: IPAddress) -> str:
        route = self._route(address)
        if route is None:
            return "outside"
        index, own = route
        if own:
            return "host"
        at_pod = any(one.program == _POD_IN for one in self._at.get(index, ()))
        return self._interfaces[index].name if at_pod else "outside"

    def _outside(self, packet: FiveTuple | None) -> int:
        route = self._route(packet.src) if packet else None
        if route and route[0] in self._uplinks and route[0] in self._at:
            return route[0]
        for index in self._uplinks:
            if index in self._at:
                return index
        raise ConfigError(f"--in outside: no uplink has a program of ours; programs are at {self._names()}")

    def _from_host(self, packet: FiveTuple | None) -> EntryPoint:
        route = self._route(packet.dst) if packet else None
        if route is None:
            raise ConfigError(f"--in host: there is no route to {packet.dst if packet else 'the packet'}")
        index, own = route
        return self._at_hook(_LOOPBACK if own else index, _EGRESS, Side.HOST)

    def _ingress(self, index: int) -> EntryPoint:
        inside = any(one.program == _POD_IN for one in self._at.get(index, ()))
        return self._at_hook(index, _INGRESS, Side.INSIDE if inside else Side.OUTSIDE)

    def _at_hook(self, index: int, at: str, side: Side, came_in: int = 0) -> EntryPoint:
        name = self._interfaces[index].name if index in self._interfaces else str(index)
        here = [one for one in self._at.get(index, ()) if one.hook == at]
        if at == _INGRESS:
            here = [one for one in self._at.get(index, ()) if one.hook.startswith("xdp")] + here
        if not here:
            raise ConfigError(f"{name}: no program of ours is at its {at}; programs are at {self._names()}")
        if here[-1].program in _NO_LINK_HEADER:
            raise ConfigError(
                f"{name}: its packets have no link header, and the kernel cannot try programs on such packets"
            )
        programs = tuple((one.program, one.hook) for one in here)
        return EntryPoint(name, index, self._interfaces[index].mac, side, programs, came_in)

    def _names(self) -> str:
        return ", ".join(sorted({one.interface for each in self._at.values() for one in each}))

    @staticmethod
    def _route(address: IPAddress) -> tuple[int, bool] | None:
        with Netlink() as net:
            return net.route_to(address)
