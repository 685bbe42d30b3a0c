# SPDX-License-Identifier: Apache-2.0
"""What the API server does to objects by request: it decodes, merges, validates, stores, and deletes in time.

Everything is as a kube-apiserver 1.36 does it, as far as the lab and kubectl can notice:
:mod:`tests.kube.test_same_answers` asks both the same. Who owns which field is known for server-side apply
alone, and force is assumed.
"""

from __future__ import annotations

import copy
import datetime
import secrets
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from tests.kube import kinds, schema
from tests.kube.patches import applied, merged, strategic
from tests.kube.rules import KINDS, Object, StatusError, api_version, selects

if TYPE_CHECKING:
    from tests.cluster_double import ClusterDouble

Key = tuple[str, str]
Query = Mapping[str, str]

APPLY = "application/apply-patch+yaml"
MERGE = "application/merge-patch+json"
STRATEGIC = "application/strategic-merge-patch+json"

_SERVERS = ("uid", "creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds")
"""Fields of metadata that are the server's alone."""

_FINALIZERS = {"Foreground": "foregroundDeletion", "Orphan": "orphan"}
"""What a propagation policy leaves for the garbage collector to take away."""


class Registry:
    """The objects of a double, as requests see them; methods raise StatusError where the server refuses."""

    def __init__(self, double: ClusterDouble) -> None:
        self._double = double
        self._applied: dict[tuple[str, Key, str, str], Object] = {}
        """What each manager applied last, by resource, object, subresource and manager."""

    def get(self, resource: str, key: Key) -> Object:
        """Return an object."""
        try:
            return self._double.objects[resource][key]
        except KeyError:
            group = KINDS[resource][0]
            name = f"{resource}.{group}" if group else resource
            raise StatusError(404, "NotFound", f'{name} "{key[1]}" not found') from None

    def create(self, resource: str, namespace: str, body: Object, query: Query) -> Object:
        """Create an object; its status is the server's."""
        item = _decoded(resource, body, query)
        meta = item.get("metadata") or {}
        if meta.get("resourceVersion"):
            raise StatusError(
                500, "InternalError", "resourceVersion should not be set on objects to be created"
            )
        name = meta.get("name") or (
            f"{meta['generateName']}{secrets.token_hex(3)[:5]}" if "generateName" in meta else ""
        )
        key = (namespace, name)
        _check_place(item, key)
        self._check_namespace(namespace)
        if name and key in self._double.objects[resource]:
            raise _conflict(resource, name, "AlreadyExists", "already exists")
        item["metadata"] = {**meta, "name": name}
        return self._store(resource, key, None, item)

    def update(self, resource: str, key: Key, sub: str, body: Object, query: Query) -> Object:
        """Replace an object or its status; some kinds come into being by it."""
        item = _decoded(resource, body, query)
        _check_place(item, key)
        if resource in kinds.MADE_BY_UPDATE and not sub and key not in self._double.objects[resource]:
            return self.create(resource, key[0], item, query)
        known = self.get(resource, key)
        return self._change(resource, key, sub, known, item)

    def patch(
        self, resource: str, key: Key, sub: str, body: Object, query: Query, content_type: str
    ) -> Object:
        """Merge into an object or its status what the patch says."""
        known = self.get(resource, key)
        if content_type == MERGE:
            changed = merged(known, body)
        elif content_type == STRATEGIC:
            changed = strategic(known, body, schema.schema_of(*_type_of(resource)))
        else:
            raise StatusError(415, "UnsupportedMediaType", f"the double takes no {content_type}")
        item = _decoded(resource, changed, query)
        _check_place(item, key)
        return self._change(resource, key, sub, known, item)

    def apply(self, resource: str, key: Key, sub: str, body: Object, query: Query) -> tuple[Object, bool]:
        """Apply an object or its status, by force; return it and whether it is new."""
        manager = query.get("fieldManager", "")
        if not manager:
            raise StatusError(422, "Invalid", "fieldManager: Required value", fields=("fieldManager",))
        form = schema.schema_of(*_type_of(resource))
        place = f"({'/'.join(filter(None, key))}; {_type_of(resource)[0]}, Kind={_type_of(resource)[1]})"
        item = _typed(resource, body, place)
        _check_place(item, key)
        if faults := list(schema.repeated(item, form)):
            raise StatusError(500, "", f"failed to create typed patch object {place}: {faults[0]}")
        known = self._double.objects[resource].get(key)
        if known is None and sub:
            self.get(resource, key)
        applied_as = (resource, key, sub, manager)
        former = self._applied.get(applied_as, {}) if known else {}
        version = (item.get("metadata") or {}).get("resourceVersion")
        result = applied(known or {}, former, item, form)
        if known is None:
            self._check_namespace(key[0])
            stored = self._store(resource, key, None, result)
        else:
            result["metadata"]["resourceVersion"] = version or known["metadata"]["resourceVersion"]
            stored = self._change(resource, key, sub, known, result)
        self._applied[applied_as] = item
        return stored, known is None

    def delete(self, resource: str, key: Key, options: Object, query: Query) -> Object:
        """Delete an object, at once or in time; return it while it is there, else a Status."""
        known = self.get(resource, key)
        meta = known["metadata"]
        for name, wanted in (options.get("preconditions") or {}).items():
            if meta[name] != wanted:
                words = f"Precondition failed: {name} in precondition: {wanted}, in object meta: {meta[name]}"
                raise _conflict(resource, key[1], "Conflict", words)
        grace = self._grace(known, options, query)
        finalizers = [*meta.get("finalizers", ())]
        policy = options.get("propagationPolicy") or query.get("propagationPolicy", "Background")
        if (more := _FINALIZERS.get(policy)) and more not in finalizers:
            finalizers.append(more)
        held = finalizers or (known["kind"] == "Namespace" and known["spec"].get("finalizers"))
        if not held and not grace:
            self._double.remove(known)
            details = {"name": key[1], "group": KINDS[resource][0], "kind": resource, "uid": meta["uid"]}
            success = {
                "kind": "Status",
                "apiVersion": "v1",
                "metadata": {},
                "status": "Success",
                "details": details,
            }
            return known if known["kind"] in kinds.RETURNED else success
        dying = copy.deepcopy(known)
        dying["metadata"] |= _ending(meta, grace) | ({"finalizers": finalizers} if finalizers else {})
        if dying["kind"] == "Namespace":
            dying["status"] = {"phase": "Terminating"}
        return self._put(resource, known, dying)

    def delete_all(self, resource: str, namespace: str, options: Object, query: Query) -> Object:
        """Delete the objects of a namespace that the request's selectors select."""
        items = [
            item
            for (place, _), item in sorted(self._double.objects[resource].items())
            if namespace in ("", place) and selects(dict(query), item)
        ]
        for item in items:
            meta = item["metadata"]
            self.delete(resource, (meta.get("namespace", ""), meta["name"]), options, query)
        version, kind = _type_of(resource)
        return {"kind": f"{kind}List", "apiVersion": version, "metadata": {}, "items": items}

    def finalize(self, key: Key, body: Object) -> Object:
        """Take away the finalizers of a namespace's spec that the body lacks; with the last one it ends."""
        known = self.get("namespaces", key)
        changed = copy.deepcopy(known)
        changed["spec"]["finalizers"] = body["spec"].get("finalizers") or []
        return self._put("namespaces", known, changed)

    # what every change goes through

    def _change(self, resource: str, key: Key, sub: str, known: Object, item: Object) -> Object:
        meta, old = item["metadata"], known["metadata"]
        if meta.get("uid") not in (None, "", old["uid"]):
            words = f'metadata.uid: Invalid value: "{meta["uid"]}": field is immutable'
            raise StatusError(422, "Invalid", words, fields=("metadata.uid",))
        if meta.get("resourceVersion") not in (None, "", old["resourceVersion"]):
            raise _conflict(
                resource, key[1], "Conflict", "the object has been modified; please apply your changes"
            )
        return self._store(resource, key, known, item, sub)

    def _store(self, resource: str, key: Key, known: Object | None, item: Object, sub: str = "") -> Object:
        """Fill in, validate and store; known is what the object is so far."""
        version, kind = _type_of(resource)
        item = copy.deepcopy(item)
        given = item.get("metadata") or {}
        meta = {
            name: value
            for name, value in given.items()
            if name not in _SERVERS and value not in (None, {}, [])
        }
        own = {name: known["metadata"][name] for name in _SERVERS if known and name in known["metadata"]}
        place = {"name": key[1], **({"namespace": key[0]} if key[0] else {})}
        item = {**item, "apiVersion": version, "kind": kind, "metadata": {**meta, **place, **own}}
        if kind in kinds.WITH_STATUS:
            if sub == "status" and known:
                item = {**known, "status": item.get("status") or {}}
            else:
                item.pop("status", None)
                if known and "status" in known:
                    item["status"] = known["status"]
        kinds.complete(item, known, self._double)
        causes = [*kinds.wrong(item, known), *_required(item)]
        if causes:
            words = ", ".join(f"{field}: {text}" for field, text in causes)
            raise StatusError(
                422, "Invalid", f'{kind} "{key[1]}" is invalid: {words}', fields=tuple(f for f, _ in causes)
            )
        if known and known["metadata"].get("deletionTimestamp"):
            new = set(meta.get("finalizers", ())) - set(known["metadata"].get("finalizers", ()))
            if new:
                raise StatusError(
                    422, "Invalid", f"metadata.finalizers: Forbidden: no new finalizers: {sorted(new)}"
                )
        return self._put(resource, known, item)

    def _put(self, resource: str, known: Object | None, item: Object) -> Object:
        """Store what differs; an object that is being deleted ends with its last finalizer."""
        meta = item["metadata"]
        if meta.get("deletionTimestamp") and not meta.get("deletionGracePeriodSeconds"):
            held = item["spec"].get("finalizers") if resource == "namespaces" else ()
            if not meta.get("finalizers") and not held and known:
                self._double.remove(known)
                return item
        if known and _without_version(known) == _without_version(item):
            return known
        return self._double.put(item)

    def _check_namespace(self, name: str) -> None:
        if not name:
            return
        namespace = self._double.objects["namespaces"].get(("", name))
        if namespace is None:
            raise StatusError(404, "NotFound", f'namespaces "{name}" not found')
        if namespace["metadata"].get("deletionTimestamp"):
            raise StatusError(
                403, "Forbidden", f"namespace {name} is being terminated", ("NamespaceTerminating",)
            )

    @staticmethod
    def _grace(known: Object, options: Object, query: Query) -> int:
        """Return after how many seconds a pod may go; other objects may at once."""
        spec = known.get("spec") or {}
        if known["kind"] != "Pod" or not spec.get("nodeName"):
            return 0
        asked = options.get("gracePeriodSeconds", query.get("gracePeriodSeconds"))
        wanted: int = int(spec.get("terminationGracePeriodSeconds", 30) if asked is None else asked)
        if (known.get("status") or {}).get("phase") in ("Succeeded", "Failed"):
            wanted = 0
        return min(wanted, int(known["metadata"].get("deletionGracePeriodSeconds", wanted)))


