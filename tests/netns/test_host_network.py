# SPDX-License-Identifier: Apache-2.0
"""Pods with the node's network, as backends and as clients, in both address families.

The Services ``local`` and ``remote`` lead to the pod with the network of node1 and of node2, ``near`` and
``away`` to pods with a network of their own on these nodes. Packets from outside enter at node1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.lab import cgroups
from lb.lab.addressing import Overlay, clients, node_address
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab, remove
from tests.netns.pinned import KINDS, PODS, PROTOCOLS, Cluster, Target, check_answers, own, serve
from tests.netns.test_lab_life import left_of
from tests.netns.waiting import dumped, eventually

HOST_PODS = """\
---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: host}
spec:
  replicas: 2
  selector: {matchLabels: {app: host}}
  template:
    metadata: {labels: {app: host}}
    spec:
      hostNetwork: true
      containers:
      - ports:
        - {name: http, containerPort: 8080}
        - {name: echo, containerPort: 9000, protocol: UDP}
        env:
        - {name: WHERE, valueFrom: {fieldRef: {fieldPath: status.podIPs}}}
---
apiVersion: v1
kind: Service
metadata: {name: selected}
spec:
  ipFamilyPolicy: RequireDualStack
  selector: {app: host}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: v1
kind: Service
metadata: {name: own-node}
spec:
  internalTrafficPolicy: Local
  ipFamilyPolicy: RequireDualStack
  clusterIP: 10.66.1.9
  clusterIPs: [10.66.1.9, "fd00:66::9"]
  selector: {app: host}
  ports: [{name: http, port: 80, targetPort: http}]
