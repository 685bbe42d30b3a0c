# SPDX-License-Identifier: Apache-2.0
"""The three sorts of patches that the API server takes, by the schemas of what they change.

Merge patches are RFC 7386. Strategic merge patches and server-side apply merge lists by keys; see "Update API
Objects in Place Using kubectl patch" and "Server-Side Apply" in Kubernetes' documentation.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from tests.kube.schema import Schema, child, is_atomic, is_set, items_of, key_in, keys_of

Object = dict[str, Any]


def merged(old: Any, new: Any) -> Any:
    """Return an object after a merge patch."""
    if not isinstance(new, dict):
        return copy.deepcopy(new)
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in new.items():
        if value is None:
            result.pop(name, None)
        else:
            result[name] = merged(result.get(name), value)
    return result


def strategic(old: Any, new: Any, schema: Schema) -> Any:
    """Return an object after a strategic merge patch; ``$retainKeys`` and orders are not looked at."""
    if isinstance(new, list):
        return _strategic_list(old, new, schema)
    if not isinstance(new, dict):
        return copy.deepcopy(new)
    if new.get("$patch") == "replace":
        return {name: copy.deepcopy(value) for name, value in new.items() if name != "$patch"}
    result = dict(old) if isinstance(old, dict) else {}
    for name, value in new.items():
        if name.startswith("$deleteFromPrimitiveList/"):
            field = name.partition("/")[2]
            result[field] = [each for each in result.get(field, ()) if each not in value]
        elif name.startswith("$"):
            continue
        elif value is None or (isinstance(value, dict) and value.get("$patch") == "delete"):
            result.pop(name, None)
        else:
            result[name] = strategic(result.get(name), value, child(schema, name))
    return result


def _strategic_list(old: Any, new: list[Any], schema: Schema) -> list[Any]:
    result = list(old or ())
    key = schema.get("x-kubernetes-patch-merge-key")
    if schema.get("x-kubernetes-patch-strategy", "").split(",")[0] != "merge":
        return copy.deepcopy(new)
    if key is None:
        return result + [each for each in new if each not in result]
    for each in new:
        places = [i for i, one in enumerate(result) if one.get(key) == each.get(key)]
        if each.get("$patch") == "delete":
            result = [one for one in result if one.get(key) != each.get(key)]
        elif places:
            result[places[0]] = strategic(result[places[0]], each, items_of(schema))
        else:
            result.append(strategic({}, each, items_of(schema)))
    return result


def applied(known: Any, former: Any, now: Any, schema: Schema) -> Any:
    """Return an object after server-side apply.

    former is what this manager applied before, now what it applies. What it applied before and does not apply
    now goes. Other fields beside it stay, but an entry of a list goes with all its fields, whosever they are.
    """
    if isinstance(now, dict) and not is_atomic(schema):
        return _applied_fields(known or {}, former or {}, now, schema)
    if isinstance(now, list) and keys_of(schema):
        return _applied_entries(known or (), former or (), now, schema)
    if isinstance(now, list) and is_set(schema):
        kept = [each for each in known or () if each in now or each not in (former or ())]
        return kept + [each for each in now if each not in kept]
    return copy.deepcopy(now)


def _applied_fields(known: Object, former: Object, now: Object, schema: Schema) -> Object:
    result = {}
    for name in [*known, *(each for each in now if each not in known)]:
        sub = child(schema, name)
        if name in now:
            result[name] = applied(known.get(name), former.get(name), now[name], sub)
        elif name not in former:
            result[name] = known[name]
        elif isinstance(known[name], (dict, list)) and (sub.get("items") or not is_atomic(sub)):
            left = applied(known[name], former[name], type(known[name])(), sub)
            if left:
                result[name] = left
    return result


def _applied_entries(
    known: Iterable[Object], former: Iterable[Object], now: list[Object], schema: Schema
) -> Any:
    before, new = ({key_in(schema, each): each for each in some} for some in (former, now))
    result = {key_in(schema, each): each for each in known}
    result = {key: each for key, each in result.items() if key in new or key not in before}
    for key, each in new.items():
        result[key] = applied(result.get(key), before.get(key), each, items_of(schema))
    return list(result.values())
