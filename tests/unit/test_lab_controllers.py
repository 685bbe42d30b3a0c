# SPDX-License-Identifier: Apache-2.0
"""What the lab does in place of kube-controller-manager: pure functions over API objects."""

from typing import Any

import msgspec
import pytest

from lb.errors import InputError
from lb.kube import convert
from lb.lab import controllers
from lb.lab.addressing import LabSpec
from lb.lab.api import (
    DEPLOYMENTS,
    ENDPOINTS,
    NODES,
    PODS,
    REPLICA_SETS,
    SERVICES,
    Object,
    Resource,
    key_of,
)
from lb.lab.controllers import Owner, SlicePlanner
from lb.lab.objects import node_object
from lb.lab.watch import Cache
from lb.model import ObjectKey, Upsert

TEMPLATE: Object = {
    "metadata": {"labels": {"app": "web"}, "annotations": {"note": "kept"}},
    "spec": {
        "containers": [
            {
                "name": "main",
                "image": "any",
                "ports": [{"name": "http", "containerPort": 8080, "protocol": "TCP"}],
            }
        ]
    },
}


def stored(kind: str, name: str, version: int = 1, **fields: Any) -> Object:
    meta = {"name": name, "namespace": "default", "uid": f"uid-{name}", "resourceVersion": str(version)}
    return {"kind": kind, "metadata": {**meta, **fields.pop("metadata", {})}, **fields}


def controller(kind: str = "ReplicaSet", replicas: int = 2, **fields: Any) -> Object:
    selector = {"matchLabels": {"app": "web"}}
    spec = {"replicas": replicas, "selector": selector, "template": TEMPLATE}
    return stored(kind, "web", spec=spec, **fields)


def pod(
    name: str, *, ready: bool = True, owner: str = "uid-web", address: str = "10.244.1.2", **meta: Any
) -> Object:
    reference = {
        "apiVersion": "apps/v1",
        "kind": "ReplicaSet",
        "name": "web",
        "uid": owner,
        "controller": True,
    }
    owners = {"ownerReferences": [reference]} if owner else {}
    conditions = [{"type": "Ready", "status": "True" if ready else "False"}]
    status = {"phase": "Running", "podIP": address, "podIPs": [{"ip": address}], "conditions": conditions}
    metadata = {"labels": {"app": "web"}, **owners, **meta}
    return stored(
        "Pod", name, metadata=metadata, spec={"nodeName": "node1", **TEMPLATE["spec"]}, status=status
    )


def cache(**known: list[Object]) -> Cache:
    resources = {each.name: each for each in (PODS, SERVICES, ENDPOINTS, NODES, REPLICA_SETS, DEPLOYMENTS)}
    made = Cache(list(resources.values()))
    for name, resource in resources.items():
        items: list[Any] = known.get(name, [])
        made.take(resource, list(map(Upsert, items)), 0)
    return made


def owned(item: Object, resource: Resource = REPLICA_SETS) -> dict[str, Owner]:
    errors: list[InputError] = []
    found = controllers.owners(cache(**{resource.name: [item]}), errors)
    assert errors == []
    return found


def test_pods_belong_to_the_very_owner() -> None:
    owners = owned(controller())
    dying = pod("c", deletionTimestamp="2020-01-15T10:20:58Z")
    done = {**pod("d"), "status": {"phase": "Failed"}}
    pods = [pod("a"), pod("b", owner="uid-former"), dying, done, pod("e", owner="")]
    found = {each.key.name: each.owner for each in controllers.placed(pods, owners)}
    assert found == {"a": ObjectKey("default", "web"), "b": ObjectKey("", "")}


def test_pods_of_an_earlier_template_are_a_deployments_no_longer() -> None:
    owners = owned(controller("Deployment"), DEPLOYMENTS)
    [owner] = owners.values()
    assert owner.workload is not None
    reference = [{**owner.reference, "uid": "uid-web"}]
    fresh = pod("fresh", labels=dict(owner.workload.labels), ownerReferences=reference)
    old = pod("old", labels={"app": "web", "pod-template-hash": "older"}, ownerReferences=reference)
    found = {each.key.name: each.owner.name for each in controllers.placed([fresh, old], owners)}
    assert found == {"fresh": owner.workload.key.name, "old": ""}


