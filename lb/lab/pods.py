# SPDX-License-Identifier: Apache-2.0
"""The pods that a lab runs, and the socket on which ``lab pod`` and ``lab status`` ask about them.

Requests and answers are one JSON line each:

    {"do": "list"}                       → {"pods": [...], "errors": [...], "settled": true}
    {"do": "wait", "seconds": 10}        → the same, once every pod is ready or the time is over
    {"do": "ready", "pod": "NAME"}       → {}, once the pod's object says so; likewise "unready"
    {"do": "kill", "pod": "NAME"}        → {"replaced_by": [names]}
    {"do": "try"}                        → {"requests": [[place, URL], …]}: what would be worth a look

An answer {"error": "…"} says what could not be done.
"""

from __future__ import annotations

import abc
import asyncio
import contextlib
import itertools
import json
import logging
from collections.abc import Coroutine, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Any

from lb.errors import LabError
from lb.lab import balancer, dns, ingress
from lb.lab.addressing import AddressPool, LabSpec, pod_interface
from lb.lab.hints import requests
from lb.lab.ingress import Front
from lb.lab.runtime import Outlet, PodRuntime
from lb.lab.store import PodRecord, Store
from lb.lab.workloads import Workload
from lb.model import ObjectKey, Service
from lb.names import DNS

_MEND_SECONDS = 1.0
_log = logging.getLogger(__name__)


