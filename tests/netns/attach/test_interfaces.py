# SPDX-License-Identifier: Apache-2.0
"""What is read of real interfaces, and what the programs are told of them. Needs root."""

from __future__ import annotations

import contextlib
import socket
import threading
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_interface
from pathlib import Path

import pytest
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkDumpInterrupted

from lb.datapath.attach import netlink
from lb.datapath.attach.hooks import (
    HookReport,
    Selection,
)
from lb.datapath.attach.netlink import InterfaceWatcher, Netlink
from lb.datapath.maps import layouts
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.programs.loader import Loaded
from lb.errors import AttachError
from lb.stop_event import StopEvent
from tests.namespaces import NetworkNamespace
from tests.netns.attach.bench import NODE, NODE_SECOND, PEER, POD, add_pod, by_name, hooked, index_of, shape

RT_SCOPE_LINK, RT_SCOPE_HOST = 253, 254


def test_interfaces(route: IPRoute) -> None:
    found = by_name()
    up = found["up0"]
    assert (up.kind, up.up, up.ethernet, up.foreign_peer, up.xdp_id, up.mtu) == (
        "veth", True, True, False, 0, 1500,
    )  # fmt: skip
    four = [address for address in up.addresses if address.version == 4]
    assert four == [ip_interface(f"{NODE}/24"), ip_interface(f"{NODE_SECOND}/24")]
    assert up.source(4) == IPv4Address(NODE)
    assert (found["pod1"].foreign_peer, found["pod1"].source(4)) == (True, None)
    assert {name: found[name].kind for name in ("lo", "vx0", "br0")} == {
        "lo": "loopback", "vx0": "vxlan", "br0": "bridge",
    }  # fmt: skip


IFA_F_NODAD = 2


def test_dual_stack_primary_address_of_ipv6(route: IPRoute) -> None:
    """The one that was given first, of those that others may use: not link-local, deprecated or tentative."""
    up = index_of("up0")
    assert by_name()["up0"].source(6) is None, "link-local alone"
    Path("/proc/sys/net/ipv6/conf/up0/dad_transmits").write_text("600")  # tentative for as many seconds
    route.addr("add", index=up, address="2001:db8::9", prefixlen=64)
    route.addr("add", index=up, address="2001:db8::8", prefixlen=64, flags=IFA_F_NODAD, preferred=0)
    route.addr("add", index=up, address="fd00::5", prefixlen=64, flags=IFA_F_NODAD)
    route.addr("add", index=up, address="2001:db8::1", prefixlen=128, flags=IFA_F_NODAD)
    found = by_name()["up0"]
    assert {IPv6Address("2001:db8::9"), IPv6Address("2001:db8::8")} <= found.unfit
    assert found.source(6) == IPv6Address("fd00::5")
    assert found.source(4) == IPv4Address(NODE)


def test_an_address_of_link_scope_is_used_only_without_a_global_one(route: IPRoute) -> None:
    up = index_of("up0")
    route.flush_addr(index=up)
    route.addr("add", index=up, address="192.0.2.99", prefixlen=32, scope=RT_SCOPE_HOST)
    assert by_name()["up0"].source(4) is None, "nobody else may use it"
    route.addr("add", index=up, address="10.200.0.1", prefixlen=24, scope=RT_SCOPE_LINK)
    assert by_name()["up0"].source(4) == IPv4Address("10.200.0.1")
    route.addr("add", index=up, address="192.0.2.1", prefixlen=24)
    route.addr("add", index=up, address="192.0.2.2", prefixlen=24)
    found = by_name()["up0"]
    assert found.source(4) == IPv4Address("192.0.2.1")
    assert [str(each.ip) for each in found.addresses if each.version == 4] == [
        "192.0.2.1",
        "192.0.2.2",
        "10.200.0.1",
        "192.0.2.99",
    ]


def test_a_listing_that_is_interrupted_starts_again() -> None:
    answers: list[NetlinkDumpInterrupted | list[int]]
    answers = [NetlinkDumpInterrupted(), NetlinkDumpInterrupted(), [1, 2]]

    def listing() -> list[int]:
        answer = answers.pop(0)
        if not isinstance(answer, list):
            raise answer
        return answer

    assert netlink._dump(listing) == [1, 2]
    answers = [NetlinkDumpInterrupted() for _ in range(100)]
    with pytest.raises(AttachError, match="change faster"):
        netlink._dump(listing)


