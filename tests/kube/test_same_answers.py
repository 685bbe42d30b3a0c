# SPDX-License-Identifier: Apache-2.0
"""The same requests to the double and, where there is one, to a real API server: both must answer the same.

What is asserted here is what a kube-apiserver 1.36 does. What the server refuses the double refuses too, so
code that sends it fails in the tests, also where there is no server.
"""

from __future__ import annotations

import pytest

from tests.kube.registry import APPLY, STRATEGIC
from tests.kube.rules import Object
from tests.kube.same import (
    NAMESPACE,
    NAMESPACES,
    NODES,
    PODS,
    REPLICA_SETS,
    SERVICES,
    SLICES,
    Server,
    fresh,
    node,
    object_of,
    piece,
    pod,
    replica_set,
    service,
)

# lists with keys

BOTH = [{"type": "InternalIP", "address": "192.0.2.1"}, {"type": "InternalIP", "address": "2001:db8::1"}]


def test_two_addresses_of_a_node_are_no_server_side_apply_but_a_merge_patch(server: Server) -> None:
    name = fresh("node")
    made = server.ask("POST", NODES, node(name))
    assert made.code == 201
    refused = server.apply(f"{NODES}/{name}/status", node(name, status={"addresses": BOTH}))
    assert refused.code == 500
    assert 'duplicate entries for key [type="InternalIP"]' in refused.body["message"]
    taken = server.merge(f"{NODES}/{name}/status", {"status": {"addresses": BOTH}})
    assert (taken.code, taken.body["status"]["addresses"]) == (200, BOTH)
    same = server.merge(f"{NODES}/{name}/status", {"status": {"addresses": BOTH[:1] * 2}})
    assert (same.code, same.fields) == (422, {"status.addresses[1]"})


def test_create_takes_what_apply_refuses(server: Server) -> None:
    variables = [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]
    twice = [{"name": "main", "image": "any", "env": variables}]
    name = fresh("pod")
    refused = server.apply(f"{PODS}/{name}", pod(name, containers=twice))
    assert refused.code == 500
    taken = server.ask("POST", PODS, pod(name, containers=twice))
    assert taken.code == 201


def test_apply_merges_ports_by_number_and_protocol(server: Server) -> None:
    name = fresh()
    path = f"{SERVICES}/{name}"
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 80, "protocol": "UDP"}]
    assert server.apply(path, service(name, ports=ports)).code == 201
    more = [{"name": "c", "port": 81, "targetPort": "named"}]
    other = server.ask("PATCH", path, service(name, ports=more), APPLY, fieldManager="other", force="true")
    assert other.code == 200
    seen = {(each["name"], each["port"], each["protocol"]) for each in other.body["spec"]["ports"]}
    assert seen == {("a", 80, "TCP"), ("b", 80, "UDP"), ("c", 81, "TCP")}
    less = server.apply(path, service(name, ports=ports[:1]))
    assert {each["name"] for each in less.body["spec"]["ports"]} == {"a", "c"}


def test_apply_takes_away_what_its_manager_applies_no_more(server: Server) -> None:
    name = fresh()
    path = f"{SERVICES}/{name}"
    item = service(name, selector={"app": "a"}, sessionAffinity="ClientIP")
    item["metadata"]["labels"] = {"mine": "1", "shared": "1"}
    assert server.apply(path, item).code == 201
    server.merge(path, {"metadata": {"labels": {"theirs": "1"}}})
    item["metadata"]["labels"] = {"shared": "1"}
    del item["spec"]["sessionAffinity"]
    left = server.apply(path, item)
    assert left.meta["labels"] == {"shared": "1", "theirs": "1"}
    assert left.body["spec"]["sessionAffinity"] == "None"


def test_atomic_lists_are_replaced(server: Server) -> None:
    name = fresh()
    path = f"{SLICES}/{name}"
    assert server.apply(path, piece(name)).code == 201
    more: Object = {"conditions": {}, "hints": {"forZones": [{"name": "z"}]}}
    ends = [{"addresses": ["10.244.1.3"], "conditions": {}}, {"addresses": ["10.244.1.4"], **more}]
    assert server.apply(path, piece(name, endpoints=ends)).body["endpoints"] == ends
    assert server.apply(path, piece(name, endpoints=ends[:1])).body["endpoints"] == ends[:1]