def now() -> str:
    """Return the present as Kubernetes writes it, ``2020-01-15T10:20:58Z``."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Pods(abc.ABC):
    """Runs pods; which ones, subclasses say."""

    def __init__(self, store: Store, spec: LabSpec, outlet: Outlet) -> None:
        self.store, self.spec = store, spec
        self.pods: dict[ObjectKey, PodRuntime] = {}
        self.order: dict[ObjectKey, int] = {}
        """Rises with the pods' start."""
        self.tasks: dict[ObjectKey, asyncio.Task[None]] = {}
        self._outlet = outlet
        self._count = itertools.count()
        self._pools = {node: AddressPool(spec.pod_cidrs(node)) for node in spec.node_names}
        self.front = Front(store, spec)
        self._changed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    # --- what subclasses decide ---------------------------------------------------------------------------

    @abc.abstractmethod
    def errors(self) -> Sequence[str]:
        """Return what stands in the way of pods."""

    @abc.abstractmethod
    def services(self) -> Iterable[Service]:
        """Return the Services that there are, with the addresses that they were given."""

    @abc.abstractmethod
    async def replace(self, pod: PodRuntime) -> list[str]:
        """Take note that a pod was killed and is gone; return the names of the pods that take its place."""

    def settled(self) -> bool:
        """Tell whether every pod that there should be is there and ready."""
        return all(pod.ready for pod in self.pods.values())

    # --- running pods -------------------------------------------------------------------------------------

    def start(self, key: ObjectKey, node: str, workload: Workload) -> bool:
        """Start a pod; return whether that was possible."""
        try:
            record = self._record(key, node, host_network=workload.host_network)
        except LabError as error:
            _log.error("pod %s: %s", key, error)
            return False
        pod = PodRuntime(
            self.store,
            self.spec,
            self._outlet,
            record,
            workload,
            services=self.services,
            changed=self.changed,
            now=now,
        )
        self.pods[key] = pod
        self.order[key] = next(self._count)
        task = asyncio.create_task(pod.run())
        task.add_done_callback(lambda done: self._ended(pod, done))
        self.tasks[key] = task
        return True

    def _record(self, key: ObjectKey, node: str, *, host_network: bool) -> PodRecord:
        """Return what a new pod has of the network: the node's, or its own with free addresses."""
        namespace, name = key.namespace, key.name
        if host_network:
            addresses, netns, interface = self.spec.node_addresses(node), self.spec.namespace(node), ""
        else:
            addresses = self._pools[node].take()
            netns, interface = self.spec.pod_namespace(namespace, name), pod_interface(namespace, name)
        return PodRecord(namespace, name, node, tuple(map(str, addresses)), netns, interface)

    @staticmethod
    def _ended(pod: PodRuntime, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            pod.message = f"could not be started: {error}"
            _log.error("pod %s: %s", pod.key, pod.message, exc_info=error)

    async def end(self, key: ObjectKey) -> None:
        """End a pod as a deletion does, with its grace period."""
        pod = self.pods[key]
        await pod.end(self.tasks[key])
        self._forget(pod)

    async def destroy(self, key: ObjectKey) -> None:
        """End a pod at once."""
        pod = self.pods[key]
        await pod.destroy(self.tasks[key])
        self._forget(pod)

    def _forget(self, pod: PodRuntime) -> None:
        if self.pods.get(pod.key) is pod:  # a pod may be killed while it ends
            self._pools[pod.record.node].give_back(tuple(map(ip_address, pod.record.addresses)))
            del self.pods[pod.key], self.tasks[pod.key], self.order[pod.key]
            self.changed()

    def in_background(self, work: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine beside everything else."""
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def changed(self) -> None:
        """Wake those that wait for a change of pods."""
        self._changed.set()
        self.front.wake()

    async def keep_servers(self) -> None:
        """Start anew what ends beside the pods of DNS and of who gives addresses, for ever."""
        while True:
            await asyncio.sleep(_MEND_SECONDS)
            for mend in (dns.mend, balancer.mend):
                try:
                    for name in await asyncio.to_thread(mend, self.store, self.spec):
                        _log.warning("%s had ended and was started anew; see %s", name, self.store.log(name))
                except (LabError, OSError) as error:
                    _log.error("starting anew: %s", error)

    # --- answering ----------------------------------------------------------------------------------------

    async def listen(self) -> asyncio.Server:
        """Open the socket."""
        return await asyncio.start_unix_server(self._converse, self.store.socket)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer one request."""
        try:
            answer = await self.do(json.loads(await reader.readline()))
        except (LabError, OSError, ValueError, KeyError) as error:
            answer = {"error": str(error) or repr(error)}
        with contextlib.suppress(OSError):
            writer.write(json.dumps(answer).encode() + b"\n")
            writer.close()
            await writer.wait_closed()

    async def do(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what the request asks and return the answer.

        Raises LabError: it cannot be done.
        """
        match request["do"]:
            case "list":
                return self.listing()
            case "wait":
                return await self._wait(float(request["seconds"]))
            case "ready" | "unready" as what:
                await self.find(request["pod"]).set_ready(what == "ready")
                return {}
            case "kill":
                pod = self.find(request["pod"])
                await self.destroy(pod.key)
                return {"replaced_by": await self.replace(pod)}
            case "try":
                ready = [key.name for key, pod in sorted(self.pods.items()) if pod.ready]
                services = [each for each in self.services() if each.key not in (ingress.SERVICE, DNS)]
                return {"requests": requests(self.spec, services, ready)}
            case other:
                raise LabError(f"the kubelet does not know {other!r}")

    def find(self, name: str) -> PodRuntime:
        """Return the pod called NAME or NAMESPACE/NAME.

        Raises LabError: no pod has this name, or pods of several namespaces have it.
        """
        namespace, slash, short = name.rpartition("/")
        found = [
            pod
            for key, pod in self.pods.items()
            if key.name == short and (not slash or key.namespace == namespace)
        ]
        if len(found) != 1:
            raise LabError(f"{'no' if not found else 'more than one'} pod is called {name}")
        return found[0]

    def listing(self) -> dict[str, Any]:
        """Return all pods in order of their names, and what is wrong."""
        pods = [
            {
                "namespace": key.namespace,
                "name": key.name,
                "node": pod.record.node,
                "address": pod.record.address,
                "addresses": list(pod.record.addresses),
                "phase": "Terminating" if pod.terminating else pod.phase,
                "ready": pod.ready,
                "restarts": pod.restarts,
                "message": pod.message,
            }
            for key, pod in sorted(self.pods.items())
        ]
        return {"pods": pods, "errors": list(self.errors()), "settled": self.settled()}

    async def _wait(self, seconds: float) -> dict[str, Any]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not self.settled():
                    self._changed.clear()
                    await self._changed.wait()
        return self.listing()
