# SPDX-License-Identifier: Apache-2.0
"""Service manifests that are wrong: each validation rule, with the line and the field that it names."""

from __future__ import annotations

import pytest

from lb.model import ObjectKey
from tests.unit.manifest_bench import PATH, read_text, with_spec

# Rows: spec (it begins in line 6), line, field, words that the message holds.
WRONG = [
    ("type: Loadbalancer\nports: [{port: 1}]", 6, "spec.type", "must be one of ClusterIP, NodePort"),
    ("type: ClusterIP", 5, "spec.ports", "at least one port"),
    ("ports:\n- name: a", 7, "spec.ports[0].port", "is missing"),
    ("ports:\n- port: 0", 7, "spec.ports[0].port", "from 1 to 65535, is 0"),
    ("ports:\n- port: 65536", 7, "spec.ports[0].port", "from 1 to 65535, is 65536"),
    ("ports:\n- port: -1", 7, "spec.ports[0].port", "is -1"),
    ("ports:\n- port: '80'", 7, "spec.ports[0].port", "remove the quotes"),
    ("ports:\n- port: 80.5", 7, "spec.ports[0].port", "fraction"),
    ("ports:\n- port: http", 7, "spec.ports[0].port", "must be a number, is a string (http)"),
    (
        "ports:\n- port: 80\n  protocol: HTTP",
        8,
        "spec.ports[0].protocol",
        "must be one of TCP, UDP, SCTP, is 'HTTP'",
    ),
    ("ports:\n- port: 80\n  protocol: tcp", 8, "spec.ports[0].protocol", "is 'tcp'"),
    ("ports:\n- port: 80\n  targetPort: '8080'", 8, "spec.ports[0].targetPort", "a number in quotes"),
    ("ports:\n- port: 80\n  targetPort: Http", 8, "spec.ports[0].targetPort", "no port name"),
    ("ports:\n- port: 80\n  targetPort: a--b", 8, "spec.ports[0].targetPort", "no port name"),
    ("ports:\n- port: 80\n  targetPort: 1-2", 8, "spec.ports[0].targetPort", "at least one letter"),
    ("ports:\n- port: 80\n  targetPort: a-name-of-16-let", 8, "spec.ports[0].targetPort", "at most 15"),
    ("ports:\n- port: 80\n  targetPort: 70000", 8, "spec.ports[0].targetPort", "is 70000"),
    (
        "ports:\n- port: 80\n  targetPort: true",
        8,
        "spec.ports[0].targetPort",
        "must be a number, is a boolean",
    ),
    ("ports:\n- port: 80\n  name: a\n- port: 81", 9, "spec.ports[1].name", "required"),
    (
        "ports:\n- port: 80\n  name: a\n- port: 81\n  name: a",
        10,
        "spec.ports[1].name",
        "name of an earlier port",
    ),
    ("ports:\n- port: 80\n  name: Web", 8, "spec.ports[0].name", "no DNS label"),
    (
        "ports:\n- {port: 80, name: a}\n- {port: 80, name: b}",
        8,
        "spec.ports[1].port",
        "80/TCP is there twice",
    ),
    (
        "type: NodePort\nports:\n- port: 1\n  nodePort: 8080",
        9,
        "spec.ports[0].nodePort",
        "range 30000-32767, is 8080",
    ),
    (
        "ports:\n- port: 80\n  nodePort: 30080",
        8,
        "spec.ports[0].nodePort",
        "may not be set when type is ClusterIP",
    ),
    (
        "ports:\n- {name: a, port: 1, nodePort: 30001}\n"
        "- {name: b, port: 2, nodePort: 30001}\ntype: NodePort",
        8,
        "spec.ports[1].nodePort",
        "30001/TCP is there twice",
    ),
    ("ports: {port: 80}", 6, "spec.ports", "must be a list, is a mapping"),
    ("ports: [80]", 6, "spec.ports[0]", "must be a mapping, is a number (80)"),
    ("clusterIP: 10.0.0.256\nports: [{port: 1}]", 6, "spec.clusterIP", "must be an IP address"),
    ("clusterIP: 010.0.0.1\nports: [{port: 1}]", 6, "spec.clusterIP", "must be an IP address"),
    ("clusterIP: none\nports: [{port: 1}]", 6, "spec.clusterIP", "must be an IP address"),
    ("clusterIPs: [10.0.0.1]\nports: [{port: 1}]", 5, "spec.clusterIP", "is missing"),
    (
        "clusterIP: 10.0.0.1\nclusterIPs: [10.0.0.2]\nports: [{port: 1}]",
        7,
        "spec.clusterIPs[0]",
        "must equal clusterIP",
    ),
    (
        "clusterIP: 10.0.0.1\nclusterIPs: [10.0.0.1, 10.0.0.2]\nports: [{port: 1}]",
        7,
        "spec.clusterIPs",
        "one address of each family",
    ),
    (
        "clusterIP: None\nclusterIPs: [None, 10.0.0.1]\nports: [{port: 1}]",
        7,
        "spec.clusterIPs[1]",
        "nothing may follow",
    ),
    ("type: NodePort\nclusterIP: None\nports: [{port: 1}]", 7, "spec.clusterIP", "may not be None"),
    ("type: ExternalName\nexternalName: a.b\nclusterIP: 10.0.0.1", 8, "spec.clusterIP", "may not be set"),
    ("type: ExternalName", 5, "spec.externalName", "is required"),
    ("type: ExternalName\nexternalName: not_a_name", 7, "spec.externalName", "no DNS name"),
    ("ipFamilies: [IPv4, IPv4]\nports: [{port: 1}]", 6, "spec.ipFamilies", "twice"),
    ("ipFamilies: [IPv5]\nports: [{port: 1}]", 6, "spec.ipFamilies[0]", "IPv4, IPv6"),
    ("clusterIP: 10.0.0.1\nipFamilies: [IPv6]\nports: [{port: 1}]", 7, "spec.ipFamilies", "must agree"),
    (
        "ipFamilyPolicy: SingleStack\nipFamilies: [IPv4, IPv6]\nports: [{port: 1}]",
        6,
        "spec.ipFamilyPolicy",
        "must be PreferDualStack or RequireDualStack for two families",
    ),
    ("ipFamilies: [IPv4, IPv6]\nports: [{port: 1}]", 5, "spec.ipFamilyPolicy", "for two families"),
    (
        "clusterIP: 10.0.0.1\nclusterIPs: [10.0.0.1, 'fd00::1']\nports: [{port: 1}]",
        5,
        "spec.ipFamilyPolicy",
        "for two cluster IPs",
    ),
    (
        "clusterIP: None\nselector: {a: b}\nipFamilies: [IPv4, IPv6]\nports: [{port: 1}]",
        5,
        "spec.ipFamilyPolicy",
        "for two families",
    ),
    ("ipFamilyPolicy: DualStack\nports: [{port: 1}]", 6, "spec.ipFamilyPolicy", "PreferDualStack"),
    ("externalIPs: [x]\nports: [{port: 1}]", 6, "spec.externalIPs[0]", "must be an IP address"),
    ("externalIPs:\n- 127.0.0.1\nports: [{port: 1}]", 7, "spec.externalIPs[0]", "loopback"),
    ("externalIPs: ['0.0.0.0']\nports: [{port: 1}]", 6, "spec.externalIPs[0]", "unspecified"),
    ("externalIPs: [169.254.1.1]\nports: [{port: 1}]", 6, "spec.externalIPs[0]", "link-local"),
    ("externalIPs: [224.0.0.5]\nports: [{port: 1}]", 6, "spec.externalIPs[0]", "multicast"),
    ("externalIPs: ['ff02::5']\nports: [{port: 1}]", 6, "spec.externalIPs[0]", "multicast"),
    ("sessionAffinity: clientIP\nports: [{port: 1}]", 6, "spec.sessionAffinity", "None, ClientIP"),
    (
        "sessionAffinity: ClientIP\nsessionAffinityConfig:\n  clientIP:\n"
        "    timeoutSeconds: 0\nports: [port: 1]",
        9,
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        "from 1 to 86400, is 0",
    ),
    (
        "sessionAffinity: ClientIP\n"
        "sessionAffinityConfig: {clientIP: {timeoutSeconds: 86401}}\nports: [port: 1]",
        7,
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
        "is 86401",
    ),
    (
        "sessionAffinityConfig: {clientIP: {timeoutSeconds: 10}}\nports: [{port: 1}]",
        6,
        "spec.sessionAffinityConfig",
        "sessionAffinity is None",
    ),
    (
        "sessionAffinity: ClientIP\nsessionAffinityConfig:\n  timeoutSeconds: 10\nports: [{port: 1}]",
        8,
        "spec.sessionAffinityConfig.timeoutSeconds",
        "unknown field",
    ),
    ("internalTrafficPolicy: local\nports: [{port: 1}]", 6, "spec.internalTrafficPolicy", "Cluster, Local"),
    ("externalTrafficPolicy: Local\nports: [{port: 1}]", 6, "spec.externalTrafficPolicy", "may not be set"),
    (
        "loadBalancerSourceRanges: [10.0.0.0/8]\nports: [{port: 1}]",
        6,
        "spec.loadBalancerSourceRanges",
        "LoadBalancer",
    ),
    (
        "type: LoadBalancer\nloadBalancerSourceRanges:\n- 10.0.0.1\nports: [{port: 1}]",
        8,
        "spec.loadBalancerSourceRanges[0]",
        "no prefix length",
    ),
    (
        "type: LoadBalancer\nloadBalancerSourceRanges:\n- 10.0.0.0/33\nports: [{port: 1}]",
        8,
        "spec.loadBalancerSourceRanges[0]",
        "must be a network",
    ),
    (
        "type: LoadBalancer\nhealthCheckNodePort: 30001\nports: [{port: 1}]",
        7,
        "spec.healthCheckNodePort",
        "Local",
    ),
    (
        "allocateLoadBalancerNodePorts: true\nports: [{port: 1}]",
        6,
        "spec.allocateLoadBalancerNodePorts",
        "LoadBalancer",
    ),
    ("trafficDistribution: Near\nports: [{port: 1}]", 6, "spec.trafficDistribution", "PreferClose"),
    (
        "publishNotReadyAddresses: 'true'\nports: [{port: 1}]",
        6,
        "spec.publishNotReadyAddresses",
        "must be a boolean",
    ),
    ("selector: app\nports: [{port: 1}]", 6, "spec.selector", "must be a mapping, is a string (app)"),
    (
        "selector:\n  version: 1\nports: [{port: 1}]",
        7,
        "spec.selector.version",
        "must be a string, is a number (1)",
    ),
    ("selector: {app: yes}\nports: [{port: 1}]", 6, "spec.selector.app", "put it in quotes"),
    ("selector: {app: {x: y}}\nports: [{port: 1}]", 6, "spec.selector.app", "must be a string, is a mapping"),
    ("selector: {app: -x}\nports: [{port: 1}]", 6, "spec.selector.app", "no label value"),
    ("selector: {a/b/c: x}\nports: [{port: 1}]", 6, "spec.selector['a/b/c']", "no label key"),
    (
        "selector:\n  matchLabels: {app: x}\nports: [{port: 1}]",
        7,
        "spec.selector.matchLabels",
        "must be a string",
    ),
    (
        "clusterInfo: None\nports: [{port: 1}]",
        6,
        "spec.clusterInfo",
        "unknown field; did you mean clusterIP?",
    ),
    ("ports:\n- port: 1\n  targetport: 2", 8, "spec.ports[0].targetport", "did you mean targetPort?"),
    (
        "ports:\n- port: 1\n  selector: {a: b}",
        8,
        "spec.ports[0].selector",
        "it belongs to spec, is it indented too far?",
    ),
    ("ports:\n- port: 1\n  port: 2", 8, "spec.ports[0].port", "given twice; first in line 7"),
]


