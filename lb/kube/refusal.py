# SPDX-License-Identifier: Apache-2.0
"""Why an API object does not fit the structs of decode.py, in the words that lb.manifests uses for manifests.

msgspec's own messages change with its version and leave out which entry of a list is meant. So a refused
object, which is rare, is read a second time into plain values, and those are compared with
the struct's types.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import msgspec
from msgspec import inspect

Refusal = tuple[str, str]
"""The field, such as ``spec.ports[2].port`` (``""``: the object as a whole), and what is wrong with it."""

_KINDS: dict[type, str] = {
    dict: "a mapping",
    list: "a list",
    str: "a string",
    bool: "a boolean",
    int: "a whole number",
    float: "a number with a fraction",
    type(None): "null",
}
_PYTHON_TYPES: dict[type[inspect.Type], type] = {
    inspect.StructType: dict,
    inspect.DictType: dict,
    inspect.VarTupleType: list,
    inspect.ListType: list,
    inspect.StrType: str,
    inspect.LiteralType: str,
    inspect.EnumType: str,
    inspect.IntType: int,
    inspect.BoolType: bool,
    inspect.NoneType: type(None),
}
_SHOWN = 40
"""Characters of a wrong value that a message repeats."""


def refusal(body: bytes | msgspec.Raw, wanted: type) -> Refusal:
    """Return the first place where a body differs from a struct, and how."""
    text = bytes(body)
    try:
        text.decode()
    except UnicodeDecodeError as error:
        return "", f"is not UTF-8 text, from byte {error.start} on"
    try:
        tree = msgspec.json.decode(text)
    except RecursionError:
        return "", "is nested too deep"
    except msgspec.DecodeError:
        return "", "does not parse as JSON"
    return next(_differences(inspect.type_info(wanted), tree, ""), ("", "cannot be read"))


def _differences(wanted: inspect.Type, value: Any, path: str) -> Iterator[Refusal]:
    """Yield what is wrong with a value and with all that it holds, in the order of the struct's fields."""
    match wanted:
        case inspect.UnionType():
            yield from _of_union(wanted, value, path)
        case inspect.StructType():
            yield from _of_struct(wanted, value, path)
        case inspect.DictType():
            if wrong := _kind(value, dict):
                yield path, wrong
                return
            for key, entry in value.items():
                yield from _differences(wanted.value_type, entry, f"{path}[{key}]")
        case inspect.VarTupleType() | inspect.ListType():
            if wrong := _kind(value, list):
                yield path, wrong
            elif len(value) < (wanted.min_length or 0):
                yield path, f"must have {wanted.min_length} or more entries, has {len(value)}"
            else:
                for index, entry in enumerate(value):
                    yield from _differences(wanted.item_type, entry, f"{path}[{index}]")
        case _:
            if wrong := _of_scalar(wanted, value):
                yield path, wrong


def _of_struct(wanted: inspect.StructType, value: Any, path: str) -> Iterator[Refusal]:
    if wrong := _kind(value, dict):
        yield path, wrong
        return
    for field in wanted.fields:
        place = f"{path}.{field.encode_name}" if path else field.encode_name
        if field.encode_name in value:
            yield from _differences(field.type, value[field.encode_name], place)
        elif field.required:
            yield place, "is missing"


def _of_union(wanted: inspect.UnionType, value: Any, path: str) -> Iterator[Refusal]:
    """Nothing when one alternative fits; else what is wrong with the one of the value's kind.

    A whole number with a fraction of 0 fits none: msgspec reads it only where nothing but a number may stand.
    """
    found = [(each, list(_differences(each, value, path))) for each in wanted.types]
    if type(value) is not float and not all(differences for _, differences in found):
        return
    alike = [differences for each, differences in found if _python_type(each) is type(value)]
    if alike:
        yield from alike[0]
    else:
        kinds = [_KINDS[kind] for each in wanted.types if (kind := _python_type(each)) is not type(None)]
        yield path, f"must be {' or '.join(kinds)}, is {_KINDS[type(value)]}"


def _of_scalar(wanted: inspect.Type, value: Any) -> str:
    """Return what is wrong with a value that holds no others, ``""`` when nothing is."""
    if wrong := _kind(value, _python_type(wanted)):
        return wrong
    match wanted:
        case inspect.IntType(ge=low, le=high) if low is not None and high is not None:
            return "" if low <= value <= high else f"must be from {low} to {high}, is {value}"
        case inspect.LiteralType(values=choices):
            return _choice(choices, value)
        case inspect.EnumType(cls=cls):
            return _choice(tuple(each.value for each in cls), value)
    return ""


def _choice(choices: tuple[Any, ...], value: str) -> str:
    if value in choices:
        return ""
    return f"must be one of {', '.join(filter(None, choices))}, is {value[:_SHOWN]!r}"


def _kind(value: Any, wanted: type) -> str:
    """Return what is wrong with the kind of a value; a whole number may be written with a fraction of 0."""
    if wanted is object or type(value) is wanted:
        return ""
    if wanted is int and type(value) is float and value.is_integer():
        return ""
    return f"must be {_KINDS[wanted]}, is {_KINDS[type(value)]}"


def _python_type(wanted: inspect.Type) -> type:
    """Return the type that a value of plain JSON has to have; ``object`` stands for any."""
    return _PYTHON_TYPES.get(type(wanted), object)
