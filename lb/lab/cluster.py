# SPDX-License-Identifier: Apache-2.0
"""The lab's kubelet, and its controllers where there are none, for a lab that lives from an API server.

It registers the nodes, gives pods that have no node one, runs the pods of its nodes and reports their status.
Without kube-controller-manager it also makes the pods of ReplicaSets and Deployments and writes
EndpointSlices. What it knows comes from watches; its own writes are taken in as they are answered, so that no
decision is taken twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from typing import ParamSpec, TypeVar

import msgspec

from lb.errors import InputError, LabError
from lb.kube import convert
from lb.kube.availability import Availability
from lb.kube.client import ApiError
from lb.kube.events import EventWriter, Notice
from lb.kube.timing import Timing
from lb.lab import controllers, garbage, ingress_api
from lb.lab.addressing import LabSpec
from lb.lab.api import (
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICA_SETS,
    SERVICES,
    Api,
    GoneError,
    Object,
    gone,
    key_of,
    passing,
)
from lb.lab.ingress_api import IngressApi
from lb.lab.objects import node_object
from lb.lab.pods import Pods, now
from lb.lab.runtime import PodRuntime
from lb.lab.scheduling import least_loaded, plan_pods
from lb.lab.store import Store
from lb.lab.watch import Cache, Change, follower
from lb.model import ObjectKey, Pod, Service

_log = logging.getLogger(__name__)

_WITH_CONTROLLERS = (REPLICA_SETS, DEPLOYMENTS, *ingress_api.FOLLOWED)
_WITHOUT = (*_WITH_CONTROLLERS, ENDPOINTS, NODES, NAMESPACES)
_RETRY_SECONDS = 1.0
_WRITE_SECONDS = 30.0
_REPLACE_SECONDS = 5.0
_TERMINATING = "2020-01-01T00:00:00Z"
"""Stands for the deletionTimestamp of a pod that we have deleted until the watch brings the true one."""

P = ParamSpec("P")
T = TypeVar("T")


class StatusOutlet:
    """Reports the status of pods to the API server, each pod's last one, until it is taken."""

    def __init__(self, api: Api, events: EventWriter) -> None:
        self._api = api
        self._events = events
        self._uids: dict[ObjectKey, str] = {}
        self._wanted: dict[ObjectKey, Object] = {}
        self._tasks: dict[ObjectKey, asyncio.Task[None]] = {}
        self._refused: dict[ObjectKey, str] = {}

    def admit(self, key: ObjectKey, uid: str) -> None:
        """Note the uid of a pod whose status will be written."""
        self._uids[key] = uid

    def write(self, key: ObjectKey, pod: Object) -> None:
        """See :class:`lb.lab.runtime.Outlet`."""
        if self._wanted.get(key) != pod["status"]:
            self._wanted[key] = pod["status"]
            self._refused.pop(key, None)
            if key not in self._tasks:
                self._tasks[key] = asyncio.create_task(self._send(key))

    def unhealthy(self, key: ObjectKey, failure: str) -> None:
        """See :class:`lb.lab.runtime.Outlet`; reason and words are the kubelet's."""
        if key in self._uids:
            note = f"Readiness probe failed: {failure}"
            self._events.publish(Notice(Pod, key, self._uids[key], "Unhealthy", "Probe", note))

    async def _send(self, key: ObjectKey) -> None:
        """Send what is wanted of a pod, until the server has the last of it."""
        try:
            sent: Object = {}
            while key in self._uids and (status := self._wanted.get(key, sent)) is not sent:
                try:
                    with gone():
                        await asyncio.to_thread(self._api.patch_status, PODS, key, self._uids[key], status)
                    sent = status
                except GoneError:
                    return
                except ApiError as error:
                    _log.warning("status of pod %s: %s", key, error)
                    if not passing(error):
                        self._refused[key] = str(error)
                        return
                    await asyncio.sleep(_RETRY_SECONDS)
        finally:
            del self._tasks[key]

    async def written(self, key: ObjectKey) -> None:
        """See :class:`lb.lab.runtime.Outlet`."""
        if task := self._tasks.get(key):
            done, _ = await asyncio.wait({task}, timeout=_WRITE_SECONDS)
            if not done:
                raise LabError(f"pod {key}: the API server did not take its status yet")
        if key in self._refused:
            raise LabError(f"pod {key}: {self._refused[key]}")

    def remove(self, key: ObjectKey) -> None:
        """See :class:`lb.lab.runtime.Outlet`; the object itself is the API's."""
        self._uids.pop(key, None)
        self._wanted.pop(key, None)
        self._refused.pop(key, None)


