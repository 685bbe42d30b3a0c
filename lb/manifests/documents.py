# SPDX-License-Identifier: Apache-2.0
"""The text of one file to objects and errors."""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from lb.errors import InputError
from lb.manifests import addresses
from lb.manifests.fields import Field, Fields, Problems
from lb.manifests.objects import Meta, ObjectId, Parsed, origin_of, read_key, read_meta
from lb.manifests.service import read_service
from lb.manifests.slices import read_endpoints, read_slice
from lb.manifests.workloads import read_node, read_pod
from lb.manifests.yamldoc import Document, Fault, YamlNode, load
from lb.model import Namespace, ObjectKey
from lb.words import some

log = logging.getLogger(__name__)

_API_VERSIONS = {
    "Service": "v1",
    "Pod": "v1",
    "Node": "v1",
    "Endpoints": "v1",
    "EndpointSlice": "discovery.k8s.io/v1",
}
KINDS = tuple(_API_VERSIONS)
"""What is read of Kubernetes' kinds; all else is passed over."""
_API_VERSIONS[addresses.KIND] = addresses.API_VERSION
_API_VERSIONS["Namespace"] = "v1"  # for who gives addresses alone
_CLUSTER_WIDE = ("Node", "Namespace")
_TYPE = ("apiVersion", "kind", "metadata")
_TOP = {
    "Service": frozenset((*_TYPE, "spec", "status")),
    "Pod": frozenset((*_TYPE, "spec", "status")),
    "Node": frozenset((*_TYPE, "spec", "status")),
    "Endpoints": frozenset((*_TYPE, "subsets")),
    "EndpointSlice": frozenset((*_TYPE, "addressType", "endpoints", "ports")),
    addresses.KIND: addresses.FIELDS | {*_TYPE},
    "Namespace": frozenset((*_TYPE, "spec", "status")),
}
_LISTS = {"List": "", **{f"{kind}List": kind for kind in _API_VERSIONS}}
_LIST_TOP = frozenset((*_TYPE, "items"))
_IN_ITEM = re.compile(r"items\[(\d+)\]\.")


@dataclass(slots=True)
class Content:
    """What a file holds.

    objects: the good objects.
    broken: objects that are there but wrong.
    unnamed: something is wrong of which not even kind and name can be told.
    errors: everything that is wrong, in the order of the documents.
    passed_over: how many objects there are of each kind that is not read, by ``Deployment (apps/v1)``.
    """

    objects: dict[ObjectId, Parsed] = field(default_factory=dict)
    broken: set[ObjectId] = field(default_factory=set)
    unnamed: bool = False
    errors: list[InputError] = field(default_factory=list)
    passed_over: Counter[str] = field(default_factory=Counter)

    def add(self, more: Content) -> None:
        """Take in what another file holds; of an object that both have, its one counts."""
        self.objects |= more.objects
        self.broken |= more.broken
        self.unnamed |= more.unnamed
        self.errors += more.errors
        self.passed_over += more.passed_over


@dataclass(frozen=True, slots=True)
class _Item:
    """One object's tree and the faults that the YAML reader found in it; kind is given by a typed list."""

    node: YamlNode
    faults: tuple[Fault, ...]
    kind: str = ""


_READERS: Mapping[str, Callable[[Fields, Meta], Parsed]] = {
    "Pod": read_pod,
    "Node": read_node,
    "Namespace": lambda _, meta: Namespace(meta.key.name, meta.labels, meta.origin),
    "EndpointSlice": read_slice,
    "Endpoints": read_endpoints,
    addresses.KIND: addresses.read_addresses,
}


def passed_over_text(passed_over: Mapping[str, int]) -> str:
    """Return in a sentence how many objects of which kinds are not read; ``""`` when there are none."""
    if not passed_over:
        return ""
    words = some(f"{count} {kind}" for kind, count in sorted(passed_over.items()))
    return f"not read: {words}; what is read: {', '.join(KINDS)}"


def read(path: str, text: str, node_ports: range) -> Content:
    """Read all documents of a file.

    path is for origins and errors; node_ports are the numbers that an explicit nodePort may have. Kinds
    that no Service proxy reads are passed over, and counted.
    """
    content = Content()
    for document in load(text):
        for item in _items(path, document, content):
            _read_item(path, item, node_ports, content)
    return content


def _unusable(content: Content, problems: Problems) -> None:
    content.unnamed = True
    content.errors.extend(problems.errors())