def test_apply_wants_a_manager(server: Server) -> None:
    name = fresh()
    refused = server.ask("PATCH", f"{SERVICES}/{name}", service(name), APPLY)
    assert (refused.code, refused.reason) == (422, "Invalid")


# fields


def test_unknown_fields_are_dropped_unless_the_request_is_strict(server: Server) -> None:
    item = service(fresh(), prots=[])
    item["spec"]["ports"][0]["portt"] = 1
    refused = server.ask("POST", SERVICES, item, fieldValidation="Strict")
    assert (refused.code, refused.reason) == (400, "BadRequest")
    assert 'unknown field "spec.ports[0].portt"' in refused.body["message"]
    assert 'unknown field "spec.prots"' in refused.body["message"]
    made = server.ask("POST", SERVICES, item)
    assert made.code == 201
    assert "prots" not in made.body["spec"]
    assert "portt" not in made.body["spec"]["ports"][0]
    merged = server.merge(f"{SERVICES}/{item['metadata']['name']}", {"spec": {"other": 1}})
    assert merged.code == 200
    assert "other" not in merged.body["spec"]


def test_apply_refuses_unknown_fields(server: Server) -> None:
    name = fresh()
    refused = server.apply(f"{SERVICES}/{name}", service(name, prots=[]))
    assert refused.code == 500
    assert ".spec.prots: field not declared in schema" in refused.body["message"]
    assert server.apply(f"{SERVICES}/{name}", service(name, ports="80")).code == 500


@pytest.mark.parametrize("spec", [{"ports": "80"}, {"ports": [{"port": "80"}]}, {"selector": {"app": 1}}])
def test_a_value_of_a_wrong_type_is_a_bad_request(server: Server, spec: Object) -> None:
    item = service(fresh(), **spec)
    refused = server.ask("POST", SERVICES, item)
    assert (refused.code, refused.reason) == (400, "BadRequest")


@pytest.mark.parametrize(
    ("item", "fields"),
    [
        (service("none", ports=[]), {"spec.ports"}),
        (service("two", ports=[{"port": 80}, {"port": 81}]), {"spec.ports[0].name", "spec.ports[1].name"}),
        (service("zero", ports=[{"name": "a"}]), {"spec.ports[0].port"}),
        (service("odd", ports=[{"port": 80, "protocol": "ICMP"}]), {"spec.ports[0].protocol"}),
        (service("Upper"), {"metadata.name"}),
        (service("far", clusterIP="192.0.2.1"), {"spec.clusterIPs"}),
        (service("high", type="NodePort", ports=[{"port": 80, "nodePort": 80}]), {"spec.ports[0].nodePort"}),
        (service("both", ipFamilies=["IPv4", "IPv6"]), {"spec.ipFamilyPolicy"}),
    ],
    ids=lambda value: value["metadata"]["name"] if isinstance(value, dict) else "",
)
def test_services_that_are_refused(server: Server, item: Object, fields: set[str]) -> None:
    refused = server.ask("POST", SERVICES, item)
    assert (refused.code, refused.reason) == (422, "Invalid")
    assert refused.fields & fields, refused.body


@pytest.mark.parametrize(
    ("path", "item", "field"),
    [
        (PODS, object_of("Pod", "bare", spec={}), "spec.containers"),
        (PODS, pod("nameless", containers=[{"image": "any"}]), "spec.containers[0].name"),
        (SLICES, piece("kind", addressType=None), "addressType"),
        (SLICES, piece("six", endpoints=[{"addresses": ["fd00::1"]}]), "endpoints[0].addresses"),
        (SLICES, piece("empty", endpoints=[{}]), "endpoints[0].addresses"),
        (SLICES, piece("same", ports=[{"port": 1}, {"port": 2}]), "ports[1].name"),
        (REPLICA_SETS, {**replica_set("open"), "spec": {}}, "spec.selector"),
        (PODS, pod("owned", {"ownerReferences": [{"kind": "A", "name": "x"}]}), "metadata.ownerReferences"),
    ],
    ids=lambda value: value["metadata"]["name"] if isinstance(value, dict) else "",
)
def test_other_objects_that_are_refused(server: Server, path: str, item: Object, field: str) -> None:
    refused = server.ask("POST", path, item)
    assert (refused.code, refused.reason) == (422, "Invalid")
    assert any(each.startswith(field) for each in refused.fields), refused.body


