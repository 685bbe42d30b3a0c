# SPDX-License-Identifier: Apache-2.0
"""Three of the notes, each with the objects that it writes.

They are about clusterIP, NodePort and headless Services, asked by dig; about Endpoints and variables; and
about a Deployment with the Service in front of it. Addresses are those of the lab.
"""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from lb.lab.addressing import Family, node_address
from lb.lab.lab import Lab
from tests.netns.conftest import MakeLab
from tests.netns.waiting import eventually
from tests.notes.terminal import addresses, answered, curl, in_ipvs, lbctl, typed

DNS = "10.66.0.10"
NODE = node_address("node1")

REDIS = """\
apiVersion: v1
kind: Service
metadata: {name: redis, namespace: default}
spec:
  selector: {app: redis, role: logstor}
  clusterIP: 10.66.97.97
  type: ClusterIP
  ports: [{port: 6379, targetPort: 6379}]
---
apiVersion: v1
kind: Pod
metadata: {name: redis, labels: {app: redis, role: logstor}}
spec: {containers: [{name: redis, image: redis, ports: [{containerPort: 6379}]}]}
"""
MYAPP = """\
apiVersion: apps/v1
kind: Deployment
metadata: {name: myapp-deployment}
spec:
  replicas: 3
  selector: {matchLabels: {app: myapp, release: canary}}
  template:
    metadata: {labels: {app: myapp, release: canary}}
    spec: {containers: [{name: myapp, image: myapp, ports: [{name: http, containerPort: 80}]}]}
---
apiVersion: v1
kind: Service
metadata: {name: myapp}
spec:
  selector: {app: myapp, release: canary}
  clusterIP: 10.66.99.99
  type: NodePort
  ports: [{port: 80, targetPort: 80, nodePort: 30080}]
---
apiVersion: v1
kind: Service
metadata: {name: myapp-svc-headless}
spec:
  selector: {app: myapp, release: canary}
  clusterIP: "None"
  ports: [{port: 80, targetPort: 80}]
"""
BOT = """\
apiVersion: v1
kind: Service
metadata: {name: kubernetes}
spec: {clusterIP: 10.66.0.1, ports: [{name: https, port: 443}]}
---
apiVersion: v1
kind: Service
metadata: {name: mwish-bot}
spec:
  clusterIP: 10.66.104.193
  selector: {app: mwish-bot}
  ports: [{name: redis-port, port: 9527, targetPort: 6379}]
---
apiVersion: v1
kind: Service
metadata: {name: mwish-bot-svc-redis}
spec: {clusterIP: 10.66.98.79, ports: [{port: 6379}]}
---
apiVersion: v1
kind: Endpoints
metadata: {name: mwish-bot-svc-redis}
subsets: [{addresses: [{ip: 11.11.11.11}, {ip: 22.22.22.22}], ports: [{port: 6379}]}]
---
apiVersion: v1
kind: Service
metadata: {name: mwish-bot-nodeport}
spec:
  type: NodePort
  ports: [{port: 6379, nodePort: 31234}]
  selector: {app: mwish-bot}
---
apiVersion: v1
kind: Pod
metadata: {name: mwish-bot, labels: {app: mwish-bot}}
spec: {containers: [{name: bot, image: bot, ports: [{containerPort: 6379}]}]}
---
apiVersion: v1
kind: Pod
metadata: {name: mwish-bot-another, labels: {app: another}}
spec: {containers: [{name: bot, image: bot, ports: [{containerPort: 6379}]}]}
"""
LOG_SEARCH = """\
apiVersion: release.example.net/v1alpha1
kind: Release
metadata: {name: log-search, namespace: console-dev}
spec: {config: "{}"}
---
apiVersion: extensions/v1beta1
kind: Deployment
metadata: {name: log-search, namespace: console-dev, labels: {app: log-search}}
spec:
  replicas: 2
  selector: {matchLabels: {app: log-search, controller.example.net/name: log-search}}
  template:
    metadata: {labels: {app: log-search, controller.example.net/name: log-search, version: v1}}
    spec:
      containers:
        - name: c0
          image: log-search
          command: [java, -jar, app.jar]
          env:
            - {name: POD_NAME, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: metadata.name}}}
            - {name: POD_IP, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: status.podIP}}}
            - {name: NODE_NAME, valueFrom: {fieldRef: {apiVersion: v1, fieldPath: spec.nodeName}}}
            - {name: CLUSTER_NAME, value: qd-ctcc}
          envFrom: [{configMapRef: {name: console-dev.log-search.v19}}]
          readinessProbe:
            httpGet: {path: /api/v1/cat/test, port: 8080, scheme: HTTP}
            initialDelaySeconds: 1
            periodSeconds: 1
      dnsPolicy: ClusterFirst
      imagePullSecrets: [{name: console-dev}]
      volumes: [{name: token, secret: {secretName: token}}]
---
apiVersion: v1
kind: Service
metadata: {name: log-search, namespace: console-dev, labels: {app: log-search}}
spec:
  clusterIP: 10.66.248.17
  ports: [{name: http-8080, port: 8080, protocol: TCP, targetPort: 8080}]
  selector: {controller.example.net/name: log-search}
  sessionAffinity: None
  type: ClusterIP
"""


@pytest.fixture(scope="module")
def lab(make_lab: MakeLab, tmp_path_factory: pytest.TempPathFactory) -> Lab:
    """One lab for all of them."""
    folder: Path = tmp_path_factory.mktemp("documents")
    for name, text in (("redis", REDIS), ("myapp", MYAPP), ("bot", BOT), ("log", LOG_SEARCH)):
        (folder / f"{name}.yaml").write_text(text)
    return make_lab(folder, family=Family.IPV4, nodes=1, dns=True)


