# SPDX-License-Identifier: Apache-2.0
"""``lbctl lab status``: what does not run is named, with what to do, and is an exit code."""

from __future__ import annotations

import importlib
import io
import os
import re
from pathlib import Path

import pytest

from lb.cli import main
from lb.lab.addressing import LabSpec
from lb.lab.lab import Lab
from lb.lab.processes import ProcessRef
from lb.lab.store import LabRecord, Store
from tests.unit.test_rundir import as_nobody


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    spec, here = LabSpec(id="t", manifests="/m", nodes=2), ProcessRef.of(os.getpid())
    assert here is not None
    store = Store("t", tmp_path)
    store.create(LabRecord(spec, here, complete=True))
    for name in ("kubelet", *spec.node_names):
        store.write_process(name, here)
    for node in spec.node_names:
        store.ready_file(node).touch()
    monkeypatch.setattr("lb.lab.topology.needs_other_wires", lambda _spec, _node: "")
    opened = Lab(store, spec)
    monkeypatch.setattr(opened, "ask_kubelet", lambda _what: {"pods": [], "errors": []})
    monkeypatch.setattr(Lab, "open", lambda _id: opened)
    return opened


def command() -> tuple[int, str]:
    out = io.StringIO()
    return main(["lab", "status", "--id", "t"], out=out), out.getvalue()


def test_a_lab_that_runs(lab: Lab) -> None:
    code, text = command()
    assert code == 0
    assert text.count("synced") == 2
    assert "error: " not in text


def test_an_agent_that_was_killed_is_not_said_to_be_in_step(lab: Lab) -> None:
    """It leaves its ready file behind."""
    lab.store.write_process("node1", ProcessRef(os.getpid(), 1))
    agent = lab.status()["nodes"][0]["agent"]
    assert (agent["running"], agent["ready"]) == (False, False)
    code, text = command()
    assert code == 1
    (line,) = [line for line in text.splitlines() if line.startswith("node1 ")]
    assert re.search(r"does not run +stands still$", line)
    assert text.count("synced") == 1
    assert text.endswith(
        "error: node1: its agent does not run: connections go on, changes of Services wait;"
        " lbctl lab agent start --id t node1\n"
    )


def test_another_user_is_told_that_it_needs_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tmp_path / "lab"
    root.mkdir(mode=0o700)
    Store("lab", root).base.mkdir()
    monkeypatch.setattr(Store.__init__, "__defaults__", (root,))

    importlib.import_module("lb.cli.lab")  # nobody may not be allowed to read it

    def asked() -> str:
        err = io.StringIO()
        return f"{main(['lab', 'status'], err=err)} {err.getvalue()}"

    told = as_nobody(asked)
    assert told == f"1 lbctl: {root}/lab/lab.json: Permission denied; lbctl needs root\n"
