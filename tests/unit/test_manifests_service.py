# SPDX-License-Identifier: Apache-2.0
"""Service manifests: what the fields mean, and their defaults."""

from __future__ import annotations

from ipaddress import ip_address, ip_network

import pytest

from lb.model import (
    ObjectKey,
    Origin,
    Protocol,
    Service,
    ServicePort,
    ServiceType,
    TrafficDistribution,
    TrafficPolicy,
)
from tests.unit.manifest_bench import (
    PATH,
    request,
    service,
    with_spec,
)


def test_defaults() -> None:
    found = request(with_spec("ports: [{port: 80}]"))
    assert found.service == Service(
        key=ObjectKey("default", "web"),
        type=ServiceType.CLUSTER_IP,
        ports=(ServicePort("", Protocol.TCP, 80, 80, 0),),
        selector=None,
    )
    assert found.service.origin == Origin(PATH, 1)
    assert not found.wants_node_ports
    assert found.families == ()


def test_several_ports_by_name_with_affinity() -> None:
    found = service(
        """
        apiVersion: v1
        kind: Service
        metadata:
          name: shop
          namespace: front
        spec:
          sessionAffinity: ClientIP
          ports:
            - port: 80
              name: http-main
              targetPort: http-main
            - port: 90
              name: http-side
              targetPort: http-side
          selector:
            app: shop
        """
    )
    assert found.key == ObjectKey("front", "shop")
    assert found.ports == (
        ServicePort("http-main", Protocol.TCP, 80, "http-main"),
        ServicePort("http-side", Protocol.TCP, 90, "http-side"),
    )
    assert found.affinity_seconds == 10_800
    assert found.selector == {"app": "shop"}


def test_every_field_of_a_load_balancer() -> None:
    found = request(
        """
        apiVersion: v1
        kind: Service
        metadata:
          name: edge
          creationTimestamp: 2020-01-15T10:20:58Z
          labels: {app: edge, "a.example/b": ""}
          annotations: {note: 5}
          resourceVersion: "70295244"
        spec:
          type: LoadBalancer
          clusterIP: 10.96.7.7
          clusterIPs: [10.96.7.7, "fd00:96::7"]
          ipFamilies: [IPv4, IPv6]
          ipFamilyPolicy: RequireDualStack
          externalIPs: [192.0.2.9]
          loadBalancerIP: 203.0.113.5
          loadBalancerClass: example/own
          loadBalancerSourceRanges: [10.0.0.0/8, " 192.0.2.77/24 "]
          externalTrafficPolicy: Local
          internalTrafficPolicy: Local
          healthCheckNodePort: 30999
          allocateLoadBalancerNodePorts: false
          publishNotReadyAddresses: true
          trafficDistribution: PreferClose
          sessionAffinity: ClientIP
          sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}
          selector: {app: edge}
          ports:
          - {name: dns, port: 53, protocol: UDP, targetPort: 5353, nodePort: 30053}
          - {name: dns-tcp, port: 53, protocol: TCP, targetPort: 5353, nodePort: 30053}
          - {name: sctp, port: 54, protocol: SCTP, appProtocol: x}
        status:
          loadBalancer:
            ingress:
            - {ip: 203.0.113.5}
            - {ip: 203.0.113.6, ipMode: VIP}
            - {ip: 203.0.113.7, ipMode: Proxy}
            - {hostname: edge.example.net}
        """
    )
    assert found.service == Service(
        key=ObjectKey("default", "edge"),
        type=ServiceType.LOAD_BALANCER,
        ports=(
            ServicePort("dns", Protocol.UDP, 53, 5353, 30053),
            ServicePort("dns-tcp", Protocol.TCP, 53, 5353, 30053),
            ServicePort("sctp", Protocol.SCTP, 54, 54, 0),
        ),
        cluster_ips=(ip_address("10.96.7.7"), ip_address("fd00:96::7")),
        external_ips=(ip_address("192.0.2.9"),),
        load_balancer_ips=(ip_address("203.0.113.5"), ip_address("203.0.113.6")),
        selector={"app": "edge"},
        affinity_seconds=60,
        publish_not_ready=True,
        internal_policy=TrafficPolicy.LOCAL,
        external_policy=TrafficPolicy.LOCAL,
        source_ranges=(ip_network("10.0.0.0/8"), ip_network("192.0.2.0/24")),
        health_check_node_port=30999,
        distribution=TrafficDistribution.PREFER_CLOSE,
        created="2020-01-15T10:20:58Z",
        labels={"app": "edge", "a.example/b": ""},
    )
    assert found.families == (4, 6)
    assert found.requires_dual
    assert not found.wants_node_ports


def test_node_port() -> None:
    found = request(
        with_spec("type: NodePort\nports: [{name: a, port: 80, nodePort: 30123}, {name: b, port: 1}]")
    )
    assert [port.node_port for port in found.service.ports] == [30123, 0]
    assert found.wants_node_ports


def test_headless() -> None:
    found = service(with_spec('clusterIP: "None"\nselector: {app: x}\nports: [{port: 80}]'))
    assert (found.headless, found.cluster_ips) == (True, ())
    assert service(with_spec("clusterIP: None\nclusterIPs: [None]")).headless


def test_external_name() -> None:
    found = service(with_spec("type: ExternalName\nexternalName: backup.example.net\nports: [{port: 80}]"))
    assert (found.type, found.external_name, found.cluster_ips) == (
        ServiceType.EXTERNAL_NAME,
        "backup.example.net",
        (),
    )


@pytest.mark.parametrize(
    "label", ["service.kubernetes.io/service-proxy-name", "service.kubernetes.io/headless"]
)
def test_skip_labels(label: str) -> None:
    assert service(with_spec("ports: [{port: 80}]")).proxied
    head = f'apiVersion: v1\nkind: Service\nmetadata: {{name: web, labels: {{{label}: ""}}}}\n'
    assert not service(head + "spec: {ports: [{port: 1}]}").proxied


def test_an_empty_selector_is_none() -> None:
    assert service(with_spec("selector: {}\nports: [{port: 80}]")).selector is None
    assert service(with_spec("selector:\nports: [{port: 80}]")).selector is None


def test_zero_and_empty_count_as_not_set() -> None:
    found = service(
        with_spec("type: ''\nclusterIP: ''\nports: [{port: 80, targetPort: 0, nodePort: 0, protocol: ''}]")
    )
    assert found.ports == (ServicePort("", Protocol.TCP, 80, 80, 0),)


def test_status_counts_for_load_balancers_only() -> None:
    text = with_spec("type: NodePort\nports: [{port: 80}]", "loadBalancer: {ingress: [{ip: 203.0.113.5}]}")
    assert service(text).load_balancer_ips == ()
    assert service(with_spec("ports: [{port: 80}]", "loadBalancer: {}")).load_balancer_ips == ()


def test_times_are_told_in_utc() -> None:
    metadata = "{name: a, creationTimestamp: '%s'}"
    head = f"apiVersion: v1\nkind: Service\nmetadata: {metadata}\nspec: {{ports: [{{port: 1}}]}}"
    assert service(head % "2020-01-15T10:20:58+02:00").created == "2020-01-15T08:20:58Z"
    assert service(head % "").created == ""


def test_a_merge_key_and_an_anchor() -> None:
    found = service(
        with_spec("ports:\n- &p {name: a, port: 80, protocol: UDP}\n- {<<: *p, name: b, port: 81}")
    )
    assert [(port.name, port.port, port.protocol) for port in found.ports] == [
        ("a", 80, Protocol.UDP),
        ("b", 81, Protocol.UDP),
    ]
