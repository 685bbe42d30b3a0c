# SPDX-License-Identifier: Apache-2.0
"""Pod and Node manifests to model objects.

Only what Service selection reads is looked at: a pod's spec has hundreds of other fields, and they are none
of our business.
"""

from __future__ import annotations

from lb.annotations import WEIGHT, read_weight
from lb.manifests import syntax
from lb.manifests.fields import Field, Fields
from lb.manifests.objects import PORT_MAX, PORT_MIN, Meta, read_annotation
from lb.manifests.service import read_protocol
from lb.model import (
    DEFAULT_WEIGHT,
    DELETION_TAINT,
    UNSCHEDULABLE_TAINT,
    ZONE_LABEL,
    ContainerPort,
    IPAddress,
    Node,
    Pod,
)

_CONDITIONS = ("PodScheduled", "PodReadyToStartContainers", "Initialized", "ContainersReady")


def read_pod(root: Fields, meta: Meta) -> Pod:
    """Read a Pod; one without an address yet has no addresses."""
    spec = root["spec"].fields()
    status = root["status"].fields()
    node = spec["nodeName"].text()
    if node:
        spec["nodeName"].check(syntax.dns_subdomain(node))
    return Pod(
        key=meta.key,
        labels=meta.labels,
        node=node,
        addresses=_pod_addresses(status),
        container_ports=_container_ports(spec),
        ready=_is_ready(status["conditions"]),
        terminating=meta.deleting,
        finished=status["phase"].text() in ("Succeeded", "Failed"),
        hostname=spec["hostname"].text(),
        subdomain=spec["subdomain"].text(),
        weight=read_annotation(root, WEIGHT, read_weight, DEFAULT_WEIGHT),
        trouble=_trouble(status),
        origin=meta.origin,
    )


def _pod_addresses(status: Fields) -> tuple[IPAddress, ...]:
    places = [item.fields()["ip"] for item in status["podIPs"].items()]
    if not places and status["podIP"].text():
        places = [status["podIP"]]
    addresses = (place.address() for place in places)
    return tuple(address for address in addresses if address is not None)


def _container_ports(spec: Fields) -> tuple[ContainerPort, ...]:
    """Return the ports in the order in which a port's name is looked up: the first one counts."""
    return tuple(container_port(port) for container in lasting(spec) for port in container["ports"].items())


def lasting(spec: Fields) -> list[Fields]:
    """Return the containers of a pod, then its sidecars: init containers that are always restarted."""
    first = (place.fields() for place in spec["initContainers"].items())
    sidecars = (each for each in first if each["restartPolicy"].text() == "Always")
    return [*(place.fields() for place in spec["containers"].items()), *sidecars]


def container_port(place: Field) -> ContainerPort:
    """Read a port of a container."""
    entry = place.fields(frozenset(["containerPort", "hostIP", "hostPort", "name", "protocol"]))
    name = entry["name"].text()
    if name:
        entry["name"].check(syntax.port_name(name))
    number = entry["containerPort"]
    if not number.present:
        number.error("is missing")
    return ContainerPort(name, read_protocol(entry["protocol"]), number.number(PORT_MIN, PORT_MAX))


def _is_ready(conditions: Field) -> bool:
    entries = [place.fields() for place in conditions.items()]
    return any(entry["type"].text() == "Ready" and entry["status"].text() == "True" for entry in entries)


def _trouble(status: Fields) -> str:
    """Return why a pod is not ready: its phase, the first conditions that fail, containers that wait.

    A pod goes through its conditions in this order (Kubernetes: "Pod Lifecycle"); what fails later only
    follows from what failed first. Readiness gates come between ContainersReady and Ready, and are named too.
    """
    conditions = {entry["type"].text(): entry for entry in (i.fields() for i in status["conditions"].items())}
    failing = {kind: entry for kind, entry in conditions.items() if entry["status"].text() != "True"}
    if "Ready" in conditions and "Ready" not in failing:
        return ""
    words = []
    phase = status["phase"].text()
    if phase not in ("", "Running"):
        words.append(f"phase {phase}")
    first = next((kind for kind in _CONDITIONS if kind in failing), "Ready")
    gates = [kind for kind in failing if kind not in (*_CONDITIONS, "Ready") and first == "Ready"]
    for kind in gates or [first]:
        entry = failing.get(kind)
        told = [] if entry is None else [entry["reason"].text(), entry["message"].text()]
        reason = ": ".join(filter(None, told))
        state = "is not reported" if entry is None else f"is {entry['status'].text() or 'Unknown'}"
        words.append(f"condition {kind} {state}" + (f" ({reason})" if reason else ""))
    for place in status["containerStatuses"].items():
        container = place.fields()
        waits = container["state"].fields()["waiting"].fields()["reason"].text()
        if waits:
            words.append(f"container {container['name'].text()} waits: {waits}")
    return "; ".join(words)


def read_node(root: Fields, meta: Meta) -> Node:
    """Read a Node; its zone is one of its labels."""
    addresses = []
    for place in root["status"].fields()["addresses"].items():
        entry = place.fields()
        if entry["type"].text() == "InternalIP" and (address := entry["address"].address()) is not None:
            addresses.append(address)
    spec = root["spec"].fields()
    taints = [place.fields()["key"].text() for place in spec["taints"].items()]
    return Node(
        name=meta.key.name,
        addresses=tuple(addresses),
        zone=meta.labels.get(ZONE_LABEL, ""),
        terminating=meta.deleting or DELETION_TAINT in taints,
        cordoned=spec["unschedulable"].flag() or UNSCHEDULABLE_TAINT in taints,
        labels=meta.labels,
        origin=meta.origin,
    )
