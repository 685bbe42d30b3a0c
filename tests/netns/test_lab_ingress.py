# SPDX-License-Identifier: Apache-2.0
"""Ingress in a lab: from an object, or its change, to what the client outside gets, in every family."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from lb.lab import ingress
from lb.lab.addressing import Family, clients
from lb.lab.api import INGRESSES, NAMESPACES, PODS, SECRETS, SERVICES, Api, GoneError, gone
from lb.lab.lab import Lab
from lb.model import ObjectKey
from tests.cluster_programs import make_assets
from tests.netns import ingress_load
from tests.netns.conftest import EXAMPLES, MakeLab, remove
from tests.netns.waiting import eventually
from tests.unit import ingress_objects
from tests.unit.ingress_objects import rule, secret

HOST = "kubia.example.com"
KUBIA = ObjectKey("default", "kubia")
SERVICE = """\
apiVersion: v1
kind: Service
metadata: {name: kubia}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: kubia}
  ports: [{name: http, port: 80, targetPort: http-default}]
"""
TLS = f"  tls: [{{hosts: [{HOST}], secretName: tls-secret}}]\n"
RULES = "  rules:\n" + rule(HOST, "Prefix / kubia:http", "Prefix /bad gone:80")


def write(folder: Path, name: str, text: str) -> None:
    """Replace a manifest, whole."""
    draft = folder.parent / name
    draft.write_text(text)
    draft.rename(folder / name)


def manifests(folder: Path) -> Path:
    """Fill a folder with pods, a Service, an Ingress with TLS and one bad backend."""
    folder.mkdir()
    pods = (EXAMPLES / "kubia-replicaset.yaml").read_text()
    write(folder, "pods.yaml", pods)
    write(folder, "service.yaml", SERVICE)
    write(folder, "ingress.yaml", ingress_objects.ingress(TLS + RULES, "kubia"))
    write(folder, "secret.yaml", secret())
    return folder


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab of both families that lives from manifests; leave its Ingress and its pods as they are."""
    return make_lab(manifests(tmp_path_factory.mktemp("ingress") / "m"))


