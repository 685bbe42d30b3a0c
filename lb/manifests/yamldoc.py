# SPDX-License-Identifier: Apache-2.0
"""YAML text to trees of nodes that remember their line.

PyYAML's loaders build plain values and forget where they stood, and its composer has no bound on nesting (a
file of 100,000 opening brackets ends the process). So the trees are built here, from libyaml's event
stream.

Scalars resolve as in Kubernetes' own reader (YAML 1.1 with Go's rules), because a manifest has to mean here
what it means to the API server: ``yes``, ``on`` and ``y`` are booleans, ``010`` is eight, ``1e3`` is a
number, but dates and ``12:30`` are strings. JSON is read as the YAML that it is.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal

import yaml

MAX_DEPTH = 100
"""Levels of nesting that a document may have; Kubernetes' own types need fewer than twenty."""

_TOO_DEEP = f"nested deeper than {MAX_DEPTH} levels"

MAX_DIGITS = 64
"""Longer whole numbers count as ``float``: no field takes one, and Python does not convert very long ones."""

MAX_REPEATED = 100_000
"""Values that a document's aliases may stand for: a few lines of them can mean more than any memory holds."""

NodeKind = Literal["mapping", "list", "string", "number", "float", "boolean", "null", "merge"]

_TRUE = frozenset(("y", "Y", "yes", "Yes", "YES", "true", "True", "TRUE", "on", "On", "ON"))
_FALSE = frozenset(("n", "N", "no", "No", "NO", "false", "False", "FALSE", "off", "Off", "OFF"))
_WORDS: dict[str, NodeKind] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL"), "null"),
    **dict.fromkeys(_TRUE | _FALSE, "boolean"),
    "<<": "merge",
}
_NUMBER = re.compile(r"[-+]?(0b[01][01_]*|0o?[0-7][0-7_]*|0x[0-9a-fA-F][0-9a-fA-F_]*|0|[1-9][0-9_]*)")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_SEPARATOR = re.compile(r"^---(?=[ \t\r\n]|\Z)", re.MULTILINE)
_NO_DOCUMENT = re.compile(r"(?:---)?(?:[ \t]*(?:[#%][^\n]*)?\r?(?:\n|\Z))*")


@dataclass(slots=True)
class YamlNode:
    """One YAML value.

    kind: what the value is; ``float`` is every number that is not a whole one in its spelling, ``merge`` the
        unquoted key ``<<``, which takes over the entries of other mappings.
    line: 1-based line where it begins.
    text: a scalar as it is written, without quotes.
    items: the values of a list.
    entries: the values of a mapping by key, with the line of the key.
    size: how many values it is, itself and those below it; what an alias stands for counts each time.
    """

    kind: NodeKind
    line: int
    text: str = ""
    items: list[YamlNode] = field(default_factory=list)
    entries: dict[str, tuple[int, YamlNode]] = field(default_factory=dict)
    size: int = 1

    def as_int(self) -> int:
        """Return the value of a ``number``: decimal, 0x, 0b, 0o, or octal after a bare leading zero."""
        text = self.text.replace("_", "")
        digits = text.lstrip("+-")
        if len(digits) > 1 and digits[0] == "0" and digits[1].isdigit():
            return int(text, 8)
        return int(text, 0)

    def as_bool(self) -> bool:
        """Return the value of a ``boolean``."""
        return self.text in _TRUE


@dataclass(frozen=True, slots=True)
class Fault:
    """What is wrong with a text: 1-based line, dotted field (``""`` when unknown), words."""

    line: int
    field: str
    message: str


@dataclass(frozen=True, slots=True)
class Document:
    """One document: its tree, or None when it does not parse, and its faults (then exactly one)."""

    root: YamlNode | None
    faults: tuple[Fault, ...] = ()


def child_path(path: str, key: str) -> str:
    """Return the dotted path of a mapping's entry; a key that holds dots or slashes is put in brackets."""
    if not re.fullmatch(r"[\w-]+", key):
        return f"{path}[{key!r}]"
    return f"{path}.{key}" if path else key


def load(text: str) -> Iterator[Document]:
    """Yield the documents of a text in order; empty ones are left out.

    Documents are cut at lines that begin with ``---``, as kubectl does it, and parsed one by one: a
    document that does not parse leaves the others of its file readable.
    """
    if text.lstrip().startswith("{"):
        text = text.replace(
            "\t", " "
        )  # JSON indented by tabs, which libyaml refuses; a JSON string holds none
    cuts = [0, *(match.start() for match in _SEPARATOR.finditer(text)), len(text)]
    line = 0
    for begin, end in itertools.pairwise(cuts):
        chunk = text[begin:end]
        if not _NO_DOCUMENT.fullmatch(chunk):
            yield from _parse(chunk, line)
        line += chunk.count("\n")


def _parse(chunk: str, offset: int) -> Iterator[Document]:
    composer = _Composer(offset)
    try:
        for event in yaml.parse(chunk, Loader=yaml.CSafeLoader):
            if composer.take(event) and composer.root is not None and composer.root.kind != "null":
                yield Document(composer.root, tuple(composer.faults))
    except _UnreadableError as error:
        yield Document(None, (error.fault,))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = mark.line if mark is not None else 0
        words = f"{error.problem}, {error.context}" if error.context else str(error.problem)
        if "\t" in _indentation(chunk, at):
            words = "a tab indents this line; YAML allows spaces only"
        elif mark is not None and _open_brackets(chunk[: mark.index]) > MAX_DEPTH:
            words = _TOO_DEEP  # libyaml looks ahead of its events, and may find too many before we do
        yield Document(None, (Fault(offset + at + 1, "", f"does not parse as YAML: {words}"),))
    except yaml.reader.ReaderError as error:
        at = chunk.count("\n", 0, error.position)
        yield Document(None, (Fault(offset + at + 1, "", f"does not parse as YAML: {error.reason}"),))


