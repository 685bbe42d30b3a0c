# SPDX-License-Identifier: Apache-2.0
"""Services go over from kube-proxy to us and back while connections of all kinds are open: none breaks."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from lb.datapath.kernel.pins import instances
from lb.lab import kube_proxy
from lb.lab.addressing import Family, clients, node_address
from lb.lab.lab import Lab
from lb.lab.processes import environment
from lb.model import socket_text
from tests.netns.conftest import MakeLab
from tests.netns.held import SCTP_PORT, Holder, Responder, Target
from tests.netns.host_services import POD, POOLED_SERVICE
from tests.netns.waiting import eventually

NODE = "node1"
NODE_PORT = 30451
PODS = (("here", "web", "node1"), ("there", "web", "node2"), ("asker", "self", "node1"))
STICKY = """\
apiVersion: v1
kind: Service
metadata: {name: sticky}
spec:
  type: NodePort
  sessionAffinity: ClientIP
  ipFamilyPolicy: RequireDualStack
  clusterIP: 10.66.5.53
  clusterIPs: [10.66.5.53, "fd00:66::5:53"]
  selector: {app: web}
  ports:
  - {name: http, port: 80, targetPort: http, nodePort: 30453}
---
"""
SIGNALS = "  - {name: signals, port: 80, targetPort: %d, nodePort: %d, protocol: SCTP}"
MANIFEST = (
    "".join(POD.format(name=name, app=app, node=node) for name, app, node in PODS)
    + "".join(
        POOLED_SERVICE.format(
            name=name, app=name, number=number, node_port=port, more=SIGNALS % (SCTP_PORT, port)
        )
        for name, number, port in (("web", 51, NODE_PORT), ("self", 52, NODE_PORT + 1))
    )
    + STICKY
)
CLUSTER = {4: "10.66.5.51", 6: "fd00:66::5:51"}
ITSELF = {4: "10.66.5.52", 6: "fd00:66::5:52"}
BALANCER = {4: "203.0.113.51", 6: "2001:db8:203::51"}


def targets(place: str, version: int, each: int, pause: float) -> Iterator[Target]:
    """Yield what is asked from a place by one family, on so many connections of TCP to each address.

    pause: seconds between two requests of a connection.
    """
    node = str(node_address(NODE, version))
    where = {
        "client": {"nodePort": (node, NODE_PORT), "balancer": (BALANCER[version], 80)},
        "asker": {
            "clusterIP": (CLUSTER[version], 80),
            "itself": (ITSELF[version], 80),
            "nodePort": (node, NODE_PORT),
        },
        NODE: {"clusterIP": (CLUSTER[version], 80), "nodePort": (node, NODE_PORT)},
    }[place]
    for name, (host, port) in where.items():
        yield Target("tcp", f"{place} tcp {name} {version}", host, port, each, pause)
        yield Target("half", f"{place} half {name} {version}", host, port, 1)
        yield Target("udp", f"{place} udp {name} {version}", host, port, max(1, each // 2), pause)
        yield Target("sctp", f"{place} sctp {name} {version}", host, port, max(1, each // 4), pause)
        yield Target("new", f"{place} new {name} {version}", host, port, 1, 0.2)


def sticky(lab: Lab) -> dict[str, str]:
    """Ask the Service with affinity from each address of the client; return which pod answered whom."""
    found = {}
    for version in (4, 6):
        for address in map(str, clients(version)):
            where = socket_text(node_address(NODE, version), 30453)
            asked = ["curl", "-sS", "-m", "20", "--interface", address, f"http://{where}/hostname"]
            done = lab.run("client", asked)
            assert done.returncode == 0, done.stderr
            found[address] = done.stdout.strip()
    return found


def run(lab: Lab, node: str, *argv: str) -> str:
    """Run lbctl on a node; return its output."""
    done = lab.run(node, [sys.executable, "-m", "lb", *argv], env=environment())
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def cutover(lab: Lab, *flags: str) -> dict[str, Any]:
    """Run ``lbctl cutover`` on the node; return its report."""
    report: dict[str, Any] = json.loads(
        run(lab, NODE, "cutover", "-o", "json", "--instance", lab.spec.instance(NODE), *flags)
    )
    return report


def count(report: dict[str, Any]) -> int:
    """Return how many connections a report says were moved."""
    return sum(row["connections"] for row in report["moved"])


def unfinished(lab: Lab) -> int:
    """Return how many problems ``lbctl status`` has whose next step is to call the command."""
    argv = [sys.executable, "-m", "lb", "status", "-o", "json", "--instance", lab.spec.instance(NODE)]
    problems = json.loads(lab.run(NODE, argv, env=environment()).stdout)["problems"]
    return sum("lbctl cutover" in one["next"] for one in problems)


ASK_FROM = r"""
import socket, struct, sys
source, port, host, to = sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4])
PORT_RANGE, NO_PORT_YET = 51, 24  # IP_LOCAL_PORT_RANGE, IP_BIND_ADDRESS_NO_PORT of linux/in.h
with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as asking:
    with open("/proc/sys/net/ipv4/ip_local_port_range") as file:
        first, last = map(int, file.read().split())
    picked = first <= port <= last
    if picked:  # by the kernel, which has no other choice
        asking.setsockopt(socket.IPPROTO_IP, NO_PORT_YET, 1)
        asking.setsockopt(socket.IPPROTO_IP, PORT_RANGE, struct.pack("=I", port << 16 | port))
    asking.settimeout(10)
    asking.bind((source, 0 if picked else port))
    asking.connect((host, to))
    assert asking.getsockname()[1] == port
    asking.sendall(b"GET /hostname HTTP/1.0\r\n\r\n")
    assert b" 200 " in asking.recv(1000)
