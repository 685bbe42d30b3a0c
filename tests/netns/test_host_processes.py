# SPDX-License-Identifier: Apache-2.0
"""Services for processes of a node, and on demand for pods, by socket hooks: real sockets in a lab.

All questions come from node1. ``mapped`` is a socket of IPv6 that speaks IPv4.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest

from lb.datapath.attach import sockets
from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.layouts import WatchFlag
from lb.lab import namespaces
from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from lb.model import socket_text
from tests.netns.conftest import MakeLab, remove
from tests.netns.host_client import ARGV, Client
from tests.netns.host_services import (
    AT_SOCKETS,
    FAMILIES,
    NODE,
    POD,
    PODS,
    PORT,
    SERVICE,
    SERVICES,
    address,
    agent,
    both_vips_and_backend,
    counted,
    flows,
    let_ready,
    offered,
    pods,
)
from tests.netns.waiting import calls_told, eventually

WAYS = ("tcp", "udp", "connected")
REQUESTS = 12
MANY_HOOKS = 11


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifests: Path = tmp_path_factory.mktemp("sockets")
    text = PODS.format(name="web", replicas=4, host="false") + PODS.format(
        name="host", replicas=2, host="true"
    )
    for name, app, node in (
        ("there", "there", "node2"),
        ("pair-1", "pair", NODE),
        ("pair-2", "pair", "node2"),
    ):
        text += POD.format(name=name, app=app, node=node)
    for name, (number, app, more) in SERVICES.items():
        text += SERVICE.format(name=name, number=number, app=app, more=more, node_port=30500 + number)
    (manifests / "all.yaml").write_text(text)
    lab = make_lab(manifests=manifests)
    eventually(lambda: offered(lab, "web", 4) and offered(lab, "host", 2), f"{NODE} knows all endpoints")
    yield lab
    remove(lab.spec.id)


@pytest.fixture
def client(lab: Lab) -> Iterator[Client]:
    """A process of node1."""
    with ExitStack() as stack:
        yield Client(lab.command(NODE, ARGV), stack)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["clusterIP", "load balancer"])
def test_cluster_ip_from_host_processes(lab: Lab, client: Client, kind: str, family: str) -> None:
    check_answers(lab, client, kind, family)


@pytest.mark.parametrize("family", FAMILIES)
def test_node_port_from_the_node_itself(lab: Lab, client: Client, family: str) -> None:
    check_answers(lab, client, "NodePort", family)


def check_answers(lab: Lab, client: Client, kind: str, family: str) -> None:
    """Pods answer, and whoever asks who the peer is hears the address that he gave."""
    host, port = address("web", kind, family)
    for way in WAYS:
        answers = [client.ask(way, host, port, f"{way} {number}") for number in range(REQUESTS)]
        assert {answer.get("pod") for answer in answers} <= pods(lab, "web"), answers
        assert len({answer["pod"] for answer in answers}) > 1, "one socket, one choice"
        assert [answer["peer"] for answer in answers] == [[host, port]] * REQUESTS
    assert flows(lab, "web", "TCP") == 0, "no packet was translated"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["clusterIP", "NodePort"])
@pytest.mark.parametrize("way", WAYS)
def test_host_network_an_endpoint_of_the_clients_own_node(
    lab: Lab, client: Client, way: str, kind: str, family: str
) -> None:
    """Each question is a new choice between two endpoints: 64 of them miss one with a chance of 2⁻⁶³."""
    host, port = address("host", kind, family)
    answers: list[dict[str, Any]] = []
    while {answer.get("pod") for answer in answers} != pods(lab, "host") and len(answers) < 64:
        answers.append(client.ask(way, host, port, f"{way} {len(answers)}"))
    assert {answer.get("pod") for answer in answers} == pods(lab, "host"), answers
    assert [answer["peer"] for answer in answers] == [[host, port]] * len(answers)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("service", ["web", "host", "alone", "none"])
def test_processes_outside_the_control_group(lab: Lab, service: str, family: str) -> None:
    """No socket hook sees their calls: tc serves them, at addresses of the node itself as well."""
    names = {"web": pods(lab, "web"), "host": pods(lab, "host"), "alone": {"there"}}
    with ExitStack() as stack:
        bare = Client(namespaces.command(lab.spec.namespace(NODE), ARGV), stack)
        for kind in ("NodePort", "clusterIP", "load balancer"):
            host, port = address(service, kind, family)
            for way in WAYS:
                answer = bare.ask(way, host, port, f"{way} {kind}")
                if service == "none":
                    refused = way == "udp"  # who has not connected does not hear of it
                    assert answer == {"error": "timeout" if refused else "ECONNREFUSED"}, (kind, way)
                else:
                    assert answer.get("pod") in names[service], (kind, way, answer)
                    assert answer["peer"] == [host, port]


MANY_BYTES = """\
import http.client, sys
one = http.client.HTTPConnection(sys.argv[1], int(sys.argv[2]), timeout=20)
one.request("POST", "/", b"y" * 2_000_000)
print(one.getresponse().read().decode().split(" ", 1)[1])
one.request("GET", "/large?bytes=2000000")
print(len(one.getresponse().read()))
"""


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
@pytest.mark.parametrize("service", ["web", "host"])
def test_packets_as_large_as_lo_takes(lab: Lab, service: str, family: str) -> None:
    """TCP hands over two segments of up to 64 kB at once there: more than an IP header can say."""
    argv = [sys.executable, "-I", "-S", "-c", MANY_BYTES, *map(str, address(service, "NodePort", family))]
    bare = namespaces.command(lab.spec.namespace(NODE), argv)
    done = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["received", "2000000", "bytes", "2000000"]


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_icmp_errors_reach_a_process_whose_packets_are_too_big(lab: Lab, family: str) -> None:
    """calico#2026: the way to the pod takes smaller packets than that to the VIP, which the kernel knows.

    It is told in the node's own name, which the kernel takes by lo alone.
    """
    (pod,) = (pod for pod in lab.pods() if pod["name"] == "there")
    own = next(str(a) for a in pod["addresses"] if (":" in str(a)) == (family == "ipv6"))
    way = [own, "via", str(node_address("node2", 6 if family == "ipv6" else 4)), "mtu", "lock", "1300"]
    argv = [sys.executable, "-I", "-S", "-c", MANY_BYTES, *map(str, address("alone", "clusterIP", family))]
    bare = namespaces.command(lab.spec.namespace(NODE), argv)
    assert lab.run(NODE, ["ip", f"-{family[-1]}", "route", "replace", *way]).returncode == 0
    try:
        done = subprocess.run(bare, capture_output=True, text=True, timeout=60, check=True)
    finally:
        assert lab.run(NODE, ["ip", f"-{family[-1]}", "route", "delete", own]).returncode == 0
    assert done.stdout.split() == ["received", "2000000", "bytes", "2000000"]


DEAF = """\
apiVersion: v1
kind: Service
metadata: {name: deaf}
spec:
  ipFamilyPolicy: RequireDualStack
  clusterIP: 10.66.5.60
  clusterIPs: [10.66.5.60, "fd00:66::5:60"]
  ports: [{name: http, port: 80, targetPort: 7}]
