"""The pods that manifests ask for: ReplicaSets, Deployments and bare Pods, read as the API server would.

The types keep what a kubelet needs. A Deployment becomes the ReplicaSet that Kubernetes would make for it:
named ``<deployment>-<hash of the pod template>``, with that hash as the label ``pod-template-hash``.
"""

from __future__ import annotations

import copy
import hashlib
import json
import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lb.errors import InputError
from lb.lab.probes import Probe, ProbeError, parse_probe
from lb.model import ObjectKey

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
class Port:
    """A port that the pod's process opens; name is the number as text when the manifest gives none."""

    protocol: str
    number: int
    name: str

    def argument(self) -> str:
        """Return the port as pod.py takes it."""
        return f"{self.protocol.lower()}:{self.number}:{self.name}"


@dataclass(frozen=True, slots=True)
class Workload:
    """A ReplicaSet, or a bare Pod (kind Pod, one replica, the pod has the workload's own name).

    Attributes
    ----------
    spec: the pod's ``spec`` as the manifest has it.
    labels, annotations: the pod's.
    ports: what its process listens on: container ports, TCP and UDP, and the numbers that probes ask for.
    probes: the containers' readiness probes.
    node: where the pod must run; empty when anywhere.
    restart: whether a process that ended is started again.
    grace: seconds from SIGTERM to SIGKILL.
    """

    kind: str
    key: ObjectKey
    replicas: int
    spec: Mapping[str, Any]
    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    ports: tuple[Port, ...] = ()
    probes: tuple[Probe, ...] = ()
    node: str = ""
    restart: bool = True
    grace: float = 30


def pod_name(base: str, draw: random.Random) -> str:
    """Return a pod's name: the controller's, cut to what leaves 63 characters, ``-`` and five random ones."""
    suffix = "".join(draw.choice(SUFFIX_ALPHABET) for _ in range(_SUFFIX_LENGTH))
    return f"{base[: _MAX_NAME - _SUFFIX_LENGTH - 1]}-{suffix}"


def template_hash(template: Mapping[str, Any]) -> str:
    """Return the ten characters that tell one pod template of a Deployment from another."""
    text = json.dumps(template, sort_keys=True, default=str)
    number = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")
    digits = []
    for _ in range(10):
        number, digit = divmod(number, len(SUFFIX_ALPHABET))
        digits.append(SUFFIX_ALPHABET[digit])
    return "".join(digits)


def read_file(path: Path) -> tuple[list[Workload], list[InputError]]:
    """Return the workloads of a file, and what is wrong with others; objects of other kinds are left alone."""
    workloads: list[Workload] = []
    errors: list[InputError] = []
    try:
        for line, document in _documents(path):
            try:
                workload = convert(document, str(path), line)
            except InputError as error:
                errors.append(error)
            else:
                workloads.extend([workload] if workload else [])
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        problem = getattr(error, "problem", None) or str(error)
        errors.append(InputError(str(path), mark.line + 1 if mark else 0, "", "", f"not YAML: {problem}"))
    except (OSError, UnicodeDecodeError) as error:
        errors.append(InputError(str(path), 0, "", "", str(error)))
    return workloads, errors


def _documents(path: Path) -> Iterator[tuple[int, Any]]:
    """Yield each object of the file with its 1-based line; the items of a List one by one."""
    loader = yaml.SafeLoader(path.read_text())
    try:
        while loader.check_node():
            node = loader.get_node()
            document = loader.construct_document(node)
            line = node.start_mark.line + 1
            if isinstance(document, dict) and document.get("kind") == "List":
                yield from ((line, item) for item in document.get("items") or ())
            else:
                yield line, document
    finally:
        loader.dispose()


def convert(document: Any, path: str, line: int) -> Workload | None:
    """Return the workload that the object is, None when it is of another kind.

    Raises
    ------
    InputError: the object cannot be run as it is; names the field.
    """
    kind = document.get("kind") if isinstance(document, dict) else None
    if kind not in _API_VERSIONS or not isinstance(document, dict):
        return None
    return _Reader(document, str(kind), path, line).workload()


