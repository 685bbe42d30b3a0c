# SPDX-License-Identifier: Apache-2.0
"""``make soak``: floods of strangers' packets against a lab; what they cost those who are connected.

``python -m tests.soak.floods``; SOAK_SECONDS (default 20) says for how long each flood lasts, SOAK_SENDERS
(default 1) by how many processes, each of which takes a CPU. A node of a lab serves a NodePort with a pod of
its own and one of another node, so that half of the connections have an SNAT port. For each kind of flood
IDLE real connections are opened first and say nothing; meanwhile new ones are opened one after another; then
the backends send a byte to every idle connection, and every client asks. Everything happens in the lab's
namespaces, and every flood ends by itself. Ends with 1 when an idle connection was lost, or more than one new
one in a hundred.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view.dump import counters
from lb.lab.addressing import CLIENTS, LabSpec, node_address
from lb.lab.lab import Lab
from lb.lab.removal import down

NODE, PORT, NODE_PORT, VIPS = "node1", 9100, 30910, 200
IDLE = 1000
STRANGERS = "198.18.0.0/15"
PEERS = Path(__file__).with_name("flood_peers.py")
KINDS = ("syn", "ack", "rst", "udp", "pieces", "later", "icmp", "one", "many VIPs")
MANIFEST = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: echo}
spec:
  replicas: 2
  selector: {matchLabels: {app: echo}}
  template:
    metadata: {labels: {app: echo}}
    spec:
      containers: [{name: echo, image: lab, ports: [{containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: echo}
spec:
  type: NodePort
  selector: {app: echo}
  ports:
    - {name: tcp, port: 80, targetPort: 9100, nodePort: 30910}
    - {name: udp, protocol: UDP, port: 80, targetPort: 9100, nodePort: 30910}
"""
MORE = """\
---
apiVersion: v1
kind: Service
metadata: {{name: echo-{number}}}
spec:
  selector: {{app: echo}}
  externalIPs: [203.0.113.{number}]
  ports: [{{port: 80, targetPort: 9100}}]
"""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a flood did.

    rate: its packets a second. asked, pushed: idle connections that answered, and that a push reached. new:
    what flood_peers.py says of new ones. evicted, half_open: of the node's flow entries. missed: most of the
    flood did not arrive, so it shows nothing.
    """

    rate: float
    asked: int
    pushed: int
    new: str
    evicted: int
    half_open: int
    missed: bool

    def row(self, kind: str, idle: int) -> str:
        """Return the row of the table in docs/reliability.md."""
        well, tried, middle, late = self.new.split()
        cells = (
            kind,
            f"{self.rate:,.0f}",
            f"{idle - self.pushed} of {idle}",
            f"{idle - self.asked} of {idle}",
            f"{int(tried) - int(well)} of {tried}",
            f"{middle} ms, {late} ms",
            f"{self.evicted}",
            f"{self.half_open:,}",
            *(["MISSED"] if self.missed else []),
        )
        return "| " + " | ".join(cells) + " |"

    def harmless(self, idle: int) -> bool:
        well, tried = map(int, self.new.split()[:2])
        return not self.missed and self.asked == self.pushed == idle and well >= 0.99 * tried


@contextmanager
def process(lab: Lab, where: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """Have a process of the peers at a place of the lab, which is ready."""
    command = lab.command(where, [sys.executable, "-I", "-S", str(PEERS), *argv])
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == "ready\n"
            yield started
        finally:
            started.kill()


def told(client: subprocess.Popen[str], line: str) -> None:
    assert client.stdin is not None
    client.stdin.write(line + "\n")
    client.stdin.flush()


def answer(client: subprocess.Popen[str]) -> str:
    assert client.stdout is not None
    return client.stdout.readline().strip()


def run(lab: Lab, where: str, *argv: str) -> str:
    return subprocess.run(lab.command(where, argv), check=True, capture_output=True, text=True).stdout


class Look(NamedTuple):
    """What the node has counted.

    evicted, half_open: flow entries that had to go before their time, and those that are half open. arrived:
    packets that have come in for it.
    """

    evicted: int
    half_open: int
    arrived: int


def look(lab: Lab) -> Look:
    maps = KernelMaps(Pins(lab.spec.instance(NODE)).maps)
    try:
        found, counted = maps.fill("flows4"), counters(maps)
    finally:
        maps.close()
    arrived = [one.packets for one in counted if one.hook == "TC_UPLINK_IN" and one.reason != "NOT_FOR_US"]
    return Look(found.evicted, found.provisional, sum(arrived))


def flood(lab: Lab, program: str, kind: str, seconds: float, senders: int) -> Outcome:
    """Open connections, flood, and look what is left of them."""
    address = str(node_address(NODE))
    targets = [f"{address}:{NODE_PORT}"]
    if kind == "many VIPs":
        kind, targets = "syn", [f"203.0.113.{number}:80" for number in range(1, VIPS + 1)]
    mac = run(lab, NODE, "ip", "-br", "link", "show", "eth0").split()[2]
    pods = [pod["name"] for pod in lab.pods()]
    with ExitStack() as stack:
        for pod in pods:
            stack.enter_context(process(lab, pod, "serve", str(PORT)))
        clients = [
            stack.enter_context(process(lab, "client", "connect", str(count), address, str(NODE_PORT)))
            for count in (IDLE, 1)
        ]
        before = look(lab)
        argv = lab.command("client", [program, "eth0", mac, kind, str(seconds), *targets])
        sending = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(senders)]
        told(clients[1], f"new {seconds}")
        sent = [one.communicate()[0].split() for one in sending]
        new, after = answer(clients[1]), look(lab)
        told(clients[0], "pushed")
        for pod in pods:
            run(
                lab, pod, sys.executable, "-c",
                f"import socket; socket.socket(type=2).sendto(b'push', ('127.0.0.1', {PORT}))",
            )  # fmt: skip
        pushed = int(answer(clients[0]))
        told(clients[0], "ask")
        asked = int(answer(clients[0]))
    rate = sum(int(packets) / (int(ns) / 1e9) for packets, ns in sent)
    missed = after.arrived - before.arrived < 0.5 * sum(int(packets) for packets, _ in sent)
    return Outcome(rate, asked, pushed, new, after.evicted - before.evicted, after.half_open, missed)


def campaign(kinds: Sequence[str], seconds: float, senders: int) -> int:
    """Run the floods; return how many cost somebody something."""
    bad = 0
    with tempfile.TemporaryDirectory(prefix="lbctl-floods-") as folder:
        program, manifests = str(Path(folder) / "flood"), Path(folder) / "manifests"
        subprocess.run(["cc", "-O2", "-o", program, str(PEERS.with_name("flood.c"))], check=True)
        manifests.mkdir()
        more = "".join(MORE.format(number=number) for number in range(1, VIPS + 1))
        (manifests / "echo.yaml").write_text(MANIFEST + more)
        spec = LabSpec(id=f"fl{os.getpid()}", manifests=str(manifests))
        try:
            lab = Lab.up(spec, lambda line: print(f"lab: {line}", flush=True))
            # what answers strangers has a way to go, and ends there
            run(lab, NODE, "ip", "route", "add", STRANGERS, "via", str(CLIENTS[0]))
            run(lab, "client", "ip", "route", "add", "blackhole", STRANGERS)
            for kind in kinds:
                found = flood(lab, program, kind, seconds, senders)
                print(found.row(kind, IDLE), flush=True)
                bad += not found.harmless(IDLE)
        finally:
            down(spec.id, lambda _line: None)
    return bad


if __name__ == "__main__":
    lasting = float(os.environ.get("SOAK_SECONDS", "20"))
    sys.exit(1 if campaign(sys.argv[1:] or KINDS, lasting, int(os.environ.get("SOAK_SENDERS", "1"))) else 0)
