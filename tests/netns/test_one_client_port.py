# SPDX-License-Identifier: Apache-2.0
"""Clients that never change their port, while endpoints come and go: real sockets, outside and in a pod.

A TCP client connects again and again from one port; a UDP client has one socket and never closes it.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import dumped, eventually

NODES = ("node1", "node2")
CLUSTER_IP, NODE_PORT = "10.66.4.1", 30401
PLACES = {"client": (str(node_address("node1")), NODE_PORT), "asker": (CLUSTER_IP, 80)}

MANIFEST = f"""\
apiVersion: v1
kind: Service
metadata: {{name: web}}
spec:
  type: NodePort
  clusterIP: {CLUSTER_IP}
  selector: {{app: web}}
  ports:
  - {{name: http, port: 80, targetPort: http, nodePort: {NODE_PORT}}}
  - {{name: echo, port: 80, targetPort: echo, nodePort: {NODE_PORT}, protocol: UDP}}
---
apiVersion: v1
kind: Pod
metadata: {{name: asker}}
spec: {{nodeName: node1, containers: [{{ports: [{{name: http, containerPort: 8080}}]}}]}}
""" + "".join(
    f"""---
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: web}}}}
spec:
  nodeName: {node}
  containers:
  - ports:
    - {{name: http, containerPort: 8080}}
    - {{name: echo, containerPort: 9000, protocol: UDP}}
"""
    for name, node in (("here", "node1"), ("there", "node2"))
)

# For each line on stdin, tcp or udp: asks HOST PORT from one port and says who answered, or "refused".
CLIENT = """\
import socket, struct, sys
address, own = (sys.argv[1], int(sys.argv[2])), 45678
datagrams = socket.socket(type=socket.SOCK_DGRAM)
datagrams.bind(("", own))
datagrams.connect(address)
datagrams.settimeout(5)

def udp():
    datagrams.send(b"who?")
    return datagrams.recv(100).split()[0].decode()

def tcp():
    with socket.socket() as stream:
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends with RST
        stream.bind(("", own))
        stream.settimeout(5)
        stream.connect(address)
        stream.sendall(b"GET /hostname HTTP/1.1\\r\\nHost: web\\r\\nConnection: close\\r\\n\\r\\n")
        answer = b""
        while part := stream.recv(4096):
            answer += part
        return answer.split()[-1].decode()

for line in sys.stdin:
    try:
        print({"tcp": tcp, "udp": udp}[line.strip()](), flush=True)
    except ConnectionRefusedError:
        print("refused", flush=True)
    except OSError as error:
        print(repr(error), flush=True)
"""


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifests: Path = tmp_path_factory.mktemp("one-port")
    (manifests / "all.yaml").write_text(MANIFEST)
    lab = make_lab(manifests=manifests)
    yield lab
    remove(lab.spec.id)


def let_ready(lab: Lab, *names: str) -> None:
    """Make these pods the only ready ones, and wait until every node's maps say so."""
    for name in ("here", "there"):
        lab.ask_kubelet("ready" if name in names else "unready", pod=name)
    wanted = {str(pod["address"]) for pod in lab.pods() if pod["name"] in names}
    for node in NODES:
        eventually(lambda node=node: active(lab, node) == [wanted] * 4, f"{node}: {names} alone")  # type: ignore[misc]


def active(lab: Lab, node: str) -> list[set[str]]:
    """Return the addresses that each VIP of a node offers: two ports, a clusterIP and a node port."""
    vips = dumped(lab, node, "vips", "--service", "default/web")["vips"]
    return [
        {backend["address"] for backend in vip["backends"] if backend["state"] == "active"}
        for vip in vips
        if vip["port"]
    ]


class Client:
    """A process in a place that asks whenever it is told to."""

    def __init__(self, lab: Lab, place: str, stack: ExitStack) -> None:
        host, port = PLACES[place]
        argv = lab.command(place, [sys.executable, "-I", "-S", "-c", CLIENT, host, str(port)])
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        stack.enter_context(process)
        assert process.stdin is not None
        assert process.stdout is not None
        self._stdin, self._stdout = process.stdin, process.stdout
        stack.callback(self._stdin.close)

    def ask(self, protocol: str) -> str:
        self._stdin.write(protocol + "\n")
        self._stdin.flush()
        return self._stdout.readline().strip()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_first_endpoint_and_stale_udp_and_reject_with_one_client_port(
    lab: Lab, place: str, protocol: str
) -> None:
    """Nobody, here, there, both, nobody, there: each time the very next question is for who is there now."""
    with ExitStack() as stack:
        client = Client(lab, place, stack)
        for names in ((), ("here",), ("there",), ("here", "there"), (), ("there",), ("here",)):
            let_ready(lab, *names)
            for _ in range(2):
                assert client.ask(protocol) in (names or ("refused",))
