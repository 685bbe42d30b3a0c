# SPDX-License-Identifier: Apache-2.0
"""Documents, lists and the kinds other than Service."""

from __future__ import annotations

import logging
from ipaddress import ip_address

import pytest

from lb.manifests.objects import Endpoints, HandAddress, Subset
from lb.model import (
    ContainerPort,
    Endpoint,
    EndpointPort,
    EndpointSlice,
    Node,
    ObjectKey,
    Origin,
    Pod,
    Protocol,
)
from tests.unit.manifest_bench import (
    ENDPOINTS,
    PATH,
    POD,
    SLICE,
    objects,
    one,
    read_text,
)


def test_pod() -> None:
    assert one(POD) == Pod(
        key=ObjectKey("shop", "search-4pdsl"),
        labels={"app": "search", "pod-template-hash": "67847b4fb4"},
        node="node-7",
        addresses=(ip_address("10.0.7.1"), ip_address("fd00:7::1")),
        container_ports=(
            ContainerPort("http", Protocol.TCP, 8080),
            ContainerPort("dns", Protocol.UDP, 5353),
            ContainerPort("", Protocol.TCP, 7),
            ContainerPort("metrics", Protocol.TCP, 9090),
        ),
        ready=True,
    )


POD_VARIANTS = [
    ('{type: Ready, status: "True"}', '{type: Ready, status: "False"}', {"ready": False}),
    ('{type: Ready, status: "True"}', '{type: ContainersReady, status: "True"}', {"ready": False}),
    ("phase: Running", "phase: Succeeded", {"finished": True}),
    ("phase: Running", "phase: Failed", {"finished": True}),
    ("  generateName: search-\n", "  deletionTimestamp: 2021-03-27T00:00:00Z\n", {"terminating": True}),
    ("  generateName: search-\n", "  deletionTimestamp: null\n", {"terminating": False}),
    ("  nodeName: node-7\n", "", {"node": ""}),
    ('  podIPs: [{ip: 10.0.7.1}, {ip: "fd00:7::1"}]\n', "", {"addresses": (ip_address("10.0.7.1"),)}),
]


@pytest.mark.parametrize(("before", "after", "expected"), POD_VARIANTS)
def test_pod_variants(before: str, after: str, expected: dict[str, object]) -> None:
    assert before in POD
    pod = one(POD.replace(before, after))
    assert {name: getattr(pod, name) for name in expected} == expected


def test_a_pod_without_status_has_no_address() -> None:
    pod = one("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c}]}\n")
    assert pod == Pod(key=ObjectKey("default", "a"))


def test_node() -> None:
    text = """
    apiVersion: v1
    kind: Node
    metadata: {name: node-7.example, labels: {topology.kubernetes.io/zone: z1}}
    spec: {podCIDR: 10.0.7.0/24, unschedulable: true}
    status:
      addresses:
      - {type: Hostname, address: node-7}
      - {type: InternalIP, address: 192.0.2.7}
      - {type: InternalIP, address: "2001:db8::7"}
      - {type: ExternalIP, address: 203.0.113.7}
    """
    addresses = (ip_address("192.0.2.7"), ip_address("2001:db8::7"))
    labels = {"topology.kubernetes.io/zone": "z1"}
    assert one(text) == Node("node-7.example", addresses, "z1", cordoned=True, labels=labels)
    leaving = one(
        "apiVersion: v1\nkind: Node\nmetadata: {name: a, deletionTimestamp: 2021-03-27T00:00:00Z}\n"
    )
    assert leaving == Node("a", terminating=True)


@pytest.mark.parametrize(
    ("key", "terminating", "cordoned"),
    [
        ("ToBeDeletedByClusterAutoscaler", True, False),
        ("node.kubernetes.io/unschedulable", False, True),
        ("node.kubernetes.io/not-ready", False, False),
    ],
)
def test_node_health_a_node_with_the_autoscalers_taint_is_leaving(
    key: str, *, terminating: bool, cordoned: bool
) -> None:
    taint = f"spec: {{taints: [{{key: {key}, effect: NoSchedule}}]}}\n"
    found = one(f"apiVersion: v1\nkind: Node\nmetadata: {{name: a}}\n{taint}")
    assert found == Node("a", terminating=terminating, cordoned=cordoned)


