# SPDX-License-Identifier: Apache-2.0
"""Services whose clients are processes of a node: their manifests, and what is counted of them."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator

from lb.lab.addressing import CLIENTS, node_address
from lb.lab.lab import Lab
from lb.lab.processes import environment
from tests.netns.waiting import dumped, eventually

NODE = "node1"
PORT = 80
FAMILIES = ("ipv4", "ipv6", "mapped")
AT_SOCKETS = ("tcp", "udp")
PODS = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      hostNetwork: {host}
      containers:
      - ports:
        - {{name: http, containerPort: 8080}}
        - {{name: echo, containerPort: 9000, protocol: UDP}}
---
"""
POD = """\
apiVersion: v1
kind: Pod
metadata: {{name: {name}, labels: {{app: {app}}}}}
spec:
  nodeName: {node}
  containers:
  - ports:
    - {{name: http, containerPort: 8080}}
    - {{name: echo, containerPort: 9000, protocol: UDP}}
---
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec:
  type: LoadBalancer
  ipFamilyPolicy: RequireDualStack
  clusterIP: 10.66.5.{number}
  clusterIPs: [10.66.5.{number}, "fd00:66::5:{number}"]
  selector: {{app: {app}}}
  ports:
  - {{name: http, port: 80, targetPort: http, nodePort: {node_port}}}
  - {{name: echo, port: 80, targetPort: echo, nodePort: {node_port}, protocol: UDP}}
{more}
status:
  loadBalancer: {{ingress: [{{ip: 203.0.113.{number}}}, {{ip: "2001:db8:203:4:5:6:7:{number}"}}]}}
---
"""
POOLED_SERVICE = SERVICE.replace("2001:db8:203:4:5:6:7:", "2001:db8:203::")
"""The same with an IPv6 address of the lab's pool: its client has a route to no other."""
SERVICES = {
    "web": (51, "web", ""),
    "sticky": (52, "web", "  sessionAffinity: ClientIP"),
    "host": (53, "host", ""),
    "none": (54, "nobody", ""),
    "limited": (55, "web", f"  loadBalancerSourceRanges: [{CLIENTS[0]}/32, 2001:db8:ff::/48]"),
    "admitted": (
        58,
        "web",
        f"  loadBalancerSourceRanges: [{node_address(NODE)}/32, {node_address(NODE, 6)}/128]",
    ),
    "away": (56, "there", "  internalTrafficPolicy: Local"),
    "pair": (57, "pair", ""),
    "alone": (59, "there", ""),
}


def address(service: str, kind: str, family: str) -> tuple[str, int]:
    """Return where a Service is for a socket of a family."""
    number = SERVICES[service][0]
    version = 6 if family == "ipv6" else 4
    port = PORT
    if kind == "clusterIP":
        host = {4: f"10.66.5.{number}", 6: f"fd00:66::5:{number}"}[version]
    elif kind == "NodePort":
        host, port = str(node_address(NODE, version)), 30500 + number
    else:
        host = {4: f"203.0.113.{number}", 6: f"2001:db8:203:4:5:6:7:{number}"}[version]
    return (f"::ffff:{host}" if family == "mapped" else host), port


def both_vips_and_backend(lab: Lab, family: str) -> list[tuple[str, int, int]]:
    """Return the two VIPs of the Service alone, and its one backend: address, TCP port and UDP port."""
    (pod,) = (pod for pod in lab.pods() if pod["name"] == "there")
    own = next(str(a) for a in pod["addresses"] if (":" in str(a)) == (family == "ipv6"))
    own = f"::ffff:{own}" if family == "mapped" else own
    vips = [address("alone", kind, family) for kind in ("clusterIP", "load balancer")]
    return [*((host, port, port) for host, port in vips), (own, 8080, 9000)]


def offered(lab: Lab, service: str, count: int) -> bool:
    vips = dumped(lab, NODE, "vips", "--service", f"default/{service}")["vips"]
    return bool(vips) and all(len(vip["backends"]) == count for vip in vips)


def pods(lab: Lab, app: str) -> set[str]:
    return {str(pod["name"]) for pod in lab.pods() if str(pod["name"]).startswith(app)}


def counted(lab: Lab, reason: str, hooks: str = "") -> int:
    rows = dumped(lab, NODE, "counters")["counters"]
    return sum(row["packets"] for row in rows if row["reason"] == reason and row["hook"].startswith(hooks))


def flows(lab: Lab, service: str, protocol: str) -> int:
    found = dumped(lab, NODE, "flows", "--service", f"default/{service}")["flows"]
    return len([flow for flow in found if flow["protocol"] == protocol])


def let_ready(lab: Lab, *names: str) -> None:
    """Make these pods of ``pair`` the only ready ones, and wait until node1's maps say so.

    A backend that has gone keeps its slot, and with it its flows, until no packet can still choose it.
    """
    for name in ("pair-1", "pair-2"):
        lab.ask_kubelet("ready" if name in names else "unready", pod=name)
    wanted = {a for pod in lab.pods() if pod["name"] in names for a in pod["addresses"]}

    def done() -> bool:
        found = dumped(lab, NODE, "--service", "default/pair")
        offered = {b["address"] for vip in found["vips"] for b in vip["backends"] if b["state"] == "active"}
        return offered == wanted == {backend["address"] for backend in found["backends"]}

    eventually(done, f"{names} alone")


@contextlib.contextmanager
def agent(lab: Lab, *flags: str) -> Iterator[None]:
    """Run node1's agent with other flags meanwhile."""
    lab.stop_agent(NODE)
    ready = lab.store.ready_file(NODE)
    ready.unlink(missing_ok=True)
    argv = lab.command(NODE, [*lab.agent_command(NODE), *flags])
    with open(lab.store.log(NODE), "ab") as log:
        process = subprocess.Popen(argv, env=environment(), stdin=subprocess.DEVNULL, stderr=log)
    try:
        eventually(lambda: ready.exists() or process.poll() is not None, "the agent is ready")
        assert process.poll() is None, "the agent ended"
        yield
    finally:
        process.terminate()
        process.wait()
        lab.start_agent(NODE)
        lab.wait_agent(NODE)
