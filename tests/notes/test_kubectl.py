# SPDX-License-Identifier: Apache-2.0
"""What the notes do with kubectl, in a lab that lives from an API server: to make, describe, change objects.

Two notes are followed: the long one on Services, and the one on the odd Services of kube-system, which have
neither selector nor address. The API server is a double, kubectl is real. It answers no ``get`` with a table
of its own, so columns are named here; there are no containers, so ``lbctl lab exec`` stands for its ``exec``.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import yaml

from lb.lab.addressing import Family, node_address
from lb.lab.lab import Lab
from tests.cluster_programs import make_assets
from tests.netns.conftest import EXAMPLES, MakeLab
from tests.netns.waiting import eventually
from tests.notes.terminal import answered, code, curl, in_ipvs, kubectl, looked_up, typed

HOST = "kubia.example.com"
KUBELET = """\
apiVersion: v1
kind: Service
metadata: {name: kubelet, namespace: kube-system, labels: {k8s-app: kubelet}}
spec:
  clusterIP: None
  ports:
    - {name: https-metrics, port: 10250, protocol: TCP, targetPort: 10250}
    - {name: http-metrics, port: 10255, protocol: TCP, targetPort: 10255}
    - {name: cadvisor, port: 4194, protocol: TCP, targetPort: 4194}
  sessionAffinity: None
  type: ClusterIP
"""
KUBELETS = """\
apiVersion: v1
kind: Endpoints
metadata: {name: kubelet, namespace: kube-system, labels: {k8s-app: kubelet}}
subsets:
  - addresses: [{ip: 192.168.11.10}, {ip: 192.168.11.100}, {ip: 192.168.11.101}]
    ports:
      - {name: http-metrics, port: 10255}
      - {name: cadvisor, port: 4194}
      - {name: https-metrics, port: 10250}
"""
INGRESS = f"""\
apiVersion: networking.k8s.io/v1
kind: Ingress
metadata: {{name: kubia}}
spec:
  tls: [{{hosts: [{HOST}], secretName: tls-secret}}]
  rules:
    - host: {HOST}
      http:
        paths:
          - path: /
            pathType: Prefix
            backend: {{service: {{name: kubia-nodeport, port: {{number: 80}}}}}}
