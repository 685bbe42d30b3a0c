# SPDX-License-Identifier: Apache-2.0
"""Traffic policies and source ranges with real clients: whose endpoints answer, and who is let in.

``near`` has pods on both nodes. ``far`` has one pod, on node2. Both have the traffic policies Local.
``limited`` has a load balancer's address for the first of the client's addresses, and for nobody else.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path

import pytest

from lb.lab.addressing import CLIENTS, node_address
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import dumped, eventually

NODES = ("node1", "node2")
REQUESTS = 12  # with 2 of 4 pods here, the odds of being led here every time by chance are 1 in 4096
PORTS = {"near": 30301, "far": 30302}
CLUSTER_IPS = {"near": "10.66.3.1", "far": "10.66.3.2"}
TIMED_OUT = 28  # curl's exit code

MANIFEST = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: web}
spec:
  replicas: 4
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec: {containers: [{ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: lonely, labels: {app: lonely}}
spec: {nodeName: node2, containers: [{ports: [{name: http, containerPort: 8080}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: near}
spec:
  type: NodePort
  clusterIP: 10.66.3.1
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080, nodePort: 30301}]
---
apiVersion: v1
kind: Service
metadata: {name: far}
spec:
  type: NodePort
  clusterIP: 10.66.3.2
  internalTrafficPolicy: Local
  externalTrafficPolicy: Local
  selector: {app: lonely}
  ports: [{port: 80, targetPort: 8080, nodePort: 30302}]
---
apiVersion: v1
kind: Service
metadata: {name: limited}
spec:
  type: LoadBalancer
  clusterIP: 10.66.3.3
  loadBalancerSourceRanges: [LET_IN/32]
  selector: {app: lonely}
  ports: [{port: 80, targetPort: 8080, nodePort: 30303}]
status:
  loadBalancer: {ingress: [{ip: 203.0.113.30}]}
"""


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifests: Path = tmp_path_factory.mktemp("policies")
    (manifests / "all.yaml").write_text(MANIFEST.replace("LET_IN", str(CLIENTS[0])))
    lab = make_lab(manifests=manifests)
    for node in NODES:
        eventually(lambda node=node: complete(lab, node), f"{node} knows all endpoints")  # type: ignore[misc]
    yield lab
    remove(lab.spec.id)


def complete(lab: Lab, node: str) -> bool:
    vips = dumped(lab, node, "vips")["vips"]
    found = {vip["service"]: len(vip["backends"]) for vip in vips if vip["kind"] == "nodePort"}
    return found == {"default/near": 4, "default/far": 1, "default/limited": 1}


def pods(lab: Lab, node: str, owner: str = "web") -> set[str]:
    return {str(p["name"]) for p in lab.pods() if p["node"] == node and str(p["name"]).startswith(owner)}


def ask(lab: Lab, place: str, host: str, port: int, path: str = "/hostname") -> str:
    done = lab.run(place, ["curl", "-sS", "-m", "5", f"http://{host}:{port}{path}"])
    assert done.returncode == 0, done.stderr
    return str(done.stdout).strip()


def no_answer(
    lab: Lab, place: str, host: str, port: int, nodes: Collection[str], reason: str, *curl: str
) -> None:
    """A connection that one of these nodes drops, and counts."""
    before = sum(drops(lab, node, reason) for node in nodes)
    argv = ["curl", "-s", "-m", "1", *curl, f"http://{host}:{port}/"]
    assert lab.run(place, argv).returncode == TIMED_OUT
    assert sum(drops(lab, node, reason) for node in nodes) > before


def drops(lab: Lab, node: str, reason: str) -> int:
    counters = dumped(lab, node, "counters")["counters"]
    return sum(int(row["packets"]) for row in counters if row["reason"] == reason)


@pytest.mark.parametrize("node", NODES)
def test_internal_policy_local_leads_to_pods_of_the_clients_node(lab: Lab, node: str) -> None:
    here = pods(lab, node)
    client = min(here)
    answers = {ask(lab, client, CLUSTER_IPS["near"], 80) for _ in range(REQUESTS)}
    assert answers <= here


def test_internal_policy_local_without_a_pod_here_is_no_answer(lab: Lab) -> None:
    no_answer(lab, min(pods(lab, "node1")), CLUSTER_IPS["far"], 80, ["node1"], "NO_LOCAL_ENDPOINT")
    assert ask(lab, min(pods(lab, "node2")), CLUSTER_IPS["far"], 80) == "lonely"


@pytest.mark.parametrize("node", NODES)
def test_external_policy_local_leads_to_pods_of_the_node_and_keeps_the_source_address(
    lab: Lab, node: str
) -> None:
    address = str(node_address(node))
    answers = {ask(lab, "client", address, PORTS["near"]) for _ in range(REQUESTS)}
    assert answers <= pods(lab, node)
    assert ask(lab, "client", address, PORTS["near"], "/clientip") == str(CLIENTS[0])


def test_external_policy_local_without_a_pod_here_is_no_answer(lab: Lab) -> None:
    no_answer(lab, "client", str(node_address("node1")), PORTS["far"], ["node1"], "NO_LOCAL_ENDPOINT")
    assert ask(lab, "client", str(node_address("node2")), PORTS["far"]) == "lonely"


def test_external_policy_local_does_not_bind_the_nodes_own_pods(lab: Lab) -> None:
    assert ask(lab, min(pods(lab, "node1")), str(node_address("node1")), PORTS["far"]) == "lonely"


BALANCED = "203.0.113.30"


def test_source_ranges_let_one_client_in_and_no_other(lab: Lab) -> None:
    assert ask(lab, "client", BALANCED, 80) == "lonely"
    other = ["--interface", str(CLIENTS[1])]
    no_answer(lab, "client", BALANCED, 80, NODES, "SOURCE_NOT_ALLOWED", *other)
    no_answer(lab, min(pods(lab, "node1")), BALANCED, 80, ["node1"], "SOURCE_NOT_ALLOWED")


def test_source_ranges_leave_the_node_port_and_the_cluster_ip_to_all(lab: Lab) -> None:
    done = lab.run(
        "client",
        [
            "curl",
            "-sS",
            "-m",
            "5",
            "--interface",
            str(CLIENTS[1]),
            f"http://{node_address('node1')}:30303/hostname",
        ],
    )
    assert done.stdout.strip() == "lonely", done.stderr
    assert ask(lab, min(pods(lab, "node1")), "10.66.3.3", 80) == "lonely"
