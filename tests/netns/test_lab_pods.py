# SPDX-License-Identifier: Apache-2.0
"""The lab as kubelet: readiness, death and replacement of pods, and manifests that change."""

import io
import json
import os
import signal
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.cli import main
from lb.errors import LabError
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab

REPLICASET = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata: {{name: {name}}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{app: {name}}}}}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
      - ports: [{{name: http, containerPort: 8080}}]
{probe}"""
EXEC_PROBE = (
    "        readinessProbe: {exec: {command: [ls, /var/ready]}, periodSeconds: 1, failureThreshold: 1}\n"
)
HTTP_PROBE = "        readinessProbe: {httpGet: {path: /ready, port: http}, periodSeconds: 3600}\n"
BARE = """\
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: other}
spec:
  nodeName: node2
  containers: [{ports: [{containerPort: 6379}]}]
"""


@pytest.fixture(scope="module")
def manifests(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("pods")
    (directory / "http.yaml").write_text(REPLICASET.format(name="http", replicas=2, probe=HTTP_PROBE))
    (directory / "plain.yaml").write_text(REPLICASET.format(name="plain", replicas=1, probe=""))
    (directory / "alone.yaml").write_text(BARE)
    return directory


@pytest.fixture(scope="module")
def kube(make_lab: MakeLab, manifests: Path) -> Lab:
    """A lab without agents whose pods have a probe of each kind, or none."""
    return make_lab(manifests=manifests, agents=False)


def pods_of(lab: Lab, owner: str) -> list[dict[str, Any]]:
    return [pod for pod in lab.pods() if pod["name"].startswith(owner) and pod["phase"] != "Terminating"]


def has_pods(lab: Lab, owner: str, count: int) -> bool:
    return len(pods_of(lab, owner)) == count


def written(lab: Lab, pod: dict[str, Any]) -> dict[str, Any]:
    """Return the pod's object as the agents read it; empty when it is gone."""
    path = lab.store.cluster / f"pod.{pod['namespace']}.{pod['name']}.yaml"
    return dict(yaml.safe_load(path.read_text())) if path.exists() else {}


def says_ready(lab: Lab, pod: dict[str, Any]) -> bool:
    conditions = {entry["type"]: entry["status"] for entry in written(lab, pod)["status"]["conditions"]}
    return str(conditions["Ready"]) == "True"


def eventually(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


def test_objects_are_what_kubernetes_would_say(kube: Lab) -> None:
    [pod] = pods_of(kube, "plain")
    found = written(kube, pod)
    assert (found["apiVersion"], found["kind"]) == ("v1", "Pod")
    assert found["metadata"]["labels"] == {"app": "plain"}
    assert found["spec"]["nodeName"] == pod["node"]
    ports = found["spec"]["containers"][0]["ports"]
    assert ports == [{"containerPort": 8080, "protocol": "TCP", "name": "http"}]
    assert (found["status"]["podIP"], found["status"]["phase"]) == (pod["address"], "Running")
    node = yaml.safe_load((kube.store.cluster / "node.node1.yaml").read_text())
    assert node["status"]["addresses"][0] == {"type": "InternalIP", "address": "192.168.77.11"}


def test_pods_spread_over_the_nodes_and_named_nodes_are_obeyed(kube: Lab) -> None:
    assert {pod["node"] for pod in pods_of(kube, "http")} == {"node1", "node2"}
    [alone] = pods_of(kube, "alone")
    assert (alone["node"], alone["namespace"], alone["ready"]) == ("node2", "other", True)


@pytest.mark.parametrize("owner", ["http", "plain", "alone"])
def test_unready_and_ready_are_written_when_the_command_returns(kube: Lab, owner: str) -> None:
    pod = pods_of(kube, owner)[0]
    name = f"{pod['namespace']}/{pod['name']}"
    for _ in range(2):
        kube.ask_kubelet("unready", pod=name)
        assert not says_ready(kube, pod)
        kube.ask_kubelet("ready", pod=name)
        assert says_ready(kube, pod)


def test_a_killed_pod_is_replaced_by_another(kube: Lab) -> None:
    pod = pods_of(kube, "http")[0]
    [successor] = kube.ask_kubelet("kill", pod=pod["name"])["replaced_by"]
    assert successor != pod["name"]
    assert written(kube, pod) == {}
    assert pod["name"] not in kube.run("node1", ["ip", "netns", "list"]).stdout
    assert kube.wait_ready() == []
    [fresh] = [each for each in pods_of(kube, "http") if each["name"] == successor]
    assert (fresh["node"], fresh["address"] != pod["address"]) == (pod["node"], True)


def test_a_pod_whose_process_dies_is_restarted_in_place(kube: Lab) -> None:
    pod = pods_of(kube, "plain")[0]
    process = kube.find_pod(pod["name"]).process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)
    eventually(lambda: pods_of(kube, "plain")[0]["restarts"] == 1, "the death is noticed")
    assert kube.wait_ready() == []
    [again] = pods_of(kube, "plain")
    assert (again["name"], again["address"], says_ready(kube, again)) == (pod["name"], pod["address"], True)


