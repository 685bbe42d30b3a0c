# SPDX-License-Identifier: Apache-2.0
"""What a load balancer outside learns of real agents: health-check ports of Services, /healthz and /livez.

``web`` is a Service of type LoadBalancer with the traffic policy Local; its one pod is on node2.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from lb.lab.addressing import node_address
from lb.lab.lab import Lab
from lb.served.http import show
from tests.netns.conftest import MakeLab, remove
from tests.netns.waiting import eventually

NODES = ("node1", "node2")
PORT, OTHER_PORT, TAKEN_PORT = 30700, 30701, 30702
HEALTHZ = 10256

POD = """\
apiVersion: v1
kind: Pod
metadata: {name: lonely, labels: {app: web}}
spec: {nodeName: node2, containers: [{ports: [{name: http, containerPort: 8080}]}]}
"""
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: NAME}
spec:
  type: LoadBalancer
  ipFamilyPolicy: PreferDualStack
  externalTrafficPolicy: Local
  healthCheckNodePort: PORT
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
"""
# Listens on a port of every address until its stdin ends.
TAKER = """\
import socket, sys
taken = socket.create_server(("::", int(sys.argv[1])), family=socket.AF_INET6, dualstack_ipv6=True)
print("taken", flush=True)
sys.stdin.read()
"""


class Answer(NamedTuple):
    """What curl got: status 0 when nobody listens."""

    status: int
    told: dict[str, Any]
    headers: dict[str, str]