def dig(lab: Lab, name: str) -> tuple[str, list[str]]:
    """Type dig on a node, as the notes do; return what it prints, and the answers, five words each."""
    text = typed(lab, "node1", "dig", "-t", "A", f"{name}.default.svc.cluster.local.", f"@{DNS}")
    answer = text.partition(";; ANSWER SECTION:\n")[2].partition("\n\n")[0]
    return text, [" ".join(line.split()) for line in answer.splitlines()]


def test_the_name_of_a_service_is_its_cluster_ip(lab: Lab) -> None:
    text, found = dig(lab, "redis")
    assert found == ["redis.default.svc.cluster.local. 5 IN A 10.66.97.97"]
    assert "status: NOERROR" in text
    assert re.search(r"flags: qr aa rd[ ;]", text)
    assert f"SERVER: {DNS}#53({DNS})" in text
    assert curl(lab, "mwish-bot", "http://redis:6379/") == "You've hit redis on 6379\n"


def test_a_node_port_is_open_on_the_node(lab: Lab) -> None:
    hosts = {curl(lab, "client", f"http://{NODE}:30080/hostname").strip() for _ in range(24)}
    pods = {each["name"] for each in lab.pods() if each["name"].startswith("myapp-deployment-")}
    assert hosts == pods
    assert len(pods) == 3
    assert sorted(in_ipvs(lab, "-t 10.66.99.99:80")) == sorted(
        f"{each}:80" for each in addresses(lab, "myapp")
    )
    assert in_ipvs(lab, f"-t {NODE}:30080") == in_ipvs(lab, "-t 10.66.99.99:80")


def test_the_name_of_a_headless_service_is_its_pods(lab: Lab) -> None:
    _, found = dig(lab, "myapp-svc-headless")
    pods = addresses(lab, "myapp-deployment-")
    assert sorted(found) == sorted(
        f"myapp-svc-headless.default.svc.cluster.local. 5 IN A {each}" for each in pods
    )
    assert "default/myapp-svc-headless  " in lbctl(lab, "service", "list").partition("without a VIP")[2]
    assert "You've hit myapp-deployment-" in curl(lab, "mwish-bot", "http://myapp-svc-headless/")


def test_a_service_is_asked_by_its_own_pod_and_by_another(lab: Lab) -> None:
    for pod in ("mwish-bot", "mwish-bot-another"):
        assert curl(lab, pod, "http://10.66.104.193:9527/") == "You've hit mwish-bot on 6379\n"
        assert curl(lab, pod, "http://mwish-bot.default.svc.cluster.local:9527/").startswith(
            "You've hit mwish-bot"
        )
    assert curl(lab, "client", f"http://{NODE}:31234/") == "You've hit mwish-bot on 6379\n"


def variables(name: str, host: str, port: int, port_name: str = "") -> dict[str, str]:
    """Return what the notes see of one Service in env."""
    url = f"tcp://{host}:{port}"
    one = {f"{name}_SERVICE_PORT_{port_name}": str(port)} if port_name else {}
    prefix = f"{name}_PORT_{port}_TCP"
    return one | {
        f"{name}_SERVICE_HOST": host,
        f"{name}_SERVICE_PORT": str(port),
        f"{name}_PORT": url,
        prefix: url,
        f"{prefix}_PROTO": "tcp",
        f"{prefix}_PORT": str(port),
        f"{prefix}_ADDR": host,
    }


def test_a_pod_finds_services_in_its_variables(lab: Lab) -> None:
    found = dict(line.split("=", 1) for line in typed(lab, "mwish-bot-another", "env").splitlines())
    assert found["HOSTNAME"] == "mwish-bot-another"
    expected = {
        **variables("KUBERNETES", "10.66.0.1", 443, "HTTPS"),
        **variables("MWISH_BOT", "10.66.104.193", 9527, "REDIS_PORT"),
        **variables("MWISH_BOT_SVC_REDIS", "10.66.98.79", 6379),
    }
    assert expected.items() <= found.items()


def test_endpoints_by_hand_are_where_a_service_leads(lab: Lab) -> None:
    assert sorted(in_ipvs(lab, "-t 10.66.98.79:6379")) == ["11.11.11.11:6379", "22.22.22.22:6379"]
    shown = json.loads(lbctl(lab, "service", "show", "default/mwish-bot-svc-redis", "-o", "json"))
    assert {each["address"] for each in shown["ports"][0]["backends"]} == {"11.11.11.11", "22.22.22.22"}


def test_a_deployments_pods_are_behind_its_service(lab: Lab) -> None:
    eventually(
        lambda: len([each for each in lab.pods() if each["namespace"] == "console-dev"]) == 2, "two pods"
    )
    lab.wait_ready()
    pods = {each["name"]: each["address"] for each in lab.pods() if each["namespace"] == "console-dev"}
    assert all(re.fullmatch(r"log-search-[a-z0-9]{10}-[a-z0-9]{5}", name) for name in pods)
    one, address = next(iter(pods.items()))
    found = dict(line.split("=", 1) for line in typed(lab, one, "env").splitlines())
    assert (found["POD_NAME"], found["POD_IP"], found["NODE_NAME"]) == (one, address, "node1")
    assert found["CLUSTER_NAME"] == "qd-ctcc"
    eventually(lambda: len(in_ipvs(lab, "-t 10.66.248.17:8080")) == 2, "both are ready")
    assert answered(lab, "mwish-bot", "http://10.66.248.17:8080/") == set(pods)
    assert answered(lab, "mwish-bot", "http://log-search.console-dev:8080/") == set(pods)
    # Whose Release it is, nobody here knows: that is said, and nothing else suffers from it.
    assert any("Release" in each for each in lab.status()["errors"])
