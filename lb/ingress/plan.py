# SPDX-License-Identifier: Apache-2.0
"""Ingresses, Services and endpoints to what an HTTP proxy has to do: pure.

Where Kubernetes leaves a choice to the controller, it is this one:

- A request's host is matched first, the paths of that host after it: a name before ``*.`` before rules
  without host. Within a host the longest path wins, and Exact before Prefix.
- What no path matches goes to the default backend of an Ingress that has a rule for the host, else to that
  of any Ingress, else it is answered by 404.
- Several Ingresses may share a host. What two of them claim (a path of a host, the certificate of a host,
  the default for everything) the older one has, as with Services.
- A backend that cannot be served (its Service or port is missing) is answered by 503, and so is one without
  ready endpoints; nothing falls through to a backend that nobody named.
- A host with a certificate is served over plain HTTP as well: an Ingress has no field that asks for a
  redirection, and annotations, which are one controller's own, are not read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from lb.errors import InputError
from lb.ingress.objects import Backend, Certificate, Ingress, IngressClass, Path, PathType, Place
from lb.model import EndpointSlice, ObjectKey, Protocol, Service, ServicePort, ServiceType, socket_text

CONTROLLER = "k8s.io/ingress-nginx"
"""``spec.controller`` of the IngressClasses whose Ingresses are taken: manifests made for nginx work."""

OWN_CLASS = IngressClass("nginx", CONTROLLER, default=True)
"""The class that there is without an object, as where such a controller is installed."""

NOT_FOUND, UNAVAILABLE = 404, 503


@dataclass(frozen=True, slots=True)
class Upstream:
    """The endpoints of a Service port; sockets are addresses with ports, none while none is ready."""

    name: str
    sockets: tuple[str, ...]


Target = Upstream | int
"""Where a request goes; a number is the HTTP status that answers it."""


@dataclass(frozen=True, slots=True)
class Location:
    """A path and its target; exact: only this path, else also what begins with it (it ends in ``/``)."""

    path: str
    exact: bool
    target: Target


@dataclass(frozen=True, slots=True)
class Server:
    """A host (``""``: all others); certificate is PEM text, ``""`` when HTTPS is not for it."""

    host: str
    locations: tuple[Location, ...]
    certificate: str = field(default="", repr=False)


@dataclass(frozen=True, slots=True)
class Site:
    """All hosts in the order of their names; there is always one for all others."""

    servers: tuple[Server, ...] = (Server("", (Location("/", False, NOT_FOUND),)),)

    def upstreams(self) -> list[Upstream]:
        """Return each upstream with endpoints once, by name."""
        found = {
            target.name: target
            for server in self.servers
            for location in server.locations
            if isinstance(target := location.target, Upstream) and target.sockets
        }
        return [found[name] for name in sorted(found)]


@dataclass(slots=True)
class _Host:
    paths: dict[tuple[str, bool], tuple[Target, Ingress]] = field(default_factory=dict)
    default: Target | None = None
    certificate: tuple[str, Ingress] | None = None


def ours(
    ingresses: Iterable[Ingress], classes: Mapping[str, IngressClass]
) -> tuple[list[Ingress], list[InputError]]:
    """Return the Ingresses that are to be served, the oldest first, and those whose class does not exist.

    One without class belongs to the default class, and to us when there is no such.
    """
    known = {OWN_CLASS.name: OWN_CLASS, **classes}
    defaults = [each for each in classes.values() if each.default] or [OWN_CLASS]
    taken, errors = [], []
    for each in sorted(ingresses, key=lambda each: (each.created, each.key)):
        chosen = known.get(each.class_name) if each.class_name else defaults[0]
        if chosen is None:
            words = f"{each.class_name!r} is no IngressClass: nobody serves this Ingress"
            errors.append(each.error(Place(0, "spec.ingressClassName"), words))
        elif chosen.controller == CONTROLLER:
            taken.append(each)
    return taken, errors


def plan(
    ingresses: Sequence[Ingress],
    services: Iterable[Service],
    slices: Iterable[EndpointSlice],
    certificates: Mapping[ObjectKey, Certificate],
) -> tuple[Site, list[InputError]]:
    """Return what to serve for Ingresses, the oldest first, and an error for each part that cannot be.

    The result depends on nothing but the arguments; the order of Services and slices does not count.
    """
    planner = _Planner(services, slices, certificates)
    for ingress in ingresses:
        planner.add(ingress)
    return planner.site(), planner.errors


class _Planner:
    def __init__(
        self,
        services: Iterable[Service],
        slices: Iterable[EndpointSlice],
        certificates: Mapping[ObjectKey, Certificate],
    ) -> None:
        self.errors: list[InputError] = []
        self._services = {service.key: service for service in services}
        self._slices: dict[ObjectKey, list[EndpointSlice]] = {}
        for each in slices:
            self._slices.setdefault(each.service, []).append(each)
        self._certificates = certificates
        self._hosts: dict[str, _Host] = {}
        self._default: tuple[Target, Ingress] | None = None

    def _host(self, name: str) -> _Host:
        return self._hosts.setdefault(name, _Host())

    def add(self, ingress: Ingress) -> None:
        """Take in an Ingress that is younger than those before."""
        for rule in ingress.rules:
            for path in rule.paths:
                self._claim(self._host(rule.host), rule.host, path, ingress)
        if ingress.default is not None:
            self._claim_rest(ingress.default, ingress)
        for entry in ingress.tls:
            certificate = self._certificates.get(ObjectKey(ingress.key.namespace, entry.secret))
            if certificate is None:
                words = f"Secret {ingress.key.namespace}/{entry.secret} does not exist, or is not usable"
                self.errors.append(ingress.error(entry.place, words))
                continue
            for name in entry.hosts or ("",):
                self._certify(name, certificate.pem, ingress, entry.place)

    def _claim(self, host: _Host, name: str, path: Path, ingress: Ingress) -> None:
        exact = path.type is PathType.EXACT
        text = path.path if exact else path.path.rstrip("/") + "/"
        _, owner = host.paths.get((text, exact), (0, None))
        if owner is not None:
            shown = f"{path.path} of {name or 'all hosts'}"
            other = "this Ingress itself" if owner is ingress else f"Ingress {owner.key}, which is older"
            words = f"{shown} is already that of {other}; that one is used"
            if owner is not ingress and owner.created == ingress.created:
                words = words.replace(", which is older", "")
            self.errors.append(ingress.error(path.place, words))
        else:
            host.paths[text, exact] = self._target(path.backend, ingress), ingress

    def _claim_rest(self, backend: Backend, ingress: Ingress) -> None:
        """Give what no path matches to the Ingress's default: of its own hosts, and of all others."""
        target = self._target(backend, ingress)
        for rule in ingress.rules:
            host = self._host(rule.host)
            host.default = target if host.default is None else host.default
        if self._default is None:
            self._default = target, ingress
        elif not ingress.rules:
            words = f"is of no use: Ingress {self._default[1].key} is the default already"
            self.errors.append(ingress.error(backend.place, words))

    def _certify(self, name: str, pem: str, ingress: Ingress, place: Place) -> None:
        host = self._host(name)
        if host.certificate is None:
            host.certificate = pem, ingress
        elif host.certificate[0] != pem:
            shown = name or "all other hosts"
            words = f"{shown} has the certificate of Ingress {host.certificate[1].key} already"
            self.errors.append(ingress.error(place, words))

    def _target(self, backend: Backend, ingress: Ingress) -> Target:
        """Return the endpoints of a backend; what stands in the way is an error."""
        key = ObjectKey(ingress.key.namespace, backend.service)
        service = self._services.get(key)
        wrong = f"Service {key} does not exist"
        if service is not None:
            port = _port(service, backend.port)
            if service.type is ServiceType.EXTERNAL_NAME:
                wrong = f"Service {key} is an ExternalName, which has no endpoints to send requests to"
            elif port is not None:
                sockets = endpoint_sockets(service, port, self._slices.get(key, ()))
                return Upstream(f"{key.namespace}.{key.name}.{port.port}", sockets)
            else:
                has = ", ".join(_port_text(each) for each in service.ports) or "none"
                wrong = f"Service {key} has no TCP port {backend.port}; its ports: {has}"
        self.errors.append(ingress.error(backend.place, f"{wrong}; requests are answered by 503"))
        return UNAVAILABLE

    def site(self) -> Site:
        """Return what all Ingresses come to."""
        self._host("")
        rest = self._default[0] if self._default else NOT_FOUND
        return Site(
            tuple(
                Server(name, _locations(host, rest), self._certificate(name))
                for name, host in sorted(self._hosts.items())
            )
        )

    def _certificate(self, name: str) -> str:
        """Return the certificate of a host: its own, that of its wildcard, or that of all."""
        wildcard = "*." + name.partition(".")[2]
        for each in (name, wildcard, ""):
            host = self._hosts.get(each)
            if host is not None and host.certificate is not None:
                return host.certificate[0]
        return ""


