# SPDX-License-Identifier: Apache-2.0
"""A lab that lives from an API server: everything but the binaries is real, and they are where there are any.

With the variable KUBEBUILDER_ASSETS the same tests run against the kube-apiserver that it leads to.
"""

import io
import json
import os
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lb.cli import main
from lb.errors import LabError
from lb.lab import apiserver
from lb.lab.addressing import node_address
from lb.lab.api import (
    DEPLOYMENTS,
    ENDPOINT_SLICES,
    ENDPOINTS,
    NAMESPACES,
    NODES,
    PODS,
    REPLICA_SETS,
    SERVICES,
    Api,
    Object,
    gone,
)
from lb.lab.apply import make_namespace
from lb.lab.lab import Lab
from lb.model import ObjectKey
from tests.cluster_programs import make_assets
from tests.netns.conftest import MakeLab
from tests.netns.waiting import dumped, eventually, scrape

KUBIA = ObjectKey("default", "kubia")
NODE_PORT = "http://192.168.77.12:30123/"
MERGE = "application/merge-patch+json"


@pytest.fixture(scope="module", params=["double", "double with controllers", "kube-apiserver"])
def kube(request: pytest.FixtureRequest, make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab with agents; leave its ReplicaSet kubia with three ready pods."""
    if request.param == "kube-apiserver":
        try:
            assets = apiserver.find()
        except LabError as error:
            pytest.skip(str(error))
    else:
        folder = tmp_path_factory.mktemp("kubebuilder") / "assets"
        assets = make_assets(folder, controllers="controllers" in request.param)
    return make_lab(kubernetes=str(assets))


@pytest.fixture
def api(kube: Lab) -> Api:
    return kube.api_host().api(patience=20)


def get(api: Api, path: str) -> Object:
    return api.send("GET", path)


def scale(api: Api, replicas: int, key: ObjectKey = KUBIA) -> None:
    body = {"spec": {"replicas": replicas}}
    api.send("PATCH", f"{REPLICA_SETS.object(key)}/scale", body=body, content_type=MERGE)


def kubia(kube: Lab) -> list[dict[str, Any]]:
    return [each for each in kube.pods() if each["name"].startswith("kubia-") and each["phase"] == "Running"]


def ready(kube: Lab, count: int) -> bool:
    return [each["ready"] for each in kubia(kube)] == [True] * count


def backends(kube: Lab, node: str = "node1") -> set[str]:
    """Return the pods that a node's kernel has behind the NodePort Service."""
    [vip] = [each for each in dumped(kube, node, "vips")["vips"] if each["address"] == "10.66.5.6"]
    return {backend["address"] for backend in vip["backends"]}


def answers(kube: Lab, count: int = 12) -> Counter[str]:
    script = f"for i in $(seq {count}); do curl -sS -m 5 {NODE_PORT}; done"
    done = kube.run("client", ["sh", "-c", script])
    assert done.stdout.count("\n") == count, done.stderr
    return Counter(line.split()[2] for line in done.stdout.splitlines())


def test_the_manifests_are_in_the_api_with_their_status(api: Api) -> None:
    services = {each["metadata"]["name"]: each for each in get(api, SERVICES.path)["items"]}
    assert services["kubia"]["spec"]["clusterIP"] == "10.66.13.240"
    assert services["kubia-loadbalancer"]["status"]["loadBalancer"]["ingress"][0]["ip"] == "203.0.113.22"
    nodes = {each["metadata"]["name"]: each for each in get(api, NODES.path)["items"]}
    assert nodes["node2"]["metadata"]["labels"]["topology.kubernetes.io/zone"] == "zone-b"
    address = {"type": "InternalIP", "address": "192.168.77.12"}
    assert address in nodes["node2"]["status"]["addresses"]


def test_pods_are_spread_and_report_their_status(kube: Lab, api: Api) -> None:
    assert ready(kube, 3)
    assert sorted(Counter(each["node"] for each in kubia(kube)).values()) == [1, 2]
    for each in kubia(kube):
        pod = get(api, PODS.object(ObjectKey("default", each["name"])))
        assert pod["spec"]["nodeName"] == each["node"]
        assert pod["status"]["podIP"] == each["address"]
        assert {c["type"]: c["status"] for c in pod["status"]["conditions"]}["Ready"] == "True"
        assert pod["metadata"]["ownerReferences"][0]["kind"] == "ReplicaSet"
    status = get(api, REPLICA_SETS.object(KUBIA))["status"]
    assert (status["replicas"], status["readyReplicas"]) == (3, 3)


def test_dual_stack_is_in_nodes_pods_services_and_slices(kube: Lab, api: Api) -> None:
    for node in get(api, NODES.path)["items"]:
        given = [each["address"] for each in node["status"]["addresses"] if each["type"] == "InternalIP"]
        assert given == [str(each) for each in kube.spec.node_addresses(node["metadata"]["name"])]
        assert len(node["spec"]["podCIDRs"]) == 2
    pods = {each["name"]: each["addresses"] for each in kubia(kube)}
    for name, addresses in pods.items():
        status = get(api, PODS.object(ObjectKey("default", name)))["status"]
        assert [each["ip"] for each in status["podIPs"]] == addresses
    spec = get(api, SERVICES.object(ObjectKey("default", "kubia-dual-stack")))["spec"]
    assert (spec["ipFamilies"], spec["clusterIPs"]) == (["IPv4", "IPv6"], ["10.66.6.6", "fd00:66::66"])
    single = get(api, SERVICES.object(KUBIA))["spec"]
    assert (single["ipFamilyPolicy"], single["ipFamilies"]) == ("SingleStack", ["IPv4"])

    def slices(service: str) -> dict[str, set[str]]:
        return {
            each["addressType"]: {
                address for endpoint in each["endpoints"] for address in endpoint["addresses"]
            }
            for each in get(api, ENDPOINT_SLICES.path)["items"]
            if each["metadata"]["labels"]["kubernetes.io/service-name"] == service
        }

    both = {f"IPv{version}": {each[at] for each in pods.values()} for at, version in enumerate((4, 6))}
    eventually(lambda: slices("kubia-dual-stack") == both, "a slice of each family")
    assert slices("kubia-nodeport") == {"IPv4": both["IPv4"]}


def test_traffic_reaches_the_pods(kube: Lab) -> None:
    eventually(lambda: len(backends(kube)) == 3, "three backends")
    assert answers(kube, 40).keys() == {each["name"] for each in kubia(kube)}
    outside = kube.run(kubia(kube)[0]["name"], ["curl", "-sS", "-m", "5", "http://10.66.10.171/"])
    assert outside.stdout == "You've hit outside on http\n", outside.stderr


def answered(kube: Lab, node: str, port: int, path: str = "/healthz") -> int:
    """Return the status that the client gets; 0 when nobody listens."""
    url = f"http://{node_address(node)}:{port}{path}"
    done = kube.run("client", ["curl", "-s", "-m", "5", "-o", "/dev/null", "-w", "%{http_code}", url])
    return int(done.stdout)


def test_health_check_node_port_follows_the_service_in_the_api(kube: Lab, api: Api) -> None:
    key, port = ObjectKey("default", "checked"), 30700
    spec = {
        "type": "LoadBalancer",
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": port,
        "selector": {"app": "kubia"},
        "ports": [{"port": 80, "targetPort": 8080}],
    }
    meta = {"name": key.name, "namespace": key.namespace}
    api.create(SERVICES, {"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": spec})
    for node in ("node1", "node2"):
        eventually(lambda node=node: answered(kube, node, port) == 200, f"{node} has endpoints")  # type: ignore[misc]
    [victim] = [
        each["name"] for each in kubia(kube) if sum(e["node"] == each["node"] for e in kubia(kube)) == 1
    ]
    node = kube.find_pod(victim).node
    for word, status in (("unready", 503), ("ready", 200)):
        kube.ask_kubelet(word, pod=victim)
        eventually(lambda status=status: answered(kube, node, port) == status, f"{word}: {status}")  # type: ignore[misc]
    api.send("DELETE", SERVICES.object(key))
    eventually(lambda: answered(kube, node, port) == 0, "nobody listens when the Service is gone")


def test_node_health_turns_503_while_the_autoscaler_deletes_the_node(kube: Lab, api: Api) -> None:
    taint = {"key": "ToBeDeletedByClusterAutoscaler", "value": "1", "effect": "NoSchedule"}
    path = NODES.object(ObjectKey("", "node1"))
    for taints, status in (([taint], 503), ([], 200)):
        api.send("PATCH", path, body={"spec": {"taints": taints}}, content_type=MERGE)
        eventually(lambda status=status: answered(kube, "node1", 10256) == status, f"healthz: {status}")  # type: ignore[misc]
        assert answered(kube, "node1", 10256, "/livez") == 200
        assert answered(kube, "node2", 10256) == 200


def test_scaling_reaches_the_kernel(kube: Lab, api: Api) -> None:
    scale(api, 5)
    eventually(lambda: ready(kube, 5), "five pods")
    wanted = {each["address"] for each in kubia(kube)}
    for node in ("node1", "node2"):
        eventually(lambda node=node: backends(kube, node) == wanted, f"five backends on {node}")  # type: ignore[misc]
    scale(api, 3)
    eventually(lambda: len(kube.pods()) == 3, "three pods", seconds=40)
    eventually(lambda: len(get(api, PODS.path)["items"]) == 3, "three Pod objects")
    wanted = {each["address"] for each in kubia(kube)}
    eventually(lambda: backends(kube) == wanted, "three backends")
    answers(kube)


def test_unready_is_in_the_status_when_the_command_returns(kube: Lab, api: Api) -> None:
    name = kubia(kube)[0]["name"]
    for word, status in (("unready", "False"), ("ready", "True")):
        kube.ask_kubelet(word, pod=name)
        conditions = get(api, PODS.object(ObjectKey("default", name)))["status"]["conditions"]
        assert {each["type"]: each["status"] for each in conditions}["Ready"] == status
        count = 3 if word == "ready" else 2
        eventually(lambda count=count: len(backends(kube)) == count, f"{count} backends")  # type: ignore[misc]


def test_a_killed_pod_is_replaced(kube: Lab, api: Api) -> None:
    name = kubia(kube)[0]["name"]
    [successor] = kube.ask_kubelet("kill", pod=name)["replaced_by"]
    assert successor != name
    with pytest.raises(Exception, match=name), gone():
        get(api, PODS.object(ObjectKey("default", name)))
    eventually(lambda: ready(kube, 3), "the successor is ready")
    assert successor in {each["name"] for each in kubia(kube)}


def test_a_deleted_pod_ends_gracefully(kube: Lab, api: Api) -> None:
    victim = kubia(kube)[0]
    path = PODS.object(ObjectKey("default", victim["name"]))
    api.send("DELETE", path)
    assert get(api, path)["metadata"]["deletionTimestamp"]
    url = f"http://{victim['address']}:8080/hostname"
    assert kube.run("client", ["curl", "-sS", "-m", "5", url]).stdout == f"{victim['name']}\n"
    eventually(
        lambda: victim["name"] not in {each["metadata"]["name"] for each in get(api, PODS.path)["items"]},
        "the object goes when the pod has ended",
    )
    eventually(lambda: ready(kube, 3), "another takes its place")


def test_a_bare_pod_gets_a_node(kube: Lab, api: Api) -> None:
    key = ObjectKey("default", "alone")
    containers = [{"name": "main", "image": "any", "ports": [{"containerPort": 8080}]}]
    meta = {"name": key.name, "namespace": key.namespace}
    spec = {"containers": containers, "terminationGracePeriodSeconds": 2}
    api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    eventually(lambda: any(each["name"] == "alone" and each["ready"] for each in kube.pods()), "it is ready")
    assert get(api, PODS.object(key))["spec"]["nodeName"] in kube.spec.node_names
    api.send("DELETE", PODS.object(key))
    eventually(lambda: all(each["name"] != "alone" for each in kube.pods()), "it ends")


def test_a_deployment_comes_and_goes(kube: Lab, api: Api) -> None:
    labels = {"app": "web"}
    container = {"name": "main", "image": "any", "ports": [{"containerPort": 8080}]}
    template = {
        "metadata": {"labels": labels},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 2},
    }
    spec = {"replicas": 4, "selector": {"matchLabels": labels}, "template": template}
    meta = {"name": "web", "namespace": "default"}
    item = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec}
    api.create(DEPLOYMENTS, item)

    def running() -> list[dict[str, Any]]:
        return [each for each in kube.pods() if each["name"].startswith("web-")]

    eventually(lambda: [each["ready"] for each in running()] == [True] * 4, "four pods are ready")
    path = DEPLOYMENTS.object(ObjectKey("default", "web"))
    eventually(lambda: get(api, path)["status"].get("readyReplicas") == 4, "the status says so")
    api.send("DELETE", path, {"propagationPolicy": "Background"})
    eventually(lambda: running() == [], "they end")
    eventually(lambda: len(get(api, PODS.path)["items"]) == 3, "their objects go")