@pytest.mark.parametrize(("spec", "line", "field", "words"), WRONG)
def test_a_wrong_spec_is_one_error_with_line_and_field(spec: str, line: int, field: str, words: str) -> None:
    content = read_text(with_spec(spec))
    (error,) = content.errors
    assert (error.path, error.line, error.object, error.field) == (PATH, line, "Service default/web", field)
    assert words in error.message
    assert content.objects == {}
    assert content.broken == {("Service", ObjectKey("default", "web"))}
    assert not content.unnamed


STATUS_WRONG = [
    ("loadBalancer:\n  ingress:\n  - ip: x", "status.loadBalancer.ingress[0].ip", "must be an IP address"),
    (
        "loadBalancer:\n  ingress:\n  - {ip: 1.2.3.4, ipMode: vip}",
        "status.loadBalancer.ingress[0].ipMode",
        "VIP, Proxy",
    ),
    (
        "loadBalancer:\n  ingress:\n  - {hostname: a, ipMode: VIP}",
        "status.loadBalancer.ingress[0].ipMode",
        "with ip",
    ),
    ("loadBalancer:\n\n  ingres: []", "status.loadBalancer.ingres", "did you mean ingress?"),
    ("loadBalancer:\n\n  ports: []", "status.loadBalancer.ports", "unknown field"),
]


