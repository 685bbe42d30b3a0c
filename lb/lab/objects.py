# SPDX-License-Identifier: Apache-2.0
"""The Node and Pod objects that the lab's kubelet writes, as far as Service proxies read them: pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml

from lb.lab.addressing import LabSpec
from lb.lab.workloads import Workload
from lb.model import ObjectKey

IMAGE = "lab"
"""No image is pulled: every pod runs the lab's own server."""


def node_object(spec: LabSpec, node: str, created: str) -> dict[str, Any]:
    """Return the Node object of a node of the lab; created is an RFC 3339 time."""
    labels = {
        "kubernetes.io/hostname": node,
        "topology.kubernetes.io/zone": spec.zone(node),
    }
    networks = [str(network) for network in spec.pod_cidrs(node)]
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": node, "labels": labels, "creationTimestamp": created},
        "spec": {"podCIDR": networks[0], "podCIDRs": networks},
        "status": {
            "addresses": [
                *({"type": "InternalIP", "address": str(address)} for address in spec.node_addresses(node)),
                {"type": "Hostname", "address": node},
            ],
            "conditions": [_condition("Ready", True)],
        },
    }


def pod_object(
    key: ObjectKey,
    workload: Workload,
    node: str,
    status: dict[str, Any],
    *,
    created: str,
    deleted: str,
) -> dict[str, Any]:
    """Return the Pod object; status is that of :func:`pod_status`.

    created is an RFC 3339 time; so is deleted, ``""`` while the pod is not terminating.
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
            **({"hostNetwork": True} if workload.host_network else {}),
            **({"hostname": workload.dns.hostname} if workload.dns.hostname else {}),
            **({"subdomain": workload.dns.subdomain} if workload.dns.subdomain else {}),
            "containers": [
                {"name": first, "image": IMAGE, "ports": ports},
                *({"name": name, "image": IMAGE} for name in others),
            ],
        },
        "status": status,
    }


def pod_status(
    workload: Workload,
    host_ips: Sequence[str],
    addresses: Sequence[str],
    *,
    phase: str,
    ready: bool,
    restarts: int,
) -> dict[str, Any]:
    """Return the status of a pod, as the kubelet reports it.

    host_ips are the node's addresses, addresses the pod's, none before it has any; the primary ones first.
    phase is ``status.phase``.
    """
    state = {"Pending": "waiting", "Running": "running"}.get(phase, "terminated")
    detail = {"waiting": {"reason": "ContainerCreating"}, "running": {}}
    finished = {"exitCode": 0 if phase == "Succeeded" else 1}
    status: dict[str, Any] = {
        "phase": phase,
        "hostIP": host_ips[0],
        "hostIPs": [{"ip": address} for address in host_ips],
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
    if addresses:
        status |= {"podIP": addresses[0], "podIPs": [{"ip": address} for address in addresses]}
    return status


def _condition(kind: str, true: bool) -> dict[str, str]:
    return {"type": kind, "status": "True" if true else "False"}


def to_yaml(manifest: dict[str, Any]) -> str:
    """Return the object as YAML text."""
    text: str = yaml.safe_dump(manifest, sort_keys=False)
    return text
