# SPDX-License-Identifier: Apache-2.0
"""What commands read from the Kubernetes API, once: the same as the agent's watches."""

from __future__ import annotations

import pytest

from lb.config import Config
from lb.diagnose.snapshot import ApiReader
from lb.kube import client
from lb.model import ObjectKey
from tests.kube.double import ApiDouble
from tests.kube.harness import client_of
from tests.kube.objects import NAMESPACE, NODE, endpoint, endpoint_slice, node, service

WEB = ObjectKey(NAMESPACE, "web")


@pytest.fixture
def reader(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> ApiReader:
    monkeypatch.setattr(client, "in_cluster", lambda: None)
    monkeypatch.setattr(client, "Client", lambda _load: client_of(double))
    return ApiReader(Config(sources=("kubernetes",), node_name=NODE))


def test_the_state_is_what_the_agent_has(double: ApiDouble, reader: ApiReader) -> None:
    double.put(service())
    double.put(service("other", "10.96.0.99", labels={"service.kubernetes.io/service-proxy-name": "x"}))
    double.put(endpoint_slice("web-1", endpoint("10.244.1.2")))
    double.put(node())
    double.put(node("elsewhere", "192.0.2.12"))
    found = reader.snapshot()
    assert found.errors == []
    assert set(found.state.service_keys()) == {WEB}
    assert [len(one.endpoints) for one in found.state.slices(WEB)] == [1]
    assert found.state.node(NODE) is not None
    assert found.state.node("elsewhere") is None


def test_one_service_also_another_proxys(double: ApiDouble, reader: ApiReader) -> None:
    double.put(service("other", "10.96.0.99", labels={"service.kubernetes.io/service-proxy-name": "x"}))
    found = reader.service(ObjectKey(NAMESPACE, "other"))
    assert found is not None
    assert not found.proxied
    assert reader.service(ObjectKey(NAMESPACE, "none")) is None
