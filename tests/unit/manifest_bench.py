# SPDX-License-Identifier: Apache-2.0
"""Manifests as text, read as a file of a folder would be; one right document of each kind that is read."""

from __future__ import annotations

import textwrap

from lb.manifests.documents import Content, read
from lb.manifests.objects import Parsed, ServiceRequest
from lb.model import Service

PATH = "folder/all.yaml"
NODE_PORTS = range(30000, 32768)


def read_text(text: str) -> Content:
    return read(PATH, textwrap.dedent(text).lstrip("\n"), NODE_PORTS)


def objects(text: str) -> list[Parsed]:
    content = read_text(text)
    assert [str(error) for error in content.errors] == []
    return list(content.objects.values())


def one(text: str) -> Parsed:
    (parsed,) = objects(text)
    return parsed


def request(text: str) -> ServiceRequest:
    parsed = one(text)
    assert isinstance(parsed, ServiceRequest)
    return parsed


def service(text: str) -> Service:
    return request(text).service


def with_spec(spec: str, status: str = "") -> str:
    head = "apiVersion: v1\nkind: Service\nmetadata:\n  name: web\n"  # the spec begins in line 6
    body = head + "spec:\n" + textwrap.indent(textwrap.dedent(spec).strip("\n"), "  ") + "\n"
    if status:
        body += "status:\n" + textwrap.indent(textwrap.dedent(status).strip("\n"), "  ") + "\n"
    return body


POD = """
apiVersion: v1
kind: Pod
metadata:
  creationTimestamp: 2021-03-26T03:15:18Z
  generateName: search-
  name: search-4pdsl
  namespace: shop
  labels:
    app: search
    pod-template-hash: 67847b4fb4
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: search, uid: "1"}
spec:
  anything: [goes, {here: 1}]
  nodeName: node-7
  initContainers:
  - name: setup
    ports: [{name: ignored, containerPort: 1}]
  - name: sidecar
    restartPolicy: Always
    ports: [{name: metrics, containerPort: 9090}]
  containers:
  - name: main
    env: [{name: X, value: "1"}]
    ports:
    - {name: http, containerPort: 8080}
    - {name: dns, containerPort: 5353, protocol: UDP, hostPort: 53}
    - containerPort: 7
  - name: second
status:
  phase: Running
  conditions:
  - {type: Initialized, status: "True", lastProbeTime: null}
  - {type: Ready, status: "True"}
  hostIP: 192.0.2.7
  podIP: 10.0.7.1
  podIPs: [{ip: 10.0.7.1}, {ip: "fd00:7::1"}]
"""
SLICE = """
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: web-1
  labels: {kubernetes.io/service-name: web}
addressType: IPv4
ports:
- {name: http, port: 8080}
- {name: dns, port: 53, protocol: UDP, appProtocol: x}
- {name: every}
endpoints:
- addresses: [10.0.1.1, 10.0.1.2]
- addresses: [10.0.2.1]
  conditions: {ready: false, serving: true, terminating: true}
  hostname: a
  nodeName: node2
  zone: z2
  targetRef: {kind: Pod, namespace: default, name: web-2, uid: "5"}
  hints: {forZones: [{name: z1}, {name: z2}], forNodes: [{name: node2}]}
- addresses: [10.0.3.1]
  conditions: {ready: null}
  targetRef: {kind: Other, name: x}
"""
ENDPOINTS = """
apiVersion: v1
kind: Endpoints
metadata:
  name: outside
subsets:
  - addresses:
    - ip: 198.51.100.10
    - ip: 198.51.100.11
      nodeName: node1
      targetRef: {kind: Pod, namespace: default, name: p}
    notReadyAddresses:
    - ip: 198.51.100.12
    ports:
      - port: 80
"""
