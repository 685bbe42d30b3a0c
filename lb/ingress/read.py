# SPDX-License-Identifier: Apache-2.0
"""The text of Ingresses, IngressClasses and Secrets to :mod:`lb.ingress.objects`, and what is wrong with it.

An Ingress of ``extensions/v1beta1`` or ``networking.k8s.io/v1beta1``, which Kubernetes 1.22 removed, is
taken as the v1 object that it would be; a warning names the change.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from lb.errors import InputError
from lb.ingress.key_pair import complaint
from lb.ingress.objects import Backend, Certificate, Ingress, IngressClass, Path, PathType, Place, Rule, Tls
from lb.manifests import syntax
from lb.manifests.fields import Field, Fields, Problems
from lb.manifests.objects import PORT_MAX, PORT_MIN, Meta, read_key, read_meta
from lb.manifests.yamldoc import YamlNode, load
from lb.model import ObjectKey
from lb.words import some

GROUP = "networking.k8s.io/v1"
OLD_GROUPS = ("extensions/v1beta1", "networking.k8s.io/v1beta1")
_VERSIONS = {"Ingress": (GROUP, *OLD_GROUPS), "IngressClass": (GROUP,), "Secret": ("v1",)}
_LISTS = {"List": "", **{f"{kind}List": kind for kind in _VERSIONS}}

CLASS_ANNOTATION = "kubernetes.io/ingress.class"
DEFAULT_ANNOTATION = "ingressclass.kubernetes.io/is-default-class"
TLS_TYPE = "kubernetes.io/tls"
_CERTIFICATE, _KEY = "tls.crt", "tls.key"

CHANGE = (
    "was removed in Kubernetes 1.22 and is read as networking.k8s.io/v1; there a backend is"
    " service.name and service.port.number (or .name) instead of serviceName and servicePort, spec.backend"
    " is spec.defaultBackend, and each path has a pathType"
)

_TYPE = ("apiVersion", "kind", "metadata")
_TOP = frozenset((*_TYPE, "spec", "status"))
_SPEC = frozenset(("defaultBackend", "ingressClassName", "rules", "tls"))
_OLD_SPEC = frozenset(("backend", "ingressClassName", "rules", "tls"))
_RULE = frozenset(("host", "http"))
_PATH = frozenset(("backend", "path", "pathType"))
_BACKEND = frozenset(("resource", "service"))
_OLD_BACKEND = frozenset(("resource", "serviceName", "servicePort"))
_OF_A_CONTROLLER = re.compile(r"([a-z0-9-]+\.)*ingress\.kubernetes\.io/")
_NONE = Backend("", 0)
_PATH_TEXT = re.compile(r"/[A-Za-z0-9\-._~!$&'()*+,;=:@%/]*")  # pchar and "/" of RFC 3986
_BAD_PARTS = re.compile(r"//|/\.{1,2}(/|$)|%2f|%[01][0-9a-f]|%7f", re.IGNORECASE)


@dataclass(slots=True)
class Content:
    """What some text holds: the good objects by key, and what is wrong or will be with others."""

    ingresses: dict[ObjectKey, Ingress] = field(default_factory=dict)
    classes: dict[str, IngressClass] = field(default_factory=dict)
    certificates: dict[ObjectKey, Certificate] = field(default_factory=dict)
    errors: list[InputError] = field(default_factory=list)
    warnings: list[InputError] = field(default_factory=list)

    def add(self, more: Content) -> None:
        """Take in what other text holds; of an object that both have, the one that is there counts."""
        self.ingresses = more.ingresses | self.ingresses
        self.classes = more.classes | self.classes
        self.certificates = more.certificates | self.certificates
        self.errors += more.errors
        self.warnings += more.warnings


def read(path: str, text: str) -> Content:
    """Read all documents of a file; kinds that Ingress does not need are passed over.

    path is for origins and errors. A document that is no YAML is passed over, too: whoever reads the other
    kinds says so.
    """
    content = Content()
    for document in load(text):
        for kind, version, node in _items(document.root):
            if version not in _VERSIONS.get(kind, ()):
                continue
            problems = Problems(path)
            if document.root is node:
                for fault in document.faults:
                    problems.note(fault.line, fault.field, fault.message)
            _read_item(kind, version, Field(problems, "", node.line, node).fields(), content)
            content.errors += problems.errors()
    return content


def _items(root: YamlNode | None, kind: str = "") -> Iterator[tuple[str, str, YamlNode]]:
    """Yield kind, apiVersion and tree of an object, or of the items of one that is a list."""
    if root is None or root.kind != "mapping":
        return
    kind = _scalar(root, "kind") or kind
    if kind not in _LISTS:
        yield kind, _scalar(root, "apiVersion") or next(iter(_VERSIONS.get(kind, ("",)))), root
    elif "items" in root.entries:
        for item in root.entries["items"][1].items:
            yield from _items(item, _LISTS[kind])


def _scalar(node: YamlNode, name: str) -> str:
    return node.entries[name][1].text if name in node.entries else ""


def _read_item(kind: str, version: str, top: Fields, content: Content) -> None:
    problems = top.place.problems
    key = read_key(top["metadata"].fields(), namespaced=kind != "IngressClass")
    problems.object = f"{kind} {key}" if key.name else kind
    meta = read_meta(top["metadata"].fields(), key, top.place.line, dns_label=False)
    if kind == "Ingress":
        if version != GROUP:
            words = f"{version} {CHANGE}"
            warning = InputError(
                problems.path, top["apiVersion"].line, problems.object, "apiVersion", words, used=True
            )
            content.warnings.append(warning)
        content.warnings += _unread_annotations(top)
        ingress = read_ingress(top, meta, old=version != GROUP)
        if not problems.noted:
            content.ingresses.setdefault(key, ingress)
    elif kind == "IngressClass":
        controller = top["spec"].fields()["controller"]
        if not controller.text():
            controller.error("is missing")
        default = _annotation(top, DEFAULT_ANNOTATION).text() == "true"
        if not problems.noted:
            content.classes.setdefault(key.name, IngressClass(key.name, controller.text(), default))
    elif certificate := _read_certificate(top, key):
        content.certificates.setdefault(key, certificate)


def _annotation(top: Fields, name: str) -> Field:
    return top["metadata"].fields()["annotations"].fields()[name]


def _unread_annotations(top: Fields) -> list[InputError]:
    """Return a warning of the annotations by which some controller would do what an Ingress does not say."""
    annotations, problems = top["metadata"].fields()["annotations"], top.place.problems
    names = [name for name, _ in annotations.fields() if _OF_A_CONTROLLER.match(name)]
    if not names:
        return []
    words = f"{some(names)}: not read; they are one controller's own, here nothing but the Ingress counts"
    where = (problems.path, annotations.line, problems.object, "metadata.annotations")
    return [InputError(*where, words, used=True)]


def read_ingress(top: Fields, meta: Meta, *, old: bool) -> Ingress:
    """Read an Ingress; old says that it is of v1beta1. What is wrong is noted."""
    spec = top.place.fields(_TOP)["spec"].fields(_OLD_SPEC if old else _SPEC)
    default = spec["backend" if old else "defaultBackend"]
    rules = tuple(_rule(place.fields(_RULE), old=old) for place in spec["rules"].items())
    backend = _backend(default, old=old) if default.present else None
    if not rules and backend is None and not spec.place.problems.noted:
        spec.place.error("needs rules or a default backend")
    return Ingress(
        key=meta.key,
        rules=rules,
        default=backend,
        tls=tuple(map(_tls, spec["tls"].items())),
        class_name=spec["ingressClassName"].text() or _annotation(top, CLASS_ANNOTATION).text(),
        created=meta.created,
        origin=meta.origin,
    )


def _rule(rule: Fields, *, old: bool) -> Rule:
    places = rule["http"].fields(frozenset(("paths",)))["paths"]
    if rule["http"].present and not places.items():
        places.error("is missing or empty")
    return Rule(_host(rule["host"]), tuple(_path(place, old=old) for place in places.items()))


def _host(place: Field) -> str:
    text = place.text()
    if text:
        if re.fullmatch(r"[\d.]+", text) or ":" in text:
            place.error(f"must be a name, is {text!r}: an address or a port cannot be chosen by")
        else:
            place.check(syntax.dns_subdomain(text.removeprefix("*.")))
    return text


def _path(place: Field, *, old: bool) -> Path:
    fields = place.fields(_PATH)
    kind = fields["pathType"].choice(PathType, PathType.IMPLEMENTATION_SPECIFIC)
    if not old and not fields["pathType"].present:
        fields["pathType"].error(f"is missing; it must be one of {', '.join(PathType)}")
    text = fields["path"].text("/")
    if not _PATH_TEXT.fullmatch(text):
        fields["path"].error(f"must be an absolute path as URLs have it, is {text!r}")
    elif bad := _BAD_PARTS.search(text):
        fields["path"].error(f"may not have {bad[0]!r}: nginx would never see such a path")
    return Path(text, kind, _backend(fields["backend"], old=old), Place(fields["path"].line, place.path))


def _backend(place: Field, *, old: bool) -> Backend:
    if not old and place.fields()["serviceName"].present:
        place.error("is written as in v1beta1; write service.name and service.port.number (or .name)")
        return _NONE
    fields = place.fields(_OLD_BACKEND if old else _BACKEND)
    if fields["resource"].present:
        fields["resource"].error("cannot be served: only Services have endpoints to send requests to")
        return _NONE
    if old:
        name, port = fields["serviceName"], fields["servicePort"]
        number = port if port.node is not None and port.node.kind == "number" else None
        by_name = port if number is None else None
    else:
        service = fields["service"].fields(frozenset(("name", "port")))
        name, port = service["name"], service["port"]
        chosen = port.fields(frozenset(("name", "number")))
        number = chosen["number"] if chosen["number"].present else None
        by_name = chosen["name"] if chosen["name"].present else None
        if number is not None and by_name is not None:
            port.error("has both a name and a number; give one of them")
    if not name.text():
        name.error("is missing")
    else:
        name.check(syntax.dns_label(name.text()))
    where = Place(name.line, name.path)
    if number is not None:
        return Backend(name.text(), number.number(PORT_MIN, PORT_MAX), where)
    text = by_name.text() if by_name is not None else ""
    if not text:
        port.error("is missing")
    return Backend(name.text(), text, where)


def _tls(place: Field) -> Tls:
    fields = place.fields(frozenset(("hosts", "secretName")))
    secret = fields["secretName"]
    if not secret.text():
        secret.error("is missing: there is no other certificate to serve with")
    return Tls(tuple(map(_host, fields["hosts"].items())), secret.text(), Place(secret.line, secret.path))


def _read_certificate(top: Fields, key: ObjectKey) -> Certificate | None:
    """Return a Secret's certificate, None when it is for something else or wrong, which is noted."""
    texts = {name: _decoded(top["data"].fields()[name]) for name in (_CERTIFICATE, _KEY)}
    plain = top["stringData"].fields()
    texts |= {name: plain[name].text() for name in texts if plain[name].present}
    kind = top["type"].text()
    if kind != TLS_TYPE and not all(texts.values()):
        top.place.problems.noted.clear()  # some other Secret: its contents are none of our business
        return None
    for name, text in texts.items():
        if not text and not top.place.problems.noted:
            top["data"].error(f"lacks {name}, which type {TLS_TYPE} has to have")
    if top.place.problems.noted:
        return None
    wrong = complaint(texts[_CERTIFICATE], texts[_KEY])
    if not top["data"].check(wrong):
        return None
    return Certificate(key, texts[_CERTIFICATE].rstrip("\n") + "\n" + texts[_KEY].rstrip("\n") + "\n")