def test_endpoint_slice() -> None:
    assert one(SLICE) == EndpointSlice(
        key=ObjectKey("default", "web-1"),
        service=ObjectKey("default", "web"),
        ports=(EndpointPort("http", Protocol.TCP, 8080), EndpointPort("dns", Protocol.UDP, 53)),
        endpoints=(
            Endpoint(ip_address("10.0.1.1")),
            Endpoint(
                ip_address("10.0.2.1"),
                ready=False,
                serving=True,
                terminating=True,
                node="node2",
                zone="z2",
                target="default/web-2",
                hint_zones=frozenset(("z1", "z2")),
                hint_nodes=frozenset(("node2",)),
            ),
            Endpoint(ip_address("10.0.3.1")),
        ),
        hostnames="\na",
    )


def test_a_slice_of_host_names_says_why_it_has_no_endpoints() -> None:
    text = """
    apiVersion: discovery.k8s.io/v1
    kind: EndpointSlice
    metadata: {name: a, labels: {kubernetes.io/service-name: web}}
    addressType: FQDN
    endpoints: [{addresses: [a.example.net]}]
    """
    content = read_text(text)
    assert content.objects == {}
    assert [str(error) for error in content.errors] == [
        f"{PATH}:4: EndpointSlice default/a: addressType:"
        " is FQDN: no Service proxy resolves host names, so none of these endpoints is served"
    ]


def test_endpoints() -> None:
    expected = Endpoints(
        ObjectKey("default", "outside"),
        (
            Subset(
                (
                    HandAddress(ip_address("198.51.100.10"), ready=True),
                    HandAddress(ip_address("198.51.100.11"), ready=True, node="node1", target="default/p"),
                    HandAddress(ip_address("198.51.100.12"), ready=False),
                ),
                (EndpointPort("", Protocol.TCP, 80),),
            ),
        ),
    )
    assert one(ENDPOINTS) == expected
    assert one("apiVersion: v1\nkind: Endpoints\nmetadata: {name: none}\nsubsets: null\n") == Endpoints(
        ObjectKey("default", "none")
    )


@pytest.mark.parametrize(
    "metadata",
    [
        '{name: a, labels: {endpointslice.kubernetes.io/skip-mirror: "true"}}',
        '{name: a, annotations: {control-plane.alpha.kubernetes.io/leader: "{}"}}',
    ],
)
def test_endpoints_that_are_not_for_services(metadata: str) -> None:
    parsed = one(f"apiVersion: v1\nkind: Endpoints\nmetadata: {metadata}\n")
    assert isinstance(parsed, Endpoints)
    assert not parsed.mirrored


def test_ports_indented_below_an_address_are_one_clear_error() -> None:
    content = read_text(
        """
        apiVersion: v1
        kind: Endpoints
        metadata:
          name: outside
        subsets:
          - addresses:
            - ip: 198.51.100.10
            - ip: 198.51.100.11
              ports:
                - port: 80
        """
    )
    (error,) = content.errors
    assert str(error) == (
        f"{PATH}:9: Endpoints default/outside: subsets[0].addresses[1].ports: unknown field;"
        " it belongs to subsets[0], is it indented too far?"
    )
    assert content.objects == {}


