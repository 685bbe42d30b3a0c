# SPDX-License-Identifier: Apache-2.0
"""The lab's kubelet and controllers: one process that keeps the pods of the manifests running.

Started by ``lab up`` as ``python -m lb.lab.kubelet LAB``; ends on SIGTERM and leaves the pods as they are. It
follows the directory of manifests, or, in a lab with an API server, that (:mod:`lb.lab.cluster`).
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import random
import signal
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

from watchfiles import awatch

from lb.config import Config
from lb.errors import InputError
from lb.lab import balancer, ingress
from lb.lab.addressing import LabSpec
from lb.lab.ingress_files import IngressFiles
from lb.lab.objects import node_object, to_yaml
from lb.lab.pods import Pods, now
from lb.lab.processes import ProcessRef
from lb.lab.runtime import FileOutlet, PodRuntime
from lb.lab.scheduling import Placed, Start, plan_pods
from lb.lab.store import Store
from lb.lab.workloads import Workload, read_file
from lb.manifests import documents
from lb.manifests.addresses import given_to
from lb.manifests.cluster import assemble
from lb.manifests.complete import Pools
from lb.manifests.library import Library
from lb.manifests.objects import ServiceAddresses
from lb.model import ObjectKey, Resource, Service
from lb.names import DNS
from lb.words import some

if TYPE_CHECKING:
    from lb.lab.cluster import ClusterKubelet

_READ_BESIDE = frozenset(
    ("ReplicaSet", "Deployment", "Ingress", "IngressClass", "Secret", "Namespace")
)  # what the lab reads and agents do not; a namespace needs no object here
_SUFFIXES = (".yaml", ".yml", ".json")
_log = logging.getLogger(__name__)


class Kubelet(Pods):
    """All pods of a lab that lives from a directory of manifests."""

    def __init__(self, store: Store, spec: LabSpec, draw: random.Random | None = None) -> None:
        super().__init__(store, spec, FileOutlet(store))
        self._draw = draw or random.Random()  # noqa: S311 - names, not secrets
        self._files: dict[Path, list[Workload]] = {}
        self._errors: list[InputError] = []
        node_ports = Config().node_port_range
        self._service_pools = Pools.parse(
            spec.service_cidr, node_ports
        )  # as the agents', who are told the same
        self._folders = [Path(spec.manifests), *([store.addons] if store.addons.is_dir() else [])]
        folders = [*self._folders, store.cluster]  # as the agents', too
        self._library = Library(folders, self._service_pools.node_ports, time.time)
        self._services: list[Service] = []
        self._ingresses = IngressFiles(store, self.front)
        self._pods_changed = asyncio.Event()
        self._removed: set[ObjectKey] = set()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stop is set."""
        for node in self.spec.node_names:
            self.store.write_object(f"node.{node}.yaml", to_yaml(node_object(self.spec, node, now())))
        self.read_manifests()
        self.reconcile()
        self.in_background(self.front.run(self.pods.values))
        self.in_background(self.keep_servers())
        self.in_background(self._follow_pods())
        async with await self.listen():
            with contextlib.suppress(FileNotFoundError):  # the directory went away: nothing more to follow
                async for _ in awatch(*self._folders, stop_event=stop, step=20, debounce=200):
                    self.read_manifests()
                    self.reconcile()
            await stop.wait()

    def errors(self) -> list[str]:
        """Return what is wrong in the manifests, and what of them nobody here reads."""
        found = [str(error) for error in (*self._errors, *self._ingresses.errors())]
        counted = sorted(self._library.passed_over().items())
        unread = [
            f"{count} {kind}"
            for kind, count in counted
            if kind.split()[0].removesuffix("List") not in _READ_BESIDE
        ]
        return [*found, *([f"warning: {self.spec.manifests}: not read: {some(unread)}"] if unread else [])]

    def changed(self) -> None:
        """See the base class."""
        super().changed()
        self._pods_changed.set()

    async def _follow_pods(self) -> None:
        """Have Ingresses served by the pods that are ready, for ever."""
        while True:
            await self._pods_changed.wait()
            self._pods_changed.clear()
            if self._ingresses.active:
                self._ingresses.plan(self._resources()[0])

    def _resources(self) -> tuple[Collection[Resource], list[InputError]]:
        """Return what agents make of all objects, and what is wrong with some."""
        self._library.refresh()
        objects, wrong = self._library.contents()
        resources, more = assemble(objects, self._service_pools)
        return resources.values(), [*wrong, *more]

    def read_manifests(self) -> None:
        """Read every manifest; a file with errors keeps the workloads that it had and now lacks.

        What is wrong with Services and other objects that are the agents' to read is an error here, too.
        """
        files: dict[Path, list[Workload]] = {}
        errors: list[InputError] = []
        for path in sorted(path for folder in self._folders for path in folder.iterdir()):
            if path.suffix in _SUFFIXES and not path.name.startswith("."):
                workloads, wrong = read_file(path)
                if wrong:
                    good = {workload.key for workload in workloads}
                    workloads += [old for old in self._files.get(path, ()) if old.key not in good]
                files[path] = workloads
                errors += wrong
        self._ingresses.read(Path(self.spec.manifests), files)
        resources, wrong = self._resources()
        self._services = [each for each in resources if isinstance(each, Service)]
        self._ingresses.plan(resources)
        told = {str(error) for error in errors}
        errors += [error for error in wrong if str(error) not in told]
        for error in errors:
            if str(error) not in {str(known) for known in self._errors}:
                _log.error("%s", error)
        self._files, self._errors = files, errors
        others = (each for each in self._services if each.key != ingress.SERVICE)  # which has its own
        if balancer.wanted(self.spec, others):
            balancer.ensure(self.store, self.spec)

    def services(self) -> list[Service]:
        """See the base class."""
        given: dict[ObjectKey, ServiceAddresses] = {}
        with contextlib.suppress(OSError):
            read = documents.read("", self.store.addresses.read_text(), self._service_pools.node_ports)
            given = {each.key: each for each in read.objects.values() if isinstance(each, ServiceAddresses)}
        return [given_to(each, given.get(each.key)) for each in self._services]

    def workloads(self) -> dict[ObjectKey, Workload]:
        """Return what has to run, by key; of two with one key the first file's counts."""
        result: dict[ObjectKey, Workload] = {}
        for workload in itertools.chain(*self._files.values(), self._ingresses.workloads()):
            if workload.node and workload.node not in self.spec.node_names:
                _log.error("%s %s: this lab has no node %s", workload.kind, workload.key, workload.node)
                continue
            replicas = self.spec.replicas
            if workload.kind != "Pod" and replicas is not None and workload.key != DNS:
                workload = dataclasses.replace(workload, replicas=replicas)  # noqa: PLW2901
            result.setdefault(workload.key, workload)
        return result

    def reconcile(self) -> list[ObjectKey]:
        """Start and stop pods until the manifests are satisfied; return the keys of the pods started."""
        workloads = self.workloads()
        self._removed &= workloads.keys()
        placed = [
            Placed(key, pod.workload.key, pod.record.node, pod.ready, self.order[key])
            for key, pod in self.pods.items()
            if not pod.terminating
        ]
        start, stop = plan_pods(workloads, placed, self.spec.node_names, self._draw, self._removed)
        for key in stop:
            self.in_background(self._end(key))
        return [each.key for each in start if self._start(each)]

    def _start(self, each: Start) -> bool:
        # A bare pod of this name may still be terminating: its end reconciles again.
        return each.key not in self.pods and self.start(each.key, each.node, each.workload)

    async def _end(self, key: ObjectKey) -> None:
        await self.end(key)
        self.reconcile()

    async def replace(self, pod: PodRuntime) -> list[str]:
        """See the base class; no controller brings a bare pod back."""
        if pod.workload.kind == "Pod" and pod.workload.image != ingress.IMAGE:
            self._removed.add(pod.key)
        return [started.name for started in self.reconcile()]


async def _serve(store: Store) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    spec = store.read_lab().spec
    if spec.kubernetes:
        await _cluster_kubelet(store, spec).run(stop)
    else:
        await Kubelet(store, spec).run(stop)


def _cluster_kubelet(store: Store, spec: LabSpec) -> ClusterKubelet:
    from lb.lab.apihost import ApiHost  # noqa: PLC0415 - large, and needed only here
    from lb.lab.cluster import ClusterKubelet  # noqa: PLC0415

    host = ApiHost(store, spec)
    return ClusterKubelet(store, spec, host.api(), with_controllers=host.plane.has_controllers)


def main(lab: str) -> None:
    """Run the kubelet of a lab that exists."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    store = Store(lab)
    store.write_process("kubelet", ProcessRef.own())
    asyncio.run(_serve(store))


if __name__ == "__main__":
    main(sys.argv[1])