"""


def ask_from_ports_in_use(lab: Lab) -> None:
    """Let the node's kernel pick, for a backend, ports that stand for the node's connections to it."""
    flows = json.loads(run(lab, NODE, "flows", "-o", "json", "--instance", lab.spec.instance(NODE)))["flows"]
    own = {str(node_address(NODE, version)) for version in (4, 6)}
    seen = {}
    for flow in flows:
        client, vip, backend = (socket_of(flow[name]) for name in ("client", "vip", "backend"))
        if flow["protocol"] == "TCP" and client[0] in own and flow["state"] == "established":
            seen[vip] = socket_of(flow["snat"] or flow["client"]), backend
    assert seen.keys() >= {(str(node_address(NODE, version)), NODE_PORT) for version in (4, 6)}
    for source, backend in seen.values():
        argv = [sys.executable, "-I", "-S", "-c", ASK_FROM, *map(str, (*source, *backend))]
        done = lab.run(NODE, argv)
        assert done.returncode == 0, done.stderr


def socket_of(text: str) -> tuple[str, int]:
    """Return address and port of what socket_text() has written."""
    address, _, port = text.rpartition(":")
    return address.strip("[]"), int(port)


class Traffic:
    """The holders of all places."""

    def __init__(self, lab: Lab, each: int, stack: ExitStack, pause: float = 0.1) -> None:
        for pod, _, _ in PODS:
            Responder(lab, pod, stack)
        self.holders = [
            Holder(lab, place, [one for v in (4, 6) for one in targets(place, v, each, pause)], stack)
            for place in ("client", "asker", NODE)
        ]
        eventually(self._opened, "every connection is opened", seconds=90)

    def _opened(self) -> bool:
        now = [(h, h.told()) for h in self.holders]
        assert not any(told["failures"] for _, told in now), self.words()
        return all(told["open"] == h.wanted for h, told in now)

    def words(self) -> str:
        """Return how it goes, for people."""
        return "\n".join(f"{h.place}: wanted {h.wanted}, {json.dumps(h.told())}" for h in self.holders)

    def goes_on(self, requests: int = 3) -> None:
        """Wait until each target has had so many answers from now on; nothing may have failed."""
        before = [h.told()["asked"] for h in self.holders]

        def done() -> bool:
            now = [h.told() for h in self.holders]
            assert not any(one["failures"] for one in now), self.words()
            return all(
                one["asked"].get(t.name, 0) >= asked.get(t.name, 0) + requests * t.count
                for one, asked, h in zip(now, before, self.holders, strict=True)
                for t in h.targets
            )

        eventually(done, "answers on every connection", seconds=180)

    def lost(self) -> int:
        """Return how many datagrams were not answered."""
        return sum(int(h.told()["lost"]) for h in self.holders)


def there_and_back(
    lab: Lab, mode: kube_proxy.Mode, traffic: Traffic
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Go over, and back to a mode, with traffic that goes on, and return both reports."""
    kept = sticky(lab)
    lab.start_agent(NODE)
    lab.wait_agent(NODE, 120)
    assert sticky(lab) == kept
    traffic.goes_on()
    assert unfinished(lab) == 1
    planned = cutover(lab, "--dry-run")
    assert planned["left"] == {}
    over = cutover(lab)
    assert over["not_moved"] == {}
    assert {row["path"] for row in over["moved"]} == {"stack", "forward", "hairpin", "host", "loopback"}
    ask_from_ports_in_use(lab)
    traffic.goes_on()
    assert unfinished(lab) == 0
    assert count(cutover(lab, "--dry-run")) == 0
    assert run(lab, NODE, "lab", "kube-proxy", "--id", lab.spec.id, mode, NODE)
    lab.stop_agent(NODE)
    back = cutover(lab, "--back")
    assert back["left"] == {}
    assert lab.spec.instance(NODE) not in instances()
    assert sticky(lab) == kept
    traffic.goes_on()
    return over, back


def turned_back(lab: Lab, traffic: Traffic) -> None:
    """Let our programs come, and go again before anything was taken over."""
    lab.start_agent(NODE)
    lab.wait_agent(NODE, 120)
    traffic.goes_on()
    lab.stop_agent(NODE)
    assert cutover(lab, "--back")["left"] == {}
    assert lab.spec.instance(NODE) not in instances()
    traffic.goes_on()


@pytest.mark.parametrize("mode", kube_proxy.Mode)
def test_cutover_no_open_connection_breaks(
    make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory, mode: kube_proxy.Mode
) -> None:
    manifests: Path = tmp_path_factory.mktemp("cutover")
    (manifests / "all.yaml").write_text(MANIFEST)
    lab = make_lab(manifests=manifests, agents=False, family=Family.DUAL)
    for node in ("node1", "node2"):
        run(lab, NODE, "lab", "kube-proxy", "--id", lab.spec.id, mode, node)
    with ExitStack() as stack:
        traffic = Traffic(lab, 4, stack)
        traffic.goes_on()
        there_and_back(lab, mode, traffic)
        if mode is kube_proxy.Mode.NFTABLES:
            turned_back(lab, traffic)
        assert traffic.lost() == 0