def test_what_the_status_lacks_is_not_missed(server: Server) -> None:
    name = fresh("pod")
    server.ask("POST", PODS, pod(name))
    status = {"phase": "Running", "containerStatuses": [{"name": "main"}], "podIP": "10.244.1.2"}
    taken = server.merge(f"{PODS}/{name}/status", {"status": {**status, "podIPs": [{"ip": "10.244.1.2"}]}})
    assert (taken.code, taken.body["status"]["phase"]) == (200, "Running")
    kept = server.merge(f"{PODS}/{name}/status", {"status": {"podIPs": [{"ip": "10.244.1.9"}]}})
    assert kept.body["status"]["podIPs"] == [{"ip": "10.244.1.2"}]


# identity, versions, generations


def test_metadata_of_the_server_is_the_servers(server: Server) -> None:
    item = service(fresh())
    item["metadata"] |= {"uid": "mine", "generation": 9, "creationTimestamp": "2001-01-01T00:00:00Z"}
    made = server.ask("POST", SERVICES, item)
    assert made.code == 201
    assert made.meta["uid"] != "mine"
    assert not made.meta["creationTimestamp"].startswith("2001")
    assert made.meta["namespace"] == NAMESPACE
    assert server.ask("POST", SERVICES, item).reason == "AlreadyExists"
    item["metadata"] = {"name": fresh(), "resourceVersion": "1"}
    assert server.ask("POST", SERVICES, item).code == 500


def test_names_are_made_from_a_prefix(server: Server) -> None:
    item = pod("")
    item["metadata"] = {"generateName": "made-"}
    name = server.ask("POST", PODS, item).meta["name"]
    assert name.startswith("made-")
    assert len(name) > 5


def test_an_old_version_or_another_uid_is_a_conflict(server: Server) -> None:
    path = f"{SERVICES}/{(name := fresh())}"
    old = server.ask("POST", SERVICES, service(name)).body
    version = {"resourceVersion": old["metadata"]["resourceVersion"]}
    assert server.merge(path, {"metadata": {"labels": {"a": "b"}}}).code == 200
    for refused in (
        server.ask("PUT", path, old),
        server.merge(path, {"metadata": {**version, "labels": {"c": "d"}}}),
        server.ask("DELETE", path, {"preconditions": {"uid": "another"}}),
        server.ask("DELETE", path, {"preconditions": version}),
    ):
        assert (refused.code, refused.reason) == (409, "Conflict")
    refused = server.merge(path, {"metadata": {"uid": "another", "labels": {"e": "f"}}})
    assert (refused.code, refused.fields) == (422, {"metadata.uid"})
    del old["metadata"]["resourceVersion"]
    assert server.ask("PUT", path, old).code == 200


def test_names_and_kinds_must_fit_the_path(server: Server) -> None:
    path = f"{SERVICES}/{(name := fresh())}"
    server.ask("POST", SERVICES, service(name))
    for refused in (
        server.ask("PUT", path, service("another")),
        server.ask("POST", SERVICES, pod("p")),
        server.ask("POST", SERVICES, service("a") | {"metadata": {"name": "a", "namespace": "other"}}),
    ):
        assert (refused.code, refused.reason) == (400, "BadRequest")
    for answer in (
        server.ask("GET", f"{SERVICES}/nobody"),
        server.merge(f"{SERVICES}/nobody", {}),
        server.ask("DELETE", f"{SERVICES}/nobody"),
        server.ask("POST", "/api/v1/namespaces/nowhere/services", service("a")),
        server.apply("/api/v1/namespaces/nowhere/services/a", service("a")),
        server.apply(f"{NODES}/nobody/status", node("nobody")),
        server.ask("PUT", f"{NODES}/nobody", node("nobody")),
        server.ask("PUT", f"{SLICES}/nobody", piece("nobody")),
        server.merge(f"{SLICES}/{name}/status", {}),
    ):
        assert (answer.code, answer.reason) == (404, "NotFound"), answer
    name = fresh()
    assert server.ask("PUT", f"{SERVICES}/{name}", service(name)).code == 201