def test_pods_stay_when_the_lab_cannot_do_what_their_owner_asks() -> None:
    item = controller()
    container = {**TEMPLATE["spec"]["containers"][0], "readinessProbe": {"grpc": {"port": 9}}}
    item["spec"] = {**item["spec"], "template": {**TEMPLATE, "spec": {"containers": [container]}}}
    errors: list[InputError] = []
    owners = controllers.owners(cache(replicasets=[item]), errors)
    [error] = errors
    assert "ReplicaSet default/web" in str(error)
    assert "readinessProbe" in str(error)
    assert controllers.placed([pod("a")], owners) == []


def test_a_pod_is_made_from_the_template() -> None:
    [owner] = owned(controller()).values()
    made = controllers.pod_of(owner, ObjectKey("default", "web-x"), "node2")
    assert made["spec"] == {**TEMPLATE["spec"], "nodeName": "node2"}
    assert (made["metadata"]["labels"], made["metadata"]["annotations"]) == ({"app": "web"}, {"note": "kept"})
    assert controllers.controller_of(made) == ("ReplicaSet", "uid-web")
    assert controllers.workload_of(made, "v1", "Pod").containers == ("main",)


def test_status_counts_pods_and_says_when_there_is_enough() -> None:
    item = controller(metadata={"generation": 3})
    [owner] = owned(item).values()
    status = controllers.owner_status(owner, [pod("a"), pod("b", ready=False), pod("c", owner="uid-other")])
    assert (status["replicas"], status["readyReplicas"], status["observedGeneration"]) == (2, 1, 3)
    assert controllers.differs(status, item)
    assert not controllers.differs(status, {**item, "status": status})
    assert not controllers.satisfied({**item, "status": status})
    full = controllers.owner_status(owner, [pod("a"), pod("b")])
    assert controllers.satisfied({**item, "status": full})
    assert not controllers.satisfied({**item, "status": {**full, "observedGeneration": 2}})
    assert controllers.satisfied(controller(replicas=0))


def service(**spec: Any) -> Object:
    ports = [{"name": "http", "port": 80, "protocol": "TCP", "targetPort": "http"}]
    labels = {"labels": {"team": "shop"}}
    whole = {
        "type": "ClusterIP",
        "clusterIP": "10.66.0.9",
        "clusterIPs": ["10.66.0.9"],
        "ports": ports,
        **spec,
    }
    return stored("Service", "web", metadata=labels, spec=whole)


def plan(**known: list[Object]) -> dict[ObjectKey, Object]:
    errors: list[InputError] = []
    found = SlicePlanner().plan(cache(**known), errors)
    assert errors == []
    return found


def test_slices_are_what_the_agents_read() -> None:
    node = node_object(LabSpec("lab", "/m"), "node1", "2020-01-15T10:20:58Z")
    node["metadata"] |= {"uid": "n", "resourceVersion": "1"}
    made = plan(
        services=[service(selector={"app": "web"})],
        pods=[pod("a"), pod("b", ready=False, address="10.244.1.3")],
        nodes=[node],
    )
    [item] = made.values()
    labels = item["metadata"]["labels"]
    assert labels["kubernetes.io/service-name"] == "web"
    assert labels["team"] == "shop"
    assert item["metadata"]["ownerReferences"][0]["uid"] == "uid-web"
    read = convert.ENDPOINT_SLICES.read(msgspec.json.encode(item)).resource
    assert read is not None
    assert read.service == ObjectKey("default", "web")
    assert [(port.name, port.port) for port in read.ports] == [("http", 8080)]
    found = [(str(each.address), each.ready, each.node, each.zone) for each in read.endpoints]
    assert found == [
        ("10.244.1.2", True, "node1", "zone-a"),
        ("10.244.1.3", False, "node1", "zone-a"),
    ]
    assert [each["targetRef"]["name"] for each in item["endpoints"]] == ["a", "b"]


DUAL = {"clusterIPs": ["10.66.0.9", "fd00:66::9"], "ipFamilies": ["IPv4", "IPv6"]}


def dual_pod(name: str, host: int) -> Object:
    item = pod(name, address=f"10.244.1.{host}")
    item["status"]["podIPs"].append({"ip": f"fd00:244:0:1::{host}"})
    return item


