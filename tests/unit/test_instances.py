# SPDX-License-Identifier: Apache-2.0
"""Which instance a command is about, the lock that one process holds, and the notes beside it."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lb.cli import instances
from lb.datapath.kernel import pins
from lb.errors import ConfigError, LbError
from lb.rundir import RunDir

LAB = ["demo.node1", "demo.node2", "plain"]


@pytest.mark.parametrize(
    ("flags", "existing", "chosen"),
    [
        ({"instance": "plain"}, LAB, "plain"),
        ({"node": "plain"}, LAB, "plain"),
        ({"node": "node1"}, LAB, "demo.node1"),
        ({"node": "a.b"}, ["a.b", "lab.a.b"], "a.b"),
        ({}, ["only"], "only"),
    ],
)
def test_choosing_an_instance(flags: dict[str, str], existing: list[str], chosen: str) -> None:
    args = argparse.Namespace(**({"instance": None, "node": None} | flags))
    assert instances.choose(args, existing) == chosen


@pytest.mark.parametrize(
    ("flags", "existing", "words"),
    [
        ({}, LAB, "more than one instance fits.*there are: demo.node1, demo.node2, plain"),
        ({}, [], "no such instance; nothing of lbctl is pinned"),
        ({"node": "node1"}, ["a.node1", "b.node1"], "--node node1: more than one"),
        ({"node": "ode1"}, LAB, "--node ode1: no such instance; there are: demo.node1"),
        ({"instance": "node1"}, LAB, "--instance node1: no such instance"),
    ],
)
def test_an_instance_that_cannot_be_chosen(flags: dict[str, str], existing: list[str], words: str) -> None:
    args = argparse.Namespace(**({"instance": None, "node": None} | flags))
    with pytest.raises(ConfigError, match=words):
        instances.choose(args, existing)


def test_without_a_file_system_for_pins_that_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(pins, "BPFFS", tmp_path)
    monkeypatch.setattr(pins, "instances", list)
    args = argparse.Namespace(instance="n1", node=None)
    with pytest.raises(ConfigError, match=f"no BPF file system is mounted at {tmp_path}: mount -t bpf"):
        instances.choose(args)


def test_an_instance_is_locked_by_one_process_and_free_when_it_ends(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    assert run_dir.holder() is None
    with run_dir.lock():
        assert run_dir.holder() == os.getpid()
        with (
            pytest.raises(LbError, match=f"instance n1: in use by process {os.getpid()}"),
            RunDir("n1", tmp_path).lock(),
        ):
            pass
        with RunDir("n2", tmp_path).lock():
            pass
    assert run_dir.holder() is None
    with run_dir.lock():
        assert run_dir.holder() == os.getpid()


def test_a_lock_is_free_after_its_process_was_killed(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib; from lb.rundir import RunDir\n"
        "with RunDir('n1', pathlib.Path(sys.argv[1])).lock():\n"
        "    print('locked', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"locked\n"
        assert RunDir("n1", tmp_path).holder() == child.pid
        child.kill()
        child.wait()
    assert RunDir("n1", tmp_path).holder() is None
    with RunDir("n1", tmp_path).lock():
        pass


def test_removing_run_files_while_locked_does_not_let_two_in(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    with run_dir.lock():
        run_dir.remove()
        assert list(tmp_path.parent.glob("n1*")) == []
    with run_dir.lock():
        assert run_dir.holder() == os.getpid()


def test_notes_are_replaced_as_a_whole(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    assert run_dir.notes() == {}
    run_dir.write_notes({"a": 1})
    run_dir.write_notes({"b": 2})
    assert run_dir.notes() == {"b": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["n1.json"]


def test_notes_tell_when_the_interfaces_are_elsewhere(tmp_path: Path) -> None:
    run_dir = RunDir("n1", tmp_path)
    assert run_dir.elsewhere() == ""
    run_dir.write_notes({"network_namespace": 1, "pid": 77})
    assert run_dir.elsewhere() == "nsenter --net=/proc/77/ns/net lbctl … --instance n1"