"""
DEAF_SLICE = """\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {{name: deaf-{version}, labels: {{kubernetes.io/service-name: deaf}}}}
addressType: IPv{version}
ports: [{{name: http, port: 7}}]
endpoints: [{{addresses: ["{address}"], nodeName: node1}}]
"""


def test_reject_by_an_endpoint_of_the_own_node_that_does_not_listen(lab: Lab, client: Client) -> None:
    """The kernel's reset does not come for what is sent to lo; who waits for it, waits for long."""
    manifest = Path(lab.spec.manifests) / "deaf.yaml"
    slices = (DEAF_SLICE.format(version=each, address=node_address(NODE, each)) for each in (4, 6))
    manifest.write_text(DEAF + "".join(slices))
    try:
        eventually(lambda: offered(lab, "deaf", 1), "the Service is there")
        with ExitStack() as stack:
            bare = Client(namespaces.command(lab.spec.namespace(NODE), ARGV), stack)
            for host in ("10.66.5.60", "fd00:66::5:60"):
                for one in (bare, client):
                    assert one.ask("tcp", host, PORT) == {"error": "ECONNREFUSED"}, host
    finally:
        manifest.unlink()


@pytest.mark.parametrize("family", FAMILIES)
def test_reject_host_processes(lab: Lab, client: Client, family: str) -> None:
    before = counted(lab, "REJECT_NO_ENDPOINT", "SOCK")
    for kind in ("clusterIP", "load balancer", "NodePort"):
        host, port = address("none", kind, family)
        answers = {way: client.ask(way, host, port) for way in WAYS}
        assert answers == {way: {"error": "ECONNREFUSED"} for way in WAYS}, kind
    assert counted(lab, "REJECT_NO_ENDPOINT", "SOCK") >= before + 6


