# SPDX-License-Identifier: Apache-2.0
"""What the API server fills in and refuses kind by kind, as far as the lab can notice."""

from __future__ import annotations

import ipaddress
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from tests.kube.rules import Object, StatusError

if TYPE_CHECKING:
    from tests.cluster_double import ClusterDouble

WITH_STATUS = ("Service", "Node", "Pod", "Namespace", "ReplicaSet", "Deployment", "Ingress")
RETURNED = ("Pod", "Service", "ServiceAccount")
"""Kinds whose deletion is answered with the object, others with a Status."""

MADE_BY_UPDATE = ("services", "endpoints")
"""Resources of which a PUT makes an object that is not there."""

WITH_GENERATION = ("Pod", "EndpointSlice", "ReplicaSet", "Deployment", "Ingress")
NODE_PORTS = range(30000, 32768)

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9.:]*[a-z0-9])?")  # names of RBAC's objects may have colons
_Causes = Iterator[tuple[str, str]]


def complete(item: Object, known: Object | None, double: ClusterDouble) -> None:
    """Fill in what a request may leave out.

    Raises
    ------
    StatusError: an address or a port cannot be had.
    """
    spec = item.get("spec")
    if item["kind"] in ("Service", "Ingress"):
        item.setdefault("status", {}).setdefault("loadBalancer", {})
    if item["kind"] == "Service" and spec:
        _complete_service(item, known, double)
    elif item["kind"] == "Pod":
        status = item.setdefault("status", {"phase": "Pending"})
        if (status.get("podIPs") or [{}])[0].get("ip") != status.get("podIP"):
            status["podIPs"] = [{"ip": status["podIP"]}] if status.get("podIP") else []
    elif item["kind"] == "EndpointSlice":
        for endpoint in item.get("endpoints") or ():
            endpoint.setdefault("conditions", {})
        for port in item.get("ports") or ():
            port |= {"name": port.get("name", ""), "protocol": port.get("protocol", "TCP")}
    elif item["kind"] == "Endpoints":
        for port in (port for subset in item.get("subsets") or () for port in subset.get("ports") or ()):
            port.setdefault("protocol", "TCP")
    elif item["kind"] == "Namespace" and not known:
        item["spec"] = {"finalizers": ["kubernetes"]}
        item["status"] = {"phase": "Active"}
    elif item["kind"] in ("ReplicaSet", "Deployment") and spec:
        spec.setdefault("replicas", 1)


def wrong(item: Object, known: Object | None) -> _Causes:
    """Yield the fields that the kind's validation refuses, each with the reason."""
    meta = item["metadata"]
    form = _LABEL if item["kind"] in ("Service", "Namespace") else _SUBDOMAIN
    if not meta["name"]:
        yield "metadata.name", "Required value: name or generateName is required"
    elif not form.fullmatch(meta["name"]):
        yield "metadata.name", f'Invalid value: "{meta["name"]}"'
    owners = meta.get("ownerReferences", ())
    if sum(bool(owner.get("controller")) for owner in owners) > 1:
        yield "metadata.ownerReferences", "Invalid value: Only one reference can have Controller set to true"
    check = _CHECKS.get(item["kind"])
    if check:
        yield from check(item, known)


def _repeated(values: Iterable[Any], field: str) -> _Causes:
    yield from (
        (field, f"Duplicate value: {value!r}") for value, count in Counter(values).items() if count > 1
    )


def _service(item: Object, known: Object | None) -> _Causes:
    spec = item.get("spec") or {}
    ports = spec.get("ports", ())
    if not ports and spec.get("clusterIP") != "None" and spec.get("type") != "ExternalName":
        yield "spec.ports", "Required value"
    if len(ports) > 1 and not all(port.get("name") for port in ports):
        yield "spec.ports[0].name", "Required value"
    yield from _repeated(filter(None, (port.get("name") for port in ports)), "spec.ports[1].name")
    yield from _repeated(((port.get("port"), port.get("protocol")) for port in ports), "spec.ports[1]")
    for i, port in enumerate(ports):
        if not 0 < (port.get("port") or 0) < 65536:
            yield f"spec.ports[{i}].port", "Invalid value: must be between 1 and 65535, inclusive"
        if port.get("protocol") not in ("TCP", "UDP", "SCTP"):
            yield f"spec.ports[{i}].protocol", f'Unsupported value: "{port.get("protocol")}"'
    before = (known or {}).get("spec") or {}
    stays = before.get("clusterIP") and "ExternalName" not in (before["type"], spec.get("type"))
    if stays and spec.get("clusterIP") != before["clusterIP"]:
        yield "spec.clusterIPs[0]", "Invalid value: may not change once set"


