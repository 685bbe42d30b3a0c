# SPDX-License-Identifier: Apache-2.0
"""What kube-controller-manager would do, for a lab whose API server comes without it: pure.

ReplicaSets and Deployments to pods, Services and pods to EndpointSlices, and their status. The pods of a
Deployment are its own here, without a ReplicaSet in between, and a changed template replaces all at once.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import msgspec

from lb.annotations import WEIGHTS
from lb.errors import InputError
from lb.kube import convert
from lb.lab.api import DEPLOYMENTS, ENDPOINTS, NODES, PODS, REPLICA_SETS, SERVICES, Object, Resource, key_of
from lb.lab.scheduling import Placed
from lb.lab.watch import Cache, Converted
from lb.lab.workloads import Workload, read_workload
from lb.manifests import documents
from lb.manifests.endpoints import endpoint_slices
from lb.manifests.fields import Problems
from lb.manifests.objects import Endpoints
from lb.manifests.slices import SERVICE_LABEL
from lb.manifests.yamldoc import load
from lb.model import DEFAULT_WEIGHT, ZONE_LABEL, Endpoint, EndpointSlice, ObjectKey, Pod, Service

MANAGED_BY = "endpointslice.kubernetes.io/managed-by"
US = "lab.lbctl"
_HEADLESS = "service.kubernetes.io/headless"
_OWNERS = {REPLICA_SETS: ("apps/v1", "ReplicaSet"), DEPLOYMENTS: ("apps/v1", "Deployment")}
_ANY_PORT = range(1, 65536)


def workload_of(item: Object, api_version: str, kind: str) -> Workload:
    """Return what a Pod, ReplicaSet or Deployment of the API asks for.

    Raises InputError: the lab cannot do that; the first reason.
    """
    text = json.dumps({**item, "apiVersion": api_version, "kind": kind})
    [document] = load(text)
    problems = Problems("the API server")
    assert document.root is not None
    workload = read_workload(document.root, problems)
    assert workload is not None
    for error in problems.errors():
        raise replace(error, line=0)
    return workload


@dataclass(frozen=True, slots=True)
class Owner:
    """A ReplicaSet or Deployment, and its workload; None when the lab cannot do what it asks for."""

    resource: Resource
    item: Object
    workload: Workload | None

    @property
    def reference(self) -> Object:
        """The entry in ownerReferences of its pods."""
        api_version, kind = _OWNERS[self.resource]
        meta = self.item["metadata"]
        own = {"apiVersion": api_version, "kind": kind, "name": meta["name"], "uid": meta["uid"]}
        return {**own, "controller": True, "blockOwnerDeletion": True}


def owners(cache: Cache, errors: list[InputError]) -> dict[str, Owner]:
    """Return every ReplicaSet and Deployment by its uid; errors takes what is wrong with some."""
    found = {}
    for resource, (api_version, kind) in _OWNERS.items():
        for item in cache.of(resource).values():
            workload = None
            try:
                workload = workload_of(item, api_version, kind)
            except InputError as error:
                errors.append(error)
            found[str(item["metadata"]["uid"])] = Owner(resource, item, workload)
    return found


def controller_of(pod: Object) -> tuple[str, str]:
    """Return kind and uid of the pod's controller; empty texts when it has none."""
    for reference in pod["metadata"].get("ownerReferences") or ():
        if reference.get("controller"):
            return str(reference["kind"]), str(reference["uid"])
    return "", ""


def terminating(item: Object) -> bool:
    """Tell whether an object is being deleted."""
    return bool(item["metadata"].get("deletionTimestamp"))


def finished(pod: Object) -> bool:
    """Tell whether a pod has ended for good."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def ready(pod: Object) -> bool:
    """Tell whether the pod's status says that it is ready."""
    conditions = (pod.get("status") or {}).get("conditions") or ()
    return any(each["type"] == "Ready" and each["status"] == "True" for each in conditions)


def placed(pods: Iterable[Object], by_uid: Mapping[str, Owner]) -> list[Placed]:
    """Return the pods that a ReplicaSet or Deployment has or had; the owner's key is empty when it is gone.

    Pods whose owner asks for what the lab cannot do are left out, so that they stay as they are.
    """
    result = []
    by_age = sorted(pods, key=lambda each: str(each["metadata"].get("creationTimestamp")))
    for number, pod in enumerate(by_age):
        kind, uid = controller_of(pod)
        if kind not in ("ReplicaSet", "Deployment") or terminating(pod) or finished(pod):
            continue
        owner = by_uid.get(uid)
        key = ObjectKey("", "")
        if owner is not None:
            if owner.workload is None:
                continue
            if owner.resource is REPLICA_SETS or _is_current(pod, owner.workload):
                key = owner.workload.key
        node = pod["spec"].get("nodeName", "")
        result.append(Placed(key_of(pod), key, node, ready(pod), number))
    return result


def _is_current(pod: Object, workload: Workload) -> bool:
    """Tell whether a pod was made from the Deployment's present template."""
    return workload.labels.items() <= (pod["metadata"].get("labels") or {}).items()


def pod_of(owner: Owner, key: ObjectKey, node: str) -> Object:
    """Return the Pod to create for an owner."""
    assert owner.workload is not None
    template = copy.deepcopy(owner.item["spec"]["template"])
    meta = template.get("metadata") or {}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": key.name,
            "namespace": key.namespace,
            "labels": dict(owner.workload.labels),
            **({"annotations": meta["annotations"]} if meta.get("annotations") else {}),
            "ownerReferences": [owner.reference],
        },
        "spec": {**template["spec"], "nodeName": node},
    }