# Rows: a change to SLICE, ENDPOINTS or POD that makes it wrong; line, field, words.
WRONG = [
    (SLICE, "addressType: IPv4\n", "", 1, "addressType", "is missing"),
    (SLICE, "addressType: IPv4", "addressType: ipv4", 6, "addressType", "IPv4, IPv6, FQDN"),
    (SLICE, "10.0.3.1", "'fd00::1'", 20, "endpoints[2].addresses[0]", "must be of the addressType IPv4"),
    (SLICE, "[10.0.3.1]", "[]", 20, "endpoints[2].addresses", "needs an address"),
    (SLICE, "10.0.3.1", "127.0.0.1", 20, "endpoints[2].addresses[0]", "loopback"),
    (SLICE, "name: dns,", "name: http,", 9, "ports[1].name", "name of an earlier port"),
    (SLICE, "{name: every}", "{name: Every}", 10, "ports[2].name", "no DNS label"),
    (SLICE, "port: 8080", "port: 0", 8, "ports[0].port", "from 1 to 65535"),
    (SLICE, "ready: false", "ready: 'no'", 14, "endpoints[1].conditions.ready", "must be a boolean"),
    (SLICE, "ready: false", "Ready: false", 14, "endpoints[1].conditions.Ready", "did you mean ready?"),
    (SLICE, "zone: z2", "zones: z2", 17, "endpoints[1].zones", "did you mean zone?"),
    (SLICE, "forNodes", "forNode", 19, "endpoints[1].hints.forNode", "did you mean forNodes?"),
    (SLICE, "kubernetes.io/service-name: web", "app: web", 5, "metadata.labels", "belongs to no Service"),
    (
        SLICE,
        "discovery.k8s.io/v1",
        "discovery.k8s.io/v1beta1",
        1,
        "apiVersion",
        "must be discovery.k8s.io/v1",
    ),
    (SLICE, "discovery.k8s.io/v1", "v1", 1, "apiVersion", "must be discovery.k8s.io/v1"),
    (SLICE, "addressType: IPv4", "addressType: IPv4\nspec: {}", 7, "spec", "unknown field"),
    (
        ENDPOINTS,
        "ip: 198.51.100.10",
        "ip: outside.example",
        7,
        "subsets[0].addresses[0].ip",
        "must be an IP address",
    ),
    (ENDPOINTS, "ip: 198.51.100.10", "hostname: a", 7, "subsets[0].addresses[0].ip", "is missing"),
    (ENDPOINTS, "ip: 198.51.100.10", "ip: 169.254.0.1", 7, "subsets[0].addresses[0].ip", "link-local"),
    (
        ENDPOINTS,
        "      - port: 80",
        "      - port: 80\n      - port: 81",
        15,
        "subsets[0].ports[1].name",
        "required",
    ),
    (ENDPOINTS, "      - port: 80", "      - name: a", 14, "subsets[0].ports[0].port", "is missing"),
    (ENDPOINTS, "  - addresses:", "  - address:", 6, "subsets[0].address", "did you mean addresses?"),
    (ENDPOINTS, "subsets:", "subset:", 5, "subset", "did you mean subsets?"),
    (
        POD,
        "containerPort: 8080",
        "containerPort: 99999",
        26,
        "spec.containers[0].ports[0].containerPort",
        "is 99999",
    ),
    (
        POD,
        "{name: http, containerPort: 8080}",
        "{name: http}",
        26,
        "spec.containers[0].ports[0].containerPort",
        "missing",
    ),
    (POD, "name: http,", "name: HTTP,", 26, "spec.containers[0].ports[0].name", "no port name"),
    (POD, "hostPort", "hostport", 27, "spec.containers[0].ports[1].hostport", "did you mean hostPort?"),
    (POD, "app: search", "app: 5", 9, "metadata.labels.app", "must be a string"),
    (POD, "{ip: 10.0.7.1}", "{ip: 10.0.7}", 37, "status.podIPs[0].ip", "must be an IP address"),
    (
        POD,
        'status: "True"}\n  hostIP',
        "status: true}\n  hostIP",
        34,
        "status.conditions[1].status",
        "in quotes",
    ),
    (POD, "nodeName: node-7", "nodeName: 7", 15, "spec.nodeName", "must be a string, is a number (7)"),
]


@pytest.mark.parametrize(("good", "before", "after", "line", "field", "words"), WRONG)
def test_wrong_objects(good: str, before: str, after: str, line: int, field: str, words: str) -> None:
    assert good.count(before) == 1
    content = read_text(good.replace(before, after))
    (error,) = content.errors
    assert (error.line, error.field) == (line, field)
    assert words in error.message
    assert content.objects == {}
    assert len(content.broken) == 1


def test_a_subset_without_addresses() -> None:
    (error,) = read_text(
        "apiVersion: v1\nkind: Endpoints\nmetadata: {name: a}\nsubsets:\n- ports: [{port: 1}]\n"
    ).errors
    assert (error.line, error.field, error.message) == (
        5,
        "subsets[0]",
        "needs addresses or notReadyAddresses",
    )


def test_other_kinds_are_passed_over_quietly(caplog: pytest.LogCaptureFixture) -> None:
    text = """
    apiVersion: apps/v1
    kind: ReplicaSet
    metadata: {name: 5, labels: [broken]}
    ---
    apiVersion: serving.knative.dev/v1
    kind: Service
    metadata: {name: 5}
    ---
    apiVersion: apps/v1
    kind: DeploymentList
    items: broken
    ---
    apiVersion: kustomize.config.k8s.io/v1beta1
    kind: Kustomization
    """
    with caplog.at_level(logging.DEBUG):
        content = read_text(text)
    assert (content.objects, content.errors, content.broken, content.unnamed) == ({}, [], set(), False)
    assert {record.levelno for record in caplog.records} == {logging.DEBUG}
    assert len(caplog.records) == 4


