# SPDX-License-Identifier: Apache-2.0
"""The environment variables of a pod, as the kubelet sets them: pure.

Services come in as variables of their own names (Kubernetes documentation, "Service", Discovering services,
Environment variables): those of the pod's namespace that have a cluster IP when its process starts, and
``kubernetes`` of the namespace default. Order counts for nothing but references among a container's own.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from lb.model import ObjectKey, Service

KUBERNETES = ObjectKey("default", "kubernetes")
"""The Service that every pod is told of, wherever it is and whether it wants links or not."""

_REFERENCE = re.compile(r"\$(?:\$|\(([^)]*)\))")


@dataclass(frozen=True, slots=True)
class EnvVar:
    """One entry of a container's ``env``.

    value may refer to others as ``$(NAME)``. field is the path of ``valueFrom.fieldRef``, ``""`` when there
    is none. unplayed names a source that the lab cannot read, such as ``configMapKeyRef``.
    """

    name: str
    value: str = ""
    field: str = ""
    unplayed: str = ""


def pod_environment(
    own: Iterable[EnvVar],
    services: Iterable[Service],
    namespace: str,
    fields: Mapping[str, str],
    *,
    links: bool,
) -> dict[str, str]:
    """Return all variables of a container: its own, which win, and those of Services.

    fields gives what ``fieldRef`` can name by its path. links is ``enableServiceLinks``. A variable whose
    source the lab cannot read is left out.
    """
    served = service_variables(services, namespace, links=links)
    result: dict[str, str] = {}
    for entry in own:
        if entry.unplayed or (entry.field and entry.field not in fields):
            continue
        known = {**served, **result}  # what comes later in the list is not known yet
        result[entry.name] = fields[entry.field] if entry.field else expand(entry.value, known)
    return {**served, **result}


def expand(text: str, known: Mapping[str, str]) -> str:
    """Replace ``$(NAME)`` by the variable's value; an unknown one stays, and ``$$`` stands for ``$``."""

    def one(found: re.Match[str]) -> str:
        return "$" if found[1] is None else known.get(found[1], found[0])

    return _REFERENCE.sub(one, text)


def service_variables(services: Iterable[Service], namespace: str, *, links: bool) -> dict[str, str]:
    """Return the variables of the Services that a pod of the namespace is told of.

    Without links that is :data:`KUBERNETES` alone; one of its name in the pod's own namespace goes before.
    """
    told: dict[str, Service] = {}
    for service in services:
        if not service.cluster_ips:
            continue
        here = links and service.key.namespace == namespace
        if here or (service.key == KUBERNETES and KUBERNETES.name not in told):
            told[service.key.name] = service
    return {name: value for service in told.values() for name, value in _variables(service).items()}


def _variables(service: Service) -> dict[str, str]:
    """Return the variables of one Service: Kubernetes' own, then those of Docker's links."""
    name, host = _upper(service.key.name), service.cluster_ips[0]
    first = service.ports[0]
    result = {f"{name}_SERVICE_HOST": str(host), f"{name}_SERVICE_PORT": str(first.port)}
    for port in service.ports:
        if port.name:
            result[f"{name}_SERVICE_PORT_{_upper(port.name)}"] = str(port.port)
    bare = f"[{host}]" if host.version == 6 else str(host)
    for port in service.ports:
        protocol = port.protocol.name
        url = f"{protocol.lower()}://{bare}:{port.port}"
        if port is first:
            result[f"{name}_PORT"] = url
        prefix = f"{name}_PORT_{port.port}_{protocol}"
        result |= {
            prefix: url,
            f"{prefix}_PROTO": protocol.lower(),
            f"{prefix}_PORT": str(port.port),
            f"{prefix}_ADDR": str(host),
        }
    return result


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")
