# SPDX-License-Identifier: Apache-2.0
"""What an interface is to a node, and how programs are attached to its uplinks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest

from lb.config import UplinkMode
from lb.datapath.attach.hooks import Role, Selection, choose_uplink_mode
from lb.datapath.attach.netlink import Interface


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
    assert errors([]) == ["no uplink is named, and by the default routes there is no such interface"]


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
