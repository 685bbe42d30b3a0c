# SPDX-License-Identifier: Apache-2.0
"""Services, endpoints and certificates for tests of :mod:`lb.ingress`."""

from __future__ import annotations

import base64
import functools
import tempfile
from ipaddress import ip_address
from pathlib import Path

from lb.ingress.read import Content, read
from lb.lab.certificates import issue, make_authority
from lb.model import Endpoint, EndpointPort, EndpointSlice, ObjectKey, Protocol, Service, ServicePort

KUBIA = ObjectKey("default", "kubia")


def service(
    name: str = "kubia", *ports: tuple[str, int], clusters: tuple[str, ...] = ("10.66.0.9",)
) -> Service:
    """Return a Service of the namespace default; ports are names and numbers."""
    listed = tuple(ServicePort(port, Protocol.TCP, number, 8080) for port, number in ports or (("", 80),))
    return Service(ObjectKey("default", name), ports=listed, cluster_ips=tuple(map(ip_address, clusters)))


def endpoints(
    *addresses: str, of: str = "kubia", port: str = "", number: int = 8080, ready: bool = True
) -> EndpointSlice:
    """Return a slice of one port; what is not ready is terminating, and still serves."""
    found = tuple(Endpoint(ip_address(each), ready, True, not ready) for each in addresses)
    key = ObjectKey("default", f"{of}-{port}-{'-'.join(addresses)}")
    return EndpointSlice(key, ObjectKey("default", of), (EndpointPort(port, Protocol.TCP, number),), found)


@functools.cache
def pair(name: str) -> tuple[str, str]:
    """Return a certificate and its key."""
    with tempfile.TemporaryDirectory() as folder:
        make_authority(Path(folder))
        certificate, key = issue(Path(folder), name, hosts=(name,))
        return certificate.read_text(), key.read_text()


def encoded(text: str) -> str:
    """Return the base64 form of a text."""
    return base64.b64encode(text.encode()).decode()


def secret(name: str = "tls-secret", host: str = "kubia.example.com") -> str:
    """Return the manifest of a Secret."""
    certificate, key = pair(host)
    return f"""---
apiVersion: v1
kind: Secret
type: kubernetes.io/tls
metadata: {{name: {name}}}
data: {{tls.crt: {encoded(certificate)}, tls.key: {encoded(key)}}}
"""


def ingress(spec: str, name: str = "web", created: str = "") -> str:
    """Return the manifest of an Ingress whose spec is this text, indented by two."""
    stamp = f", creationTimestamp: {created!r}" if created else ""
    head = "---\napiVersion: networking.k8s.io/v1\nkind: Ingress\n"
    return f"{head}metadata: {{name: {name}{stamp}}}\nspec:\n{spec}"


def rule(host: str, *paths: str) -> str:
    """Return a rule as text; a path is ``Prefix /a kubia:80``."""
    lines = [f"  - host: {host!r}\n    http:\n      paths:\n" if host else "  - http:\n      paths:\n"]
    for each in paths:
        kind, path, backend = each.split(" ")
        name, _, port = backend.partition(":")
        which = "number" if port.isdigit() else "name"
        lines.append(f"      - pathType: {kind}\n        path: {path!r}\n")
        lines.append(f"        backend: {{service: {{name: {name}, port: {{{which}: {port}}}}}}}\n")
    return "".join(lines)


def good(*texts: str) -> Content:
    """Return what good manifests hold."""
    content = read("web.yaml", "".join(texts))
    assert not content.errors, content.errors
    return content