class _Reader:
    """One object while it is read; every error it raises names the object."""

    def __init__(self, document: dict[str, Any], kind: str, path: str, line: int) -> None:
        self.document, self.kind, self.path, self.line = document, kind, path, line
        metadata = document.get("metadata")
        self.metadata: dict[str, Any] = metadata if isinstance(metadata, dict) else {}
        self.key = ObjectKey(
            str(self.metadata.get("namespace") or "default"), str(self.metadata.get("name") or "")
        )

    def error(self, where: str, message: str) -> InputError:
        return InputError(self.path, self.line, f"{self.kind} {self.key}", where, message)

    def get(self, parent: Any, where: str, kind: type, default: Any) -> Any:
        """Return the value at the last part of ``where`` in parent, default when it is absent or null."""
        value = parent.get(where.rpartition(".")[2])
        if value is None:
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise self.error(where, f"is {value!r}, must be {_WORDS[kind]}")
        return value

    def workload(self) -> Workload:
        version = self.document.get("apiVersion")
        if version not in _API_VERSIONS[self.kind]:
            expected = ", ".join(_API_VERSIONS[self.kind])
            raise self.error("apiVersion", f"{version!r} is not known for this kind; expected {expected}")
        if not self.key.name:
            raise self.error("metadata.name", "is missing")
        spec = self.get(self.document, "spec", dict, None)
        if spec is None:
            raise self.error("spec", "is missing")
        if self.kind == "Pod":
            return self._pod("Pod", self.key, 1, self.metadata, spec, "metadata", "spec")
        template = self.get(spec, "spec.template", dict, None)
        if template is None:
            raise self.error("spec.template", "is missing")
        metadata = self.get(template, "spec.template.metadata", dict, {})
        pod_spec = self.get(template, "spec.template.spec", dict, {})
        replicas = self.get(spec, "spec.replicas", int, 1)
        if replicas < 0:
            raise self.error("spec.replicas", f"is {replicas}, must be 0 or more")
        labels = self.get(metadata, "spec.template.metadata.labels", dict, {})
        self._check_selector(spec, labels)
        key = self.key
        if self.kind == "Deployment":
            digest = template_hash(template)
            key = ObjectKey(key.namespace, f"{key.name}-{digest}")
            metadata = {**metadata, "labels": {**labels, "pod-template-hash": digest}}
        places = ("spec.template.metadata", "spec.template.spec")
        return self._pod("ReplicaSet", key, replicas, metadata, pod_spec, *places)

    def _check_selector(self, spec: Mapping[str, Any], labels: Mapping[str, Any]) -> None:
        """Refuse a controller that would not select its own pods; before apps/v1 the labels were the default."""
        selector = self.get(spec, "spec.selector", dict, None)
        if selector is None:
            if self.document["apiVersion"] == "apps/v1":
                raise self.error("spec.selector", "is missing")
            return
        where = "spec.selector.matchLabels"
        for name, value in self.get(selector, where, dict, {}).items():
            if labels.get(name) != value:
                raise self.error(
                    f"{where}.{name}", f"is {value!r}, the template's label is {labels.get(name)!r}"
                )

    def _pod(
        self,
        kind: str,
        key: ObjectKey,
        replicas: int,
        metadata: Mapping[str, Any],
        spec: Mapping[str, Any],
        metadata_at: str,
        at: str,
    ) -> Workload:
        ports: dict[tuple[str, int], Port] = {}
        probes: list[Probe] = []
        containers = self.get(spec, f"{at}.containers", list, [])
        if not containers:
            raise self.error(f"{at}.containers", "is missing or empty")
        for number, container in enumerate(containers):
            where = f"{at}.containers[{number}]"
            if not isinstance(container, dict):
                raise self.error(where, f"is {container!r}, must be a mapping")
            own = self._ports(container, where)
            ports |= {(port.protocol, port.number): port for port in own}
            raw = self.get(container, f"{where}.readinessProbe", dict, None)
            if raw is not None:
                try:
                    probes.append(parse_probe(raw, {port.name: port.number for port in own}))
                except ProbeError as error:
                    raise self.error(f"{where}.readinessProbe{error.field}", error.message) from None
        for probe in probes:
            if probe.port and ("TCP", probe.port) not in ports:
                ports["TCP", probe.port] = Port("TCP", probe.port, str(probe.port))
        return Workload(
            kind=kind,
            key=key,
            replicas=replicas,
            spec=copy.deepcopy(dict(spec)),
            labels=self._texts(metadata, f"{metadata_at}.labels"),
            annotations=self._texts(metadata, f"{metadata_at}.annotations"),
            ports=tuple(ports.values()),
            probes=tuple(probes),
            node=self.get(spec, f"{at}.nodeName", str, ""),
            restart=self.get(spec, f"{at}.restartPolicy", str, "Always") == "Always",
            grace=self.get(spec, f"{at}.terminationGracePeriodSeconds", int, 30),
        )

    def _ports(self, container: Mapping[str, Any], at: str) -> list[Port]:
        found = []
        for number, entry in enumerate(self.get(container, f"{at}.ports", list, [])):
            where = f"{at}.ports[{number}]"
            if not isinstance(entry, dict):
                raise self.error(where, f"is {entry!r}, must be a mapping")
            port = self.get(entry, f"{where}.containerPort", int, 0)
            if not 1 <= port <= 65535:
                raise self.error(f"{where}.containerPort", f"is {port}, must be 1 to 65535")
            protocol = self.get(entry, f"{where}.protocol", str, "TCP")
            name = self.get(entry, f"{where}.name", str, str(port))
            if protocol in ("TCP", "UDP"):
                found.append(Port(protocol, port, name))
            elif protocol != "SCTP":
                raise self.error(f"{where}.protocol", f"is {protocol!r}, must be TCP, UDP or SCTP")
        return found

    def _texts(self, parent: Mapping[str, Any], where: str) -> dict[str, str]:
        values = self.get(parent, where, dict, {})
        for name, value in values.items():
            if not isinstance(value, str):
                raise self.error(f"{where}.{name}", f"is {value!r}, must be a string: put it in quotes")
        return dict(values)


_WORDS: Mapping[type, str] = {dict: "a mapping", list: "a list", int: "a whole number", str: "a string"}