@pytest.mark.parametrize("family", FAMILIES)
def test_unknown_port_host_processes(lab: Lab, client: Client, family: str) -> None:
    before = counted(lab, "REJECT_UNKNOWN_PORT", "SOCK")
    host, _ = address("web", "clusterIP", family)
    answers = {way: client.ask(way, host, 81) for way in WAYS}
    assert answers == {way: {"error": "ECONNREFUSED"} for way in WAYS}
    assert counted(lab, "REJECT_UNKNOWN_PORT", "SOCK") == before + len(AT_SOCKETS)


@pytest.mark.parametrize("family", FAMILIES)
def test_affinity_host_processes(lab: Lab, client: Client, family: str) -> None:
    """The node is the client, whatever socket of which process, whatever hook."""
    host, port = address("sticky", "clusterIP", family)
    tcp = {client.ask("tcp", host, port)["pod"] for _ in range(REQUESTS)}
    assert len(tcp) == 1
    udp = {client.ask(way, host, port, str(n))["pod"] for way in ("udp", "connected") for n in range(4)}
    assert len(udp) == 1


@pytest.mark.parametrize("family", FAMILIES)
def test_stale_udp_host_processes(lab: Lab, client: Client, family: str) -> None:
    check_stale(lab, client, "udp", family)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("kind", ["clusterIP", "NodePort"])
def test_stale_udp_connected_socket(lab: Lab, client: Client, kind: str, family: str) -> None:
    check_stale(lab, client, "connected", family, kind)


def check_stale(lab: Lab, client: Client, way: str, family: str, kind: str = "clusterIP") -> None:
    """One socket is led from backend to backend."""
    host, port = address("pair", kind, family)
    for ready in ("pair-1", "pair-2", "pair-1"):
        let_ready(lab, ready)
        for _ in range(2):
            assert client.ask(way, host, port) == {"pod": ready, "peer": [host, port]}
    let_ready(lab)
    assert client.ask(way, host, port) == {"error": "ECONNREFUSED"}
    let_ready(lab, "pair-2")
    assert client.ask(way, host, port)["pod"] == "pair-2"
    let_ready(lab, "pair-1", "pair-2")
    assert {client.ask(way, host, port)["pod"] for _ in range(REQUESTS)} == {"pair-2"}, "it stays"


@pytest.mark.parametrize("family", FAMILIES)
def test_internal_policy_local_host_processes(lab: Lab, client: Client, family: str) -> None:
    """None here: dropped, as a pod's packets are. By way of another address the whole set."""
    host, port = address("away", "clusterIP", family)
    before = counted(lab, "NO_LOCAL_ENDPOINT", "TC_UPLINK_OUT")
    assert client.ask("tcp", host, port) == {"error": "timeout"}
    assert counted(lab, "NO_LOCAL_ENDPOINT", "TC_UPLINK_OUT") > before
    assert client.ask("tcp", *address("away", "NodePort", family))["pod"] == "there"


@pytest.mark.parametrize("family", FAMILIES)
def test_source_ranges_host_processes(lab: Lab, client: Client, family: str) -> None:
    before = counted(lab, "SOURCE_NOT_ALLOWED", "TC_UPLINK_OUT")
    assert client.ask("tcp", *address("limited", "load balancer", family)) == {"error": "timeout"}
    assert counted(lab, "SOURCE_NOT_ALLOWED", "TC_UPLINK_OUT") > before
    for service, kind in (("limited", "clusterIP"), ("admitted", "load balancer")):
        assert client.ask("tcp", *address(service, kind, family))["pod"] in pods(lab, "web")


def test_cluster_ip_socket_lb_modes_host(lab: Lab) -> None:
    pod = min(p["name"] for p in lab.pods() if p["node"] == NODE and str(p["name"]).startswith("web"))
    host, port = address("pair", "clusterIP", "ipv4")
    before = counted(lab, "OTHER_NETNS", "SOCK")
    with ExitStack() as stack:
        own = Client(lab.command(str(pod), ARGV), stack)
        assert own.ask("tcp", host, port)["pod"] in ("pair-1", "pair-2")
    assert counted(lab, "OTHER_NETNS", "SOCK") > before
    assert flows(lab, "pair", "TCP") == 1