def test_dual_stack_services_have_a_slice_of_each_family() -> None:
    pods = [dual_pod("a", 2), pod("b", address="10.244.1.3")]
    made = plan(services=[service(selector={"app": "web"}, **DUAL)], pods=pods)
    found = {item["addressType"]: [each["addresses"] for each in item["endpoints"]] for item in made.values()}
    assert found == {"IPv4": [["10.244.1.2"], ["10.244.1.3"]], "IPv6": [["fd00:244:0:1::2"]]}


def test_the_families_of_a_headless_service_are_those_it_names() -> None:
    headless = {"clusterIP": "None", "clusterIPs": ["None"]}
    made = plan(
        services=[service(selector={"app": "web"}, **headless, ipFamilies=["IPv6"])], pods=[dual_pod("a", 2)]
    )
    assert [item["addressType"] for item in made.values()] == ["IPv6"]


@pytest.mark.parametrize(
    ("distribution", "hints"),
    [
        (None, None),
        ("PreferClose", {"forZones": [{"name": "zone-a"}]}),
        ("PreferSameZone", {"forZones": [{"name": "zone-a"}]}),
        ("PreferSameNode", {"forZones": [{"name": "zone-a"}], "forNodes": [{"name": "node1"}]}),
    ],
)
def test_topology_hints_are_what_the_traffic_distribution_asks_for(
    distribution: str | None, hints: Object | None
) -> None:
    node = node_object(LabSpec("lab", "/m"), "node1", "2020-01-15T10:20:58Z")
    node["metadata"] |= {"uid": "n", "resourceVersion": "1"}
    wanted = {} if distribution is None else {"trafficDistribution": distribution}
    [item] = plan(
        services=[service(selector={"app": "web"}, **wanted)],
        pods=[pod("a"), pod("b", ready=False, address="10.244.1.3")],
        nodes=[node],
    ).values()
    assert [each.get("hints") for each in item["endpoints"]] == [hints, None]
    read = convert.ENDPOINT_SLICES.read(msgspec.json.encode(item)).resource
    assert read is not None
    assert read.endpoints[0].hint_zones == (frozenset({"zone-a"}) if hints else frozenset())


def test_endpoints_are_mirrored_and_headless_services_marked() -> None:
    hand_made = stored(
        "Endpoints",
        "web",
        subsets=[
            {"addresses": [{"ip": "192.0.2.9"}], "ports": [{"name": "http", "port": 80, "protocol": "TCP"}]}
        ],
    )
    [mirror] = plan(services=[service()], endpoints=[hand_made]).values()
    assert mirror["endpoints"][0]["addresses"] == ["192.0.2.9"]
    headless = service(selector={"app": "web"}, clusterIP="None", clusterIPs=["None"])
    [item] = plan(services=[headless], pods=[pod("a")]).values()
    assert item["metadata"]["labels"]["service.kubernetes.io/headless"] == ""


def test_an_object_is_read_again_only_when_it_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[ObjectKey] = []
    original = controllers._model

    def counted(resource: Resource, item: Object) -> Any:
        read.append(key_of(item))
        return original(resource, item)

    monkeypatch.setattr(controllers, "_model", counted)
    planner = SlicePlanner()
    known = cache(services=[service(selector={"app": "web"})], pods=[pod("a"), pod("b")])
    planner.plan(known, [])
    assert len(read) == 3
    known.put(PODS, {**pod("b", ready=False), "metadata": {**pod("b")["metadata"], "resourceVersion": "2"}})
    [item] = planner.plan(known, []).values()
    assert len(read) == 4
    assert [each["conditions"]["ready"] for each in item["endpoints"]] == [True, False]


def test_a_pod_that_cannot_be_read_costs_no_other() -> None:
    errors: list[InputError] = []
    broken = pod("b", address="nonsense")
    known = cache(services=[service(selector={"app": "web"})], pods=[pod("a"), broken])
    [item] = SlicePlanner().plan(known, errors).values()
    assert [each["addresses"] for each in item["endpoints"]] == [["10.244.1.2"]]
    [error] = errors
    assert "Pod default/b" in str(error)