def _locations(host: _Host, rest: Target) -> tuple[Location, ...]:
    """Return the locations of a host, one of which is ``/``.

    A prefix is also the path without its last slash, unless that has a target of its own.
    """
    paths = {place: target for place, (target, _) in host.paths.items()}
    paths.setdefault(("/", False), rest if host.default is None else host.default)
    for text, exact in list(paths):
        if text != "/" and text.endswith("/"):
            bare = text.removesuffix("/")
            paths.setdefault((bare, True), _match(paths, bare) if exact else paths[text, False])
    return tuple(Location(text, exact, target) for (text, exact), target in sorted(paths.items(), key=_first))


def _match(paths: Mapping[tuple[str, bool], Target], path: str) -> Target:
    """Return the target of a path that no Exact one names."""
    prefixes = [text for text, exact in paths if not exact and f"{path}/".startswith(text)]
    return paths[max(prefixes, key=len), False]


def _first(item: tuple[tuple[str, bool], Target]) -> tuple[str, bool]:
    (text, exact), _ = item
    return text, not exact


def _port(service: Service, wanted: int | str) -> ServicePort | None:
    for port in service.ports:
        if port.protocol is Protocol.TCP and wanted in (port.port, port.name):
            return port
    return None


def _port_text(port: ServicePort) -> str:
    return f"{port.port}/{port.protocol.name}" + (f" ({port.name})" if port.name else "")


def endpoint_sockets(service: Service, port: ServicePort, slices: Iterable[EndpointSlice]) -> tuple[str, ...]:
    """Return where the ready endpoints of a Service port are; the terminating ones where none is ready.

    An endpoint of two families counts once, with that of the Service's first cluster IP.
    """
    ready: dict[int, set[str]] = {}
    ending: dict[int, set[str]] = {}
    for each in slices:
        numbers = [
            found.port for found in each.ports if found.protocol is port.protocol and found.name == port.name
        ]
        for endpoint in each.endpoints if numbers else ():
            if endpoint.ready or (endpoint.serving and endpoint.terminating):
                chosen = ready if endpoint.ready else ending
                socket = socket_text(endpoint.address, numbers[0])
                chosen.setdefault(endpoint.address.version, set()).add(socket)
    first = service.cluster_ips[0].version if service.cluster_ips else 4
    for chosen in (ready, ending):
        for version in (first, 10 - first):
            if chosen.get(version):
                return tuple(sorted(chosen[version]))
    return ()