def ask(lab: Lab, node: str, port: int, path: str = "/", version: int = 4) -> Answer:
    url = f"http://{show((str(node_address(node, version)), port))}{path}"
    done = lab.run("client", ["curl", "-sS", "-m", "5", "-i", url])
    # curl's codes: refused; reset, as a connection is that waits while the port is closed.
    if done.returncode in (7, 56):
        return Answer(0, {}, {})
    assert done.returncode == 0, done.stderr
    head, _, body = done.stdout.replace("\r\n", "\n").partition("\n\n")
    first, *lines = head.split("\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
    return Answer(int(first.split(" ")[1]), json.loads(body), headers)


def write(lab: Lab, name: str, port: int) -> Path:
    """Write, or write anew, the manifest of a Service like ``web``."""
    path = Path(lab.spec.manifests) / f"{name}.yaml"
    fresh = path.with_suffix(".new")
    fresh.write_text(SERVICE.replace("NAME", name).replace("PORT", str(port)))
    fresh.rename(path)
    return path


def is_served(lab: Lab, port: int, *, node: str = "node2", status: int = 200) -> None:
    eventually(lambda: ask(lab, node, port).status == status, f"port {port} of {node} answers {status}")


def status_of(lab: Lab, node: str, output: str) -> str:
    argv = [sys.executable, "-m", "lb", "status", "--instance", lab.spec.instance(node), "-o", output]
    done = lab.run(node, argv)
    assert not done.stderr
    return " ".join(done.stdout.split()) if output == "table" else str(done.stdout)


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    manifests: Path = tmp_path_factory.mktemp("health")
    (manifests / "pod.yaml").write_text(POD)
    (manifests / "web.yaml").write_text(SERVICE.replace("NAME", "web").replace("PORT", str(PORT)))
    lab = make_lab(manifests=manifests)
    is_served(lab, PORT)
    yield lab
    remove(lab.spec.id)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize(("node", "count"), [("node1", 0), ("node2", 1)])
def test_health_check_node_port_tells_of_local_endpoints(
    lab: Lab, node: str, count: int, version: int
) -> None:
    answer = ask(lab, node, PORT, version=version)
    assert answer.status == (200 if count else 503)
    assert answer.told == {
        "service": {"namespace": "default", "name": "web"},
        "localEndpoints": count,
        "serviceProxyHealthy": True,
    }
    assert answer.headers["x-load-balancing-endpoint-weight"] == str(count)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_health_check_node_port_follows_readiness(lab: Lab) -> None:
    for word, status in (("unready", 503), ("ready", 200)):
        lab.ask_kubelet(word, pod="lonely")
        is_served(lab, PORT, status=status)


def test_health_check_node_port_only_while_the_service_asks_for_it(lab: Lab) -> None:
    path = write(lab, "late", OTHER_PORT)
    is_served(lab, OTHER_PORT)
    cluster = path.read_text().replace("  externalTrafficPolicy: Local\n", "")
    path.write_text(cluster.replace(f"  healthCheckNodePort: {OTHER_PORT}\n", ""))
    is_served(lab, OTHER_PORT, status=0)
    write(lab, "late", OTHER_PORT)
    is_served(lab, OTHER_PORT)
    path.unlink()
    is_served(lab, OTHER_PORT, status=0)
    assert ask(lab, "node2", PORT).status == 200


def test_health_check_node_port_changes_its_number(lab: Lab) -> None:
    write(lab, "web", OTHER_PORT)
    is_served(lab, OTHER_PORT)
    assert ask(lab, "node2", PORT).status == 0
    write(lab, "web", PORT)
    is_served(lab, PORT)
    assert ask(lab, "node2", OTHER_PORT).status == 0


def test_health_check_node_port_that_another_process_has_is_named_and_tried_again(lab: Lab) -> None:
    argv = lab.command("node2", [sys.executable, "-I", "-S", "-c", TAKER, str(TAKEN_PORT)])
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as taker:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "taken\n"
        path = write(lab, "unlucky", TAKEN_PORT)
        where = show((str(node_address("node2")), TAKEN_PORT))
        problem = (
            f"service default/unlucky: spec.healthCheckNodePort {TAKEN_PORT}:"
            f" cannot listen on {where}: Address already in use"
        )
        eventually(lambda: problem in status_of(lab, "node2", "table"), "status tells of it")
        is_served(lab, TAKEN_PORT, node="node1", status=503)
        taker.communicate()
    eventually(lambda: ask(lab, "node2", TAKEN_PORT).status == 200, "it is tried again", seconds=30)
    assert lab.store.log("node2").read_text().count(problem) == 1
    eventually(lambda: problem not in status_of(lab, "node2", "table"), "status tells that it is over")
    path.unlink()
    is_served(lab, TAKEN_PORT, status=0)


def test_health_check_node_port_and_node_health_are_in_the_status(lab: Lab) -> None:
    text = status_of(lab, "node2", "table")
    assert f"healthz and livez: 0.0.0.0:{HEALTHZ} " in text
    sockets = [show((str(node_address("node2", version)), PORT)) for version in (4, 6)]
    eventually(
        lambda: (
            f"healthCheckNodePort {PORT} of default/web: {', '.join(sockets)}; local endpoints: 1 "
            in status_of(lab, "node2", "table")
        ),
        "status shows the port",
    )
    shown = json.loads(status_of(lab, "node2", "json"))
    assert shown["healthz"] == f"0.0.0.0:{HEALTHZ}"
    assert {
        "service": "default/web",
        "port": PORT,
        "local_endpoints": 1,
        "addresses": sockets,
        "errors": [],
    } in shown["health_check_node_ports"]


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("path", ["/healthz", "/livez"])
def test_node_health_all_is_well(lab: Lab, path: str, version: int) -> None:
    for node in NODES:
        answer = ask(lab, node, HEALTHZ, path, version)
        assert (answer.status, answer.told["healthy"]) == (200, True)
        assert answer.told["lastUpdated"] == answer.told["currentTime"]


@pytest.mark.parametrize(
    "mark",
    [
        "metadata: {name: node1, deletionTimestamp: 2026-01-01T00:00:00Z}\n",
        "metadata: {name: node1}\n"
        "spec: {taints: [{key: ToBeDeletedByClusterAutoscaler, effect: NoSchedule}]}\n",
    ],
    ids=["deletionTimestamp", "taint"],
)
def test_node_health_turns_503_while_the_node_is_being_deleted(lab: Lab, mark: str) -> None:
    def healthz(status: int) -> bool:
        answer = ask(lab, "node1", HEALTHZ, "/healthz")
        return answer.status == status and answer.told["nodeEligible"] is (status == 200)

    path = lab.store.cluster / "node.node1.yaml"
    before = path.read_text()
    lab.store.write_object(path.name, f"apiVersion: v1\nkind: Node\n{mark}")
    eventually(lambda: healthz(503), "healthz tells of the deletion")
    assert ask(lab, "node1", HEALTHZ, "/livez").status == 200
    assert ask(lab, "node2", HEALTHZ, "/healthz").status == 200
    answer = ask(lab, "node1", PORT)
    assert answer.told["serviceProxyHealthy"] is True, "its pods decide, not the node's future"
    lab.store.write_object(path.name, before)
    eventually(lambda: healthz(200), "the node stays")


def test_node_health_of_an_agent_that_is_gone_is_no_answer(lab: Lab) -> None:
    lab.stop_agent("node2", signal.SIGKILL)
    for port in (HEALTHZ, PORT):
        assert ask(lab, "node2", port).status == 0
    lab.start_agent("node2")
    lab.wait_agent("node2")
    assert ask(lab, "node2", PORT).status == 200, "open before the agent calls itself ready"
    assert ask(lab, "node2", HEALTHZ, "/healthz").status == 200
