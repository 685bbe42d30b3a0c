# SPDX-License-Identifier: Apache-2.0
"""Typed access to a YAML tree that collects what is wrong instead of stopping at it.

A reader asks for what it wants, ``spec["ports"].items()``, and gets a value of that type: where the
manifest holds something else, an error with line and field is noted and the default is returned. After
reading, an object is good when nothing was noted.
"""

from __future__ import annotations

import difflib
import enum
import ipaddress
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TypeVar

from lb.errors import InputError
from lb.manifests.yamldoc import YamlNode, child_path
from lb.model import IPAddress

Choice = TypeVar("Choice", bound=enum.StrEnum)

_A = {
    "mapping": "a mapping",
    "list": "a list",
    "string": "a string",
    "number": "a number",
    "float": "a number with a fraction or exponent",
    "boolean": "a boolean",
    "null": "null",
    "merge": "a merge key",
}


MOST_PROBLEMS = 20
"""How many errors of one object are told; of the others their number."""


@dataclass(slots=True)
class Problems:
    """The errors of one object.

    path: the file.
    object: ``"Service default/web"``; set as soon as it is known, and then holds for all errors.
    noted: (line, field, message) in the order found, the first MOST_PROBLEMS.
    left_out: how many more there are.
    """

    path: str
    object: str = ""
    noted: list[tuple[int, str, str]] = field(default_factory=list)
    left_out: int = 0

    def note(self, line: int, where: str, message: str) -> None:
        """Note an error, unless there is one for the same field or for one that holds it."""
        wrong = (field for _, field, _ in self.noted)
        if any(where == field or where.startswith((f"{field}.", f"{field}[")) for field in wrong):
            return
        if self.full:
            self.left_out += 1
        else:
            self.noted.append((line, where, message))

    @property
    def full(self) -> bool:
        """Whether further errors are counted only: what is to be said about them need not be found out."""
        return len(self.noted) >= MOST_PROBLEMS

    def errors(self) -> list[InputError]:
        """Return what was noted, by line, and at the end how many errors were left out."""
        found = [
            InputError(self.path, line, self.object, where, text) for line, where, text in sorted(self.noted)
        ]
        if self.left_out:
            line = max(line for line, _, _ in self.noted)
            more = f"has {self.left_out} more errors, which are not listed"
            found.append(InputError(self.path, line, self.object, "", more))
        return found


@dataclass(frozen=True, slots=True)
class Field:
    """A place in an object, whether or not the manifest has something there.

    line is that of the value, or of what would hold it. A null counts as absent, as the API server decodes
    it.
    """

    problems: Problems
    path: str
    line: int
    node: YamlNode | None
    above: Fields | None = None

    @property
    def present(self) -> bool:
        """Whether the manifest has a value here."""
        return self.node is not None

    def error(self, message: str) -> None:
        """Note that this field is wrong."""
        self.problems.note(self.line, self.path, message)

    def check(self, complaint: str | None) -> bool:
        """Note a complaint if there is one; return whether there was none."""
        if complaint is not None:
            self.error(complaint)
        return complaint is None

    def _is(self, kind: str, node: YamlNode, hint: str = "") -> bool:
        if node.kind == kind:
            return True
        shown = f" ({node.text})" if node.text and len(node.text) < 40 else ""
        self.error(f"must be {_A[kind]}, is {_A[node.kind]}{shown}{hint}")
        return False

    def text(self, default: str = "") -> str:
        """Return a string."""
        if self.node is None:
            return default
        hint = "; put it in quotes" if self.node.kind in ("number", "float", "boolean") else ""
        return self.node.text if self._is("string", self.node, hint) else default

    def number(self, low: int, high: int, default: int = 0) -> int:
        """Return a whole number of the range low to high, both included."""
        if self.node is None:
            return default
        hint = "; remove the quotes" if self.node.kind == "string" and self.node.text.isdigit() else ""
        if not self._is("number", self.node, hint):
            return default
        value = self.node.as_int()
        if low <= value <= high:
            return value
        self.error(f"must be from {low} to {high}, is {value}")
        return default

    def flag(self) -> bool:
        """Return a boolean; False when absent."""
        return self.node is not None and self._is("boolean", self.node) and self.node.as_bool()

    def choice(self, values: type[Choice], default: Choice) -> Choice:
        """Return a member of an enumeration; an empty string counts as absent."""
        text = self.text()
        if not text:
            return default
        try:
            return values(text)
        except ValueError:
            self.error(f"must be one of {', '.join(value for value in values if value)}, is {text!r}")
            return default

    def address(self) -> IPAddress | None:
        """Return an IP address; None when it is absent or wrong."""
        text = self.text()
        if not text:
            self.error("must be an IP address, is missing")
            return None
        try:
            return ipaddress.ip_address(text)
        except ValueError as error:
            self.error(f"must be an IP address: {error}")
            return None

    def fields(self, known: frozenset[str] | None = None) -> Fields:
        """Return a mapping, an empty one when absent.

        With known, every other name in it is an error, as for an API server that validates strictly.
        """
        entries: dict[str, tuple[int, YamlNode]] = {}
        if self.node is not None and self._is("mapping", self.node):
            entries = self.node.entries
        fields = Fields(self, entries, known)
        if known is not None:
            fields.reject_unknown()
        return fields

    def items(self) -> list[Field]:
        """Return the entries of a list."""
        if self.node is None or not self._is("list", self.node):
            return []
        return [
            Field(
                self.problems,
                f"{self.path}[{i}]",
                node.line,
                None if node.kind == "null" else node,
                self.above,
            )
            for i, node in enumerate(self.node.items)
        ]

    def string_map(
        self, check_key: Callable[[str], str | None], check_value: Callable[[str], str | None]
    ) -> dict[str, str]:
        """Return a map of strings to strings; a null value counts as the empty string."""
        result: dict[str, str] = {}
        for key, value in self.fields():
            text = value.text()
            if value.check(check_key(key)) and value.check(check_value(text)):
                result[key] = text
        return result


@dataclass(frozen=True, slots=True)
class Fields:
    """A mapping of the manifest: ``fields["name"]`` is always a Field."""

    place: Field
    entries: dict[str, tuple[int, YamlNode]]
    known: frozenset[str] | None = None

    def __getitem__(self, name: str) -> Field:
        key_line, node = self.entries.get(name, (self.place.line, None))
        if node is not None and node.kind == "null":
            node = None
        scalar = node is not None and node.kind not in ("mapping", "list")
        line = node.line if node is not None and scalar else key_line
        return Field(self.place.problems, child_path(self.place.path, name), line, node, self)

    def __iter__(self) -> Iterator[tuple[str, Field]]:
        return ((name, self[name]) for name in self.entries)

    def reject_unknown(self) -> None:
        """Note every name that is not known."""
        assert self.known is not None
        problems = self.place.problems
        for name, (line, _) in self.entries.items():
            if name not in self.known:
                advice = "" if problems.full else self._advice(name, self.known)
                problems.note(line, child_path(self.place.path, name), f"unknown field{advice}")

    def _advice(self, name: str, known: frozenset[str]) -> str:
        above = self.place.above
        while above is not None:
            if above.known is not None and name in above.known:
                return f"; it belongs to {above.place.path or 'the object itself'}, is it indented too far?"
            above = above.place.above
        close = difflib.get_close_matches(name, known, 1)
        if not close:
            close = [other for other in known if other.lower() == name.lower()]
        return f"; did you mean {close[0]}?" if close else ""
