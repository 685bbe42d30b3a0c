# SPDX-License-Identifier: Apache-2.0
"""Ingress, IngressClass and Secret manifests, good and bad."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from lb.ingress.objects import Backend, IngressClass, Path, PathType, Rule, Tls
from lb.ingress.read import read, upgraded
from lb.model import ObjectKey
from tests.unit.ingress_objects import encoded, good, ingress, pair, rule, secret

HOST = "kubia.example.com"
WEB = ObjectKey("default", "web")
NOTES = """\
apiVersion: extensions/v1beta1
kind: Ingress
metadata: {name: web}
spec:
  tls:
  - hosts: [kubia.example.com]
    secretName: tls-secret
  backend: {serviceName: rest, servicePort: 8080}
  rules:
  - host: kubia.example.com
    http:
      paths:
      - path: /
        backend: {serviceName: kubia, servicePort: 80}
      - backend: {serviceName: kubia, servicePort: http}
"""


def test_an_ingress_of_v1() -> None:
    text = ingress(
        "  ingressClassName: nginx\n"
        "  defaultBackend: {service: {name: rest, port: {name: http}}}\n"
        "  tls: [{hosts: ['*.example.com'], secretName: stars}, {secretName: all}]\n"
        "  rules:\n" + rule("*.example.com", "Exact /a kubia:80", "ImplementationSpecific /b kubia:http")
    )
    found = good(text).ingresses[WEB]
    assert found.class_name == "nginx"
    assert found.default == Backend("rest", "http")
    assert found.tls == (Tls(("*.example.com",), "stars"), Tls((), "all"))
    paths = (
        Path("/a", PathType.EXACT, Backend("kubia", 80)),
        Path("/b", PathType.IMPLEMENTATION_SPECIFIC, Backend("kubia", "http")),
    )
    assert found.rules == (Rule("*.example.com", paths),)


def test_v1beta1_is_taken_with_a_warning_that_names_the_change() -> None:
    content = read("notes.yaml", NOTES)
    assert not content.errors
    found = content.ingresses[WEB]
    assert found.default == Backend("rest", 8080)
    kind = PathType.IMPLEMENTATION_SPECIFIC
    assert found.rules[0].paths == (
        Path("/", kind, Backend("kubia", 80)),
        Path("/", kind, Backend("kubia", "http")),
    )
    [warning] = content.warnings
    assert str(warning).startswith(
        "warning: notes.yaml:1: Ingress default/web: apiVersion: extensions/v1beta1 was removed"
    )
    for new in ("networking.k8s.io/v1", "service.port.number", "defaultBackend", "pathType"):
        assert new in str(warning)


def test_v1beta1_becomes_what_the_api_server_takes() -> None:
    item: dict[str, Any] = upgraded(yaml.safe_load(NOTES))
    again = read("notes.yaml", yaml.safe_dump(item))
    assert not again.errors
    assert not again.warnings
    assert again.ingresses[WEB] == read("notes.yaml", NOTES).ingresses[WEB]


def one(path: str, host: str = "a.org") -> str:
    """Return a spec of one path; the text is in the place of the fields before its backend."""
    backend = "backend: {service: {name: kubia, port: {number: 80}}}"
    return f"{{rules: [{{host: {host!r}, http: {{paths: [{{{path}{backend}}}]}}}}]}}"


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ("{}", "web.yaml:5: Ingress default/web: spec: needs rules or a default backend"),
        (one("pathType: Prefix, ", "10.0.0.1"), "spec.rules[0].host: must be a name"),
        (one("pathType: Prefix, ", "a.*.b"), "spec.rules[0].host: 'a.*.b' is no DNS name"),
        (one(""), "paths[0].pathType: is missing"),
        (one("pathType: Regex, "), "pathType: must be one of Exact"),
        (one("pathType: Prefix, path: a, "), "path: must be an absolute path"),
        (one("pathType: Prefix, path: '/a;}', "), "path: must be an absolute path"),
        (one("pathType: Prefix, path: /a/../b, "), "may not have '/../'"),
        (one("pathType: Prefix, path: /a%0ab, "), "may not have '%0a'"),
        ("{rules: [{http: {paths: []}}]}", "spec.rules[0].http.paths: is missing or empty"),
        ("{defaultBackend: {service: {name: a, port: {}}}}", "defaultBackend.service.port: is missing"),
        ("{defaultBackend: {service: {name: a, port: {number: 80, name: b}}}}", "both a name and a number"),
        ("{defaultBackend: {service: {name: a, port: {number: 99999}}}}", "must be from 1 to 65535"),
        ("{defaultBackend: {service: {port: {number: 80}}}}", "defaultBackend.service.name: is missing"),
        ("{defaultBackend: {resource: {kind: Bucket, name: b}}}", "resource: cannot be served"),
        (
            "{defaultBackend: {serviceName: a, servicePort: 80}}",
            "is written as in v1beta1; write service.name",
        ),
        ("{backend: {serviceName: a, servicePort: 80}}", "spec.backend: unknown field"),
        ("{rules: [{host: a.org}], tls: [{hosts: [a.org]}]}", "tls[0].secretName: is missing"),
    ],
)
def test_a_bad_ingress_is_one_named_error(spec: str, said: str) -> None:
    content = read("web.yaml", ingress(f"  {spec}\n") + secret())
    assert not content.ingresses
    [error] = content.errors
    assert said in str(error)
    assert "Ingress default/web" in str(error)
    assert content.certificates, "the rest of the file is read"


def test_classes_have_a_controller() -> None:
    text = """
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata:
  name: front
  annotations: {ingressclass.kubernetes.io/is-default-class: "true"}
