# SPDX-License-Identifier: Apache-2.0
"""Requests to an API server, be it the double or a real one, and the objects that they are about."""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from typing import Any

import urllib3

from tests.cluster_double import ClusterDouble
from tests.kube.envtest import ApiServer
from tests.kube.registry import APPLY, MERGE
from tests.kube.rules import Object

NAMESPACE = "same"
BASE = f"/api/v1/namespaces/{NAMESPACE}"
SERVICES, PODS = f"{BASE}/services", f"{BASE}/pods"
SLICES = f"/apis/discovery.k8s.io/v1/namespaces/{NAMESPACE}/endpointslices"
REPLICA_SETS = f"/apis/apps/v1/namespaces/{NAMESPACE}/replicasets"
NODES = "/api/v1/nodes"
NAMESPACES = "/api/v1/namespaces"

_numbers = itertools.count()


@dataclass(frozen=True)
class Answer:
    """Code and body of an answer."""

    code: int
    body: Object

    @property
    def reason(self) -> str:
        """Why it was refused, in the API's one word."""
        return str(self.body.get("reason", ""))

    @property
    def fields(self) -> set[str]:
        """The fields that are wrong."""
        causes = (self.body.get("details") or {}).get("causes") or ()
        return {each["field"] for each in causes if "field" in each}

    @property
    def meta(self) -> Object:
        """The object's metadata."""
        return dict(self.body["metadata"])


class Server:
    """Takes requests as an administrator sends them; what they make is removed at the end."""

    def __init__(self, url: str, pool: urllib3.PoolManager, cluster: ApiServer | ClusterDouble) -> None:
        self._url, self._pool, self._cluster = url, pool, cluster

    def restart(self) -> None:
        """End the API server and start it again."""
        self._cluster.stop()
        self._cluster.restart()

    def ask(self, method: str, path: str, body: Object | None = None, kind: str = "", **query: str) -> Answer:
        """Send a request."""
        answer = self._pool.request(
            method,
            f"{self._url}{path}{'?' if query else ''}{'&'.join(f'{k}={v}' for k, v in query.items())}",
            headers={"Content-Type": kind or "application/json"},
            body=None if body is None else json.dumps(body),
            retries=False,
        )
        try:
            return Answer(answer.status, answer.json())
        except ValueError:
            return Answer(answer.status, {"text": answer.data.decode()})

    def apply(self, path: str, body: Object, **query: str) -> Answer:
        """Send a server-side apply by force."""
        return self.ask("PATCH", path, body, APPLY, fieldManager="tests", force="true", **query)

    def watch(self, path: str, version: str) -> Answer:
        """Watch for a moment from a version; return the first event, of type \"\" when there is none."""
        answer = self._pool.request(
            "GET", f"{self._url}{path}?watch=1&timeoutSeconds=1&resourceVersion={version}", retries=False
        )
        first = answer.data.partition(b"\n")[0]
        return Answer(answer.status, json.loads(first or b'{"type": ""}'))

    def merge(self, path: str, body: Object) -> Answer:
        """Send a merge patch."""
        return self.ask("PATCH", path, body, MERGE)


def fresh(prefix: str = "web") -> str:
    """Return a name that no other test has."""
    return f"{prefix}-{next(_numbers)}"


def object_of(kind: str, name: str, version: str = "v1", **fields: Any) -> Object:
    metadata = {"name": name, **fields.pop("metadata", {})}
    return {"apiVersion": version, "kind": kind, "metadata": metadata, **fields}


def service(name: str, **spec: Any) -> Object:
    return object_of("Service", name, spec={"ports": [{"port": 80}], **spec})


def node(name: str, **fields: Any) -> Object:
    return object_of("Node", name, **fields)


def pod(name: str, metadata: Object | None = None, **spec: Any) -> Object:
    containers = [{"name": "main", "image": "any"}]
    return object_of("Pod", name, metadata=metadata or {}, spec={"containers": containers, **spec})


def piece(name: str, **fields: Any) -> Object:
    whole = {"addressType": "IPv4", "endpoints": [{"addresses": ["10.244.1.2"]}], "ports": [], **fields}
    return object_of("EndpointSlice", name, "discovery.k8s.io/v1", **whole)


def replica_set(name: str, **metadata: Any) -> Object:
    containers = [{"name": "main", "image": "any"}]
    template = {"metadata": {"labels": {"app": "a"}}, "spec": {"containers": containers}}
    spec = {"replicas": 2, "selector": {"matchLabels": {"app": "a"}}, "template": template}
    return object_of("ReplicaSet", name, "apps/v1", metadata=metadata, spec=spec)