def test_cluster_ip_socket_lb_modes_all(lab: Lab) -> None:
    """Pods are served at the socket, but where their address matters."""
    pod = min(p["name"] for p in lab.pods() if p["node"] == NODE and str(p["name"]).startswith("web"))
    with agent(lab, "--socket-lb=all"), ExitStack() as stack:
        own = Client(lab.command(str(pod), ARGV), stack)
        for family in FAMILIES:
            before = counted(lab, "TO_TC", "SOCK"), flows(lab, "web", "TCP"), flows(lab, "sticky", "TCP")
            for way in WAYS:
                host, port = address("web", "clusterIP", family)
                answer = own.ask(way, host, port)
                assert answer.get("pod") in pods(lab, "web"), answer
                assert answer["peer"] == [host, port]
            with calls_told(lab, NODE, WatchFlag.FLOWS) as told:
                own.ask("tcp", *address("web", "clusterIP", family))
                (one,) = told()
                assert (one.what, one.client, one.service) == ("new", "", "default/web:http")
            answers = {own.ask("tcp", *address("sticky", "clusterIP", family))["pod"] for _ in range(4)}
            assert len(answers) == 1
            assert own.ask("tcp", *address("none", "clusterIP", family)) == {"error": "ECONNREFUSED"}
            left, web, sticky = before
            assert counted(lab, "TO_TC", "SOCK") >= left + 5, "connected UDP, and affinity"
            assert flows(lab, "web", "TCP") == web
            assert flows(lab, "sticky", "TCP") == sticky + 4


@pytest.mark.parametrize("family", FAMILIES)
def test_calls_are_told_to_whoever_watches(lab: Lab, client: Client, family: str) -> None:
    host, port = address("web", "clusterIP", family)
    vip = socket_text(ip_address(host.removeprefix("::ffff:")), port)
    with calls_told(lab, NODE, WatchFlag.FLOWS | WatchFlag.DROPS) as told:
        assert client.ask("tcp", host, port)["pod"] in pods(lab, "web")
        (one,) = told()
        assert (one.what, one.hook, one.vip, one.service) == ("new", "SOCK_CONNECT", vip, "default/web:http")
        assert one.client == str(node_address(NODE, 6 if family == "ipv6" else 4))
        assert one.backend.rpartition(":")[0].strip("[]") in {
            str(a) for pod in lab.pods() for a in pod["addresses"]
        }
        assert (one.interface, one.snat, one.length) == ("", "", 0)
        client.ask("tcp", *address("none", "clusterIP", family))
        (one,) = told()
        assert (one.what, one.reason, one.service) == ("refused", "REJECT_NO_ENDPOINT", "default/none:http")


def test_calls_are_told_only_of_what_is_asked_for(lab: Lab, client: Client) -> None:
    with calls_told(lab, NODE, WatchFlag.DROPS) as told:
        client.ask("tcp", *address("web", "clusterIP", "ipv4"))
        assert told() == []
    client.ask("tcp", *address("none", "clusterIP", "ipv4"))
    with calls_told(lab, NODE, WatchFlag.DROPS) as told:
        assert told() == []


def test_cluster_ip_socket_lb_modes_off(lab: Lab, client: Client) -> None:
    """The client of a Service with affinity keeps its backend: the hooks and tc share what they remember."""
    pins = Pins(lab.spec.instance(NODE))
    assert len(sockets.attached(pins)) == MANY_HOOKS
    host, port = address("sticky", "clusterIP", "ipv4")
    before = client.ask("tcp", host, port)
    with agent(lab, "--socket-lb=off"):
        assert sockets.attached(pins) == []
        assert client.ask("tcp", host, port) == before
        assert flows(lab, "sticky", "TCP") > 0
        for family in FAMILIES:
            for way in WAYS:
                answer = client.ask(way, *address("web", "clusterIP", family), f"anew {family}")
                assert answer.get("pod") in pods(lab, "web"), (family, way, answer)
    assert len(sockets.attached(pins)) == MANY_HOOKS
    assert client.ask("tcp", host, port) == before


AT_ONCE = """\
import ast, socket, sys
asked = ast.literal_eval(sys.argv[1])
family = socket.AF_INET6 if ":" in asked[0][0] else socket.AF_INET
datagrams = socket.socket(family, socket.SOCK_DGRAM)
datagrams.settimeout(5)
for host, _, port in asked:
    datagrams.sendto(b"who?", (host, port))
print(*sorted(datagrams.recvfrom(100)[1][0] for _ in asked))
streams = []
for host, port, _ in asked:
    stream = socket.socket(family)
    stream.settimeout(5)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    stream.bind(("", streams[0].getsockname()[1] if streams else 0))
    stream.connect((host, port))
    streams.append(stream)
for stream in streams:
    assert stream.getpeername()[0] == asked[streams.index(stream)][0]
    stream.sendall(b"GET /hostname HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n")
    answer = b""
    while part := stream.recv(4096):
        answer += part
    print(answer.split()[-1].decode())
"""


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("first", range(3))
def test_many_vips_one_socket_and_one_port(lab: Lab, first: int, family: str) -> None:
    """Two VIPs of one backend and the backend itself, asked at once: each answer carries the address asked.

    TCP connects to all three from one port that was bound before.
    """
    asked = both_vips_and_backend(lab, family)
    asked = asked[first:] + asked[:first]
    argv = lab.command(NODE, [sys.executable, "-I", "-S", "-c", AT_ONCE, repr(asked)])
    answer = subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout
    assert answer.split() == [*sorted(host for host, _, _ in asked), "there", "there", "there"]