def _type_of(resource: str) -> tuple[str, str]:
    group, version, kind = KINDS[resource]
    return api_version(group, version), kind


def _decoded(resource: str, body: Object, query: Query) -> Object:
    """Return the object without fields that its kind does not have; a strict request gets an error."""
    version, kind = _type_of(resource)
    if (body.get("apiVersion", version), body.get("kind", kind)) != (version, kind):
        raise StatusError(
            400, "BadRequest", f"{body.get('kind')} in {body.get('apiVersion')} is no {kind} of {version}"
        )
    unknown: list[str] = []
    try:
        item: Object = schema.known_part(body, schema.schema_of(version, kind), "", unknown)
    except schema.WrongTypeError as error:
        raise StatusError(
            400, "BadRequest", f"{kind} cannot be handled: json: cannot unmarshal {error}"
        ) from None
    if unknown and query.get("fieldValidation") == "Strict":
        words = ", ".join(f'unknown field "{path}"' for path in unknown)
        raise StatusError(400, "BadRequest", f"strict decoding error: {words}")
    return item


def _typed(resource: str, body: Object, place: str) -> Object:
    """Return the object that server-side apply sends; fields that the kind does not have are an error."""
    version, kind = _type_of(resource)
    if (body.get("apiVersion"), body.get("kind")) != (version, kind):
        raise StatusError(400, "BadRequest", f"not a {kind} of {version}")
    unknown: list[str] = []
    try:
        schema.known_part(body, schema.schema_of(version, kind), "", unknown)
    except schema.WrongTypeError as error:
        raise StatusError(500, "", f"failed to create typed patch object {place}: {error}") from None
    if unknown:
        words = f"failed to create typed patch object {place}: .{unknown[0]}: field not declared in schema"
        raise StatusError(500, "", words)
    return copy.deepcopy(body)