def _decoded(place: Field) -> str:
    try:
        return base64.b64decode("".join(place.text().split()), validate=True).decode("ascii")
    except (binascii.Error, UnicodeDecodeError):
        place.error("must be the base64 form of PEM text")
        return ""


def upgraded(item: dict[str, Any]) -> dict[str, Any]:
    """Return an Ingress of v1beta1, as decoded YAML, as the v1 object that the API server takes."""
    spec = dict(item.get("spec") or {})
    if "backend" in spec:
        spec["defaultBackend"] = _upgraded_backend(spec.pop("backend"))
    rules = []
    for rule in spec.get("rules") or ():
        http = rule.get("http") or {}
        paths = [
            {"pathType": str(PathType.IMPLEMENTATION_SPECIFIC), **path,
             "backend": _upgraded_backend(path.get("backend") or {})}
            for path in http.get("paths") or ()
        ]  # fmt: skip
        rules.append({**rule, **({"http": {**http, "paths": paths}} if http else {})})
    if rules:
        spec["rules"] = rules
    return {**item, "apiVersion": GROUP, "spec": spec}


def _upgraded_backend(old: dict[str, Any]) -> dict[str, Any]:
    if "serviceName" not in old:
        return old
    port = old.get("servicePort")
    return {"service": {"name": old["serviceName"],
                        "port": {"number" if isinstance(port, int) else "name": port}}}  # fmt: skip