"""
OWN_NODE = {4: "10.66.1.9", 6: "fd00:66::9"}
WAYS: dict[str, dict[str, Any]] = {"routed": {}, "vxlan": {"overlay": Overlay.VXLAN}}
NODES = ("node1", "node2")
REQUESTS = 12  # if both nodes counted, the odds of meeting this one alone would be 1 in 4096


@pytest.fixture(scope="module", params=list(WAYS))
def cluster(
    request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Cluster]:
    manifests: Path = tmp_path_factory.mktemp("host-network")
    (manifests / "pods.yaml").write_text(PODS + HOST_PODS)
    lab = make_lab(manifests=manifests, **WAYS[request.param])
    chosen = (("local", "host", "node1"), ("remote", "host", "node2"), ("near", "web", "node1"))
    targets = {
        name: Target(pod_of(lab, app, node), number)
        for number, (name, app, node) in enumerate((*chosen, ("away", "web", "node2")), start=1)
    }
    bystanders = {node: pod_of(lab, "web", node, 1) for node in NODES}
    serve(lab, targets, str(bystanders["node2"]["name"]))
    yield Cluster(lab, targets, bystanders["node1"])
    remove(lab.spec.id)
    assert left_of(lab.spec.id) == []


def pod_of(lab: Lab, app: str, node: str, which: int = 0) -> dict[str, Any]:
    found = [pod for pod in lab.pods() if pod["node"] == node and str(pod["name"]).startswith(app)]
    return sorted(found, key=lambda pod: str(pod["name"]))[which]


def node_of(lab: Lab, node: str) -> list[str]:
    return [str(address) for address in lab.spec.node_addresses(node)]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", ["local", "remote"])
@pytest.mark.parametrize("client", ["outside", "pod"])
def test_host_network_a_backend_answers(cluster: Cluster, client: str, where: str, version: int) -> None:
    check_answers(cluster, client, where, version)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("where", ["local", "remote"])
def test_host_network_a_backend_answers_pods_of_the_other_node(
    cluster: Cluster, where: str, version: int
) -> None:
    check(cluster, str(pod_of(cluster.lab, "web", "node2")["name"]), where, version, KINDS)


@pytest.mark.parametrize("version", [4, 6])
def test_host_network_a_backend_sees_whom_a_pod_would(cluster: Cluster, version: int) -> None:
    pod = cluster.bystander
    rows = {
        ("client", "local"): str(clients(version)[0]),
        ("client", "remote"): str(node_address("node1", version)),
        (str(pod["name"]), "local"): own(pod, version),
        (str(pod["name"]), "remote"): own(pod, version),
    }
    for (place, where), source in rows.items():
        questions = [("tcp", *cluster.targets[where].address(kind, "tcp", version)) for kind in KINDS]
        assert cluster.ask(place, questions, "/clientip") == [source] * len(KINDS), (place, where)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(
    ("node", "where"),
    [(node, where) for node in NODES for where in ("near", "away", "local", "remote")],
)
def test_host_network_a_client_gets_answers(cluster: Cluster, node: str, where: str, version: int) -> None:
    """Also of itself, a process of the same node, and at a NodePort of its own node."""
    check(cluster, str(pod_of(cluster.lab, "host", node)["name"]), where, version, KINDS)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("node", NODES)
@pytest.mark.parametrize("client", ["host", "web"])
def test_host_network_internal_policy_local(cluster: Cluster, client: str, node: str, version: int) -> None:
    place, here = (str(pod_of(cluster.lab, app, node)["name"]) for app in (client, "host"))
    answers = cluster.ask(place, [("tcp", OWN_NODE[version], 80)] * REQUESTS)
    assert answers == [here] * REQUESTS


def check(cluster: Cluster, place: str, where: str, version: int, kinds: tuple[str, ...]) -> None:
    target = cluster.targets[where]
    rows = [(kind, protocol) for kind in kinds for protocol in PROTOCOLS]
    questions = [(protocol, *target.address(kind, protocol, version)) for kind, protocol in rows]
    answers = cluster.ask(place, questions)
    assert dict(zip(rows, answers, strict=True)) == dict.fromkeys(rows, str(target.pod["name"]))


def test_host_network_endpoints_have_the_addresses_of_their_nodes(cluster: Cluster) -> None:
    vips = dumped(cluster.lab, "node1", "vips", "--service", "default/selected")["vips"]
    found = {
        (backend["address"], backend["port"], backend["node"]) for vip in vips for backend in vip["backends"]
    }
    assert found == {(address, 8080, node) for node in NODES for address in node_of(cluster.lab, node)}


@pytest.mark.parametrize("node", NODES)
def test_host_network_a_pod_has_what_the_node_has(cluster: Cluster, node: str) -> None:
    lab, pod = cluster.lab, pod_of(cluster.lab, "host", node)
    assert pod["addresses"] == node_of(lab, node)
    seen = lab.run(
        str(pod["name"]), ["sh", "-c", "readlink /proc/self/ns/net; uname -n; echo $HOSTNAME $WHERE"]
    )
    there = lab.run(node, ["readlink", "/proc/self/ns/net"])
    assert seen.stdout == f"{there.stdout}{node}\n{node} {','.join(node_of(lab, node))}\n", seen.stderr
    process = lab.find_pod(str(pod["name"])).process
    assert process is not None
    assert process.pid in cgroups.pids(lab.cgroup(node))
    assert f"SELECTED_SERVICE_HOST={selected(lab)}" in environ(process.pid)


def selected(lab: Lab) -> str:
    vips = dumped(lab, "node1", "vips", "--service", "default/selected")["vips"]
    return next(str(vip["address"]) for vip in vips if ":" not in vip["address"])


def environ(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/environ").read_text().split("\0")


def test_host_network_a_killed_pod_takes_nothing_of_the_node_with_it(cluster: Cluster) -> None:
    """Last of its lab: the Services of one backend lose it."""
    lab, pod = cluster.lab, pod_of(cluster.lab, "host", "node1")
    agent, before = lab.store.process("node1"), lab.find_pod(str(pod["name"]))
    assert agent is not None
    assert before.process is not None
    [name] = lab.ask_kubelet("kill", pod=str(pod["name"]))["replaced_by"]
    eventually(lambda: any(each["name"] == name and each["ready"] for each in lab.pods()), f"{name} runs")
    assert agent.alive()
    assert not before.process.alive()
    assert pod_of(lab, "host", "node1")["addresses"] == node_of(lab, "node1")
    links = json.loads(lab.run("node1", ["ip", "-j", "link"]).stdout)
    assert "eth0" in {link["ifname"] for link in links}
    groups = {path.name for path in lab.cgroup("node1").iterdir() if path.is_dir()}
    assert f"{lab.spec.id}-pod-{pod['name']}" not in groups
