# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.kube.double import ApiDouble
from tests.kube.envtest import ApiServer, why_not
from tests.kube.harness import Cluster, DoubleCluster


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def double() -> Iterator[ApiDouble]:
    with ApiDouble() as server:
        yield server


@pytest.fixture(scope="session")
def api_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ApiServer]:
    if reason := why_not():
        pytest.skip(reason)
    with ApiServer(tmp_path_factory.mktemp("envtest")) as server:
        yield server


@pytest.fixture(params=["double", "kube-apiserver"])
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    """A cluster with nothing of ours in it: the double, and a real API server where there is one."""
    if request.param == "double":
        yield DoubleCluster(request.getfixturevalue("double"))
        return
    server: ApiServer = request.getfixturevalue("api_server")
    yield server
    server.clean()
