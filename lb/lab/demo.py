# SPDX-License-Identifier: Apache-2.0
"""A show of the example Services: who answers, from where, and the maps behind it."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

from lb.errors import LabError
from lb.lab.addressing import CLIENTS, LabSpec, like, node_address
from lb.lab.hints import host
from lb.lab.lab import Lab
from lb.lab.removal import Report

A_POD = "a pod"
"""As a row's place: the first ready pod."""

_SHOWN_LINES = 16

_UDP_CLIENT = """\
import socket, sys
for number in range(int(sys.argv[3])):
    family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as asking:
        asking.settimeout(3)
        asking.connect((sys.argv[1], int(sys.argv[2])))
        asking.send(b"hello")
        print(asking.recv(2048).decode())
"""


@dataclass(frozen=True, slots=True)
class Row:
    """Some requests from one place to one address; source is the client's address, ``""`` for its first.

    spread tells how many pods must have answered: one with ClientIP affinity, else more than one. A row is
    shown when the manifests name its key, by default the address.
    """

    title: str
    where: str
    address: str
    port: int = 80
    key: str = ""
    udp: bool = False
    source: str = ""
    sticky: bool = False
    requests: int = 24

    def command(self) -> list[str]:
        """Return the command that sends the requests, each over a connection of its own."""
        if self.udp:
            numbers = [str(self.port), str(self.requests)]
            return [sys.executable, "-I", "-S", "-c", _UDP_CLIENT, self.address, *numbers]
        return ["sh", "-c", f"for i in $(seq {self.requests}); do {self.curl()}; done"]

    def curl(self) -> str:
        """Return one request as somebody would type it."""
        interface = f" --interface {self.source}" if self.source else ""
        return f"curl -s -m 3{interface} http://{host(self.address)}:{self.port}/"

    def over(self, version: int) -> Row:
        """Return the row for a lab whose primary IP version this is."""
        if ":" in self.address:
            return self
        return replace(self, address=str(like(self.address, version)))


KUBIA, NODE_PORT = "10.66.13.240", "10.66.5.6"
ROWS = (
    Row("clusterIP from a pod, ClientIP affinity", A_POD, KUBIA, sticky=True),
    Row("its second port, with an affinity of its own", A_POD, KUBIA, 90, sticky=True),
    Row("affinity: another client, from outside", "client", KUBIA, source=str(CLIENTS[1]), sticky=True),
    Row("clusterIP from a pod, no affinity", A_POD, NODE_PORT),
    Row("clusterIP over IPv6, from a pod", A_POD, "fd00:66::66"),
    Row("NodePort on node1 over IPv6", "client", str(node_address("node1", 6)), 30126, "30126"),
    Row("NodePort on node1, from outside", "client", str(node_address("node1")), 30123, "30123"),
    Row("load-balancer address, from outside", "client", "203.0.113.22"),
    Row("external address, from outside", "client", "198.51.100.7"),
    Row("UDP echo from a pod", A_POD, "10.66.9.9", 7000, udp=True),
    Row("Service with hand-made Endpoints", A_POD, "10.66.10.171", sticky=True),
)
"""Those of examples/; :meth:`Row.over` makes them those of examples-ipv6."""


def answering(lines: str, udp: bool) -> Counter[str]:
    """Count the answers by the pod that gave them: ``You've hit NAME on PORT``, or ``NAME PORT payload``."""
    words = [line.split() for line in lines.splitlines()]
    if udp:
        return Counter(each[0] for each in words if len(each) == 3)
    return Counter(each[2] for each in words if each[:2] == ["You've", "hit"])


def rows(spec: LabSpec) -> list[Row]:
    """Return the rows whose key the manifests name and whose family the lab has."""
    texts = "".join(path.read_text() for path in sorted(Path(spec.manifests).glob("*.y*ml")))
    version = spec.versions[0]
    return [
        replace(row, source=str(spec.clients(version)[1])) if row.source else row
        for row in (each.over(version) for each in ROWS)
        if re.search(rf"(?<![\w:.]){re.escape(row.key or row.address)}(?!\w)", texts)
        and (6 if ":" in row.address else 4) in spec.versions
    ]


def show(lab: Lab, report: Report) -> None:
    """Run every row that the manifests have, then print node1's maps.

    Raises LabError: no pod is ready, or a row got fewer answers than requests.
    """
    ready = [pod["name"] for pod in lab.pods() if pod["ready"]]
    if not ready:
        raise LabError("no pod is ready; see lbctl lab status")
    failed = []
    for row in rows(lab.spec):
        report("")
        report(f"{row.title}:")
        where = ready[0] if row.where == A_POD else row.where
        wire = f"udp {host(row.address)}:{row.port}" if row.udp else row.curl()
        report(f"  {where}$ {wire}    ({row.requests} times)")
        answers = answering(lab.run(where, row.command()).stdout, row.udp)
        for name, count in sorted(answers.items()):
            report(f"  {count:4d}  {name}")
        if answers.total() < row.requests:
            failed.append(f"{row.title}: {answers.total()} of {row.requests} answers")
        elif row.sticky and len(answers) > 1:
            failed.append(f"{row.title}: {len(answers)} pods answered, one was expected")
    if lab.spec.agents:
        for what in (["vips"], ["affinity"], ["flows"], ["-o", "ipvsadm"]):
            _dump(lab, what, report)
    if failed:
        raise LabError("not as it should be: " + "; ".join(failed))


def _dump(lab: Lab, what: list[str], report: Report) -> None:
    """Print the beginning of what node1's kernel holds."""
    command = ["maps", "dump", "--instance", lab.spec.instance("node1"), *what]
    report("")
    report(f"$ lbctl {' '.join(command)}")
    done = subprocess.run([sys.executable, "-m", "lb", *command], capture_output=True, text=True, check=False)
    lines = (done.stdout + done.stderr).splitlines()
    for line in lines[:_SHOWN_LINES]:
        report(f"  {line}")
    if len(lines) > _SHOWN_LINES:
        report(f"  … and {len(lines) - _SHOWN_LINES} lines more")