@pytest.fixture(scope="module")
def kube(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """The same from an API server."""
    folder = tmp_path_factory.mktemp("kubebuilder")
    assets = make_assets(folder / "assets", controllers=False)
    return make_lab(manifests(folder / "m"), kubernetes=str(assets), nodes=1)


@pytest.fixture
def api(kube: Lab) -> Api:
    return kube.api_host().api(patience=20)


def get(lab: Lab, path: str, *options: str, version: int = 4, scheme: str = "http") -> str:
    """Ask from outside; return what curl prints."""
    address = ingress.ADDRESSES[version]
    where = f"[{address}]" if version == 6 else str(address)
    resolve = f"{HOST}:{443 if scheme == 'https' else 80}:{where}"
    url = f"{scheme}://{HOST}{path}"
    done = lab.run("client", ["curl", "-sSk", "-m", "10", "--resolve", resolve, *options, url])
    return done.stdout or done.stderr


def hit(lab: Lab, count: int = 12) -> set[str]:
    """Return the pods that answer."""
    return {words[2] for _ in range(count) if len(words := get(lab, "/").split()) == 5}


def kubia(lab: Lab) -> list[str]:
    return sorted(each["name"] for each in lab.pods() if each["name"].startswith("kubia-") and each["ready"])


def fronts(lab: Lab) -> list[str]:
    return sorted(f"{each['namespace']}/{each['name']}" for each in lab.pods() if "ingress" in each["name"])


def folder(lab: Lab) -> Path:
    return Path(lab.spec.manifests)


def written(lab: Lab, kind: str, key: ObjectKey) -> dict[str, Any]:
    """Return an object that the lab has written for its agents."""
    path = lab.store.cluster / f"{kind}.{key.namespace}.{key.name}.yaml"
    found: dict[str, Any] = yaml.safe_load(path.read_text()) if path.exists() else {}
    return found


def check_service(lab: Lab) -> None:
    """Ask in every way and family of the lab, and compare all that comes back."""
    versions = lab.spec.versions
    eventually(lambda: hit(lab) == set(kubia(lab)), "all pods answer") if 4 in versions else None
    for version in versions:
        told = get(lab, "/headers", version=version)
        assert f"X-Forwarded-For: {clients(version)[0]}\n" in told
        own = str(clients(version)[3])
        told = get(lab, "/headers", "--interface", own, version=version, scheme="https")
        assert f"X-Forwarded-For: {own}\n" in told, "the client's own address, whichever it is"
        for option, number in (("--http1.1", "1.1"), ("--http2", "2")):
            said = get(lab, "/", option, "-w", "%{http_version}", version=version, scheme="https")
            assert said.startswith("You've hit kubia-")
            assert said.endswith(f"\n{number}")
        assert "fails, as it was asked to\n500" in get(lab, "/fail", "-w", "%{http_code}", version=version)
        assert get(lab, "/bad", "-o", "/dev/null", "-w", "%{http_code}", version=version) == "503"


def test_ingress_is_served_with_the_clients_own_address(lab: Lab) -> None:
    check_service(lab)


def test_it_is_served_over_ipv6_alone(make_lab: MakeLab, tmp_path: Path) -> None:
    """Over IPv4 alone: tests/notes/test_ingress.py."""
    one = make_lab(manifests(tmp_path / "m"), family=Family.IPV6, nodes=1)
    check_service(one)
    remove(one.spec.id)


def test_each_node_has_a_pod_and_the_objects_have_the_address(lab: Lab) -> None:
    assert fronts(lab) == ["kube-system/ingress-node1", "kube-system/ingress-node2"]
    addresses = [{"ip": str(ingress.ADDRESSES[version])} for version in (4, 6)]
    for kind, key in (("ingress", KUBIA), ("service", ingress.SERVICE)):
        assert written(lab, kind, key)["status"]["loadBalancer"]["ingress"] == addresses
    assert written(lab, "ingress", KUBIA)["spec"]["rules"][0]["host"] == HOST


def test_a_bad_backend_is_one_named_error(lab: Lab) -> None:
    [error] = lab.ask_kubelet("list")["errors"]
    assert str(folder(lab) / "ingress.yaml") in error
    assert "Ingress default/kubia: spec.rules[0].http.paths[1].backend.service.name" in error
    assert "Service default/gone does not exist" in error


def test_readiness_shows_in_the_next_answers(lab: Lab) -> None:
    name, *others = kubia(lab)
    lab.ask_kubelet("ready", pod=name)
    lab.ask_kubelet("unready", pod=name)
    try:
        eventually(lambda: hit(lab) == set(others), "the pod that is not ready is left out")
    finally:
        lab.ask_kubelet("ready", pod=name)
    eventually(lambda: hit(lab) == {name, *others}, "all pods again")


@contextlib.contextmanager
def load(lab: Lab) -> Iterator[subprocess.Popen[str]]:
    """Send requests meanwhile; see :mod:`tests.netns.ingress_load`."""
    argv = [sys.executable, str(ingress_load.__file__), str(ingress.ADDRESSES[4]), HOST]
    process = subprocess.Popen(
        lab.command("client", argv), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            assert stream is not None
            stream.close()


def workers(lab: Lab) -> set[int]:
    """Return the processes of nginx that the node's master has had since the last look."""
    process = lab.find_pod("ingress-node1").process
    assert process is not None
    return set(map(int, Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()))


def test_no_request_is_lost_when_the_configuration_changes(lab: Lab) -> None:
    """Pods become unready, go, and come, each of which makes nginx read its configuration anew."""
    replicas = (EXAMPLES / "kubia-replicaset.yaml").read_text()
    name = kubia(lab)[0]
    seen = workers(lab)
    with load(lab) as process:
        eventually(lambda: len(kubia(lab)) == 3, "three pods")
        for change in ("unready", "ready") * 2:
            lab.ask_kubelet(change, pod=name)
            before = set(seen)
            eventually(lambda: bool(workers(lab) - before), "nginx has read its configuration")  # noqa: B023
            seen |= workers(lab)
        for count in (2, 3):
            write(folder(lab), "pods.yaml", replicas.replace("replicas: 3", f"replicas: {count}"))
            eventually(lambda: len(kubia(lab)) == count, f"{count} pods")  # noqa: B023
            eventually(lambda: hit(lab) == set(kubia(lab)), "they answer, and no other")
        out, _ = process.communicate("", timeout=60)
    result = json.loads(out)
    assert result["failed"] == []
    assert min(result["answered"]) > 0, "every thread has had answers"


def test_a_killed_nginx_comes_back(lab: Lab) -> None:
    lab.ask_kubelet("kill", pod="ingress-node2")
    eventually(lambda: len(fronts(lab)) == 2, "a pod on each node")
    lab.wait_ready()
    assert get(lab, "/").startswith("You've hit kubia-")


def test_the_last_ingress_takes_pods_and_service_with_it(lab: Lab) -> None:
    (folder(lab) / "ingress.yaml").unlink()
    eventually(lambda: fronts(lab) == [], "no pod of nginx")
    assert not written(lab, "ingress", KUBIA)
    assert not written(lab, "service", ingress.SERVICE)
    assert lab.ask_kubelet("list")["errors"] == []
    write(folder(lab), "ingress.yaml", ingress_objects.ingress(TLS + RULES, "kubia"))
    eventually(lambda: len(fronts(lab)) == 2, "pods of nginx again")
    lab.wait_ready()
    eventually(lambda: get(lab, "/").startswith("You've hit kubia-"), "the Ingress of before")


def test_an_api_server_is_followed_and_told(kube: Lab, api: Api) -> None:
    check_service(kube)
    addresses = [{"ip": str(ingress.ADDRESSES[version])} for version in (4, 6)]
    for resource, key in ((INGRESSES, KUBIA), (SERVICES, ingress.SERVICE)):
        status = api.send("GET", resource.object(key))["status"]
        assert [{"ip": each["ip"]} for each in status["loadBalancer"]["ingress"]] == addresses
    spec = api.send("GET", SERVICES.object(ingress.SERVICE))["spec"]
    assert (spec["type"], spec["externalTrafficPolicy"]) == ("LoadBalancer", "Local")
    [error] = kube.ask_kubelet("list")["errors"]
    assert INGRESSES.object(KUBIA) in error
    assert "Service default/gone does not exist" in error


def test_changes_in_an_api_server_are_followed(kube: Lab, api: Api) -> None:
    secret_key = ObjectKey("default", "tls-secret")
    api.delete(SECRETS, secret_key, api.send("GET", SECRETS.object(secret_key))["metadata"]["uid"])
    eventually(lambda: "You've hit" not in get(kube, "/", scheme="https"), "without certificate no HTTPS")
    assert get(kube, "/").startswith("You've hit kubia-")
    api.ensure(
        SECRETS, {**yaml.safe_load(secret()), "metadata": {"name": "tls-secret", "namespace": "default"}}
    )
    eventually(lambda: get(kube, "/", scheme="https").startswith("You've hit"), "HTTPS again")
    api.delete(INGRESSES, KUBIA, api.send("GET", INGRESSES.object(KUBIA))["metadata"]["uid"])

    def is_gone() -> bool:
        with contextlib.suppress(GoneError), gone():
            api.send("GET", PODS.object(ingress.pod_key("node1")))
            return False
        return True

    eventually(is_gone, "no pod of nginx")
    eventually(lambda: fronts(kube) == [], "and it does not run")
    assert ingress.SERVICE.namespace in {
        each["metadata"]["name"] for each in api.send("GET", NAMESPACES.path)["items"]
    }
