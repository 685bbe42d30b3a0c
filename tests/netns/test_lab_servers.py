# SPDX-License-Identifier: Apache-2.0
"""A pod whose image names a server of the distribution runs that server, and is a pod in all else."""

from pathlib import Path

import pytest

from lb.errors import LabError
from lb.lab import servers
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab
from tests.netns.waiting import eventually

MANIFEST = """\
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: ns}
spec:
  replicas: 1
  selector: {matchLabels: {app: ns}}
  template:
    metadata: {labels: {app: ns}}
    spec:
      terminationGracePeriodSeconds: 5
      containers:
        - name: named
          image: lab/named
          env: [{name: POD_IP, valueFrom: {fieldRef: {fieldPath: status.podIP}}}]
          ports: [{name: dns, containerPort: 53, protocol: UDP}]
          readinessProbe:
            exec: {command: [sh, -c, "dig +time=1 +tries=1 @$POD_IP ns.dns.cluster.local"]}
            periodSeconds: 1
"""


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab of one node with one pod, which runs named."""
    folder = tmp_path_factory.mktemp("servers")
    (folder / "ns.yaml").write_text(MANIFEST)
    return make_lab(folder, nodes=1, agents=False)


def only(lab: Lab) -> str:
    [pod] = lab.pods()
    assert pod["ready"], pod
    return str(pod["name"])


def test_it_has_the_pods_names_files_and_network(lab: Lab) -> None:
    pod = only(lab)
    record = lab.find_pod(pod)
    asked = ["sh", "-c", f"hostname; ls /etc/bind; dig +short @{record.address} ns.dns.cluster.local"]
    assert lab.run(pod, asked).stdout.split() == [pod, "named.conf", record.address]
    assert record.process is not None
    assert Path(f"/proc/{record.process.pid}/comm").read_text() == "named\n"


def test_it_is_asked_by_its_probe(lab: Lab) -> None:
    pod = only(lab)
    lab.ask_kubelet("unready", pod=pod)
    assert [each["ready"] for each in lab.pods()] == [False]
    lab.ask_kubelet("ready", pod=pod)
    assert only(lab) == pod


def test_a_process_that_ended_is_started_anew_with_fresh_files(lab: Lab) -> None:
    record = lab.find_pod(only(lab))
    assert record.process is not None
    left = lab.store.pod_folder(record) / "work" / "left"
    left.touch()
    assert lab.run(record.name, ["kill", str(record.process.pid)]).returncode == 0
    eventually(lambda: lab.pods()[0]["restarts"] == 1 and lab.pods()[0]["ready"], "it runs again")
    assert not left.exists()


def test_it_ends_with_its_pod(lab: Lab) -> None:
    record = lab.find_pod(only(lab))
    assert record.process is not None
    lab.ask_kubelet("kill", pod=record.name)
    assert not record.process.alive()
    assert not lab.store.pod_folder(record).exists()
    eventually(lambda: all(each["ready"] for each in lab.pods()), "another takes its place")


def test_a_server_that_the_machine_lacks_is_named_with_its_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.SERVERS, "lab/other", servers.Server(("no-such-server",), "a-package"))
    with pytest.raises(LabError, match="no-such-server is missing: install the Debian package a-package"):
        servers.check("lab/other")
    assert servers.check("lab") is None