def _pod(item: Object, known: Object | None) -> _Causes:
    spec = item.get("spec") or {}
    if not spec.get("containers"):
        yield "spec.containers", "Required value"
    for i, owner in enumerate(item["metadata"].get("ownerReferences", ())):
        yield from (
            (f"metadata.ownerReferences[{i}].{name}", "Required value")
            for name in ("apiVersion", "kind", "name", "uid")
            if not owner.get(name)
        )
    before = (known or {}).get("spec") or {}
    for name in ("nodeName", "hostNetwork", "restartPolicy"):
        if known and before.get(name) != spec.get(name):
            yield "spec", "Forbidden: pod updates may not change fields other than `spec.containers[*].image`"


def _endpoint_slice(item: Object, known: Object | None) -> _Causes:
    families = {"IPv4": 4, "IPv6": 6}
    kind = item.get("addressType", "")
    if kind not in (*families, "FQDN"):
        yield "addressType", f'Unsupported value: "{kind}"'
    elif known and kind != known["addressType"]:
        yield "addressType", "Invalid value: field is immutable"
    for i, endpoint in enumerate(item.get("endpoints") or ()):
        if not endpoint.get("addresses"):
            yield f"endpoints[{i}].addresses", "Required value"
        for address in endpoint.get("addresses") or ():
            if kind in families and ipaddress.ip_address(address).version != families[kind]:
                yield (
                    f"endpoints[{i}].addresses",
                    f'Invalid value: "{address}": no {kind} address',
                )
    yield from _repeated((port.get("name", "") for port in item.get("ports") or ()), "ports[1].name")


def _node(item: Object, known: Object | None) -> _Causes:
    status, spec = item.get("status") or {}, item.get("spec") or {}
    if known:
        addresses = ((each["type"], each["address"]) for each in status.get("addresses", ()))
        yield from _repeated(addresses, "status.addresses[1]")
    networks = spec.get("podCIDRs") or []
    before = (known or {}).get("spec") or {}
    if before.get("podCIDRs") and before["podCIDRs"] != networks:
        yield "spec.podCIDRs", 'Forbidden: node updates may not change podCIDR except from "" to valid'


def _workload(item: Object, known: Object | None) -> _Causes:
    spec = item.get("spec") or {}
    selector = (spec.get("selector") or {}).get("matchLabels") or {}
    labels = ((spec.get("template") or {}).get("metadata") or {}).get("labels") or {}
    if spec.get("template") and not selector.items() <= labels.items():
        yield "spec.template.metadata.labels", "Invalid value: `selector` does not match template `labels`"
    if known and spec.get("selector") != known["spec"].get("selector"):
        yield "spec.selector", "Invalid value: field is immutable"


_CHECKS = {
    "Service": _service,
    "Pod": _pod,
    "EndpointSlice": _endpoint_slice,
    "Node": _node,
    "ReplicaSet": _workload,
    "Deployment": _workload,
}


