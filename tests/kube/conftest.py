# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Iterator

import pytest
import urllib3

from tests.cluster_double import ClusterDouble
from tests.kube import same
from tests.kube.double import ApiDouble
from tests.kube.envtest import SERVICE_NETWORKS, ApiServer, why_not
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


@pytest.fixture(params=["double"] if why_not() else ["double", "kube-apiserver"])
def server(request: pytest.FixtureRequest) -> Iterator[same.Server]:
    """An API server as an administrator sees it: the double, and a real one where there is one."""
    if request.param == "double":
        double = ClusterDouble(services=",".join(map(str, SERVICE_NETWORKS)))
        with double:
            server = same.Server(double.url, urllib3.PoolManager(), double)
            server.ask("POST", same.NAMESPACES, same.object_of("Namespace", same.NAMESPACE))
            yield server
        return
    real: ApiServer = request.getfixturevalue("api_server")
    server = same.Server(real.url, real.pool, real)
    server.ask("POST", same.NAMESPACES, same.object_of("Namespace", same.NAMESPACE))
    yield server
    for path in (same.SERVICES, same.PODS, same.SLICES, same.REPLICA_SETS):
        for item in server.ask("GET", path).body["items"]:
            place = f"{path}/{item['metadata']['name']}"
            server.merge(place, {"metadata": {"finalizers": None}})
            server.ask("DELETE", place, {"gracePeriodSeconds": 0})
    server.ask("DELETE", same.NODES)