"""


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """A lab with nothing in it but the ReplicaSet, whose pods are ready while a file exists."""
    folder = tmp_path_factory.mktemp("kubectl")
    pods = yaml.safe_load((EXAMPLES / "kubia-replicaset.yaml").read_text())
    [container] = pods["spec"]["template"]["spec"]["containers"]
    container["readinessProbe"] = {"exec": {"command": ["ls", "/var/ready"]}, "periodSeconds": 1}
    (folder / "m").mkdir()
    (folder / "m" / "kubia-replicaset.yaml").write_text(yaml.safe_dump(pods))
    assets = make_assets(folder / "assets", controllers=False)
    made = make_lab(folder / "m", nodes=1, dns=True, family=Family.IPV4, kubernetes=str(assets))
    for name in names(made):
        typed(made, name, "touch", "/var/ready")
    eventually(lambda: ready_replicas(made) == "3", "three are ready")
    return made


def names(lab: Lab) -> list[str]:
    return sorted(each["name"] for each in lab.pods() if each["name"].startswith("kubia-"))


def ready_replicas(lab: Lab) -> str:
    return kubectl(lab, "get", "rs", "kubia", "-o", "jsonpath={.status.readyReplicas}")


def create(lab: Lab, text: str, what: str) -> None:
    """Create an object as the notes do, from a file; kubectl names what it has made."""
    assert kubectl(lab, "create", "--validate=false", "-f", "-", given=text) == f"{what} created\n"


def example(lab: Lab, name: str, what: str) -> None:
    create(lab, (EXAMPLES / name).read_text(), what)


def described(lab: Lab, *words: str) -> dict[str, str]:
    """Return the lines of ``kubectl describe`` by what stands before the colon, the first of each."""
    found: dict[str, str] = {}
    for line in kubectl(lab, "describe", *words).splitlines():
        name, _, value = line.partition(":")
        found.setdefault(name.strip(), value.strip())
    return found


def field(lab: Lab, what: str, path: str, *words: str) -> str:
    return kubectl(lab, "get", *what.split(), *words, "-o", f"jsonpath={{{path}}}")


def test_a_service_is_created_described_and_asked(lab: Lab) -> None:
    example(lab, "kubia-service.yaml", "service/kubia")
    assert field(lab, "svc kubia", ".spec.clusterIP") == "10.66.13.240"
    eventually(lambda: len(in_ipvs(lab, "-t 10.66.13.240:80")) == 3, "the node knows of it")
    seen = described(lab, "svc", "kubia")
    assert (seen["Selector"], seen["Type"], seen["IP"]) == ("app=kubia", "ClusterIP", "10.66.13.240")
    assert (seen["Port"], seen["TargetPort"]) == ("http-default  80/TCP", "http-default/TCP")
    assert seen["Session Affinity"] == "ClientIP"
    pods = dict(
        line.split("--")
        for line in field(
            lab, "pods", r"range .items[*]}{.metadata.name}--{.status.podIP}{'\n'}{end"
        ).splitlines()
    )
    assert {f"{pods[name]}:8080" for name in names(lab)} == set(seen["Endpoints"].split(","))
    one, *_ = names(lab)
    assert " on http-default" in curl(lab, one, "http://10.66.13.240:80")
    assert " on http-mux1" in curl(lab, one, "http://10.66.13.240:90")


def test_its_pods_make_its_endpoints(lab: Lab) -> None:
    text = kubectl(lab, "describe", "endpointslices", "-l", "kubernetes.io/service-name=kubia")
    for name in names(lab):
        assert f"TargetRef:  Pod/{name}" in text
    assert "http-default  8080  TCP" in text
    assert "http-mux1     8090  TCP" in text


def test_endpoints_by_hand_and_an_alias(lab: Lab) -> None:
    service, endpoints = (EXAMPLES / "external-service.yaml").read_text().split("\n---\n")
    create(lab, service, "service/external-service")
    assert described(lab, "svc", "external-service")["Endpoints"] in ("", "<none>")
    create(lab, endpoints, "endpoints/external-service")
    seen = described(lab, "endpoints", "external-service")
    assert (seen["Addresses"], seen["NotReadyAddresses"]) == ("192.168.77.200", "<none>")
    one, *_ = names(lab)
    eventually(lambda: code(lab, one, "http://10.66.10.171/") == 0, "it leads outside")
    example(lab, "external-name.yaml", "service/external-name")
    seen = described(lab, "svc", "external-name")
    assert (seen["Type"], seen["External Name"]) == ("ExternalName", "www.example.org")
    eventually(lambda: code(lab, one, "http://external-name/get") == 0, "the alias leads outside")


def test_a_node_port_and_a_load_balancer(lab: Lab) -> None:
    example(lab, "kubia-nodeport.yaml", "service/kubia-nodeport")
    path = ".items[*].status.addresses[?(@.type=='InternalIP')].address"
    assert field(lab, "nodes", path).split() == [str(node_address("node1"))]
    eventually(lambda: code(lab, "client", f"http://{node_address('node1')}:30123/") == 0, "the port is open")
    example(lab, "kubia-loadbalancer.yaml", "service/kubia-loadbalancer")
    given = ".status.loadBalancer.ingress[0].ip"
    eventually(lambda: field(lab, "svc kubia-loadbalancer", given) == "203.0.113.22", "it has an address")
    seen = described(lab, "svc", "kubia-loadbalancer")
    assert seen["LoadBalancer Ingress"].startswith("203.0.113.22")
    assert seen["NodePort"] == "<unset>  32179/TCP"
    assert seen["External Traffic Policy"] == "Cluster"
    eventually(lambda: code(lab, "client", "http://203.0.113.22/") == 0, "the address answers")
    typed(lab, "client", "ping", "-c", "2", "-W", "5", "203.0.113.22")


def test_an_ingress_with_tls(lab: Lab, tmp_path: Path) -> None:
    key, certificate = tmp_path / "tls.key", tmp_path / "tls.cert"
    for words in (
        f"genrsa -out {key} 2048",
        f"req -new -x509 -sha256 -key {key} -out {certificate} -days 3650 -subj /CN={HOST}",
    ):
        subprocess.run(["openssl", *words.split()], check=True, capture_output=True)
    files = (f"--cert={certificate}", f"--key={key}")
    # The double takes JSON alone, and kubectl would send what it makes of a Secret in another form.
    made = kubectl(lab, "create", "secret", "tls", "tls-secret", *files, "--dry-run=client", "-o", "yaml")
    create(lab, made, "secret/tls-secret")
    create(lab, INGRESS, "ingress.networking.k8s.io/kubia")
    given = ".status.loadBalancer.ingress[0].ip"
    eventually(lambda: field(lab, "ingress kubia", given) == "203.0.113.80", "ADDRESS is there")
    ask = ["curl", "-skv", "-m", "10", "--resolve", f"{HOST}:443:203.0.113.80", f"https://{HOST}/"]
    eventually(lambda: "You've hit kubia-" in lab.run("client", ask).stdout, "HTTPS is answered", seconds=60)
    assert f"subject: CN={HOST}" in lab.run("client", ask).stderr
    seen = kubectl(lab, "describe", "ingress", "kubia")
    assert f"tls-secret terminates {HOST}" in seen
    assert "kubia-nodeport:80" in seen


def unhealthy(lab: Lab, pod: str) -> str:
    """Return what Events say of a pod's probe; with a real API server ``kubectl describe`` shows them."""
    path = "/apis/events.k8s.io/v1/namespaces/default/events"
    found = lab.api_host().api().send("GET", path)["items"]
    return "\n".join(
        each["note"] for each in found if (each["reason"], each["regarding"]["name"]) == ("Unhealthy", pod)
    )