def _items(path: str, document: Document, content: Content) -> Iterator[_Item]:
    """Yield a document, or the items of one that is a list."""
    problems = Problems(path)
    if document.root is None:
        for fault in document.faults:
            problems.note(fault.line, fault.field, fault.message)
        _unusable(content, problems)
        return
    if document.root.kind != "mapping":
        problems.note(document.root.line, "", f"must be a Kubernetes object, is a {document.root.kind}")
        _unusable(content, problems)
        return
    top = Field(problems, "", document.root.line, document.root).fields()
    kind = _scalar(top, "kind")
    if kind not in _LISTS:
        yield _Item(document.root, document.faults)
        return
    problems.object = kind
    for fault in document.faults:
        if not fault.field.startswith("items["):
            problems.note(fault.line, fault.field, fault.message)
    if _scalar(top, "apiVersion") not in ("v1", _API_VERSIONS.get(_LISTS[kind], "v1")):
        top["apiVersion"].error(f"must be {_API_VERSIONS.get(_LISTS[kind], 'v1')} for a {kind}")
    faults = _by_item(document.faults)
    for i, place in enumerate(top.place.fields(_LIST_TOP)["items"].items()):
        if place.node is None or place.node.kind != "mapping":
            place.error("must be a Kubernetes object")
            continue
        if _scalar(place.fields(), "kind") in _LISTS:
            place.error("is a list within a list, which is not read")
            continue
        yield _Item(place.node, tuple(faults.get(i, ())), _LISTS[kind])
    if problems.noted:
        _unusable(content, problems)


def _by_item(faults: Iterable[Fault]) -> dict[int, list[Fault]]:
    """Return the faults within a list's items by the item's number, with the field as the item has it."""
    found: dict[int, list[Fault]] = {}
    for fault in faults:
        if inside := _IN_ITEM.match(fault.field):
            own = Fault(fault.line, fault.field[inside.end() :], fault.message)
            found.setdefault(int(inside[1]), []).append(own)
    return found


def _scalar(fields: Fields, name: str) -> str:
    """Return a scalar as it is written, without judging it."""
    node = fields[name].node
    return node.text if node is not None else ""


def _read_item(path: str, item: _Item, node_ports: range, content: Content) -> None:
    problems = Problems(path)
    top = Field(problems, "", item.node.line, item.node).fields()
    kind = _scalar(top, "kind") or item.kind
    version = _scalar(top, "apiVersion") or (_API_VERSIONS[item.kind] if item.kind else "")
    if not _is_ours(top, kind, version):
        log.debug("%s:%d: %s %s is not read", path, item.node.line, version, kind)
        content.passed_over[f"{kind} ({version or 'no apiVersion'})"] += 1
        return
    if problems.noted:
        _unusable(content, problems)
        return
    metadata = top["metadata"].fields()
    key = read_key(metadata, namespaced=kind not in _CLUSTER_WIDE)
    problems.object = f"{kind} {key}" if key.name else kind
    identity = (kind, key)
    _note_lost_indentation(top, _TOP[kind])
    if problems.noted:
        _broken(content, identity, problems)
        return
    for fault in item.faults:
        problems.note(fault.line, fault.field, fault.message)
    if version != _API_VERSIONS[kind]:
        top["apiVersion"].error(f"must be {_API_VERSIONS[kind]} for kind {kind}, is {version or 'missing'}")
    parsed = _convert(kind, key, top.place.fields(_TOP[kind]), node_ports)
    first = content.objects.get(identity)
    if first is not None and not problems.noted:
        problems.note(
            item.node.line, "", f"is already defined in line {origin_of(first).line}; that one is used"
        )
        content.errors.extend(problems.errors())
    elif problems.noted:
        _broken(content, identity, problems)
    else:
        content.objects[identity] = parsed


def _broken(content: Content, identity: ObjectId, problems: Problems) -> None:
    content.errors.extend(problems.errors())
    content.broken.add(identity)
    content.unnamed |= not identity[1].name


def _note_lost_indentation(top: Fields, known: frozenset[str]) -> None:
    """Note as one mistake, not as one for each field, that what belongs below a field stands beside it."""
    strays = [name for name in top.entries if name not in known]
    for name in ("metadata", "spec"):
        if name in known & top.entries.keys() and not top[name].present and strays:
            shown = ", ".join(strays[:3]) + (", …" if strays[3:] else "")
            top[name].error(f"is empty, and {shown} stand beside it; has the text lost its indentation?")
            return


def _is_ours(top: Fields, kind: str, version: str) -> bool:
    """Tell the objects to read from those of other kinds; a missing kind is noted and counts as ours.

    A kind of the same name in another API group (Knative has a Service, too) is another kind. The core
    group has no group name, so a version that is misspelt there is seen, and a retired version of
    EndpointSlice, too.
    """
    if not kind:
        top["kind"].error("is missing; is this a Kubernetes object?")
        return True
    if kind not in _API_VERSIONS:
        return False
    group = version.rpartition("/")[0]
    return group in ("", _API_VERSIONS[kind].rpartition("/")[0])


def _convert(kind: str, key: ObjectKey, top: Fields, node_ports: range) -> Parsed:
    dns_label = kind in ("Service", "Namespace", addresses.KIND)
    meta = read_meta(top["metadata"].fields(), key, top.place.line, dns_label=dns_label)
    if kind == "Service":
        return read_service(top, meta, node_ports)
    return _READERS[kind](top, meta)
