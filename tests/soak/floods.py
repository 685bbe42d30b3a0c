# SPDX-License-Identifier: Apache-2.0
"""``make soak``: floods of strangers' packets against a lab; what they cost those who are connected.

``python -m tests.soak.floods [KIND …]``. From the environment: SOAK_SECONDS (default 20), for how long each
flood lasts; SOAK_SENDERS (default 1), by how many processes, each of which takes a CPU; SOAK_CPU (default 1),
which share of all CPUs they may take, the handling of their packets included as far as it is done in their
name. A node of a lab serves NodePorts with a pod of its own and one of another node, so that half of the
connections have an SNAT port. For each kind of flood IDLE real connections are opened first and say nothing,
and CLIENTS_OF_STICKY clients open one to a Service with ClientIP affinity, while all of that lead to one pod
alone; meanwhile new connections are opened one after another; then the backends send a byte to every idle
connection, every one asks, and every client opens another connection. Everything happens in the lab's
namespaces, and every flood ends by itself. Ends with 1 when an idle connection was lost, a client led to
another backend, or more than one new connection in a hundred failed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lb.datapath.kernel.pins import Pins
from lb.datapath.maps.kernel_maps import KernelMaps
from lb.datapath.view.dump import counters
from lb.lab.addressing import SEGMENTS, LabSpec, clients, node_address, on_segment
from lb.lab.lab import Lab
from lb.lab.removal import down
from tests.netns.waiting import eventually

NODE, PORT, NODE_PORT, STICKY, VIPS = "node1", 9100, 30910, 30911, 200
IDLE = 1000
CLIENTS_OF_STICKY = 100
STRANGERS = {4: "198.18.0.0/15", 6: "2001:2::/48"}
PEERS = Path(__file__).with_name("flood_peers.py")
V4_KINDS = ("syn", "ack", "rst", "udp", "pieces", "later", "icmp", "one", "many VIPs", "affinity")
V6_KINDS = ("syn", "ack", "rst", "udp", "one", "affinity")
KINDS = (*V4_KINDS, *(f"{kind} 6" for kind in V6_KINDS))
"""What is sent, see flood.c; many VIPs: SYNs to VIPS of them; affinity: SYNs to the Service with affinity."""
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
  ipFamilyPolicy: RequireDualStack
  selector: {app: echo}
  ports:
    - {name: tcp, port: 80, targetPort: 9100, nodePort: 30910}
    - {name: udp, protocol: UDP, port: 80, targetPort: 9100, nodePort: 30910}
---
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  type: NodePort
  ipFamilyPolicy: RequireDualStack
  sessionAffinity: ClientIP
  selector: {app: echo}
  ports: [{port: 80, targetPort: 9100, nodePort: 30911}]
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

    rate: its packets a second. cpu: CPUs that the senders took; softirq, busy: CPUs of the whole machine in
    softirqs, and that were not idle, with what other work there was. load: the machine's load in the last
    minute. asked, pushed: idle connections that answered, and that a push reached. new: what flood_peers.py
    says of new ones. moved, unserved: clients with affinity whom another backend serves, and nobody. evicted,
    half_open: of the node's flow entries. missed: most of the flood did not arrive, so it shows nothing.
    """

    rate: float
    cpu: float
    softirq: float
    busy: float
    load: float
    asked: int
    pushed: int
    new: str
    moved: int
    unserved: int
    evicted: int
    half_open: int
    missed: bool

    def row(self, kind: str, idle: int) -> str:
        """Return the row of the table in docs/reliability.md."""
        well, tried, middle, late = self.new.split()
        cells = (
            kind,
            f"{self.rate:,.0f}",
            f"{self.cpu:.2f}",
            f"{self.busy:.2f} ({self.softirq:.2f}), {self.load:.1f}",
            f"{idle - self.pushed} of {idle}",
            f"{idle - self.asked} of {idle}",
            f"{int(tried) - int(well)} of {tried}",
            f"{middle} ms, {late} ms",
            f"{self.moved} of {CLIENTS_OF_STICKY}" + (f", {self.unserved} failed" if self.unserved else ""),
            f"{self.evicted}",
            f"{self.half_open:,}",
            *(["MISSED"] if self.missed else []),
        )
        return "| " + " | ".join(cells) + " |"

    def harmless(self, idle: int) -> bool:
        well, tried = map(int, self.new.split()[:2])
        kept = self.asked == self.pushed == idle and not self.moved
        return not self.missed and kept and well >= 0.99 * tried


class CpuTime(NamedTuple):
    """Seconds of all CPUs since the machine has run: in softirqs, and not idle."""

    softirq: float
    busy: float

    @classmethod
    def now(cls) -> CpuTime:
        line = Path("/proc/stat").read_text().partition("\n")[0].split()
        user, nice, system, _idle, _waits, irq, softirq = (
            int(ticks) / os.sysconf("SC_CLK_TCK") for ticks in line[1:8]
        )
        return cls(softirq, user + nice + system + irq + softirq)


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


def look(lab: Lab, version: int) -> Look:
    maps = KernelMaps(Pins(lab.spec.instance(NODE)).maps)
    try:
        found, counted = maps.fill(f"flows{version}"), counters(maps)
    finally:
        maps.close()
    arrived = [one.packets for one in counted if one.hook == "TC_UPLINK_IN" and one.reason != "NOT_FOR_US"]
    return Look(found.evicted, found.provisional, sum(arrived))


