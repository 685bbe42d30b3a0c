# SPDX-License-Identifier: Apache-2.0
"""Ingress in the lab: a pod with nginx on each node behind one Service, and what nginx is told.

The Service is of type LoadBalancer with ``externalTrafficPolicy: Local``, so nginx sees who asks. There are
pods and Service only while there is an Ingress to serve. A pod's configuration is replaced and nginx told to
read it (SIGHUP): old workers finish what they are at, sockets stay open. Nothing is told to a pod that is not
ready: it starts with the configuration of that moment.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Iterable, Mapping
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lb.errors import InputError
from lb.ingress import nginx
from lb.ingress.folder import refused, write
from lb.ingress.objects import Certificate, Ingress
from lb.ingress.plan import Site, plan
from lb.lab.addressing import LabSpec
from lb.lab.store import PodRecord, Store
from lb.model import EndpointSlice, IPAddress, ObjectKey, Service

if TYPE_CHECKING:
    from lb.lab.runtime import PodRuntime

IMAGE = "lab/nginx"
SERVICE = ObjectKey("kube-system", "ingress")
LABELS = {"app": "ingress"}
ADDRESSES: dict[int, IPAddress] = {4: IPv4Address("203.0.113.80"), 6: IPv6Address("2001:db8:203::80")}
"""The Service's, by IP version, of the lab's pool: its annotation keeps them from other Services."""

REQUEST = "lbctl/addresses"
"""The annotation by which a Service asks for addresses of a pool."""

PACE_SECONDS = 0.5
"""Between two changes of nginx's configuration: each leaves a worker behind until its connections end."""

_FOLDER = "conf"
_log = logging.getLogger(__name__)


def pod_key(node: str) -> ObjectKey:
    """Return the key of a node's pod."""
    return ObjectKey(SERVICE.namespace, f"{SERVICE.name}-{node}")


def pod_object(node: str) -> dict[str, Any]:
    """Return the Pod of a node."""
    key = pod_key(node)
    ports = [
        {"name": "http", "containerPort": nginx.HTTP_PORT},
        {"name": "https", "containerPort": nginx.HTTPS_PORT},
    ]
    probe = {
        "httpGet": {"path": nginx.HEALTH_PATH, "port": nginx.HEALTH_PORT},
        "periodSeconds": 1,
        "failureThreshold": 3,
    }
    container = {"name": "nginx", "image": IMAGE, "ports": ports, "readinessProbe": probe}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": key.name, "namespace": key.namespace, "labels": LABELS},
        "spec": {"nodeName": node, "terminationGracePeriodSeconds": 10, "containers": [container]},
    }


def service_object(spec: LabSpec) -> dict[str, Any]:
    """Return the Service in front of the pods, without its status."""
    ports = [
        {"name": name, "port": port, "targetPort": name, "protocol": "TCP"}
        for name, port in (("http", nginx.HTTP_PORT), ("https", nginx.HTTPS_PORT))
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": SERVICE.name,
            "namespace": SERVICE.namespace,
            "annotations": {REQUEST: ",".join(str(ADDRESSES[version]) for version in spec.versions)},
        },
        "spec": {
            "type": "LoadBalancer",
            "ipFamilyPolicy": "PreferDualStack",
            "externalTrafficPolicy": "Local",
            "selector": LABELS,
            "ports": ports,
        },
    }


def status_object(spec: LabSpec) -> dict[str, Any]:
    """Return the status of the Service, and of every Ingress that is served."""
    return {"loadBalancer": {"ingress": [{"ip": str(ADDRESSES[version])} for version in spec.versions]}}


def prepare(store: Store, spec: LabSpec, _record: PodRecord, folder: Path) -> None:
    """See :class:`lb.lab.servers.Prepare`."""
    accepted = {path.name: path.read_text() for path in store.ingress.glob("*") if path.is_file()}
    write(folder / _FOLDER, accepted or nginx.files(Site(), spec.versions))


class Front:
    """What nginx on all nodes is to serve, and whether it has been told."""

    def __init__(self, store: Store, spec: LabSpec) -> None:
        self._store, self.spec = store, spec
        self._errors: list[InputError] = []
        self._wanted: dict[str, str] = {}
        self._seen: dict[str, str] = {}
        self._accepted: dict[str, str] = {}
        self._refused = ""
        self._wake = asyncio.Event()

    def plan(
        self,
        ingresses: Iterable[Ingress],
        services: Iterable[Service],
        slices: Iterable[EndpointSlice],
        certificates: Mapping[ObjectKey, Certificate],
    ) -> None:
        """Say what is to be served, the oldest Ingress first."""
        site, self._errors = plan(list(ingresses), services, slices, certificates)
        self._wanted = nginx.files(site, self.spec.versions)
        self.wake()

    def errors(self) -> list[InputError]:
        """Return what cannot be served."""
        refused = InputError(str(self._store.ingress), 0, nginx.MAIN, "", self._refused)
        return [*self._errors, *([refused] if self._refused else [])]

    def wake(self) -> None:
        """Have a look at the pods."""
        self._wake.set()

    async def run(self, pods: Callable[[], Iterable[PodRuntime]]) -> None:
        """Tell nginx what is new, for ever; pods gives all that run."""
        while True:
            await self._wake.wait()
            self._wake.clear()
            try:
                await asyncio.to_thread(self._accept)
                told = [pod for pod in list(pods()) if pod.workload.image == IMAGE and self._tell(pod)]
            except OSError as error:
                _log.error("Ingress: %s", error)
                continue
            if told:
                await asyncio.sleep(PACE_SECONDS)

    def _accept(self) -> None:
        """Have nginx look at a new configuration; one that it refuses is not handed out."""
        wanted = self._wanted
        if wanted == self._seen:
            return
        self._seen = wanted
        self._refused = refused(self._store.ingress / "draft", wanted)
        if self._refused:
            _log.error("Ingress: nginx refuses its configuration: %s", self._refused)
            return
        write(self._store.ingress, wanted)
        self._accepted = wanted

    def _tell(self, pod: PodRuntime) -> bool:
        """Hand the configuration to a pod's nginx unless it has it; return whether it was told."""
        process = pod.record.process
        if not self._accepted or not pod.ready or process is None or not process.alive():
            return False
        folder = self._store.pod_folder(pod.record) / _FOLDER
        if (folder / nginx.MAIN).read_text() == self._accepted[nginx.MAIN]:  # names its certificates, too
            return False
        write(folder, self._accepted)
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGHUP)
        return True
