# SPDX-License-Identifier: Apache-2.0
"""One pod: its network, its process, its readiness."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from lb.errors import LabError
from lb.lab import cgroups, dns, namespaces, pod, probes, resolver, servers, topology
from lb.lab.addressing import LabSpec
from lb.lab.environment import expand, pod_environment
from lb.lab.objects import pod_object, pod_status, to_yaml
from lb.lab.processes import ProcessRef, kill
from lb.lab.store import PodRecord, Store
from lb.lab.workloads import Workload
from lb.model import ObjectKey, Service

READY = "/var/ready"
"""A file that ``lab pod ready`` makes and ``lab pod unready`` removes, for exec probes of manifests."""

_log = logging.getLogger(__name__)

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""What container runtimes give a container whose image says nothing."""


def backoff(restarts: int) -> float:
    """Return the seconds to wait before the n-th restart: the first is at once, later ones 1, 2, 4 … 10."""
    return 0.0 if restarts <= 1 else float(min(10, 2 ** (restarts - 2)))


class Outlet(Protocol):
    """Where Pod objects are written for the agents to read."""

    def write(self, key: ObjectKey, pod: dict[str, Any]) -> None:
        """Have the object written, soon if not at once."""
        ...

    def unhealthy(self, key: ObjectKey, failure: str) -> None:
        """Tell that a readiness probe of the pod has failed, where there are Events; never waits."""
        ...

    async def written(self, key: ObjectKey) -> None:
        """Return when the last write of the pod is done.

        Raises LabError: it cannot be done.
        """
        ...

    def remove(self, key: ObjectKey) -> None:
        """Forget the pod, and remove its object if nobody else does."""
        ...


class FileOutlet:
    """Writes Pod objects as the files that agents read beside the manifests."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def write(self, key: ObjectKey, pod: dict[str, Any]) -> None:
        """See :class:`Outlet`."""
        self._store.write_object(_file(key), to_yaml(pod))

    def unhealthy(self, key: ObjectKey, failure: str) -> None:
        """See :class:`Outlet`; the pod's message has it."""

    async def written(self, key: ObjectKey) -> None:
        """See :class:`Outlet`."""

    def remove(self, key: ObjectKey) -> None:
        """See :class:`Outlet`."""
        self._store.remove_object(_file(key))


def _file(key: ObjectKey) -> str:
    return f"pod.{key.namespace}.{key.name}.yaml"


