"""The lab's kubelet and controllers: one process that keeps the pods of the manifests running.

Started by ``lab up`` as ``python -m lb.lab.kubelet LAB``; ends on SIGTERM and leaves the pods as they are. It
follows the directory of manifests, and it answers on a socket, one JSON line each way:

    {"do": "list"}                       → {"pods": [...], "errors": [...]}
    {"do": "wait", "seconds": 10}        → the same, once every pod is ready or the time is over
    {"do": "ready", "pod": "NAME"}       → {}, once the pod's object says so; likewise "unready"
    {"do": "kill", "pod": "NAME"}        → {"replaced_by": [names]}

An answer {"error": "…"} says what could not be done.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import itertools
import json
import logging
import os
import random
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import IPv4Address
from pathlib import Path
from typing import Any

from watchfiles import awatch

from lb.errors import InputError, LabError
from lb.lab.addressing import AddressPool, LabSpec, pod_cidr, pod_interface
from lb.lab.objects import node_object, to_yaml
from lb.lab.processes import ProcessRef
from lb.lab.runtime import PodRuntime
from lb.lab.scheduling import Placed, Start, plan_pods
from lb.lab.store import PodRecord, Store
from lb.lab.workloads import Workload, read_file
from lb.model import ObjectKey

_SUFFIXES = (".yaml", ".yml", ".json")
_log = logging.getLogger(__name__)


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


class Kubelet:
    """All pods of one lab."""

    def __init__(self, store: Store, spec: LabSpec, draw: random.Random | None = None) -> None:
        self._store, self._spec = store, spec
        self._draw = draw or random.Random()  # noqa: S311 - names, not secrets
        self._pods: dict[ObjectKey, PodRuntime] = {}
        self._tasks: dict[ObjectKey, asyncio.Task[None]] = {}
        self._order: dict[ObjectKey, int] = {}
        self._count = itertools.count()
        self._pools = {node: AddressPool(pod_cidr(node)) for node in spec.node_names}
        self._files: dict[Path, list[Workload]] = {}
        self._errors: list[InputError] = []
        self._removed: set[ObjectKey] = set()
        self._changed = asyncio.Event()
        self._background: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until SIGTERM."""
        stop = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
        for node in self._spec.node_names:
            self._store.write_object(f"node.{node}.yaml", to_yaml(node_object(node, _now())))
        self.read_manifests()
        self.reconcile()
        server = await asyncio.start_unix_server(self._converse, self._store.socket)
        async with server:
            with contextlib.suppress(FileNotFoundError):  # the directory went away: nothing more to follow
                async for _ in awatch(self._spec.manifests, stop_event=stop, step=20, debounce=200):
                    self.read_manifests()
                    self.reconcile()
            await stop.wait()

    def read_manifests(self) -> None:
        """Read every manifest; a file with errors keeps the workloads that it had and now lacks."""
        files: dict[Path, list[Workload]] = {}
        errors: list[InputError] = []
        for path in sorted(Path(self._spec.manifests).iterdir()):
            if path.suffix in _SUFFIXES and not path.name.startswith("."):
                workloads, wrong = read_file(path)
                if wrong:
                    good = {workload.key for workload in workloads}
                    workloads += [old for old in self._files.get(path, ()) if old.key not in good]
                files[path] = workloads
                errors += wrong
        for error in errors:
            if str(error) not in {str(known) for known in self._errors}:
                _log.error("%s", error)
        self._files, self._errors = files, errors

    def workloads(self) -> dict[ObjectKey, Workload]:
        """Return what has to run, by key; of two with one key the first file's counts."""
        result: dict[ObjectKey, Workload] = {}
        for workload in itertools.chain.from_iterable(self._files.values()):
            if workload.node and workload.node not in self._spec.node_names:
                _log.error("%s %s: this lab has no node %s", workload.kind, workload.key, workload.node)
                continue
            replicas = self._spec.replicas
            if workload.kind != "Pod" and replicas is not None:
                workload = dataclasses.replace(workload, replicas=replicas)  # noqa: PLW2901
            result.setdefault(workload.key, workload)
        return result

    def reconcile(self) -> list[ObjectKey]:
        """Start and stop pods until the manifests are satisfied; return the keys of the pods started."""
        workloads = self.workloads()
        self._removed &= workloads.keys()
        placed = [
            Placed(key, pod.workload.key, pod.record.node, pod.ready, self._order[key])
            for key, pod in self._pods.items()
            if not pod.terminating
        ]
        start, stop = plan_pods(workloads, placed, self._spec.node_names, self._draw, self._removed)
        for key in stop:
            self._in_background(self._end(key))
        return [each.key for each in start if self._start(each)]

    def _in_background(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    def _start(self, each: Start) -> bool:
        if each.key in self._pods:  # a bare pod of this name is still terminating: its end reconciles again
            return False
        try:
            address = self._pools[each.node].take()
        except LabError as error:
            _log.error("pod %s: %s", each.key, error)
            return False
        namespace, name = each.key.namespace, each.key.name
        record = PodRecord(
            namespace,
            name,
            each.node,
            str(address),
            self._spec.pod_namespace(namespace, name),
            pod_interface(namespace, name),
        )
        pod = PodRuntime(self._store, self._spec, record, each.workload, changed=self._changed.set, now=_now)
        self._pods[each.key] = pod
        self._order[each.key] = next(self._count)
        task = asyncio.create_task(pod.run())
        task.add_done_callback(lambda done: self._ended(pod, done))
        self._tasks[each.key] = task
        return True

    @staticmethod
    def _ended(pod: PodRuntime, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()):
            pod.message = f"could not be started: {error}"
            _log.error("pod %s: %s", pod.key, pod.message, exc_info=error)

    async def _end(self, key: ObjectKey) -> None:
        await self._pods[key].end(self._tasks[key])
        self._forget(key)
        self.reconcile()

    def _forget(self, key: ObjectKey) -> None:
        pod = self._pods.pop(key)
        self._pools[pod.record.node].give_back(IPv4Address(pod.record.address))
        del self._tasks[key], self._order[key]

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

        Raises
        ------
        LabError: it cannot be done.
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
                return await self._kill(self.find(request["pod"]).key)
            case other:
                raise LabError(f"the kubelet does not know {other!r}")

    def find(self, name: str) -> PodRuntime:
        """Return the pod called NAME or NAMESPACE/NAME.

        Raises
        ------
        LabError: there is none, or several namespaces have one.
        """
        namespace, slash, short = name.rpartition("/")
        found = [
            pod
            for key, pod in self._pods.items()
            if key.name == short and (not slash or key.namespace == namespace)
        ]
        if len(found) != 1:
            raise LabError(f"{'no' if not found else 'more than one'} pod is called {name}")
        return found[0]

    def listing(self) -> dict[str, Any]:
        """Return all pods in order of their names, and what is wrong in the manifests."""
        pods = [
            {
                "namespace": key.namespace,
                "name": key.name,
                "node": pod.record.node,
                "address": pod.record.address,
                "phase": "Terminating" if pod.terminating else pod.phase,
                "ready": pod.ready,
                "restarts": pod.restarts,
                "message": pod.message,
            }
            for key, pod in sorted(self._pods.items())
        ]
        return {"pods": pods, "errors": [str(error) for error in self._errors]}

    async def _wait(self, seconds: float) -> dict[str, Any]:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while not all(pod.ready for pod in self._pods.values()):
                    self._changed.clear()
                    await self._changed.wait()
        return self.listing()

    async def _kill(self, key: ObjectKey) -> dict[str, Any]:
        pod = self._pods[key]
        if pod.workload.kind == "Pod":
            self._removed.add(key)
        await pod.destroy(self._tasks[key])
        self._forget(key)
        return {"replaced_by": [started.name for started in self.reconcile()]}


def main(lab: str) -> None:
    """Run the kubelet of a lab that exists."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    store = Store(lab)
    spec = store.read_lab().spec
    own = ProcessRef.of(os.getpid())
    assert own is not None
    store.write_process("kubelet", own)
    asyncio.run(Kubelet(store, spec).run())


if __name__ == "__main__":
    main(sys.argv[1])
