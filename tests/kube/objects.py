# SPDX-License-Identifier: Apache-2.0
"""API objects as the API server would return them, by role."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]

NAMESPACE = "shop"
NODE = "node1"
OTHER_NODE = "node2"
VIP = "10.96.0.10"
BACKEND_A, BACKEND_B, BACKEND_C = "10.244.1.2", "10.244.2.3", "10.244.2.4"
SKIP_LABEL = "service.kubernetes.io/service-proxy-name"


def service(name: str = "web", ip: str = VIP, labels: dict[str, str] | None = None, **spec: Any) -> Object:
    """Return a Service of type ClusterIP with one port; spec adds or replaces fields."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": labels or {}},
        "spec": {
            "type": "ClusterIP",
            "clusterIP": ip,
            "clusterIPs": [ip],
            "ports": [{"name": "http", "protocol": "TCP", "port": 80, "targetPort": 8080}],
            **spec,
        },
    }


def endpoint(address: str, node: str = NODE, **more: Any) -> Object:
    """Return a ready endpoint; more adds or replaces fields."""
    conditions = {"ready": True, "serving": True, "terminating": False}
    return {"addresses": [address], "conditions": conditions, "nodeName": node, **more}


def endpoint_slice(
    name: str, *endpoints: Object, of: str = "web", labels: dict[str, str] | None = None, port: int = 8080
) -> Object:
    """Return a Service's EndpointSlice with one port."""
    return {
        "apiVersion": "discovery.k8s.io/v1",
        "kind": "EndpointSlice",
        "metadata": {
            "name": name,
            "namespace": NAMESPACE,
            "labels": {"kubernetes.io/service-name": of, **(labels or {})},
        },
        "addressType": "IPv4",
        "endpoints": list(endpoints),
        "ports": [{"name": "http", "protocol": "TCP", "port": port}],
    }


def node(name: str = NODE, address: str = "192.0.2.11", zone: str = "zone-a") -> Object:
    """Return a Node."""
    return {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": {"topology.kubernetes.io/zone": zone}},
        "status": {
            "addresses": [{"type": "Hostname", "address": name}, {"type": "InternalIP", "address": address}]
        },
    }