class ClusterKubelet(Pods):
    """All pods of a lab that lives from an API server.

    with_controllers: whether kube-controller-manager runs, so that only the kubelet's part is left.
    """

    def __init__(
        self,
        store: Store,
        spec: LabSpec,
        api: Api,
        *,
        with_controllers: bool,
        draw: random.Random | None = None,
    ) -> None:
        self._availability = Availability(api.client.probe, Timing())
        self._events = EventWriter(api.client, "kubelet", Timing(), self._availability)
        self._statuses = StatusOutlet(api, self._events)
        super().__init__(store, spec, self._statuses)
        self._api = api
        self._draw = draw or random.Random()  # noqa: S311 - names, not secrets
        self._with_controllers = with_controllers
        self._resources = _WITH_CONTROLLERS if with_controllers else _WITHOUT
        self.cache = Cache(self._resources)
        self._uids: dict[ObjectKey, str] = {}
        self._killed: set[str] = set()
        self._ending: set[PodRuntime] = set()
        self._ingresses = IngressApi(api, self.front)
        self._slices = controllers.SlicePlanner()
        self._sent: dict[ObjectKey, Object] = {}
        self._errors: list[InputError] = []
        self._wake = asyncio.Event()

    async def run(self, stop: asyncio.Event) -> None:
        """Serve until stop is set."""
        await self._register()
        halt = threading.Event()
        loop = asyncio.get_running_loop()

        def tell(change: Change) -> None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: we are ending
                loop.call_soon_threadsafe(self._learn, change)

        runs = {"events": self._events.run}
        for resource in self._resources:
            runs[resource.name] = follower(self._api, resource, tell, self._availability).run
        for name, run in runs.items():
            threading.Thread(target=run, args=(halt,), name=name, daemon=True).start()
        self.in_background(self.front.run(self.pods.values))
        self.in_background(self.keep_servers())
        work = asyncio.create_task(self._work())
        async with await self.listen():
            await asyncio.wait({work, asyncio.create_task(stop.wait())}, return_when=asyncio.FIRST_COMPLETED)
        halt.set()
        self._events.interrupt()
        self._availability.wake()
        work.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await work

    def _learn(self, change: Change) -> None:
        change(self.cache)
        self._wake.set()

    async def _work(self) -> None:
        while True:
            await self._wake.wait()
            self._wake.clear()
            await self.turn()

    async def turn(self) -> None:
        """Do what is to be done; what the API server did not take is tried again after a moment."""
        if not self.cache.complete:
            return
        try:
            await self.reconcile()
        except ApiError as error:
            _log.warning("%s; trying again", error)
            asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._wake.set)
        self.changed()

    async def _call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Send a request from another thread."""
        return await asyncio.to_thread(function, *args, **kwargs)

    async def _register(self) -> None:
        """Register the nodes."""
        for node in self.spec.node_names:
            item = node_object(self.spec, node, now())
            meta = {name: value for name, value in item["metadata"].items() if name != "creationTimestamp"}
            item["metadata"] = meta
            status = item.pop("status")
            uid = (await self._call(self._api.apply, NODES, item))["metadata"]["uid"]
            await self._call(self._api.patch_status, NODES, key_of(item), uid, status)

    # --- the base class's questions -----------------------------------------------------------------------

    def errors(self) -> list[str]:
        """Return what is wrong with objects of the API."""
        return [str(error) for error in (*self._errors, *self._ingresses.errors())]

    def services(self) -> list[Service]:
        """See the base class; one that cannot be read is nobody's."""
        read = (convert.SERVICES.read(msgspec.json.encode(item)) for item in self.cache.of(SERVICES).values())
        return [each.resource for each in read if each.resource is not None]

    def settled(self) -> bool:
        """Tell whether every ReplicaSet and Deployment has its pods, and all pods are ready."""
        wanted = [*self.cache.of(REPLICA_SETS).values(), *self.cache.of(DEPLOYMENTS).values()]
        return (
            self.cache.complete
            and all(map(controllers.satisfied, wanted))
            and all(key in self.pods or controllers.finished(pod) for key, pod in self.cache.of(PODS).items())
            and super().settled()
        )

    async def replace(self, pod: PodRuntime) -> list[str]:
        """See the base class."""
        item = self.cache.of(PODS).get(pod.key)
        if item is None:
            return []
        self._killed.add(item["metadata"]["uid"])
        _, owner = controllers.controller_of(item)
        before = set(self._controlled_by(owner))
        await self._delete(item, now=True)
        self._wake.set()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_REPLACE_SECONDS if owner else 0):
                while not set(self._controlled_by(owner)) - before:
                    self._changed.clear()
                    await self._changed.wait()
        return sorted(key.name for key in set(self._controlled_by(owner)) - before)

    def _controlled_by(self, uid: str) -> list[ObjectKey]:
        pods = self.cache.of(PODS).items()
        return [key for key, pod in pods if uid and controllers.controller_of(pod)[1] == uid]

    # --- reconciling --------------------------------------------------------------------------------------

    async def reconcile(self) -> None:
        """Bring the API's objects and the pods that run together.

        Raises ApiError: the API server did not take something.
        """
        errors: list[InputError] = []
        if not self._with_controllers:
            await garbage.collect(self._api, self.cache)
            await self._control(errors)
        await self._schedule()
        await self._run_pods(errors)
        if not self._with_controllers:
            await self._write_slices(errors)
        await self._ingresses.reconcile(self.cache)
        for error in errors:
            if str(error) not in self.errors():
                _log.error("%s", error)
        self._errors = errors

    async def _control(self, errors: list[InputError]) -> None:
        """Make the pods of ReplicaSets and Deployments, and delete those that are too many."""
        by_uid = controllers.owners(self.cache, errors)
        living = {each.workload.key: each for each in by_uid.values() if each.workload and not _dying(each)}
        pods = self.cache.of(PODS)
        workloads = {key: owner.workload for key, owner in living.items() if owner.workload}
        present = controllers.placed(pods.values(), by_uid)
        start, stop = plan_pods(workloads, present, self.spec.node_names, self._draw)
        for each in start:
            pod = controllers.pod_of(living[each.workload.key], each.key, each.node)
            self.cache.put(PODS, await self._call(self._api.create, PODS, pod))
        for key in stop:
            await self._delete(pods[key])
        for owner in by_uid.values():
            await self._report(owner)

    async def _report(self, owner: controllers.Owner) -> None:
        status = controllers.owner_status(owner, self.cache.of(PODS).values())
        if controllers.differs(status, owner.item):
            key, uid = key_of(owner.item), owner.item["metadata"]["uid"]
            with contextlib.suppress(GoneError), gone():
                item = await self._call(self._api.patch_status, owner.resource, key, uid, status)
                self.cache.put(owner.resource, item)

    async def _schedule(self) -> None:
        """Give every pod that has no node the one with the fewest pods."""
        pods = self.cache.of(PODS)
        for key, pod in pods.items():
            if pod["spec"].get("nodeName") or controllers.terminating(pod):
                continue
            _, owner = controllers.controller_of(pod)
            load = Counter(each["spec"].get("nodeName", "") for each in pods.values())
            siblings = [each for each in pods.values() if controllers.controller_of(each)[1] == owner != ""]
            share = Counter(each["spec"].get("nodeName", "") for each in siblings)
            node = least_loaded(self.spec.node_names, share, load)
            with contextlib.suppress(GoneError), gone():
                await self._call(self._api.bind, key, node)
                pod["spec"]["nodeName"] = node

    async def _run_pods(self, errors: list[InputError]) -> None:
        """Start the pods of our nodes that do not run, and end those that are not to run any more."""
        pods = self.cache.of(PODS)
        for key, running in list(self.pods.items()):
            item = pods.get(key)
            if running.terminating or running in self._ending:
                continue
            gone_by = item is None or item["metadata"]["uid"] != self._uids[key]
            if gone_by or (item is not None and controllers.terminating(item)):
                self._ending.add(running)
                self.in_background(self._end(running, None if gone_by else item))
        ended = []
        for key, item in pods.items():  # without a pause: what is seen here still holds
            node, uid = item["spec"].get("nodeName", ""), item["metadata"]["uid"]
            if key in self.pods or node not in self.spec.node_names or uid in self._killed:
                continue
            if controllers.terminating(item):
                ended.append(item)
            elif not controllers.finished(item):
                self._admit(key, node, item, errors)
        for item in ended:
            await self._delete(item, now=True)

    def _admit(self, key: ObjectKey, node: str, item: Object, errors: list[InputError]) -> None:
        try:
            workload = controllers.workload_of(item, "v1", "Pod")
        except InputError as error:
            errors.append(error)
            return
        self._uids[key] = item["metadata"]["uid"]
        self._statuses.admit(key, self._uids[key])
        self.start(key, node, workload)

    async def _end(self, pod: PodRuntime, item: Object | None) -> None:
        """End a pod that runs, and then its object if it is still there."""
        if item is not None:
            grace = item["metadata"].get("deletionGracePeriodSeconds", pod.workload.grace)
            pod.workload = replace(pod.workload, grace=grace)
        await self.end(pod.key)
        self._ending.discard(pod)
        while item is not None:
            try:
                await self._delete(item, now=True)
                break
            except ApiError as error:
                _log.warning("pod %s: %s; trying again", pod.key, error)
                await asyncio.sleep(_RETRY_SECONDS)
        self._wake.set()

    async def _delete(self, item: Object, *, now: bool = False) -> None:
        """Delete a pod; now: it does not run any more."""
        key, uid = key_of(item), item["metadata"]["uid"]
        await self._call(self._api.delete, PODS, key, uid, now=now)
        if now or not item["spec"].get("nodeName"):
            self.cache.drop(PODS, item)
        else:
            item["metadata"].setdefault("deletionTimestamp", _TERMINATING)

    async def _write_slices(self, errors: list[InputError]) -> None:
        """Write EndpointSlices that differ from what was written, and delete those that are not wanted."""
        wanted = self._slices.plan(self.cache, errors)
        present = self.cache.of(ENDPOINT_SLICES)
        for key, item in wanted.items():
            if self._sent.get(key) != item or key not in present:
                stored = await self._call(self._api.apply, ENDPOINT_SLICES, item)
                self.cache.put(ENDPOINT_SLICES, stored)
                self._sent[key] = item
        for key, item in list(present.items()):
            labels = item["metadata"].get("labels") or {}
            if labels.get(controllers.MANAGED_BY) == controllers.US and key not in wanted:
                await self._call(self._api.delete, ENDPOINT_SLICES, key, item["metadata"]["uid"])
                self.cache.drop(ENDPOINT_SLICES, item)
                self._sent.pop(key, None)


def _dying(owner: controllers.Owner) -> bool:
    return controllers.terminating(owner.item)