class PodRuntime:
    """A pod from its namespace to its removal.

    ready says what its Pod object says. services gives those that there are now. changed is called after
    every write of the Pod object. now gives RFC 3339 times.
    """

    def __init__(
        self,
        store: Store,
        spec: LabSpec,
        outlet: Outlet,
        record: PodRecord,
        workload: Workload,
        *,
        services: Callable[[], Iterable[Service]],
        changed: Callable[[], None],
        now: Callable[[], str],
    ) -> None:
        self.record = record
        self.workload = workload
        self.phase = "Pending"
        self.restarts = 0
        self.message = ""
        self._store, self._spec, self._outlet = store, spec, outlet
        self._services, self._changed, self._now = services, changed, now
        self._environment: dict[str, str] = {}
        self._created = now()
        self._deleted = ""
        self._addresses: tuple[str, ...] = ()
        self._held = False
        self._running = False
        self._process: asyncio.subprocess.Process | None = None
        self._network: asyncio.Future[None] | None = None
        self._states = [probes.ProbeState(probe) for probe in workload.probes]
        self._published: dict[str, Any] = {}

    @property
    def key(self) -> ObjectKey:
        """Namespace and name."""
        return ObjectKey(self.record.namespace, self.record.name)

    @property
    def ready(self) -> bool:
        """The Ready condition: the process listens, is not held unready, and every probe has succeeded."""
        return self._running and not self._held and all(state.ready for state in self._states)

    @property
    def terminating(self) -> bool:
        """Whether the pod has been told to end."""
        return bool(self._deleted)

    def publish(self) -> None:
        """Write the Pod object if it has changed."""
        node = self.record.node
        hosts = [str(address) for address in self._spec.node_addresses(node)]
        status = pod_status(
            self.workload, hosts, self._addresses, phase=self.phase, ready=self.ready, restarts=self.restarts
        )
        manifest = pod_object(
            self.key, self.workload, node, status, created=self._created, deleted=self._deleted
        )
        if manifest != self._published:
            self._published = manifest
            self._outlet.write(self.key, manifest)
            self._changed()

    async def run(self) -> None:
        """Make the network, then keep the process running; returns when it ended and must stay so."""
        self._store.write_pod(self.record)  # before anything of it exists
        self.publish()
        cgroups.create(self._cgroup)
        self._network = asyncio.ensure_future(asyncio.to_thread(topology.add_pod, self._spec, self.record))
        await asyncio.shield(self._network)  # a thread cannot be cancelled: destroy() waits for it
        self._addresses = self.record.addresses
        while True:
            code = await self._run_process()
            self._running = False
            if self.terminating:
                return
            if not self.workload.restart:
                self.phase = "Succeeded" if code == 0 else "Failed"
                self.publish()
                return
            self.restarts += 1
            self.message = f"process ended with code {code}"
            self.publish()
            await asyncio.sleep(backoff(self.restarts))

    async def _run_process(self) -> int:
        """Start the process, probe it while it runs, and return its exit code."""
        self._environment = self._make_environment()
        argv = self._command()
        with open(self._store.log(f"pod.{self.record.namespace}.{self.record.name}"), "ab") as log:
            process = await asyncio.create_subprocess_exec(
                *self._enter([*self._with_environment(), *argv]),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        self._process = process
        self._note_process(ProcessRef.of(process.pid))
        tasks: list[asyncio.Task[None]] = []
        try:
            assert process.stdout is not None
            if await process.stdout.readline():
                self._held = False
                self._states = [probes.ProbeState(probe) for probe in self.workload.probes]
                self._running = True
                self.phase = "Running"
                self.message = ""
                self.publish()
                tasks = [asyncio.create_task(self._probe(number)) for number in range(len(self._states))]
            return await process.wait()
        finally:
            for task in tasks:
                task.cancel()
            self._process = None
            self._note_process(None)

    def _command(self) -> list[str]:
        """Return the command of a process that starts now: the lab's own server, or the one of the image.

        Raises LabError: the server cannot be started.
        """
        name = f"{self.record.name}@{self._host_name}"
        start = [sys.executable, "-I", "-S", str(pod.__file__), name]
        args = [expand(text, self._environment) for text in self.workload.args]
        server = servers.check(self.workload.image)
        shutil.rmtree(self._folder, ignore_errors=True)  # what an earlier process has left
        mounts = self._write_resolver()
        if server is None:
            where = ",".join(self.record.addresses)
            return [*start, where, *self.workload.listen(), *mounts, "--", *args]
        mounts += servers.prepare(server, self._store, self._spec, self.record)
        return [*start, "-", *mounts, "--", *server.argv, *args]

    def _write_resolver(self) -> list[str]:
        """Write how a process that starts now finds names; return the mounts of it."""
        workload, record, spec = self.workload, self.record, self._spec
        cluster = dns.cluster_resolvers(spec, self._services())
        node = dns.node_resolvers(spec)
        files = {
            "resolv.conf": resolver.resolv_conf(
                workload.dns, record.namespace, cluster, node, host_network=record.host_network
            ),
            "hosts": resolver.hosts(workload.dns, record.namespace, self._host_name, record.addresses),
            "nsswitch.conf": resolver.NSSWITCH,
        }
        folder = self._folder / "resolver"
        folder.mkdir(parents=True)
        for name, text in files.items():
            (folder / name).write_text(text)
        return [f"{folder / name}:/etc/{name}" for name in files]

    @property
    def _folder(self) -> Path:
        return self._store.pod_folder(self.record)

    def _make_environment(self) -> dict[str, str]:
        """Return the variables of a process that starts now."""
        record = self.record
        hosts = [str(address) for address in self._spec.node_addresses(record.node)]
        fields = {
            "metadata.name": record.name,
            "metadata.namespace": record.namespace,
            "spec.nodeName": record.node,
            "status.hostIP": hosts[0],
            "status.hostIPs": ",".join(hosts),
            "status.podIP": record.address,
            "status.podIPs": ",".join(record.addresses),
        }
        for entry in self.workload.env:
            if source := entry.unplayed or (entry.field if entry.field not in ("", *fields) else ""):
                _log.warning(
                    "pod %s: variables from %s are left out: the lab cannot read it", self.key, source
                )
        image = {"PATH": _PATH, "HOME": "/root", "HOSTNAME": self._host_name}
        links = self.workload.service_links
        return image | pod_environment(
            self.workload.env, self._services(), record.namespace, fields, links=links
        )

    def _with_environment(self) -> list[str]:
        """Return the beginning of a command that has the pod's variables and no others."""
        return ["env", "-i", *(f"{name}={value}" for name, value in self._environment.items())]

    def _note_process(self, process: ProcessRef | None) -> None:
        self.record = replace(self.record, process=process)
        self._store.write_pod(self.record)

    async def _probe(self, number: int) -> None:
        """Run one probe for as long as the process lives."""
        probe = self.workload.probes[number]
        await asyncio.sleep(probe.initial_delay)
        while True:
            await self._attempt(number)
            await asyncio.sleep(probe.period)

    async def _attempt(self, number: int) -> None:
        """Run a probe once and publish what comes of it."""
        state = self._states[number]
        if self._inside(pod.UNREADY).exists():
            failure = f"{pod.UNREADY} exists"
        else:
            enter = self._enter(self._with_environment(), pid=self._pid)
            node = self._spec.namespace(self.record.node)
            failure = await probes.attempt(self.workload.probes[number], node, self.record.address, enter)
        self.message = f"readiness probe failed: {failure}" if failure else ""
        if failure:
            self._outlet.unhealthy(self.key, failure)
        if state.record(not failure):
            _log.info("pod %s: probe %s", self.key, self.message or "succeeded")
            self.publish()

    @property
    def _cgroup(self) -> Path:
        name = self._spec.pod_namespace(self.record.namespace, self.record.name)
        return cgroups.of_node(self._spec.id, self.record.node) / name

    @property
    def _host_name(self) -> str:
        """The pod's host name; a pod with the node's network has the node's."""
        own = self.workload.dns.hostname or self.record.name
        return self.record.node if self.record.host_network else own

    def _enter(self, argv: list[str], *, pid: int = 0) -> list[str]:
        """Return the command that runs argv in the pod; see :func:`lb.lab.namespaces.command`."""
        return cgroups.command(self._cgroup, namespaces.command(self.record.netns, argv, pid=pid))

    @property
    def _pid(self) -> int:
        return self.record.process.pid if self.record.process else 0

    def _inside(self, path: str) -> Path:
        """Return the way from outside to a file of the pod."""
        return Path(f"/proc/{self._pid}/root{path}")

    async def set_ready(self, wanted: bool) -> None:
        """Make the pod ready or not, and return when its object says so.

        The file /var/unready makes every probe fail, and /var/ready comes and goes for probes that look for
        it. Probes are then run at once, as often as their thresholds ask, instead of at their period. The
        condition of a pod without probes is set directly.

        Raises LabError: the pod's process does not run, or its own probe still fails.
        """
        if not self._running:
            raise LabError(f"pod {self.key}: its process does not run")
        self._inside(pod.UNREADY if not wanted else READY).touch()
        self._inside(READY if not wanted else pod.UNREADY).unlink(missing_ok=True)
        self._held = not wanted and not self._states
        self.publish()
        thresholds = (
            probe.success_threshold if wanted else probe.failure_threshold for probe in self.workload.probes
        )
        for _ in range(max(thresholds, default=0)):
            if self.ready is wanted:
                break
            await asyncio.gather(*(self._attempt(number) for number in range(len(self._states))))
        if self.ready is not wanted:
            raise LabError(f"pod {self.key} is {'ready' if self.ready else 'not ready'}: {self.message}")
        await self._outlet.written(self.key)

    async def end(self, task: asyncio.Task[None]) -> None:
        """End the pod as a deletion does: terminating, SIGTERM, after the grace period SIGKILL."""
        self._deleted = self._now()
        self.publish()
        if process := self._process:
            server = servers.SERVERS.get(self.workload.image)
            if server:
                await asyncio.wait({task}, timeout=servers.LINGER_SECONDS)
            with contextlib.suppress(ProcessLookupError):
                process.send_signal(server.stop if server else signal.SIGTERM)
            await asyncio.wait({task}, timeout=self.workload.grace)
        await self.destroy(task)

    async def destroy(self, task: asyncio.Task[None]) -> None:
        """Kill the pod's processes and remove its object and its network; task is that of :meth:`run`."""
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, Exception):
            await task
        if self._network:
            await asyncio.wait({self._network})
        self._running = False
        netns = "" if self.record.host_network else self.record.netns  # the node's is not ours to empty
        await asyncio.to_thread(kill_all, netns, self._cgroup)
        self._outlet.remove(self.key)
        await asyncio.to_thread(topology.remove_pod, self._spec, self.record)
        cgroups.remove(self._cgroup)
        self._store.forget_pod(self.record)
        self._changed()


def kill_all(netns: str, group: Path) -> None:
    """Kill every process in the network namespace or the control group, and those that they start meanwhile.

    netns is ``""`` where only the group counts.

    Raises LabError: a process does not end.
    """
    for _ in itertools.repeat(None, 20):
        pids = cgroups.pids(group) | (namespaces.pids(netns) if netns else set())
        found = [ref for pid in pids if (ref := ProcessRef.of(pid))]
        if not found:
            return
        kill(found, within=1.0)
    raise LabError(f"processes in {netns or group} do not end: {sorted(pids)}")