def test_a_headless_service_and_pods_that_are_not_ready(lab: Lab) -> None:
    one, *others = names(lab)
    example(lab, "kubia-headless.yaml", "service/kubia-headless")
    seen = described(lab, "service", "kubia-headless")
    assert (seen["IP"], seen["TargetPort"]) == ("None", "8080/TCP")
    said = kubectl(lab, "run", "dnsutils", "--image=lab", "--command", "--", "sleep", "infinity")
    assert said == "pod/dnsutils created\n"
    eventually(lambda: any(each["name"] == "dnsutils" and each["ready"] for each in lab.pods()), "it runs")
    typed(lab, one, "rm", "/var/ready")
    eventually(lambda: ready_replicas(lab) == "2", "two are ready")
    every = {str(lab.find_pod(each).addresses[0]) for each in (one, *others)}
    able = every - {str(lab.find_pod(one).addresses[0])}
    eventually(lambda: looked_up(lab, "dnsutils", "kubia-headless") == able, "the two that are ready")
    assert looked_up(lab, "dnsutils", "kubia") == {"10.66.13.240"}
    assert {f"{each}:8080" for each in able} == set(
        described(lab, "svc", "kubia-headless")["Endpoints"].split(",")
    )
    conditions = kubectl(lab, "describe", "pod", one).partition("Conditions:")[2]
    assert " Ready False " in " ".join(conditions.split())
    eventually(lambda: "/var/ready" in unhealthy(lab, one), "an Event tells of the probe")
    assert unhealthy(lab, one).startswith("Readiness probe failed: ls: ")
    change = '{"spec": {"publishNotReadyAddresses": true}}'
    kubectl(lab, "patch", "service", "kubia-headless", "--type=merge", "-p", change)
    eventually(lambda: looked_up(lab, "dnsutils", "kubia-headless") == every, "all, ready or not")
    assert answered(lab, "client", f"http://{node_address('node1')}:30123/") == set(others)
    typed(lab, one, "touch", "/var/ready")


def test_a_service_of_kube_system_without_selector_and_address(lab: Lab) -> None:
    create(lab, KUBELET, "service/kubelet")
    shown = yaml.safe_load(kubectl(lab, "-n", "kube-system", "get", "svc", "kubelet", "-o", "yaml"))
    assert shown["spec"]["clusterIP"] == "None"
    assert "selector" not in shown["spec"]
    # Neither selector nor endpoints: no name leads anywhere.
    one, *_ = names(lab)
    assert looked_up(lab, one, "kubelet.kube-system") == set()
    create(lab, KUBELETS, "endpoints/kubelet")
    where = {"192.168.11.10", "192.168.11.100", "192.168.11.101"}
    eventually(
        lambda: looked_up(lab, one, "kubelet.kube-system") == where, "the name leads to what was written"
    )
    text = kubectl(lab, "-n", "kube-system", "describe", "svc", "kubelet")
    seen = [line.split()[-1] for line in text.splitlines() if line.startswith("Endpoints:")]
    assert seen == [",".join(f"{each}:{port}" for each in sorted(where)) for port in (10250, 10255, 4194)]
    assert described(lab, "-n", "kube-system", "svc", "kubelet")["Selector"] == "<none>"
    text = kubectl(lab, "-n", "kube-system", "describe", "endpoints", "kubelet")
    assert f"Addresses:          {','.join(sorted(where))}" in text
    assert "NotReadyAddresses:  <none>" in text
    assert "http-metrics   10255  TCP" in text
    # A headless Service is nothing that IPVS would have; one with an address is.
    assert in_ipvs(lab, "-t None:10250") == []
    assert len(in_ipvs(lab, "-t 10.66.0.10:53")) == len(in_ipvs(lab, "-u 10.66.0.10:53")) == 1