@pytest.mark.parametrize(("status", "field", "words"), STATUS_WRONG)
def test_a_wrong_status(status: str, field: str, words: str) -> None:
    (error,) = read_text(with_spec("type: LoadBalancer\nports: [{port: 1}]", status)).errors
    assert (error.line, error.field) == (11, field)
    assert words in error.message


# Rows: the document's head (the object's spec is right), line, object, field, words.
HEAD_WRONG = [
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: Web}",
        3,
        "Service default/Web",
        "metadata.name",
        "no DNS label",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: 12}",
        3,
        "Service",
        "metadata.name",
        "put it in quotes",
    ),
    ("apiVersion: v1\nkind: Service\nmetadata: {name: ''}", 3, "Service", "metadata.name", "is missing"),
    ("apiVersion: v1\nkind: Service\nmetadata: {labels: {}}", 3, "Service", "metadata.name", "is missing"),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {generateName: w-}",
        3,
        "Service",
        "metadata.name",
        "API server",
    ),
    ("apiVersion: v1\nkind: Service", 1, "Service", "metadata.name", "is missing"),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: w\n  namespace: A_B",
        5,
        "Service A_B/w",
        "metadata.namespace",
        "no DNS label",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: w\n  labels:\n    v: 1.2",
        6,
        "Service default/w",
        "metadata.labels.v",
        "put it in quotes",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: w\n  labels:\n    a.example/v: 3",
        6,
        "Service default/w",
        "metadata.labels['a.example/v']",
        "must be a string, is a number (3)",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: w\n  creationTimestamp: yesterday",
        5,
        "Service default/w",
        "metadata.creationTimestamp",
        "RFC 3339",
    ),
    (
        "apiVersion: v1\nkind: Service\nmetadata:\n  name: w\n  creationTimestamp: 0001-01-01T00:00:00+14:00",
        5,
        "Service default/w",
        "metadata.creationTimestamp",
        "RFC 3339",
    ),
    (
        "apiVersion: vl\nkind: Service\nmetadata: {name: w}",
        1,
        "Service default/w",
        "apiVersion",
        "must be v1",
    ),
    ("kind: Service\nmetadata: {name: w}", 1, "Service default/w", "apiVersion", "is missing"),
    (
        "apiVersion: v1\nkind: Service\nmetadata: {name: w}\nports: []",
        4,
        "Service default/w",
        "ports",
        "unknown",
    ),
]


