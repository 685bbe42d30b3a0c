# SPDX-License-Identifier: Apache-2.0
"""The way to a real API server, with programs in the place of the binaries that are rarely there."""

from pathlib import Path

import pytest

from tests.cluster_programs import make_assets
from tests.kube.envtest import ApiServer, why_not
from tests.kube.harness import running
from tests.kube.objects import service


def test_it_starts_serves_the_agents_account_and_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(make_assets(tmp_path / "assets")))
    assert why_not() == ""
    with ApiServer(tmp_path / "server") as server:
        server.put(service())
        with running(server.client()) as run:
            run.wait(run.service)
            server.stop()
            server.restart()
            server.put(service("other", "10.96.0.11"))
            run.wait(lambda: run.service("other"))
    assert [process.returncode is None for process in server._processes.values()] == [False, False]


def test_a_program_that_ends_is_told_with_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(make_assets(tmp_path / "assets", broken="kube-apiserver")))
    with pytest.raises(AssertionError, match=r"(?s)kube-apiserver did not become ready.*--no-such-flag"):
        ApiServer(tmp_path / "server").__enter__()
