"""The lab's own network, without any agent: pods, nodes, client, both kinds of pod network."""

import ctypes
import fcntl
import socket
import struct
import subprocess
import sys

import pytest

from lb.config import UplinkMode
from lb.lab import namespaces
from lb.lab.addressing import Overlay
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab

UDP = """\
import socket, sys
asking = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
asking.settimeout(5)
asking.connect((sys.argv[1], 9000))
asking.send(b"ping")
sys.stdout.write(asking.recv(100).decode())
"""


@pytest.fixture(scope="module", params=[Overlay.NONE, Overlay.VXLAN])
def plain(request: pytest.FixtureRequest, make_lab: MakeLab) -> Lab:
    """A lab of each pod network with a pod on each of its two nodes, and no agents."""
    return make_lab(overlay=request.param, replicas=2, agents=False, uplink_mode=UplinkMode.XDP_NATIVE)


def curl(lab: Lab, where: str, url: str) -> str:
    done = lab.run(where, ["curl", "-sS", "-m", "5", url])
    assert done.returncode == 0, done.stderr
    return done.stdout


def two_pods(lab: Lab) -> tuple[dict[str, str], dict[str, str]]:
    one, two = sorted(lab.pods(), key=lambda pod: str(pod["node"]))
    assert (one["node"], two["node"]) == ("node1", "node2")
    return one, two


def test_every_place_reaches_every_pod_with_its_own_address(plain: Lab) -> None:
    one, two = two_pods(plain)
    expected = {
        "client": "192.168.77.100",
        "node1": "192.168.77.11",
        one["name"]: one["address"],
        two["name"]: two["address"],
    }
    for where, source in expected.items():
        for pod in (one, two):
            base = f"http://{pod['address']}"
            assert curl(plain, where, f"{base}:8080/") == f"You've hit {pod['name']} on http-default\n"
            assert curl(plain, where, f"{base}:8090/") == f"You've hit {pod['name']} on http-mux1\n"
            seen = curl(plain, where, f"{base}:8080/clientip").strip()
            through_tunnel = where == "node1" and pod is two and plain.spec.overlay is Overlay.VXLAN
            assert seen == ("10.244.1.0" if through_tunnel else source), where


def test_udp_is_echoed(plain: Lab) -> None:
    one, two = two_pods(plain)
    for where in ("client", one["name"]):
        done = plain.run(where, [sys.executable, "-I", "-c", UDP, two["address"]])
        assert done.stdout == f"{two['name']} echo ping", done.stderr


def test_large_answers_cross_the_nodes(plain: Lab) -> None:
    one, two = two_pods(plain)
    assert len(curl(plain, one["name"], f"http://{two['address']}:8080/large?bytes=3000000")) == 3_000_000


def test_pods_reach_the_outside_server(plain: Lab) -> None:
    one, _ = two_pods(plain)
    assert curl(plain, one["name"], "http://192.168.77.200/") == "You've hit outside on http\n"
    done = plain.run(one["name"], [sys.executable, "-I", "-c", UDP, "192.168.77.200"])
    assert done.stdout == "outside echo ping", done.stderr


def test_the_client_is_ten_clients(plain: Lab) -> None:
    one, _ = two_pods(plain)
    url = f"http://{one['address']}:8080/clientip"
    for host in (101, 109):
        done = plain.run("client", ["curl", "-sS", "-m", "5", "--interface", f"192.168.77.{host}", url])
        assert done.stdout == f"192.168.77.{host}\n", done.stderr


def test_a_service_address_reaches_a_node_and_ends_there(plain: Lab) -> None:
    done = plain.run("client", ["ip", "route", "get", "10.66.13.240"])
    assert "via 192.168.77.11 dev eth0" in done.stdout


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