def test_a_namespace_goes_with_all_that_is_in_it(kube: Lab, api: Api) -> None:
    make_namespace(api, "short")
    key = ObjectKey("short", "alone")
    meta = {"name": key.name, "namespace": key.namespace}
    containers = [{"name": "main", "image": "any"}]
    spec = {"containers": containers, "terminationGracePeriodSeconds": 2}
    api.create(PODS, {"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec})
    eventually(lambda: any(each["name"] == "alone" and each["ready"] for each in kube.pods()), "it is ready")
    api.send("DELETE", NAMESPACES.object(ObjectKey("", "short")))

    def is_gone() -> bool:
        return all(each["metadata"]["name"] != "short" for each in get(api, NAMESPACES.path)["items"])

    eventually(is_gone, "the namespace is gone", seconds=40)
    assert all(each["name"] != "alone" for each in kube.pods())


def test_a_service_comes_and_goes(kube: Lab, api: Api) -> None:
    key = ObjectKey("default", "late")
    meta = {"name": key.name, "namespace": key.namespace}
    ports = [{"port": 80, "targetPort": 8080}]
    api.create(
        SERVICES,
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": meta,
            "spec": {"selector": {"app": "kubia"}, "ports": ports},
        },
    )
    address = get(api, SERVICES.object(key))["spec"]["clusterIP"]
    assert address.startswith("10.66.")

    def has(node: str) -> bool:
        vips = [each for each in dumped(kube, node, "vips")["vips"] if each["address"] == address]
        return any(len(each["backends"]) == 3 for each in vips)

    eventually(lambda: has("node1"), "its backends are in the kernel")
    done = kube.run(kubia(kube)[0]["name"], ["curl", "-sS", "-m", "5", f"http://{address}/"])
    assert done.stdout.startswith("You've hit kubia-"), done.stderr
    api.send("DELETE", SERVICES.object(key))
    eventually(lambda: not has("node1"), "it is gone from the kernel")
    eventually(
        lambda: (
            not any(
                each["metadata"]["labels"].get("kubernetes.io/service-name") == "late"
                for each in get(api, ENDPOINT_SLICES.path)["items"]
            )
        ),
        "its slices are gone",
    )


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_the_api_server_may_go_and_come(kube: Lab, api: Api, how: str) -> None:
    assert command(kube, "api", how) == (0, "the API server has ended\n", "")
    assert "API server not ready" in command(kube, "status")[1]
    eventually(lambda: staleness(kube)["failures"] > 0, "the agent says that it hears nothing")
    answers(kube)
    victim = kubia(kube)[0]["name"]
    process = kube.find_pod(victim).process
    assert process is not None
    os.kill(process.pid, signal.SIGKILL)  # the status must arrive later
    assert command(kube, "api", "start") == (0, "the API server is ready\n", "")
    restarted = ObjectKey("default", victim)
    eventually(
        lambda: get(api, PODS.object(restarted))["status"]["containerStatuses"][0]["restartCount"] >= 1,
        "the restart is reported",
    )
    eventually(lambda: ready(kube, 3), "the pod is ready again")
    scale(api, 4)
    eventually(lambda: ready(kube, 4), "scaling works again", seconds=40)
    eventually(lambda: len(backends(kube)) == 4, "and reaches the kernel", seconds=40)
    eventually(lambda: staleness(kube)["failures"] == 0, "the agent says that it is in step", seconds=40)
    assert time.time() - staleness(kube)["contact"] < 120, "bookmarks come about once a minute"
    scale(api, 3)  # kube-controller-manager may sit out half a minute after an API server that was killed
    eventually(lambda: len(kube.pods()) == 3, "three pods", seconds=90)
    eventually(lambda: ready(kube, 3), "three ready pods")


def staleness(kube: Lab) -> dict[str, float]:
    """Return how stale node1's agent says it is: failures in a row, and the time of the last contact."""
    found = scrape(kube, "node1")
    resources = ("services", "endpointslices", "nodes")
    return {
        "failures": sum(found["lbctl_source_consecutive_failures", each] for each in resources),
        "contact": min(found["lbctl_source_last_contact_timestamp_seconds", each] for each in resources),
    }


def command(kube: Lab, *words: str) -> tuple[int, str, str]:
    out, err = io.StringIO(), io.StringIO()
    code = main(["lab", words[0], "--id", kube.spec.id, *words[1:]], out=out, err=err)
    return code, out.getvalue(), err.getvalue()


def test_status_tells_of_the_api_server(kube: Lab) -> None:
    status = json.loads(command(kube, "status", "-o", "json")[1])["kubernetes"]
    assert status["ready"]
    assert Path(status["kubeconfig"]).stat().st_mode & 0o777 == 0o600
    assert {"etcd", "kube-apiserver", "forwarder"} <= status["processes"].keys()
    text = command(kube, "status")[1]
    assert "API server ready, https://192.168.77.2:6443 in the lab" in text
    assert f"kubeconfig {status['kubeconfig']}" in text


def test_what_runs_in_a_pod_sees_nothing_of_whoever_asks(kube: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN_OF_THE_OPERATOR", "secret")
    pod = kubia(kube)[0]["name"]
    code, said, _ = command(kube, "exec", pod, "--", "env")
    variables = dict(line.split("=", 1) for line in said.splitlines())
    assert code == 0
    assert variables["HOSTNAME"] == pod
    assert "TOKEN_OF_THE_OPERATOR" not in variables
    assert variables["PATH"] == "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def test_agents_have_no_more_rights_than_the_manifest_gives(kube: Lab) -> None:
    token = (kube.store.api / "agent.token").read_text()
    ask = ["curl", "-sS", "--cacert", str(kube.store.api / "ca.crt"), "-H", f"Authorization: Bearer {token}"]
    code = ["-o", "/dev/null", "-w", "%{http_code}"]
    for path, wanted in ((SERVICES.path, "200"), (ENDPOINTS.path, "403"), (PODS.path, "403")):
        done = kube.run("node2", [*ask, *code, f"https://192.168.77.2:6443{path}"])
        assert done.stdout == wanted, (path, done.stderr)


def test_kubectl_works_with_the_printed_kubeconfig(kube: Lab) -> None:
    program = shutil.which(apiserver.kubectl(kube.spec.kubernetes))
    if program is None:
        pytest.skip("kubectl is neither in the folder of binaries nor in PATH")

    def kubectl(*words: str) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        home = {"KUBECONFIG": str(kube.store.kubeconfig), "HOME": str(kube.store.base)}
        done = subprocess.run(
            [program, *words], env={**kept, **home}, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "node/node1" in kubectl("get", "nodes,services", "-o", "name").split()
    kubectl("scale", "rs", "kubia", "--replicas", "4")
    eventually(lambda: ready(kube, 4), "four pods")
    kubectl("scale", "rs", "kubia", "--replicas", "3")
    eventually(lambda: len(kube.pods()) == 3, "three pods", seconds=40)
    kubectl("delete", "pod", kubia(kube)[0]["name"], "--wait=true")
    eventually(lambda: ready(kube, 3), "three pods")


def test_the_kubelet_found_nothing_wrong_with_itself(kube: Lab) -> None:
    assert "Traceback" not in kube.store.log("kubelet").read_text()