def test_default_routes(route: IPRoute) -> None:
    with Netlink() as net:
        assert net.default_route_interfaces() == [index_of("up0")]
        route.route("add", dst="0.0.0.0/0", oif=index_of("br0"), priority=5)
        assert net.default_route_interfaces() == [index_of("up0"), index_of("br0")]
        route.route("del", dst="0.0.0.0/0", gateway=PEER)
        route.route("del", dst="0.0.0.0/0", oif=index_of("br0"), priority=5)
        hops = [{"gateway": PEER, "hops": 1}, {"oif": index_of("br0"), "hops": 1}]
        route.route("add", dst="0.0.0.0/0", multipath=hops)
        assert set(net.default_route_interfaces()) == {index_of("up0"), index_of("br0")}


def test_dual_stack_an_uplink_with_an_ipv6_route_alone(route: IPRoute) -> None:
    route.route("del", dst="0.0.0.0/0", gateway=PEER)
    route.route("add", family=socket.AF_INET6, dst="::/0", oif=index_of("br0"))
    with Netlink() as net:
        assert net.default_route_interfaces() == [index_of("br0")]


def test_interface_map(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    def rows() -> dict[int, tuple[str, int, int]]:
        keys, values = maps.read("ifaces4")
        return {
            int(key): (str(IPv4Address(int(row["source"]))), int(row["flags"]), int(row["mtu"]))
            for key, row in zip(keys, values, strict=True)
        }

    up, tunnel, bridge = index_of("up0"), index_of("vx0"), index_of("br0")
    with hooked(loaded, maps) as own:
        own.sync()
        assert rows() == {0: (NODE, 0, 0), up: (NODE, 1, 1500), tunnel: (NODE, 2, 1450)}, (
            "the bridge is no way out"
        )
        route.addr("add", index=tunnel, address="10.0.9.1", prefixlen=32)
        route.link("del", index=bridge)
        route.link("set", index=up, mtu=1400)
        own.sync({tunnel, bridge})
        assert rows() == {0: (NODE, 0, 0), up: (NODE, 1, 1400), tunnel: ("10.0.9.1", 2, 1450)}
        Path("/proc/sys/net/ipv4/conf/up0/promote_secondaries").write_text("1")
        route.addr("del", index=up, address=NODE, prefixlen=24)
        own.sync({up})
        assert rows() == {
            0: (NODE_SECOND, 0, 0),
            up: (NODE_SECOND, 1, 1400),
            tunnel: ("10.0.9.1", 2, 1450),
        }


def test_the_sources_are_the_addresses_of_the_node_object(
    route: IPRoute, loaded: Loaded, maps: KernelMaps
) -> None:
    def source(index: int) -> str:
        keys, values = maps.read("ifaces4")
        rows = dict(zip(keys.tolist(), values.tolist(), strict=True))
        return str(layouts.unpack_address(rows[index][0]))

    def sync(*own: str) -> tuple[str, str]:
        hooks.sync(set(), [ip_address(text) for text in own])
        return source(0), source(up)

    up = index_of("up0")
    with hooked(loaded, maps) as hooks:
        assert sync() == (NODE, NODE)
        assert sync("2001:db8::1", NODE_SECOND, NODE) == (NODE_SECOND, NODE_SECOND)
        assert sync() == (NODE_SECOND, NODE_SECOND), "it stays while the Node is not known"
        assert sync("203.0.113.9") == (NODE, NODE), "which is on no interface"
        route.addr("add", index=index_of("lo"), address="203.0.113.9", prefixlen=32)
        assert sync("203.0.113.9") == (NODE, NODE), "the uplink has addresses of its own"
        route.flush_addr(index=up)
        assert sync("203.0.113.9") == ("203.0.113.9", "203.0.113.9"), "a host route to an address of lo"


def test_interface_map_follows_the_link_address(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    """XDP compares a frame's destination with it; an event tells of a change (RTM_NEWLINK)."""
    up = index_of("up0")

    def known() -> dict[int, str]:
        rows = maps.array("links")[0]["links"]
        return {int(row["ifindex"]): row["mac"].tobytes().hex(":") for row in rows if row["ifindex"]}

    with hooked(loaded, maps) as own:
        own.sync()
        assert known() == {up: by_name()["up0"].mac}
        changed: list[set[int]] = []
        watcher = InterfaceWatcher(changed.append)
        route.link("set", index=up, address="02:00:00:00:77:01")
        assert watcher.step(5.0)
        watcher.close()
        own.sync(set.union(*changed))
        assert known() == {up: "02:00:00:00:77:01"}


def test_redirect_is_for_veths_with_an_end_in_a_pod(
    route: IPRoute, loaded: Loaded, maps: KernelMaps, pods: NetworkNamespace
) -> None:
    """Anything else the kernel would drop what is redirected to: a tap device, a veth with both ends here."""
    route.link("add", ifname="pod2", kind="veth", peer={"ifname": "pod2-peer"})
    route.link("add", ifname="pod3", kind="tuntap", mode="tap")
    selection = Selection(pod_interfaces=("pod?",))

    def peers(name: str) -> set[int]:
        keys, values = maps.read(name)
        return {
            int(key) for key, row in zip(keys, values, strict=True) if row["flags"] & layouts.IfaceFlag.PEER
        }

    for redirect in (False, True, False):
        with hooked(loaded, maps, selection=selection, redirect=redirect) as own:
            own.sync()
            expected = {index_of("pod1")} if redirect else set()
            assert (peers("ifaces4"), peers("ifaces6")) == (expected, expected)
            add_pod(route, "pod4", pods)
            own.sync({index_of("pod4")})
            assert (index_of("pod4") in peers("ifaces4")) == redirect
            route.link("del", index=index_of("pod4"))
            own.sync()
            assert peers("ifaces4") == expected


def test_dual_stack_interface_map_of_ipv6(route: IPRoute, loaded: Loaded, maps: KernelMaps) -> None:
    def rows() -> dict[int, tuple[str, int]]:
        keys, values = maps.read("ifaces6")
        return {
            index: (str(layouts.unpack_address(source)), flags)
            for index, (source, flags, _mtu) in zip(keys.tolist(), values.tolist(), strict=True)
        }

    up, tunnel = index_of("up0"), index_of("vx0")
    with hooked(loaded, maps) as own:
        own.sync()
        assert rows() == {up: ("::", 1), tunnel: ("::", 2)}
        route.addr("add", index=up, address="2001:db8::1", prefixlen=64, flags=IFA_F_NODAD)
        own.sync({up})
        assert rows() == {0: ("2001:db8::1", 0), up: ("2001:db8::1", 1), tunnel: ("2001:db8::1", 2)}
        writes = maps.read("ifaces6")[0].tolist()
        assert own.sync() == HookReport()
        assert sorted(maps.read("ifaces6")[0].tolist()) == sorted(writes)


def test_a_new_interface_gets_its_programs_by_its_event(
    route: IPRoute, pods: NetworkNamespace, loaded: Loaded, maps: KernelMaps
) -> None:
    reports: list[HookReport] = []
    with hooked(loaded, maps) as own:
        own.sync()
        watcher = InterfaceWatcher(lambda changed: reports.append(own.sync(changed)))
        with contextlib.closing(watcher):
            add_pod(route, "pod2", pods)
            assert watcher.step(5)
            hook_names = {(hook, program) for name, hook, program in shape() if name == "pod2"}
            assert hook_names == {(hook, program) for _, hook, program in POD}
            route.link("del", index=index_of("pod2"))
            while any(name == "pod2" for name, _, _ in shape()):
                assert watcher.step(5)
    assert not any(report.errors for report in reports)


def test_watcher_thread_stops(route: IPRoute, pods: NetworkNamespace) -> None:
    seen: set[int] = set()
    stop, told = StopEvent(), threading.Event()

    def changed(indexes: set[int]) -> None:
        seen.update(indexes)
        told.set()

    with contextlib.closing(InterfaceWatcher(changed)) as watcher:
        thread = threading.Thread(target=watcher.run, args=(stop,))
        thread.start()
        add_pod(route, "pod2", pods)
        index = index_of("pod2")
        assert told.wait(5)
        stop.set()
        thread.join(5)
        assert not thread.is_alive()
    assert index in seen


def test_dropped_events_mean_everything(route: IPRoute) -> None:
    seen: set[int] = set()
    with contextlib.closing(InterfaceWatcher(seen.update)) as watcher:
        watcher._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
        for state in ("down", "up") * 10:
            route.link("set", index=index_of("br0"), state=state)
        assert watcher.step(5)
    assert seen == {index for index, _ in socket.if_nameindex()}
