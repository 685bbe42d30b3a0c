# SPDX-License-Identifier: Apache-2.0
"""A lab with an API server begins and ends: nothing is left, and what fails is named."""

import io
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.cli import main
from lb.errors import LabError
from lb.lab.addressing import LabSpec
from lb.lab.lab import Lab
from lb.lab.processes import ProcessRef, kill
from lb.lab.removal import down
from lb.lab.store import Store
from tests.cluster_programs import make_assets
from tests.netns.conftest import EXAMPLES, fresh_id, remove, silent
from tests.netns.test_lab_life import left_of


@pytest.fixture
def lab_id() -> Iterator[str]:
    lab = fresh_id()
    yield lab
    remove(lab)


def test_down_leaves_nothing(lab_id: str, tmp_path: Path) -> None:
    assets = make_assets(tmp_path / "assets", controllers=True)
    lab = Lab.up(LabSpec(lab_id, str(EXAMPLES), nodes=1, kubernetes=str(assets)), silent)
    running = list(lab.store.processes())
    assert len(running) >= 10, running
    [forwarder] = [p for p in [lab.store.process("forwarder")] if p]
    assert kill([forwarder]) == []
    down(lab_id, silent)
    assert [process for process in running if process.alive()] == []
    assert left_of(lab_id) == []


@pytest.mark.parametrize("moment", ["API server", "  no kube-controller-manager", r"  \d+ of \d+ ready"])
def test_an_interrupted_start_leaves_nothing(lab_id: str, tmp_path: Path, moment: str) -> None:
    seen: list[ProcessRef] = []

    def interrupt(line: str) -> None:
        if re.match(moment, line):
            seen.extend(Store(lab_id).processes())
            raise KeyboardInterrupt

    assets = make_assets(tmp_path / "assets")
    spec = LabSpec(lab_id, str(EXAMPLES), kubernetes=str(assets))
    with pytest.raises(KeyboardInterrupt):
        Lab.up(spec, interrupt)
    assert seen
    assert [process for process in seen if process.alive()] == []
    assert left_of(lab_id) == []


@pytest.mark.parametrize("name", ["etcd", "kube-apiserver", "kube-controller-manager"])
def test_a_program_that_ends_is_named_with_its_words(lab_id: str, tmp_path: Path, name: str) -> None:
    assets = make_assets(tmp_path / "assets", controllers=True, broken=name)
    with pytest.raises(LabError, match=rf"(?s)^({name}|the API server) ended.*unknown flag: --no-such-flag"):
        Lab.up(LabSpec(lab_id, str(EXAMPLES), kubernetes=str(assets)), silent, pods_within=1.0)
    assert left_of(lab_id) == []


def test_what_the_api_server_refuses_is_reported(lab_id: str, tmp_path: Path) -> None:
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "bad.yaml").write_text(
        "apiVersion: v1\nkind: Service\nmetadata: {name: outside}\n"
        "spec: {clusterIP: 192.0.2.1, ports: [{port: 80}]}\n"
    )
    lines: list[str] = []
    spec = LabSpec(
        lab_id,
        str(tmp_path / "m"),
        nodes=1,
        agents=False,
        kubernetes=str(make_assets(tmp_path / "assets")),
    )
    Lab.up(spec, lines.append)
    [error] = [line for line in lines if "manifest error" in line]
    assert "bad.yaml: Service default/outside: " in error
    assert "192.0.2.1" in error
    with pytest.raises(LabError, match="no place is called nowhere; there are client, api, node1"):
        Lab.open(lab_id).command("nowhere", ["true"])


def test_without_binaries_one_error_says_what_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    out, err = io.StringIO(), io.StringIO()
    assert main(["lab", "up", "--id", fresh_id(), "--kubernetes"], out=out, err=err) == 1
    assert err.getvalue().startswith("lbctl: no API server to run: KUBEBUILDER_ASSETS must name a folder")
    assert "etcd and kube-apiserver" in err.getvalue()
    assert err.getvalue().count("\n") == 1