def _complete_service(item: Object, known: Object | None, double: ClusterDouble) -> None:
    spec, before = item["spec"], (known or {}).get("spec") or {}
    spec.setdefault("type", "ClusterIP")
    spec.setdefault("sessionAffinity", "None")
    for port in spec.get("ports") or ():
        port.setdefault("protocol", "TCP")
        if "port" in port:
            port.setdefault("targetPort", port["port"])
    if spec["type"] == "ExternalName":
        return
    spec.setdefault("internalTrafficPolicy", "Cluster")
    if not spec.get("clusterIP") and before.get("clusterIP"):
        spec |= {name: before[name] for name in ("clusterIP", "clusterIPs", "ipFamilies") if name in before}
    _give_node_ports(item, known, double)
    headless = spec.get("clusterIP") == "None"
    named = [] if headless else spec.get("clusterIPs") or list(filter(None, [spec.get("clusterIP")]))
    asked = spec.get("ipFamilies") or [f"IPv{ipaddress.ip_address(each).version}" for each in named]
    families = list(asked) or [next(iter(double.services))]
    both = headless and not spec.get("selector")
    policy = spec.setdefault("ipFamilyPolicy", "RequireDualStack" if both else "SingleStack")
    if policy == "SingleStack" and len(families) > 1:
        raise _refused(item, "spec.ipFamilyPolicy", "must be RequireDualStack or PreferDualStack")
    if policy == "RequireDualStack" and len(double.services) < 2 and not both:
        raise _refused(item, "spec.ipFamilyPolicy", "this cluster is not configured for dual-stack services")
    if policy != "SingleStack":
        families += [each for each in double.services if each not in families]
    spec["ipFamilies"] = families
    if headless:
        spec["clusterIPs"] = ["None"]
        return
    spec["clusterIPs"] = [
        _cluster_ip(item, family, named[number] if number < len(named) else "", double)
        for number, family in enumerate(families)
    ]
    spec["clusterIP"] = spec["clusterIPs"][0]


def _cluster_ip(item: Object, family: str, named: str, double: ClusterDouble) -> str:
    if family not in double.services:
        raise _refused(item, "spec.ipFamilies", f"{family} is not configured on this cluster")
    network = double.services[family]
    if named and ipaddress.ip_address(named) not in network:
        raise _refused(item, "spec.clusterIPs", f'"{named}": the provided IP ({named}) is not in {network}')
    taken = {
        address
        for each in double.objects["services"].values()
        if each["metadata"]["name"] != item["metadata"]["name"]
        or each["metadata"].get("namespace") != item["metadata"].get("namespace")
        for address in each["spec"].get("clusterIPs", ())
    }
    if named in taken:
        raise _refused(item, "spec.clusterIPs", f'"{named}": provided IP is already allocated')
    return named or next(str(each) for each in network.hosts() if str(each) not in taken)


def _give_node_ports(item: Object, known: Object | None, double: ClusterDouble) -> None:
    """Give ports their node ports; a port that names none keeps the one that it has."""
    spec, before = item["spec"], (known or {}).get("spec") or {}
    wanted = spec["type"] == "NodePort" or (
        spec["type"] == "LoadBalancer" and spec.get("allocateLoadBalancerNodePorts", True)
    )
    if spec["type"] == "LoadBalancer":
        spec.setdefault("allocateLoadBalancerNodePorts", True)
    if spec["type"] in ("NodePort", "LoadBalancer"):
        spec.setdefault("externalTrafficPolicy", "Cluster")
    had = {(port["port"], port["protocol"]): port.get("nodePort") for port in before.get("ports") or ()}
    taken = {
        port.get("nodePort")
        for each in double.objects["services"].values()
        if known is None or each["metadata"]["uid"] != known["metadata"]["uid"]
        for port in each["spec"].get("ports") or ()
    }
    own: set[int] = set()
    for i, port in enumerate(spec.get("ports") or ()):
        asked = port.get("nodePort") or had.get((port.get("port"), port["protocol"]))
        if not wanted:
            if spec["type"] == "ClusterIP":
                port.pop("nodePort", None)
            continue
        if asked and asked not in NODE_PORTS:
            raise _refused(
                item, f"spec.ports[{i}].nodePort", f"{asked}: provided port is not in the valid range"
            )
        if asked and asked in taken:
            raise _refused(item, f"spec.ports[{i}].nodePort", f"{asked}: provided port is already allocated")
        port["nodePort"] = asked or next(each for each in NODE_PORTS if each not in taken | own)
        own.add(port["nodePort"])
    if spec["type"] == "LoadBalancer" and spec.get("externalTrafficPolicy") == "Local":
        asked = spec.get("healthCheckNodePort") or before.get("healthCheckNodePort")
        spec["healthCheckNodePort"] = asked or next(each for each in NODE_PORTS if each not in taken | own)


def _refused(item: Object, field: str, words: str) -> StatusError:
    name = item["metadata"]["name"]
    return StatusError(
        422,
        "Invalid",
        f'{item["kind"]} "{name}" is invalid: {field}: Invalid value: {words}',
        fields=(field,),
    )