def _check_place(item: Object, key: Key) -> None:
    meta = item.get("metadata") or {}
    if meta.get("namespace") not in (None, "", key[0]):
        raise StatusError(
            400, "BadRequest", "the namespace of the provided object does not match the request's"
        )
    if meta.get("name") not in (None, "", key[1]):
        raise StatusError(
            400, "BadRequest", f"the name of the object ({meta['name']}) does not match the URL's ({key[1]})"
        )


def _required(item: Object) -> Iterator[tuple[str, str]]:
    """Yield the fields that are missing outside of the status, which the server believes."""
    form = schema.schema_of(item["apiVersion"], item["kind"])
    body = {name: value for name, value in item.items() if name != "status"}
    for path in schema.missing(body, form):
        yield path, "Required value"


def _conflict(resource: str, name: str, reason: str, words: str) -> StatusError:
    return StatusError(409, reason, f'Operation cannot be fulfilled on {resource} "{name}": {words}')


def _ending(meta: Object, grace: int) -> Object:
    """Return what metadata says of an object that is being deleted."""
    before = meta.get("deletionGracePeriodSeconds")
    if "deletionTimestamp" in meta and (before is None or grace >= before):
        return {}
    end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=grace)
    return {"deletionTimestamp": f"{end:%Y-%m-%dT%H:%M:%SZ}", "deletionGracePeriodSeconds": grace}


def _without_version(item: Object) -> Any:
    meta = {name: value for name, value in item["metadata"].items() if name != "resourceVersion"}
    return {**item, "metadata": meta}
