# SPDX-License-Identifier: Apache-2.0
"""The pods that manifests ask for: ReplicaSets, Deployments and bare Pods, read as the API server would.

The types keep what a kubelet needs. A Deployment becomes the ReplicaSet that Kubernetes would make for it:
named ``<deployment>-<hash of the pod template>``, with that hash as the label ``pod-template-hash``.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lb.errors import InputError
from lb.lab.environment import EnvVar
from lb.lab.probes import Probe, read_probe
from lb.lab.resolver import CLUSTER_FIRST, PodDns, read_dns
from lb.manifests import syntax
from lb.manifests.fields import Field, Fields, Problems
from lb.manifests.objects import PORT_MAX, read_key, read_meta
from lb.manifests.workloads import container_port, lasting
from lb.manifests.yamldoc import YamlNode, load
from lb.model import ContainerPort, ObjectKey, Protocol

SUFFIX_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Kubernetes' alphabet of generated names: neither vowels nor digits that look like letters."""

_SUFFIX_LENGTH = 5
_MAX_NAME = 63
_API_VERSIONS = {
    "ReplicaSet": ("apps/v1", "apps/v1beta2", "extensions/v1beta1"),
    "Deployment": ("apps/v1", "apps/v1beta2", "apps/v1beta1", "extensions/v1beta1"),
    "Pod": ("v1",),
}


@dataclass(frozen=True, slots=True)
class Workload:
    """A ReplicaSet, or a bare Pod (kind Pod, one replica, the pod has the workload's own name).

    labels: the pod's.
    containers: their names; of all of them the lab makes one process.
    image: the first container's; it counts where it names a server (:mod:`lb.lab.servers`).
    ports: those of the containers and of the sidecars, which are init containers that are always restarted;
        name is ``""`` when the manifest gives none.
    probes: the readiness probes of both.
    node: where the pod must run; empty when anywhere.
    restart: whether a process that ended is started again.
    grace: seconds from SIGTERM to SIGKILL.
    env: the first container's variables, in their order.
    args: the first container's, as they are written.
    service_links: whether Services of the namespace are among the variables.
    host_network: whether the pod has the node's network, and so its addresses and ports.
    dns: how the pod finds names, and its own.
    """

    kind: str
    key: ObjectKey
    replicas: int = 1
    labels: Mapping[str, str] = field(default_factory=dict)
    containers: tuple[str, ...] = ("lab",)
    image: str = ""
    ports: tuple[ContainerPort, ...] = ()
    probes: tuple[Probe, ...] = ()
    node: str = ""
    restart: bool = True
    grace: float = 30
    env: tuple[EnvVar, ...] = ()
    args: tuple[str, ...] = ()
    service_links: bool = True
    host_network: bool = False
    dns: PodDns = CLUSTER_FIRST

    def listen(self) -> list[str]:
        """Return what the pod's process opens, as pod.py takes it: ``tcp:8080:http-default``.

        Those are the container ports, and the ports that probes ask for: like any program, the lab's may
        listen on a port that its manifest does not declare.
        """
        names = {(port.protocol, port.port): port.name or str(port.port) for port in self.ports}
        for probe in self.probes:
            if probe.port:
                names.setdefault((Protocol.TCP, probe.port), str(probe.port))
        kinds = {Protocol.TCP: "tcp", Protocol.UDP: "udp"}
        return [f"{kinds[kind]}:{number}:{name}" for (kind, number), name in names.items() if kind in kinds]


def pod_name(base: str, draw: random.Random) -> str:
    """Return a pod's name: the controller's, cut to what leaves 63 characters, ``-`` and five random ones."""
    suffix = "".join(draw.choice(SUFFIX_ALPHABET) for _ in range(_SUFFIX_LENGTH))
    return f"{base[: _MAX_NAME - _SUFFIX_LENGTH - 1]}-{suffix}"


def template_hash(template: YamlNode) -> str:
    """Return the ten characters that tell one pod template of a Deployment from another."""
    text = json.dumps(_plain(template), sort_keys=True)
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    digits = []
    for _ in range(10):
        number, digit = divmod(number, len(SUFFIX_ALPHABET))
        digits.append(SUFFIX_ALPHABET[digit])
    return "".join(digits)


def _plain(node: YamlNode) -> Any:
    """Return the tree as plain data that depends on neither lines nor the order of keys."""
    if node.kind == "mapping":
        return {name: _plain(child) for name, (_, child) in node.entries.items()}
    if node.kind == "list":
        return [_plain(child) for child in node.items]
    return [node.kind, node.text]


