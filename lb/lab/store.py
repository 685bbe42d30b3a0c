# SPDX-License-Identifier: Apache-2.0
"""What a lab writes down, before it makes anything, so that ``lab down`` finds all of it after any crash.

::

    /run/lbctl/lab/<id>/
      lab.json            what was asked for, the phase, and the process that brings it up
      processes/NAME      pid and start time of the agents, the kubelet and the outside server
      pods/NS.NAME        each pod: its network namespace, node, address, process
      files/NS.NAME/      what is mounted in that pod
      resolver/           /etc/resolv.conf of what ``lab exec`` runs outside of pods
      ingress/            nginx's configuration for all Ingresses, as its pods have it
      addons/*.yaml       the lab's own objects beside those of the manifests
      cluster/*.yaml      the Node and Pod objects that the agents read
      log/NAME.log        one log for each process
      ready/NODE          written by the node's agent when its first sync is in the kernel
      kubelet.sock        where ``lab pod`` talks to the kubelet
      kubeconfig          an administrator's, for use on the machine; only with an API server
      api/                its keys, certificates and data, the agents' kubeconfig, the machine's port to it

Files appear whole: each is written beside its place and renamed.
"""

from __future__ import annotations

import contextlib
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec

from lb.errors import LabError
from lb.folders import entries, make
from lb.lab.addressing import LabSpec
from lb.lab.processes import ProcessRef, kill

ROOT = Path("/run/lbctl/lab")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class LabRecord:
    """lab.json; complete is False until ``lab up`` has finished, owner is the process that runs it."""

    spec: LabSpec
    owner: ProcessRef
    complete: bool = False


@dataclass(frozen=True, slots=True)
class PodRecord:
    """A pod as ``lab exec`` and ``lab down`` need it; process is None while none runs.

    addresses has one of each IP version of the lab, the primary one first. A pod with the node's network has
    the node's addresses and namespace, and ``""`` for an interface.
    """

    namespace: str
    name: str
    node: str
    addresses: tuple[str, ...]
    netns: str
    interface: str
    process: ProcessRef | None = None

    @property
    def address(self) -> str:
        """The primary address."""
        return self.addresses[0]

    @property
    def host_network(self) -> bool:
        """Whether it has the node's network."""
        return not self.interface


