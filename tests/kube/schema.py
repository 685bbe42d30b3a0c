# SPDX-License-Identifier: Apache-2.0
"""The schemas of the API's kinds, and what the API server finds by them.

That is: fields that it does not know, values of a wrong type, missing fields, list entries with the same key.

The schemas are those of the OpenAPI document of Kubernetes 1.36, as the package kubernetes-validate has them.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import kubernetes_validate

RELEASE = "v1.36.0"
Schema = dict[str, Any]

_META = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta"
_KEY_DEFAULTS = {"protocol": "TCP"}
"""What a key field that is left out counts as; the document in its second version does not say it."""

_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int,),
    "number": (int, float, str),  # a quantity
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
}


class WrongTypeError(Exception):
    """A value that is of another type than its field."""


@functools.cache
def _definitions() -> dict[str, Schema]:
    folder = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"{RELEASE}-local-strict"
    return cast("dict[str, Schema]", json.loads((folder / "_definitions.json").read_text())["$defs"])


@functools.cache
def schema_of(api_version: str, kind: str) -> Schema:
    """Return the schema of a kind.

    Raises
    ------
    LookupError: Kubernetes has no such kind.
    """
    group, _, version = api_version.rpartition("/")
    wanted = {"group": group, "version": version, "kind": kind}
    for each in _definitions().values():
        if wanted in each.get("x-kubernetes-group-version-kind", ()):
            return each
    raise LookupError(f"{kind} in {api_version}")


def resolved(schema: Schema) -> Schema:
    """Return what a reference leads to, with what the field adds."""
    if "$ref" not in schema:
        return schema
    more = {name: value for name, value in schema.items() if name.startswith("x-")}
    return {**_definitions()[schema["$ref"].rpartition("/")[2]], **more}


def child(schema: Schema, name: str) -> Schema:
    """Return the schema of a field, or of a value of a map; empty when there is no such field."""
    found = schema.get("properties", {}).get(name)
    if found is None:
        found = schema.get("additionalProperties")
    return resolved(found) if isinstance(found, dict) else {}


def items_of(schema: Schema) -> Schema:
    """Return the schema of a list's entries."""
    return resolved(schema.get("items", {}))


def keys_of(schema: Schema) -> tuple[str, ...]:
    """Return the fields that name an entry of a list; none where a list is replaced as a whole."""
    return tuple(schema.get("x-kubernetes-list-map-keys", ()))


def is_set(schema: Schema) -> bool:
    """Tell whether a list has each value once."""
    return schema.get("x-kubernetes-list-type") == "set"


def is_atomic(schema: Schema) -> bool:
    """Tell whether a value is replaced as a whole."""
    atomic = "atomic" in (schema.get("x-kubernetes-map-type"), schema.get("x-kubernetes-list-type"))
    return atomic or not (schema.get("properties") or isinstance(schema.get("additionalProperties"), dict))


def key_in(schema: Schema, entry: Any) -> tuple[Any, ...]:
    """Return the key of an entry of a keyed list."""
    return tuple(entry.get(name, _KEY_DEFAULTS.get(name)) for name in keys_of(schema))


def known_part(value: Any, schema: Schema, path: str, unknown: list[str]) -> Any:
    """Return a value without the fields that its schema does not have; unknown takes their paths.

    Raises
    ------
    WrongTypeError: a value is not of its field's type.
    """
    _check_type(value, schema, path)
    if isinstance(value, list):
        entry = items_of(schema)
        return [known_part(each, entry, f"{path}[{i}]", unknown) for i, each in enumerate(value)]
    if not isinstance(value, dict) or ("properties" not in schema and "additionalProperties" not in schema):
        return value
    result = {}
    for name, each in value.items():
        place = f"{path}.{name}" if path else name
        sub = child(schema, name)
        if sub:
            result[name] = known_part(each, sub, place, unknown)
        else:
            unknown.append(place)
    return result


def _check_type(value: Any, schema: Schema, path: str) -> None:
    choices = [name for each in schema.get("oneOf", [schema]) for name in _as_list(each.get("type", ()))]
    allowed = tuple(kind for name in choices for kind in _TYPES.get(name, ()))
    if value is None or not allowed:
        return
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise WrongTypeError(f"{path}: {value!r} is no {' or '.join(n for n in choices if n != 'null')}")


def _as_list(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value)


def missing(value: Any, schema: Schema, path: str = "") -> Iterator[str]:
    """Yield the paths of fields that must be there and are not."""
    if isinstance(value, list):
        for i, each in enumerate(value):
            yield from missing(each, items_of(schema), f"{path}[{i}]")
    if not isinstance(value, dict):
        return
    for name in schema.get("required", ()):
        if value.get(name) is None:
            yield f"{path}.{name}" if path else name
    for name, each in value.items():
        yield from missing(each, child(schema, name), f"{path}.{name}" if path else name)


def repeated(value: Any, schema: Schema, path: str = "") -> Iterator[str]:
    """Yield what a keyed list or a set has twice, each with its path."""
    if isinstance(value, list):
        names = keys_of(schema)
        seen: list[Any] = []
        for each in value:
            key = key_in(schema, each) if names else each
            if (names or is_set(schema)) and key in seen:
                pairs = zip(names, key, strict=True) if names else [("", key)]
                words = ",".join(f"{name}={json.dumps(one)}" for name, one in pairs)
                yield f"{path}: duplicate entries for key [{words}]"
            seen.append(key)
            yield from repeated(each, items_of(schema), path)
    elif isinstance(value, dict):
        for name, each in value.items():
            yield from repeated(each, child(schema, name), f"{path}.{name}")
