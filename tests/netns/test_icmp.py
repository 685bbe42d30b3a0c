# SPDX-License-Identifier: Apache-2.0
"""Pings, path MTU, fragments and traceroute through VIPs, with real kernels at both ends.

The nodes' tunnel carries 1400 bytes where everything else carries 1500, and behind the client, which is a
router here, is a host on a wire over which the client sends no more than 1300 bytes: requests meet the one,
answers the other, and somebody has to be told.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest

from lb.lab import namespaces
from lb.lab.addressing import Overlay, clients, node_address, tunnel_address
from tests.netns.conftest import MakeLab, remove
from tests.netns.pinned import Cluster, bring_up, own, url
from tests.netns.waiting import dumped

TUNNEL_MTU = 1400
WIRE_MTU = 1300
VERSIONS = (4, 6)
BEHIND = {4: "192.168.78.2", 6: "fd00:78::2"}
ROUTER = {4: "192.168.78.1", 6: "fd00:78::1"}
LENGTH = {4: 24, 6: 64}

PING = """\
import os, socket, struct, sys

address, count = sys.argv[1], int(sys.argv[2])
six = ":" in address
family, protocol = (socket.AF_INET6, socket.IPPROTO_ICMPV6) if six else (socket.AF_INET, socket.IPPROTO_ICMP)
request = 128 if six else 8

def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF

with socket.socket(family, socket.SOCK_RAW, protocol) as wire:
    wire.settimeout(3)
    for sequence in range(count):
        body = struct.pack("!HH", os.getpid() & 0xFFFF, sequence) + bytes(range(56))
        head = struct.pack("!BBH", request, 0, 0)
        wire.sendto(struct.pack("!BBH", request, 0, 0 if six else checksum(head + body)) + body, (address, 0))
        while True:
            try:
                packet, sender = wire.recvfrom(2048)
            except TimeoutError:
                print("timeout")
                break
            packet = packet if six else packet[20:]
            if packet[0] == request + 1 if six else packet[0] == 0:
                if packet[4:] == body:
                    print("answer", sender[0])
                    break
            elif packet[0] in ((1,) if six else (3,)) and body[:4] in packet:
                print("unreachable", packet[1], sender[0])
                break
"""

TRACE = """\
import errno, socket, struct, sys

address, port = sys.argv[1], int(sys.argv[2])
six = ":" in address
family = socket.AF_INET6 if six else socket.AF_INET
level, hops, errors = (41, 16, 25) if six else (0, 2, 11)  # …_UNICAST_HOPS or IP_TTL, and …_RECVERR

for ttl in range(1, 9):
    with socket.socket(family, socket.SOCK_STREAM) as wire:
        wire.settimeout(3)
        wire.setsockopt(level, hops, ttl)
        wire.setsockopt(level, errors, 1)
        code = wire.connect_ex((address, port))
        if code == 0:
            print("connected")
            break
        if code != errno.EHOSTUNREACH:
            print(errno.errorcode.get(code, code))
            break
        _, ancillary, _, _ = wire.recvmsg(512, 512, socket.MSG_ERRQUEUE)
        data = ancillary[0][2][16:]  # behind struct sock_extended_err: who says so
        print(socket.inet_ntop(family, data[8:24] if six else data[4:8]))
"""

DATAGRAMS = """\
import socket, sys

