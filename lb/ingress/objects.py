# SPDX-License-Identifier: Apache-2.0
"""Ingress, IngressClass and TLS Secret as this project reads them: immutable, defaults filled in.

Field meanings follow the API reference of Kubernetes, networking.k8s.io/v1.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field

from lb.errors import InputError
from lb.model import NOWHERE, ObjectKey, Origin


class PathType(enum.StrEnum):
    """``pathType`` of a path; what is implementation-specific is taken as a prefix here."""

    EXACT = "Exact"
    PREFIX = "Prefix"
    IMPLEMENTATION_SPECIFIC = "ImplementationSpecific"


@dataclass(frozen=True, slots=True)
class Place:
    """Where something stands in an object: the line of its file (0: none) and the dotted path."""

    line: int
    field: str


_NO_PLACE = Place(0, "")


@dataclass(frozen=True, slots=True)
class Backend:
    """A port of a Service of the Ingress's own namespace, by its number or its name."""

    service: str
    port: int | str
    place: Place = field(default=_NO_PLACE, compare=False)


@dataclass(frozen=True, slots=True)
class Path:
    """One entry of ``spec.rules[].http.paths``; path begins with ``/``."""

    path: str
    type: PathType
    backend: Backend
    place: Place = field(default=_NO_PLACE, compare=False)


@dataclass(frozen=True, slots=True)
class Rule:
    """One entry of ``spec.rules``.

    host is ``kubia.example.com``, ``*.example.com`` (which stands for exactly one label), or ``""`` for
    requests to any host.
    """

    host: str
    paths: tuple[Path, ...]


@dataclass(frozen=True, slots=True)
class Tls:
    """One entry of ``spec.tls``; without hosts the certificate is for whatever no other is for."""

    hosts: tuple[str, ...]
    secret: str
    place: Place = field(default=_NO_PLACE, compare=False)


@dataclass(frozen=True, slots=True)
class Ingress:
    """An Ingress.

    class_name is ``spec.ingressClassName``, or what the annotation said that came before it; ``""`` when
    there is neither. created is ``metadata.creationTimestamp``, ``""`` when unknown.
    """

    key: ObjectKey
    rules: tuple[Rule, ...] = ()
    default: Backend | None = None
    tls: tuple[Tls, ...] = ()
    class_name: str = ""
    created: str = ""
    origin: Origin = field(default=NOWHERE, compare=False)

    def error(self, place: Place, message: str) -> InputError:
        """Return what is wrong at a place of this object."""
        line = place.line or self.origin.line
        return InputError(self.origin.path, line, f"Ingress {self.key}", place.field, message)


@dataclass(frozen=True, slots=True)
class IngressClass:
    """An IngressClass; default says that Ingresses without a class are its own."""

    name: str
    controller: str
    default: bool = False


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a Secret of type kubernetes.io/tls holds: certificates and their key, as PEM text."""

    key: ObjectKey
    pem: str = field(repr=False)