def test_a_change_of_nothing_changes_no_version(server: Server) -> None:
    path = f"{SERVICES}/{(name := fresh())}"
    made = server.ask("POST", SERVICES, service(name, selector={"a": "b"}))
    for same in (
        server.merge(path, {"spec": {"selector": {"a": "b"}}}),
        server.ask("PUT", path, made.body),
        server.merge(f"{path}/status", {"status": {"loadBalancer": {}}}),
    ):
        assert (same.code, same.meta["resourceVersion"]) == (200, made.meta["resourceVersion"])


@pytest.mark.parametrize(
    ("path", "item", "change", "counted"),
    [
        (REPLICA_SETS, replica_set("counted"), {"spec": {"replicas": 3}}, True),
        (SLICES, piece("counted"), {"endpoints": []}, True),
        (PODS, pod("counted"), {"spec": {"terminationGracePeriodSeconds": 1}}, None),
        (SERVICES, service("counted"), {"spec": {"selector": {"a": "b"}}}, False),
        (NODES, node("counted"), {"spec": {"unschedulable": True}}, False),
    ],
    ids=["ReplicaSet", "EndpointSlice", "Pod", "Service", "Node"],
)
def test_generations(server: Server, path: str, item: Object, change: Object, counted: bool | None) -> None:
    """Which kinds count, and that labels count where there is no spec."""
    made = server.ask("POST", path, item)
    assert made.code == 201
    place = f"{path}/{item['metadata']['name']}"
    labelled = server.merge(place, {"metadata": {"labels": {"a": "b"}}})
    generations = [each.meta.get("generation", 0) for each in (made, labelled)]
    if counted is not None:
        generations.append(server.merge(place, change).meta.get("generation", 0))
    wanted = {True: [1, 1, 2], False: [0, 0, 0], None: [1, 1]}[counted]
    assert generations == ([1, 2, 3] if path == SLICES else wanted)


# status