spec: {controller: k8s.io/ingress-nginx}
---
apiVersion: networking.k8s.io/v1
kind: IngressClass
metadata: {name: broken}
"""
    content = read("classes.yaml", text)
    assert content.classes == {"front": IngressClass("front", "k8s.io/ingress-nginx", default=True)}
    [error] = content.errors
    assert "IngressClass broken: spec.controller: is missing" in str(error)


def test_what_a_controllers_own_annotations_ask_for_is_said_to_be_left_out() -> None:
    own = "{nginx.ingress.kubernetes.io/ssl-redirect: 'true', ingress.kubernetes.io/x: y, note: z}"
    text = ingress("  defaultBackend: {service: {name: kubia, port: {number: 80}}}\n")
    content = read("m.yaml", text.replace("{name: web", f"{{name: web, annotations: {own}"))
    assert WEB in content.ingresses
    [warning] = content.warnings
    assert str(warning).startswith("warning: m.yaml:")
    assert "Ingress default/web: metadata.annotations: nginx.ingress.kubernetes.io/ssl-redirect," in str(
        warning
    )
    assert "note" not in str(warning)


def test_the_class_may_be_an_annotation() -> None:
    text = ingress("  defaultBackend: {service: {name: a, port: {number: 80}}}\n").replace(
        "{name: web", "{name: web, annotations: {kubernetes.io/ingress.class: front}"
    )
    assert good(text).ingresses[WEB].class_name == "front"


def test_a_secret_is_certificate_and_key() -> None:
    certificate, key = pair(HOST)
    found = good(secret()).certificates[ObjectKey("default", "tls-secret")]
    assert certificate in found.pem
    assert key in found.pem
    assert "PRIVATE" not in repr(found)
    plain = {"tls.crt": certificate, "tls.key": key}
    item = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "s"}, "stringData": plain}
    assert good(yaml.safe_dump(item)).certificates[ObjectKey("default", "s")].pem == found.pem


@pytest.mark.parametrize(
    ("certificate", "key", "said"),
    [
        ("", pair(HOST)[1], "data: lacks tls.crt"),
        (encoded("no PEM"), encoded(pair(HOST)[1]), "data: holds no certificate with its own key"),
        (encoded(pair(HOST)[0]), encoded(pair("b.example.com")[1]), "key values mismatch"),
        ("%%", encoded(pair(HOST)[1]), "data['tls.crt']: must be the base64 form"),
    ],
)
def test_a_bad_secret_is_one_named_error(certificate: str, key: str, said: str) -> None:
    data = {"tls.crt": certificate, "tls.key": key if key.startswith("L") else encoded(key)}
    item = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls",
            "metadata": {"name": "s"}, "data": data}  # fmt: skip
    content = read("secret.yaml", yaml.safe_dump(item))
    assert not content.certificates
    [error] = content.errors
    assert "secret.yaml:" in str(error)
    assert "Secret default/s" in str(error)
    assert said in str(error)
    assert "PRIVATE" not in str(error)


def test_other_kinds_and_secrets_of_other_types_are_passed_over() -> None:
    text = """
apiVersion: v1
kind: Secret
metadata: {name: token}
data: {token: "not base64"}
---
apiVersion: v1
kind: Service
metadata: {name: kubia}
---
apiVersion: example.com/v1
kind: Ingress
metadata: {name: other}
"""
    content = read("x.yaml", text)
    assert not content.errors
    assert not content.ingresses
    assert not content.certificates


def test_the_items_of_a_list_are_read() -> None:
    item = yaml.safe_load(ingress("  defaultBackend: {service: {name: a, port: {number: 80}}}\n"))
    assert WEB in good(yaml.safe_dump({"apiVersion": "v1", "kind": "List", "items": [item]})).ingresses
    del item["kind"], item["apiVersion"]
    typed = {"apiVersion": "networking.k8s.io/v1", "kind": "IngressList", "items": [item]}
    assert WEB in good(yaml.safe_dump(typed)).ingresses
