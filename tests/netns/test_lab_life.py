# SPDX-License-Identifier: Apache-2.0
"""Labs come and go: nothing is left, also after a crash, and two labs never meet."""

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.datapath.kernel import netns
from lb.datapath.kernel.pins import Pins
from lb.errors import LabError
from lb.lab import cgroups, namespaces
from lb.lab.addressing import LabSpec
from lb.lab.lab import Lab
from lb.lab.processes import ProcessRef, kill
from lb.lab.removal import down
from lb.lab.store import Store, labs
from lb.rundir import RunDir
from tests.netns.conftest import EXAMPLES, MakeLab, fresh_id, remove, silent

DIES = """\
import os, re, signal, sys
from lb.lab.addressing import LabSpec
from lb.lab.lab import Lab

def report(line):
    if re.match(sys.argv[3], line.strip()):
        os.kill(os.getpid(), signal.SIGKILL)

Lab.up(LabSpec(sys.argv[1], sys.argv[2]), report)
"""


@pytest.fixture
def lab_id() -> Iterator[str]:
    lab = fresh_id()
    yield lab
    remove(lab)


def left_of(lab: str) -> list[str]:
    """Return everything on the machine that belongs to a lab."""
    found = [f"namespace {path.name}" for path in netns.NAMED.glob(f"{lab}-*")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [f"mount {line}" for line in mounts if f"/{lab}-" in line or f"/{lab}/" in line]
    found += [f"directory {lab}"] if lab in labs() else []
    found += [f"control group {lab}"] if cgroups.of_lab(lab).exists() else []
    for node in ("node1", "node2"):
        instance = f"{lab}.{node}"
        found += [f"pins {instance}"] if Pins(instance).base.exists() else []
        found += [f"notes {instance}"] if RunDir(instance).lock_path.exists() else []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            words = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            ours = entry.name != str(os.getpid()) and any(lab == word or f"/{lab}/" in word for word in words)
            if ours and ProcessRef.of(int(entry.name)):
                found.append(f"process {entry.name}: {' '.join(words)}")
    return found


def test_down_leaves_nothing(lab_id: str) -> None:
    Lab.up(LabSpec(lab_id, str(EXAMPLES), nodes=1), silent)
    assert len(left_of(lab_id)) >= 10, "the search does not find what a lab has"
    down(lab_id, silent)
    assert left_of(lab_id) == []


@pytest.mark.parametrize("moment", ["network", "pods", r"\d+ of \d+ ready", "agents"])
def test_down_leaves_nothing_after_up_was_killed(lab_id: str, moment: str) -> None:
    dead = subprocess.run([sys.executable, "-c", DIES, lab_id, str(EXAMPLES), moment], check=False)
    assert dead.returncode == -signal.SIGKILL
    with pytest.raises(LabError, match=f"lab {lab_id} is half-made.*lbctl lab down --id {lab_id}"):
        Lab.up(LabSpec(lab_id, str(EXAMPLES)), silent)
    with pytest.raises(LabError, match="half-made"):
        Lab.open(lab_id)
    down(lab_id, silent)
    assert left_of(lab_id) == []


def test_down_leaves_nothing_after_the_kubelet_was_killed(make_lab: MakeLab) -> None:
    lab = make_lab(agents=False)
    kubelet = lab.store.process("kubelet")
    assert kubelet is not None
    assert kill([kubelet]) == []
    with pytest.raises(LabError, match="does not answer"):
        lab.ask_kubelet("list")
    status = lab.status()
    assert (status["kubelet"]["running"], len(status["pods"])) == (False, 3)
    assert "does not answer" in status["errors"][0]
    down(lab.spec.id, silent)
    assert left_of(lab.spec.id) == []


def cgroup_of(lab: Lab, where: str) -> Path:
    """Return the control group of a process that is started at a place."""
    done = lab.run(where, ["cat", "/proc/self/cgroup"])
    assert done.returncode == 0, done.stderr
    [mine] = [line for line in done.stdout.splitlines() if line.startswith("0::")]
    return cgroups.mount_point(cgroups.MOUNTS.read_text()) / mine.removeprefix("0::").lstrip("/")


def test_every_node_has_a_control_group_of_its_own(make_lab: MakeLab) -> None:
    lab = make_lab(agents=False)
    nodes = {node["name"]: Path(node["cgroup"]) for node in lab.status()["nodes"]}
    assert nodes == {node: cgroups.of_lab(lab.spec.id) / node for node in ("node1", "node2")}
    assert {cgroup_of(lab, node) for node in nodes} == set(nodes.values())
    for pod in lab.pods():
        record = lab.find_pod(pod["name"])
        assert record.process is not None
        assert cgroup_of(lab, pod["name"]).parent == nodes[pod["node"]]
        assert record.process.pid in cgroups.pids(nodes[pod["node"]])
    assert not any(cgroup_of(lab, "client").is_relative_to(group) for group in nodes.values())
    killed = lab.pods()[0]
    group = cgroup_of(lab, killed["name"])
    lab.ask_kubelet("kill", pod=killed["name"])
    assert not group.exists()
    assert nodes[killed["node"]].exists()


def test_down_ends_what_people_left_running_inside(make_lab: MakeLab) -> None:
    lab = make_lab(agents=False)
    pod = lab.pods()[0]["name"]
    argv = ["sh", "-c", "echo runs; exec sleep 1000"]
    strays = [subprocess.Popen(lab.command(where, argv), stdout=subprocess.PIPE) for where in ("node2", pod)]
    streams = [stray.stdout for stray in strays if stray.stdout]
    assert [stream.readline() for stream in streams] == [b"runs\n"] * 2
    down(lab.spec.id, silent)
    assert [stray.wait(timeout=10) for stray in strays] == [-signal.SIGKILL] * 2
    for stream in streams:
        stream.close()


def test_an_id_is_taken_once(make_lab: MakeLab) -> None:
    lab = make_lab(agents=False)
    with pytest.raises(LabError, match="is up already"):
        Lab.up(lab.spec, silent)
    assert lab.wait_ready() == []


def test_what_is_not_the_labs_is_not_touched(lab_id: str) -> None:
    foreign = f"{lab_id}-node1"
    namespaces.create(foreign)
    try:
        with pytest.raises(LabError, match=f"{foreign} exists already"):
            Lab.up(LabSpec(lab_id, str(EXAMPLES)), silent)
        assert namespaces.exists(foreign)
        assert not Store(lab_id).exists()
    finally:
        namespaces.delete(foreign)


def test_a_failed_start_says_why_and_leaves_nothing(lab_id: str, tmp_path: Path) -> None:
    lines: list[str] = []
    for name in EXAMPLES.glob("*.yaml"):
        (tmp_path / name.name).symlink_to(name)
    spec = LabSpec(lab_id, str(tmp_path))
    original = Lab.agent_command
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Lab, "agent_command", lambda self, node: [*original(self, node), "--no-such-flag"])
        with pytest.raises(LabError, match=r"(?s)the agent of node1 ended.*--no-such-flag"):
            Lab.up(spec, lines.append)
    assert lines[-1] == "failed: removing what was made"
    assert left_of(lab_id) == []


