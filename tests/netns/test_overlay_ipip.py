# SPDX-License-Identifier: Apache-2.0
"""A pod network of IP in IP: interfaces without an Ethernet header."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from ipaddress import ip_address
from typing import Any

import pytest

from lb.lab import namespaces
from lb.lab.addressing import Overlay, node_address
from lb.lab.lab import Lab
from tests.ipip import stand_in
from tests.netns.conftest import MakeLab, remove
from tests.netns.pinned import Cluster, bring_up, check_answers, check_large_transfers, check_sources

ETH_P_ALL = 3
ETHERNET = 14


@pytest.fixture(scope="module")
def cluster(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        found = bring_up(make_lab, tmp_path_factory.mktemp("ipip"), overlay=Overlay.IPIP)
    yield found
    remove(found.lab.spec.id)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("client", ["outside", "pod", "same pod"])
def test_overlay_ipip_the_backend_answers(cluster: Cluster, client: str, where: str, version: int) -> None:
    check_answers(cluster, client, where, version)


@pytest.mark.parametrize("version", [4, 6])
def test_overlay_ipip_shows_a_remote_backend_the_tunnel_address(cluster: Cluster, version: int) -> None:
    check_sources(cluster, version)


@pytest.mark.parametrize("version", [4, 6])
def test_overlay_ipip_carries_large_transfers(cluster: Cluster, version: int) -> None:
    check_large_transfers(cluster, version)


@pytest.fixture(scope="module")
def plain(make_lab: MakeLab) -> Iterator[Lab]:
    """A lab without agents, with a pod on each of its two nodes."""
    with pytest.MonkeyPatch.context() as patch:
        stand_in(patch)
        lab = make_lab(overlay=Overlay.IPIP, replicas=2, agents=False)
    yield lab
    remove(lab.spec.id)


def two_pods(lab: Lab) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = sorted(lab.pods(), key=lambda pod: str(pod["node"]))
    return one, two


def url(address: str, path: str) -> str:
    return f"http://{f'[{address}]' if ':' in address else address}:8080{path}"


@pytest.mark.parametrize("version", [4, 6])
def test_pods_reach_each_other_with_their_own_addresses(plain: Lab, version: int) -> None:
    one, two = two_pods(plain)
    for client, server in ((one, two), (two, one)):
        there = client["addresses"], server["addresses"]
        source, target = (next(a for a in each if ip_address(a).version == version) for each in there)
        done = plain.run(client["name"], ["curl", "-sS", "-m", "5", url(target, "/clientip")])
        assert done.stdout == f"{source}\n", done.stderr
        argv = ["curl", "-sS", "-m", "20", "-o", "/dev/null", "-w", "%{size_download}"]
        done = plain.run(client["name"], [*argv, url(target, "/large?bytes=300000")])
        assert done.stdout == "300000", done.stderr


@pytest.mark.parametrize(("version", "protocol"), [(4, 4), (6, 41)])
def test_on_the_wire_it_is_ip_in_ip(plain: Lab, version: int, protocol: int) -> None:
    one, two = two_pods(plain)
    target = next(each for each in two["addresses"] if ip_address(each).version == version)
    with (
        namespaces.inside(plain.spec.switch),
        socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ETH_P_ALL)) as wire,
    ):
        wire.bind(("node2", ETH_P_ALL))
        wire.settimeout(5)
        assert plain.run(one["name"], ["curl", "-sS", "-m", "5", url(target, "/")]).returncode == 0
        while True:  # ends by the timeout at the latest
            frame = wire.recv(65535)
            packet = frame[ETHERNET:]
            if frame[12:14] == b"\x08\x00" and packet[9] == protocol:
                break
    ends = [str(ip_address(packet[at : at + 4])) for at in (12, 16)]
    assert ends == [str(node_address("node1")), str(node_address("node2"))]
    inner = packet[20:]
    assert inner[0] >> 4 == version
    to = inner[16:20] if version == 4 else inner[24:40]
    assert str(ip_address(to)) == target
