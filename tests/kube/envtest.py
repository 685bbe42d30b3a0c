# SPDX-License-Identifier: Apache-2.0
"""A real kube-apiserver with its etcd on loopback, for the tests that also run against the double.

The binaries are found as envtest (kubernetes-sigs/controller-runtime) finds them: in the folder that the
variable KUBEBUILDER_ASSETS names. No controllers run, so a test makes its EndpointSlices itself.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import urllib3
import yaml
from kubernetes.client import Configuration

from lb.errors import LabError
from lb.kube import Access, Client
from lb.kube.events import CONTROLLER
from lb.lab.apiserver import ADMIN, ControlPlane, find
from tests.kube.objects import NAMESPACE, Object
from tests.kube.rules import resource_of

RBAC = Path(__file__).parents[2] / "deploy" / "base" / "rbac.yaml"
START_SECONDS = 60.0
SERVICE_NETWORKS = (IPv4Network("10.96.0.0/16"), IPv6Network("fd00:96::/112"))
_RESOURCES = {
    "ServiceAccount": "serviceaccounts",
    "ClusterRole": "clusterroles",
    "ClusterRoleBinding": "clusterrolebindings",
    "Namespace": "namespaces",
}


def why_not() -> str:
    """Return why there is no real API server to test with, ``""`` when there is one."""
    try:
        find()
    except LabError as error:
        return str(error)
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class ApiServer:
    """etcd and kube-apiserver in a folder of their own; a context manager that ends both.

    It is a :class:`tests.kube.harness.Cluster`. Clients get a token of the service account that
    deploy/base/rbac.yaml makes, so that whatever the ClusterRole lacks fails.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._plane = ControlPlane(
            find(),
            folder,
            "127.0.0.1",
            SERVICE_NETWORKS,
            port=_free_port(),
            etcd_port=_free_port(),
            etcd_peer_port=_free_port(),
            advertise=False,
        )
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._made: list[Object] = []
        self.pool = urllib3.PoolManager(
            ca_certs=str(folder / "ca.crt"),
            cert_file=str(folder / f"{ADMIN}.crt"),
            key_file=str(folder / f"{ADMIN}.key"),
        )
        self.url = self._plane.url

    def __enter__(self) -> ApiServer:
        try:
            self._plane.make_keys()
            self._start("etcd", self._plane.etcd())
            self._await("etcd", f"{self._plane.etcd_url}/health")
            self.restart()
            self._apply_rbac()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self._processes.values()):
            _end(process)

    # cluster

    def client(self) -> Client:
        """See Cluster."""
        path = "/api/v1/namespaces/kube-system/serviceaccounts/lbctl/token"
        made = self.call(
            "POST", path, {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
        )
        token = made["status"]["token"]

        def load() -> Access:
            configuration = Configuration(host=self.url, api_key={"BearerToken": f"Bearer {token}"})
            configuration.ssl_ca_cert = str(self._folder / "ca.crt")
            return Access(configuration)

        return Client(load)

    def put(self, item: Object) -> Object:
        """See Cluster."""
        path = _path(item)
        query = "?fieldManager=tests&force=true"
        stored: Object = self.call("PATCH", path + query, {k: v for k, v in item.items() if k != "status"})
        self._made.append(item)
        if "status" in item:
            stored = self.call(
                "PATCH", f"{path}/status{query}", {k: v for k, v in item.items() if k != "spec"}
            )
        return stored

    def remove(self, item: Object) -> None:
        """See Cluster."""
        self.call("DELETE", _path(item))

    def written_events(self) -> Sequence[Object]:
        """See Cluster."""
        items = self.call("GET", f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")["items"]
        return [item for item in items if item.get("reportingController") == CONTROLLER]

    def clean(self) -> None:
        """Remove what a test made."""
        for item in self._made:
            with contextlib.suppress(LookupError):
                self.remove(item)
        self._made.clear()
        self.call("DELETE", f"/apis/events.k8s.io/v1/namespaces/{NAMESPACE}/events")

    def stop(self) -> None:
        """See Cluster."""
        _end(self._processes["kube-apiserver"])

    def signal(self, number: signal.Signals) -> None:
        """Send the API server a signal."""
        self._processes["kube-apiserver"].send_signal(number)

    def restart(self) -> None:
        """See Cluster."""
        self._start("kube-apiserver", self._plane.api_server())
        self._await("kube-apiserver", f"{self.url}/readyz")

    def call(self, method: str, path: str, body: Object | None = None) -> Any:
        """Send a request as an administrator and return the answer.

        A server that has just begun refuses for a while (it has no Service network yet); it is asked again.

        Raises
        ------
        LookupError: there is no such object.
        """
        kind = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        end = time.monotonic() + START_SECONDS
        while True:
            answer = self.pool.request(
                method,
                self.url + path,
                headers={"Content-Type": kind},
                body=None if body is None else json.dumps(body),
            )
            if answer.status not in (429, 500, 503) or time.monotonic() > end:
                break
            time.sleep(0.1)
        if answer.status == 404:
            raise LookupError(path)
        assert 200 <= answer.status < 300, (method, path, answer.status, answer.data)
        return answer.json()

    # start and end

    def _start(self, name: str, command: Sequence[str]) -> None:
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log)

    def _await(self, name: str, url: str) -> None:
        """Wait until a process answers 200; it offers nothing else to wait for."""
        end = time.monotonic() + START_SECONDS
        while time.monotonic() < end and self._processes[name].poll() is None:
            with contextlib.suppress(urllib3.exceptions.HTTPError):
                if self.pool.request("GET", url, retries=False, timeout=2.0).status == 200:
                    return
            time.sleep(0.1)
        tail = (self._folder / f"{name}.log").read_text(errors="replace")[-2000:]
        raise AssertionError(f"{name} did not become ready in {START_SECONDS:g} s:\n{tail}")

    def _apply_rbac(self) -> None:
        namespaces = (
            {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}
            for name in ("kube-system", NAMESPACE)
        )
        for item in (*namespaces, *yaml.safe_load_all(RBAC.read_text())):
            self.call("PATCH", f"{_path(item)}?fieldManager=tests&force=true", item)


def _path(item: Object) -> str:
    prefix = "/api/" if "/" not in item["apiVersion"] else "/apis/"
    meta = item["metadata"]
    namespace = f"/namespaces/{meta['namespace']}" if meta.get("namespace") else ""
    resource = _RESOURCES.get(item["kind"]) or resource_of(item)
    return f"{prefix}{item['apiVersion']}{namespace}/{resource}/{meta['name']}"


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