def test_an_interrupted_start_leaves_nothing(lab_id: str) -> None:
    def interrupt(line: str) -> None:
        if line.startswith("pods"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Lab.up(LabSpec(lab_id, str(EXAMPLES)), interrupt)
    assert left_of(lab_id) == []


def test_two_labs_side_by_side(make_lab: MakeLab) -> None:
    one, two = make_lab(agents=False, replicas=1), make_lab(agents=False, replicas=1)
    [here], [there] = one.pods(), two.pods()
    assert here["address"] == there["address"] == "10.244.1.2"
    for lab, pod in ((one, here), (two, there)):
        answer = lab.run("client", ["curl", "-sS", "-m", "5", f"http://{pod['address']}:8080/hostname"])
        assert answer.stdout == f"{pod['name']}\n", answer.stderr
    down(one.spec.id, silent)
    answer = two.run("client", ["curl", "-sS", "-m", "5", f"http://{there['address']}:8080/hostname"])
    assert answer.stdout == f"{there['name']}\n", answer.stderr


def test_there_is_no_such_lab() -> None:
    with pytest.raises(LabError, match="there is no lab nosuch"):
        down("nosuch", silent)
    with pytest.raises(LabError, match="there is no lab nosuch"):
        Lab.open("nosuch")


def test_an_agent_can_be_killed_and_started_again(make_lab: MakeLab) -> None:
    lab = make_lab(replicas=1, nodes=1)
    lab.stop_agent("node1", signal.SIGKILL)
    agent = lab.status()["nodes"][0]["agent"]
    assert not agent["running"]
    assert Pins(lab.spec.instance("node1")).base.exists()
    lab.start_agent("node1")
    lab.wait_agent("node1")
    with pytest.raises(LabError, match="the agent of node1 runs already"):
        lab.start_agent("node1")