def test_a_bare_pod_is_not_replaced(kube: Lab) -> None:
    [alone] = pods_of(kube, "alone")
    assert kube.ask_kubelet("kill", pod="alone") == {"replaced_by": []}
    assert (pods_of(kube, "alone"), written(kube, alone)) == ([], {})


def test_an_exec_probe_sees_the_pods_own_files(kube: Lab, manifests: Path) -> None:
    path = manifests / "exec.yaml"
    path.write_text(REPLICASET.format(name="exec", replicas=1, probe=EXEC_PROBE))
    eventually(lambda: any("readiness" in pod["message"] for pod in pods_of(kube, "exec")), "the probe fails")
    [pod] = pods_of(kube, "exec")
    assert "/var/ready" in pod["message"]
    assert not says_ready(kube, pod)
    assert kube.run(pod["name"], ["touch", "/var/ready"]).returncode == 0
    eventually(lambda: says_ready(kube, pod), "the probe succeeds")
    kube.ask_kubelet("unready", pod=pod["name"])
    assert not says_ready(kube, pod)
    kube.ask_kubelet("ready", pod=pod["name"])
    assert says_ready(kube, pod)
    path.unlink()
    eventually(lambda: pods_of(kube, "exec") == [], "the pod of a manifest that is gone ends")


def test_changes_of_manifests_are_followed(kube: Lab, manifests: Path) -> None:
    path = manifests / "scaled.yaml"
    for replicas in (1, 3, 2, 0):
        path.write_text(REPLICASET.format(name="scaled", replicas=replicas, probe=""))
        eventually(partial(has_pods, kube, "scaled", replicas), f"{replicas} pods")
    path.write_text("kind: [")
    eventually(lambda: bool(kube.ask_kubelet("list")["errors"]), "the broken file is reported")
    assert kube.ask_kubelet("list")["errors"][0].startswith(str(path))
    path.unlink()
    eventually(lambda: not kube.ask_kubelet("list")["errors"], "the error goes with the file")


def test_a_stopped_pod_is_terminating_until_its_connections_end(kube: Lab, manifests: Path) -> None:
    path = manifests / "drained.yaml"
    path.write_text(REPLICASET.format(name="drained", replicas=1, probe=""))
    eventually(lambda: any(pod["ready"] for pod in pods_of(kube, "drained")), "the pod is ready")
    [pod] = pods_of(kube, "drained")
    path.unlink()
    eventually(
        lambda: "deletionTimestamp" in written(kube, pod).get("metadata", {}), "the pod is terminating"
    )
    assert (
        kube.run("client", ["curl", "-s", "-m", "5", f"http://{pod['address']}:8080/hostname"]).returncode
        == 0
    )
    eventually(lambda: written(kube, pod) == {}, "the pod ends")


def command(lab: Lab, *words: str) -> tuple[int, str, str]:
    """Run ``lbctl lab WORD --id LAB …`` in this process."""
    out, err = io.StringIO(), io.StringIO()
    code = main(["lab", words[0], "--id", lab.spec.id, *words[1:]], out=out, err=err)
    return code, out.getvalue(), err.getvalue()


def test_exec_gives_output_and_exit_code(kube: Lab) -> None:
    [pod] = pods_of(kube, "plain")
    assert command(kube, "exec", pod["name"], "--", "hostname") == (0, f"{pod['name']}\n", "")
    assert command(kube, "exec", "client", "--", "sh", "-c", "echo oops >&2; exit 7") == (7, "", "oops\n")
    assert command(kube, "exec", "node1", "--", "sh", "-c", "kill -9 $$")[0] == 137
    code, _, err = command(kube, "exec", "nowhere", "--", "true")
    assert (code, "no place is called nowhere; there are client, node1, node2" in err) == (1, True)


def test_pod_commands_say_what_they_did(kube: Lab) -> None:
    [pod] = pods_of(kube, "plain")
    assert command(kube, "pod", "unready", pod["name"])[1] == f"pod {pod['name']} is not ready\n"
    assert command(kube, "pod", "ready", pod["name"])[1] == f"pod {pod['name']} is ready\n"
    code, _, err = command(kube, "pod", "kill", "nobody")
    assert (code, err) == (1, "lbctl: no pod is called nobody\n")


def test_status_lists_everything(kube: Lab) -> None:
    code, text, _ = command(kube, "status", "-o", "json")
    status = json.loads(text)
    assert (code, status["id"], status["kubelet"]["running"]) == (0, kube.spec.id, True)
    assert [node["name"] for node in status["nodes"]] == ["node1", "node2"]
    assert {pod["name"] for pod in status["pods"]} == {pod["name"] for pod in kube.pods()}
    table = command(kube, "status")[1]
    for pod in kube.pods():
        assert pod["address"] in table


def test_agents_that_do_not_run_cannot_be_stopped(kube: Lab) -> None:
    with pytest.raises(LabError, match="the agent of node1 does not run"):
        kube.stop_agent("node1")
    with pytest.raises(LabError, match="has no node node9, only node1, node2"):
        kube.start_agent("node9")
