# SPDX-License-Identifier: Apache-2.0
"""Ingress in a lab that lives from a directory of manifests: their objects and what the lab adds."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from lb.errors import InputError
from lb.folders import read_file
from lb.ingress.objects import Ingress
from lb.ingress.plan import ours
from lb.ingress.read import OLD_GROUPS, Content, read, upgraded
from lb.lab import apply, ingress, servers
from lb.lab.ingress import Front
from lb.lab.objects import to_yaml
from lb.lab.store import Store
from lb.lab.workloads import Workload, read_workload
from lb.manifests.fields import Problems
from lb.manifests.library import MOST_BYTES
from lb.manifests.yamldoc import load
from lb.model import EndpointSlice, ObjectKey, Resource, Service


class IngressFiles:
    """The Ingresses of a directory; a file with errors keeps the objects that it had and now lacks."""

    def __init__(self, store: Store, front: Front) -> None:
        self._store, self._front = store, front
        self._files: dict[Path, Content] = {}
        self._content = Content()
        self._served: list[Ingress] = []
        self._errors: list[InputError] = []
        self._written: set[str] = set()

    def read(self, directory: Path, paths: Iterable[Path]) -> None:
        """Read all files of the directory, and write the objects of the lab that follow from them."""
        self._files = {path: _read(path, self._files.get(path, Content())) for path in paths}
        self._content = Content()
        for content in self._files.values():
            self._content.add(content)
        self._served, wrong = ours(self._content.ingresses.values(), self._content.classes)
        self._errors = [*self._content.errors, *self._content.warnings, *wrong]
        if self._served and (why := servers.missing(ingress.IMAGE)):
            first = self._served[0].origin
            self._errors.append(InputError(first.path, first.line, f"Ingress {self._served[0].key}", "", why))
            self._served = []
        self._write(directory)

    def _write(self, directory: Path) -> None:
        objects: dict[str, dict[str, Any]] = {}
        if self._served:
            status = ingress.status_object(self._front.spec)
            objects[_file("service", ingress.SERVICE)] = {
                **ingress.service_object(self._front.spec),
                "status": status,
            }
            for item in _plain(directory, {each.key for each in self._served}):
                key = ObjectKey(item["metadata"].get("namespace") or "default", item["metadata"]["name"])
                objects.setdefault(_file("ingress", key), {**item, "status": status})
        for name, item in objects.items():
            self._store.write_object(name, to_yaml(item))
        for name in self._written - objects.keys():
            self._store.remove_object(name)
        self._written = set(objects)

    @property
    def active(self) -> bool:
        """Whether there is an Ingress to serve."""
        return bool(self._served)

    def errors(self) -> list[InputError]:
        """Return what is wrong."""
        return [*self._errors, *(self._front.errors() if self._served else ())]

    def workloads(self) -> list[Workload]:
        """Return the pods that there have to be."""
        nodes = self._front.spec.node_names if self._served else ()
        return [_workload(ingress.pod_object(node)) for node in nodes]

    def plan(self, resources: Collection[Resource]) -> None:
        """Have what there is now served."""
        if not self._served:
            return
        services = [each for each in resources if isinstance(each, Service)]
        slices = [each for each in resources if isinstance(each, EndpointSlice)]
        self._front.plan(self._served, services, slices, self._content.certificates)


def _file(kind: str, key: ObjectKey) -> str:
    return f"{kind}.{key.namespace}.{key.name}.yaml"


def _read(path: Path, before: Content) -> Content:
    try:
        content = read(str(path), read_file(path, MOST_BYTES).decode("utf-8-sig"))
    except (OSError, UnicodeDecodeError, InputError):
        return before  # whoever reads Services says so
    if content.errors:
        content.ingresses = before.ingresses | content.ingresses
        content.classes = before.classes | content.classes
        content.certificates = before.certificates | content.certificates
    return content


def _plain(directory: Path, keys: Collection[ObjectKey]) -> Iterable[dict[str, Any]]:
    """Yield the Ingresses of these keys as the manifests have them, in the form of v1."""
    for _, item in apply.read(directory)[0]:
        key = ObjectKey(item["metadata"].get("namespace") or "default", item["metadata"]["name"])
        if item["kind"] == "Ingress" and key in keys:
            yield upgraded(item) if item["apiVersion"] in OLD_GROUPS else item


def _workload(pod: Mapping[str, Any]) -> Workload:
    [document] = load(to_yaml(dict(pod)))
    assert document.root is not None
    workload = read_workload(document.root, Problems(""))
    assert workload is not None
    return workload