def test_a_list_of_several_kinds_and_a_typed_list() -> None:
    text = """
    apiVersion: v1
    kind: List
    metadata: {resourceVersion: ""}
    items:
    - apiVersion: v1
      kind: Node
      metadata: {name: a}
    - {apiVersion: apps/v1, kind: Deployment}
    - {apiVersion: v1, kind: Pod, metadata: {name: p}}
    ---
    apiVersion: v1
    kind: ServiceList
    items:
    - metadata: {name: s}
      spec: {ports: [{port: 1}]}
    ---
    apiVersion: discovery.k8s.io/v1
    kind: EndpointSliceList
    items: []
    """
    content = read_text(text)
    assert content.errors == []
    assert list(content.objects) == [
        ("Node", ObjectKey("", "a")),
        ("Pod", ObjectKey("default", "p")),
        ("Service", ObjectKey("default", "s")),
    ]
    node = content.objects["Node", ObjectKey("", "a")]
    assert isinstance(node, Node)
    assert node.origin == Origin(PATH, 5)


def test_a_wrong_item_leaves_the_others_of_its_list() -> None:
    content = read_text(
        """
        apiVersion: v1
        kind: List
        items:
        - {apiVersion: v1, kind: Pod, metadata: {name: p}}
        - apiVersion: v1
          kind: Service
          metadata: {name: s}
          spec: {ports: [{port: 0}]}
        - apiVersion: v1
          kind: Node
          metadata: {name: node1, name: node2}
        - 5
        """
    )
    assert [(error.line, error.object, error.field) for error in content.errors] == [
        (8, "Service default/s", "spec.ports[0].port"),
        (11, "Node node1", "metadata.name"),
        (12, "List", "items[3]"),
    ]
    assert list(content.objects) == [("Pod", ObjectKey("default", "p"))]
    assert content.unnamed


UNNAMED = [
    ("just text\n", 1, "", "must be a Kubernetes object, is a string"),
    ("- a\n", 1, "", "must be a Kubernetes object, is a list"),
    ("replicas: 5\n", 1, "kind", "is missing"),
    ("apiVersion: v1\nkind: List\nitems: {}\n", 3, "items", "must be a list"),
    ("apiVersion: v1\nkind: List\nitem: []\n", 3, "item", "did you mean items?"),
    ("apiVersion: v2\nkind: ServiceList\nitems: []\n", 1, "apiVersion", "must be v1"),
    ("a: [\n", 2, "", "does not parse"),
]


@pytest.mark.parametrize(("text", "line", "field", "words"), UNNAMED)
def test_what_is_no_object(text: str, line: int, field: str, words: str) -> None:
    content = read_text(text)
    (error,) = content.errors
    assert (error.line, error.field) == (line, field)
    assert words in error.message
    assert content.unnamed


def test_a_list_within_a_list_is_refused() -> None:
    (error,) = read_text(
        "apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: List, items: []}\n"
    ).errors
    assert (error.line, error.field) == (4, "items[0]")
    assert "list within a list" in error.message


def test_the_first_of_two_definitions_in_a_file_counts() -> None:
    text = "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {nodeName: %s}\n"
    content = read_text(text % "one" + "---\n" + text % "two")
    (pod,) = content.objects.values()
    assert isinstance(pod, Pod)
    assert pod.node == "one"
    (error,) = content.errors
    assert str(error) == f"{PATH}:6: Pod default/a: is already defined in line 1; that one is used"


def test_lost_indentation_is_one_mistake() -> None:
    flat = "apiVersion: v1\nkind: Service\nmetadata:\nname: web\nlabels:\napp: web\nspec:\ntype: NodePort\n"
    (error,) = read_text(flat).errors
    assert (error.line, error.field) == (3, "metadata")
    assert error.message == (
        "is empty, and name, labels, app, … stand beside it; has the text lost its indentation?"
    )

    half = "apiVersion: v1\nkind: Service\nmetadata: {name: web}\nspec:\nports:\n- port: 80\n"
    content = read_text(half)
    words = "is empty, and ports stand beside it; has the text lost its indentation?"
    assert [str(error) for error in content.errors] == [f"{PATH}:4: Service default/web: spec: {words}"]
    assert content.broken == {("Service", ObjectKey("default", "web"))}
    assert not content.unnamed


def test_json() -> None:
    head = '{\n\t"apiVersion": "v1",\n\t"kind": "Service",\n\t"metadata": {"name": "a"},\n'
    text = head + '\t"spec": {"ports": [{"port": %s}]}\n}\n'
    assert len(objects(text % "80")) == 1
    (error,) = read_text(text % '"80"').errors
    assert (error.line, error.field) == (5, "spec.ports[0].port")
