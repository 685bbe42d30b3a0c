# SPDX-License-Identifier: Apache-2.0
"""What is asked of the kernel for an overlay, and what is said when it cannot."""

import errno
from typing import Any

import pytest
from pyroute2.netlink.exceptions import NetlinkError

from lb.errors import LabError
from lb.lab.addressing import Family, LabSpec, Overlay
from lb.lab.tunnels import add_tunnels


class Kernel:
    """A pyroute2 IPRoute that takes note; it lacks one kind of device."""

    def __init__(self, lacks: str = "") -> None:
        self._lacks = lacks
        self.links: dict[str, dict[str, Any]] = {}
        self.routes: list[tuple[str, str]] = []

    def link(self, what: str, **how: Any) -> None:
        if what == "add":
            if how["kind"] == self._lacks:
                raise NetlinkError(errno.EOPNOTSUPP, "Unknown device type")
            self.links[how["ifname"]] = how

    def link_lookup(self, ifname: str) -> list[int]:
        return [list(self.links).index(ifname) + 1]

    def addr(self, *_: Any, **__: Any) -> None:
        pass

    def route(self, what: str, **how: Any) -> None:
        assert what == "add"
        self.routes.append((how["dst"], how["gateway"]))


@pytest.mark.parametrize("kind", ["ipip", "sit"])
def test_a_kernel_without_ip_in_ip_is_told_by_its_module(kind: str) -> None:
    spec = LabSpec("lab", "/m", overlay=Overlay.IPIP)
    with pytest.raises(LabError, match=f"--overlay ipip: the kernel makes no device of kind {kind}"):
        add_tunnels(spec, Kernel(lacks=kind), "node1", 1)


def test_ipv4_alone_needs_no_device_for_ipv6() -> None:
    kernel = Kernel(lacks="sit")
    add_tunnels(LabSpec("lab", "/m", overlay=Overlay.IPIP, family=Family.IPV4), kernel, "node1", 1)
    assert kernel.links.keys() == {"ipip4"}


def test_the_gateway_of_a_route_is_the_node_behind_the_tunnel() -> None:
    kernel = Kernel()
    add_tunnels(LabSpec("lab", "/m", overlay=Overlay.IPIP, nodes=3), kernel, "node2", 7)
    assert {name: how["kind"] for name, how in kernel.links.items()} == {"ipip4": "ipip", "ipip6": "sit"}
    assert kernel.links["ipip4"]["ipip_local"] == kernel.links["ipip6"]["sit_local"] == "192.168.77.12"
    assert kernel.routes == [
        ("10.244.1.0/24", "192.168.77.11"),
        ("10.244.3.0/24", "192.168.77.13"),
        ("fd00:244:0:1::/64", "::192.168.77.11"),
        ("fd00:244:0:3::/64", "::192.168.77.13"),
    ]
