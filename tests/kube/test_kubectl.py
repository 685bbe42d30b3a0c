# SPDX-License-Identifier: Apache-2.0
"""kubectl against the double of a cluster: it waits for what it has deleted, by a streaming list."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lb.kube import ApiError
from tests.cluster_double import ClusterDouble
from tests.kube.harness import client_of
from tests.kube.objects import Object

KUBECTL = Path(sys.executable).with_name("kubectl")
HOME = tempfile.TemporaryDirectory()
"""Where kubectl keeps what it has learned of a server; it goes with this process."""
SERVICES = "/api/v1/namespaces/default/services"


@pytest.fixture
def cluster() -> Iterator[ClusterDouble]:
    server = ClusterDouble()
    with server:
        for name in ("default", "other"):
            server.put({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}, "spec": {}})
        yield server


def put(cluster: ClusterDouble, name: str, namespace: str = "default", finalizers: Any = ()) -> None:
    """Create a Service."""
    meta: Object = {"name": name, "namespace": namespace}
    if finalizers:
        meta["finalizers"] = list(finalizers)
    spec = {"selector": {"app": name}, "ports": [{"port": 80}]}
    body = {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec}
    path = SERVICES.replace("default", namespace)
    client_of(cluster).request("POST", path, body=body).body()


def kubectl(cluster: ClusterDouble, *words: str) -> subprocess.Popen[str]:
    """Start kubectl, which sees nothing of this machine's configuration."""
    kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    argv = [str(KUBECTL), "--server", cluster.url, "--kubeconfig", "/dev/null", *words]
    pipe = subprocess.PIPE
    return subprocess.Popen(argv, env={**kept, "HOME": HOME.name}, stdout=pipe, stderr=pipe, text=True)


def ended(process: subprocess.Popen[str]) -> str:
    """Return what it said; it must end by itself, and well."""
    try:
        out, err = process.communicate(timeout=20)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, err
    return out


@pytest.mark.skipif(not KUBECTL.exists(), reason="scripts/setup dev has not installed kubectl")
def test_kubectl_waits_for_the_end_of_what_finalizers_hold(cluster: ClusterDouble) -> None:
    put(cluster, "free")
    put(cluster, "held", finalizers=["example.com/hold"])
    assert "deleted" in ended(kubectl(cluster, "delete", "service", "free", "--wait=true"))
    waiting = kubectl(cluster, "delete", "service", "held", "--wait=true")
    with cluster.changed:
        assert cluster.changed.wait_for(lambda: cluster.watching("services"), 20)
    assert waiting.poll() is None
    held = cluster.objects["services"]["default", "held"]
    assert held["metadata"]["deletionTimestamp"]
    patch = ["patch", "service", "held", "--type=merge", "-p", '{"metadata":{"finalizers":null}}']
    ended(kubectl(cluster, *patch))
    ended(waiting)
    assert ("default", "held") not in cluster.objects["services"]


def events(cluster: ClusterDouble, **query: str) -> list[Object]:
    """Return the first events of a watch of Services, up to a bookmark."""
    response = client_of(cluster).request("GET", SERVICES, {"watch": "1", **query})
    read = b""
    for chunk in response.chunks():
        read += chunk
        if b"BOOKMARK" in read and read.endswith(b"\n"):
            break
    response.close()
    return [json.loads(line) for line in read.splitlines()]


def test_a_streaming_list_is_what_is_there_and_a_bookmark_at_its_end(cluster: ClusterDouble) -> None:
    put(cluster, "one")
    put(cluster, "two")
    put(cluster, "elsewhere", namespace="other")
    query = {
        "sendInitialEvents": "true",
        "resourceVersionMatch": "NotOlderThan",
        "allowWatchBookmarks": "true",
    }
    *added, last = events(cluster, **query)
    assert [(each["type"], each["object"]["metadata"]["name"]) for each in added] == [
        ("ADDED", "one"),
        ("ADDED", "two"),
    ]
    assert last["object"]["metadata"] == {
        "resourceVersion": str(cluster.version),
        "creationTimestamp": None,
        "annotations": {"k8s.io/initial-events-end": "true"},
    }
    with pytest.raises(ApiError, match="422"):
        events(cluster, sendInitialEvents="true")