class Store:
    """The state directory of one lab.

    Attributes
    ----------
    cluster: the directory of the objects that the lab's kubelet writes.
    ingress: the directory of nginx's configuration; it is there only if the lab has had an Ingress.
    resolver: the directory of how commands at the client and on nodes find names.
    pools: the file of the pools of load-balancer addresses.
    addresses: with manifests: who has which load-balancer address; the agents read it.
    addons: the directory of the lab's own objects; it is there only if the lab has any.
    socket: the kubelet's.
    api: the directory of the API server; it is there only if the lab has one.
    kubeconfig: the one for use on the machine.
    agent_kubeconfig: that of the agents, for use inside the nodes.
    addresses_kubeconfig: that of the process that gives load-balancer addresses, at the API server's host.
    """

    def __init__(self, lab: str, root: Path = ROOT) -> None:
        self.lab = lab
        self.base = root / lab
        self.cluster = self.base / "cluster"
        self.ingress = self.base / "ingress"
        self.resolver = self.base / "resolver"
        self.pools = self.base / "pools.yaml"
        self.addresses = self.cluster / "addresses.yaml"
        self.addons = self.base / "addons"
        self.socket = self.base / "kubelet.sock"
        self.api = self.base / "api"
        self.kubeconfig = self.base / "kubeconfig"
        self.agent_kubeconfig = self.api / "agent.kubeconfig"
        self.addresses_kubeconfig = self.api / "addresses.kubeconfig"

    def write_port(self, port: int) -> None:
        """Note the port of the machine's loopback that leads to the API server."""
        self._replace(self.api / "port", str(port))

    def port(self) -> int:
        """Return the port of the machine's loopback that leads to the API server; 0 while there is none."""
        try:
            return int((self.api / "port").read_text())
        except FileNotFoundError:
            return 0

    def log(self, name: str) -> Path:
        """Return the log file of a process."""
        return self.base / "log" / f"{name}.log"

    def ready_file(self, node: str) -> Path:
        """Return the file that a node's agent writes once it has synced."""
        return self.base / "ready" / node

    def exists(self) -> bool:
        """Tell whether there is a lab, complete or not."""
        return self.base.is_dir()

    def create(self, record: LabRecord) -> None:
        """Make the directory with its first record.

        Raises LabError: a lab of this id is there already; says in which state.
        """
        try:
            make(self.base, exist_ok=False)
        except FileExistsError:
            raise LabError(self.why_taken()) from None
        self.write_lab(record)
        for name in ("processes", "pods", "cluster", "log", "ready"):
            (self.base / name).mkdir()

    def why_taken(self) -> str:
        """Return the sentence that tells why no lab of this id can be brought up."""
        down = f"take it down first: lbctl lab down --id {self.lab}"
        try:
            record = self.read_lab()
        except LabError:
            return f"lab {self.lab} is half-made, its record is missing or broken; {down}"
        if record.complete:
            return f"lab {self.lab} is up already; {down}"
        if record.owner.alive():
            return f"lab {self.lab} is being brought up by process {record.owner.pid}"
        return f"lab {self.lab} is half-made, bringing it up was interrupted; {down}"

    def write_lab(self, record: LabRecord) -> None:
        """Write lab.json."""
        self._write(self.base / "lab.json", record)

    def read_lab(self) -> LabRecord:
        """Return lab.json.

        Raises LabError: there is no such lab, or its record cannot be read.
        """
        try:
            return msgspec.json.decode((self.base / "lab.json").read_bytes(), type=LabRecord)
        except FileNotFoundError:
            raise LabError(f"there is no lab {self.lab}; bring one up with: lbctl lab up") from None
        except (msgspec.MsgspecError, ValueError) as error:
            raise LabError(f"{self.base / 'lab.json'} cannot be read: {error!r}") from None

    def write_process(self, name: str, process: ProcessRef) -> None:
        """Note a process of the lab."""
        self._write(self.base / "processes" / name, process)

    def process(self, name: str) -> ProcessRef | None:
        """Return a noted process, whether it lives or not."""
        return _read(self.base / "processes" / name, ProcessRef)

    def running(self, name: str) -> ProcessRef | None:
        """Return a noted process if it lives."""
        process = self.process(name)
        return process if process and process.alive() else None

    def end_process(self, name: str, what: str, how: signal.Signals, within: float = 10.0) -> None:
        """Signal a noted process and wait for its end, at most so many seconds; what: its name in errors.

        Raises LabError: it does not run, or does not end.
        """
        process = self.running(name)
        if process is None:
            raise LabError(f"{what} does not run")
        if kill([process], how, within):
            raise LabError(f"{what}, process {process.pid}, does not end")

    def processes(self) -> Iterator[ProcessRef]:
        """Return every noted process, pods included."""
        found = [self.process(path.name) for path in entries(self.base / "processes")]
        found += [pod.process for pod in self.pods()]
        return (process for process in found if process)

    def write_pod(self, pod: PodRecord) -> None:
        """Note a pod."""
        self._write(self._pod_file(pod.namespace, pod.name), pod)

    def forget_pod(self, pod: PodRecord) -> None:
        """Remove the note of a pod of which nothing is left, and its files."""
        shutil.rmtree(self.pod_folder(pod), ignore_errors=True)
        self._pod_file(pod.namespace, pod.name).unlink(missing_ok=True)

    def pods(self) -> list[PodRecord]:
        """Return the noted pods by namespace and name."""
        return [pod for path in entries(self.base / "pods") if (pod := _read(path, PodRecord))]

    def pod_folder(self, pod: PodRecord) -> Path:
        """Return the folder of what is mounted in a pod; whoever writes there makes it."""
        return self.base / "files" / f"{pod.namespace}.{pod.name}"

    def write_object(self, name: str, text: str) -> None:
        """Write an object of the cluster as YAML text under this file name."""
        self._replace(self.cluster / name, text)

    def remove_object(self, name: str) -> None:
        """Remove an object of the cluster."""
        (self.cluster / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the directory, and the common parents when they are empty."""
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self.base)
        for parent in (self.base.parent, self.base.parent.parent):
            with contextlib.suppress(OSError):
                parent.rmdir()

    def _pod_file(self, namespace: str, name: str) -> Path:
        return self.base / "pods" / f"{namespace}.{name}"

    def _write(self, path: Path, note: LabRecord | PodRecord | ProcessRef) -> None:
        self._replace(path, msgspec.json.format(msgspec.json.encode(note)).decode())

    def _replace(self, path: Path, text: str) -> None:
        """Write beside the store's directories, not in them, so that no watcher sees the unfinished file."""
        draft = self.base / f".{path.name}.tmp"
        draft.write_text(text)
        draft.rename(path)


def labs(root: Path = ROOT) -> list[str]:
    """Return the ids of all labs on this machine, half-made ones included."""
    return [path.name for path in entries(root)]


def _read(path: Path, kind: type[T]) -> T | None:
    """Return a note; None when it is gone."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
