# SPDX-License-Identifier: Apache-2.0
import os
import subprocess
from pathlib import Path

import pytest

from lb.config import Switch, UplinkMode
from lb.errors import LabError
from lb.lab.addressing import Family, LabSpec, Overlay
from lb.lab.processes import ProcessRef, kill, spawn, tail
from lb.lab.store import LabRecord, PodRecord, Store, labs

SPEC = LabSpec(
    "t",
    "/m",
    nodes=3,
    replicas=2,
    overlay=Overlay.VXLAN,
    uplink_mode=UplinkMode.TC,
    redirect=Switch.ON,
    family=Family.IPV6,
)


def own() -> ProcessRef:
    found = ProcessRef.of(os.getpid())
    assert found is not None
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store("t", tmp_path / "run" / "lab")


def test_the_record_comes_back_as_it_was(store: Store) -> None:
    record = LabRecord(SPEC, own())
    store.create(record)
    assert store.read_lab() == record
    store.write_lab(LabRecord(SPEC, own(), complete=True))
    assert store.read_lab().complete
    assert labs(store.base.parent) == ["t"]


def test_a_second_lab_of_the_id_is_told_what_the_first_is(store: Store) -> None:
    store.create(LabRecord(SPEC, own()))
    with pytest.raises(LabError, match=f"being brought up by process {os.getpid()}"):
        store.create(LabRecord(SPEC, own()))
    store.write_lab(LabRecord(SPEC, own(), complete=True))
    with pytest.raises(LabError, match="is up already; take it down first: lbctl lab down --id t"):
        store.create(LabRecord(SPEC, own()))
    another_life = ProcessRef(os.getpid(), own().started - 1)
    store.write_lab(LabRecord(SPEC, another_life))
    with pytest.raises(LabError, match="half-made, bringing it up was interrupted"):
        store.create(LabRecord(SPEC, own()))


def test_a_directory_without_record_is_half_made(store: Store) -> None:
    store.base.mkdir(parents=True)
    assert store.exists()
    with pytest.raises(LabError, match="half-made"):
        store.create(LabRecord(SPEC, own()))


def test_no_lab(store: Store) -> None:
    assert not store.exists()
    with pytest.raises(LabError, match="there is no lab t"):
        store.read_lab()


def test_pods_and_processes_are_noted_and_forgotten(store: Store) -> None:
    store.create(LabRecord(SPEC, own()))
    store.write_process("kubelet", own())
    one = PodRecord(
        "default", "a", "node1", ("10.244.1.2", "fd00:244:0:1::2"), "t-pod-a", "pod-a", ProcessRef(1, 2)
    )
    two = PodRecord("other", "b", "node2", ("10.244.2.2",), "t-pod-b@other", "pod-b")
    three = PodRecord("other", "c", "node2", ("192.168.77.12",), "t-node2", "")
    for pod in (three, two, one):
        store.write_pod(pod)
    assert store.pods() == [one, two, three]
    assert [pod.host_network for pod in store.pods()] == [False, False, True]
    assert list(store.processes()) == [own(), ProcessRef(1, 2)]
    store.forget_pod(one)
    store.forget_pod(one)
    assert store.pods() == [two, three]


def test_objects_appear_whole_and_alone(store: Store) -> None:
    store.create(LabRecord(SPEC, own()))
    store.write_object("pod.default.a.yaml", "kind: Pod\n")
    store.write_object("pod.default.a.yaml", "kind: Pod # again\n")
    assert [path.name for path in store.cluster.iterdir()] == ["pod.default.a.yaml"]
    store.remove_object("pod.default.a.yaml")
    assert list(store.cluster.iterdir()) == []


def test_removal_takes_empty_parents_only(store: Store, tmp_path: Path) -> None:
    store.create(LabRecord(SPEC, own()))
    other = Store("u", store.base.parent)
    other.create(LabRecord(SPEC, own()))
    store.remove()
    assert labs(store.base.parent) == ["u"]
    other.remove()
    assert not (tmp_path / "run").exists()
    other.remove()


def test_a_reused_pid_is_another_process(tmp_path: Path) -> None:
    process = spawn(["sleep", "1000"], tmp_path / "log")
    assert process.alive()
    older = ProcessRef(process.pid, process.started - 1)
    assert not older.alive()
    assert kill([older]) == []
    assert process.alive()
    assert kill([process]) == []
    assert not process.alive()


def test_a_spawned_process_is_nobodys_child_and_writes_to_its_log(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = spawn(["sh", "-c", "echo to stdout; echo to stderr >&2; exec sleep 1000"], log)
    parent = subprocess.run(
        ["ps", "-o", "ppid=", "-p", str(process.pid)], capture_output=True, text=True, check=True
    )
    assert int(parent.stdout) != os.getpid()
    assert kill([process]) == []
    assert tail(log) == "to stdout\nto stderr"
    assert "nothing in" in tail(tmp_path / "none")


def test_a_process_that_does_not_end_is_returned(tmp_path: Path) -> None:
    process = spawn(["sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1000; done"], tmp_path / "log")
    try:
        assert process.alive()
        assert kill([process], within=0) in ([process], [])
    finally:
        assert kill([process]) == []