@contextmanager
def connected(lab: Lab, version: int) -> Iterator[dict[str, subprocess.Popen[str]]]:
    """Have pods that serve, and clients connected: ``idle`` ones, ``sticky`` ones, and ``new``, for more."""
    address = str(node_address(NODE, version))
    pods = [pod["name"] for pod in lab.pods()]
    with ExitStack() as stack:

        def client(*argv: str) -> subprocess.Popen[str]:
            return stack.enter_context(process(lab, "client", *argv))

        for pod in pods:
            stack.enter_context(process(lab, pod, "serve", str(PORT), pod))
        new = client("connect", "1", address, str(NODE_PORT))

        def serves(pod: str) -> bool:
            told(new, "who")
            return answer(new) == pod

        lab.ask_kubelet("unready", pod=pods[1])
        eventually(lambda: all(serves(pods[0]) for _ in range(20)), "all is led to the first pod")
        sticky = client("clients", address, str(STICKY), *sticky_sources(version))
        lab.ask_kubelet("ready", pod=pods[1])
        eventually(lambda: serves(pods[1]), "some is led to the other pod")
        yield {"idle": client("connect", str(IDLE), address, str(NODE_PORT)), "new": new, "sticky": sticky}


def sticky_sources(version: int) -> list[str]:
    """Return addresses that clients of the Service with affinity may have in the lab's segment."""
    return [str(on_segment(number, version)) for number in (*range(120, 200), *range(210, 230))]


def flood(lab: Lab, program: str, name: str, seconds: float, senders: int, share: float) -> Outcome:
    """Open connections, flood, and look what is left of them. share: of all CPUs, for the senders."""
    kind, version = (name.removesuffix(" 6"), 6) if name.endswith(" 6") else (name, 4)
    at = f"[{node_address(NODE, 6)}]" if version == 6 else str(node_address(NODE))
    targets = [f"{at}:{STICKY if kind == 'affinity' else NODE_PORT}"]
    if kind == "many VIPs":
        targets = [f"203.0.113.{number}:80" for number in range(1, VIPS + 1)]
    sent_as = "syn" if kind in {"many VIPs", "affinity"} else kind
    mac = run(lab, NODE, "ip", "-br", "link", "show", "eth0").split()[2]
    each = min(1.0, share * (os.cpu_count() or 1) / senders)
    with connected(lab, version) as peers:
        before, cpu_before, began = look(lab, version), CpuTime.now(), time.monotonic()
        argv = lab.command("client", [program, "eth0", mac, sent_as, str(seconds), str(each), *targets])
        sending = [subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) for _ in range(senders)]
        told(peers["new"], f"new {seconds}")
        sent = [[int(word) for word in one.communicate()[0].split()] for one in sending]
        cpu, lasted = CpuTime.now(), time.monotonic() - began
        new, after = answer(peers["new"]), look(lab, version)
        told(peers["idle"], "pushed")
        for pod in lab.pods():
            run(
                lab, pod["name"], sys.executable, "-c",
                f"import socket; socket.socket(type=2).sendto(b'push', ('127.0.0.1', {PORT}))",
            )  # fmt: skip
        pushed = int(answer(peers["idle"]))
        told(peers["idle"], "ask")
        asked = int(answer(peers["idle"]))
        told(peers["sticky"], "again")
        moved, unserved = map(int, answer(peers["sticky"]).split())
    return Outcome(
        rate=sum(packets / (ns / 1e9) for packets, ns, _ in sent),
        cpu=sum(cpu_ns / ns for _, ns, cpu_ns in sent),
        softirq=(cpu.softirq - cpu_before.softirq) / lasted,
        busy=(cpu.busy - cpu_before.busy) / lasted,
        load=os.getloadavg()[0],
        asked=asked,
        pushed=pushed,
        new=new,
        moved=moved,
        unserved=unserved,
        evicted=after.evicted - before.evicted,
        half_open=after.half_open,
        missed=after.arrived - before.arrived < 0.5 * sum(packets for packets, _, _ in sent),
    )


def campaign(kinds: Sequence[str], seconds: float, senders: int, share: float) -> int:
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
            prepare(lab)
            for kind in kinds:
                found = flood(lab, program, kind, seconds, senders, share)
                print(found.row(kind, IDLE), flush=True)
                bad += not found.harmless(IDLE)
        finally:
            down(spec.id, lambda _line: None)
    return bad


def prepare(lab: Lab) -> None:
    """Have what answers strangers go and end somewhere, and give the client the addresses of more clients."""
    for version, network in STRANGERS.items():
        run(lab, NODE, "ip", f"-{version}", "route", "add", network, "via", str(clients(version)[0]))
        run(lab, "client", "ip", f"-{version}", "route", "add", "blackhole", network)
        more = ["nodad"] if version == 6 else []
        for source in sticky_sources(version):
            length = f"/{SEGMENTS[version].prefixlen}"
            run(lab, "client", "ip", "address", "add", source + length, "dev", "eth0", *more)


if __name__ == "__main__":
    wanted = {name: float(os.environ.get(f"SOAK_{name}", "1")) for name in ("SENDERS", "CPU")}
    lasting = float(os.environ.get("SOAK_SECONDS", "20"))
    costly = campaign(sys.argv[1:] or KINDS, lasting, int(wanted["SENDERS"]), wanted["CPU"])
    sys.exit(1 if costly else 0)
