# SPDX-License-Identifier: Apache-2.0
"""Rules of the API that the double keeps: selectors, watch events, what an Event must have, errors."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

Object = dict[str, Any]

KINDS = {
    "services": ("", "v1", "Service"),
    "nodes": ("", "v1", "Node"),
    "endpointslices": ("discovery.k8s.io", "v1", "EndpointSlice"),
    "events": ("events.k8s.io", "v1", "Event"),
}


@dataclass
class Change:
    """What happened to an object at a version; None: it was not there, it is gone."""

    version: int
    before: Object | None
    after: Object | None


class StatusError(Exception):
    """Ends a request with a Status object; fields are the paths of those that are wrong."""

    def __init__(
        self,
        code: int,
        reason: str,
        message: str,
        causes: tuple[str, ...] = (),
        fields: tuple[str, ...] = (),
    ) -> None:
        super().__init__(message)
        wrong = [{"reason": "FieldValueInvalid", "field": each} for each in fields]
        self.body = {
            "kind": "Status",
            "apiVersion": "v1",
            "status": "Failure",
            "message": message,
            "reason": reason,
            "code": code,
            "details": {"causes": [*({"reason": cause} for cause in causes), *wrong]},
        }
        self.code = code


def api_version(group: str, version: str) -> str:
    """Return an object's apiVersion."""
    return f"{group}/{version}" if group else version


def resource_of(item: Object) -> str:
    """Return the resource, ``services``, of an object."""
    return next(resource for resource, (_, _, kind) in KINDS.items() if kind == item["kind"])


def event_of(query: dict[str, str], change: Change) -> tuple[str, Object] | None:
    """Return type and object of the watch event that a change is to a watch with selectors; None for none."""
    was = change.before is not None and selects(query, change.before)
    is_now = change.after is not None and selects(query, change.after)
    if is_now:
        return ("MODIFIED" if was else "ADDED"), cast("Object", change.after)
    if not was:
        return None
    gone = copy.deepcopy(cast("Object", change.before))
    gone["metadata"]["resourceVersion"] = str(change.version)
    return "DELETED", gone


def selects(query: dict[str, str], item: Object) -> bool:
    """Return whether the label and field selectors of a request select an object."""
    labels = item["metadata"].get("labels") or {}
    return all(_label_matches(term, labels) for term in _terms(query, "labelSelector")) and all(
        _field_matches(term, item) for term in _terms(query, "fieldSelector")
    )


def _terms(query: dict[str, str], name: str) -> Iterator[str]:
    return (term for term in query.get(name, "").split(",") if term)


def _label_matches(term: str, labels: dict[str, str]) -> bool:
    if term.startswith("!"):
        return term[1:] not in labels
    if "=" in term:
        name, _, value = term.partition("=")
        return (labels.get(name.rstrip("!")) == value) is not name.endswith("!")
    return term in labels


def _field_matches(term: str, item: Object) -> bool:
    name, _, value = term.partition("=")
    supported = {"metadata.name", "metadata.namespace"}
    if item["kind"] == "Service":
        supported |= {"spec.clusterIP", "spec.type"}
    if name.rstrip("!") not in supported:
        raise StatusError(400, "BadRequest", f"field label not supported: {name}")
    found: Any = item
    for part in name.rstrip("!").split("."):
        found = found.get(part, "")
    return (found == value) is not name.endswith("!")


def check_event(event: Object) -> None:
    """Refuse what the API server's validation of events.k8s.io/v1 refuses."""
    required = (
        "eventTime",
        "reportingController",
        "reportingInstance",
        "action",
        "reason",
        "type",
        "regarding",
    )
    missing = [name for name in required if not event.get(name)]
    limits = {"reportingInstance": 128, "action": 128, "reason": 128, "note": 1024}
    long = [name for name, most in limits.items() if len(event.get(name, "").encode()) > most]
    series = event.get("series")
    if missing or long or (series and (series["count"] < 2 or not series["lastObservedTime"])):
        raise StatusError(422, "Invalid", f"missing {missing}, too long {long}, series {series}")