def _indentation(chunk: str, line: int) -> str:
    lines = chunk.split("\n")
    if line >= len(lines):
        return ""
    return lines[line][: len(lines[line]) - len(lines[line].lstrip())]


def _open_brackets(text: str) -> int:
    """Return how many brackets and braces are open at the end of a text; those in strings count as well."""
    return sum(text.count(each) for each in "[{") - sum(text.count(each) for each in "]}")


class _UnreadableError(Exception):
    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


@dataclass(slots=True)
class _Open:
    """A collection that is being read; in a mapping, key is the one that waits for its value."""

    node: YamlNode
    path: str
    key: YamlNode | None = None
    merged: list[YamlNode] = field(default_factory=list)


class _Composer:
    """Builds the tree of one document after the other from parser events."""

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._begin()

    def _begin(self) -> None:
        self.root: YamlNode | None = None
        self.faults: list[Fault] = []
        self._stack: list[_Open] = []
        self._anchors: dict[str, YamlNode] = {}
        self._repeated = 0

    def take(self, event: yaml.Event) -> bool:
        """Take the next event; return True when it ended a document."""
        mark = event.start_mark
        line = (mark.line if mark is not None else 0) + self._offset + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self._begin()
        elif isinstance(event, yaml.ScalarEvent):
            self._place(event, YamlNode(_scalar_kind(event), line, event.value))
            self._grow(1)
        elif isinstance(event, yaml.MappingStartEvent):
            self._open(event, YamlNode("mapping", line))
        elif isinstance(event, yaml.SequenceStartEvent):
            self._open(event, YamlNode("list", line))
        elif isinstance(event, yaml.AliasEvent):
            self._alias(event.anchor, line)
        elif isinstance(event, yaml.CollectionEndEvent):
            self._close()
        return isinstance(event, yaml.DocumentEndEvent)

    def _grow(self, size: int) -> None:
        """Count what has been read in the size of the collection that it is in."""
        if self._stack:
            self._stack[-1].node.size += size

    def _alias(self, anchor: str | None, line: int) -> None:
        node = self._anchors.get(anchor or "")
        if node is None:
            raise _UnreadableError(Fault(line, "", f"*{anchor} refers to no anchor above it"))
        if any(node is level.node for level in self._stack):
            raise _UnreadableError(Fault(line, "", f"*{anchor} refers to a value that contains it"))
        self._repeated += node.size
        if self._repeated > MAX_REPEATED:
            words = f"its aliases stand for more than {MAX_REPEATED} values"
            raise _UnreadableError(Fault(line, "", words))
        self._grow(node.size)
        self._attach(node)

    def _place(self, event: yaml.ScalarEvent | yaml.CollectionStartEvent, node: YamlNode) -> None:
        if event.anchor:
            self._anchors[event.anchor] = node
        self._attach(node)

    def _open(self, event: yaml.CollectionStartEvent, node: YamlNode) -> None:
        if len(self._stack) == MAX_DEPTH:
            raise _UnreadableError(Fault(node.line, "", _TOO_DEEP))
        path = ""
        if self._stack:
            above = self._stack[-1]
            if above.node.kind == "list":
                path = f"{above.path}[{len(above.node.items)}]"
            elif above.key is not None:
                path = child_path(above.path, above.key.text)
        self._place(event, node)
        self._stack.append(_Open(node, path))

    def _attach(self, node: YamlNode) -> None:
        if not self._stack:
            self.root = node
            return
        level = self._stack[-1]
        if level.node.kind == "list":
            level.node.items.append(node)
        elif level.key is None:
            if node.kind in ("mapping", "list"):
                raise _UnreadableError(Fault(node.line, level.path, f"a {node.kind} cannot be a key"))
            level.key = node
        else:
            self._entry(level, level.key, node)
            level.key = None

    def _entry(self, level: _Open, key: YamlNode, node: YamlNode) -> None:
        line, name = key.line, key.text
        if key.kind == "merge":
            level.merged.append(node)
            return
        first = level.node.entries.get(name)
        if first is not None:
            self.faults.append(
                Fault(line, child_path(level.path, name), f"given twice; first in line {first[0]}")
            )
            return
        level.node.entries[name] = (line, node)

    def _close(self) -> None:
        level = self._stack.pop()
        self._grow(level.node.size)
        for merged in level.merged:
            for node in merged.items if merged.kind == "list" else (merged,):
                if node.kind != "mapping":
                    self.faults.append(
                        Fault(node.line, child_path(level.path, "<<"), "only mappings can be merged")
                    )
                for name, entry in node.entries.items():
                    level.node.entries.setdefault(name, entry)


def _scalar_kind(event: yaml.ScalarEvent) -> NodeKind:
    quoted = event.tag is None and not event.implicit[0]  # in quotes, or a block scalar
    if quoted or event.tag == "tag:yaml.org,2002:str":
        return "string"
    text = event.value
    if text in _WORDS:
        return _WORDS[text]
    if _NUMBER.fullmatch(text) and len(text) < MAX_DIGITS:
        return "number"
    return "float" if _FLOAT.fullmatch(text) else "string"
