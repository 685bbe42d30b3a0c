# SPDX-License-Identifier: Apache-2.0
"""What commands read from the Kubernetes API, once: the same as the agent's watches."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
import yaml

from lb.config import Config
from lb.diagnose.snapshot import ApiReader, Snapshot
from lb.errors import LbError
from lb.kube import access, client
from lb.manifests.documents import read
from lb.model import ObjectKey
from tests.kube import faults
from tests.kube.double import ApiDouble
from tests.kube.envtest import RBAC
from tests.kube.harness import client_of
from tests.kube.objects import NAMESPACE, NODE, endpoint, endpoint_slice, node, service
from tests.kube.test_rbac import rights

WEB = ObjectKey(NAMESPACE, "web")


@pytest.fixture
def reader(double: ApiDouble, monkeypatch: pytest.MonkeyPatch) -> ApiReader:
    monkeypatch.setattr(access, "in_cluster", lambda: None)
    monkeypatch.setattr(client, "Client", lambda _load: client_of(double))
    return ApiReader(Config(sources=("kubernetes",), node_name=NODE))


def test_the_state_is_what_the_agent_has(double: ApiDouble, reader: ApiReader) -> None:
    double.put(service())
    double.put(service("other", "10.96.0.99", labels={"service.kubernetes.io/service-proxy-name": "x"}))
    double.put(endpoint_slice("web-1", endpoint("10.244.1.2")))
    double.put(node())
    double.put(node("elsewhere", "192.0.2.12"))
    found = reader.snapshot()
    assert found.errors == []
    assert set(found.state.service_keys()) == {WEB}
    assert [len(one.endpoints) for one in found.state.slices(WEB)] == [1]
    assert found.state.node(NODE) is not None
    assert found.state.node("elsewhere") is None


def test_one_service_also_another_proxys(double: ApiDouble, reader: ApiReader) -> None:
    double.put(service("other", "10.96.0.99", labels={"service.kubernetes.io/service-proxy-name": "x"}))
    found = reader.service(ObjectKey(NAMESPACE, "other"))
    assert found is not None
    assert not found.proxied
    assert reader.service(ObjectKey(NAMESPACE, "none")) is None


MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {{name: web, namespace: shop}}
spec:
  selector: {selector}
  externalIPs: [203.0.113.9]
  ports: [{{name: http, port: 80, targetPort: {target}}}]
"""


def planned(double: ApiDouble, reader: ApiReader, selector: str, target: object = 8080) -> Snapshot:
    """Return what would be, of a Service that selects ``app: web`` at port 8080."""
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    double.put(service(selector={"app": "web"}, ports=ports))
    double.put(endpoint_slice("web-1", endpoint("10.244.1.2")))
    double.put(node())
    text = MANIFEST.format(selector=selector, target=target)
    content = read("web.yaml", text, range(30000, 32768))
    assert not content.errors
    return reader.merged(content)


def test_a_plan_that_leaves_the_slices_alone_needs_no_pods(double: ApiDouble, reader: ApiReader) -> None:
    double.fault("list", "pods", faults.answer(403, "Forbidden"))
    found = planned(double, reader, "{app: web}")
    web = found.state.service(WEB)
    assert web is not None
    assert web.external_ips == (ip_address("203.0.113.9"),)
    assert [len(one.endpoints) for one in found.state.slices(WEB)] == [1]
    assert double.asked("list", "pods") == []


@pytest.mark.parametrize(("selector", "target"), [("{app: other}", 8080), ("{app: web}", 9090)])
def test_a_plan_that_may_change_slices_names_the_right_that_it_lacks(
    selector: str, target: object, double: ApiDouble, reader: ApiReader
) -> None:
    double.fault("list", "pods", faults.answer(403, "Forbidden"))
    with pytest.raises(LbError) as caught:
        planned(double, reader, selector, target)
    assert str(caught.value) == (
        "no right to list pods in namespace shop (GET /api/v1/namespaces/shop/pods: 403 Forbidden on"
        " command); the ClusterRole lbctl-reader of deploy/reader-rbac.yaml gives it"
    )


DUAL = ("10.96.0.20", "fd00:96::20")
DUAL_MANIFEST = """\
apiVersion: v1
kind: Service
metadata: {name: dual, namespace: shop}
spec:
  selector: {app: dual}
  ports: [{name: http, port: 80, targetPort: 8080}]
"""


@pytest.mark.parametrize("primary", [0, 1])
@pytest.mark.parametrize(
    "families",
    [
        "",
        "  ipFamilyPolicy: PreferDualStack\n",
        "  ipFamilyPolicy: RequireDualStack\n  clusterIP: {first}\n",
        "  ipFamilyPolicy: PreferDualStack\n  clusterIP: '{first}'\n  clusterIPs: ['{first}', '{second}']\n",
    ],
)
def test_a_plan_leaves_a_service_its_ip_families(
    families: str, primary: int, double: ApiDouble, reader: ApiReader
) -> None:
    """Those of Services that the manifest does not have, and of one that it has."""
    addresses = [DUAL[primary], DUAL[1 - primary]]
    ports = [{"name": "http", "port": 80, "targetPort": 8080, "protocol": "TCP"}]
    double.put(service("dual", addresses[0], clusterIPs=addresses, selector={"app": "dual"}, ports=ports))
    double.put(service("six", "fd00:96::21"))
    double.put(endpoint_slice("dual-4", endpoint("10.244.1.2"), of="dual"))
    double.put({**endpoint_slice("dual-6", endpoint("fd00:244::2"), of="dual"), "addressType": "IPv6"})
    double.put(node())
    before = reader.snapshot().state
    text = DUAL_MANIFEST + families.format(first=addresses[0], second=addresses[1])
    content = read("dual.yaml", text, range(30000, 32768))
    assert not content.errors
    after = reader.merged(content)
    assert after.errors == []
    for key in (ObjectKey(NAMESPACE, "dual"), ObjectKey(NAMESPACE, "six")):
        was, will_be = before.service(key), after.state.service(key)
        assert was is not None
        assert will_be is not None
        assert will_be.cluster_ips == was.cluster_ips
        assert {one.key for one in after.state.slices(key)} == {one.key for one in before.slices(key)}


def test_rights_that_are_missing_for_a_list_of_all_are_named(double: ApiDouble, reader: ApiReader) -> None:
    double.fault("list", "endpointslices", faults.answer(403, "Forbidden"))
    with pytest.raises(LbError, match=r"^no right to list endpointslices \(GET .*lbctl-reader"):
        reader.snapshot()


def test_the_readers_role_allows_exactly_what_is_read(double: ApiDouble, reader: ApiReader) -> None:
    nobody = b'{"metadata": {"resourceVersion": "1000"}, "items": []}'
    double.fault("list", "pods", faults.garbage(nobody))
    planned(double, reader, "{app: other}")
    reader.service(WEB)
    (role,) = yaml.safe_load_all((RBAC.parents[1] / "reader-rbac.yaml").read_text())
    assert {(each.group, each.resource, each.verb) for each in double.requests} == rights(role)
