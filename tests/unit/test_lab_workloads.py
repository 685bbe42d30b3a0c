# SPDX-License-Identifier: Apache-2.0
import random
from pathlib import Path

import pytest

from lb.lab.workloads import SUFFIX_ALPHABET, Workload, pod_name, read_file
from lb.model import ContainerPort, ObjectKey, Protocol

REPLICASET = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: kubia
spec:
  replicas: 3
  selector:
    matchLabels: {app: kubia}
  template:
    metadata:
      labels: {app: kubia}
    spec:
      containers:
      - name: main
        ports:
        - {name: http, containerPort: 8080}
        - {name: echo, containerPort: 9000, protocol: UDP}
        readinessProbe:
          tcpSocket: {port: 8081}
"""
POD = """\
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: other}
spec:
  nodeName: node2
  restartPolicy: Never
  terminationGracePeriodSeconds: 1
  containers:
  - ports: [{containerPort: 6379}]
"""
DEPLOYMENT = REPLICASET.replace("kind: ReplicaSet", "kind: Deployment")


def read(tmp_path: Path, text: str) -> tuple[list[Workload], list[str]]:
    path = tmp_path / "m.yaml"
    path.write_text(text)
    workloads, errors = read_file(path)
    return workloads, [str(error).removeprefix(f"{path}:") for error in errors]


def test_a_replicaset_is_read(tmp_path: Path) -> None:
    [workload], errors = read(tmp_path, REPLICASET)
    assert errors == []
    assert (workload.kind, workload.key, workload.replicas) == (
        "ReplicaSet",
        ObjectKey("default", "kubia"),
        3,
    )
    assert workload.labels == {"app": "kubia"}
    assert workload.ports == (
        ContainerPort("http", Protocol.TCP, 8080),
        ContainerPort("echo", Protocol.UDP, 9000),
    )
    assert (workload.restart, workload.grace, workload.node) == (True, 30, "")


def test_a_pod_listens_on_its_ports_and_where_its_probes_ask(tmp_path: Path) -> None:
    [workload], _ = read(tmp_path, REPLICASET)
    assert workload.listen() == ["tcp:8080:http", "udp:9000:echo", "tcp:8081:8081"]


def test_the_old_api_group_of_replicasets_needs_no_selector(tmp_path: Path) -> None:
    old = REPLICASET.replace("apps/v1", "extensions/v1beta1")
    old = old.replace("  selector:\n    matchLabels: {app: kubia}\n", "")
    [workload], errors = read(tmp_path, old)
    assert (workload.key.name, errors) == ("kubia", [])


def test_a_bare_pod_is_read(tmp_path: Path) -> None:
    [workload], _ = read(tmp_path, POD)
    assert (workload.kind, workload.key, workload.replicas) == ("Pod", ObjectKey("other", "alone"), 1)
    assert (workload.node, workload.restart, workload.grace) == ("node2", False, 1)
    assert workload.listen() == ["tcp:6379:6379"]


def test_host_network_a_pod_is_read(tmp_path: Path) -> None:
    assert not read(tmp_path, POD)[0][0].host_network
    on_node = POD.replace("spec:\n", "spec:\n  hostNetwork: true\n")
    own_port = on_node.replace("containerPort: 6379", "containerPort: 6379, hostPort: 6379")
    for text in (on_node, own_port):
        [workload], errors = read(tmp_path, text)
        assert (workload.host_network, errors) == (True, [])
    assert read(tmp_path, own_port.replace("hostPort: 6379", "hostPort: 80")) == (
        [],
        [
            "10: Pod other/alone: spec.containers[0].ports[0].hostPort:"
            " must be the containerPort 6379: the pod has the node's network"
        ],
    )


def test_arguments_are_the_first_containers(tmp_path: Path) -> None:
    [workload], errors = read(tmp_path, POD + '    args: [--a, "1"]\n  - args: [x]\n')
    assert (workload.args, errors) == (("--a", "1"), [])


def test_ports_and_probes_of_sidecars_are_the_pods_too(tmp_path: Path) -> None:
    sidecar = (
        "  initContainers:\n"
        "  - {name: once, ports: [{containerPort: 1}]}\n"
        "  - name: side\n"
        "    restartPolicy: Always\n"
        "    ports: [{containerPort: 9080, name: side-port}]\n"
        "    readinessProbe: {httpGet: {path: /ready, port: side-port}}\n"
    )
    [workload], errors = read(tmp_path, POD + sidecar)
    assert errors == []
    assert workload.listen() == ["tcp:6379:6379", "tcp:9080:side-port"]
    assert [probe.port for probe in workload.probes] == [9080]
    assert "side" not in workload.containers


def test_a_deployment_becomes_its_replicaset(tmp_path: Path) -> None:
    [first], _ = read(tmp_path, DEPLOYMENT)
    assert first.kind == "ReplicaSet"
    base, _, digest = first.key.name.partition("-")
    assert (base, len(digest), set(digest) <= set(SUFFIX_ALPHABET)) == ("kubia", 10, True)
    assert first.labels == {"app": "kubia", "pod-template-hash": digest}
    [scaled], _ = read(tmp_path, "\n\n" + DEPLOYMENT.replace("replicas: 3", "replicas: 5"))
    assert (scaled.key, scaled.replicas) == (first.key, 5)
    [changed], _ = read(tmp_path, DEPLOYMENT.replace("8080", "8888"))
    assert changed.key != first.key


def test_documents_lists_and_other_kinds(tmp_path: Path) -> None:
    items = "".join(f"- {part}" for part in [REPLICASET.replace("\n", "\n  ").rstrip() + "\n"])
    text = f"kind: Service\nspec: whatever\n---\n{POD}\n---\napiVersion: v1\nkind: List\nitems:\n{items}"
    workloads, errors = read(tmp_path, text)
    assert ([workload.key.name for workload in workloads], errors) == (["alone", "kubia"], [])


CONTAINER = "spec.template.spec.containers[0]"


@pytest.mark.parametrize(
    ("old", "new", "line", "error"),
    [
        ("replicas: 3", "replicas: three", 6, "spec.replicas: must be a number"),
        ("replicas: 3", "replicas: -1", 6, "spec.replicas: must be from 0"),
        (
            "matchLabels: {app: kubia}",
            "matchLabels: {app: b}",
            8,
            "spec.selector.matchLabels.app: is 'b', but",
        ),
        ("apps/v1", "apps/v2", 1, "apiVersion: must be one of apps/v1"),
        (
            "containerPort: 8080",
            "containerPort: 0",
            16,
            f"{CONTAINER}.ports[0].containerPort: must be from 1",
        ),
        ("port: 8081", "port: web", 19, f"{CONTAINER}.readinessProbe.tcpSocket.port: 'web' is not the name"),
    ],
)
def test_a_wrong_object_is_named_and_the_others_stay(
    tmp_path: Path, old: str, new: str, line: int, error: str
) -> None:
    assert old in REPLICASET
    workloads, errors = read(tmp_path, REPLICASET.replace(old, new, 1) + "---\n" + POD)
    assert [workload.key.name for workload in workloads] == ["alone"]
    assert len(errors) == 1
    assert errors[0].startswith(f"{line}: ReplicaSet default/kubia: {error}")


def test_an_object_without_name_is_named_by_its_place(tmp_path: Path) -> None:
    assert read(tmp_path, REPLICASET.replace("name: kubia", "labels: {}")) == (
        [],
        ["3: ReplicaSet: metadata.name: is missing"],
    )


def test_what_does_not_parse_is_named_by_line(tmp_path: Path) -> None:
    workloads, errors = read(tmp_path, POD + "---\nkind: [\n")
    assert [workload.key.name for workload in workloads] == ["alone"]
    assert len(errors) == 1
    assert "does not parse as YAML" in errors[0]


def test_a_file_that_cannot_be_read_is_an_error_and_no_crash(tmp_path: Path) -> None:
    workloads, [error] = read_file(tmp_path / "gone.yaml")
    assert workloads == []
    assert "No such file" in str(error)


def test_pod_names_look_as_kubernetes_makes_them() -> None:
    draw = random.Random(7)
    names = {pod_name("kubia", draw) for _ in range(200)}
    assert len(names) == 200
    for name in names:
        base, _, suffix = name.rpartition("-")
        assert (base, len(suffix), set(suffix) <= set(SUFFIX_ALPHABET)) == ("kubia", 5, True)
    long = pod_name("x" * 253, draw)
    assert (len(long), long[57]) == (63, "-")