FROM = """\
import socket, sys
source, to = sys.argv[1], (sys.argv[2], int(sys.argv[3]))
family = socket.AF_INET6 if ":" in source else socket.AF_INET
request = b"GET /hostname HTTP/1.1\\r\\nHost: a\\r\\n\\r\\n"
for kind, question in ((socket.SOCK_DGRAM, b"who?"), (socket.SOCK_STREAM, request)):
    with socket.socket(family, kind) as one:
        one.settimeout(5)
        one.bind((source, 0))
        one.connect(to)
        one.send(question)
        print(one.recv(1000).replace(b" echo", b"").split()[-1 if kind == socket.SOCK_STREAM else 0].decode())
"""


@pytest.mark.parametrize("family", ["ipv4", "ipv6"])
def test_processes_with_another_address_of_the_node(lab: Lab, family: str) -> None:
    """As keepalived or a router's protocol give it one: nobody else has to know the way to it."""
    source = {"ipv4": "10.99.0.1", "ipv6": "fd00:99::1"}[family]
    there = [source, "dev", "lo"]
    assert lab.run(NODE, ["ip", "address", "add", *there]).returncode == 0
    try:
        for service, names in (("alone", {"there"}), ("host", pods(lab, "host")), ("web", pods(lab, "web"))):
            argv = [
                sys.executable,
                "-I",
                "-S",
                "-c",
                FROM,
                source,
                *map(str, address(service, "clusterIP", family)),
            ]
            done = subprocess.run(
                lab.command(NODE, argv), capture_output=True, text=True, timeout=30, check=True
            )
            assert len(done.stdout.split()) == 2
            assert set(done.stdout.split()) <= names
    finally:
        assert lab.run(NODE, ["ip", "address", "delete", *there]).returncode == 0


LOAD = """\
import socket, sys
addresses = [("10.66.5.51", 80), ("fd00:66::5:51", 80), ("::ffff:10.66.5.51", 80)]
unconnected = [socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET, socket.SOCK_DGRAM)
               for host, _ in addresses]
print("ready", flush=True)
done, over = 0, []
import threading
threading.Thread(target=lambda: over.append(sys.stdin.read()), daemon=True).start()
while not over:
    for datagrams, address in zip(unconnected, addresses):
        with socket.create_connection(address, timeout=5) as stream:
            assert stream.getpeername()[:2] == address
        datagrams.settimeout(5)
        datagrams.sendto(b"x", address)
        assert datagrams.recvfrom(100)[1][:2] == address
        done += 1
print(done)
"""


def test_an_agents_restart_breaks_nothing(lab: Lab) -> None:
    """Every connect and every datagram of three families is served while the agent is killed and starts."""
    argv = lab.command(NODE, [sys.executable, "-I", "-S", "-c", LOAD])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as load:
        assert load.stdout is not None
        assert load.stdout.readline() == "ready\n"
        for _ in range(3):
            lab.stop_agent(NODE, signal.SIGKILL)
            lab.start_agent(NODE)
            lab.wait_agent(NODE)
        done, _ = load.communicate("")
    assert load.returncode == 0
    assert int(done) > 0


def test_nodes_do_not_serve_each_others_processes(lab: Lab) -> None:
    """node2's client meets node2's hooks alone: node1's see no call of it."""
    found: dict[str, Any] = {}
    with ExitStack() as stack:
        other = Client(lab.command("node2", ARGV), stack)
        before = counted(lab, "NEW_LOCAL", "SOCK"), counted(lab, "NEW_REMOTE", "SOCK")
        found = other.ask("tcp", *address("web", "clusterIP", "ipv4"))
    assert found["pod"] in pods(lab, "web")
    assert before == (counted(lab, "NEW_LOCAL", "SOCK"), counted(lab, "NEW_REMOTE", "SOCK"))
