# SPDX-License-Identifier: Apache-2.0
"""The host of a lab's API server: etcd, the API server, its controllers, and the machine's way to them."""

from __future__ import annotations

import contextlib
import http.client
import signal
import sys
from pathlib import Path
from typing import Any

import yaml

from lb.errors import LabError
from lb.kube.access import from_kubeconfig
from lb.kube.client import ApiError, Client
from lb.lab import namespaces
from lb.lab.addressing import API_PORT, SERVICE_CIDRS, LabSpec, api_server
from lb.lab.api import SERVICES, Api
from lb.lab.apiserver import ControlPlane, write_kubeconfig, write_private
from lb.lab.apply import make_namespace
from lb.lab.processes import START_SECONDS, environment, spawn, tail, wait_for
from lb.lab.store import Store
from lb.model import ObjectKey
from lb.package_files import shipped

ETCD, SERVER, CONTROLLERS, FORWARDER = "etcd", "kube-apiserver", "kube-controller-manager", "forwarder"
RBAC = shipped("deploy") / "base" / "rbac.yaml"
AGENT = ObjectKey("kube-system", "lbctl")
"""The agents' service account, as RBAC makes it."""
BALANCER_RBAC = shipped("deploy") / "addresses" / "rbac.yaml"
BALANCER = ObjectKey("kube-system", "lbctl-addresses")
"""The account of the process that gives load-balancer addresses, likewise."""

_TOKEN_SECONDS = 365 * 86_400


class ApiHost:
    """The processes in the namespace of the API server, and what they need."""

    def __init__(self, store: Store, spec: LabSpec) -> None:
        self._store, self._spec = store, spec
        self.plane = ControlPlane(
            assets=Path(spec.kubernetes),
            folder=store.api,
            address=str(api_server(spec.versions[0])),
            port=API_PORT,
            service_networks=tuple(SERVICE_CIDRS[version] for version in spec.versions),
        )

    def api(self, patience: float = 0.0) -> Api:
        """Return the API as an administrator has it on the machine; for patience see :class:`Api`."""
        return Api(Client(lambda: from_kubeconfig(str(self._store.kubeconfig))), patience)

    def bring_up(self) -> None:
        """Make keys, start everything and give the agents their account; the namespace is there already.

        Raises LabError: a process ended or is not ready in time, with the end of its log; openssl is missing.
        Raises ApiError: the API server refuses what it is asked first.
        """
        store, plane = self._store, self.plane
        plane.make_keys()
        self._spawn(FORWARDER, [sys.executable, "-m", "lb.lab.forward", self._spec.id], enter=False)
        self._wait("the forwarder to the API server", FORWARDER, lambda: store.port() > 0)
        write_kubeconfig(store.kubeconfig, plane.admin_kubeconfig(f"https://127.0.0.1:{store.port()}"))
        write_kubeconfig(self._inner_kubeconfig, plane.admin_kubeconfig(plane.url))
        self.start()
        self._admit(AGENT, RBAC, store.agent_kubeconfig)
        if self._spec.balanced:
            self._admit(BALANCER, BALANCER_RBAC, store.addresses_kubeconfig)
        if plane.has_controllers:
            self._spawn(CONTROLLERS, plane.controllers(self._inner_kubeconfig))

    @property
    def _inner_kubeconfig(self) -> Path:
        """An administrator's kubeconfig for use inside of the lab."""
        return self._store.api / "inner.kubeconfig"

    def start(self) -> None:
        """Start what does not run of etcd and the API server, and wait until they are ready.

        Raises LabError: one of them ended or is not ready in time; carries the end of its log.
        """
        if not self._store.running(ETCD):
            self._spawn(ETCD, self.plane.etcd())
        self._wait("etcd", ETCD, self._etcd_is_healthy)
        if not self._store.running(SERVER):
            self._spawn(SERVER, self.plane.api_server())
        self._wait("the API server", SERVER, self.api().ready)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Signal the API server and wait until it has ended; etcd keeps the objects.

        Raises LabError: it does not run, or does not end.
        """
        # It lets requests end, for up to 60 s.
        self._store.end_process(SERVER, "the API server", how, within=70.0)

    def check(self) -> None:
        """Find out whether everything that was started still runs.

        Raises LabError: something ended; carries the end of its log.
        """
        for name in (ETCD, SERVER, CONTROLLERS, FORWARDER):
            if self._store.process(name) is not None and not self._store.running(name):
                log = self._store.log(name)
                raise LabError(f"{name} ended; the end of its log {log}:\n{tail(log)}")

    def status(self) -> dict[str, Any]:
        """Return what runs, whether the API server is ready, and how to reach it."""
        processes = {}
        for name in (ETCD, SERVER, CONTROLLERS, FORWARDER):
            process = self._store.process(name)
            if process is not None:
                log = str(self._store.log(name))
                processes[name] = {"pid": process.pid, "running": process.alive(), "log": log}
        ready = False
        with contextlib.suppress(LabError, ApiError):
            ready = self._store.running(SERVER) is not None and self.api().ready()
        return {
            "ready": ready,
            "kubeconfig": str(self._store.kubeconfig),
            "url": self.plane.url,
            "from_the_machine": f"https://127.0.0.1:{self._store.port()}",
            "controllers": CONTROLLERS if self.plane.has_controllers else "the lab",
            "processes": processes,
        }

    def is_balanced(self) -> bool:
        """Tell whether something is said of every Service of type LoadBalancer."""
        items = self.api(START_SECONDS).send("GET", SERVICES.path)["items"]
        return all(
            item["status"].get("conditions") or item["status"]["loadBalancer"].get("ingress")
            for item in items
            if item["spec"]["type"] == "LoadBalancer"
        )

    def _admit(self, account: ObjectKey, rbac: Path, kubeconfig: Path) -> None:
        """Make a service account with its rights, and a kubeconfig with its token."""
        api = self.api(START_SECONDS)
        for name in ("default", account.namespace):
            make_namespace(api, name)  # the API server makes both by itself, but later
        for item in yaml.safe_load_all(rbac.read_text()):
            api.apply(api.resource(item["apiVersion"], item["kind"]), item)
        token = kubeconfig.with_suffix(".token")
        write_private(token, api.token(account, _TOKEN_SECONDS))
        config = self.plane.token_kubeconfig(self.plane.url, account.name, token)
        write_kubeconfig(kubeconfig, config)

    def _spawn(self, name: str, argv: list[str], *, enter: bool = True) -> None:
        inside = namespaces.command(self._spec.api, argv) if enter else argv
        self._store.write_process(name, spawn(inside, self._store.log(name), environment(), name))

    def _wait(self, what: str, name: str, done: Any) -> None:
        wait_for(what, done, self._store.process(name), self._store.log(name))

    def _etcd_is_healthy(self) -> bool:
        """Ask etcd, which only its own host can reach."""
        with namespaces.inside(self._spec.api), contextlib.suppress(OSError, http.client.HTTPException):
            line = http.client.HTTPConnection("127.0.0.1", self.plane.etcd_port, timeout=2.0)
            try:
                line.request("GET", "/health")
                return line.getresponse().status == 200
            finally:
                line.close()
        return False