address, port, source = sys.argv[1], int(sys.argv[2]), sys.argv[3]
for size in map(int, sys.argv[4:]):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
        wire.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT: without DF
        wire.settimeout(5)
        wire.bind((source, 0))
        for number in range(3):
            sent = bytes([number]) + bytes(range(256)) * (size // 256) + bytes(size % 256 - 1)
            wire.sendto(sent, (address, port))
            try:
                got, sender = wire.recvfrom(70000)
            except OSError as error:
                print(size, number, error)
            else:
                if sender != (address, port) or not got.endswith(sent):
                    print(size, number, "came back as", len(got), "bytes from", sender)
"""
"""Sends datagrams that routers may cut, each size from a socket of its own; prints which do not come back."""


SEVERAL = """\
import socket, sys

address, port = sys.argv[1], int(sys.argv[2])
sent = [bytes([number]) * 1400 for number in range(4)] + [b"the last"]
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wire:
    wire.setsockopt(socket.IPPROTO_IP, 10, 0)  # IP_MTU_DISCOVER, IP_PMTUDISC_DONT: without DF
    wire.setsockopt(socket.IPPROTO_UDP, 103, 1400)  # UDP_SEGMENT
    wire.settimeout(2)
    left = set(sent)
    for _ in range(5):
        wire.sendto(b"".join(sent), (address, port))
        try:
            while left:
                got, sender = wire.recvfrom(70000)
                assert sender == (address, port), sender
                left -= {each for each in sent if got.endswith(b" " + each)}
        except TimeoutError:
            continue
        break
    print(*sorted(each[:8] for each in left))
"""
"""Sends datagrams that routers may cut, by one packet, up to five times; prints which never come back."""


@pytest.fixture(scope="module")
def cluster(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    found = bring_up(make_lab, tmp_path_factory.mktemp("icmp"), overlay=Overlay.VXLAN)
    lab = found.lab
    behind = f"{lab.spec.id}-behind"
    try:
        for node in ("node1", "node2"):
            must(found, node, f"ip link set vxlan0 mtu {TUNNEL_MTU}")
        namespaces.create(behind)
        must(
            found,
            "client",
            f"ip link add narrow mtu {WIRE_MTU} type veth peer name wide netns /run/netns/{behind}",
        )
        must(found, "client", "ip link set narrow up")
        for version in VERSIONS:
            ip = f"ip -{version}"
            length = LENGTH[version]
            nodad = "nodad" if version == 6 else ""
            must(found, "client", f"{ip} addr add {ROUTER[version]}/{length} dev narrow {nodad}")
            inside(behind, f"{ip} addr add {BEHIND[version]}/{length} dev wide {nodad}")
            inside(behind, "ip link set wide mtu 1500 up")
            inside(behind, f"{ip} route add default via {ROUTER[version]}")
            for node in ("node1", "node2"):
                via = clients(version)[0]
                must(found, node, f"{ip} route add {BEHIND[version]} via {via}")
        must(found, "client", "echo 1 > /proc/sys/net/ipv4/ip_forward")
        must(found, "client", "echo 1 > /proc/sys/net/ipv6/conf/all/forwarding")
        yield found
    finally:
        if namespaces.exists(behind):
            namespaces.delete(behind)
        remove(lab.spec.id)


def must(cluster: Cluster, place: str, command: str) -> None:
    done = cluster.lab.run(place, ["sh", "-ec", command])
    assert done.returncode == 0, (place, command, done.stderr)


def inside(namespace: str, command: str) -> str:
    argv = namespaces.command(namespace, ["sh", "-ec", command])
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, (command, done.stderr)
    return done.stdout


def python(cluster: Cluster, place: str, script: str, *arguments: object) -> list[str]:
    done = cluster.lab.run(place, [sys.executable, "-I", "-S", "-c", script, *map(str, arguments)])
    assert done.returncode == 0, done.stderr
    return str(done.stdout).splitlines()


def forget_path_mtus(cluster: Cluster) -> None:
    """Have every end learn anew what the way carries."""
    places = [
        "client",
        str(cluster.bystander["name"]),
        *(str(each.pod["name"]) for each in cluster.targets.values()),
    ]
    for place in places:
        must(cluster, place, "ip -4 route flush cache; ip -6 route flush cache")


def counted(cluster: Cluster, reason: str) -> int:
    rows = [row for node in ("node1", "node2") for row in dumped(cluster.lab, node, "counters")["counters"]]
    return sum(int(row["packets"]) for row in rows if row["reason"] == reason)


def download(base: str, size: int = 300_000) -> str:
    return f"curl -sS -m 15 -o /dev/null -w %{{size_download}} '{base}/large?bytes={size}'"


def upload(base: str, size: int = 300_000) -> str:
    return f"head -c {size} /dev/zero | curl -sS -m 15 --data-binary @- '{base}/large?bytes=1'"


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("where", ["local", "remote"])
def test_icmp_errors_path_mtu_of_requests(cluster: Cluster, where: str, version: int) -> None:
    """From outside and from a pod: the way to the remote backend is the narrow one."""
    target = cluster.targets[where]
    forget_path_mtus(cluster)
    before = counted(cluster, "TOO_BIG"), counted(cluster, "ICMP_ERROR")
    for place in ("client", str(cluster.bystander["name"])):
        for kind in ("clusterIP", "NodePort", "load-balancer"):
            base = url(target.address(kind, "tcp", version))
            done = cluster.lab.run(place, ["sh", "-c", upload(base)])
            told = f"{target.pod['name']} received 300000 bytes\n"
            assert (done.returncode, done.stdout) == (0, told), (place, kind, done.stderr)
            done = cluster.lab.run(place, ["sh", "-c", download(base)])
            assert (done.returncode, done.stdout) == (0, "300000"), (place, kind, done.stderr)
    if (
        where == "remote"
    ):  # who forwards the client's packets tells it; what the node's stack tells a pod is translated
        assert counted(cluster, "TOO_BIG") > before[0]
        assert counted(cluster, "ICMP_ERROR") > before[1]


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("where", ["local", "remote"])
def test_icmp_errors_path_mtu_of_answers(cluster: Cluster, where: str, version: int) -> None:
    """The router in front of the client says that the VIP's answers are too big; the backend must hear it."""
    target = cluster.targets[where]
    behind = f"{cluster.lab.spec.id}-behind"
    forget_path_mtus(cluster)
    before = counted(cluster, "ICMP_ERROR")
    for kind in ("clusterIP", "NodePort", "load-balancer"):
        assert inside(behind, download(url(target.address(kind, "tcp", version)))) == "300000", kind
    assert counted(cluster, "ICMP_ERROR") > before


SIZES = (1100, 1472, 3000, 15000, 40000)
"""Bytes of data: what fits; what leaves the client as one packet that is too big, its checksum left to the
device; what leaves it in pieces that are too big. By lo, to a NodePort of its own, the node sends all of them
whole. The answers are a little longer, and have no DF if they do not fit a pod's interface."""


def test_fragmented_requests(cluster: Cluster) -> None:
    """From outside, from a process of the node, and from a pod, whose packets the node's own stack cuts."""
    target = cluster.targets["remote"]
    for place in ("client", "node1", str(cluster.bystander["name"])):
        before = counted(cluster, "FRAGMENTED")
        for kind in ("clusterIP", "NodePort", "load-balancer"):
            lost = python(cluster, place, DATAGRAMS, *target.address(kind, "udp", 4), "", *SIZES)
            assert lost == [], (place, kind)
        assert (counted(cluster, "FRAGMENTED") > before) == (place in ("client", "node1")), place


def test_fragmented_answers(cluster: Cluster) -> None:
    """To a client behind a way that is narrower than the tunnel, as node1 alone knows."""
    source, via = str(clients(4)[2]), str(clients(4)[0])
    must(cluster, "node1", f"ip route add {source} via {via} mtu lock {WIRE_MTU}")
    try:
        before = counted(cluster, "FRAGMENTED")
        address = cluster.targets["remote"].address("NodePort", "udp", 4)
        assert python(cluster, "client", DATAGRAMS, *address, source, *SIZES) == []
        assert counted(cluster, "FRAGMENTED") > before
    finally:
        must(cluster, "node1", f"ip route del {source}")


def test_fragmented_segments_that_one_packet_stands_for(cluster: Cluster) -> None:
    """TCP without DF: who sends so does not hear ICMP's errors. The node has to make the segments shorter."""
    address = cluster.targets["remote"].address("NodePort", "tcp", 4)
    must(cluster, "client", "echo 1 > /proc/sys/net/ipv4/ip_no_pmtu_disc")
    forget_path_mtus(cluster)  # or the backend asks for shorter segments
    try:
        before = counted(cluster, "FRAGMENTED")
        done = cluster.lab.run("client", ["sh", "-c", upload(url(address))])
        assert (done.returncode, done.stdout.split()[1:]) == (0, ["received", "300000", "bytes"]), done.stderr
        assert counted(cluster, "FRAGMENTED") > before
    finally:
        must(cluster, "client", "echo 0 > /proc/sys/net/ipv4/ip_no_pmtu_disc")


def test_fragmented_datagrams_that_one_packet_stands_for(cluster: Cluster) -> None:
    target = cluster.targets["remote"]
    forget_path_mtus(cluster)  # or the kernel takes no datagrams of this size
    for place in ("client", "node1", str(cluster.bystander["name"])):
        before = counted(cluster, "FRAGMENTED")
        for kind in ("clusterIP", "NodePort", "load-balancer"):
            assert python(cluster, place, SEVERAL, *target.address(kind, "udp", 4)) == [""], (place, kind)
        assert (counted(cluster, "FRAGMENTED") > before) == (place in ("client", "node1")), place


@pytest.mark.parametrize("version", VERSIONS)
def test_icmp_errors_traceroute_does_not_loop(cluster: Cluster, version: int) -> None:
    local, remote = (cluster.targets[where] for where in ("local", "remote"))
    node1 = str(node_address("node1", version))
    for kind in ("NodePort", "load-balancer"):
        hops = python(cluster, "client", TRACE, *local.address(kind, "tcp", version))
        assert hops == [node1, "connected"], kind
        hops = python(cluster, "client", TRACE, *remote.address(kind, "tcp", version))
        assert hops == [node1, str(tunnel_address("node2", version)), "connected"], kind


@pytest.mark.parametrize("version", VERSIONS)
def test_unknown_port_of_a_cluster_ip_is_refused(cluster: Cluster, version: int) -> None:
    target = cluster.targets["local"]
    for place in ("client", str(cluster.bystander["name"]), "node1"):
        hops = python(cluster, place, TRACE, target.cluster_ips[version], 81)
        assert hops == ["ECONNREFUSED"], place


@pytest.mark.parametrize("version", VERSIONS)
def test_ping_a_vip(cluster: Cluster, version: int) -> None:
    target = cluster.targets["remote"]
    for place in ("client", str(cluster.bystander["name"]), "node1"):
        for kind in ("clusterIP", "load-balancer"):
            address, _ = target.address(kind, "tcp", version)
            assert python(cluster, place, PING, address, 3) == [f"answer {address}"] * 3, (place, kind)
    node = str(node_address("node1", version))
    assert python(cluster, "client", PING, node, 1) == [f"answer {node}"]


@pytest.mark.parametrize("version", VERSIONS)
def test_ping_a_pod_is_its_own_business(cluster: Cluster, version: int) -> None:
    pod = own(cluster.bystander, version)
    assert python(cluster, str(cluster.targets["local"].pod["name"]), PING, pod, 1) == [f"answer {pod}"]
