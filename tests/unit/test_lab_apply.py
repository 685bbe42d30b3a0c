# SPDX-License-Identifier: Apache-2.0
"""Applying manifests, over a real socket, to a double of the API server."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from lb.kube.client import ApiError
from lb.lab.api import PODS, SERVICES, Api, GoneError, gone
from lb.lab.apply import apply, make_namespace, read
from lb.model import ObjectKey
from tests.cluster_double import ClusterDouble
from tests.kube.faults import answer
from tests.kube.harness import client_of

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {{name: {name}}}
spec: {{ports: [{{port: 80}}]{more}}}
"""


@pytest.fixture
def double(monkeypatch: pytest.MonkeyPatch) -> Iterator[ClusterDouble]:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    server = ClusterDouble()
    with server:
        make_namespace(Api(client_of(server)), "default")
        yield server


@pytest.fixture
def api(double: ClusterDouble) -> Api:
    return Api(client_of(double), patience=20)


def test_the_examples_are_applied_whole(double: ClusterDouble, api: Api) -> None:
    assert apply(api, EXAMPLES, None) == []
    assert apply(api, EXAMPLES, None) == [], "again"
    services = double.objects["services"]
    assert services["default", "kubia"]["spec"]["clusterIP"] == "10.66.13.240"
    assert services["default", "kubia-loadbalancer"]["spec"]["type"] == "LoadBalancer"
    assert double.objects["endpoints"]["default", "external-service"]["subsets"]
    assert double.objects["replicasets"]["default", "kubia"]["spec"]["replicas"] == 3


def test_replicas_can_be_replaced(double: ClusterDouble, api: Api) -> None:
    assert apply(api, EXAMPLES, 7) == []
    assert double.objects["replicasets"]["default", "kubia"]["spec"]["replicas"] == 7


def test_namespaces_come_first_and_unnamed_addresses_last(
    double: ClusterDouble, api: Api, tmp_path: Path
) -> None:
    (tmp_path / "a.yaml").write_text(
        SERVICE.format(name="open", more="")
        + "---\n"
        + SERVICE.format(name="named", more=", clusterIP: 10.66.0.1")
    )
    (tmp_path / "b.yaml").write_text(SERVICE.format(name="there, namespace: shop", more=""))
    assert apply(api, tmp_path, None) == []
    services = double.objects["services"]
    assert services["default", "named"]["spec"]["clusterIP"] == "10.66.0.1"
    assert services["default", "open"]["spec"]["clusterIP"] != "10.66.0.1"
    assert ("shop", "there") in services


def test_what_is_wrong_is_reported_and_the_rest_is_applied(
    double: ClusterDouble, api: Api, tmp_path: Path
) -> None:
    shutil.copy(EXAMPLES / "kubia-service.yaml", tmp_path)
    (tmp_path / "broken.yaml").write_text("kind: Service\nmetadata: [\n")
    (tmp_path / "nameless.yaml").write_text("apiVersion: v1\nkind: Service\nmetadata: {}\n")
    (tmp_path / "nothing.yaml").write_text("- 1\n")
    (tmp_path / "old.yaml").write_text(
        "apiVersion: extensions/v1beta1\nkind: ReplicaSet\nmetadata: {name: old}\n"
    )
    (tmp_path / "refused.yaml").write_text(SERVICE.format(name="far", more=", clusterIP: 192.0.2.1"))
    (tmp_path / "ignored.txt").write_text("kind: [")
    errors = {Path(error.path).name: error for error in apply(api, tmp_path, None)}
    assert errors.keys() == {"broken.yaml", "nameless.yaml", "nothing.yaml", "old.yaml", "refused.yaml"}
    assert errors["broken.yaml"].line == 3
    assert (errors["nameless.yaml"].field, errors["nameless.yaml"].object) == ("metadata.name", "Service")
    assert "no Kubernetes object" in errors["nothing.yaml"].message
    assert errors["old.yaml"].message == "the API server has no ReplicaSet in extensions/v1beta1"
    assert errors["refused.yaml"].object == "Service default/far"
    assert "192.0.2.1" in errors["refused.yaml"].message
    assert ("default", "kubia") in double.objects["services"]


def test_lists_are_taken_apart(tmp_path: Path) -> None:
    items = "".join(f"- {{apiVersion: v1, kind: Service, metadata: {{name: {name}}}}}\n" for name in "ab")
    (tmp_path / "list.yaml").write_text(f"apiVersion: v1\nkind: List\nitems:\n{items}")
    objects, errors = read(tmp_path)
    assert ([item["metadata"]["name"] for _, item in objects], errors) == (["a", "b"], [])


def test_an_ingress_of_v1beta1_is_applied_as_v1(double: ClusterDouble, api: Api, tmp_path: Path) -> None:
    backend = "{serviceName: web, servicePort: 80}"
    (tmp_path / "old.yaml").write_text(
        "apiVersion: extensions/v1beta1\nkind: Ingress\nmetadata: {name: web}\n"
        f"spec: {{rules: [{{http: {{paths: [{{backend: {backend}}}]}}}}]}}\n"
    )
    [warning] = apply(api, tmp_path, None)
    assert str(warning).startswith(f"warning: {tmp_path / 'old.yaml'}: Ingress default/web: apiVersion: ")
    [path] = double.objects["ingresses"]["default", "web"]["spec"]["rules"][0]["http"]["paths"]
    assert path["backend"] == {"service": {"name": "web", "port": {"number": 80}}}
    assert path["pathType"] == "ImplementationSpecific"


def test_a_server_that_has_just_begun_is_asked_again(double: ClusterDouble, api: Api) -> None:
    double.fault("create", "services", answer(500), times=2)
    double.fault("create", "services", answer(429), times=1)
    assert apply(api, EXAMPLES, None) == []
    assert len(double.objects["services"]) == len(list(EXAMPLES.glob("*.yaml"))) - 2  # ReplicaSet, Ingress


def test_a_status_is_only_that_of_the_object_that_is_meant(double: ClusterDouble, api: Api) -> None:
    assert apply(api, EXAMPLES, None) == []
    key = ObjectKey("default", "kubia")
    for what, place, uid in ((SERVICES, key, "another"), (PODS, key, "any")):
        with pytest.raises(GoneError), gone():
            api.patch_status(what, place, uid, {})
    uid = double.objects["services"]["default", "kubia"]["metadata"]["uid"]
    with pytest.raises(ApiError, match="loadBalancer"), gone():
        api.patch_status(SERVICES, key, uid, {"loadBalancer": []})


def test_a_manifest_may_say_what_server_side_apply_refuses(
    double: ClusterDouble, api: Api, tmp_path: Path
) -> None:
    """As kubectl, which creates: two variables of one name; two addresses of one type in a status."""
    (tmp_path / "a.yaml").write_text(
        "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: a,"
        " env: [{name: A, value: a}, {name: A, value: b}]}]}}\n---\n"
        "{apiVersion: v1, kind: Node, metadata: {name: far}, status: {addresses: ["
        "{type: InternalIP, address: 192.0.2.1}, {type: InternalIP, address: '2001:db8::1'}]}}\n"
    )
    assert apply(api, tmp_path, None) == []
    assert len(double.objects["nodes"]["", "far"]["status"]["addresses"]) == 2
    assert ("default", "a") in double.objects["pods"]
