"""The Node and Pod objects that the lab's kubelet writes, as far as Service proxies read them: pure."""

from __future__ import annotations

from typing import Any

import yaml

from lb.lab.addressing import node_address, node_number, pod_cidr
from lb.lab.workloads import Workload
from lb.model import ObjectKey

ZONES = ("zone-a", "zone-b")
"""Nodes are spread over these zones in turn."""

IMAGE = "lab"
"""No image is pulled: every pod runs the lab's own server."""


def node_object(node: str, created: str) -> dict[str, Any]:
    """Return the Node object of a node of the lab; created is an RFC 3339 time."""
    labels = {
        "kubernetes.io/hostname": node,
        "topology.kubernetes.io/zone": ZONES[(node_number(node) - 1) % len(ZONES)],
    }
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node, "labels": labels, "creationTimestamp": created},
        "spec": {"podCIDR": str(pod_cidr(node)), "podCIDRs": [str(pod_cidr(node))]},
        "status": {
            "addresses": [
                {"type": "InternalIP", "address": str(node_address(node))},
                {"type": "Hostname", "address": node},
            ],
            "conditions": [_condition("Ready", True)],
        },
    }


def pod_object(
    key: ObjectKey,
    workload: Workload,
    node: str,
    address: str,
    *,
    phase: str,
    ready: bool,
    restarts: int,
    created: str,
    deleted: str,
) -> dict[str, Any]:
    """Return the Pod object.

    address is ``""`` before the pod has one. phase is ``status.phase``. created is an RFC 3339 time; so is
    deleted, ``""`` while the pod is not terminating.
    """
    metadata: dict[str, Any] = {
        "name": key.name,
        "namespace": key.namespace,
        "labels": dict(workload.labels),
        "creationTimestamp": created,
    }
    if workload.kind == "ReplicaSet":
        owner = {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": workload.key.name, "controller": True}
        metadata["ownerReferences"] = [owner]
    if deleted:
        metadata["deletionTimestamp"] = deleted
    ports = [
        {
            "containerPort": port.port,
            "protocol": port.protocol.name,
            **({"name": port.name} if port.name else {}),
        }
        for port in workload.ports
    ]
    first, *others = workload.containers
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": {
            "nodeName": node,
            "containers": [
                {"name": first, "image": IMAGE, "ports": ports},
                *({"name": name, "image": IMAGE} for name in others),
            ],
        },
        "status": pod_status(workload, node, address, phase=phase, ready=ready, restarts=restarts),
    }


def pod_status(
    workload: Workload, node: str, address: str, *, phase: str, ready: bool, restarts: int
) -> dict[str, Any]:
    """Return the status of a pod, as the kubelet reports it; see :func:`pod_object`."""
    state = {"Pending": "waiting", "Running": "running"}.get(phase, "terminated")
    detail = {"waiting": {"reason": "ContainerCreating"}, "running": {}}
    finished = {"exitCode": 0 if phase == "Succeeded" else 1}
    status: dict[str, Any] = {
        "phase": phase,
        "hostIP": str(node_address(node)),
        "hostIPs": [{"ip": str(node_address(node))}],
        "conditions": [
            _condition("PodScheduled", True),
            _condition("Initialized", True),
            _condition("ContainersReady", ready),
            _condition("Ready", ready),
        ],
        "containerStatuses": [
            {
                "name": name,
                "image": IMAGE,
                "imageID": "",
                "ready": ready,
                "restartCount": restarts,
                "state": {state: detail.get(state, finished)},
            }
            for name in workload.containers
        ],
    }
    if address:
        status |= {"podIP": address, "podIPs": [{"ip": address}]}
    return status


def _condition(kind: str, true: bool) -> dict[str, str]:
    return {"type": kind, "status": "True" if true else "False"}


def to_yaml(manifest: dict[str, Any]) -> str:
    """Return the object as YAML text."""
    text: str = yaml.safe_dump(manifest, sort_keys=False)
    return text