@pytest.mark.parametrize(("head", "line", "name", "field", "words"), HEAD_WRONG)
def test_a_wrong_head(head: str, line: int, name: str, field: str, words: str) -> None:
    (error,) = read_text(head + "\nspec: {ports: [{port: 1}]}\n").errors
    assert (error.line, error.object, error.field) == (line, name, field)
    assert words in error.message


def test_unknown_fields_elsewhere_are_no_error() -> None:
    text = "apiVersion: v1\nkind: Service\nmetadata: {name: w, madeBy: me}\nspec: {ports: [{port: 1}]}\n"
    assert read_text(text).errors == []


def test_all_errors_of_an_object_are_told_in_the_order_of_lines() -> None:
    content = read_text(with_spec("sessionAffinity: Yes\nports:\n- port: 0\n- port: 99999\n  protocol: ICMP"))
    assert [(error.line, error.field) for error in content.errors] == [
        (6, "spec.sessionAffinity"),
        (8, "spec.ports[0].name"),
        (8, "spec.ports[0].port"),
        (9, "spec.ports[1].name"),
        (9, "spec.ports[1].port"),
        (10, "spec.ports[1].protocol"),
    ]


def test_an_error_as_a_person_sees_it() -> None:
    (error,) = read_text(with_spec("ports:\n- port: 80\n  targetPort: '8080'")).errors
    assert str(error) == (
        "folder/all.yaml:8: Service default/web: spec.ports[0].targetPort: '8080' is a number in quotes,"
        " so a port's name, which needs a letter: remove the quotes"
    )