def owner_status(owner: Owner, pods: Iterable[Object]) -> Object:
    """Return the status of a ReplicaSet or Deployment, all pods given."""
    uid = owner.item["metadata"]["uid"]
    mine = [
        pod for pod in pods if controller_of(pod)[1] == uid and not terminating(pod) and not finished(pod)
    ]
    count, able = len(mine), sum(map(ready, mine))
    kind = "updatedReplicas" if owner.resource is DEPLOYMENTS else "fullyLabeledReplicas"
    return {
        "replicas": count,
        kind: count,
        "readyReplicas": able,
        "availableReplicas": able,
        "observedGeneration": owner.item["metadata"].get("generation", 0),
    }


def differs(status: Object, item: Object) -> bool:
    """Tell whether an object's status lacks something of this; the API leaves zeros out."""
    known = item.get("status") or {}
    return any(known.get(name, 0) != value for name, value in status.items())


def satisfied(item: Object) -> bool:
    """Tell whether a ReplicaSet or Deployment has as many ready pods as it wants, by its own status."""
    status = item.get("status") or {}
    wanted = (item.get("spec") or {}).get("replicas", 1)
    seen = status.get("observedGeneration", 0) >= item["metadata"].get("generation", 0)
    return bool(seen) and status.get("replicas", 0) == status.get("readyReplicas", 0) == wanted


class SlicePlanner:
    """Plans EndpointSlices; remembers what objects became, since most stay as they are."""

    def __init__(self) -> None:
        self._converted = Converted(_model)

    def plan(self, cache: Cache, errors: list[InputError]) -> dict[ObjectKey, Object]:
        """Return the slices that there should be; errors takes what is wrong with objects."""
        zones = {
            key.name: str((item["metadata"].get("labels") or {}).get(ZONE_LABEL, ""))
            for key, item in cache.of(NODES).items()
        }
        became = [each for kind in (SERVICES, PODS, ENDPOINTS) for each in self._converted.of(cache, kind)]
        errors += [each for each in became if isinstance(each, InputError)]
        services = [each for each in became if isinstance(each, Service)]
        pods = [each for each in became if isinstance(each, Pod)]
        endpoints = [each for each in became if isinstance(each, Endpoints)]
        families = {
            key: [int(str(name).removeprefix("IPv")) for name in item["spec"].get("ipFamilies") or ()]
            for key, item in cache.of(SERVICES).items()
        }
        return {
            piece.key: slice_object(piece, service, cache.of(SERVICES)[piece.service])
            for piece in endpoint_slices(services, pods, (), endpoints, zones, families=families)
            for service in services
            if service.key == piece.service
        }


def _model(resource: Resource, item: Object) -> Any:
    """Return the model's object, or what is wrong."""
    if resource is SERVICES:
        read = convert.SERVICES.read(msgspec.json.encode(item))
        return read.resource or read.error
    kind = "Pod" if resource is PODS else "Endpoints"
    text = json.dumps({**item, "apiVersion": "v1", "kind": kind})
    content = documents.read(resource.object(key_of(item)), text, _ANY_PORT)
    for error in content.errors:
        return replace(error, line=0)
    [parsed] = content.objects.values()
    return parsed


def slice_object(piece: EndpointSlice, service: Service, item: Object) -> Object:
    """Return the API's EndpointSlice, with the labels of its Service as the controller copies them.

    What the controller of a cluster would not do: the slice says which weights its endpoints' pods have.
    """
    meta = item["metadata"]
    labels = {
        **(meta.get("labels") or {}),
        **({_HEADLESS: ""} if service.headless else {}),
        SERVICE_LABEL: service.key.name,
        MANAGED_BY: US,
    }
    family = piece.endpoints[0].address.version if piece.endpoints else 4
    owner = {"apiVersion": "v1", "kind": "Service", "name": meta["name"], "uid": meta["uid"]}
    weights = [
        f"{each.target.partition('/')[2] or each.address}={each.weight}"
        for each in piece.endpoints
        if each.weight != DEFAULT_WEIGHT
    ]
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": piece.key.name,
            "namespace": piece.key.namespace,
            "labels": labels,
            **({"annotations": {WEIGHTS: ", ".join(weights)}} if weights else {}),
            "ownerReferences": [{**owner, "controller": True, "blockOwnerDeletion": True}],
        },
        "addressType": f"IPv{family}",
        "ports": [
            {"name": port.name, "protocol": port.protocol.name, "port": port.port} for port in piece.ports
        ],
        "endpoints": [
            {**_endpoint(each), **({"hostname": name} if name else {})}
            for each, name in zip(piece.endpoints, piece.host_names(), strict=True)
        ],
    }


def _endpoint(endpoint: Endpoint) -> Object:
    namespace, _, name = endpoint.target.partition("/")
    hints = {
        field: [{"name": each} for each in sorted(names)]
        for field, names in (("forZones", endpoint.hint_zones), ("forNodes", endpoint.hint_nodes))
        if names
    }
    return {
        "addresses": [str(endpoint.address)],
        "conditions": {
            "ready": endpoint.ready,
            "serving": endpoint.serving,
            "terminating": endpoint.terminating,
        },
        **({"nodeName": endpoint.node} if endpoint.node else {}),
        **({"zone": endpoint.zone} if endpoint.zone else {}),
        **({"hints": hints} if hints else {}),
        **({"targetRef": {"kind": "Pod", "namespace": namespace, "name": name}} if name else {}),
    }
