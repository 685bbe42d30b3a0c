# SPDX-License-Identifier: Apache-2.0
"""A directory of manifests into an API server, as ``kubectl apply`` would, status included."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import yaml

from lb.errors import InputError, LabError
from lb.ingress.read import CHANGE, OLD_GROUPS, upgraded
from lb.kube.client import ApiError
from lb.lab.api import NAMESPACES, Api, Object, key_of, passing

_SUFFIXES = (".yaml", ".yml", ".json")
_SCALED = ("ReplicaSet", "Deployment")


def read(directory: Path) -> tuple[list[tuple[Path, Object]], list[InputError]]:
    """Return every object of the files of a directory with its file, and what cannot be read."""
    objects: list[tuple[Path, Object]] = []
    errors: list[InputError] = []
    for path in sorted(directory.iterdir()):
        if path.suffix not in _SUFFIXES or path.name.startswith("."):
            continue
        try:
            for document in yaml.safe_load_all(path.read_text()):
                objects += ((path, item) for item in _items(path, document))
        except yaml.YAMLError as error:
            mark = getattr(error, "problem_mark", None)
            words = str(getattr(error, "problem", "") or "is not YAML")
            errors.append(InputError(str(path), mark.line + 1 if mark else 0, "", "", words))
        except (OSError, UnicodeDecodeError) as error:
            errors.append(InputError(str(path), 0, "", "", str(error)))
        except InputError as error:
            errors.append(error)
    return objects, errors


def _items(path: Path, document: object) -> Iterator[Object]:
    """Yield the object, or the items of a List.

    Raises InputError: the document is no Kubernetes object.
    """
    if document is None:
        return
    if isinstance(document, dict) and document.get("kind") == "List":
        for item in document.get("items") or ():
            yield from _items(path, item)
        return
    metadata = document.get("metadata") if isinstance(document, dict) else None
    if not isinstance(document, dict) or not isinstance(metadata, dict):
        raise InputError(str(path), 0, "", "", "holds something that is no Kubernetes object")
    for field, value in (
        ("apiVersion", document.get("apiVersion")),
        ("kind", document.get("kind")),
        ("metadata.name", metadata.get("name")),
    ):
        if not isinstance(value, str) or not value:
            raise InputError(str(path), 0, str(document.get("kind") or ""), field, "is missing or no text")
    yield document


def apply(api: Api, directory: Path, replicas: int | None) -> list[InputError]:
    """Apply all objects and return what was refused, and what is accepted although it is out of date.

    replicas, unless None, is given to every ReplicaSet and Deployment. Namespaces that objects name are made.
    Services that leave their address to the API server come last, so that none is given an address that
    another one names.

    Raises ApiError: the API server is away.
    """
    objects, errors = read(directory)
    for path, item in sorted(objects, key=lambda each: _rank(each[1])):
        meta = item["metadata"]
        name = f"{item['kind']} {meta.get('namespace') or 'default'}/{meta['name']}"
        if item["kind"] == "Ingress" and item["apiVersion"] in OLD_GROUPS:
            words = f"{item['apiVersion']} {CHANGE}"
            errors.append(InputError(str(path), 0, name, "apiVersion", words, used=True))
            item = upgraded(item)  # noqa: PLW2901
        words = _apply(api, _scaled(item, replicas))
        if words:
            errors.append(InputError(str(path), 0, name, "", words))
    return errors


def _rank(item: Object) -> int:
    if item["kind"] == "Namespace":
        return 0
    return 2 if item["kind"] == "Service" and not (item.get("spec") or {}).get("clusterIP") else 1


def _scaled(item: Object, replicas: int | None) -> Object:
    if replicas is None or item["kind"] not in _SCALED:
        return item
    item = copy.deepcopy(item)
    item.setdefault("spec", {})["replicas"] = replicas
    return item


def _apply(api: Api, item: Object) -> str:
    """Apply one object; return why it was refused, ``""`` when it was not."""
    try:
        resource = api.resource(item["apiVersion"], item["kind"])
        if resource.namespaced:
            namespace = item["metadata"].get("namespace") or "default"
            item = {**item, "metadata": {**item["metadata"], "namespace": namespace}}
            if namespace != "default":
                make_namespace(api, namespace)
        made = api.ensure(resource, {name: value for name, value in item.items() if name != "status"})
        if item.get("status"):
            api.patch_status(resource, key_of(item), made["metadata"]["uid"], item["status"])
    except LabError as error:
        return str(error)
    except ApiError as error:
        if passing(error):
            raise
        return str(error)
    return ""


def make_namespace(api: Api, name: str) -> None:
    """Make a namespace if it is not there."""
    api.apply(NAMESPACES, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
