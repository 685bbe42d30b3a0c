# SPDX-License-Identifier: Apache-2.0
"""The lab's own network, without any agent: pods, nodes, client, both kinds of pod network."""

import ctypes
import fcntl
import socket
import struct
import subprocess
import sys
from ipaddress import ip_address
from typing import Any

import pytest

from lb.config import UplinkMode
from lb.lab import namespaces
from lb.lab.addressing import (
    SERVICE_CIDRS,
    Family,
    Overlay,
    clients,
    node_address,
    outside_server,
    tunnel_address,
)
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab

COULD_NOT_CONNECT = 7  # curl's exit code
UDP = """\
import socket, sys
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
asking = socket.socket(family, socket.SOCK_DGRAM)
asking.settimeout(5)
asking.connect((sys.argv[1], 9000))
asking.send(b"ping")
sys.stdout.write(asking.recv(100).decode())
"""


NETWORKS = [
    (Overlay.NONE, Family.DUAL),
    (Overlay.VXLAN, Family.DUAL),
    (Overlay.NONE, Family.IPV6),
    (Overlay.VXLAN, Family.IPV6),
]


@pytest.fixture(scope="module", params=NETWORKS, ids=["-".join(each) for each in NETWORKS])
def plain(request: pytest.FixtureRequest, make_lab: MakeLab) -> Lab:
    """A lab of each pod network with a pod on each of its two nodes, and no agents."""
    overlay, family = request.param
    return make_lab(
        overlay=overlay, family=family, replicas=2, agents=False, uplink_mode=UplinkMode.XDP_NATIVE
    )


def curl(lab: Lab, where: str, url: str) -> str:
    done = lab.run(where, ["curl", "-sS", "-m", "5", url])
    assert done.returncode == 0, done.stderr
    return done.stdout


def url(address: str, port: int, path: str = "/") -> str:
    host = f"[{address}]" if ":" in address else address
    return f"http://{host}:{port}{path}"


def addresses(pod: dict[str, Any]) -> dict[int, str]:
    """Return the pod's addresses by their IP version."""
    return {ip_address(address).version: address for address in pod["addresses"]}


def two_pods(lab: Lab) -> tuple[dict[str, Any], dict[str, Any]]:
    one, two = sorted(lab.pods(), key=lambda pod: str(pod["node"]))
    assert (one["node"], two["node"]) == ("node1", "node2")
    return one, two


def test_every_place_reaches_every_pod_with_its_own_address(plain: Lab) -> None:
    one, two = two_pods(plain)
    for version in plain.spec.versions:
        expected = {
            "client": str(clients(version)[0]),
            "node1": str(node_address("node1", version)),
            one["name"]: addresses(one)[version],
            two["name"]: addresses(two)[version],
        }
        for where, source in expected.items():
            for pod in (one, two):
                host = addresses(pod)[version]
                assert curl(plain, where, url(host, 8080)) == f"You've hit {pod['name']} on http-default\n"
                assert curl(plain, where, url(host, 8090)) == f"You've hit {pod['name']} on http-mux1\n"
                seen = curl(plain, where, url(host, 8080, "/clientip")).strip()
                through_tunnel = where == "node1" and pod is two and plain.spec.overlay is not Overlay.NONE
                assert seen == (str(tunnel_address("node1", version)) if through_tunnel else source), where


def test_every_node_is_reached_from_outside_and_from_pods(plain: Lab) -> None:
    one, _ = two_pods(plain)
    for where in ("client", "node1", one["name"]):
        for node in plain.spec.node_names:
            for address in plain.spec.node_addresses(node):
                done = plain.run(where, ["curl", "-sS", "-m", "5", url(str(address), 9)])
                assert done.returncode == COULD_NOT_CONNECT, done.stderr  # an answer: the port is closed


def test_udp_is_echoed(plain: Lab) -> None:
    one, two = two_pods(plain)
    for where in ("client", one["name"]):
        for address in two["addresses"]:
            done = plain.run(where, [sys.executable, "-I", "-c", UDP, address])
            assert done.stdout == f"{two['name']} echo ping", done.stderr


def test_large_answers_cross_the_nodes(plain: Lab) -> None:
    one, two = two_pods(plain)
    for address in two["addresses"]:
        assert len(curl(plain, one["name"], url(address, 8080, "/large?bytes=3000000"))) == 3_000_000


def test_pods_reach_the_outside_server(plain: Lab) -> None:
    one, _ = two_pods(plain)
    for version in plain.spec.versions:
        server = str(outside_server(version))
        assert curl(plain, one["name"], url(server, 80)) == "You've hit outside on http\n"
        done = plain.run(one["name"], [sys.executable, "-I", "-c", UDP, server])
        assert done.stdout == "outside echo ping", done.stderr


def test_the_client_is_ten_clients(plain: Lab) -> None:
    one, _ = two_pods(plain)
    for version in plain.spec.versions:
        where = url(addresses(one)[version], 8080, "/clientip")
        for client in (clients(version)[1], clients(version)[9]):
            done = plain.run("client", ["curl", "-sS", "-m", "5", "--interface", str(client), where])
            assert done.stdout == f"{client}\n", done.stderr


def test_a_service_address_reaches_a_node_and_ends_there(plain: Lab) -> None:
    for version in plain.spec.versions:
        done = plain.run("client", ["ip", "route", "get", str(SERVICE_CIDRS[version][99])])
        assert f"via {node_address('node1', version)} dev eth0" in done.stdout


def test_addresses_are_ready_at_once(plain: Lab) -> None:
    """No address waits for duplicate address detection, and nobody waits for a router."""
    one, _ = two_pods(plain)
    for where in ("client", "node1", one["name"]):
        done = plain.run(where, ["ip", "-6", "address", "show", "tentative"])
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
    done = plain.run(one["name"], ["sysctl", "-n", "net.ipv6.conf.eth0.accept_ra"])
    assert done.stdout == "0\n", done.stderr


def test_a_pod_has_its_own_var_and_host_name(plain: Lab) -> None:
    one, two = two_pods(plain)
    assert plain.run(one["name"], ["hostname"]).stdout.strip() == one["name"]
    assert plain.run(one["name"], ["touch", "/var/mark"]).returncode == 0
    assert plain.run(one["name"], ["ls", "/var"]).stdout.split() == ["mark"]
    assert plain.run(two["name"], ["ls", "/var"]).stdout.split() == []


def test_nodes_see_the_bpf_file_system_where_the_machine_has_it(plain: Lab) -> None:
    look = ["stat", "-f", "-c", "%T %i", "/sys/fs/bpf"]
    here = subprocess.run(look, capture_output=True, text=True, check=True).stdout
    assert plain.run("node1", look).stdout == here


def test_nothing_on_a_nodes_wire_hinders_xdp(plain: Lab) -> None:
    """Checksums are whole, and the switch takes back what XDP_TX sends."""
    get_tx_checksum = 0x16  # of linux/ethtool.h
    value = ctypes.create_string_buffer(struct.pack("=II", get_tx_checksum, 7))
    request = struct.pack("16sP", b"node1", ctypes.addressof(value))
    with namespaces.inside(plain.spec.switch), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, 0x8946, request)
    assert struct.unpack("=II", value.raw[:8])[1] == 0
    with namespaces.netlink(plain.spec.switch) as switch:
        [port] = switch.get_links(ifname="node1")
        assert port.get_attr("IFLA_XDP").get_attr("IFLA_XDP_ATTACHED") == "xdp"  # in the driver
