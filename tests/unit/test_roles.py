# SPDX-License-Identifier: Apache-2.0
"""The roles of interfaces, and the addresses on which NodePorts answer."""

from __future__ import annotations

import logging
from ipaddress import ip_address, ip_interface

import numpy as np
import pytest

from lb.config import Config, SnatPorts, Timeouts
from lb.datapath.attach.netlink import Interface
from lb.datapath.attach.roles import node_port_addresses, written_roles
from lb.datapath.attach.settings import write_settings
from lb.datapath.maps import layouts
from lb.datapath.maps.layouts import IfaceFlag
from lb.errors import ConfigError
from lb.serve import complete
from tests.fake_maps import FakeMaps


def test_roles_are_those_that_the_programs_see() -> None:
    maps = FakeMaps()
    rows = np.zeros(3, layouts.IFACE[4])
    rows["flags"] = [0, IfaceFlag.UPLINK, IfaceFlag.TUNNEL]
    maps.update("ifaces4", np.array([0, 2, 5], layouts.ID), rows)
    six = np.zeros(2, layouts.IFACE[6])
    six["flags"] = [IfaceFlag.UPLINK, IfaceFlag.TUNNEL]
    maps.update("ifaces6", np.array([3, 5], layouts.ID), six)
    assert written_roles(maps) == {2: "uplink", 3: "uplink", 5: "tunnel"}


def test_settings_reach_the_kernel_in_its_units() -> None:
    maps = FakeMaps()
    write_settings(maps, Config(timeouts=Timeouts(udp=0.5), snat_ports=SnatPorts(60000, 60001)))
    row = maps.read("settings4")[1]
    assert int(row["tcp_established_ns"][0]) == 86_400_000_000_000
    assert int(row["udp_ns"][0]) == 500_000_000
    assert row["snat_port_min"].tobytes() + row["snat_port_max"].tobytes() == bytes.fromhex("ea60 ea61")


def test_node_name_and_instance_default_to_the_host_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("socket.gethostname", lambda: "Worker-7")
    config = complete(Config(sources=("manifests:/m",)))
    assert (config.node_name, config.instance) == ("worker-7", "worker-7")
    config = complete(Config(sources=("manifests:/m",), node_name="n1"))
    assert (config.node_name, config.instance) == ("n1", "n1")
    monkeypatch.setattr("socket.gethostname", lambda: "my_host")
    with pytest.raises(ConfigError, match="host name 'my_host' is not a node name"):
        complete(Config(sources=("manifests:/m",)))


def interface(index: int, name: str, *addresses: str) -> Interface:
    return Interface(index, name, "physical", addresses=tuple(ip_interface(text) for text in addresses))


LO = interface(1, "lo", "127.0.0.1/8", "::1/128")

ETH0 = interface(2, "eth0", "169.254.9.9/16", "192.0.2.1/24", "192.0.2.7/24", "fe80::1/64", "2001:db8::1/64")

ETH1 = interface(3, "eth1", "198.51.100.1/24")


def test_node_port_networks_without_effect_are_named(caplog: pytest.LogCaptureFixture) -> None:
    """kube-proxy in mode iptables answers on 127.0.0.1, so its configurations may name that network."""
    wanted = ("127.0.0.0/8", "192.0.2.0/24", "primary", "fe80::/64", "0.0.0.0/0", "::1/128")
    complete(Config(sources=("manifests:/m",), node_name="n1", node_port_addresses=wanted))
    said = [one.getMessage() for one in caplog.records if one.levelno == logging.WARNING]
    assert [text.split()[2] for text in said] == ["127.0.0.0/8", "fe80::/64", "::1/128"]
    assert all(text.startswith("setting node_port_addresses: ") for text in said)


LOOPBACK_ROUTED = interface(1, "lo", "127.0.0.1/8", "::1/128", "203.0.113.1/32", "2001:db8:9::1/128")


@pytest.mark.parametrize(
    ("own", "wanted", "expected"),
    [
        (["192.0.2.7", "2001:db8::1"], [], ["192.0.2.7", "2001:db8::1"]),
        (["192.0.2.7"], ["primary"], ["192.0.2.7", "2001:db8::1"]),
        (["192.0.2.7", "192.0.2.1"], [], ["192.0.2.7", "2001:db8::1"]),
        (["198.51.100.1"], [], ["198.51.100.1", "2001:db8::1"]),
        (["203.0.113.1", "2001:db8:9::1"], [], ["203.0.113.1", "2001:db8:9::1"]),
        (["10.9.9.9", "192.0.2.7"], [], ["192.0.2.7", "2001:db8::1"]),
        (["10.9.9.9"], [], ["192.0.2.1", "2001:db8::1"]),
        (["127.0.0.1", "169.254.9.9"], [], ["192.0.2.1", "2001:db8::1"]),
        (["192.0.2.7"], ["192.0.2.1/32"], ["192.0.2.1"]),
        (["192.0.2.7"], ["primary", "192.0.2.1/32"], ["192.0.2.1", "192.0.2.7", "2001:db8::1"]),
    ],
)
def test_node_ports_answer_on_the_addresses_of_the_node_object(
    own: list[str], wanted: list[str], expected: list[str]
) -> None:
    """eth0 is the uplink; 10.9.9.9 is on no interface, as behind a NAT."""
    addresses = [ip_address(text) for text in own]
    found = node_port_addresses([LOOPBACK_ROUTED, ETH0, ETH1], [ETH0], wanted, addresses)
    assert [str(ip) for ip in found] == expected


@pytest.mark.parametrize(
    ("uplinks", "wanted", "expected"),
    [
        (["eth0"], [], ["192.0.2.1", "2001:db8::1"]),
        (["eth0"], ["primary"], ["192.0.2.1", "2001:db8::1"]),
        (["eth0", "eth1"], [], ["192.0.2.1", "2001:db8::1"]),
        (["eth1"], [], ["198.51.100.1"]),
        ([], [], []),
        (["eth0"], ["198.51.100.0/24"], ["198.51.100.1"]),
        (["eth0"], ["0.0.0.0/0"], ["192.0.2.1", "192.0.2.7", "198.51.100.1"]),
        (["eth0"], ["primary", "192.0.2.4/30"], ["192.0.2.1", "192.0.2.7", "2001:db8::1"]),
        (["eth0"], ["::/0"], ["2001:db8::1"]),
        (["eth0"], ["203.0.113.0/24"], []),
    ],
)
def test_addresses_on_which_node_ports_answer(
    uplinks: list[str], wanted: list[str], expected: list[str]
) -> None:
    interfaces = [LO, ETH0, ETH1]
    chosen = [one for one in interfaces if one.name in uplinks]
    assert [str(ip) for ip in node_port_addresses(interfaces, chosen, wanted)] == expected