def test_the_status_is_a_subresource(server: Server) -> None:
    name = fresh()
    path, ingress = f"{SERVICES}/{name}", {"loadBalancer": {"ingress": [{"ip": "192.0.2.9"}]}}
    made = server.ask("POST", SERVICES, service(name, type="LoadBalancer") | {"status": ingress})
    assert made.body["status"] == {"loadBalancer": {}}
    assert server.merge(path, {"status": ingress}).body["status"] == {"loadBalancer": {}}
    both = server.merge(f"{path}/status", {"status": ingress, "spec": {"selector": {"a": "b"}}})
    assert both.body["status"]["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.9"
    assert "selector" not in both.body["spec"]
    kept = server.merge(path, {"spec": {"selector": {"a": "b"}}})
    assert kept.body["status"]["loadBalancer"]["ingress"][0]["ip"] == "192.0.2.9"


# Services


def test_addresses_and_node_ports_are_given_and_kept(server: Server) -> None:
    path = f"{SERVICES}/{(name := fresh())}"
    item = service(name, type="NodePort", ipFamilyPolicy="PreferDualStack")
    made = server.ask("POST", SERVICES, item).body["spec"]
    assert len(made["clusterIPs"]) == 2
    assert made["ipFamilies"] == ["IPv4", "IPv6"]
    port = made["ports"][0]["nodePort"]
    assert 30000 <= port < 32768
    again = server.merge(path, {"spec": {"ports": [{"port": 80, "targetPort": 8080}]}}).body["spec"]
    assert (again["clusterIPs"], again["ports"][0]["nodePort"]) == (made["clusterIPs"], port)
    same = service(fresh(), type="NodePort", ports=[{"port": 80, "nodePort": port}])
    taken = server.ask("POST", SERVICES, same)
    assert (taken.code, taken.fields) == (422, {"spec.ports[0].nodePort"})
    udp = {"name": "udp", "port": 80, "nodePort": port, "protocol": "UDP"}
    assert server.ask("POST", SERVICES, service(fresh(), type="NodePort", ports=[udp])).code == 422
    tcp = {"name": "tcp", "port": 80, "nodePort": port, "protocol": "TCP"}
    assert server.merge(path, {"spec": {"ports": [tcp, udp]}}).code == 200
    inside = server.merge(path, {"spec": {"type": "ClusterIP"}}).body["spec"]
    assert "nodePort" not in inside["ports"][0]
    moved = server.merge(path, {"spec": {"clusterIP": "10.96.9.9", "clusterIPs": ["10.96.9.9"]}})
    assert (moved.code, moved.reason) == (422, "Invalid")


def test_a_load_balancer_has_node_ports_and_a_health_check_port(server: Server) -> None:
    made = server.ask("POST", SERVICES, service(fresh(), type="LoadBalancer", externalTrafficPolicy="Local"))
    spec = made.body["spec"]
    assert spec["healthCheckNodePort"] >= 30000
    assert spec["ports"][0]["nodePort"] >= 30000
    assert spec["allocateLoadBalancerNodePorts"] is True
    bare = service(fresh(), type="LoadBalancer", allocateLoadBalancerNodePorts=False)
    assert "nodePort" not in server.ask("POST", SERVICES, bare).body["spec"]["ports"][0]


# deletion


def test_a_finalizer_holds_an_object_until_it_is_taken_away(server: Server) -> None:
    name = fresh()
    path, item = f"{SERVICES}/{name}", service(name)
    item["metadata"]["finalizers"] = ["lbctl.test/hold"]
    made = server.ask("POST", SERVICES, item)
    dying = server.ask("DELETE", path)
    assert (dying.code, dying.body["kind"]) == (200, "Service")
    assert dying.meta["deletionTimestamp"]
    assert dying.meta["deletionGracePeriodSeconds"] == 0
    assert dying.meta["resourceVersion"] != made.meta["resourceVersion"]
    refused = server.merge(path, {"metadata": {"finalizers": ["lbctl.test/hold", "lbctl.test/more"]}})
    assert (refused.code, refused.reason) == (422, "Invalid")
    assert server.ask("POST", SERVICES, item).reason == "AlreadyExists"
    assert server.merge(path, {"metadata": {"deletionTimestamp": None}}).meta["deletionTimestamp"]
    assert server.merge(path, {"metadata": {"finalizers": None}}).code == 200
    assert server.ask("GET", path).code == 404


def test_what_nothing_holds_is_gone_at_once(server: Server) -> None:
    path = f"{SLICES}/{(name := fresh())}"
    uid = server.ask("POST", SLICES, piece(name)).meta["uid"]
    gone = server.ask("DELETE", path, {"preconditions": {"uid": uid}})
    assert (gone.code, gone.body["status"]) == (200, "Success")
    assert gone.body["details"]["uid"] == uid
    assert server.ask("GET", path).code == 404
    server.ask("POST", SERVICES, service(name))
    assert server.ask("DELETE", f"{SERVICES}/{name}").body["kind"] == "Service"


@pytest.mark.parametrize(
    ("policy", "finalizers"),
    [("Foreground", ["foregroundDeletion"]), ("Orphan", ["orphan"]), ("Background", None)],
)
def test_a_propagation_policy_waits_for_the_collector(
    server: Server, policy: str, finalizers: list[str] | None
) -> None:
    path = f"{REPLICA_SETS}/{(name := fresh())}"
    server.ask("POST", REPLICA_SETS, replica_set(name))
    server.ask("DELETE", path, {"propagationPolicy": policy})
    left = server.ask("GET", path)
    if finalizers is None:
        assert left.code == 404
    else:
        assert left.meta["finalizers"] == finalizers
        assert left.meta["deletionTimestamp"]
        assert left.meta["generation"] == 2


def test_a_pod_on_a_node_ends_in_time(server: Server) -> None:
    path = f"{PODS}/{(name := fresh('pod'))}"
    server.ask("POST", PODS, pod(name, nodeName="somewhere", terminationGracePeriodSeconds=60))
    dying = server.ask("DELETE", path)
    assert (dying.code, dying.meta["deletionGracePeriodSeconds"]) == (200, 60)
    again = server.ask("DELETE", path)
    assert again.meta["deletionTimestamp"] == dying.meta["deletionTimestamp"]
    assert server.ask("DELETE", path, {"gracePeriodSeconds": 5}).meta["deletionGracePeriodSeconds"] == 5
    assert server.ask("DELETE", path, {"gracePeriodSeconds": 0}).code == 200
    assert server.ask("GET", path).code == 404


def test_a_pod_without_a_node_is_gone_at_once(server: Server) -> None:
    path = f"{PODS}/{(name := fresh('pod'))}"
    server.ask("POST", PODS, pod(name))
    gone = server.ask("DELETE", path)
    assert (gone.code, gone.body["kind"]) == (200, "Pod")
    assert server.ask("GET", path).code == 404


def test_a_collection_is_deleted_by_its_labels(server: Server) -> None:
    for label in ("a", "b", "a"):
        item = service(fresh())
        item["metadata"]["labels"] = {"group": label}
        server.ask("POST", SERVICES, item)
    gone = server.ask("DELETE", SERVICES, labelSelector="group%3Da")
    assert (gone.code, gone.body["kind"], len(gone.body["items"])) == (200, "ServiceList", 2)
    left = server.ask("GET", SERVICES, labelSelector="group").body["items"]
    assert [each["metadata"]["labels"]["group"] for each in left] == ["b"]


def test_a_namespace_ends_when_its_finalizer_goes(server: Server) -> None:
    path = f"{NAMESPACES}/{(name := fresh('ns'))}"
    made = server.ask("POST", NAMESPACES, object_of("Namespace", name))
    assert made.body["spec"]["finalizers"] == ["kubernetes"]
    assert made.body["status"]["phase"] == "Active"
    dying = server.ask("DELETE", path)
    assert (dying.code, dying.body["status"]["phase"]) == (200, "Terminating")
    refused = server.ask("POST", f"{path}/services", service("late"))
    assert (refused.code, refused.reason) == (403, "Forbidden")
    empty = {**dying.body, "spec": {"finalizers": []}}
    assert server.ask("PUT", f"{path}/finalize", empty).code == 200
    server.ask("DELETE", path)
    assert server.ask("GET", path).code == 404


# watches


def test_a_watch_from_before_a_restart_is_told_that_it_is_too_late(server: Server) -> None:
    """However little has happened: the server's memory of what happened begins when it starts."""
    name = fresh()
    version = server.ask("POST", SERVICES, service(name)).meta["resourceVersion"]
    assert server.watch(SERVICES, version).body["type"] == ""
    before = str(int(version) - 1)
    assert server.watch(SERVICES, before).body["object"]["metadata"]["name"] == name
    server.restart()
    told = server.watch(SERVICES, version)
    assert (told.code, told.body["type"]) == (200, "ERROR")
    assert (told.body["object"]["code"], told.body["object"]["reason"]) == (410, "Expired")
    listed = server.ask("GET", SERVICES).meta["resourceVersion"]
    assert server.watch(SERVICES, listed).body["type"] == ""


# strategic merge patches, which kubectl sends


def test_a_strategic_merge_patch_goes_by_merge_keys(server: Server) -> None:
    path = f"{SERVICES}/{(name := fresh())}"
    ports = [{"name": "a", "port": 80}, {"name": "b", "port": 81}]
    server.ask("POST", SERVICES, service(name, ports=ports))
    patch = {"spec": {"ports": [{"port": 81, "$patch": "delete"}, {"port": 80, "targetPort": 8080}]}}
    done = server.ask("PATCH", path, patch, STRATEGIC)
    [port] = done.body["spec"]["ports"]
    assert (port["name"], port["targetPort"]) == ("a", 8080)
    assert server.ask("PATCH", path, {}, "text/plain").code == 415