def read_file(path: Path) -> tuple[list[Workload], list[InputError]]:
    """Return the workloads of a file, and what is wrong with others; other kinds are left alone."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        return [], [InputError(str(path), 0, "", "", str(error))]
    workloads: list[Workload] = []
    errors: list[InputError] = []
    for document in load(text):
        if document.root is None:
            errors += [
                InputError(str(path), fault.line, "", fault.field, fault.message) for fault in document.faults
            ]
            continue
        for item in _items(document.root):
            problems = Problems(str(path))
            workload = read_workload(item, problems)
            if problems.noted:
                errors += problems.errors()
            elif workload is not None:
                workloads.append(workload)
    return workloads, errors


def _items(root: YamlNode) -> Iterator[YamlNode]:
    """Yield the object, or the items of a List."""
    items = root.entries.get("items")
    if _text(root, "kind") == "List" and items is not None:
        yield from items[1].items
    else:
        yield root


def _text(node: YamlNode, name: str) -> str:
    return node.entries[name][1].text if name in node.entries else ""


def read_workload(root: YamlNode, problems: Problems) -> Workload | None:
    """Return the workload that the object is, None when it is of another kind; notes what is wrong."""
    kind = _text(root, "kind")
    if kind not in _API_VERSIONS:
        return None
    top = Field(problems, "", root.line, root).fields()
    metadata = top["metadata"].fields()
    key = read_key(metadata, namespaced=True)
    problems.object = f"{kind} {key}" if key.name else kind
    if _text(root, "apiVersion") not in _API_VERSIONS[kind]:
        top["apiVersion"].error(f"must be one of {', '.join(_API_VERSIONS[kind])} for kind {kind}")
    meta = read_meta(metadata, key, root.line, dns_label=False)
    spec = top["spec"]
    if not spec.present:
        spec.error("is missing")
    if kind == "Pod":
        return _read_pod(kind, key, 1, dict(meta.labels), spec.fields())
    template = spec.fields()["template"]
    if not template.present:
        template.error("is missing")
    labels = template.fields()["metadata"].fields()["labels"].string_map(syntax.label_key, syntax.label_value)
    _check_selector(spec.fields()["selector"], labels, required=_text(root, "apiVersion") == "apps/v1")
    if kind == "Deployment" and template.node is not None:
        digest = template_hash(template.node)
        key = ObjectKey(key.namespace, f"{key.name}-{digest}")
        labels["pod-template-hash"] = digest
    replicas = spec.fields()["replicas"].number(0, 10_000, default=1)
    return _read_pod("ReplicaSet", key, replicas, labels, template.fields()["spec"].fields())


def _check_selector(selector: Field, labels: Mapping[str, str], *, required: bool) -> None:
    """Refuse a controller that would not select its own pods; before apps/v1 it could be left out."""
    if required and not selector.present:
        selector.error("is missing")
    for name, place in selector.fields()["matchLabels"].fields():
        if labels.get(name) != place.text():
            place.error(f"is {place.text()!r}, but the template's label is {labels.get(name)!r}")


def _read_pod(kind: str, key: ObjectKey, replicas: int, labels: dict[str, str], spec: Fields) -> Workload:
    ports: list[ContainerPort] = []
    probes: list[Probe] = []
    host_network = spec["hostNetwork"].flag()
    containers = spec["containers"].items()
    if not containers:
        spec["containers"].error("is missing or empty")
    for container in lasting(spec):
        own = [_read_port(place, host_network) for place in container["ports"].items()]
        ports += own
        probe = container["readinessProbe"]
        if probe.present:
            probes.append(read_probe(probe, {port.name: port.port for port in own if port.name}))
    return Workload(
        kind=kind,
        key=key,
        replicas=replicas,
        labels=labels,
        containers=tuple(container.fields()["name"].text() or "lab" for container in containers),
        image=containers[0].fields()["image"].text() if containers else "",
        ports=tuple(ports),
        probes=tuple(probes),
        node=spec["nodeName"].text(),
        restart=spec["restartPolicy"].text("Always") == "Always",
        grace=spec["terminationGracePeriodSeconds"].number(0, 86_400, default=30),
        env=_read_env(containers[0].fields()) if containers else (),
        args=tuple(word.text() for place in containers[:1] for word in place.fields()["args"].items()),
        service_links=not spec["enableServiceLinks"].present or spec["enableServiceLinks"].flag(),
        host_network=host_network,
        dns=read_dns(spec),
    )


def _read_env(container: Fields) -> tuple[EnvVar, ...]:
    result = []
    for place in container["env"].items():
        entry = place.fields()
        if not entry["name"].text():
            entry["name"].error("is missing")
        name, source = entry["name"].text(), entry["valueFrom"].fields()
        path = source["fieldRef"].fields()["fieldPath"].text()
        other = next((kind for kind in source.entries if kind != "fieldRef"), "")
        result.append(EnvVar(name, entry["value"].text(), path, other))
    whole = (next(iter(place.fields().entries), "envFrom") for place in container["envFrom"].items())
    return (*(EnvVar("", unplayed=kind) for kind in whole), *result)


def _read_port(place: Field, host_network: bool) -> ContainerPort:
    port, host_port = container_port(place), place.fields()["hostPort"]
    if host_network and host_port.number(0, PORT_MAX) not in (0, port.port):
        host_port.error(f"must be the containerPort {port.port}: the pod has the node's network")
    return port
